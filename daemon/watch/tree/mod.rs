//! Watches whole trees, whatever happens in them: inotify(7), with an instance of its own, so that nobody else can make its
//! events get lost.
//!
//! A directory is watched first and read then; those that come later likewise. Of each it is known where it is now, also after
//! directories above it were moved. What the kernel does not tell, [`Trees::walk`] finds: by the time at which an inode
//! changed, which nobody can set.

mod event;
mod look;
mod nodes;
mod scope;
mod stat;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use self::event::Known;
use self::look::Look;
use self::nodes::{Nodes, Parent, Watch};
use self::walk::{Batch, Job, Task, Walker, is_absent};
use super::open::{Directory, descend, proc_path};

pub use self::event::{Change, Entry, Event, From, Uncovered};
pub use self::nodes::Root;
pub use self::scope::{Place, Scope};
pub use self::stat::{Mark, Moment, Stat};
pub use self::walk::News;

/// How much is read of what changed, in bytes.
const BUFFER: usize = 64 << 10;
/// So many events are read before others have their turn.
const TURN: usize = 512;
/// More events of watches that nobody has asked for are lost ones.
const MAX_EARLY: usize = 16 << 10;
/// So many batches of what a walk found wait.
const MAX_BATCHES: usize = 4;
/// To look for what was moved away takes a look at everything: of each second so much at most.
const SHARE: u32 = 10;
/// More of it does not wait.
const MAX_MOVED: usize = 256;
/// More are not remembered while walks are under way.
const MAX_DEPARTED: usize = 4096;
/// More directories in which something was not found are not walked one by one.
const MAX_MISSED: usize = 256;
/// So much the time of an inode may lag behind the clock: a tick of the kernel is 10 ms at most.
const LAG: Duration = Duration::from_millis(20);

/// Why something is not watched if there are not enough watches.
pub const NO_WATCHES: &str = "there are no watches left: raise fs.inotify.max_user_watches (sysctl)";

/// Why something is not watched that could not be opened.
pub const NO_DESCRIPTORS: &str = "too many files are open: raise LimitNOFILE= of podsecd.service";

/// Trees that are watched.
#[derive(Debug)]
pub struct Trees {
    inotify: AsyncFd<Arc<OwnedFd>>,
    buffer: Box<[MaybeUninit<u8>]>,
    batches: mpsc::Receiver<Batch>,
    state: State,
}

#[derive(Debug)]
struct State {
    nodes: Nodes,
    look: Look,
    walker: Walker,
    /// How many walks are under way.
    walks: usize,
    /// Events of watches that are not known yet: a walk has just added them.
    early: Vec<(Watch, ReadFlags, u32, Box<CStr>)>,
    /// What was moved from where, if it is not known yet whereto.
    moving: Vec<Moving>,
    /// Directories that were moved away, and are not sought yet.
    moved: Vec<(Watch, Box<[u8]>, Watch)>,
    /// Those that were sought while walks are under way, which may have found them before.
    departed: Vec<(Watch, Box<[u8]>, Watch)>,
    /// Trees of which all was seen that is there, and since which turn.
    unseen: BTreeMap<Root, u8>,
    /// Trees in which so much was moved at once that nobody knows where all of it is.
    doubted: BTreeSet<Root>,
    /// When they may be.
    detached: Instant,
    /// All that happened before this moment was told.
    drained: Moment,
    /// Kept, so that it need not be made for each event.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Moving {
    cookie: u32,
    watch: Watch,
    name: Box<[u8]>,
    is_directory: bool,
    /// The last watch at that time.
    last: Watch,
}

