//! What the kernel says of containers by their control groups, where the node has version 2 of them
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html>): that it killed something of one for want of memory, and that
//! nothing runs in one any more.
//!
//! `/proc` of other users is not there for podsecd: whose a group is, its name says. podman, crun and CRI-O make the names;
//! a user may make any in what is its own, and tells of its own containers only.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::files::Files;
use super::records::is_id;
use crate::watch::tree::{Change, Entry, Event, Interest, News, Scope, Trees};

/// How many processes were killed in a group and those below it, and the like.
const MEMORY: &str = "memory.events";
/// Whether there are processes in it.
const EVENTS: &str = "cgroup.events";
/// More bytes is none of them.
pub(super) const MAX_BYTES: usize = 1024;
/// What a container's group is called before and after its id: by podman with systemd and without, by podman in a unit that
/// has a group of its own, by CRI-O with systemd and without.
const NAMES: [(&str, &str); 5] =
    [("libpod-", ".scope"), ("libpod-", ""), ("libpod-payload-", ""), ("crio-", ".scope"), ("crio-", "")];
/// A user who makes more groups has none of them watched: the watches are needed for files.
const MAX_GROUPS: usize = 8192;
/// After so many groups went all are walked: the kernel does not say of the watch of a group that went that it is of no use.
const MAX_REMOVED: usize = 256;
/// All are walked no more often.
const PAUSE: Duration = Duration::from_secs(2);
/// So often it is read what happened until an exit code is told.
const MAX_TURNS: usize = 16;
/// So many containers are remembered.
const MAX_KNOWN: usize = 4096;

/// The control groups of a user's containers.
pub(super) struct Groups {
    files: Arc<Files>,
    trees: Trees,
    /// Those that were seen, by the containers' ids.
    known: HashMap<String, Group>,
    /// Events were lost, or not understood.
    is_doubted: bool,
    /// There are watches to give back.
    is_untidy: bool,
    /// All are walked again no sooner.
    pause: Instant,
    /// How many went since the last walk, and its number.
    removed: usize,
    walk: u64,
}

/// A container's group.
#[derive(Debug)]
struct Group {
    /// Below the directory of all groups.
    path: PathBuf,
    /// Something runs in it.
    is_populated: bool,
    /// The kernel killed something in it for want of memory.
    is_killed: bool,
}

impl Groups {
    /// Watches. `None`: the node has no such groups.
    pub(super) fn open(files: &Arc<Files>) -> io::Result<Option<Groups>> {
        let Some(base) = files.groups_base()? else { return Ok(None) };
        let places = files.group_places();
        // The user's own comes when it logs in, and goes when it logs out: those above it are always there.
        let scope = Scope::new([Path::new("/")], places.iter().map(PathBuf::as_path));
        let mut trees = Trees::new(base, Interest::NONE)?;
        trees.add(0, Path::new(""), Arc::new(scope));
        trees.walk(0, News::All, 1)?;
        let files = Arc::clone(files);
        Ok(Some(Groups {
            files,
            trees,
            known: HashMap::new(),
            is_doubted: false,
            is_untidy: false,
            pause: Instant::now(),
            removed: 0,
            walk: 1,
        }))
    }

    /// Forgets the others.
    pub(super) fn forget_others(&mut self, is_known: impl Fn(&str) -> bool) {
        self.known.retain(|container, group| group.is_populated || is_known(container));
    }

