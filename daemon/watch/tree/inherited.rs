//! An inotify instance that another process had before: its watches go on, and what happened while nobody read it waits there.
//!
//! Of the same inode the kernel answers with the same watch. So the walk that a tree begins with finds out which watch is of
//! which directory, and then it is told what waited. That walk finds most of it, too: what is told by what waited, or was told
//! by whoever had the instance, it does not tell again.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use rustix::fs::inotify::{self, ReadFlags};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, readlink};
use rustix::io::Errno;

use super::nodes::Watch;
use super::stat::Moment;
use super::state::{MAX_EARLY, Raw};
use super::walk::{Found, Task};
use super::{BUFFER, LAG};

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
    pub(super) events: Vec<(Raw, Box<CStr>)>,
    heard: HashMap<Watch, Heard>,
    /// The watches that there were.
    pub(super) watches: BTreeSet<Watch>,
    /// If all was told that had been read from it, when that was the case.
    told: Option<Moment>,
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
    /// Reads what waits in it; all before `since` was told, and before `told`, if that is known, all that was read from it.
    /// `None`: it is no instance of inotify.
    ///
    /// # Errors
    /// Those of read(2), and of open(2) for /proc.
    pub fn read(inotify: OwnedFd, since: Moment, told: Option<Moment>) -> io::Result<Option<Inherited>> {
        if !is_inotify(inotify.as_fd()) {
            return Ok(None);
        }
        let waiting = Waiting::read(&inotify, told)?;
        Ok(Some(Inherited { inotify, since, waiting }))
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
    fn read(inotify: &OwnedFd, told: Option<Moment>) -> io::Result<Waiting> {
        let (mut events, mut heard) = (Vec::new(), HashMap::<Watch, Heard>::new());
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let watches = watches(inotify)?;
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut is_all = false;
        // More than wait by default; the rest, if there is some, comes later.
        while events.len() < MAX_EARLY {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => {
                    is_all = true;
                    break;
                }
                Err(errno) => return Err(errno.into()),
            };
            let (raw, name) = (Raw::of(&event), event.file_name().unwrap_or_default());
            heard.entry(event.wd()).or_default().note(event.events(), name.to_bytes());
            events.push((raw, name.into()));
        }
        while !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            events.push((Raw::of(&event), event.file_name().unwrap_or_default().into()));
        }
        let is_lost = events.iter().any(|(raw, _)| raw.is_overflow());
        if !is_all || is_lost {
            // What was lost is only found by walks.
            heard.clear();
        }
        let read = Moment::at(SystemTime::now() + LAG);
        Ok(Waiting { events, heard, watches, told: told.filter(|_| is_all && !is_lost), read })
    }

    /// Directories that were removed meanwhile: their watches, those of the directories in which they were, and their names. The
    /// kernel says of a watch that it ended just before it says that the directory was removed; who removes others at the same
    /// moment may have what was in one told as if it was in the other.
    pub(super) fn removed(&self) -> impl Iterator<Item = (Watch, Watch, &[u8])> {
        self.events.windows(2).filter_map(|pair| {
            let [(ended, _), (removed, name)] = pair else { return None };
            let is_pair = ended.is_end() && removed.is_removal_of_directory();
            is_pair.then(|| (ended.watch(), removed.watch(), name.to_bytes()))
        })
    }

    /// Whether what a walk found is told otherwise, or was.
    pub(super) fn tells(&self, found: &Found, task: &Task) -> bool {
        if !found.is_news || !found.below.is_empty() || !self.watches.contains(&found.watch) {
            return false;
        }
        let heard = self.heard.get(&found.watch);
        match &found.entry {
            Some((name, stat)) => {
                let is_directory = stat.kind() == FileType::Directory;
                let came = heard.and_then(|heard| heard.names.get(name));
                // That a file was made may have been read, and not been told.
                came.is_some_and(|came| *came || is_directory || self.told.is_some() || !task.is_new(stat))
                    // Of a directory all but what is in it is told with its name.
                    || self.told.is_some() && is_directory && !task.is_new(stat)
                    || self.told.is_some_and(|told| stat.changed < told)
                    || stat.changed > self.read
            }
            None => match heard {
                Some(Heard { has_lost_directory: true, .. }) => false,
                Some(Heard { names, .. }) if !names.is_empty() => true,
                _ => self.told.is_some(),
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