impl Trees {
    /// Watches nothing yet; the roots will be below `base`. To be called within a tokio runtime. Of files it is told which of the `marks` they have, of eight
    /// at most.
    ///
    /// A file that `is_precious` is told whenever it may have come with a directory from elsewhere.
    /// Directories of a root whose names are `is_first` are watched before the others: there may not be watches for all.
    ///
    /// # Errors
    /// Those of statx(2), and of inotify_init1(2): the number of instances per user is limited.
    pub fn new(
        base: Directory,
        marks: &'static [Mark],
        is_first: fn(&[u8]) -> bool,
        is_precious: fn(&Stat) -> bool,
    ) -> io::Result<Trees> {
        let stat = statx(&base, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let (batches_in, batches) = mpsc::channel(MAX_BATCHES);
        let state = State {
            nodes: Nodes::default(),
            look: Look {
                inotify: Arc::clone(&inotify),
                marks,
                base,
                mount: stat.stx_mnt_id,
                roots: BTreeMap::new(),
                missed: BTreeSet::new(),
                opened: None,
            },
            walker: Walker::new(Arc::clone(&inotify), marks, is_first, is_precious, batches_in),
            walks: 0,
            early: Vec::new(),
            moving: Vec::new(),
            moved: Vec::new(),
            departed: Vec::new(),
            unseen: BTreeMap::new(),
            doubted: BTreeSet::new(),
            detached: Instant::now(),
            drained: Moment::at(SystemTime::now()).before(LAG),
            path: Vec::new(),
        };
        #[expect(deprecated, reason = "what takes its place is unsafe; an OwnedFd is owned and does not change")]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Trees { inotify, buffer: vec![MaybeUninit::uninit(); BUFFER].into(), batches, state })
    }

    /// How many directories are watched.
    pub fn len(&self) -> usize {
        self.state.nodes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.state.nodes.is_empty()
    }

    /// Whether a walk is under way.
    pub fn is_walking(&self) -> bool {
        self.state.walks > 0
    }

    /// All that the kernel tells and that happened before this moment was told.
    pub fn drained(&self) -> Moment {
        let (state, now) = (&self.state, Moment::at(SystemTime::now()).before(LAG));
        let is_known = state.walks == 0 && state.moving.is_empty() && state.look.missed.is_empty();
        // Nothing is waiting to be read.
        let is_empty = is_known && rustix::io::ioctl_fionread(self.inotify.get_ref()).is_ok_and(|count| count == 0);
        if is_empty { now } else { state.drained }
    }

    /// Adds a tree, at a path below the base that leads over no link, to be watched from the first [`Trees::walk`] on.
    pub fn add(&mut self, root: Root, path: &Path, scope: Arc<Scope>) {
        self.state
            .look
            .roots
            .insert(root, look::Known { path: path.as_os_str().as_bytes().into(), scope, is_walked: false });
    }

    /// When the root of a tree was made; `None`: it is not there, or its file system does not know.
    pub fn made(&self, root: Root) -> Option<Moment> {
        let look = &self.state.look;
        let root = descend(&look.base, &look.roots.get(&root)?.path, look.mount).ok()?;
        Stat::of(root.as_fd(), b".", &[])?.made
    }

    /// Whether the trees are below that directory, and not below another one that was there before.
    pub fn is_below(&self, directory: &Directory) -> bool {
        self.state.look.base.mount() == directory.mount()
    }

    /// Tells nothing of a tree any more.
    pub fn remove(&mut self, root: Root) {
        self.state.look.roots.remove(&root);
        self.state.look.opened = None;
    }

    /// Gives back the watches of trees that were removed, and of what was moved out of the others. It takes a look at each
    /// directory.
    pub fn tidy(&mut self) {
        let State { nodes, look, walks, .. } = &self.state;
        let mut gone = Vec::new();
        if *walks == 0 {
            for watch in nodes.outside(|root| look.roots.contains_key(&root)) {
                // The kernel says so in the end, and then it is forgotten.
                if inotify::remove_watch(&look.inotify, watch).is_err() {
                    // It said so when nobody could hear it.
                    gone.push(watch);
                }
            }
            for watch in gone {
                self.state.nodes.remove(watch);
            }
        }
    }

    /// Walks a tree: what of it is not watched is watched, what is news is told, and in the end that it is done, with this
    /// number, which is not 0.
    ///
    /// # Errors
    /// Those of open(2) and inotify_add_watch(2) for the root, and of pthread_create(3); `NotFound` if it was not added.
    pub fn walk(&mut self, root: Root, news: News, number: u64) -> io::Result<()> {
        let State { look, nodes, .. } = &mut self.state;
        let inotify = &look.inotify;
        let known = look.roots.get(&root).ok_or(io::ErrorKind::NotFound)?;
        let (place, task) = (known.scope.root(), look.task(known, root, news, (number, nodes.begin_turn())));
        let directory = descend(&look.base, &known.path, look.mount)?;
        let watched = walk::watch(inotify, directory.as_fd(), c".", look.mount)?;
        let also = WatchFlags::MOVE_SELF | WatchFlags::MASK_ADD;
        inotify::add_watch(inotify, proc_path(watched.0.as_fd()), also)?;
        self.state.nodes.insert(watched.1, Parent::Root(root), b"");
        let job = Job::new(&task, watched, place, 0);
        self.state.walker.walk(&task, job)?;
        self.state.walks += 1;
        Ok(())
    }

    /// Waits for something to tell, and tells it; not all at once, so that others have their turn. Answers whether nothing is
    /// left that the kernel had to tell when this was called. Nothing gets lost if it is not waited for.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn tell(&mut self, tell: &mut impl FnMut(Event<'_>)) -> io::Result<bool> {
        let Trees { inotify, buffer, batches, state } = self;
        tokio::select! {
            // What a walk found makes events known.
            biased;
            Some(batch) = batches.recv() => {
                state.take_in(batch, tell);
                Ok(false)
            }
            ready = inotify.readable() => {
                let mut ready = ready?;
                let beginning = SystemTime::now();
                let mut events = inotify::Reader::new(ready.get_inner(), buffer);
                for _ in 0..TURN {
                    match events.next() {
                        Ok(event) => {
                            let name = event.file_name().unwrap_or_default();
                            state.note(event.wd(), event.events(), event.cookie(), name, tell);
                        }
                        Err(Errno::AGAIN) => {
                            ready.clear_ready();
                            state.settle(Some(beginning), tell);
                            return Ok(true);
                        }
                        Err(errno) => return Err(errno.into()),
                    }
                }
                while !events.is_buffer_empty() {
                    let Ok(event) = events.next() else { break };
                    let name = event.file_name().unwrap_or_default();
                    state.note(event.wd(), event.events(), event.cookie(), name, tell);
                }
                Ok(false)
            }
        }
    }
}

