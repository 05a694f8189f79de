//! An inotify instance that another process had before: its watches go on, and what happened while nobody read it waits there.
//!
//! Of the same inode the kernel answers with the same watch. So the walk that a tree begins with finds out which watch is of
//! which directory, and then it is told what waited. That walk finds most of it, too: what is told by what waited, or was told
//! by whoever had the instance, it does not tell again.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::inotify::{self, ReadFlags};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::Errno;

use super::event::Event;
use super::nodes::{Nodes, Parent, Root, Watch};
use super::past::Past;
use super::stat::Moment;
use super::state::{MAX_EARLY, Raw, State};
use super::walk::{Found, Task};
use super::{BUFFER, LAG, MAX_TIDIED};

/// More than these do not wait to be told, however often whoever inherits them ends before that.
const MAX_WAITING: usize = 4 * MAX_EARLY;

/// An instance of inotify that somebody had before.
#[derive(Debug)]
pub struct Inherited {
    pub(super) inotify: OwnedFd,
    /// All that is older than this was told.
    pub(super) since: Moment,
    pub(super) waiting: Waiting,
}

/// What waited in it.
#[derive(Debug)]
pub(super) struct Waiting {
    /// What was known, and what waited; no directories: nobody said which there were.
    past: Past,
    heard: HashMap<Watch, Heard>,
    /// The watches that there were.
    watches: BTreeSet<Watch>,
    /// What happens from this moment on comes as it always does.
    read: Moment,
}

/// What is told of a directory.
#[derive(Debug, Default)]
struct Heard {
    /// Names in it, and whether something came to them.
    names: HashMap<Box<[u8]>, bool>,
    /// A directory went from it: of what was in that one nothing is known.
    has_lost_directory: bool,
}

impl Inherited {
    /// Reads what waits in it, after which it waits there no more; all before `since` was told. `None`: it is no instance of inotify.
    ///
    /// # Errors
    /// Those of read(2), and of open(2) for /proc.
    pub fn read(inotify: OwnedFd, since: Moment, past: Past) -> io::Result<Option<Inherited>> {
        if !is_inotify(inotify.as_fd()) {
            return Ok(None);
        }
        let waiting = Waiting::read(&inotify, past)?;
        Ok(Some(Inherited { inotify, since, waiting }))
    }

    /// What was known, and what waited.
    pub fn past(&mut self) -> &mut Past {
        &mut self.waiting.past
    }
}

#[cfg(test)]
impl Inherited {
    /// How many watches it has.
    pub(super) fn count(&self) -> usize {
        self.waiting.watches.len()
    }
}

/// Whether it is one, which is read without waiting from now on.
fn is_inotify(descriptor: BorrowedFd<'_>) -> bool {
    let link = readlink(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), Vec::new());
    link.is_ok_and(|link| link.as_bytes() == b"anon_inode:inotify")
        && fcntl_getfl(descriptor).is_ok_and(|flags| fcntl_setfl(descriptor, flags | OFlags::NONBLOCK).is_ok())
}

impl Waiting {
    /// What waits in an instance, behind what was read before.
    fn read(inotify: &OwnedFd, mut past: Past) -> io::Result<Waiting> {
        let beginning = Moment::at(SystemTime::now()).before(LAG);
        let events = &mut past.waiting;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let watches = watches(inotify)?;
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut is_all = false;
        // More than wait by default; the rest, if there is some, comes later.
        while events.len() < MAX_WAITING {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => {
                    is_all = true;
                    break;
                }
                Err(errno) => return Err(errno.into()),
            };
            events.push((Raw::of(&event), event.file_name().unwrap_or_default().into()));
        }
        while !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            events.push((Raw::of(&event), event.file_name().unwrap_or_default().into()));
        }
        let is_lost = events.iter().any(|(raw, _)| raw.is_overflow());
        let mut heard = HashMap::<Watch, Heard>::new();
        // What was lost is only found by walks.
        for (event, name) in events.iter().filter(|_| is_all && !is_lost) {
            heard.entry(event.watch).or_default().note(event.flags, name.to_bytes());
        }
        past.told = past.told.filter(|_| is_all && !is_lost);
        // If all was told before, all that happened since then was read, or comes.
        let read = if past.told.is_some() { beginning } else { Moment::at(SystemTime::now() + LAG) };
        Ok(Waiting { past, heard, watches, read })
    }

    /// Directories that were removed meanwhile, where nobody says which there were: their watches, those of the directories in
    /// which they were, and their names. The kernel says of a watch that it ended just before it says that the directory was
    /// removed; who removes others at the same moment may have what was in one told as if it was in the other.
    fn removed(&self) -> impl Iterator<Item = (Watch, Watch, &[u8])> {
        self.past.waiting.windows(2).filter_map(|pair| {
            let [(ended, _), (removed, name)] = pair else { return None };
            let is_pair = ended.is_end() && removed.is_removal_of_directory();
            is_pair.then(|| (ended.watch, removed.watch, name.to_bytes()))
        })
    }

    /// Events were lost, which whoever goes on has to know, too.
    pub(super) fn lose(&mut self) {
        if self.past.waiting.last().is_none_or(|(last, _)| !last.is_overflow()) {
            self.past.waiting.push((Raw::OVERFLOW, CString::default()));
        }
    }

    pub(super) fn next_root(&self) -> Root {
        self.past.next_root()
    }

    /// Whether a directory was watched by whoever told what there was to tell. Where nobody did, by anybody.
    fn knows(&self, watch: Watch) -> bool {
        if self.past.told.is_some() { self.past.nodes.has(watch) } else { self.watches.contains(&watch) }
    }

    /// Whether what a walk found is told otherwise, or was.
    pub(super) fn tells(&self, found: &Found, task: &Task) -> bool {
        if !found.is_news || !found.below.is_empty() || !self.knows(found.watch) {
            return false;
        }
        let (heard, told) = (self.heard.get(&found.watch), self.past.told);
        match &found.entry {
            Some((name, stat)) => {
                let is_directory = stat.kind() == FileType::Directory;
                let came = heard.and_then(|heard| heard.names.get(name));
                // That a file was made may have been read, and not been told.
                came.is_some_and(|came| *came || is_directory || told.is_some() || !task.is_new(stat))
                    // Of a directory all but what is in it is told with its name.
                    || told.is_some() && is_directory && !task.is_new(stat)
                    || told.is_some_and(|told| stat.changed < told)
                    || stat.changed > self.read
            }
            None => match heard {
                Some(Heard { has_lost_directory: true, .. }) => false,
                Some(Heard { names, .. }) if !names.is_empty() => true,
                _ => told.is_some(),
            },
        }
    }
}

