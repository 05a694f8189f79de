//! Where an account's images are, and whether there are any.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::fstat;

use super::accounts::Account;
use super::rights::Rights;
use super::seen::{Home, Read, System};
use super::storage::{Storage, expand};
use super::tree::{Broken, Tree, is_absent, unseen};
use crate::checks::images::list::MAX_BYTES;
use crate::watch::open::Directory;

/// Where images are, below a home: of podman, and of podsec's CRI-O.
const STORE: &str = ".local/share/containers/storage";
const CRIO_STORE: &str = ".local/share/usernetes/containers/storage";
/// Where root's are.
const ROOT_STORE: &str = "/var/lib/containers/storage";
/// Where a store lists its images, by the driver that keeps them.
pub(in crate::checks) const LISTS: [&str; 6] =
    ["overlay-images", "vfs-images", "btrfs-images", "zfs-images", "aufs-images", "devicemapper-images"];
/// The list.
pub(in crate::checks) const LIST: &str = "images.json";
/// What says, too, that a directory is a store.
pub(super) const LAYERS: &str = "overlay";
/// More further stores are not looked at.
const MAX_STORES: usize = 32;

/// So many that may be anything are told.
const MAX_UNKNOWN: usize = 8;

/// An image store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where it is.
    pub path: PathBuf,
    /// Whether there are images in it.
    pub has_images: bool,
    /// Whether the way there leads out of the home, over a link or a mount.
    pub is_apart: bool,
}

/// What there is of an account's image stores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Those in which it keeps images, or from which it may run some.
    pub stores: Vec<Store>,
    /// Further ones that others than it and root may change.
    pub foreign: Vec<PathBuf>,
    /// Those that are not looked at for other reasons.
    pub unread: Vec<Broken>,
}

/// Where an account's image stores may be.
#[derive(Default)]
pub(super) struct Candidates {
    /// By what is configured, and by default.
    pub(super) own: BTreeSet<PathBuf>,
    /// Those of others, which it reads.
    pub(super) additional: BTreeSet<PathBuf>,
    /// That of those which the system's file names for everybody, whether or not they run containers.
    by_system: Option<PathBuf>,
    /// Paths, as they are written, that may be anything.
    unknown: BTreeSet<String>,
}

impl Candidates {
    pub(super) fn of(home: &Home, system: &System) -> Candidates {
        let account = &home.account;
        let valid = |storage: &'_ Option<Read<Storage>>| storage.as_ref().and_then(|read| read.as_ref().ok()).cloned();
        let of_system = valid(&system.storage).unwrap_or_default();
        let default = if account.is_root() { ROOT_STORE.into() } else { account.home.join(STORE) };
        let mut found = Candidates { own: BTreeSet::from([default]), ..Candidates::default() };
        let storage = if account.is_root() {
            // The tools do not read one of his own.
            of_system
        } else {
            // Of the system's file only this holds for others.
            let by_system = of_system.rootless_storage_path;
            found.by_system = by_system.as_deref().and_then(|path| expand(path, account));
            found.add_own(account, by_system);
            valid(&home.storage).unwrap_or_default()
        };
        for path in [storage.graphroot, storage.rootless_storage_path, storage.imagestore] {
            found.add_own(account, path);
        }
        if home.runs_crio {
            // podsec's, also while nobody knows what CRI-O is told.
            found.own.insert(account.home.join(CRIO_STORE));
            let roots = home.crio.iter().flatten().filter_map(|told| told.crio.root.as_deref());
            roots.filter_map(Path::to_str).for_each(|root| found.add_own(account, Some(root.to_owned())));
        }
        found.own.extend(home.former_stores.iter().cloned());
        for path in storage.additional_stores {
            match expand(&path, account).filter(|_| found.additional.len() < MAX_STORES) {
                Some(path) => drop(found.additional.insert(path)),
                None => drop(found.unknown.insert(path)),
            }
        }
        found
    }

    fn add_own(&mut self, account: &Account, path: Option<String>) {
        if let Some(path) = path {
            match expand(&path, account) {
                Some(path) => drop(self.own.insert(path)),
                None => drop(self.unknown.insert(path)),
            }
        }
    }
}

