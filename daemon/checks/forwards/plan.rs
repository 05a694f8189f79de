//! What is to be done so that the declared forwards stand, and no other of ours. Pure.

use std::collections::BTreeSet;

use super::api::Listed;
use super::declared::Declared;
use super::forward::Forward;
use super::tables::{Socket, Sockets};

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The forwards that rootlesskit lists; `None` if it does not say.
    pub listed: Option<Vec<Listed>>,
    /// The host's sockets that listen; `None` if that cannot be seen.
    pub host: Option<Sockets>,
    /// Which of them are rootlesskit's.
    pub own: Own,
}

/// Which sockets are rootlesskit's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// Those with these inodes.
    Inodes(BTreeSet<u64>),
    /// Its descriptors cannot be read: any of this user id may be.
    User(u32),
}

impl Default for Own {
    fn default() -> Own {
        Own::Inodes(BTreeSet::new())
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Declared forwards that rootlesskit lists and that do not listen: to be removed, and added again.
    pub zombies: Vec<Listed>,
    /// Forwards to remove that may have the place of one that is to be added.
    pub remove: Vec<Listed>,
    /// Forwards to add. Whether somebody else has their place rootlesskit finds out: the kernel knows best.
    pub add: Vec<Forward>,
    /// Forwards that rootlesskit lists and that nobody declared.
    pub undeclared: BTreeSet<Forward>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.zombies.is_empty() && self.remove.is_empty() && self.add.is_empty()
    }
}

impl Seen {
    /// Whether a forward listens on the host; `None` if that cannot be seen.
    pub fn stands(&self, forward: &Forward) -> Option<bool> {
        Some(self.host.as_ref()?.serving(&forward.end).any(|socket| self.is_own(socket)))
    }

    fn is_own(&self, socket: &Socket) -> bool {
        match &self.own {
            Own::Inodes(inodes) => inodes.contains(&socket.inode),
            Own::User(uid) => socket.uid == *uid,
        }
    }

    /// Whether rootlesskit has a forward.
    pub fn lists(&self, forward: &Forward) -> bool {
        self.listed.iter().flatten().any(|listed| listed.forward == *forward)
    }

    /// Another forward of rootlesskit that has the place of one.
    pub fn rival(&self, forward: &Forward) -> Option<Forward> {
        let mut others = self.listed.iter().flatten().map(|listed| listed.forward);
        others.find(|other| other != forward && other.end.overlaps(&forward.end))
    }

    /// A stranger's socket that keeps rootlesskit from listening where a forward should.
    pub fn stranger(&self, forward: &Forward) -> Option<Socket> {
        self.host.as_ref()?.in_the_way(&forward.end).find(|socket| !self.is_own(socket)).copied()
    }
}

