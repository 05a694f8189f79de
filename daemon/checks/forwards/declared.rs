//! Which forwards are to stand, and who wants them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::forward::{End, Family, Forward, Protocol, Transport};
use super::services::NodePort;
use super::settings::Settings;

/// Who wants a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The administrator, by the configuration.
    Configuration,
    /// podsec, by its list for the role of the node.
    Podsec,
    /// The administrator, by `podsecctl forwards add`.
    Administrator,
    /// A Service of the cluster.
    Service,
}

/// A declared forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Who wants it.
    pub origin: Origin,
    /// It is not well if nothing listens inside. Of what podsec publishes, some has no listener on many clusters.
    pub has_listener: bool,
}

/// So many forwards an administrator may add.
pub const MAX_FORWARDS: usize = 1000;

/// The forwards that are to stand.
pub type Declared = BTreeMap<Forward, Declaration>;

/// What podsec's rootlesskit.sh publishes at start, on all addresses: host port, port inside, protocol; on which nodes;
/// and whether something listens inside wherever all is well. (10255 is the kubelet's port for reading, off by default;
/// 10256 kube-proxy's, which other networks do without; 8472 flannel's; 6053 leads to a resolver that is a Service.)
const PODSEC: [(u16, u16, Transport, On, bool); 11] = [
    (2379, 2379, Transport::Tcp, On::ControlPlane, true),
    (2380, 2380, Transport::Tcp, On::ControlPlane, true),
    (6443, 6443, Transport::Tcp, On::ControlPlane, true),
    (10250, 10250, Transport::Tcp, On::All, true),
    (10255, 10255, Transport::Tcp, On::All, false),
    (10256, 10256, Transport::Tcp, On::All, false),
    (8472, 8472, Transport::Udp, On::All, false),
    (6053, 53, Transport::Udp, On::All, false),
    (5473, 5473, Transport::Tcp, On::Calico, false),
    (4789, 4789, Transport::Udp, On::Calico, false),
    (51820, 51820, Transport::Udp, On::Calico, false),
];

/// On which nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    ControlPlane,
    All,
    Calico,
}

/// Which forwards are to stand: those of the configuration, podsec's for a node of this role, those that the administrator
/// added, and those of Services. Who comes first has the place: so nobody who may make a Service takes another's forward, and
/// what the configuration declares at one address is not offered to all by podsec's list.
pub fn declare(
    settings: &Settings,
    is_control_plane: bool,
    administrator: &BTreeSet<Forward>,
    services: &BTreeSet<Forward>,
) -> Declared {
    let mut declared = Declared::new();
    // kube-proxy takes what comes to a NodePort without a socket.
    let has_listener = |forward: &Forward| !settings.node_ports.contains(forward.child_port.get());
    let configured = settings.declare.iter().map(|forward| (*forward, Origin::Configuration, has_listener(forward)));
    let added = administrator.iter().map(|forward| (*forward, Origin::Administrator, has_listener(forward)));
    let services = services.iter().map(|forward| (*forward, Origin::Service, false));
    let of_podsec =
        podsec(settings, is_control_plane).map(|(forward, has_listener)| (forward, Origin::Podsec, has_listener));
    for (forward, origin, has_listener) in configured.chain(of_podsec).chain(added).chain(services) {
        if holder(&declared, &forward).is_none() {
            declared.insert(forward, Declaration { origin, has_listener });
        }
    }
    declared
}

