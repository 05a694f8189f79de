//! Walks trees on threads of its own, and watches each directory before it reads it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags, inotify, openat, statx};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::Interest;
use super::nodes::{Parent, Root, Watch};
use super::scope::{Place, Scope};
use super::stat::{Moment, Stat};
use crate::watch::open::proc_path;

/// What is of interest in a directory. Who writes to a file that was removed changes nothing that is there.
pub(super) fn mask() -> inotify::WatchFlags {
    use inotify::WatchFlags as Flags;
    Flags::CREATE
        | Flags::MODIFY
        | Flags::CLOSE_WRITE
        | Flags::ATTRIB
        | Flags::MOVE
        | Flags::DELETE
        | Flags::DELETE_SELF
        | Flags::ONLYDIR
        | Flags::EXCL_UNLINK
}

/// Each level of a tree holds a descriptor.
pub(super) const MAX_DEPTH: u16 = 128;
/// More threads than these do not make it faster: the kernel adds watches one by one.
const MAX_THREADS: usize = 4;
/// So much is handed on at once.
const BATCH: usize = 1024;
/// So many that cannot be watched are named.
const MAX_NAMED: usize = 4;
/// A buffer for the entries of a directory, in bytes.
const BUFFER: usize = 32 << 10;

/// What of a tree is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// All that is in it.
    All,
    /// What changed after that moment; only directories that changed themselves are looked through.
    Begun(Moment),
    /// What changed after that moment, each file looked at.
    Since(Moment),
    /// The same, and of what is kept all that is there ([`Change::Seen`](super::Change::Seen)).
    Kept(Moment),
}

/// A tree to walk.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) root: Root,
    /// Tells this walk of a root from others.
    pub(super) number: u64,
    scope: Arc<Scope>,
    pub(super) news: News,
    /// The turn in which it began.
    pub(super) turn: u8,
    /// No other mount is entered.
    mount: u64,
    /// Parts that are not done with yet.
    outstanding: AtomicUsize,
    /// Not all of it could be seen.
    is_partial: AtomicBool,
    /// There were not watches for all of it.
    is_short: AtomicBool,
}

impl Task {
    pub(super) fn new(root: Root, number: u64, turn: u8, scope: Arc<Scope>, news: News, mount: u64) -> Task {
        let [is_partial, is_short] = [false; 2].map(AtomicBool::new);
        Task { root, number, turn, scope, news, mount, outstanding: AtomicUsize::new(0), is_partial, is_short }
    }

    /// Whether something was made since the moment from which on it is news. Of a directory that changed, and nothing in it,
    /// it is not known whether it came from elsewhere.
    pub(super) fn is_new(&self, stat: &Stat) -> bool {
        let (News::Begun(moment) | News::Since(moment) | News::Kept(moment)) = self.news else { return true };
        let came = stat.kind() == FileType::Directory && stat.changed >= moment && stat.modified < moment;
        came || stat.made.is_some_and(|made| made >= moment)
    }

    /// Whether there were not watches for all of it.
    pub(super) fn was_short(&self) -> bool {
        self.is_short.load(Ordering::Acquire)
    }

    /// Whether all of it was seen.
    pub(super) fn has_seen_all(&self) -> bool {
        !self.is_partial.load(Ordering::Acquire)
    }
}

/// A directory to walk, which is watched already, if there are watches.
#[derive(Debug)]
pub(super) struct Job {
    directory: Arc<OwnedFd>,
    /// Its own, else that of the nearest one above it that has one.
    watch: Watch,
    /// The path from there; empty: it is its own.
    below: Box<[u8]>,
    is_watched: bool,
    place: Place,
    depth: u16,
    /// Entries since then are news.
    since: Option<Moment>,
    /// It is, and nothing that is news was found in it yet.
    is_unexplained: bool,
    /// Whether something was made, renamed or removed in it since then.
    is_changed: bool,
    /// Whether it, or one above it, may have come from elsewhere since then: what is in it may be older than that.
    is_suspect: bool,
    /// Whether all files in it are told, also what is no news.
    is_kept: bool,
    /// Those directories in it that are to be walked.
    names: Vec<CString>,
    /// Whether there are further entries to read.
    is_read: bool,
}