/// Looks at the image stores of an account.
pub(super) struct Stores<'a> {
    pub(super) tree: &'a Tree,
    pub(super) account: &'a Account,
    /// The group of those who may run containers.
    pub(super) podman_group: &'a str,
    /// Its home, if it is there.
    pub(super) home: Option<&'a Directory>,
}

impl Stores<'_> {
    /// All of them.
    pub(super) fn look(&self, home: &Home, system: &System) -> Found {
        let Candidates { own, additional, by_system, unknown } = Candidates::of(home, system);
        let mut found = Found::default();
        let runs_containers = home.is_configured() || self.account.is_in(self.podman_group);
        let concerns_nobody =
            |path: &Path| !runs_containers && by_system.as_deref() == Some(path) && self.tree.hides(path).is_some();
        for path in own.iter().filter(|path| !concerns_nobody(path)) {
            self.look_at(path, false, &mut found);
        }
        for path in additional.difference(&own) {
            self.look_at(path, true, &mut found);
        }
        let why = io::Error::other("no absolute path, or one too many");
        found.unread.extend(unknown.iter().take(MAX_UNKNOWN).map(|path| Broken::unread(path, &why)));
        found
    }

    /// Looks at one, if it is there.
    fn look_at(&self, path: &Path, is_additional: bool, found: &mut Found) {
        match self.open(path) {
            Ok((directory, is_apart)) => {
                if is_additional && self.is_others(&directory) {
                    found.foreign.push(path.to_path_buf());
                }
                found.stores.extend(look(&directory, path, is_apart));
            }
            Err(error) if is_absent(&error) && error.raw_os_error() != Some(nix::libc::ELOOP) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_additional => {
                found.foreign.push(path.to_path_buf());
            }
            Err(error) => found.unread.push(Broken::unread(path, &error)),
        }
    }

    /// Opens a store, and tells whether the way there leads out of the home: in the home whatever is there, elsewhere only
    /// what is its own or root's, since anybody may name anything.
    pub(super) fn open(&self, path: &Path) -> io::Result<(Directory, bool)> {
        if let (Some(home), Ok(name)) = (self.home, path.strip_prefix(&self.account.home)) {
            match home.directory(name) {
                // A file system of its own, or a link out of the home; to where podsecd sees nothing it may lead all the same.
                Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
                    return match self.open_outside(path) {
                        Err(absent) if is_absent(&absent) => Err(error),
                        found => found,
                    };
                }
                found => return found.map(|found| (found, false)),
            }
        }
        self.open_outside(path)
    }

    fn open_outside(&self, path: &Path) -> io::Result<(Directory, bool)> {
        // Some accounts of programs have their homes there, and nothing in them.
        if self.tree.hides(path).is_some_and(|hidden| !self.account.home.starts_with(hidden)) {
            return Err(unseen());
        }
        let found = self.tree.directory(path)?;
        let owner = fstat(&found)?.st_uid;
        let is_others = owner != 0 && owner != self.account.uid;
        let others = || io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to user id {owner}"));
        if is_others { Err(others()) } else { Ok((found, true)) }
    }

    /// Whether others than root may change what is in a directory that is not the account's own.
    fn is_others(&self, directory: &Directory) -> bool {
        let others = |rights: Rights| rights.owner != self.account.uid && !rights.replacers().is_empty();
        Rights::of(directory).is_ok_and(others)
    }
}

/// What kind of store a directory is, if it is one.
fn look(directory: &Directory, path: &Path, is_apart: bool) -> Option<Store> {
    let lists = LISTS.map(|name| directory.file(&Path::new(name).join(LIST)));
    let is_there = |list: &io::Result<File>| list.as_ref().err().is_none_or(|error| !is_absent(error));
    let is_store = lists.iter().any(is_there) || directory.find(Path::new(LAYERS)).is_ok();
    is_store.then(|| Store { path: path.to_path_buf(), has_images: lists.into_iter().any(has_entry), is_apart })
}

/// Whether a list of images has an entry; one that cannot be read may have some.
fn has_entry(list: io::Result<File>) -> bool {
    match list {
        Ok(list) => {
            BufReader::new(list.take(MAX_BYTES as u64)).bytes().any(|byte| byte.map_or(true, |byte| byte == b'{'))
        }
        Err(error) => !is_absent(&error),
    }
}
