//! What is to be done so that the declared forwards stand, and no other of ours. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::api::Listed;
use super::declared::Declared;
use super::forward::{End, Forward};
use super::tables::{Socket, Sockets};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The forwards that rootlesskit lists; `None` if it does not say.
    pub listed: Option<Vec<Listed>>,
    /// The host's sockets that listen.
    pub host: Sockets,
    /// The inodes of rootlesskit's own sockets.
    pub own: BTreeSet<u64>,
}

/// Who has the place of a declared forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Another forward of rootlesskit.
    Forward(Forward),
    /// A socket of somebody else.
    Socket(Socket),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Forwards to remove by their numbers, before anything is added.
    pub remove: Vec<Listed>,
    /// Forwards to add.
    pub add: Vec<Forward>,
    /// Declared forwards that rootlesskit lists and that do not listen.
    pub zombies: BTreeSet<Forward>,
    /// Declared forwards whose place somebody else has.
    pub held: BTreeMap<Forward, Holder>,
    /// Forwards that rootlesskit lists and that nobody declared.
    pub undeclared: BTreeSet<Forward>,
}

impl Seen {
    /// Whether a forward listens on the host.
    pub fn stands(&self, forward: &Forward) -> bool {
        self.host.serving(&forward.end).any(|socket| self.own.contains(&socket.inode))
    }

    /// Who keeps rootlesskit from listening at an end.
    fn holder(&self, end: &End, listed: &[Listed]) -> Option<Holder> {
        let socket = self.host.in_the_way(end).next()?;
        let is_there = |listed: &&Listed| {
            listed.forward.end.port == end.port && listed.forward.end.protocol.transport == end.protocol.transport
        };
        let other = || listed.iter().find(is_there).filter(|_| self.own.contains(&socket.inode));
        Some(other().map_or(Holder::Socket(*socket), |listed| Holder::Forward(listed.forward)))
    }
}

