//! The kernel's tables of sockets, `/proc/PID/net/{tcp,tcp6,udp,udp6}` (proc_pid_net(5)): who listens where in that process's
//! network namespace. Everybody may read them, and nobody is asked: reading makes no connection.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::forward::{End, Family, Transport};

/// A socket that waits for whoever comes: TCP that listens, UDP that is bound and not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its address; the unspecified one for all of them.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whose it is: a user id as the reader's user namespace sees it.
    pub uid: u32,
    /// Its inode, by which file descriptors name it; 0 for the kernel's own (VXLAN).
    pub inode: u64,
}

/// The sockets of a network namespace that wait for whoever comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets(Vec<Socket>);

/// Their states, `TCP_LISTEN` and `TCP_CLOSE` of the kernel's net/tcp_states.h; an unconnected UDP socket has the latter.
const LISTENS: u8 = 0x0a;
const UNCONNECTED: u8 = 0x07;
/// A table with more sockets is not read: whoever opens so many must not hide any.
const MAX_SOCKETS: usize = 64 << 10;

impl Sockets {
    /// These.
    pub fn new(mut sockets: Vec<Socket>) -> Sockets {
        sockets.sort_unstable_by_key(|socket| socket.port);
        Sockets(sockets)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.0.iter()
    }

    /// Reads the tables below such a directory as `/proc/self/net`. One that is not there is empty: a kernel without IPv6.
    ///
    /// # Errors
    /// Those of open(2) and read(2); the process is gone; a table has more than 65,536 sockets.
    pub fn read(directory: &Path) -> io::Result<Sockets> {
        let tcp = [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp)];
        let udp = [("udp", Transport::Udp), ("udp6", Transport::Udp)];
        Sockets::read_tables(directory, tcp.into_iter().chain(udp))
    }

    /// The same of TCP alone: whoever opens too many sockets of UDP hides nothing in it.
    ///
    /// # Errors
    /// As those of [`Sockets::read`].
    pub fn read_tcp(directory: &Path) -> io::Result<Sockets> {
        Sockets::read_tables(directory, [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp)])
    }

    fn read_tables(
        directory: &Path,
        tables: impl IntoIterator<Item = (&'static str, Transport)>,
    ) -> io::Result<Sockets> {
        let mut sockets = Vec::new();
        for (name, transport) in tables {
            match File::open(directory.join(name)) {
                Ok(file) => sockets.extend(parse_table(BufReader::new(file), transport)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Sockets::new(sockets))
    }

    fn at(&self, end: &End) -> impl Iterator<Item = &Socket> {
        let (port, transport) = (end.port.get(), end.protocol.transport);
        let first = self.0.partition_point(|socket| socket.port < port);
        let of_port = self.0[first..].iter().take_while(move |socket| socket.port == port);
        of_port.filter(move |socket| socket.transport == transport)
    }

    /// Those that take what reaches this end: they have its address, or all of them.
    pub fn serving(&self, end: &End) -> impl Iterator<Item = &Socket> {
        self.at(end).filter(move |socket| socket.serves(end))
    }

    /// Those that may keep others from listening at this end.
    pub fn in_the_way(&self, end: &End) -> impl Iterator<Item = &Socket> {
        // Go listens on all addresses of both versions where no version is named.
        let overlaps = |socket: &Socket| {
            let same_version = socket.address.is_ipv4() == end.address.is_ipv4();
            let of_both = end.protocol.family == Family::Any;
            socket.serves(end) || end.address.is_unspecified() && (same_version || of_both)
        };
        self.at(end).filter(move |socket| overlaps(socket))
    }
}

impl Socket {
    /// Whether it takes what reaches this end.
    pub fn serves(&self, end: &End) -> bool {
        // A socket at `::` takes IPv4, too, unless it was told not to, which the tables do not show.
        let all = self.address.is_unspecified() && (self.address.is_ipv6() || end.address.is_ipv4());
        let by_version = match end.protocol.family {
            Family::V6 => self.address.is_ipv6(),
            Family::V4 | Family::Any => true,
        };
        let is_there = self.transport == end.protocol.transport && self.port == end.port.get();
        is_there && by_version && (all || self.address == end.address)
    }
}

/// Reads a table, with its heading. What listens comes first in those of TCP, so that a node with a hundred thousand
/// connections costs no more than an idle one.
///
/// # Errors
/// Those of read(2); a line is no text; there are more than 65,536 sockets.
pub fn parse_table(table: impl BufRead, transport: Transport) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for (at, line) in table.lines().skip(1).enumerate() {
        let found = parse(&line?, transport);
        match found {
            Some((socket, LISTENS)) if transport == Transport::Tcp => sockets.push(socket),
            Some((socket, UNCONNECTED)) if transport == Transport::Udp => sockets.push(socket),
            Some(_) if transport == Transport::Tcp => break,
            _ => {}
        }
        if at >= MAX_SOCKETS {
            return Err(io::Error::other(format!("more than {MAX_SOCKETS} sockets of {transport}")));
        }
    }
    Ok(sockets)
}

/// A line of a table, and the state in it: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`.
fn parse(line: &str, transport: Transport) -> Option<(Socket, u8)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some((Socket { transport, address: parse_address(address)?, port, uid, inode }, state))
}