impl Moving {
    fn into_moved(self) -> (Watch, Box<[u8]>, Watch) {
        (self.watch, self.name, self.last)
    }
}

impl Look {
    /// To walk a tree in that turn, or a part of it.
    fn task(&self, known: &look::Known, root: Root, news: News, (number, turn): (u64, u8)) -> Arc<Task> {
        Arc::new(Task::new(root, number, turn, Arc::clone(&known.scope), news, self.mount))
    }
}

impl State {
    /// Takes in an event.
    fn note(&mut self, watch: Watch, flags: ReadFlags, cookie: u32, name: &CStr, tell: &mut impl FnMut(Event<'_>)) {
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.moving.clear();
            tell(Event::Lost);
            return;
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.look.opened.take_if(|(opened, _)| *opened == watch);
            match self.nodes.remove(watch) {
                Some(Parent::Root(root)) if self.look.roots.contains_key(&root) => tell(Event::Gone(root)),
                None if self.walks > 0 => self.keep_early(watch, flags, cookie, name, tell),
                _ => {}
            }
            return;
        }
        let mut path = std::mem::take(&mut self.path);
        match self.nodes.path(watch, &mut path) {
            Some(root) => self.note_entry(root, (watch, &path), flags, cookie, name, tell),
            None if self.walks > 0 => self.keep_early(watch, flags, cookie, name, tell),
            // It was moved away. It is gone already if the directory is.
            None => {
                if inotify::remove_watch(&self.look.inotify, watch).is_err() {
                    self.nodes.remove(watch);
                }
            }
        }
        self.path = path;
    }