impl Job {
    /// All of a directory that was just opened.
    pub(super) fn new(task: &Task, (directory, watch, stat): (OwnedFd, Watch, Statx), place: Place, depth: u16) -> Job {
        let changed = Moment::of(stat.stx_mtime);
        let since = match task.news {
            News::All => Some(Moment::MIN),
            News::Since(moment) | News::Kept(moment) => Some(moment),
            News::Begun(moment) => (changed >= moment).then_some(moment),
        };
        let is_changed = since.is_some_and(|since| changed >= since);
        let is_unexplained = is_changed && task.news != News::All && place.is_wanted();
        let is_suspect = since.is_some_and(|since| Moment::of(stat.stx_ctime) >= since);
        let directory = Arc::new(directory);
        Job {
            directory,
            watch,
            below: Box::default(),
            is_watched: true,
            place,
            depth,
            since,
            is_unexplained,
            is_changed,
            is_suspect,
            is_kept: false,
            names: Vec::new(),
            is_read: false,
        }
    }

    /// The same of one for which there is no watch: at this path below one that has one.
    pub(super) fn unwatched(
        task: &Task,
        (directory, stat): (OwnedFd, Statx),
        (watch, below): (Watch, Box<[u8]>),
        place: Place,
        depth: u16,
    ) -> Job {
        Job { below, is_watched: false, ..Job::new(task, (directory, watch, stat), place, depth) }
    }

    /// Half of the directories that are still to be walked, or more.
    fn split(&mut self) -> Job {
        let names = self.names.split_off(self.names.len() / 2);
        let (directory, below) = (Arc::clone(&self.directory), self.below.clone());
        Job { directory, below, is_unexplained: false, names, is_read: true, ..*self }
    }

    /// The path of what is in it from the watch on.
    fn below(&self, name: &[u8]) -> Box<[u8]> {
        if self.below.is_empty() { name.into() } else { [&self.below, &b"/"[..], name].concat().into() }
    }
}

/// What was found.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) task: Arc<Task>,
    /// Watches, of what, and where their names end in `names`.
    pub(super) nodes: Vec<(Watch, Parent, usize)>,
    pub(super) names: Vec<u8>,
    pub(super) found: Vec<Found>,
    pub(super) uncovered: Uncovered,
    /// It was the last one of this task.
    pub(super) is_last: bool,
}

/// An entry that is to be told.
#[derive(Debug)]
pub(super) struct Found {
    /// The directory in which it is, if that is watched, else one above it.
    pub(super) watch: Watch,
    /// The path of the directory from there.
    pub(super) below: Box<[u8]>,
    /// `None`: something that was in it is there no more.
    pub(super) entry: Option<(Box<[u8]>, Stat)>,
    /// Whether it is news.
    pub(super) is_news: bool,
}

/// Directories that are not watched.
#[derive(Debug, Default)]
pub(super) struct Uncovered {
    pub(super) count: u64,
    /// Some of them: the directory in which they are, and their names.
    pub(super) named: Vec<(Watch, Box<[u8]>)>,
    /// Why the last one is not.
    pub(super) why: Option<Errno>,
}

impl Uncovered {
    fn add(&mut self, above: Watch, name: &[u8], why: Errno) {
        self.count += 1;
        // That there are no watches is what can be helped.
        if self.why != Some(Errno::NOSPC) {
            self.why = Some(why);
        }
        if self.named.len() < MAX_NAMED {
            self.named.push((above, name.into()));
        }
    }
}

/// Walks.
#[derive(Clone, Debug)]
pub(super) struct Walker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inotify: Arc<OwnedFd>,
    interest: Interest,
    queue: Mutex<Queue>,
    /// Threads that have nothing to do are welcome to more.
    has_room: AtomicBool,
    max_threads: usize,
    batches: mpsc::Sender<Batch>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: Vec<(Arc<Task>, Job)>,
    threads: usize,
}

impl Walker {
    pub(super) fn new(inotify: Arc<OwnedFd>, interest: Interest, batches: mpsc::Sender<Batch>) -> Walker {
        let max_threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let has_room = AtomicBool::new(true);
        Walker(Arc::new(Shared { inotify, interest, queue: Mutex::default(), has_room, max_threads, batches }))
    }

