//! Who may change a file: its owner, its mode, its access control list (acl(5)), its immutable flag (chattr(1)).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, getxattr, statx};
use rustix::io::Errno;

use crate::watch::open::proc_path;

/// Who may write to what, as far as that can be told without being them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The owner, who may change the mode and so anything.
    pub owner: u32,
    /// The owning group.
    pub group: u32,
    mode: u32,
    acl: Vec<Entry>,
    /// Nobody may change it, root neither, before the flag is taken away (which only root may).
    pub immutable: bool,
}

/// Somebody who may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writer {
    /// This user.
    User(u32),
    /// Whoever is in this group.
    Group(u32),
    /// Everybody.
    Everybody,
}

/// An entry of an access control list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

// Tags of linux/posix_acl.h.
const ACL_USER: u16 = 0x02;
const ACL_GROUP_OBJ: u16 = 0x04;
const ACL_GROUP: u16 = 0x08;
const ACL_MASK: u16 = 0x10;
const ACL_WRITE: u16 = 0x2;
/// Longest list that is read, in bytes: of 128 entries. Whoever owns a file may make longer ones.
const MAX_ACL: usize = 4 + 128 * 8;

impl Rights {
    /// The rights to what a descriptor is of.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn of(descriptor: impl AsFd) -> io::Result<Rights> {
        let descriptor = descriptor.as_fd();
        let wanted = StatxFlags::MODE | StatxFlags::UID | StatxFlags::GID;
        let stat = statx(descriptor, c"", AtFlags::EMPTY_PATH, wanted)?;
        let mut list = [0; MAX_ACL];
        let (acl, further) = match getxattr(proc_path(descriptor).as_str(), c"system.posix_acl_access", &mut list[..]) {
            Ok(length) => (entries(&list[..length]), 0),
            // So many may write that it is as good as everybody.
            Err(Errno::RANGE) => (Vec::new(), 0o022),
            // File systems without lists say so by an error.
            Err(_) => (Vec::new(), 0),
        };
        Ok(Rights {
            owner: stat.stx_uid,
            group: stat.stx_gid,
            mode: u32::from(stat.stx_mode) | further,
            acl,
            immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        })
    }

    /// Whether this user, in these groups, may change it.
    pub fn let_change(&self, uid: u32, gids: &BTreeSet<u32>) -> bool {
        if self.immutable {
            return false;
        }
        if uid == 0 || uid == self.owner {
            return true;
        }
        if let Some(user) = self.acl.iter().find(|entry| entry.tag == ACL_USER && entry.id == uid) {
            return self.masked(user);
        }
        let mut groups = self.groups().filter(|(gid, _)| gids.contains(gid)).peekable();
        if groups.peek().is_some() {
            return groups.any(|(_, may)| may);
        }
        self.mode & 0o002 != 0
    }

    /// All who may change it, but for root.
    pub fn writers(&self) -> Vec<Writer> {
        if self.immutable {
            return Vec::new();
        }
        let owner = (self.owner != 0).then_some(Writer::User(self.owner));
        let users = self.acl.iter().filter(|entry| entry.tag == ACL_USER && self.masked(entry));
        let users = users.map(|entry| Writer::User(entry.id));
        let groups = self.groups().filter(|(_, may)| *may).map(|(gid, _)| Writer::Group(gid));
        let everybody = (self.mode & 0o002 != 0).then_some(Writer::Everybody);
        owner.into_iter().chain(users).chain(groups).chain(everybody).collect()
    }

    /// All who may put something else in the place of what is in this directory, but for root. Where it is sticky
    /// (inode(7)), that is its owner.
    pub fn replacers(&self) -> Vec<Writer> {
        let mut writers = self.writers();
        if self.mode & 0o1000 != 0 {
            writers.retain(|writer| *writer == Writer::User(self.owner));
        }
        writers
    }

    /// Groups that are named, and whether they may write.
    fn groups(&self) -> impl Iterator<Item = (u32, bool)> {
        let own = self.acl.iter().find(|entry| entry.tag == ACL_GROUP_OBJ);
        // With a list the group bits of the mode are its mask.
        let own = own.map_or(self.mode & 0o020 != 0, |entry| self.masked(entry));
        let further = self.acl.iter().filter(|entry| entry.tag == ACL_GROUP);
        std::iter::once((self.group, own)).chain(further.map(|entry| (entry.id, self.masked(entry))))
    }

    fn masked(&self, entry: &Entry) -> bool {
        let mask = self.acl.iter().find(|entry| entry.tag == ACL_MASK).map_or(u16::MAX, |mask| mask.permissions);
        entry.permissions & mask & ACL_WRITE != 0
    }
}

