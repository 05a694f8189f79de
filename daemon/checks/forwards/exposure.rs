//! What podsecd sees by itself of what u7s-admin's user id offers to the world: podsecd-u7s has the user id of whoever escapes
//! a pod, and would not tell. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::declared::{Declared, places_of_podsec};
use super::forward::{Forward, Transport};
use super::ids::{EXPOSED, UNDECLARED};
use super::settings::Settings;
use super::tables::{Socket, Sockets};
use crate::finding::Id;

/// What is for the cluster's own, by the ports inside: etcd (clients, peers), the kubelet (with and without credentials).
const PRIVATE: [(u16, &str); 4] = [(2379, "etcd"), (2380, "etcd"), (10250, "the kubelet"), (10255, "the kubelet")];
/// So many conditions of one id at most: who listens at all ports is told once for all, too.
const MAX_TOLD: usize = 64;

/// The user ids of u7s-admin: its own, and those that are subordinate to it (subuid(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users(pub Vec<RangeInclusive<u32>>);

impl Users {
    fn contains(&self, uid: u32) -> bool {
        self.0.iter().any(|range| range.contains(&uid))
    }
}

/// Judges the sockets of the host that listen: those of u7s-admin. podsec's places are declared on every node, because
/// podsec publishes them before it is known what the node will be; with Services followed, so is the range of their ports.
pub fn assess(
    sockets: &Sockets,
    users: &Users,
    declared: &Declared,
    settings: &Settings,
) -> BTreeMap<(Id, String), String> {
    let mut holding = BTreeMap::new();
    let places: Vec<_> = declared.keys().copied().chain(places_of_podsec(settings)).collect();
    let mut undeclared = 0;
    let listens = |socket: &&Socket| users.contains(socket.uid) && socket.transport == Transport::Tcp;
    for socket in sockets.iter().filter(listens) {
        let is_at = |forward: &&Forward| {
            let (address, declared) = (socket.address, forward.end.address);
            socket.serves(&forward.end) && address.is_unspecified() == declared.is_unspecified()
        };
        let declared = places.iter().find(is_at);
        if declared.is_none() && !is_node_port(socket, settings) {
            undeclared += 1;
            if undeclared <= MAX_TOLD {
                let place = place(socket);
                let message =
                    format!("user id {} listens at {place} on the host, where no forward is declared", socket.uid);
                holding.insert((UNDECLARED, place), message);
            }
        }
        // What is not declared leads nobody knows where.
        let inside = declared.map_or(socket.port, |forward| forward.child_port.get());
        let private = PRIVATE.iter().find(|(port, _)| *port == inside && socket.address.is_unspecified());
        if let Some((_, what)) = private {
            let place = place(socket);
            let message = format!("{what} can be reached at all addresses of the host, at {place}");
            holding.insert((EXPOSED, place), message);
        }
    }
    if undeclared > MAX_TOLD {
        let message = format!("u7s-admin's user ids listen at more than {MAX_TOLD} undeclared places on the host");
        holding.insert((UNDECLARED, "many".to_owned()), message);
    }
    holding
}

/// Where a socket listens; `*` for all addresses.
fn place(socket: &Socket) -> String {
    match socket.address {
        address if address.is_unspecified() => format!("*:{}/tcp", socket.port),
        address => format!("{}/tcp", SocketAddr::new(address, socket.port)),
    }
}

fn is_node_port(socket: &Socket, settings: &Settings) -> bool {
    let address = settings.node_port_address;
    settings.follows_services()
        && settings.node_ports.contains(socket.port)
        && (socket.address == address || address.is_unspecified() && socket.address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::checks::forwards::declared::declare;

    const UID: u32 = 997;

    fn listening(places: &[(&str, u32)]) -> Sockets {
        let socket = |(place, uid): &(&str, u32)| {
            let place: std::net::SocketAddr = place.parse().expect("an address");
            let (address, port) = (place.ip(), place.port());
            Socket { transport: Transport::Tcp, address, port, uid: *uid, inode: 1 }
        };
        Sockets::new(places.iter().map(socket).collect())
    }

    fn told(places: &[(&str, u32)], settings: &Settings) -> Vec<String> {
        let none = BTreeSet::new();
        let users = Users(vec![UID..=UID, 200_000..=265_535]);
        let holding = assess(&listening(places), &users, &declare(settings, false, &none, &none), settings);
        holding.into_keys().map(|(id, subject)| format!("{id} {subject}")).collect()
    }

    #[test]
    fn who_listens_where_nothing_is_declared_is_told_and_who_offers_etcd_to_all() {
        let settings = Settings::default();
        for (places, expected) in [
            (&[("[::]:6443", UID)][..], &[][..]),
            (&[("0.0.0.0:6443", UID), ("0.0.0.0:22", 0)], &[]),
            (&[("0.0.0.0:4444", UID)], &["forwards/undeclared *:4444/tcp"]),
            (&[("0.0.0.0:4444", 200_001)], &["forwards/undeclared *:4444/tcp"]),
            (&[("0.0.0.0:4444", 300_000)], &[]),
            (&[("127.0.0.1:4444", UID)], &["forwards/undeclared 127.0.0.1:4444/tcp"]),
            (&[("0.0.0.0:31000", UID)], &["forwards/undeclared *:31000/tcp"]),
            (&[("[::]:2379", UID)], &["forwards/exposed *:2379/tcp"]),
        ] {
            assert_eq!(told(places, &settings), expected, "{places:?}");
        }
        assert_eq!(told(&[("0.0.0.0:5473", UID)], &settings).len(), 1, "calico's, which is not wanted");
        let own = Settings {
            podsec: false,
            declare: ["127.0.0.1:2379:2379/tcp", "0.0.0.0:9:10250/tcp"]
                .map(|text| text.parse().expect("a forward"))
                .into(),
            ..Settings::default()
        };
        assert_eq!(told(&[("127.0.0.1:2379", UID)], &own), [] as [&str; 0]);
        let all = ["forwards/exposed *:2379/tcp", "forwards/undeclared *:2379/tcp"];
        assert_eq!(told(&[("0.0.0.0:2379", UID)], &own), all);
        assert_eq!(told(&[("0.0.0.0:9", UID)], &own), ["forwards/exposed *:9/tcp"]);
    }

    #[test]
    fn the_range_of_node_ports_is_declared_where_services_are_followed() {
        let settings = Settings { kubeconfig: "/etc/podsecd/kubeconfig".into(), ..Settings::default() };
        assert_eq!(told(&[("[::]:31000", UID)], &settings), [] as [&str; 0]);
        assert_eq!(told(&[("10.0.0.1:31000", UID)], &settings), ["forwards/undeclared 10.0.0.1:31000/tcp"]);
    }

    #[test]
    fn who_listens_everywhere_makes_no_flood() {
        let places: Vec<_> = (1000..2000).map(|port| format!("0.0.0.0:{port}")).collect();
        let places: Vec<_> = places.iter().map(|place| (place.as_str(), UID)).collect();
        let told = told(&places, &Settings::default());
        assert_eq!(told.len(), MAX_TOLD + 1);
        assert!(told.contains(&"forwards/undeclared many".to_owned()));
    }
}
