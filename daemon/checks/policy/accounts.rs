//! Who is on this node: passwd(5), group(5), subuid(5), subgid(5). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name; that of the home where passwd knows none.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its home.
    pub home: PathBuf,
    /// The groups that it is in, by its primary group or as a member.
    pub groups: Vec<String>,
    /// Their ids.
    pub gids: BTreeSet<u32>,
}

/// passwd and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    list: Vec<Account>,
    by_name: BTreeMap<String, usize>,
    uids: BTreeSet<u32>,
    homes: BTreeSet<PathBuf>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: BTreeSet<String>,
}

impl Account {
    /// Whether it is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether it is in that group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
    }
}

impl Accounts {
    /// Reads the text of both files. Lines that are no entries are passed over; of two of one name the first counts, as for
    /// getpwnam(3).
    pub fn parse(passwd: &[u8], group: &[u8]) -> Accounts {
        let groups: Vec<_> = lines(group).filter_map(Group::parse).collect();
        let mut accounts = Accounts { groups, ..Accounts::default() };
        let (mut by_gid, mut by_member) = (BTreeMap::new(), BTreeMap::new());
        for group in &accounts.groups {
            by_gid.entry(group.gid).or_insert_with(Vec::new).push(group);
            for member in &group.members {
                by_member.entry(member.as_str()).or_insert_with(Vec::new).push(group);
            }
        }
        for line in lines(passwd) {
            let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
            let [name, _, uid, gid, _, home, ..] = fields[..] else { continue };
            let name = String::from_utf8_lossy(name).into_owned();
            let (Some(uid), false) = (number(uid), name.is_empty() || accounts.by_name.contains_key(&name)) else {
                continue;
            };
            let gid = number(gid);
            let primary = gid.and_then(|gid| by_gid.get(&gid)).into_iter().flatten();
            let further = by_member.get(name.as_str()).into_iter().flatten();
            let (groups, mut gids) = names_and_ids(primary.chain(further).copied());
            gids.extend(gid);
            let home = PathBuf::from(OsStr::from_bytes(home));
            accounts.by_name.insert(name.clone(), accounts.list.len());
            accounts.uids.insert(uid);
            accounts.homes.insert(home.clone());
            accounts.list.push(Account { name, uid, home, groups, gids });
        }
        accounts
    }

    /// All of passwd.
    pub fn iter(&self) -> std::slice::Iter<'_, Account> {
        self.list.iter()
    }

    /// The account of that name.
    pub fn find(&self, name: &str) -> Option<&Account> {
        self.by_name.get(name).and_then(|at| self.list.get(*at))
    }

    /// The owner of a home that passwd does not know, as those of a domain are; `None` if passwd knows it. Of its groups
    /// only those are known that have the home's owning group's id, or name its last component as a member.
    pub fn stranger(&self, home: &Path, uid: u32, gid: u32) -> Option<Account> {
        if self.uids.contains(&uid) || self.homes.contains(home) {
            return None;
        }
        let name = home.file_name()?.to_string_lossy().into_owned();
        let groups = self.groups.iter().filter(|group| group.gid == gid || group.members.contains(&name));
        let (groups, mut gids) = names_and_ids(groups);
        gids.insert(gid);
        Some(Account { name: format!("uid {uid} ({})", home.display()), uid, home: home.to_path_buf(), groups, gids })
    }

    /// The id of that group, if there is one.
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|group| group.name == name).map(|group| group.gid)
    }

    /// The account with that user id.
    pub fn of_uid(&self, uid: u32) -> Option<&Account> {
        self.list.iter().find(|account| account.uid == uid)
    }

    /// The name of the group with that id.
    pub fn group_name(&self, gid: u32) -> Option<&str> {
        self.groups.iter().find(|group| group.gid == gid).map(|group| group.name.as_str())
    }
}

fn names_and_ids<'g>(groups: impl Iterator<Item = &'g Group>) -> (Vec<String>, BTreeSet<u32>) {
    let (names, ids): (BTreeSet<_>, _) = groups.map(|group| (group.name.clone(), group.gid)).unzip();
    (names.into_iter().collect(), ids)
}

impl Group {
    fn parse(line: &[u8]) -> Option<Group> {
        let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
        let [name, _, gid, ref members @ ..] = fields[..] else { return None };
        let members = members.first().into_iter().flat_map(|members| members.split(|byte| *byte == b','));
        let members = members.map(|member| String::from_utf8_lossy(member.trim_ascii()).into_owned());
        let name = String::from_utf8_lossy(name).into_owned();
        Some(Group { name, gid: number(gid)?, members: members.filter(|member| !member.is_empty()).collect() })
    }
}

/// Two accounts that may become the same users or groups in their user namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// The one, as the file names it.
    pub one: String,
    /// The other.
    pub other: String,
    /// The first id that both have.
    pub first: u64,
}

