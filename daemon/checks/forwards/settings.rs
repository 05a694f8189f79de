//! What an operator may set.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;

use super::forward::{End, Forward};

/// The forwards, and how they are looked after.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// podsec's own forwards for the role of this node are declared.
    pub podsec: bool,
    /// And those that calico needs.
    pub calico: bool,
    /// The administrator's.
    pub declare: BTreeSet<Forward>,
    /// rootlesskit's state directory; empty: `usernetes/rootlesskit` in the runtime directory of u7s-admin. Absolute.
    pub state_directory: PathBuf,
    /// Declared forwards to which a connection is made at each probe, to see that they answer.
    pub connect: BTreeSet<Forward>,
    /// Forwards of rootlesskit that nobody declared are removed.
    pub remove_undeclared: bool,
    /// The kubeconfig with which Services are found; empty: they are not. Absolute.
    pub kubeconfig: PathBuf,
    /// Which NodePorts are forwarded.
    pub node_ports: Ports,
    /// At which address.
    pub node_port_address: IpAddr,
}

/// A range of ports: `30000-32767`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ports(RangeInclusive<u16>);

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            podsec: true,
            calico: false,
            declare: BTreeSet::new(),
            state_directory: PathBuf::new(),
            connect: BTreeSet::new(),
            remove_undeclared: false,
            kubeconfig: PathBuf::new(),
            node_ports: Ports(30000..=32767),
            node_port_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

impl Ports {
    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl TryFrom<String> for Ports {
    type Error = String;

    fn try_from(text: String) -> Result<Ports, String> {
        let number = |port: &str| port.trim().parse().ok().filter(|port| *port != 0);
        let ends = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        match ends {
            Some((first, last)) if first <= last => Ok(Ports(first..=last)),
            _ => Err(format!("`{text}` is no range of ports; write for example `30000-32767`")),
        }
    }
}

impl Settings {
    /// Whether Services of the cluster are forwarded.
    pub fn follows_services(&self) -> bool {
        !self.kubeconfig.as_os_str().is_empty()
    }

    /// Whether a Service may have this end.
    pub fn allows_node_port(&self, end: &End) -> bool {
        self.node_ports.contains(end.port.get()) && self.node_port_address == end.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_read_or_refused_with_an_example() {
        let ports = Ports::try_from("30000-32767".to_owned()).expect("valid");
        assert!(ports.contains(30000) && ports.contains(32767) && !ports.contains(32768));
        for text in ["", "30000", "0-1", "2-1", "1-65536", "a-b", "1-2-3"] {
            assert!(Ports::try_from(text.to_owned()).is_err_and(|error| error.contains("for example")), "{text}");
        }
    }
}
