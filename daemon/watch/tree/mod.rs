//! Watches whole trees, whatever happens in them: inotify(7), with an instance of its own, so that nobody else can make its
//! events get lost.
//!
//! A directory is watched first and read then; those that come later likewise. Of each it is known where it is now, also after
//! directories above it were moved. What the kernel does not tell, [`Trees::walk`] finds: by the time at which an inode
//! changed, which nobody can set.

mod event;
mod inherited;
mod look;
mod nodes;
mod past;
mod scope;
mod stat;
mod state;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use self::look::Look;
use self::nodes::{Nodes, Parent};
use self::state::{Raw, State};
use self::walk::{Batch, Job, Walker};
use super::open::{Directory, descend, proc_path, split};

pub use self::event::{Change, Entry, Event, From, Uncovered};
pub use self::inherited::Inherited;
pub use self::nodes::Root;
pub use self::past::Past;
pub use self::scope::{Place, Scope};
pub use self::stat::{Mark, Moment, Stat};
pub use self::state::why;
pub use self::walk::News;

/// How much is read of what changed, in bytes.
const BUFFER: usize = 64 << 10;
/// So many events are read before others have their turn.
const TURN: usize = 512;
/// So many batches of what a walk found wait.
const MAX_BATCHES: usize = 4;
/// So much the time of an inode may lag behind the clock: a tick of the kernel is 10 ms at most.
const LAG: Duration = Duration::from_millis(20);

/// So many watches are given back at once: by default 16,384 events wait at most.
const MAX_TIDIED: usize = 4096;

/// Why something is not watched if there are not enough watches.
pub const NO_WATCHES: &str = "there are no watches left: raise fs.inotify.max_user_watches (sysctl)";

/// Why something is not watched that could not be opened.
pub const NO_DESCRIPTORS: &str = "too many files are open: raise LimitNOFILE= of podsecd.service";

/// What of trees is of interest.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    /// Of files it is told which of these they have; eight at most.
    pub marks: &'static [Mark],
    /// Directories of a root with such a name are watched before the others: there may not be watches for all.
    pub is_first: fn(&[u8]) -> bool,
    /// Files with such a name in the root, and all files in directories with such a name there, are kept ([`News::Kept`]).
    pub is_kept: fn(&[u8]) -> bool,
    /// Such a file is kept wherever it is, and told whenever it may have come with a directory from elsewhere.
    pub is_precious: fn(&Stat) -> bool,
}

impl Interest {
    /// All is the same.
    pub const NONE: Interest = Interest { marks: &[], is_first: |_| false, is_kept: |_| false, is_precious: |_| false };
}

/// Trees that are watched.
#[derive(Debug)]
pub struct Trees {
    inotify: AsyncFd<Arc<OwnedFd>>,
    buffer: Box<[MaybeUninit<u8>]>,
    batches: mpsc::Receiver<Batch>,
    state: State,
}

