//! Who a user of a container is on the node: subuid(5). Pure.

use std::ops::RangeInclusive;

use super::spec::map;

/// The ids that an account may use in its user namespaces: as rootless podman and rootlesskit map them, 0 is the account
/// itself, and from 1 on come its ranges one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subordinates(Vec<(u32, u32, u32)>);

impl Subordinates {
    /// Those of an account, by the text of /etc/subuid. Root's containers have the ids of the node.
    pub fn of(name: &str, uid: u32, subuid: &[u8]) -> Subordinates {
        if uid == 0 {
            return Subordinates::default();
        }
        let mut mappings = vec![(0, uid, 1)];
        let mut next = 1_u32;
        for line in subuid.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let fields: Vec<_> = line.split(':').map(str::trim).collect();
            let [owner, first, count] = fields[..] else { continue };
            let is_own = owner == name || owner.parse() == Ok(uid);
            let (Ok(first), Ok(count), true) = (first.parse::<u32>(), count.parse::<u32>(), is_own) else { continue };
            mappings.push((next, first, count));
            next = next.saturating_add(count);
        }
        Subordinates(mappings)
    }

    /// The node's ids that are the account's, its own among them; none of root, whose they all are.
    pub fn ids(&self) -> impl Iterator<Item = RangeInclusive<u32>> {
        let range = |(_, first, count): &(u32, u32, u32)| Some(*first..=first.saturating_add(count.checked_sub(1)?));
        self.0.iter().filter_map(range)
    }

    /// The node's id of a user of the account's namespace.
    pub fn host(&self, uid: u32) -> Option<u32> {
        map(&self.0, uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_range_after_range() {
        let text = b"bob:1:1\nalice:100000:1000\n1000:500000:10\nalice:x:1\n";
        let alice = Subordinates::of("alice", 1000, text);
        for (inner, outer) in
            [(0, Some(1000)), (1, Some(100_000)), (33, Some(100_032)), (1001, Some(500_000)), (1011, None)]
        {
            assert_eq!(alice.host(inner), outer, "{inner}");
        }
        let ids: Vec<_> = alice.ids().collect();
        assert_eq!(ids, [1000..=1000, 100_000..=100_999, 500_000..=500_009]);
        assert_eq!(Subordinates::of("root", 0, b"root:1:1").host(33), Some(33));
    }
}