/// The entries of an extended attribute as linux/posix_acl_xattr.h lays it out; none of another version.
fn entries(list: &[u8]) -> Vec<Entry> {
    let Some((header, entries)) = list.split_first_chunk::<4>() else { return Vec::new() };
    if u32::from_le_bytes(*header) != 2 {
        return Vec::new();
    }
    let short = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let entry = |bytes: &[u8]| Entry {
        tag: short(bytes, 0),
        permissions: short(bytes, 2),
        id: u32::from(short(bytes, 4)) | u32::from(short(bytes, 6)) << 16,
    };
    entries.chunks_exact(8).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attribute with these entries.
    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        list
    }

    #[test]
    fn owner_list_group_and_mode_decide_in_this_order() {
        // user::rwx user:7:mask group::… group:70:… mask other
        let list = |mask: u16| {
            entries(&acl(&[
                (1, 7, u32::MAX),
                (2, 6, 7),
                (4, 6, u32::MAX),
                (8, 2, 70),
                (0x10, mask, u32::MAX),
                (0x20, 5, 0),
            ]))
        };
        for (mode, acl, immutable, uid, gids, expected) in [
            (0o500, vec![], false, 1000, &[][..], true),
            (0o777, vec![], true, 1000, &[], false),
            (0o755, vec![], false, 7, &[], false),
            (0o757, vec![], false, 7, &[], true),
            (0o757, vec![], false, 7, &[50], false),
            (0o775, vec![], false, 7, &[50], true),
            (0o775, list(7), false, 7, &[], true),
            (0o755, list(5), false, 7, &[], false),
            (0o775, list(7), false, 8, &[70], true),
            (0o775, list(7), false, 8, &[], false),
            (0o700, vec![], false, 0, &[], true),
        ] {
            let rights = Rights { owner: 1000, group: 50, mode, acl, immutable };
            let gids = gids.iter().copied().collect();
            assert_eq!(rights.let_change(uid, &gids), expected, "{rights:?} for {uid} in {gids:?}");
        }
    }

    #[test]
    fn all_who_may_write_are_named_but_root() {
        let list = entries(&acl(&[(2, 6, 7), (4, 5, 0), (8, 2, 70), (0x10, 7, 0)]));
        for (owner, mode, acl, expected) in [
            (0, 0o644, vec![], vec![]),
            (0, 0o664, vec![], vec![Writer::Group(50)]),
            (5, 0o602, vec![], vec![Writer::User(5), Writer::Everybody]),
            (0, 0o674, list, vec![Writer::User(7), Writer::Group(70)]),
        ] {
            let rights = Rights { owner, group: 50, mode, acl, immutable: false };
            assert_eq!(rights.writers(), expected, "{rights:?}");
        }
    }

    #[test]
    fn a_list_is_read_as_the_kernel_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let set = rustix::fs::setxattr(
            dir.path(),
            c"system.posix_acl_access",
            &acl(&[(1, 7, u32::MAX), (2, 7, 4242), (4, 0, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]),
            rustix::fs::XattrFlags::empty(),
        );
        if set.is_err() {
            eprintln!("skipped: {} has no access control lists", dir.path().display());
            return;
        }
        let rights = Rights::of(crate::watch::open::Directory::open(dir.path()).expect("opened")).expect("read");
        assert!(rights.let_change(4242, &BTreeSet::new()) && !rights.let_change(4243, &BTreeSet::new()));
    }
}
