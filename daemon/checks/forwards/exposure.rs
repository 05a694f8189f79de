//! What podsecd sees by itself of what u7s-admin's user id offers to the world: podsecd-u7s has the user id of whoever escapes
//! a pod, and would not tell. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::declared::Declared;
use super::forward::Transport;
use super::ids::{EXPOSED, UNDECLARED};
use super::settings::Settings;
use super::tables::{Socket, Sockets};
use crate::finding::Id;

/// What is for the cluster's own, by the ports inside: etcd (clients, peers), the kubelet (with and without credentials).
const PRIVATE: [(u16, &str); 4] = [(2379, "etcd"), (2380, "etcd"), (10250, "the kubelet"), (10255, "the kubelet")];
/// So many conditions of one id at most: who listens at all ports is told once for all, too.
const MAX_TOLD: usize = 64;

/// Judges the sockets of the host that listen: those of user id `uid`. With Services followed, the range of their ports is
/// declared as a whole.
pub fn assess(sockets: &Sockets, uid: u32, declared: &Declared, settings: &Settings) -> BTreeMap<(Id, String), String> {
    let mut holding = BTreeMap::new();
    let listens = |socket: &&Socket| socket.uid == uid && socket.transport == Transport::Tcp;
    for socket in sockets.0.iter().filter(listens) {
        let place = place(socket);
        let at_it = || declared.keys().filter(|forward| Sockets(vec![*socket]).serving(&forward.end).next().is_some());
        if at_it().next().is_none() && !is_node_port(socket, settings) {
            let message = format!("user id {uid} listens at {place} on the host, where no forward is declared");
            holding.insert((UNDECLARED, place.clone()), message);
        }
        // What is not declared leads nobody knows where.
        let inside = at_it().map(|forward| forward.child_port.get()).next().unwrap_or(socket.port);
        let private = PRIVATE.iter().find(|(port, _)| *port == inside && socket.address.is_unspecified());
        if let Some((_, what)) = private {
            let message = format!("{what} can be reached at all addresses of the host, at {place}");
            holding.insert((EXPOSED, place), message);
        }
    }
    bound(&mut holding, uid);
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

/// Leaves no more than can be told.
fn bound(holding: &mut BTreeMap<(Id, String), String>, uid: u32) {
    let undeclared: Vec<_> = holding.keys().filter(|(id, _)| *id == UNDECLARED).cloned().collect();
    if undeclared.len() > MAX_TOLD {
        undeclared[MAX_TOLD..].iter().for_each(|key| drop(holding.remove(key)));
        let message = format!("user id {uid} listens at more than {MAX_TOLD} undeclared places on the host");
        holding.insert((UNDECLARED, "many".to_owned()), message);
    }
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
        Sockets(places.iter().map(socket).collect())
    }

    fn told(places: &[(&str, u32)], settings: &Settings) -> Vec<String> {
        let none = BTreeSet::new();
        let holding = assess(&listening(places), UID, &declare(settings, true, &none, &none), settings);
        holding.into_keys().map(|(id, subject)| format!("{id} {subject}")).collect()
    }

    #[test]
    fn who_listens_where_nothing_is_declared_is_told_and_who_offers_etcd_to_all() {
        let settings = Settings::default();
        for (places, expected) in [
            (&[("[::]:6443", UID)][..], &[][..]),
            (&[("0.0.0.0:6443", UID), ("0.0.0.0:22", 0)], &[]),
            (&[("0.0.0.0:4444", UID)], &["forwards/undeclared *:4444/tcp"]),
            (&[("127.0.0.1:4444", UID)], &["forwards/undeclared 127.0.0.1:4444/tcp"]),
            (&[("0.0.0.0:31000", UID)], &["forwards/undeclared *:31000/tcp"]),
            (&[("[::]:2379", UID)], &["forwards/exposed *:2379/tcp"]),
        ] {
            assert_eq!(told(places, &settings), expected, "{places:?}");
        }
        let own = Settings {
            podsec: false,
            declare: ["127.0.0.1:2379:2379/tcp", "0.0.0.0:9:10250/tcp"]
                .map(|text| text.parse().expect("a forward"))
                .into(),
            ..Settings::default()
        };
        assert_eq!(told(&[("127.0.0.1:2379", UID)], &own), [] as [&str; 0]);
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