/// Compares what is declared with what was seen. `withdrawn` were declared, and are to go; with `remove_undeclared` so does
/// all else that nobody declared. What cannot be seen is taken for well.
pub fn plan(declared: &Declared, withdrawn: &BTreeSet<Forward>, remove_undeclared: bool, seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    let Some(listed) = &seen.listed else { return plan };
    for listed in listed.iter().filter(|listed| !declared.contains_key(&listed.forward)) {
        if remove_undeclared || withdrawn.contains(&listed.forward) {
            plan.remove.push(*listed);
        } else {
            plan.undeclared.insert(listed.forward);
        }
    }
    let of_ours = listed.iter().filter(|listed| declared.contains_key(&listed.forward));
    plan.zombies = of_ours.filter(|listed| seen.stands(&listed.forward) == Some(false)).copied().collect();
    let is_missing = |forward: &&Forward| !seen.lists(forward);
    plan.add = declared.keys().filter(is_missing).copied().collect();
    // Who was declared first is added first, whatever its address and port.
    plan.add.sort_by_key(|forward| declared.get(forward).map(|declaration| declaration.origin));
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::checks::forwards::declared::{Declaration, Origin};
    use crate::checks::forwards::forward::End;

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
        let host = Sockets::new(own_sockets.chain(others).collect());
        let own = Own::Inodes((100..100 + own.len() as u64).collect());
        Seen { listed: Some(listed), host: Some(host), own }
    }

    fn texts(forwards: impl IntoIterator<Item = Forward>) -> Vec<String> {
        forwards.into_iter().map(|forward| forward.to_string()).collect()
    }

    const A: &str = "0.0.0.0:6443:6443/tcp";
    const B: &str = "0.0.0.0:31000:31000/tcp";
    const B_ELSEWHERE: &str = "0.0.0.0:31000:80/tcp";

    /// Declared, listed, own sockets, strangers' sockets; zombies, what is added, what is undeclared.
    #[test]
    fn what_is_missing_is_added_and_what_nobody_declared_stays() {
        for (want, listed, own, strangers, zombies, add, undeclared) in [
            (&[A][..], &[A][..], &[A][..], &[][..], &[][..], &[][..], &[][..]),
            (&[A, B], &[A], &[A], &[], &[], &[B], &[]),
            // A zombie; one whose port a stranger has taken meanwhile.
            (&[A, B], &[A, B], &[A], &[], &[B], &[], &[]),
            (&[A, B], &[A, B], &[A], &[B], &[B], &[], &[]),
            // A stranger's port, by itself and as another forward: rootlesskit will say so.
            (&[A, B], &[A], &[A], &[B], &[], &[B], &[]),
            (&[A, B], &[A, B_ELSEWHERE], &[A, B], &[], &[], &[B], &[B_ELSEWHERE]),
            (&[A], &[A, B], &[A, B], &[], &[], &[], &[B]),
            (&[], &[], &[], &[B], &[], &[], &[]),
        ] {
            let plan = plan(&declared(want), &BTreeSet::new(), false, &seen(listed, own, strangers));
            let found = texts(plan.zombies.iter().map(|zombie| zombie.forward));
            assert_eq!(found, zombies, "zombies: {want:?} {listed:?} {own:?} {strangers:?}");
            assert_eq!(texts(plan.add), add, "added: {want:?} {listed:?} {own:?} {strangers:?}");
            assert_eq!(texts(plan.undeclared), undeclared, "undeclared: {want:?} {listed:?}");
            assert!(plan.remove.is_empty());
        }
    }

    #[test]
    fn a_withdrawn_forward_is_removed_and_makes_place_for_another() {
        let seen = seen(&[A, B_ELSEWHERE], &[A, B_ELSEWHERE], &[]);
        let plan = plan(&declared(&[A, B]), &[forward(B_ELSEWHERE)].into(), false, &seen);
        assert_eq!((plan.remove.len(), texts(plan.add)), (1, vec![B.to_owned()]));
    }

    #[test]
    fn what_cannot_be_seen_is_no_zombie() {
        let unlisted = Seen { listed: None, ..seen(&[], &[], &[]) };
        assert_eq!(plan(&declared(&[A]), &BTreeSet::new(), true, &unlisted), Plan::default());
        let no_tables = Seen { host: None, ..seen(&[A], &[], &[]) };
        assert_eq!(plan(&declared(&[A]), &BTreeSet::new(), true, &no_tables), Plan::default());
        let mut no_descriptors = seen(&[A], &[A], &[]);
        no_descriptors.own = Own::User(997);
        assert_eq!(plan(&declared(&[A]), &BTreeSet::new(), true, &no_descriptors), Plan::default());
        no_descriptors.own = Own::User(1);
        assert_eq!(plan(&declared(&[A]), &BTreeSet::new(), true, &no_descriptors).zombies.len(), 1);
    }

    #[test]
    fn who_has_a_place_is_told_apart() {
        let seen = seen(&[A, B_ELSEWHERE], &[A, B_ELSEWHERE], &["127.0.0.1:31001:1/tcp"]);
        assert_eq!(seen.rival(&forward(B)).map(|rival| rival.to_string()), Some(B_ELSEWHERE.to_owned()));
        assert_eq!((seen.rival(&forward(A)), seen.stranger(&forward(A))), (None, None));
        let taken = forward("0.0.0.0:31001:1/tcp");
        assert_eq!((seen.rival(&taken), seen.stranger(&taken).map(|socket| socket.port)), (None, Some(31001)));
    }

    /// A rootlesskit that does what it is told: it lists what it has, and refuses a place that is taken.
    fn perform(plan: &Plan, listed: &mut BTreeMap<i64, Forward>, dead: &mut BTreeSet<i64>, strangers: &[Socket]) {
        for removed in plan.zombies.iter().chain(&plan.remove) {
            listed.remove(&removed.id);
            dead.remove(&removed.id);
        }
        for added in plan.zombies.iter().map(|zombie| &zombie.forward).chain(&plan.add) {
            let taken = |end: &End| {
                let own = listed.iter().filter(|(id, _)| !dead.contains(id)).map(|(_, forward)| socket(forward, 1));
                Sockets::new(own.chain(strangers.iter().copied()).collect()).in_the_way(end).next().is_some()
            };
            if !taken(&added.end) {
                let id = listed.keys().last().map_or(1, |last| last + 1);
                listed.insert(id, *added);
                dead.remove(&id);
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
        /// After two rounds whatever is declared stands, but where others are; nobody else's is touched.
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
                    own: Own::Inodes(own.iter().map(|socket| socket.inode).collect()),
                    host: Some(Sockets::new(own.into_iter().chain(strangers.iter().copied()).collect())),
                }
            };
            for _ in 0..2 {
                let plan = plan(&declared, &BTreeSet::new(), false, &look(&listed, &dead));
                prop_assert!(plan.remove.is_empty());
                prop_assert!(plan.zombies.iter().all(|removed| want.contains(&removed.forward)));
                perform(&plan, &mut listed, &mut dead, &strangers);
            }
            let seen = look(&listed, &dead);
            for forward in &want {
                let stands = seen.stands(forward) == Some(true) && seen.lists(forward);
                prop_assert!(stands || seen.rival(forward).is_some() || seen.stranger(forward).is_some(), "{}", forward);
            }
            for (id, forward) in have.iter().filter(|(_, forward)| !want.contains(forward)) {
                prop_assert_eq!(listed.get(id), Some(forward));
            }
        }
    }
}