    /// Walks a directory.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(super) fn walk(&self, task: &Arc<Task>, job: Job) -> io::Result<()> {
        task.outstanding.fetch_add(1, Ordering::Relaxed);
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.push((Arc::clone(task), job));
        if queue.threads < self.0.max_threads {
            queue.threads += 1;
            self.0.has_room.store(queue.threads < self.0.max_threads, Ordering::Relaxed);
            let walker = self.clone();
            if let Err(error) = std::thread::Builder::new().name("walk".into()).spawn(move || walker.run()) {
                queue.threads -= 1;
                // Whoever else is there takes it.
                if queue.threads == 0 {
                    queue.jobs.pop();
                    task.outstanding.fetch_sub(1, Ordering::AcqRel);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What to walk next; a thread that gets nothing ends.
    fn next(&self) -> Option<(Arc<Task>, Job)> {
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let job = queue.jobs.pop();
        if job.is_none() {
            queue.threads -= 1;
            self.0.has_room.store(true, Ordering::Relaxed);
        }
        job
    }

    fn run(self) {
        let mut buffer = Vec::with_capacity(BUFFER);
        while let Some((task, job)) = self.next() {
            let mut visit = Visit { walker: &self, batch: Batch::new(&task), task: &task, levels: vec![job] };
            if visit.run(&mut buffer).is_err() {
                return;
            }
        }
    }
}

/// A thread's way through a tree.
struct Visit<'w> {
    walker: &'w Walker,
    task: &'w Arc<Task>,
    /// The directories on the way; the deepest one last.
    levels: Vec<Job>,
    batch: Batch,
}

/// Nobody wants to know any more.
struct Unwanted;

impl Visit<'_> {
    fn run(&mut self, buffer: &mut Vec<u8>) -> Result<(), Unwanted> {
        if let Some(Job { is_watched: false, is_read: false, depth: 0, watch, .. }) = self.levels.last() {
            let root = *watch;
            self.note_short(root, b"");
        }
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.names.pop() {
                self.enter(&name)?;
                self.share();
            } else if !level.is_read {
                self.read(buffer)?;
            } else if let Some(Job { is_unexplained: true, watch, below, .. }) = self.levels.pop() {
                self.batch.found.push(Found { watch, below, entry: None, is_news: true });
            }
        }
        // Whoever is the last one says so when all of the others was sent.
        if !self.batch.is_empty() {
            self.send()?;
        }
        self.batch.is_last = self.task.outstanding.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.batch.is_last { self.send() } else { Ok(()) }
    }

    /// Has a thread that nothing else needs walk a part.
    fn share(&mut self) {
        if !self.walker.0.has_room.load(Ordering::Relaxed) {
            return;
        }
        if let Some(level) = self.levels.iter_mut().find(|level| level.names.len() > 1) {
            let part = level.split();
            // Without a thread it waits for this one.
            let _ = self.walker.walk(self.task, part);
        }
    }