    /// A walk may have just added the watch: what it found is not taken in yet.
    fn keep_early(
        &mut self,
        watch: Watch,
        flags: ReadFlags,
        cookie: u32,
        name: &CStr,
        tell: &mut impl FnMut(Event<'_>),
    ) {
        if self.early.len() < MAX_EARLY {
            self.early.push((watch, flags, cookie, name.into()));
        } else {
            tell(Event::Lost);
        }
    }

    /// Takes in an event of a directory that is there.
    fn note_entry(
        &mut self,
        root: Root,
        (watch, path): (Watch, &[u8]),
        flags: ReadFlags,
        cookie: u32,
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
                Some(from) if from.watch == watch => From::Within,
                Some(_) => From::Watched,
            }));
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            change = Some(Change::MovedFrom);
            let last = self.nodes.last();
            self.moving.push(Moving { cookie, watch, name: name.to_bytes().into(), is_directory, last });
            if self.moving.len() > MAX_MOVED {
                // What came of the oldest one is still to be told, or never.
                let oldest = self.moving.remove(0);
                if oldest.is_directory {
                    self.moved.push(oldest.into_moved());
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
        if is_directory && matches!(change, Change::Created | Change::MovedTo(_)) {
            self.enter(root, (watch, path), name, (place, from), tell);
        }
    }

    /// Watches a directory that came, and walks it, if it is not watched already: then it was only moved.
    fn enter(
        &mut self,
        root: Root,
        (above, path): (Watch, &[u8]),
        name: &CStr,
        (place, from): (Place, Option<Moving>),
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
                    self.moved.push(from.into_moved());
                    self.doubted.insert(root);
                }
                return;
            }
            Err(errno) => {
                let named = vec![join(path, name.to_bytes())];
                tell(Event::Uncovered(root, Uncovered { count: 1, named, why: reason(errno) }));
                return;
            }
        };
        let is_new = from.is_none();
        // Another one may be there by now.
        let is_other =
            |from: &Moving| self.nodes.is_at(watched.1, Parent::Directory(from.watch), &from.name) != Some(true);
        if let Some(from) = from.filter(is_other) {
            self.moved.push(from.into_moved());
            self.doubted.insert(root);
        }
        // What had the name before must not be taken for this.
        let at = self.moving.iter().position(|moving| moving.watch == above && *moving.name == *name.to_bytes());
        self.moved.extend(at.map(|at| self.moving.swap_remove(at).into_moved()));
        if self.moved.iter().any(|(parent, called, _)| *parent == above && **called == *name.to_bytes()) {
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

    /// There is nothing more to read: what has not come anywhere was moved away.
    fn settle(&mut self, beginning: Option<SystemTime>, tell: &mut impl FnMut(Event<'_>)) {
        let gone = self.moving.drain(..).filter(|moving| moving.is_directory);
        self.moved.extend(gone.map(Moving::into_moved));
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
        let is_moved = |(from, called, last): &(Watch, Box<[u8]>, Watch)| {
            watch <= *last && Parent::Directory(*from) == parent && **called == *name
        };
        self.nodes.is_at(watch, parent, name) == Some(false) || self.moved.iter().chain(&self.departed).any(is_moved)
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
    fn take_in(&mut self, batch: Batch, tell: &mut impl FnMut(Event<'_>)) {
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
                if self.nodes.path(found.watch, &mut path) != Some(root) {
                    continue;
                }
                let (change, name, stat) = match found.entry {
                    None => (Change::Lacking, Box::default(), None),
                    Some((name, stat)) if batch.task.news == News::All => (Change::Created, name, Some(stat)),
                    Some((name, stat)) => (Change::Found { is_new: batch.task.is_new(&stat) }, name, Some(stat)),
                };
                let is_directory = stat.is_none_or(|stat| stat.kind() == rustix::fs::FileType::Directory);
                let known = Known::Stat(stat);
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
                self.look.roots.get_mut(&root).into_iter().for_each(|known| known.is_walked = true);
                if batch.task.has_seen_all() && !self.doubted.contains(&root) {
                    self.unseen.insert(root, batch.task.turn);
                }
            }
            if self.walks == 0 {
                let mut unseen = std::mem::take(&mut self.unseen);
                unseen.retain(|root, _| !self.doubted.contains(root));
                self.nodes.detach_unseen(&unseen);
                for (watch, flags, cookie, name) in std::mem::take(&mut self.early) {
                    self.note(watch, flags, cookie, &name, tell);
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

/// How many directories lead there.
fn depth(path: &[u8]) -> u16 {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    u16::try_from(names.count()).unwrap_or(u16::MAX)
}

fn join(path: &[u8], name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path)).join(OsStr::from_bytes(name))
}