/// The overlapping ranges of different owners in a subuid(5) or subgid(5), one overlap for each pair. Lines that are none
/// are passed over.
pub fn overlaps(text: &[u8], accounts: &Accounts) -> BTreeSet<Overlap> {
    // An account may be named by its id.
    let name = |owner: &[u8]| {
        let owner = String::from_utf8_lossy(owner).into_owned();
        let account = owner.parse().ok().and_then(|uid| accounts.of_uid(uid));
        account.map_or(owner, |account| account.name.clone())
    };
    let mut ranges: Vec<(u64, u64, String)> = lines(text)
        .filter_map(|line| {
            let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
            let [owner, first, count] = fields[..] else { return None };
            let (first, count) = (u64::from(number(first)?), u64::from(number(count)?));
            (count > 0).then(|| (first, first + count, name(owner)))
        })
        .collect();
    ranges.sort_unstable();
    let mut found = BTreeMap::new();
    // Of those that began before, for each owner the one that ends last.
    let mut before: BTreeMap<&str, u64> = BTreeMap::new();
    for (first, end, owner) in &ranges {
        before.retain(|_, end| *end > *first);
        for other in before.keys().filter(|other| *other != owner) {
            let pair = if *other < owner.as_str() { (*other, owner.as_str()) } else { (owner.as_str(), *other) };
            found.entry(pair).or_insert(*first);
        }
        let last = before.entry(owner).or_insert(*end);
        *last = (*last).max(*end);
    }
    let overlap = |((one, other), first): ((&str, &str), u64)| Overlap { one: one.into(), other: other.into(), first };
    found.into_iter().map(overlap).take(MAX_OVERLAPS).collect()
}

/// So many are enough to see that the file is wrong.
const MAX_OVERLAPS: usize = 64;

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"broken\nroot:x:0:0::/root:/bin/sh\nalice:x:1000:500:A:/home/alice:/bin/sh\n\
        alice:x:9:9::/other:\nbob:x:1001:1001::/home/bob:\nnone:x:y:1::/:\n\xff:x:1002:1::/home/\xff:\n";
    const GROUP: &[u8] = b"podman:x:500:bob, carol\nwheel:x:10:alice\nroot:x:0:\nbroken:x\npodman_dev:x:501\n";

    #[test]
    fn accounts_are_in_their_primary_and_their_further_groups() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        assert_eq!(accounts.iter().map(|account| account.uid).collect::<Vec<_>>(), [0, 1000, 1001, 1002]);
        let groups = |name: &str| accounts.find(name).expect("there").groups.to_vec();
        assert_eq!(groups("alice"), ["podman", "wheel"]);
        assert_eq!(groups("bob"), ["podman"]);
        assert_eq!(groups("root"), ["root"]);
        let gids = |name: &str| accounts.find(name).expect("there").gids.clone();
        assert_eq!(gids("alice"), [500, 10].into());
        assert_eq!(gids("bob"), [500, 1001].into(), "also the one that has no name");
        assert_eq!(accounts.gid("podman_dev"), Some(501));
        assert_eq!(accounts.group_name(10), Some("wheel"));
    }

    #[test]
    fn whom_passwd_does_not_know_is_named_by_id_and_home() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        let stranger = |home: &str, uid, gid| accounts.stranger(Path::new(home), uid, gid);
        assert_eq!(stranger("/home/alice", 7, 7), None, "the home is known");
        assert_eq!(stranger("/home/former", 1000, 7), None, "the owner is known");
        let carol = stranger("/home/carol", 70000, 501).expect("unknown");
        assert_eq!(carol.name, "uid 70000 (/home/carol)");
        assert_eq!(carol.groups, ["podman", "podman_dev"]);
    }

    #[test]
    fn overlapping_ranges_of_different_owners_are_found_once_for_each_pair() {
        let accounts = Accounts::parse(PASSWD, GROUP);
        for (text, expected) in [
            ("alice:100000:65536\nbob:165536:65536\n", vec![]),
            ("alice:100000:65536\nbob:165535:65536\n", vec![("alice", "bob", 165_535)]),
            ("alice:100000:65536\n1000:100000:65536\n", vec![]),
            ("alice:1:10\nbob:100:10\nalice:105:1\nalice:1:200\nx\nbob:3:0\n", vec![("alice", "bob", 100)]),
            ("c:1:100\na:1:5\nb:50:1\n", vec![("a", "c", 1), ("b", "c", 50)]),
        ] {
            let found: Vec<_> = overlaps(text.as_bytes(), &accounts).into_iter().collect();
            let found: Vec<_> = found.iter().map(|it| (it.one.as_str(), it.other.as_str(), it.first)).collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
