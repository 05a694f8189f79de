//! A layer that is watched: what changed in it, and what of that is to be told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::FileType;
use tokio::time::Instant;

use super::change::{Below, Overlay, What, class, is_copied_up, meaning, name};
use super::class::Class;
use super::files::Runtime;
use super::gather::{Gathered, Key, Thing, Told};
use super::pace::Pace;
use super::record::{How, Record};
use super::records::Owner;
use super::scarcity::Cover;
use crate::watch::tree::{Change, Entry, From, Moment, Scope, Stat, Uncovered};

/// A layer that is watched.
pub(super) struct Watched {
    pub(super) id: String,
    pub(super) owner: Option<Owner>,
    /// It is of an image.
    pub(super) is_image: bool,
    /// What can be told in its store.
    pub(super) overlay: Overlay,
    /// It is removed, or about to be.
    pub(super) is_gone: bool,
    /// What is of before this moment is no news: an image's files were written when it was pulled.
    pub(super) from: Moment,
    /// How much of it is watched: its watches may have been needed elsewhere.
    pub(super) cover: Cover,
    /// For want of watches what changed since then may not have been seen.
    pub(super) looked: Option<Moment>,
    /// The same before the last walk.
    pub(super) former: Option<Moment>,
    /// When the walk that is under way began.
    pub(super) walked: Moment,
    pub(super) gathered: Option<Gathered>,
    /// When something of it changed first that is not told yet.
    pub(super) since: SystemTime,
    pub(super) pace: Pace,
    pub(super) uncovered: Option<Uncovered>,
    /// What the walk that is under way could not watch.
    pub(super) pending: Option<Uncovered>,
    /// What may have been made at the first start, and when it changed.
    pub(super) made: BTreeMap<Box<[u8]>, Moment>,
    /// Directories of the image of which other permissions were told, and which.
    pub(super) permissions: BTreeMap<Box<[u8]>, u16>,
}

/// So many of these are remembered; of others it may be told again.
const MAX_PERMISSIONS: usize = 256;

/// Of an image all is told.
pub(super) fn all() -> Arc<Scope> {
    Arc::new(Scope::new([], []))
}

impl Watched {
    /// Where its files are, below the directory of the layers.
    pub(super) fn path(&self) -> PathBuf {
        Watched::path_of(&self.id)
    }

    /// The same of the layer of that id.
    pub(super) fn path_of(id: &str) -> PathBuf {
        Path::new(id).join("diff")
    }

    /// Takes in a change that happened since then. What is sought is told only if it is not known yet, and only of programs and
    /// the like.
    pub(super) fn note(&mut self, mut entry: Entry<'_>, since: Moment, is_sought: bool, record: &mut Record) {
        let how = match entry.change {
            Change::Seen => How::Seen,
            Change::Created if entry.is_found() => How::Made,
            _ if entry.is_found() => How::Found,
            _ => How::Told,
        };
        let stat = entry.stat();
        let name = name(entry.name, self.overlay);
        let path = [entry.directory, b"/", name].concat();
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        match entry.change {
            // A directory that was removed was empty.
            Change::Removed if entry.is_directory => {}
            Change::MovedFrom | Change::Removed if name == entry.name => {
                record.forget(&self.id, path, entry.is_directory);
            }
            Change::Created | Change::MovedTo(_) if entry.is_directory => record.note_directory(&self.id, path),
            _ => {}
        }
        // It is told if it is other than it was, though its time says nothing.
        let change = if entry.change == Change::Seen { Change::Found { is_new: false } } else { entry.change };
        let below = stat.map_or(Below::Unknown, |stat| self.below(&entry, path, &stat));
        if below == (Below::Directory { is_same: true }) {
            self.permissions.remove(path);
        }
        let what = meaning(change, entry.name, entry.is_directory, stat.as_ref(), self.overlay, below);
        let Some(what) = what else { return };
        let renamed = entry.change == Change::MovedTo(From::Within);
        let class = class(path, stat.as_ref());
        if let Some(stat) = stat.filter(|_| MADE_AT_START.contains(&path)) {
            self.made.insert(path.into(), stat.changed);
        }
        let is_precious = self.is_image || matches!(class, Class::Setuid | Class::Capability | Class::Binary);
        let is_known = is_precious && !entry.is_directory;
        if is_sought && !is_known {
            return;
        }
        let is_news = match stat {
            Some(stat) if is_known => self.is_news((&mut entry, how), path, stat, record),
            Some(stat) if below == (Below::Directory { is_same: false }) => self.have_changed(path, stat.mode),
            Some(_) => {
                // It is a program no longer.
                record.forget(&self.id, path, false);
                true
            }
            None => true,
        };
        if !is_news {
            return;
        }
        // What was a directory may be hidden by what is none, and both is told.
        let is_directory = entry.is_directory && what != What::Removed;
        let key = Key { what, class, thing: thing(is_directory, stat.as_ref()) };
        self.gather(key, (entry.directory, name), renamed, since);
    }

