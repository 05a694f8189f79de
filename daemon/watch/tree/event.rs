//! What is told of trees.

use std::path::PathBuf;

use super::look::Look;
use super::nodes::{Root, Watch};
use super::stat::Stat;

/// What changed in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It was made there, or linked, or came with its directory.
    Created,
    /// Its content changed.
    Written,
    /// It came by rename.
    MovedTo(From),
    /// It went by rename.
    MovedFrom,
    /// It was removed.
    Removed,
    /// Its mode, its owner, its times, its extended attributes or the number of its links changed.
    Attributes,
    /// A walk found that it changed, which is all that is known.
    Found {
        /// Whether it was made since then.
        is_new: bool,
    },
    /// A walk saw that it is there; it is no news ([`News::Kept`](super::News::Kept)).
    Seen,
    /// A walk found the directory changed, and nothing in it: something went from there. The name is empty.
    Lacking,
}

/// From where something came by rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum From {
    /// The same directory had it under another name, of which it was told just before that it went.
    Within,
    /// It was in another directory, of which the same holds.
    Watched,
    /// Nobody watched it.
    Elsewhere,
}

/// What is told of trees.
#[derive(Debug)]
pub enum Event<'e> {
    /// An entry of a directory changed.
    Changed(Entry<'e>),
    /// The root is there no more, or was moved.
    Gone(Root),
    /// Events were lost, of any tree.
    Lost,
    /// So many changes waited in an instance that somebody had before, of directories of which nothing is known.
    Untold(usize),
    /// So much was moved at once that not all of it may be known, until the next walk of the tree.
    Doubted(Root),
    /// Something of a tree is not watched.
    Uncovered(Root, Uncovered),
    /// The walk of that number is done.
    Walked(Root, u64),
}

/// Directories that are not watched, with all that is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncovered {
    /// How many.
    pub count: u64,
    /// Some of them, below the root.
    pub named: Vec<PathBuf>,
    /// Why, as the kernel says.
    pub why: String,
}

/// An entry of a directory that changed.
#[derive(Debug)]
pub struct Entry<'e> {
    /// Of which root.
    pub root: Root,
    /// The path of its directory below the root: `usr/bin`, empty for the root itself.
    pub directory: &'e [u8],
    /// Its name there; empty for the directory itself.
    pub name: &'e [u8],
    /// What happened.
    pub change: Change,
    /// Whether it is a directory itself.
    pub is_directory: bool,
    /// The number of the walk that found it; 0: of none.
    pub walk: u64,
    pub(super) known: Known<'e>,
}

/// What is known of an entry, or how to know it.
#[derive(Debug)]
pub(super) enum Known<'e> {
    Stat(Option<Stat>),
    Look(&'e mut Look, Watch),
    /// It was looked at, or a walk found it.
    Found(Option<Stat>, &'e mut Look, Watch),
}

impl Entry<'_> {
    /// The beginning of its content now, `most` bytes of it at most; `None` if it is no regular file, or is there no more.
    pub fn read(&mut self, most: usize) -> Option<Vec<u8>> {
        let (Known::Look(look, watch) | Known::Found(_, look, watch)) = &mut self.known else { return None };
        look.read(self.root, *watch, self.directory, self.name, most)
    }

    /// What is to be known of it now, or when a walk found it; `None` if it is there no more.
    pub fn stat(&mut self) -> Option<Stat> {
        match std::mem::replace(&mut self.known, Known::Stat(None)) {
            Known::Stat(stat) => {
                self.known = Known::Stat(stat);
                stat
            }
            Known::Found(stat, look, watch) => {
                self.known = Known::Found(stat, look, watch);
                stat
            }
            Known::Look(look, watch) => {
                let stat = look.stat(self.root, watch, self.directory, self.name);
                self.known = Known::Found(stat, look, watch);
                stat
            }
        }
    }

    /// Whether a walk found it, and no event told it; to be asked before anything else.
    pub fn is_found(&self) -> bool {
        matches!(self.known, Known::Found(..) | Known::Stat(Some(_)))
    }

    /// What is to be known of it now, whatever a walk found; `None` if it is there no more.
    pub fn look_again(&mut self) -> Option<Stat> {
        match &mut self.known {
            Known::Stat(stat) => *stat,
            Known::Look(look, watch) | Known::Found(_, look, watch) => {
                look.stat(self.root, *watch, self.directory, self.name)
            }
        }
    }

    /// What is to be known of what is at a path below the base now, of whatever tree; `None` if it is not there, or this is an
    /// entry that went.
    pub fn look_elsewhere(&self, path: &[u8]) -> Option<Stat> {
        let (Known::Look(look, _) | Known::Found(_, look, _)) = &self.known else { return None };
        look.stat_below(path)
    }
}