/// Compares what is declared with what was seen. `withdrawn` were declared, and are to go; with `remove_undeclared` so does
/// all else that nobody declared.
pub fn plan(declared: &Declared, withdrawn: &BTreeSet<Forward>, remove_undeclared: bool, seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    let Some(listed) = &seen.listed else { return plan };
    let is_declared = |listed: &&Listed| declared.contains_key(&listed.forward);
    let (ours, others): (Vec<&Listed>, Vec<_>) = listed.iter().partition(is_declared);
    for other in others {
        if remove_undeclared || withdrawn.contains(&other.forward) {
            plan.remove.push(*other);
        } else {
            plan.undeclared.insert(other.forward);
        }
    }
    let mut zombies = Vec::new();
    for forward in declared.keys() {
        let of_it = ours.iter().find(|listed| listed.forward == *forward);
        match of_it {
            Some(_) if seen.stands(forward) => continue,
            Some(listed) => zombies.push(**listed),
            None => {}
        }
        let is_leaving = |holder: &Holder| match holder {
            Holder::Forward(forward) => plan.remove.iter().any(|leaving| leaving.forward == *forward),
            // Somebody adds it at this moment: rootlesskit will say so.
            Holder::Socket(socket) => seen.own.contains(&socket.inode),
        };
        match seen.holder(&forward.end, listed).filter(|holder| !is_leaving(holder)) {
            Some(holder) => drop(plan.held.insert(*forward, holder)),
            None => plan.add.push(*forward),
        }
    }
    plan.zombies = zombies.iter().map(|zombie| zombie.forward).collect();
    plan.remove.extend(zombies);
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::checks::forwards::declared::{Declaration, Origin};

    fn forward(text: &str) -> Forward {
        text.parse().expect(text)
    }

    fn declared(texts: &[&str]) -> Declared {
        let declaration = Declaration { origin: Origin::Podsec, has_listener: true };
        texts.iter().map(|text| (forward(text), declaration)).collect()
    }

    fn socket(forward: &Forward, inode: u64) -> Socket {
        let End { port, protocol, address } = forward.end;
        Socket { transport: protocol.transport, address, port: port.get(), uid: 997, inode }
    }

    /// What is seen where these forwards are listed, and these listen as rootlesskit's own, and these as strangers'.
    fn seen(listed: &[&str], own: &[&str], strangers: &[&str]) -> Seen {
        let numbered = listed.iter().zip(1..);
        let listed = numbered.map(|(text, id)| Listed { id, forward: forward(text) }).collect();
        let own_sockets = own.iter().zip(100..).map(|(text, inode)| socket(&forward(text), inode));
        let others = strangers.iter().zip(900..).map(|(text, inode)| socket(&forward(text), inode));
        let host = Sockets(own_sockets.chain(others).collect());
        Seen { listed: Some(listed), host, own: (100..100 + own.len() as u64).collect() }
    }

    const A: &str = "0.0.0.0:6443:6443/tcp";
    const B: &str = "0.0.0.0:31000:31000/tcp";
    const B_ELSEWHERE: &str = "0.0.0.0:31000:80/tcp";

    /// Declared, listed, own sockets, strangers' sockets; what is removed, added, held, undeclared.
    #[test]
    fn what_is_missing_is_added_and_what_nobody_declared_stays() {
        for (want, listed, own, strangers, remove, add, held, undeclared) in [
            (&[A][..], &[A][..], &[A][..], &[][..], &[][..], &[][..], &[][..], &[][..]),
            (&[A, B], &[A], &[A], &[], &[], &[B], &[], &[]),
            // A zombie; one whose port a stranger has taken meanwhile.
            (&[A, B], &[A, B], &[A], &[], &[B], &[B], &[], &[]),
            (&[A, B], &[A, B], &[A], &[B], &[B], &[], &[B], &[]),
            // A stranger's port, by itself and as another forward.
            (&[A, B], &[A], &[A], &[B], &[], &[], &[B], &[]),
            (&[A, B], &[A, B_ELSEWHERE], &[A, B], &[], &[], &[], &[B], &[B_ELSEWHERE]),
            (&[A], &[A, B], &[A, B], &[], &[], &[], &[], &[B]),
            (&[], &[], &[], &[B], &[], &[], &[], &[]),
        ] {
            let plan = plan(&declared(want), &BTreeSet::new(), false, &seen(listed, own, strangers));
            let texts = |forwards: Vec<Forward>| forwards.iter().map(ToString::to_string).collect::<Vec<_>>();
            let removed = plan.remove.iter().map(|listed| listed.forward).collect();
            assert_eq!(texts(removed), remove, "removed: {want:?} {listed:?} {own:?} {strangers:?}");
            assert_eq!(texts(plan.add), add, "added: {want:?} {listed:?} {own:?} {strangers:?}");
            assert_eq!(texts(plan.held.into_keys().collect()), held, "held: {want:?} {listed:?} {own:?}");
            assert_eq!(texts(plan.undeclared.into_iter().collect()), undeclared, "undeclared: {want:?} {listed:?}");
        }
    }

    #[test]
    fn a_withdrawn_forward_is_removed_and_makes_place_for_another() {
        let seen = seen(&[A, B_ELSEWHERE], &[A, B_ELSEWHERE], &[]);
        let plan = plan(&declared(&[A, B]), &[forward(B_ELSEWHERE)].into(), false, &seen);
        assert_eq!((plan.remove.len(), plan.add), (1, vec![forward(B)]));
    }

    #[test]
    fn without_a_list_nothing_is_done() {
        let unknown = Seen { listed: None, ..seen(&[], &[], &[]) };
        assert_eq!(plan(&declared(&[A]), &BTreeSet::new(), true, &unknown), Plan::default());
    }

    /// A rootlesskit that does what it is told: it lists what it has, and refuses a place that is taken.
    fn perform(plan: &Plan, listed: &mut BTreeMap<i64, Forward>, dead: &mut BTreeSet<i64>, strangers: &[Socket]) {
        for removed in &plan.remove {
            listed.remove(&removed.id);
            dead.remove(&removed.id);
        }
        for added in &plan.add {
            let taken = |end: &End| {
                let own = listed.iter().filter(|(id, _)| !dead.contains(id)).map(|(_, forward)| socket(forward, 1));
                Sockets(own.chain(strangers.iter().copied()).collect()).in_the_way(end).next().is_some()
            };
            if !taken(&added.end) {
                let id = listed.keys().last().map_or(1, |last| last + 1);
                listed.insert(id, *added);
            }
        }
    }

    fn any_forward() -> impl Strategy<Value = Forward> {
        let address = prop::sample::select(&["0.0.0.0", "127.0.0.1", "10.0.0.1"]);
        let protocol = prop::sample::select(&["tcp", "udp"]);
        (address, 1..6_u16, 1..3_u16, protocol)
            .prop_map(|(address, port, inside, protocol)| forward(&format!("{address}:{port}:{inside}/{protocol}")))
    }

    proptest! {
        /// After two rounds whatever is declared stands, but what others hold; nobody else's is touched.
        #[test]
        fn it_settles_and_touches_nothing_of_others(
            want in prop::collection::btree_set(any_forward(), 0..6),
            have in prop::collection::btree_map(1..20_i64, any_forward(), 0..6),
            dead in prop::collection::btree_set(1..20_i64, 0..6),
            strangers in prop::collection::vec(any_forward(), 0..3),
        ) {
            let declaration = Declaration { origin: Origin::Podsec, has_listener: true };
            let declared: Declared = want.iter().map(|forward| (*forward, declaration)).collect();
            let strangers: Vec<_> = strangers.iter().zip(900..).map(|(it, inode)| socket(it, inode)).collect();
            let (mut listed, mut dead) = (have.clone(), dead);
            let look = |listed: &BTreeMap<i64, Forward>, dead: &BTreeSet<i64>| {
                let alive = listed.iter().filter(|(id, _)| !dead.contains(id));
                let own: Vec<_> = alive.map(|(id, forward)| socket(forward, *id as u64)).collect();
                Seen {
                    listed: Some(listed.iter().map(|(id, forward)| Listed { id: *id, forward: *forward }).collect()),
                    own: own.iter().map(|socket| socket.inode).collect(),
                    host: Sockets(own.into_iter().chain(strangers.iter().copied()).collect()),
                }
            };
            for _ in 0..2 {
                let plan = plan(&declared, &BTreeSet::new(), false, &look(&listed, &dead));
                prop_assert!(plan.remove.iter().all(|removed| want.contains(&removed.forward)));
                perform(&plan, &mut listed, &mut dead, &strangers);
            }
            let seen = look(&listed, &dead);
            let last = plan(&declared, &BTreeSet::new(), false, &seen);
            for forward in &want {
                prop_assert!(seen.stands(forward) || last.held.contains_key(forward) || last.add.contains(forward));
            }
            for (id, forward) in have.iter().filter(|(_, forward)| !want.contains(forward)) {
                prop_assert_eq!(listed.get(id), Some(forward));
            }
        }
    }
}
