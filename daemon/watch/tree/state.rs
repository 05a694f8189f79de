//! What is known of the trees, and what events and walks make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::inotify::{self, ReadFlags};
use rustix::io::Errno;

use super::event::{Change, Entry, Event, From, Known, Uncovered};
use super::inherited::Waiting;
use super::look::{self, Look};
use super::nodes::{Moved, Nodes, Parent, Root, Watch};
use super::scope::Place;
use super::stat::Moment;
use super::walk::{self, Batch, Job, News, Task, Walker, is_absent};
use super::{LAG, NO_DESCRIPTORS, NO_WATCHES};

/// More events of watches that nobody has asked for are lost ones.
pub(super) const MAX_EARLY: usize = 16 << 10;
/// To look for what was moved away takes a look at everything: of each second so much at most.
const SHARE: u32 = 10;
/// More of it does not wait.
const MAX_MOVED: usize = 256;
/// More are not remembered while walks are under way.
const MAX_DEPARTED: usize = 4096;
/// More directories in which something was not found are not walked one by one.
const MAX_MISSED: usize = 256;

#[derive(Debug)]
pub(super) struct State {
    pub(super) nodes: Nodes,
    pub(super) look: Look,
    pub(super) walker: Walker,
    /// How many walks are under way.
    pub(super) walks: usize,
    /// Events of watches that are not known yet: a walk has just added them.
    pub(super) early: Vec<(Raw, CString)>,
    /// What was moved from where, if it is not known yet whereto.
    pub(super) moving: Vec<Moving>,
    /// Directories that were moved away, and are not sought yet.
    pub(super) moved: Vec<Moved>,
    /// Those that were sought while walks are under way, which may have found them before.
    pub(super) departed: Vec<Moved>,
    /// Trees of which all was seen that is there, and since which turn.
    pub(super) unseen: BTreeMap<Root, u8>,
    /// Trees in which so much was moved at once that nobody knows where all of it is.
    pub(super) doubted: BTreeSet<Root>,
    /// When they may be.
    pub(super) detached: Instant,
    /// All that happened before this moment was told.
    pub(super) drained: Moment,
    /// What waited in an instance that somebody had before.
    pub(super) waiting: Option<Waiting>,
    /// That is being told: where everything is by now is known from a walk.
    pub(super) is_past: bool,
    /// So much of it was in directories of which nothing is known.
    pub(super) untold: usize,
    /// Watches that somebody had before, of which it is still to be seen whether they are of use.
    pub(super) leftover: Vec<Watch>,
    /// Kept, so that it need not be made for each event.
    pub(super) path: Vec<u8>,
}

/// An event as inotify has it, but for the name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) watch: Watch,
    pub(super) flags: ReadFlags,
    pub(super) cookie: u32,
}

impl Raw {
    /// There were more than could wait.
    pub(super) const OVERFLOW: Raw = Raw { watch: -1, flags: ReadFlags::QUEUE_OVERFLOW, cookie: 0 };

    pub(super) fn of(event: &inotify::Event<'_>) -> Raw {
        Raw { watch: event.wd(), flags: event.events(), cookie: event.cookie() }
    }

    /// Whether it is the last one of its watch.
    pub(super) fn is_end(self) -> bool {
        self.flags.contains(ReadFlags::IGNORED)
    }

    pub(super) fn is_removal_of_directory(self) -> bool {
        self.flags.contains(ReadFlags::DELETE | ReadFlags::ISDIR)
    }

    /// Whether it says that there were more than could wait.
    pub(super) fn is_overflow(self) -> bool {
        self.flags.contains(ReadFlags::QUEUE_OVERFLOW)
    }
}

/// What was moved from where, if it is not known yet whereto.
#[derive(Debug)]
pub(super) struct Moving {
    cookie: u32,
    is_directory: bool,
    from: Moved,
}

impl Look {
    /// To walk a tree in that turn, or a part of it.
    pub(super) fn task(&self, known: &look::Known, root: Root, news: News, (number, turn): (u64, u8)) -> Arc<Task> {
        Arc::new(Task::new(root, number, turn, Arc::clone(&known.scope), news, self.mount))
    }
}