/// An address: words of 32 bits, each in the machine's order of bytes. One of IPv4 in IPv6 is one of IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(8 * at..8 * at + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words: Vec<_> = (0..4).map(word).collect::<Option<_>>()?;
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::checks::forwards::forward::Forward;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(local: &str, state: &str, uid: u32, inode: u64) -> String {
        format!(
            "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 x 100\n"
        )
    }

    fn sockets(table: &str, transport: Transport) -> Sockets {
        Sockets::new(parse_table(format!("{HEAD}{table}").as_bytes(), transport).expect("read"))
    }

    fn end(text: &str) -> End {
        text.parse::<Forward>().expect(text).end
    }

    #[test]
    fn what_listens_is_read_with_address_owner_and_inode() {
        let table = line("0100007F:192B", "0A", 997, 4711) + &line("00000000:0050", "0A", 0, 12);
        let read = sockets(&(table + &line("0100007F:192B", "01", 0, 13)), Transport::Tcp).0;
        let told: Vec<_> = read.iter().map(|it| (it.address.to_string(), it.port, it.uid, it.inode)).collect();
        assert_eq!(told, [("0.0.0.0".to_owned(), 80, 0, 12), ("127.0.0.1".to_owned(), 6443, 997, 4711)]);
        let v6 =
            line("000080FE00000000000000000100A8C0:2118", "07", 0, 0) + &line(&("0".repeat(32) + ":0035"), "01", 1, 1);
        let read = sockets(&v6, Transport::Udp).0;
        assert_eq!((read.len(), read[0].address.to_string(), read[0].port), (1, "fe80::c0a8:1".to_owned(), 8472));
    }

    #[test]
    fn lines_that_are_none_of_the_kernels_are_passed_over() {
        for table in
            ["", "x\n", "0: 0100007F 0 0A\n", "0: é100007:192B 0:0 0A 0 0 0 1 0 1\n", "0: 1:1 0:0 0A 0 0 0 1 0 1\n"]
        {
            assert!(sockets(table, Transport::Tcp).0.is_empty(), "{table}");
        }
    }

    /// What a socket serves, and whether it keeps a forward from listening there.
    #[test]
    fn sockets_serve_their_address_or_all_of_them() {
        let all = "0".repeat(32);
        let mapped = "0000000000000000FFFF00000100007F";
        for (socket, forward, serves, in_the_way) in [
            ("00000000:7918", "0.0.0.0:31000:1/tcp", true, true),
            (&format!("{all}:7918"), "0.0.0.0:31000:1/tcp", true, true),
            (&format!("{all}:7918"), "0.0.0.0:31000:1/tcp4", true, true),
            ("0100007F:7918", "0.0.0.0:31000:1/tcp", false, true),
            ("0100007F:7918", "127.0.0.1:31000:1/tcp", true, true),
            (&format!("{mapped}:7918"), "127.0.0.1:31000:1/tcp", true, true),
            ("0200007F:7918", "127.0.0.1:31000:1/tcp", false, false),
            ("00000000:7918", "127.0.0.1:31000:1/tcp", true, true),
            ("00000000:7918", "[::1]:31000:1/tcp6", false, false),
            ("00000000:7918", "[::]:31000:1/tcp6", false, false),
            ("00000000:7919", "0.0.0.0:31000:1/tcp", false, false),
            ("00000000:7918", "0.0.0.0:31000:1/udp", false, false),
        ] {
            let sockets = sockets(&line(socket, "0A", 0, 1), Transport::Tcp);
            let end = end(forward);
            assert_eq!(sockets.serving(&end).count() == 1, serves, "{socket} serves {forward}");
            assert_eq!(sockets.in_the_way(&end).count() == 1, in_the_way, "{socket} is in the way of {forward}");
        }
    }

    #[test]
    fn our_own_listening_socket_is_in_the_kernels_table() {
        let (tcp, udp) = (std::net::TcpListener::bind("127.0.0.1:0"), std::net::UdpSocket::bind("[::]:0"));
        let (tcp, udp) = (tcp.expect("bound"), udp.expect("bound"));
        let sockets = Sockets::read(Path::new("/proc/self/net")).expect("read");
        for (address, protocol) in [(tcp.local_addr(), "tcp"), (udp.local_addr(), "udp")] {
            let end = end(&format!("{}:1/{protocol}", address.expect("has one")));
            let found = sockets.serving(&end).next().expect("listed");
            assert_eq!(found.uid, nix::unistd::geteuid().as_raw());
        }
    }
}