    /// Waits for something to happen, and adds the containers in whose groups nothing runs any more.
    ///
    /// # Errors
    /// Those of read(2); there are too many.
    pub(super) async fn tell(&mut self, emptied: &mut Vec<String>) -> io::Result<()> {
        if self.is_untidy {
            self.is_untidy = self.trees.tidy();
        }
        let is_due = self.is_doubted || self.removed > MAX_REMOVED;
        let pause = self.pause.saturating_duration_since(Instant::now());
        if is_due && pause.is_zero() && !self.trees.is_walking() {
            (self.is_doubted, self.removed) = (false, 0);
            self.pause = Instant::now() + PAUSE;
            self.walk += 1;
            self.trees.walk(0, News::All, self.walk)?;
        }
        let Groups { files, trees, known, is_doubted, removed, .. } = self;
        let (mut is_walked, mut lacks) = (false, None);
        let mut tell = |event: Event<'_>| match event {
            Event::Changed(entry) => {
                *removed += usize::from(entry.is_directory && is_gone(entry.change));
                emptied.extend(note(&entry, files, known));
            }
            Event::Lost | Event::Untold(_) | Event::Doubted(_) | Event::Gone(_) => *is_doubted = true,
            Event::Walked(..) => is_walked = true,
            Event::Uncovered(_, uncovered) => lacks = Some(uncovered.why),
        };
        tokio::select! {
            told = trees.tell(&mut tell) => told?,
            () = sleep(pause), if is_due && !pause.is_zero() => {}
        }
        if is_walked {
            self.is_untidy = true;
            let populated = self.known.iter().filter(|(_, group)| group.is_populated).map(|(id, _)| id.clone());
            let lost: Vec<_> = populated.filter(|container| !self.is_populated(container)).collect();
            for container in lost {
                self.known.get_mut(&container).into_iter().for_each(|group| group.is_populated = false);
                emptied.push(container);
            }
        }
        if let Some(why) = lacks {
            return Err(io::Error::other(why));
        }
        if self.trees.count() > MAX_GROUPS { Err(io::Error::other("too many control groups")) } else { Ok(()) }
    }

    /// Takes in what happened until now; waits for nothing, and for nobody who goes on and on.
    pub(super) fn catch_up(&mut self, emptied: &mut Vec<String>) -> io::Result<()> {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..MAX_TURNS {
            match pin!(self.tell(emptied)).poll(&mut context) {
                Poll::Ready(told) => told?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// A container was started: what is said of its group is of this time.
    pub(super) fn begin(&mut self, container: &str) {
        let is_killed = self.read(container, MEMORY).map(|text| is_killed(&text));
        if let Some((group, is_killed)) = self.known.get_mut(container).zip(is_killed) {
            group.is_killed = is_killed;
        }
    }

    /// Whether the kernel killed something of a container for want of memory; it is said once.
    pub(super) fn take_killed(&mut self, container: &str) -> bool {
        let is_killed_now = self.read(container, MEMORY).is_some_and(|text| is_killed(&text));
        self.known.get_mut(container).is_some_and(|group| std::mem::take(&mut group.is_killed)) || is_killed_now
    }

    /// Whether something was seen to run in a container's group.
    pub(super) fn has_run(&self, container: &str) -> bool {
        self.known.contains_key(container)
    }

    /// Whether something runs in a container's group now.
    pub(super) fn is_populated(&self, container: &str) -> bool {
        self.read(container, EVENTS).is_some_and(|text| is_populated(&text))
    }

    fn read(&self, container: &str, name: &str) -> Option<Vec<u8>> {
        self.files.read_group(&self.known.get(container)?.path.join(name))
    }
}

/// Takes in what happened to an entry. Answers in whose group nothing runs any more.
fn note(entry: &Entry<'_>, files: &Files, known: &mut HashMap<String, Group>) -> Option<String> {
    let (directory, name) = (std::str::from_utf8(entry.directory).ok()?, std::str::from_utf8(entry.name).ok()?);
    if entry.is_directory {
        // What is below another container's is not its own.
        let container = container(name).filter(|_| directory.split('/').all(|name| container(name).is_none()))?;
        let group = known.get_mut(container).filter(|_| is_gone(entry.change))?;
        return std::mem::take(&mut group.is_populated).then(|| container.to_owned());
    }
    if is_gone(entry.change) || ![MEMORY, EVENTS].contains(&name) {
        return None;
    }
    let (path, container) = group(directory)?;
    // By its path: that a group went is no reason to walk all of them.
    let text = files.read_group(&Path::new(directory).join(name))?;
    if name == MEMORY {
        if is_killed(&text) {
            remember(known, container, path)?.is_killed = true;
        }
        return None;
    }
    // The kernel says of a group what holds of those below it, too.
    if path.len() < directory.len() {
        return None;
    }
    if is_populated(&text) {
        remember(known, container, path)?.is_populated = true;
        return None;
    }
    let is_news = known.get_mut(container).is_some_and(|group| std::mem::take(&mut group.is_populated));
    is_news.then(|| container.to_owned())
}

fn remember<'k>(known: &'k mut HashMap<String, Group>, container: &str, path: &str) -> Option<&'k mut Group> {
    if known.len() >= MAX_KNOWN && !known.contains_key(container) {
        known.retain(|_, group| group.is_populated);
        if known.len() >= MAX_KNOWN {
            return None;
        }
    }
    let path = PathBuf::from(path);
    let group = known.entry(container.to_owned());
    let group = group.or_insert_with(|| Group { path: PathBuf::new(), is_populated: false, is_killed: false });
    group.path = path;
    Some(group)
}

