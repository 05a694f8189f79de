//! Looks at what is in the trees, by names that whoever writes there may change at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::nodes::{Root, Watch};
use super::scope::Scope;
use super::stat::{Mark, Stat};
use super::walk::{is_absent, mask};
use crate::watch::open::{Directory, descend, proc_path, read, split};

/// The trees in which to look.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) inotify: Arc<OwnedFd>,
    pub(super) marks: &'static [Mark],
    /// The directory below which the roots are. A root itself is not held open: the kernel would not tell that it went.
    pub(super) base: Directory,
    pub(super) mount: u64,
    pub(super) roots: BTreeMap<Root, Known>,
    /// Directories in which something was not found, because they were moved, or those above them were.
    pub(super) missed: BTreeSet<Watch>,
    /// The directory that was looked at last: most events are of the same one as the one before.
    pub(super) opened: Option<(Watch, OwnedFd)>,
}

/// A tree.
#[derive(Debug)]
pub(super) struct Known {
    /// Its path below the base.
    pub(super) path: Box<[u8]>,
    pub(super) scope: Arc<Scope>,
    /// All of it was walked once.
    pub(super) is_walked: bool,
}

impl Look {
    /// The directory of a watch, which is at this path of a root, unless it was moved since, as an event will say.
    pub(super) fn open(&mut self, root: Root, watch: Watch, path: &[u8]) -> Result<&OwnedFd, Errno> {
        if self.opened.as_ref().is_none_or(|(opened, _)| *opened != watch) {
            self.opened = match self.find(root, watch, path) {
                Ok(found) => Some((watch, found)),
                Err(errno) => {
                    if is_absent(errno) {
                        self.missed.insert(watch);
                    }
                    return Err(errno);
                }
            };
        }
        self.opened.as_ref().map(|(_, opened)| opened).ok_or(Errno::NOENT)
    }

    /// Whether a directory at this path of a root is of interest, or leads to what is.
    pub(super) fn is_wanted(&self, root: Root, path: &[u8]) -> bool {
        self.roots.get(&root).is_some_and(|known| path.is_empty() || known.scope.find(path).leads_on())
    }

    fn find(&self, root: Root, watch: Watch, path: &[u8]) -> Result<OwnedFd, Errno> {
        let known = self.roots.get(&root).ok_or(Errno::NOENT)?;
        let root = descend(&self.base, &known.path, self.mount)?;
        let found = descend(root, path, self.mount)?;
        // Another directory may be there by now.
        let flags = mask() | WatchFlags::MASK_ADD;
        let is_same = inotify::add_watch(&self.inotify, proc_path(found.as_fd()), flags)? == watch;
        if is_same { Ok(found) } else { Err(Errno::NOENT) }
    }

    /// The beginning of a regular file there.
    pub(super) fn read(&mut self, root: Root, watch: Watch, path: &[u8], name: &[u8], most: usize) -> Option<Vec<u8>> {
        let directory = self.open(root, watch, path).ok()?;
        let found = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = Vec::new();
        read(&found).ok()?.take(most as u64).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// What is to be known of what is at a path below the base.
    pub(super) fn stat_below(&self, path: &[u8]) -> Option<Stat> {
        let (directory, name) = split(path);
        Stat::of(descend(&self.base, directory, self.mount).ok()?.as_fd(), name, &[])
    }

    /// What is to be known of what is called `name` there.
    pub(super) fn stat(&mut self, root: Root, watch: Watch, path: &[u8], name: &[u8]) -> Option<Stat> {
        let marks = self.marks;
        Stat::of(self.open(root, watch, path).ok()?.as_fd(), name, marks)
    }
}
