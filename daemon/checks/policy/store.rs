//! Where an account's images are, and whether there are any.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::fstat;

use super::accounts::Account;
use super::observe::{Home, Read, System};
use super::storage::{Storage, expand};
use super::tree::Tree;
use crate::watch::open::Directory;

/// Where images are, below a home: of podman, and of podsec's CRI-O.
const STORE: &str = ".local/share/containers/storage";
const CRIO_STORE: &str = ".local/share/usernetes/containers/storage";
/// Where root's are.
const ROOT_STORE: &str = "/var/lib/containers/storage";
/// More further stores are not looked at.
pub(super) const MAX_STORES: usize = 32;

/// An image store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where it is.
    pub path: PathBuf,
    /// Whether there are images in it.
    pub has_images: bool,
}

/// Where an account's image stores may be, by what is configured.
pub(super) fn candidates(home: &Home, system: &System) -> BTreeSet<PathBuf> {
    let account = &home.account;
    let valid = |storage: &'_ Option<Read<Storage>>| storage.as_ref().and_then(|read| read.as_ref().ok()).cloned();
    let (own, of_system) = (valid(&home.storage), valid(&system.storage).unwrap_or_default());
    let said = match own {
        Some(own) => own.graphroot,
        None if account.is_root() => of_system.graphroot,
        None => of_system.rootless_storage_path,
    };
    let default = || if account.is_root() { ROOT_STORE.into() } else { account.home.join(STORE) };
    let mut paths = BTreeSet::from([said.and_then(|said| expand(&said, account)).unwrap_or_else(default)]);
    for told in home.crio.iter().flatten() {
        let root = told.crio.root.as_deref().and_then(Path::to_str).and_then(|root| expand(root, account));
        paths.insert(root.unwrap_or_else(|| account.home.join(CRIO_STORE)));
    }
    paths
}

/// The image stores of an account.
pub(super) struct Stores<'a> {
    pub(super) tree: &'a Tree,
    pub(super) account: &'a Account,
    /// Its home, if it is there.
    pub(super) home: Option<&'a Directory>,
}

impl Stores<'_> {
    /// Those in which it keeps images.
    pub(super) fn of(&self, home: &Home, system: &System) -> Vec<Store> {
        let paths = candidates(home, system).into_iter();
        paths.filter_map(|path| self.look(&self.open(&path).ok()?, path)).collect()
    }

    /// Further stores of its storage.conf that belong neither to it nor to root.
    pub(super) fn foreign(&self, storage: Option<&Read<Storage>>) -> Vec<PathBuf> {
        let Some(Ok(storage)) = storage else { return Vec::new() };
        let is_foreign = |path: &&PathBuf| {
            let owner = self.tree.directory(path).and_then(|found| Ok(fstat(found)?.st_uid));
            owner.is_ok_and(|owner| owner != 0 && owner != self.account.uid)
        };
        storage.additional_stores.iter().take(MAX_STORES).filter(is_foreign).cloned().collect()
    }

    /// Opens a store: in its home whatever is there, elsewhere only what is its own, since anybody may name anything.
    pub(super) fn open(&self, path: &Path) -> io::Result<Directory> {
        if let (Some(home), Ok(name)) = (self.home, path.strip_prefix(&self.account.home)) {
            match home.directory(name) {
                // A file system of its own, or a link out of the home.
                Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {}
                found => return found,
            }
        }
        let found = self.tree.directory(path)?;
        if fstat(&found)?.st_uid == self.account.uid { Ok(found) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    /// What kind of store a directory is, if it is one.
    fn look(&self, directory: &Directory, path: PathBuf) -> Option<Store> {
        let lists = ["overlay-images", "vfs-images"].map(|name| directory.file(&Path::new(name).join("images.json")));
        let has_entry = |list: &io::Result<std::fs::File>| {
            let mut beginning = Vec::new();
            let list = list.as_ref().ok();
            list.is_some_and(|list| list.take(64).read_to_end(&mut beginning).is_ok() && beginning.contains(&b'{'))
        };
        let is_store = lists.iter().any(Result::is_ok) || directory.find(Path::new("overlay")).is_ok();
        is_store.then(|| Store { path, has_images: lists.iter().any(has_entry) })
    }
}