fn is_gone(change: Change) -> bool {
    matches!(change, Change::Removed | Change::MovedFrom | Change::Lacking)
}

/// The path of the container's group in which a directory is, or that it is, and whose it is.
fn group(directory: &str) -> Option<(&str, &str)> {
    let mut end = 0;
    for name in directory.split('/') {
        end += name.len();
        if let Some(container) = container(name) {
            return Some((&directory[..end], container));
        }
        end += 1;
    }
    None
}

/// The container whose group is called so.
fn container(name: &str) -> Option<&str> {
    NAMES.iter().find_map(|(before, after)| {
        let container = name.strip_prefix(before)?.strip_suffix(after)?;
        is_id(container).then_some(container)
    })
}

/// Whether `memory.events` says that the kernel killed something.
fn is_killed(text: &[u8]) -> bool {
    value(text, "oom_kill").is_some_and(|count| count > 0)
}

/// Whether `cgroup.events` says that there are processes.
fn is_populated(text: &[u8]) -> bool {
    value(text, "populated") == Some(1)
}

/// The value of a key: a flat keyed file has one a line.
fn value(text: &[u8], key: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_of_the_container_that_its_name_says() {
        let id = "c".repeat(64);
        let scope = "user.slice/user-1000.slice/user@1000.service/user.slice";
        for (path, expected) in [
            (format!("{scope}/libpod-{id}.scope"), true),
            (format!("{scope}/libpod-{id}.scope/container"), true),
            (format!("{scope}/user-libpod_pod_1.slice/libpod-{id}.scope/container/init.scope"), true),
            (format!("libpod_parent/libpod-{id}"), true),
            (format!("{scope}/web.service/libpod-payload-{id}"), true),
            (format!("{scope}/u7s.service/kubepods/crio-{id}"), true),
            (format!("{scope}/crio-{id}.scope"), true),
            (format!("{scope}/libpod-conmon-{id}.scope"), false),
            (format!("{scope}/crio-conmon-{id}"), false),
            (format!("{scope}/podman-4711.scope"), false),
            (format!("{scope}/libpod-{id}.slice"), false),
            (format!("{scope}/libpod-../{id}"), false),
            (String::new(), false),
        ] {
            let found = group(&path).map(|(path, container)| (path.contains(&id), container.to_owned()));
            assert_eq!(found, expected.then(|| (true, id.clone())), "{path}");
        }
        let inner = format!("{scope}/libpod-{id}.scope/libpod-{}.scope", "d".repeat(64));
        assert_eq!(group(&inner).map(|(_, container)| container), Some(&*id), "who is in one may make any in it");
    }

    #[test]
    fn the_kernels_files_say_whether_it_killed_something_and_whether_something_runs() {
        let memory = |kills: &str| format!("low 0\nhigh 0\nmax 12\noom 3\noom_kill {kills}\noom_group_kill 0\n");
        assert!(is_killed(memory("2").as_bytes()));
        for text in [&memory("0"), &memory("-1"), &memory("x"), "", "oom_kill", "\0\u{ff}", "oom_group_kill 1\n"] {
            assert!(!is_killed(text.as_bytes()), "{text}");
        }
        assert!(is_populated(b"populated 1\nfrozen 0\n"));
        for text in [&b"populated 0\nfrozen 0\n"[..], b"populated 11\n", b"", b"\xff\n", b"frozen 1\n"] {
            assert!(!is_populated(text));
        }
    }
}