    /// Whether it was not told yet that a program, or the like, is like this.
    fn is_news(&self, (entry, how): (&mut Entry<'_>, How), path: &[u8], mut stat: Stat, record: &mut Record) -> bool {
        if how != How::Told && !record.knows(&self.id, path, &stat) {
            // A walk may have been there before the last thing that was told of it.
            let Some(now) = entry.look_again() else { return false };
            stat = now;
        }
        record.note(&self.id, path, &stat, how)
    }

    /// Whether it was not told yet that a directory of the image has these permissions: overlayfs touches it again and again.
    fn have_changed(&mut self, path: &[u8], mode: u16) -> bool {
        let has_room = self.permissions.len() < MAX_PERMISSIONS;
        match self.permissions.get_mut(path) {
            Some(told) => std::mem::replace(told, mode) != mode,
            None => {
                if has_room {
                    self.permissions.insert(path.into(), mode);
                }
                true
            }
        }
    }

    /// What its image has where that is.
    fn below(&self, entry: &Entry<'_>, path: &[u8], stat: &Stat) -> Below {
        let Some(Owner::Container(container)) = self.owner.as_ref().filter(|_| entry.is_directory) else {
            return Below::Unknown;
        };
        if self.overlay.is_marked && !is_copied_up(stat) {
            return Below::Nothing;
        }
        let looked = container.below.iter().find_map(|layer| {
            let path = [layer.as_bytes(), b"/diff/", path].concat();
            entry.look_elsewhere(&path)
        });
        match looked {
            // What is marked was there.
            None if self.overlay.is_marked || container.below.is_empty() => Below::Unknown,
            Some(below) if below.kind() == FileType::Directory => Below::Directory { is_same: below.mode == stat.mode },
            _ => Below::Nothing,
        }
    }

    /// Something is to be told that happened since then.
    pub(super) fn gather(&mut self, key: Key, (directory, name): (&[u8], &[u8]), renamed: bool, since: Moment) {
        self.pace.note(key, self.gathered.is_none(), Instant::now());
        let first = &mut self.since;
        let gathered = self.gathered.get_or_insert_with(|| {
            *first = SystemTime::now();
            Gathered::new(since, self.pace.directories())
        });
        gathered.since = gathered.since.min(since);
        gathered.note(key, directory, name, renamed);
    }
}

fn thing(is_directory: bool, stat: Option<&Stat>) -> Thing {
    match stat {
        _ if is_directory => Thing::Directory,
        Some(stat) if stat.kind() == FileType::RegularFile && stat.size == 0 => Thing::Empty,
        _ => Thing::File,
    }
}

/// Without what the runtime made itself when it started the container first, and what went with the layer.
pub(super) fn own(
    mut told: Told,
    runtime: &Runtime,
    first_start: Option<Moment>,
    made: &BTreeMap<Box<[u8]>, Moment>,
    is_gone: bool,
) -> Option<Told> {
    let Key { what, class, thing } = told.key;
    if matches!(class, Class::Setuid | Class::Capability) {
        return Some(told);
    }
    if is_gone && (what == What::Removed || what == What::Attributes && thing == Thing::Directory) {
        return None;
    }
    let is_before = |changed: &Moment| first_start.is_none_or(|started| *changed <= started);
    let is_target = |path: &[u8]| match &runtime.spec {
        Some(spec) => spec.targets.contains(path),
        None => TARGETS.contains(&path),
    };
    let is_runtimes = |path: &[u8]| {
        what == What::Created && thing != Thing::File && is_target(path) || made.get(path).is_some_and(is_before)
    };
    let before = told.names.first.len();
    told.names.first.retain(|path| !is_runtimes(path));
    told.names.count -= (before - told.names.first.len()) as u64;
    (told.names.count > 0).then_some(told)
}

/// What is mounted in every container: of one that was removed before it could be read what was in it.
const TARGETS: [&[u8]; 9] =
    [b"dev", b"etc", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"proc", b"run", b"run/.containerenv", b"sys"];

/// What podman and CRI-O make or write at the first start, and config.json does not say.
const MADE_AT_START: [&[u8]; 4] = [b"etc/mtab", b"etc/passwd", b"etc/group", b"etc/resolv.conf"];