impl State {
    /// Takes in an event.
    pub(super) fn note(&mut self, event: Raw, name: &CStr, tell: &mut impl FnMut(Event<'_>)) {
        let watch = event.watch;
        if event.is_overflow() {
            self.moving.clear();
            self.lose(tell);
            return;
        }
        // What waits was before, and needs to know where everything was.
        if self.waiting.is_some() && self.walks > 0 {
            self.keep_early(event, name, tell);
            return;
        }
        if event.is_end() {
            self.look.opened.take_if(|(opened, _)| *opened == watch);
            match self.nodes.remove(watch) {
                Some(Parent::Root(root)) if self.look.roots.contains_key(&root) => tell(Event::Gone(root)),
                None if self.walks > 0 => self.keep_early(event, name, tell),
                _ => {}
            }
            return;
        }
        let mut path = std::mem::take(&mut self.path);
        match self.nodes.path(watch, &mut path) {
            Some(root) => self.note_entry(root, &path, event, name, tell),
            None if self.walks > 0 => self.keep_early(event, name, tell),
            // It was moved away. It is gone already if the directory is.
            None => {
                self.untold += usize::from(self.is_past);
                if inotify::remove_watch(&self.look.inotify, watch).is_err() {
                    self.nodes.remove(watch);
                }
            }
        }
        self.path = path;
    }

    /// A walk may have just added the watch: what it found is not taken in yet.
    fn keep_early(&mut self, event: Raw, name: &CStr, tell: &mut impl FnMut(Event<'_>)) {
        if self.early.len() < MAX_EARLY {
            self.early.push((event, name.into()));
        } else {
            self.lose(tell);
        }
    }

    /// Events were lost.
    fn lose(&mut self, tell: &mut impl FnMut(Event<'_>)) {
        self.waiting.iter_mut().for_each(Waiting::lose);
        tell(Event::Lost);
    }

    /// Takes in an event of a directory that is there.
    fn note_entry(
        &mut self,
        root: Root,
        path: &[u8],
        Raw { watch, flags, cookie }: Raw,
        name: &CStr,
        tell: &mut impl FnMut(Event<'_>),
    ) {
        let Some(known) = self.look.roots.get(&root) else { return };
        let place = known.scope.child(known.scope.find(path), name.to_bytes());
        let is_directory = flags.contains(ReadFlags::ISDIR);
        let is_itself = name.is_empty();
        let mut from = None;
        let mut change = None;
        if is_itself {
            if path.is_empty() && flags.contains(ReadFlags::MOVE_SELF) {
                tell(Event::Gone(root));
            } else if path.is_empty() && flags.contains(ReadFlags::ATTRIB) {
                change = Some(Change::Attributes);
            }
        } else if flags.contains(ReadFlags::CREATE) {
            change = Some(Change::Created);
        } else if flags.contains(ReadFlags::MOVED_TO) {
            let at = self.moving.iter().position(|moving| moving.cookie == cookie);
            from = at.map(|at| self.moving.swap_remove(at));
            change = Some(Change::MovedTo(match &from {
                None => From::Elsewhere,
                Some(moving) if moving.from.parent == watch => From::Within,
                Some(_) => From::Watched,
            }));
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            change = Some(Change::MovedFrom);
            let from = Moved { parent: watch, name: name.to_bytes().into(), last: self.nodes.last() };
            self.moving.push(Moving { cookie, is_directory, from });
            if self.moving.len() > MAX_MOVED && !self.is_past {
                // What came of the oldest one is still to be told, or never.
                let oldest = self.moving.remove(0);
                if oldest.is_directory {
                    self.moved.push(oldest.from);
                    self.doubted.insert(root);
                }
            }
        } else if flags.contains(ReadFlags::DELETE) {
            change = Some(Change::Removed);
        } else if flags.intersects(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE) {
            change = Some(Change::Written);
        } else if flags.contains(ReadFlags::ATTRIB) {
            change = Some(Change::Attributes);
        }
        let Some(change) = change.filter(|_| place.leads_on()) else { return };
        if place.is_wanted() {
            let known = match change {
                Change::MovedFrom | Change::Removed => Known::Stat(None),
                _ => Known::Look(&mut self.look, watch),
            };
            tell(Event::Changed(Entry {
                root,
                directory: path,
                name: name.to_bytes(),
                change,
                is_directory,
                walk: 0,
                known,
            }));
        }
        if is_directory && matches!(change, Change::Created | Change::MovedTo(_)) && !self.is_past {
            let from = from.map(|moving| moving.from);
            self.enter(root, (watch, path), name, (place, from), tell);
        }
    }

    /// Watches a directory that came, and walks it, if it is not watched already: then it was only moved.
    fn enter(
        &mut self,
        root: Root,
        (above, path): (Watch, &[u8]),
        name: &CStr,
        (place, from): (Place, Option<Moved>),
        tell: &mut impl FnMut(Event<'_>),
    ) {
        let Some(known) = self.look.roots.get(&root) else { return };
        let (mount, task) = (self.look.mount, self.look.task(known, root, News::All, (0, 0)));
        let inotify = Arc::clone(&self.look.inotify);
        if depth(path) >= walk::MAX_DEPTH {
            let named = vec![join(path, name.to_bytes())];
            tell(Event::Uncovered(root, Uncovered { count: 1, named, why: reason(Errno::NAMETOOLONG) }));
            return;
        }
        let watched = self
            .look
            .open(root, above, path)
            .and_then(|directory| walk::watch(&inotify, directory.as_fd(), name, mount));
        let watched = match watched {
            Ok(watched) => watched,
            Err(errno) if is_absent(errno) => {
                // It went on, to where an event may tell or not.
                if let Some(from) = from {
                    self.moved.push(from);
                    self.doubted.insert(root);
                }
                return;
            }
            Err(errno) => {
                let named = vec![join(path, name.to_bytes())];
                tell(Event::Uncovered(root, Uncovered { count: 1, named, why: reason(errno) }));
                if errno == Errno::NOSPC {
                    self.look_through(&task, (above, path), name, place);
                }
                return;
            }
        };
        let is_new = from.is_none();
        // Another one may be there by now.
        let is_other =
            |from: &Moved| self.nodes.is_at(watched.1, Parent::Directory(from.parent), &from.name) != Some(true);
        if let Some(from) = from.filter(is_other) {
            self.moved.push(from);
            self.doubted.insert(root);
        }
        // What had the name before must not be taken for this.
        let has_been = |moved: &Moved| moved.parent == above && *moved.name == *name.to_bytes();
        let at = self.moving.iter().position(|moving| has_been(&moving.from));
        self.moved.extend(at.map(|at| self.moving.swap_remove(at).from));
        if self.moved.iter().any(has_been) {
            self.detach();
        }
        let was_there = self.nodes.path(watched.1, &mut Vec::new()).is_some();
        if was_there && is_new && self.nodes.is_at(watched.1, Parent::Directory(above), name.to_bytes()) == Some(false)
        {
            // What was made was moved on, and this came to its place.
            self.doubted.insert(root);
        }
        self.nodes.insert(watched.1, Parent::Directory(above), name.to_bytes());
        if was_there {
            if self.walks > 0 {
                // A walk may see neither where it was nor where it is.
                self.doubted.insert(root);
            }
            return;
        }
        let job = Job::new(&task, watched, place, depth(path).saturating_add(1));
        match self.walker.walk(&task, job) {
            Ok(()) => self.walks += 1,
            Err(error) => {
                let named = vec![join(path, name.to_bytes())];
                tell(Event::Uncovered(root, Uncovered { count: 1, named, why: error.to_string() }));
            }
        }
    }

    /// Walks a directory that came and for which there is no watch.
    fn look_through(&mut self, task: &Arc<Task>, (above, path): (Watch, &[u8]), name: &CStr, place: Place) {
        let (root, mount) = (task.root, self.look.mount);
        let Ok(directory) = self.look.open(root, above, path) else { return };
        let Ok(opened) = walk::open(directory.as_fd(), name, mount) else { return };
        let job = Job::unwatched(task, opened, (above, name.to_bytes().into()), place, depth(path).saturating_add(1));
        self.walks += usize::from(self.walker.walk(task, job).is_ok());
    }

    /// There is nothing more to read: what has not come anywhere was moved away.
    pub(super) fn settle(&mut self, beginning: Option<SystemTime>, tell: &mut impl FnMut(Event<'_>)) {
        let gone = self.moving.drain(..).filter(|moving| moving.is_directory);
        self.moved.extend(gone.map(|moving| moving.from));
        let is_urgent = self.moved.len() >= MAX_MOVED || !self.look.missed.is_empty();
        if !self.moved.is_empty() && (is_urgent || self.detached <= Instant::now()) {
            self.detach();
        }
        if self.departed.len() > MAX_DEPARTED {
            self.departed.clear();
            tell(Event::Lost);
        }
        if self.walks > 0 {
            return;
        }
        self.departed.clear();
        self.give_back();
        let missed = std::mem::take(&mut self.look.missed);
        if missed.len() > MAX_MISSED {
            tell(Event::Lost);
        } else {
            missed.into_iter().for_each(|watch| self.revisit(watch, News::Since(self.drained)));
        }
        std::mem::take(&mut self.doubted).into_iter().for_each(|root| tell(Event::Doubted(root)));
        if let Some(beginning) = beginning {
            self.drained = Moment::at(beginning).before(LAG);
        }
    }

    /// Walks a directory once more: something was not found in it, and what happened to it is known by now; or nobody watched
    /// it before.
    fn revisit(&mut self, watch: Watch, news: News) {
        let mut path = Vec::new();
        let Some(root) = self.nodes.path(watch, &mut path) else { return };
        let Some(known) = self.look.roots.get(&root) else { return };
        if news != News::All {
            self.doubted.insert(root);
        }
        let (task, place) = (self.look.task(known, root, news, (0, 0)), known.scope.find(&path));
        let (inotify, mount) = (Arc::clone(&self.look.inotify), self.look.mount);
        // If it is not there again, it is missed again.
        let Ok(directory) = self.look.open(root, watch, &path) else { return };
        let Ok(watched) = walk::watch(&inotify, directory.as_fd(), c".", mount) else { return };
        let job = Job::new(&task, watched, place, depth(&path));
        self.walks += usize::from(self.walker.walk(&task, job).is_ok());
    }

    fn detach(&mut self) {
        let beginning = Instant::now();
        self.nodes.detach(&self.moved);
        self.departed.append(&mut self.moved);
        self.detached = Instant::now() + SHARE * beginning.elapsed().max(Duration::from_micros(10));
    }

    /// Whether what a walk found contradicts what events told.
    fn is_stale(&self, watch: Watch, parent: Parent, name: &[u8]) -> bool {
        self.nodes.is_at(watch, parent, name) == Some(false)
            || self.moved.iter().chain(&self.departed).any(|moved| moved.may_be(watch, parent, name))
    }

    /// Whether a directory is where a walk found it.
    fn is_there(&mut self, root: Root, watch: Watch, parent: Parent, name: &[u8]) -> bool {
        let (mut path, inotify, mount) = (Vec::new(), Arc::clone(&self.look.inotify), self.look.mount);
        let Parent::Directory(above) = parent else { return true };
        if self.nodes.path(above, &mut path) != Some(root) {
            return false;
        }
        let (Ok(directory), Ok(name)) = (self.look.open(root, above, &path), CString::new(name)) else { return false };
        walk::watch(&inotify, directory.as_fd(), &name, mount).is_ok_and(|(_, found, _)| found == watch)
    }

    /// Takes in what a walk found.
    pub(super) fn take_in(&mut self, batch: Batch, tell: &mut impl FnMut(Event<'_>)) {
        let mut start = 0;
        let (root, mut unknown) = (batch.task.root, Vec::new());
        let is_later = batch.task.news != News::All && self.look.roots.get(&root).is_some_and(|known| known.is_walked);
        for (watch, parent, end) in batch.nodes {
            let name = &batch.names[start..end];
            start = end;
            // Since the walk was there, it may have been moved, which was told before.
            if self.is_stale(watch, parent, name) {
                self.doubted.insert(root);
                if !self.is_there(root, watch, parent, name) {
                    continue;
                }
            }
            // What a later walk finds unwatched may have come from elsewhere: all in it is news.
            if is_later && self.nodes.is_at(watch, parent, name).is_none() {
                unknown.push(watch);
            }
            self.nodes.insert(watch, parent, name);
        }
        let walk = batch.task.number;
        if self.look.roots.contains_key(&root) {
            let mut path = std::mem::take(&mut self.path);
            for found in batch.found {
                if self.waiting.as_ref().is_some_and(|waiting| waiting.tells(&found, &batch.task)) {
                    continue;
                }
                if self.nodes.path(found.watch, &mut path) != Some(root) {
                    continue;
                }
                let is_watched = found.watch > 0 && found.below.is_empty();
                if !found.below.is_empty() && !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&found.below);
                let (change, name, stat) = match found.entry {
                    None => (Change::Lacking, Box::default(), None),
                    Some((name, stat)) if batch.task.news == News::All => (Change::Created, name, Some(stat)),
                    Some((name, stat)) if !found.is_news => (Change::Seen, name, Some(stat)),
                    Some((name, stat)) => (Change::Found { is_new: batch.task.is_new(&stat) }, name, Some(stat)),
                };
                let is_directory = stat.is_none_or(|stat| stat.kind() == rustix::fs::FileType::Directory);
                let known =
                    if is_watched { Known::Found(stat, &mut self.look, found.watch) } else { Known::Stat(stat) };
                tell(Event::Changed(Entry { root, directory: &path, name: &name, change, is_directory, walk, known }));
            }
            if let Some(why) = batch.uncovered.why {
                let path_of =
                    |(above, name): &(Watch, Box<[u8]>)| self.nodes.path(*above, &mut path).map(|_| join(&path, name));
                let named = batch.uncovered.named.iter().filter_map(path_of).collect();
                let uncovered = Uncovered { count: batch.uncovered.count, named, why: reason(why) };
                tell(Event::Uncovered(root, uncovered));
            }
            self.path = path;
        }
        for watch in unknown {
            self.revisit(watch, News::All);
        }
        if batch.is_last {
            self.walks -= 1;
            if batch.task.number != 0 {
                // What there was no watch for did not come from elsewhere if there is one later.
                let is_walked = !batch.task.was_short();
                self.look.roots.get_mut(&root).into_iter().for_each(|known| known.is_walked = is_walked);
                if batch.task.has_seen_all() && !self.doubted.contains(&root) {
                    self.unseen.insert(root, batch.task.turn);
                }
            }
            if self.walks == 0 {
                let mut unseen = std::mem::take(&mut self.unseen);
                unseen.retain(|root, _| !self.doubted.contains(root));
                self.nodes.detach_unseen(&unseen);
                self.tell_past(tell);
                for (event, name) in std::mem::take(&mut self.early) {
                    self.note(event, &name, tell);
                }
                self.settle(None, tell);
            }
            if batch.task.number != 0 {
                tell(Event::Walked(root, batch.task.number));
            }
        }
    }
}

/// Why something is not watched, and what helps.
fn reason(errno: Errno) -> String {
    match errno {
        Errno::NOSPC => NO_WATCHES.to_owned(),
        Errno::MFILE | Errno::NFILE => NO_DESCRIPTORS.to_owned(),
        Errno::NAMETOOLONG => format!("they are nested more than {} levels deep", walk::MAX_DEPTH),
        Errno::XDEV => "they are on another file system that is mounted there".to_owned(),
        errno => errno.to_string(),
    }
}

/// The same for an error of [`Trees::walk`](super::Trees::walk).
pub fn why(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| reason(Errno::from_raw_os_error(errno)))
}

/// How many directories lead there.
fn depth(path: &[u8]) -> u16 {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    u16::try_from(names.count()).unwrap_or(u16::MAX)
}

pub(super) fn join(path: &[u8], name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path)).join(OsStr::from_bytes(name))
}