/// A declared forward that has the place of another one, or is the same.
pub fn holder<'d>(declared: &'d Declared, forward: &Forward) -> Option<(&'d Forward, Declaration)> {
    let holds = |(held, declaration): (&'d Forward, &Declaration)| (held, *declaration);
    declared.iter().find(|(held, _)| held.end.overlaps(&forward.end)).map(holds)
}

/// podsec's forwards that the configuration does not want, or has something else for. podsec adds them all the same whenever
/// rootlesskit starts.
pub fn unwanted(settings: &Settings, declared: &Declared) -> BTreeSet<Forward> {
    let all = Settings { podsec: true, calico: false, ..settings.clone() };
    let is_unwanted = |forward: &Forward| match holder(declared, forward) {
        Some((held, declaration)) => held != forward && declaration.origin == Origin::Configuration,
        None => !settings.podsec,
    };
    podsec(&all, true).map(|(forward, _)| forward).filter(is_unwanted).collect()
}

/// All places that podsec may publish on a node of any role, as far as they are wanted.
pub fn places_of_podsec(settings: &Settings) -> impl Iterator<Item = Forward> {
    podsec(settings, true).map(|(forward, _)| forward)
}

fn podsec(settings: &Settings, is_control_plane: bool) -> impl Iterator<Item = (Forward, bool)> {
    PODSEC.iter().filter_map(move |(port, child_port, transport, on, has_listener)| {
        let is_wanted = match on {
            On::ControlPlane => settings.podsec && is_control_plane,
            On::All => settings.podsec,
            On::Calico => settings.calico,
        };
        let (port, child_port) = (NonZeroU16::new(*port)?, NonZeroU16::new(*child_port)?);
        is_wanted.then_some((Forward::everywhere(port, child_port, *transport), *has_listener))
    })
}

/// The forwards of Services: of their NodePorts in the range that is allowed, at the address that is. rootlesskit carries no
/// SCTP.
pub fn of_services(ports: &BTreeSet<NodePort>, settings: &Settings) -> BTreeSet<Forward> {
    let forward = |node_port: &NodePort| {
        let port = NonZeroU16::new(node_port.port)?;
        let protocol = Protocol { transport: node_port.transport, family: Family::Any };
        let end = End { port, protocol, address: settings.node_port_address };
        Some(Forward { end, child_port: port, child_address: None })
    };
    let is_carried = |node_port: &&NodePort| node_port.transport != Transport::Sctp;
    let forwards = ports.iter().filter(is_carried).filter_map(forward);
    forwards.filter(|forward| settings.allows_node_port(&forward.end)).collect()
}

impl Origin {
    /// The word for it in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Podsec => "podsec",
            Origin::Configuration => "configuration",
            Origin::Administrator => "administrator",
            Origin::Service => "service",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(declared: &Declared) -> Vec<String> {
        let mut texts: Vec<_> = declared.keys().map(ToString::to_string).collect();
        texts.sort();
        texts
    }

    /// rootlesskit.sh of podsec.
    #[test]
    fn podsecs_list_is_that_of_the_role() {
        let none = BTreeSet::new();
        let of_all = ["0.0.0.0:10250:10250/tcp", "0.0.0.0:10255:10255/tcp", "0.0.0.0:10256:10256/tcp"];
        let of_all = of_all.into_iter().chain(["0.0.0.0:6053:53/udp", "0.0.0.0:8472:8472/udp"]);
        let mut expected: Vec<_> = of_all.clone().collect();
        expected.sort_unstable();
        assert_eq!(texts(&declare(&Settings::default(), false, &none, &none)), expected);
        let mut expected: Vec<_> = of_all
            .chain(["0.0.0.0:2379:2379/tcp", "0.0.0.0:2380:2380/tcp", "0.0.0.0:6443:6443/tcp"])
            .chain(["0.0.0.0:5473:5473/tcp", "0.0.0.0:4789:4789/udp", "0.0.0.0:51820:51820/udp"])
            .collect();
        expected.sort_unstable();
        let calico = Settings { calico: true, ..Settings::default() };
        assert_eq!(texts(&declare(&calico, true, &none, &none)), expected);
    }

    #[test]
    fn node_ports_are_forwarded_within_the_range_and_at_the_address() {
        let port = |transport, port| NodePort { namespace: "n".into(), service: "s".into(), transport, port };
        let ports = [port(Transport::Tcp, 31000), port(Transport::Udp, 31000), port(Transport::Tcp, 29999)];
        let ports = ports.into_iter().chain([port(Transport::Sctp, 31001), port(Transport::Tcp, 6443)]).collect();
        let settings = Settings { node_port_address: "10.0.0.1".parse().expect("one"), ..Settings::default() };
        let forwards: Vec<_> = of_services(&ports, &settings).iter().map(ToString::to_string).collect();
        assert_eq!(forwards, ["10.0.0.1:31000:31000/tcp", "10.0.0.1:31000:31000/udp"]);
    }

    #[test]
    fn who_comes_first_has_the_place() {
        let forward = |text: &str| text.parse::<Forward>().expect(text);
        let settings = Settings { declare: [forward("10.0.0.1:2379:2379/tcp")].into(), ..Settings::default() };
        let administrator = ["0.0.0.0:2379:1/tcp", "0.0.0.0:31000:9/tcp", "0.0.0.0:31001:2/tcp"].map(forward).into();
        let services = ["0.0.0.0:31000:31000/tcp", "0.0.0.0:31002:31002/tcp"].map(forward).into();
        let declared = declare(&settings, true, &administrator, &services);
        for (text, expected) in [
            ("10.0.0.1:2379:2379/tcp", Some(Origin::Configuration)),
            ("0.0.0.0:2379:2379/tcp", None),
            ("0.0.0.0:2379:1/tcp", None),
            ("0.0.0.0:2380:2380/tcp", Some(Origin::Podsec)),
            ("0.0.0.0:31000:9/tcp", Some(Origin::Administrator)),
            ("0.0.0.0:31000:31000/tcp", None),
            ("0.0.0.0:31002:31002/tcp", Some(Origin::Service)),
        ] {
            assert_eq!(declared.get(&forward(text)).map(|declaration| declaration.origin), expected, "{text}");
        }
        assert_eq!(unwanted(&settings, &declared), [forward("0.0.0.0:2379:2379/tcp")].into());
    }
}