impl Heard {
    fn note(&mut self, flags: ReadFlags, name: &[u8]) {
        if name.is_empty() {
            return;
        }
        let went = flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
        self.has_lost_directory |= went && flags.contains(ReadFlags::ISDIR);
        let came = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        *self.names.entry(name.into()).or_default() |= came;
    }
}

impl State {
    /// Tells what waited in an instance that somebody had before.
    pub(super) fn tell_past(&mut self, tell: &mut impl FnMut(Event<'_>)) {
        let Some(waiting) = self.waiting.take() else { return };
        let Past { nodes, fresh, .. } = &waiting.past;
        // What is there no more was where it was known to be.
        let former = nodes.entries().chain(fresh.entries()).filter(|(watch, ..)| !self.nodes.has(*watch));
        let former: Vec<_> = former.collect();
        let removed = waiting.removed().map(|(watch, parent, name)| (watch, Parent::Directory(parent), name));
        let is_unknown = nodes.count() + fresh.count() == 0;
        let removed: Vec<_> = removed.filter(|(watch, ..)| is_unknown && !self.nodes.has(*watch)).collect();
        for (watch, parent, name) in former.iter().chain(&removed) {
            self.nodes.insert(*watch, *parent, name);
        }
        self.is_past = true;
        for (event, name) in &waiting.past.waiting {
            self.note(*event, name, tell);
        }
        self.is_past = false;
        for (watch, ..) in former.iter().chain(&removed) {
            self.nodes.remove(*watch);
        }
        // Of what nobody told it is not known, either, what was of interest.
        let untold = std::mem::take(&mut self.untold);
        if untold > 0 && waiting.past.told.is_none() {
            tell(Event::Untold(untold));
        }
        self.leftover = waiting.watches.into_iter().collect();
        self.moving.clear();
        self.look.missed.retain(|watch| self.nodes.has(*watch));
    }

    /// What is known, for whoever inherits the instance, when nothing more is read.
    pub(super) fn leave(&mut self, note: String, told: Option<Moment>) -> Past {
        let mut nodes = std::mem::take(&mut self.nodes);
        // What is watched, and of no interest, is not told.
        for watch in nodes.outside(|root, path| self.look.is_wanted(root, path)) {
            nodes.remove(watch);
        }
        let early = std::mem::take(&mut self.early);
        let Some(mut waiting) = self.waiting.take() else {
            return Past { told, note, nodes, fresh: Nodes::default(), waiting: early };
        };
        for (watch, parent, name) in nodes.entries() {
            let is_known = waiting.knows(watch);
            let past = &mut waiting.past;
            if is_known { &mut past.nodes } else { &mut past.fresh }.insert(watch, parent, name);
        }
        if waiting.past.waiting.len() < MAX_WAITING {
            waiting.past.waiting.extend(early);
        } else if !early.is_empty() {
            waiting.lose();
        }
        Past { note, ..waiting.past }
    }

    /// Gives watches back that somebody had before, and that are of nothing that there is; not so many at once that what the kernel
    /// says of that could not wait.
    pub(super) fn give_back(&mut self) {
        let mut given = 0;
        while given < MAX_TIDIED
            && let Some(watch) = self.leftover.pop()
        {
            let is_of_use = self.nodes.has(watch);
            given += usize::from(!is_of_use && inotify::remove_watch(&self.look.inotify, watch).is_ok());
        }
    }
}

/// The watches of an instance (proc_pid_fdinfo(5)).
fn watches(inotify: &OwnedFd) -> io::Result<BTreeSet<Watch>> {
    let file = File::open(format!("/proc/self/fdinfo/{}", inotify.as_fd().as_raw_fd()))?;
    let mut watches = BTreeSet::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let watch = line.strip_prefix("inotify wd:").and_then(|rest| rest.split(' ').next());
        watches.extend(watch.and_then(|watch| Watch::from_str_radix(watch, 16).ok()));
    }
    Ok(watches)
}
