//! A port forward, as rootlesskit's tools write it: `PARENTIP:PARENTPORT[:CHILDIP]:CHILDPORT/PROTOCOL`, IPv6 addresses in
//! brackets (rootlessctl-add-ports; `ParsePortSpec` of rootlesskit's pkg/port/portutil). Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, which rootlesskit knows by name and none of its drivers carries.
    Sctp,
}

/// The addresses of which version of IP are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Those that the address is of; the unspecified address is that of both.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A protocol of rootlesskit's API: `tcp`, `tcp4`, `tcp6`, `udp`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol {
    /// What is carried.
    pub transport: Transport,
    /// Over which version of IP.
    pub family: Family,
}

/// Where a forward listens on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// The port.
    pub port: NonZeroU16,
    /// The protocol.
    pub protocol: Protocol,
    /// The address; the unspecified one for all of them.
    pub address: IpAddr,
}

impl End {
    /// Whether two of them cannot both be listened at.
    pub fn overlaps(&self, other: &End) -> bool {
        let all = |one: &End, other: &End| {
            let of_both = one.protocol.family == Family::Any;
            one.address.is_unspecified() && (of_both || one.address.is_ipv4() == other.address.is_ipv4())
        };
        let is_there = (self.port, self.protocol.transport) == (other.port, other.protocol.transport);
        is_there && (self.address == other.address || all(self, other) || all(other, self))
    }
}

/// A forward: what reaches `end` on the host goes to a port in rootlesskit's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Where it listens on the host.
    pub end: End,
    /// The port inside.
    pub child_port: NonZeroU16,
    /// The address inside; without one it is the loopback address, or what the port driver has in its place.
    pub child_address: Option<IpAddr>,
}

/// Why a text is no forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no port forward: {why}; write for example 0.0.0.0:31000:31000/tcp")]
pub struct ForwardError {
    text: String,
    why: String,
}

/// Longest text of a forward, in bytes: two addresses, two ports, a protocol.
const MAX_TEXT: usize = 128;

impl Forward {
    /// One on all of the host's addresses, to a port inside.
    pub const fn everywhere(port: NonZeroU16, child_port: NonZeroU16, transport: Transport) -> Forward {
        let protocol = Protocol { transport, family: Family::Any };
        let end = End { port, protocol, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Forward { end, child_port, child_address: None }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        let (name, family) = match text.as_bytes().last() {
            Some(b'4') => (&text[..text.len() - 1], Family::V4),
            Some(b'6') => (&text[..text.len() - 1], Family::V6),
            _ => (text, Family::Any),
        };
        let transport = match name {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            "sctp" => Transport::Sctp,
            _ => return Err("its protocol is none of tcp, tcp4, tcp6, udp, udp4, udp6, sctp".into()),
        };
        Ok(Protocol { transport, family })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Any => "",
            Family::V4 => "4",
            Family::V6 => "6",
        };
        write!(f, "{}{family}", self.transport)
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Forward, ForwardError> {
        let error = |why: &str| {
            let text = crate::finding::prefix(text, MAX_TEXT).to_owned();
            ForwardError { text, why: why.to_owned() }
        };
        if text.len() > MAX_TEXT {
            return Err(error("it is too long"));
        }
        let (ends, protocol) = text.split_once('/').ok_or_else(|| error("it has no protocol"))?;
        let protocol: Protocol = protocol.parse().map_err(|why: String| error(&why))?;
        let parts = parts(ends).ok_or_else(|| error("it has no two ports, or brackets that do not match"))?;
        let (address, port, child_address, child_port) = match parts[..] {
            [address, port, child_port] => (address, port, "", child_port),
            [address, port, child_address, child_port] => (address, port, child_address, child_port),
            _ => return Err(error("it is not an address, a port, perhaps an address inside, and a port inside")),
        };
        let number = |port: &str| {
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            port.parse().ok().filter(|_| is_number).ok_or_else(|| error("a port is not between 1 and 65535"))
        };
        let (port, child_port) = (number(port)?, number(child_port)?);
        Forward::new(protocol, address, port, child_address, child_port).map_err(|why| error(&why))
    }
}

impl Forward {
    /// One of these parts; addresses may be empty, for all of the host's and for the driver's choice inside.
    ///
    /// # Errors
    /// An address is none, or not one of the protocol's version of IP.
    pub fn new(
        protocol: Protocol,
        address: &str,
        port: NonZeroU16,
        child_address: &str,
        child_port: NonZeroU16,
    ) -> Result<Forward, String> {
        let read = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no IP address"));
        let unspecified = if protocol.family == Family::V6 { "::" } else { "0.0.0.0" };
        let address = read(if address.is_empty() { unspecified } else { address })?;
        if matches!((protocol.family, address), (Family::V4, IpAddr::V6(_)) | (Family::V6, IpAddr::V4(_))) {
            return Err(format!("{address} is no address of {protocol}"));
        }
        let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        let child_address = if child_address.is_empty() { None } else { Some(read(child_address)?) };
        let child_address = child_address.filter(|child_address| *child_address != loopback);
        Ok(Forward { end: End { port, protocol, address }, child_port, child_address })
    }
}

/// The parts between colons; what is in brackets holds colons of its own.
fn parts(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, behind) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        parts.push(part);
        match behind.strip_prefix(':') {
            Some(behind) => rest = behind,
            None => return behind.is_empty().then_some(parts),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port.get()), self.protocol)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", SocketAddr::new(self.end.address, self.end.port.get()))?;
        match self.child_address {
            None => write!(f, "{}", self.child_port)?,
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.child_port.get()))?,
        }
        write!(f, "/{}", self.end.protocol)
    }
}