    fn send(&mut self) -> Result<(), Unwanted> {
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.task));
        self.walker.0.batches.blocking_send(batch).map_err(|_| Unwanted)
    }

    /// Opens a directory in the deepest one, and watches it, if there is a watch for it.
    fn enter(&mut self, name: &CStr) -> Result<(), Unwanted> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        let opened = if level.depth >= MAX_DEPTH {
            Err(Errno::NAMETOOLONG)
        } else {
            open(level.directory.as_fd(), name, self.task.mount)
        };
        let added = opened.and_then(|(directory, stat)| {
            let added =
                if level.is_watched { add(&self.walker.0.inotify, directory.as_fd()) } else { Err(Errno::NOSPC) };
            match added {
                Err(errno) if errno != Errno::NOSPC => Err(errno),
                added => Ok((directory, stat, added.ok())),
            }
        });
        let (above, below) = (level.watch, level.below(name.to_bytes()));
        match added {
            Ok((directory, stat, watch)) => {
                let place = self.task.scope.child(level.place, name.to_bytes());
                let (is_suspect, is_kept) = (level.is_suspect, self.is_kept(level, name.to_bytes()));
                let depth = level.depth + 1;
                let mut job = if let Some(watch) = watch {
                    self.batch.names.extend_from_slice(name.to_bytes());
                    let end = self.batch.names.len();
                    self.batch.nodes.push((watch, Parent::Directory(above), end));
                    Job::new(self.task, (directory, watch, stat), place, depth)
                } else {
                    self.note_short(above, &below);
                    Job::unwatched(self.task, (directory, stat), (above, below), place, depth)
                };
                job.is_suspect |= is_suspect;
                job.is_kept = is_kept;
                self.levels.push(job);
            }
            Err(errno) if is_absent(errno) => {}
            Err(errno) => {
                self.task.is_partial.store(true, Ordering::Release);
                self.batch.uncovered.add(above, &below, errno);
            }
        }
        if self.batch.is_full() { self.send() } else { Ok(()) }
    }

    /// There is no watch for a directory.
    fn note_short(&mut self, above: Watch, below: &[u8]) {
        self.task.is_partial.store(true, Ordering::Release);
        self.task.is_short.store(true, Ordering::Release);
        self.batch.uncovered.add(above, below, Errno::NOSPC);
    }

    /// Whether what is called `name` in a directory is kept, if it is a file, or else all files in it.
    fn is_kept(&self, level: &Job, name: &[u8]) -> bool {
        let is_asked = matches!(self.task.news, News::Kept(_));
        is_asked && (level.is_kept || level.depth == 0 && (self.walker.0.interest.is_kept)(name))
    }

    /// Reads on in the deepest directory, as much as fits into the buffer.
    fn read(&mut self, buffer: &mut Vec<u8>) -> Result<(), Unwanted> {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        self.read_entries(&mut level, buffer);
        if level.depth == 0 {
            // From the end on they are walked.
            let is_first = self.walker.0.interest.is_first;
            level.names.sort_by_key(|name| is_first(name.to_bytes()));
        }
        self.levels.push(level);
        if self.batch.is_full() { self.send() } else { Ok(()) }
    }

    fn read_entries(&mut self, level: &mut Job, buffer: &mut Vec<u8>) {
        let directory = Arc::clone(&level.directory);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        loop {
            let entry = match entries.next() {
                Some(Ok(entry)) => entry,
                end => {
                    if end.is_some() {
                        self.task.is_partial.store(true, Ordering::Release);
                    }
                    level.is_read = true;
                    break;
                }
            };
            let name = entry.file_name();
            let place = self.task.scope.child(level.place, name.to_bytes());
            let mut kind = entry.file_type();
            if !matches!(name.to_bytes(), b"." | b"..") && place.leads_on() {
                if level.since.is_some() || kind == FileType::Unknown {
                    let stat = Stat::of(level.directory.as_fd(), name.to_bytes(), self.walker.0.interest.marks);
                    kind = stat.map_or(FileType::Unknown, |stat| stat.kind());
                    if let Some(stat) = stat.filter(|_| place.is_wanted()) {
                        self.find(level, name.to_bytes(), stat);
                    }
                }
                if kind == FileType::Directory {
                    level.names.push(name.to_owned());
                }
            }
            if entries.is_buffer_empty() && (!level.names.is_empty() || self.batch.is_full()) {
                break;
            }
        }
    }

    /// Hands on an entry, if it is news or to be told anyway.
    fn find(&mut self, level: &mut Job, name: &[u8], stat: Stat) {
        // A device has no content, and that of overlayfs for what was removed has many names, each of which changes it.
        let is_of_directory = stat.kind() == FileType::CharacterDevice;
        let is_changed = level.since.is_some_and(|since| stat.changed >= since);
        let is_precious = (self.walker.0.interest.is_precious)(&stat);
        let is_news = is_changed && (level.is_changed || !is_of_directory) || level.is_suspect && is_precious;
        level.is_unexplained &= !is_news;
        let is_kept = || is_precious && matches!(self.task.news, News::Kept(_)) || self.is_kept(level, name);
        if is_news || stat.kind() != FileType::Directory && is_kept() {
            let entry = Some((name.into(), stat));
            let below = level.below.clone();
            self.batch.found.push(Found { watch: level.watch, below, entry, is_news });
        }
    }
}

impl Batch {
    fn new(task: &Arc<Task>) -> Batch {
        Batch {
            task: Arc::clone(task),
            nodes: Vec::new(),
            names: Vec::new(),
            found: Vec::new(),
            uncovered: Uncovered::default(),
            is_last: false,
        }
    }

    fn is_full(&self) -> bool {
        self.nodes.len() >= BATCH || self.found.len() >= BATCH
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.found.is_empty() && self.uncovered.count == 0
    }
}

/// Opens a directory in another one, if it is one of that mount, and watches it.
pub(super) fn watch(
    inotify: &OwnedFd,
    above: BorrowedFd<'_>,
    name: &CStr,
    mount: u64,
) -> Result<(OwnedFd, Watch, Statx), Errno> {
    let (directory, stat) = open(above, name, mount)?;
    let watch = add(inotify, directory.as_fd())?;
    Ok((directory, watch, stat))
}

/// Watches a directory. `NOSPC`: there are no watches left.
fn add(inotify: &OwnedFd, directory: BorrowedFd<'_>) -> Result<Watch, Errno> {
    inotify::add_watch(inotify, proc_path(directory), mask())
}

/// Opens a directory in another one, if it is one of that mount.
pub(super) fn open(above: BorrowedFd<'_>, name: &CStr, mount: u64) -> Result<(OwnedFd, Statx), Errno> {
    // What is mounted there may not answer: it is not even opened.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = statx(above, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if stat.stx_mnt_id != mount {
        return Err(Errno::XDEV);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok((openat(above, name, flags, Mode::empty())?, stat))
}

/// Whether an error says that the directory is there no more.
pub(super) fn is_absent(errno: Errno) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(&errno)
}