impl Trees {
    /// Watches nothing yet; the roots will be below `base`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of statx(2), and of inotify_init1(2): the number of instances per user is limited.
    pub fn new(base: Directory, interest: Interest) -> io::Result<Trees> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Trees::of(base, interest, inotify, Moment::at(SystemTime::now()).before(LAG))
    }

    /// The same with an instance that somebody else had before. What happened since is told when all trees are walked that were
    /// added by then.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn inherit(base: Directory, interest: Interest, inherited: Inherited) -> io::Result<Trees> {
        let mut trees = Trees::of(base, interest, inherited.inotify, inherited.since)?;
        trees.state.waiting = Some(inherited.waiting);
        Ok(trees)
    }

    /// What is known, for whoever inherits what [`Trees::descriptor`] is; to be called when nothing more is to be read. All that was
    /// told was told by `told`, if that is known, and nothing was read since then.
    pub fn leave(&mut self, note: String, told: Option<Moment>) -> Past {
        self.state.leave(note, told)
    }

    /// What another process can inherit.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.get_ref().as_fd()
    }

    fn of(base: Directory, interest: Interest, inotify: OwnedFd, drained: Moment) -> io::Result<Trees> {
        let stat = statx(&base, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
        let inotify = Arc::new(inotify);
        let (batches_in, batches) = mpsc::channel(MAX_BATCHES);
        let state = State {
            nodes: Nodes::default(),
            look: Look {
                inotify: Arc::clone(&inotify),
                marks: interest.marks,
                base,
                mount: stat.stx_mnt_id,
                roots: BTreeMap::new(),
                missed: BTreeSet::new(),
                opened: None,
            },
            walker: Walker::new(Arc::clone(&inotify), interest, batches_in),
            walks: 0,
            early: Vec::new(),
            moving: Vec::new(),
            moved: Vec::new(),
            departed: Vec::new(),
            unseen: BTreeMap::new(),
            doubted: BTreeSet::new(),
            detached: Instant::now(),
            drained,
            waiting: None,
            is_past: false,
            untold: 0,
            leftover: Vec::new(),
            path: Vec::new(),
        };
        #[expect(deprecated, reason = "what takes its place is unsafe; an OwnedFd is owned and does not change")]
        let inotify = AsyncFd::with_interest(inotify, tokio::io::Interest::READABLE)?;
        Ok(Trees { inotify, buffer: vec![MaybeUninit::uninit(); BUFFER].into(), batches, state })
    }

    /// How many directories are watched.
    pub fn count(&self) -> usize {
        self.state.nodes.count()
    }

    /// How many directories of each tree are watched. It takes a look at each.
    pub fn counts(&self) -> BTreeMap<Root, usize> {
        self.state.nodes.counts()
    }

    /// Whether a walk is under way.
    pub fn is_walking(&self) -> bool {
        self.state.walks > 0
    }

    /// A number that no tree had of which something is still to be told.
    pub fn next_root(&self) -> Root {
        self.state.waiting.as_ref().map_or(0, inherited::Waiting::next_root)
    }

    /// Whether what waited in an instance that somebody else had before is still to be told. What walks find until then is not all.
    pub fn is_behind(&self) -> bool {
        self.state.waiting.is_some()
    }

    /// Whether no walk is to find anything that nothing told, but for so many that were begun.
    pub fn is_settled_but_for(&self, begun: usize) -> bool {
        let State { walks, moving, moved, doubted, look, .. } = &self.state;
        let is_sought = moving.is_empty() && moved.is_empty() && doubted.is_empty() && look.missed.is_empty();
        *walks <= begun && !self.is_behind() && is_sought
    }

    /// All that the kernel tells and that happened before this moment was told.
    pub fn drained(&self) -> Moment {
        let (state, now) = (&self.state, Moment::at(SystemTime::now()).before(LAG));
        let is_known = state.walks == 0 && !self.is_behind() && state.moving.is_empty() && state.look.missed.is_empty();
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
        self.look_at(root, b".")?.made
    }

    /// What is to be known of a file at a path below a root, that leads over no link; `None` if it is not there.
    pub fn look_at(&self, root: Root, path: &[u8]) -> Option<Stat> {
        let look = &self.state.look;
        let root = descend(&look.base, &look.roots.get(&root)?.path, look.mount).ok()?;
        let (directory, name) = split(path);
        Stat::of(descend(root, directory, look.mount).ok()?.as_fd(), name, look.marks)
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

    /// From now on something else of a tree is of interest: what is not is watched until it is tidied up, what is more is watched
    /// after the next walk.
    pub fn set_scope(&mut self, root: Root, scope: Arc<Scope>) {
        if let Some(known) = self.state.look.roots.get_mut(&root) {
            known.scope = scope;
        }
    }

    /// Gives back the watches of trees that were removed, of what is of no interest in the others, and of what was moved out of
    /// them. It takes a look at each directory. Answers whether there are more: the kernel says of each that it was given back,
    /// which is to be read first, and nothing is given back during walks.
    pub fn tidy(&mut self) -> bool {
        let State { nodes, look, walks, .. } = &self.state;
        if *walks > 0 || !rustix::io::ioctl_fionread(&look.inotify).is_ok_and(|waiting| waiting < BUFFER as u64) {
            return true;
        }
        let (outside, mut gone) = (nodes.outside(|root, path| look.is_wanted(root, path)), Vec::new());
        for watch in outside.iter().take(MAX_TIDIED) {
            // The kernel says so in the end, and then it is forgotten.
            if inotify::remove_watch(&look.inotify, *watch).is_err() {
                // It said so when nobody could hear it.
                gone.push(*watch);
            }
        }
        for watch in gone {
            self.state.nodes.remove(watch);
        }
        outside.len() > MAX_TIDIED
    }

    /// Walks a tree: what of it is not watched is watched, as far as there are watches, what is news is told, and in the end that
    /// it is done, with this number, which is not 0.
    ///
    /// # Errors
    /// Those of open(2) and inotify_add_watch(2) for the root, and of pthread_create(3); `NotFound` if it was not added.
    pub fn walk(&mut self, root: Root, news: News, number: u64) -> io::Result<()> {
        let State { look, nodes, .. } = &mut self.state;
        let inotify = &look.inotify;
        let known = look.roots.get(&root).ok_or(io::ErrorKind::NotFound)?;
        let (place, task) = (known.scope.root(), look.task(known, root, news, (number, nodes.begin_turn())));
        let directory = descend(&look.base, &known.path, look.mount)?;
        let job = match walk::watch(inotify, directory.as_fd(), c".", look.mount) {
            Ok(watched) => {
                let also = WatchFlags::MOVE_SELF | WatchFlags::MASK_ADD;
                inotify::add_watch(inotify, proc_path(watched.0.as_fd()), also)?;
                self.state.nodes.insert(watched.1, Parent::Root(root), b"");
                Job::new(&task, watched, place, 0)
            }
            Err(Errno::NOSPC) => {
                let opened = walk::open(directory.as_fd(), c".", look.mount)?;
                Job::unwatched(&task, opened, (Parent::Root(root).number(), Box::default()), place, 0)
            }
            Err(errno) => return Err(errno.into()),
        };
        self.state.walker.walk(&task, job)?;
        self.state.walks += 1;
        Ok(())
    }

    /// Waits for something to tell, and tells it; not all at once, so that others have their turn. Nothing gets lost
    /// if it is not waited for.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn tell(&mut self, tell: &mut impl FnMut(Event<'_>)) -> io::Result<()> {
        let Trees { inotify, buffer, batches, state } = self;
        if state.waiting.is_some() && state.walks == 0 {
            // No tree is there any more.
            state.tell_past(tell);
            state.settle(None, tell);
            return Ok(());
        }
        tokio::select! {
            // What a walk found makes events known.
            biased;
            Some(batch) = batches.recv() => {
                state.take_in(batch, tell);
                Ok(())
            }
            ready = inotify.readable() => {
                let mut ready = ready?;
                let beginning = SystemTime::now();
                let mut events = inotify::Reader::new(ready.get_inner(), buffer);
                for _ in 0..TURN {
                    match events.next() {
                        Ok(event) => {
                            state.note(Raw::of(&event), event.file_name().unwrap_or_default(), tell);
                        }
                        Err(Errno::AGAIN) => {
                            ready.clear_ready();
                            state.settle(Some(beginning), tell);
                            return Ok(());
                        }
                        Err(errno) => return Err(errno.into()),
                    }
                }
                while !events.is_buffer_empty() {
                    let Ok(event) = events.next() else { break };
                    state.note(Raw::of(&event), event.file_name().unwrap_or_default(), tell);
                }
                Ok(())
            }
        }
    }
}