impl TryFrom<String> for Forward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Forward, ForwardError> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> String {
        forward.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forwards_are_written_as_they_are_read() {
        for (text, written) in [
            ("0.0.0.0:6443:6443/tcp", "0.0.0.0:6443:6443/tcp"),
            (":6053:53/udp", "0.0.0.0:6053:53/udp"),
            (":80:80/tcp6", "[::]:80:80/tcp6"),
            ("127.0.0.1:8080:10.0.2.100:80/tcp4", "127.0.0.1:8080:10.0.2.100:80/tcp4"),
            ("[::1]:8080:[fd00::1]:80/tcp6", "[::1]:8080:[fd00::1]:80/tcp6"),
            ("10.0.0.1:8080:127.0.0.1:80/tcp", "10.0.0.1:8080:80/tcp"),
        ] {
            let forward: Forward = text.parse().expect(text);
            assert_eq!(forward.to_string(), written);
            assert_eq!(written.parse(), Ok(forward));
        }
    }

    #[test]
    fn what_is_no_forward_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "no protocol"),
            ("31000", "no protocol"),
            ("0.0.0.0:31000:31000", "no protocol"),
            ("0.0.0.0:31000:31000/icmp", "none of tcp"),
            ("0.0.0.0:31000/tcp", "not an address, a port"),
            ("0.0.0.0:0:31000/tcp", "between 1 and 65535"),
            ("0.0.0.0:+1:31000/tcp", "between 1 and 65535"),
            ("0.0.0.0:31000:65536/tcp", "between 1 and 65535"),
            ("node:31000:31000/tcp", "`node` is no IP address"),
            ("0.0.0.0:31000:31000/tcp6", "no address of tcp6"),
            ("[::1:31000:31000/tcp", "brackets"),
            ("::1:31000:31000/tcp", "not an address, a port"),
        ] {
            let error = text.parse::<Forward>().expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("for example"), "{error}");
        }
        assert!("1".repeat(9999).parse::<Forward>().expect_err("long").to_string().len() < 256);
    }

    #[test]
    fn ends_overlap_where_one_is_at_all_addresses_of_the_other() {
        let end = |text: &str| text.parse::<Forward>().expect(text).end;
        for (one, other, expected) in [
            ("0.0.0.0:80:1/tcp", "0.0.0.0:80:2/tcp", true),
            ("0.0.0.0:80:1/tcp", "127.0.0.1:80:2/tcp", true),
            ("0.0.0.0:80:1/tcp", "[::1]:80:2/tcp6", true),
            ("0.0.0.0:80:1/tcp4", "[::1]:80:2/tcp6", false),
            ("127.0.0.1:80:1/tcp", "127.0.0.2:80:2/tcp", false),
            ("0.0.0.0:80:1/tcp", "0.0.0.0:81:1/tcp", false),
            ("0.0.0.0:80:1/tcp", "0.0.0.0:80:1/udp", false),
        ] {
            assert_eq!(end(one).overlaps(&end(other)), expected, "{one} {other}");
            assert_eq!(end(other).overlaps(&end(one)), expected, "{other} {one}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail_in_another_way(text in "[0-9:./\\[\\]tcpud46]{0,40}") {
            if let Ok(forward) = text.parse::<Forward>() {
                prop_assert_eq!(forward.to_string().parse(), Ok(forward));
            }
        }
    }
}
