//! A directory with configuration of the container tools: the system's, or that in a home.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::observe::{MAX_ENTRIES, MAX_SCOPES, too_many};
use super::registries::{Lookaside, registries};
use super::seen::{OWN, Read, Registries, SYSTEM};
use super::tree::{Broken, Tree, is_absent, read};
use crate::watch::open::Directory;
use nix::libc::{ENOENT, EXDEV};

/// The directory.
pub(super) enum Place<'a> {
    System(&'a Tree),
    Home(Configuration<'a>),
}

/// More bytes of one home are no configuration.
const MAX_BYTES: usize = 2 << 20;

/// The directory in a home.
pub(super) struct Configuration<'a> {
    path: PathBuf,
    /// The home and the directory itself, if they are there.
    opened: io::Result<(&'a Directory, Directory)>,
    /// How many bytes of it are still read.
    left: Cell<usize>,
}

impl<'a> Configuration<'a> {
    pub(super) fn of(path: &Path, home: Option<&'a Directory>) -> Configuration<'a> {
        let absent = || io::Error::from_raw_os_error(ENOENT);
        let opened = home.ok_or_else(absent).and_then(|home| Ok((home, home.directory(Path::new(OWN))?)));
        Configuration { path: path.join(OWN), opened, left: Cell::new(MAX_BYTES) }
    }

    /// Finds what has that name in it, and tells over how many links.
    pub(super) fn walk(&self, name: &str) -> io::Result<(OwnedFd, u32)> {
        self.open(Path::new(name), Directory::walk)
    }

    /// A directory in it.
    pub(super) fn directory(&self, name: &str) -> io::Result<Directory> {
        self.open(Path::new(name), Directory::directory)
    }

    fn open<T>(&self, name: &Path, open: impl Fn(&Directory, &Path) -> io::Result<T>) -> io::Result<T> {
        let (home, own) = match &self.opened {
            Ok((home, own)) => (home, own),
            Err(error) => {
                return Err(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
            }
        };
        match open(own, name) {
            // It leaves the directory, but maybe not the home.
            Err(error) if error.raw_os_error() == Some(EXDEV) => open(home, &Path::new(OWN).join(name)),
            found => found,
        }
    }

    /// The text of a file in it; `None` if it is not there.
    fn read(&self, name: &Path) -> io::Result<Option<Vec<u8>>> {
        let bytes = read(self.open(name, Directory::file))?;
        let length = bytes.as_ref().map_or(0, Vec::len);
        let too_much = || io::Error::other(format!("more than {} MiB of configuration", MAX_BYTES >> 20));
        self.left.set(self.left.get().checked_sub(length).ok_or_else(too_much)?);
        Ok(bytes)
    }
}

impl Place<'_> {
    /// The path of what has that name in it.
    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        match self {
            Place::System(_) => Path::new(SYSTEM).join(name),
            Place::Home(home) => home.path.join(name),
        }
    }

    /// Whether it is there.
    pub(super) fn is_there(&self) -> bool {
        self.directory("").is_ok()
    }

    /// The text of a file in it; `None` if it is not there.
    pub(super) fn read(&self, name: impl AsRef<Path>) -> Read<Option<Vec<u8>>> {
        let name = name.as_ref();
        match self {
            Place::System(tree) => tree.read(&self.path(name)),
            Place::Home(home) => home.read(name).map_err(|error| Broken::unread(self.path(name), &error)),
        }
    }

    /// What a file in it says, if it is there.
    pub(super) fn parsed<T>(
        &self,
        name: impl AsRef<Path>,
        parse: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Option<Read<T>> {
        let name = name.as_ref();
        let parse = |text: Vec<u8>| parse(&text).map_err(|reason| Broken::new(self.path(name), &reason));
        self.read(name).map(|text| text.map(parse)).transpose().map(Result::flatten)
    }

    /// Its registries.d, if it is there.
    pub(super) fn lookaside(&self) -> Option<Read<Lookaside>> {
        let names = match self.names("registries.d", ".yaml") {
            Ok(names) => names?,
            Err(error) => return Some(Err(error)),
        };
        let mut lookaside = Lookaside::default();
        for name in names {
            let path = self.path(&name);
            let read = self.read(&name).and_then(|text| {
                lookaside.read(&text.unwrap_or_default()).map_err(|reason| Broken::new(path, &reason))
            });
            if let Err(error) = read {
                return Some(Err(error));
            }
            if lookaside.docker.len() > MAX_SCOPES {
                return Some(Err(too_many("scopes", &self.path("registries.d"))));
            }
        }
        Some(Ok(lookaside))
    }

    /// Its registries.conf, if it is there.
    pub(super) fn registries(&self) -> Option<Registries> {
        let found = self.parsed("registries.conf", registries)?;
        let mut all = Registries::default();
        all.add(&self.path("registries.conf"), found);
        Some(all)
    }

    /// The drop-ins of registries.conf.
    pub(super) fn drop_ins(&self) -> Registries {
        let mut all = Registries::default();
        match self.names("registries.conf.d", ".conf") {
            Ok(names) => {
                for name in names.into_iter().flatten() {
                    if let Some(found) = self.parsed(&name, registries) {
                        all.add(&self.path(&name), found);
                    }
                }
            }
            Err(error) => all.broken.push(error),
        }
        all
    }

    fn directory(&self, name: &str) -> io::Result<Directory> {
        match self {
            Place::System(tree) => tree.directory(&self.path(name)),
            Place::Home(home) => home.directory(name),
        }
    }

    /// The names, from here on, of the files of a directory in it that end so; `None` if it is not there.
    fn names(&self, directory: &str, end: &str) -> Read<Option<Vec<PathBuf>>> {
        let opened = match self.directory(directory) {
            Err(error) if is_absent(&error) => return Ok(None),
            other => other.map_err(|error| Broken::unread(self.path(directory), &error))?,
        };
        let names = opened.names(MAX_ENTRIES).map_err(|error| Broken::unread(self.path(directory), &error))?;
        // `.yaml` has no extension, but such an end.
        let names = names.into_iter().filter(|name| name.as_bytes().ends_with(end.as_bytes()));
        Ok(Some(names.map(|name| Path::new(directory).join(name)).collect()))
    }
}

impl Registries {
    fn add(&mut self, file: &Path, found: Read<Vec<super::registries::Registry>>) {
        let has_room = |list: &Vec<_>| self.list.len() + list.len() <= MAX_SCOPES;
        let bounded = |list| if has_room(&list) { Ok(list) } else { Err(too_many("registries", file)) };
        match found.and_then(bounded) {
            Ok(list) => self.list.extend(list.into_iter().map(|registry| (file.to_path_buf(), registry))),
            Err(error) if self.broken.len() < MAX_BROKEN => self.broken.push(error),
            Err(_) => {}
        }
    }
}

/// So many files that are broken are told.
const MAX_BROKEN: usize = 8;
