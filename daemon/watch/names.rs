//! Waits until something of certain names comes, changes or goes below certain directories: inotify(7), without a timer.
//!
//! What is wanted of each key is a set of paths below a directory, some of which may not be there yet. Whoever asks watches
//! first and looks then: whatever changes afterwards wakes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::open::{Directory, MAX_PARTS, proc_path};

/// What is of interest in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    names: BTreeSet<OsString>,
    /// Whatever its name is.
    all: bool,
    /// Also what is written to files, not only whether they come and go.
    contents: bool,
}

/// Paths below a directory; a last component `*` is every name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths(BTreeMap<PathBuf, Wanted>);

impl Paths {
    /// Adds a path. It is relative, and has no `..`; one of more than 64 components, which nobody opens, is left out.
    pub fn add(&mut self, path: impl AsRef<Path>) {
        let parts: Vec<_> = path.as_ref().iter().take(MAX_PARTS + 1).collect();
        if parts.len() > MAX_PARTS {
            return;
        }
        for at in 0..parts.len() {
            let wanted = self.0.entry(parts[..at].iter().collect()).or_default();
            let is_last = at + 1 == parts.len();
            wanted.contents |= is_last;
            if is_last && parts[at] == "*" {
                wanted.all = true;
            } else {
                wanted.names.insert(parts[at].to_owned());
            }
        }
    }

    /// The same paths below a directory that lies further up: `prefix` leads from there.
    #[must_use]
    pub fn below(&self, prefix: &Path) -> Paths {
        if prefix.iter().take(MAX_PARTS + 1).count() > MAX_PARTS {
            return Paths::default();
        }
        let moved = self.0.iter().map(|(path, wanted)| (prefix.join(path), wanted.clone()));
        let mut paths = Paths(moved.collect());
        // What leads there comes and goes, too; what is in it is written to elsewhere.
        for path in prefix.ancestors() {
            if let (Some(above), Some(name)) = (path.parent(), path.file_name()) {
                paths.0.entry(above.to_path_buf()).or_default().names.insert(name.to_owned());
            }
        }
        paths
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<K> {
    /// Of these keys something came, changed or went.
    pub keys: BTreeSet<K>,
    /// Of these somebody has just let go of a watched directory, or of what is wanted in one. Flags of inodes (chattr(1))
    /// change by a descriptor, which tells nobody but by this.
    pub released: BTreeSet<K>,
    /// Changes were lost: it may be all of them.
    pub lost: bool,
}

/// Watches names for keys.
#[derive(Debug)]
pub struct Names<K> {
    inotify: AsyncFd<Inotify>,
    buffer: Box<[u8]>,
    by_watch: HashMap<i32, Entry<K>>,
    by_key: BTreeMap<K, BTreeSet<i32>>,
    /// What is wanted of many directories is the same, and kept once.
    pool: BTreeSet<Arc<Wanted>>,
    /// What happened to watches that are not known yet: another thread has just added them.
    early: BTreeSet<i32>,
    /// Watches that were taken away, of which the kernel may still have something to tell; the last word is that they went.
    removed: BTreeSet<i32>,
    /// The last of these that went: another thread may have been given one for another key before.
    gone: BTreeSet<i32>,
}

#[derive(Debug)]
struct Entry<K> {
    watch: WatchDescriptor,
    wanted: Vec<(K, Arc<Wanted>)>,
}

/// Adds watches, on any thread: to open what others own may take as long as they like.
#[derive(Clone, Debug)]
pub struct Adder(Watches);

/// Watches that were added, to be given to [`Names::set`].
#[derive(Debug, Default)]
pub struct Added {
    watches: Vec<(WatchDescriptor, Wanted)>,
    /// Why not all could be: the number of watches per user is limited.
    pub failure: Option<io::Error>,
}

/// More watches that nobody has asked for are not remembered.
const MAX_EARLY: usize = 16 << 10;
const MAX_GONE: usize = 4 << 10;
/// No more watches are added at once: who owns what is watched chooses how many there are.
const MAX_WATCHES: usize = 512;
/// How much is read of what changed, in bytes.
const BUFFER: usize = 16 << 10;

impl<K: Clone + Ord> Names<K> {
    /// To be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of inotify_init1(2): the number of instances per user is limited.
    pub fn new() -> io::Result<Names<K>> {
        #[expect(deprecated, reason = "what takes its place is unsafe; an Inotify owns its descriptor and keeps it")]
        let inotify = AsyncFd::with_interest(Inotify::init()?, Interest::READABLE)?;
        let (by_watch, by_key) = (HashMap::new(), BTreeMap::new());
        let (pool, early, removed, gone) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Ok(Names { inotify, buffer: vec![0; BUFFER].into(), by_watch, by_key, pool, early, removed, gone })
    }

    /// What adds watches.
    pub fn adder(&self) -> Adder {
        Adder(self.inotify.get_ref().watches())
    }

    /// These are the watches of a key, and no others. True if something happened to them already.
    pub fn set(&mut self, key: &K, added: Added) -> bool {
        let ids: BTreeSet<_> = added.watches.iter().map(|(watch, _)| watch.get_watch_descriptor_id()).collect();
        for id in self.by_key.insert(key.clone(), ids.clone()).unwrap_or_default() {
            let Some(entry) = self.by_watch.get_mut(&id) else { continue };
            entry.wanted.retain(|(other, _)| other != key);
            if entry.wanted.is_empty() && !ids.contains(&id) {
                // It is gone already if what it watched is.
                let _ = self.inotify.get_ref().watches().remove(entry.watch.clone());
                self.by_watch.remove(&id);
                self.removed.insert(id);
            }
        }
        for (watch, wanted) in added.watches {
            let id = watch.get_watch_descriptor_id();
            let entry = self.by_watch.entry(id).or_insert_with(|| Entry { watch, wanted: Vec::new() });
            let wanted = Arc::new(wanted);
            let wanted = self.pool.get(&wanted).cloned().unwrap_or(wanted);
            self.pool.insert(Arc::clone(&wanted));
            let wanted = (key.clone(), wanted);
            if !entry.wanted.contains(&wanted) {
                // There are many of them, and most have one.
                entry.wanted.reserve_exact(1);
                entry.wanted.push(wanted);
            }
        }
        self.pool.retain(|wanted| Arc::strong_count(wanted) > 1);
        // Those of others are still to be asked for.
        let count = self.early.len();
        self.early.retain(|id| !ids.contains(id));
        self.early.len() < count || ids.iter().any(|id| self.removed.contains(id) || self.gone.contains(id))
    }

    /// Watches nothing for a key any more.
    pub fn forget(&mut self, key: &K) {
        self.set(key, Added::default());
        self.by_key.remove(key);
    }

    /// Whether something happened that [`Names::changed`] did not answer yet.
    pub fn has_changed(&self) -> bool {
        rustix::io::ioctl_fionread(self.inotify.get_ref()).is_ok_and(|waiting| waiting > 0)
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn changed(&mut self) -> io::Result<Changed<K>> {
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            let mut changed = Changed { keys: BTreeSet::new(), released: BTreeSet::new(), lost: false };
            match ready.get_inner_mut().read_events(&mut self.buffer) {
                Ok(events) => {
                    for event in events {
                        if event.mask.contains(EventMask::Q_OVERFLOW) {
                            changed.lost = true;
                            self.removed.clear();
                        }
                        let id = event.wd.get_watch_descriptor_id();
                        let is_last = event.mask.contains(EventMask::IGNORED);
                        if self.removed.contains(&id) {
                            if is_last {
                                self.removed.remove(&id);
                                self.gone.insert(id);
                                if self.gone.len() > MAX_GONE {
                                    // The oldest one: the kernel counts on.
                                    self.gone.pop_first();
                                }
                            }
                            continue;
                        }
                        match self.by_watch.get(&id) {
                            Some(entry) => entry.note(event.mask, event.name, &mut changed),
                            None if self.early.len() < MAX_EARLY => drop(self.early.insert(id)),
                            None => changed.lost = true,
                        }
                        if is_last {
                            self.by_watch.remove(&id);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => return Err(error),
            }
            if changed.lost || !changed.keys.is_empty() || !changed.released.is_empty() {
                return Ok(changed);
            }
        }
    }
}

impl<K: Clone + Ord> Entry<K> {
    fn note(&self, mask: EventMask, name: Option<&OsStr>, changed: &mut Changed<K>) {
        for (key, wanted) in &self.wanted {
            if !name.is_none_or(|name| wanted.all || wanted.names.contains(name)) {
                continue;
            }
            if mask.contains(EventMask::CLOSE_NOWRITE) {
                if wanted.contents {
                    changed.released.insert(key.clone());
                }
            } else if wanted.contents || !mask.contains(EventMask::MODIFY) {
                changed.keys.insert(key.clone());
            }
        }
    }
}

impl Added {
    /// Takes in more of them.
    pub fn extend(&mut self, more: Added) {
        self.watches.extend(more.watches);
        self.failure = more.failure.or(self.failure.take());
    }
}

impl Adder {
    /// Watches these paths. What of them is not there is waited for, where its nearest directory is.
    pub fn add<'d>(&self, places: impl IntoIterator<Item = (&'d Directory, &'d Paths)>) -> Added {
        let own = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR | WatchMask::MASK_ADD;
        let names =
            WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::MOVED_TO | WatchMask::ATTRIB;
        let contents = WatchMask::MODIFY | WatchMask::CLOSE_NOWRITE;
        let mut added = Added::default();
        for (directory, paths) in places {
            for (path, wanted) in &paths.0 {
                let is_itself = path.as_os_str().is_empty();
                let found = if is_itself { None } else { directory.directory(path).ok() };
                let descriptor = match &found {
                    Some(found) => found.as_fd(),
                    None if is_itself => directory.as_fd(),
                    None => continue,
                };
                if added.watches.len() == MAX_WATCHES {
                    added.failure = Some(io::Error::other(format!("more than {MAX_WATCHES} directories at once")));
                    return added;
                }
                let mask = own | names | if wanted.contents { contents } else { WatchMask::empty() };
                match self.0.clone().add(proc_path(descriptor), mask) {
                    Ok(watch) => added.watches.push((watch, wanted.clone())),
                    // It went in the meantime, which its parent tells.
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                    Err(error) => added.failure = Some(error),
                }
            }
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    struct World {
        dir: tempfile::TempDir,
        names: Names<u8>,
    }

    impl World {
        fn new() -> World {
            World { dir: tempfile::tempdir().expect("a directory"), names: Names::new().expect("inotify") }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Watches these paths for a key; what there was already is no news.
        fn watch(&mut self, key: u8, paths: &[&str]) {
            let mut wanted = Paths::default();
            paths.iter().for_each(|path| wanted.add(path));
            let directory = Directory::open(self.dir.path()).expect("opened");
            let added = self.names.adder().add([(&directory, &wanted)]);
            assert!(added.failure.is_none());
            self.names.set(&key, added);
        }

        /// The keys that something woke, until nothing does for a while.
        async fn woken(&mut self) -> Vec<u8> {
            let mut keys = BTreeSet::new();
            while let Ok(changed) = timeout(Duration::from_millis(100), self.names.changed()).await {
                keys.extend(changed.expect("read").keys);
            }
            keys.into_iter().collect()
        }
    }

    #[tokio::test]
    async fn what_is_wanted_wakes_whose_it_is_and_nothing_else_wakes() {
        let mut world = World::new();
        fs::create_dir_all(world.path("a/b/c")).expect("made");
        world.watch(1, &["a/b/file"]);
        world.watch(2, &["a/b/c/*"]);
        for (what, expected) in
            [("a/b/file", &[1][..]), ("a/b/other", &[]), ("a/other", &[]), ("other", &[]), ("a/b/c/any", &[2])]
        {
            fs::write(world.path(what), "x").expect("written");
            assert_eq!(world.woken().await, expected, "{what} written");
        }
        fs::rename(world.path("a/b/other"), world.path("a/b/file")).expect("renamed");
        assert_eq!(world.woken().await, [1]);
        fs::remove_file(world.path("a/b/file")).expect("removed");
        assert_eq!(world.woken().await, [1]);
        fs::rename(world.path("a/b"), world.path("a/d")).expect("renamed");
        assert_eq!(world.woken().await, [1, 2]);
        world.names.forget(&2);
        fs::write(world.path("a/d/c/any"), "y").expect("written");
        assert_eq!(world.woken().await, [] as [u8; 0]);
    }

    #[tokio::test]
    async fn directories_that_appear_later_wake_at_each_step() {
        let mut world = World::new();
        for made in ["a", "a/b", "a/b/c"] {
            world.watch(1, &["a/b/c/file"]);
            fs::create_dir(world.path(made)).expect("made");
            assert_eq!(world.woken().await, [1], "{made}");
        }
        world.watch(1, &["a/b/c/file"]);
        fs::write(world.path("a/b/c/file"), "x").expect("written");
        assert_eq!(world.woken().await, [1]);
    }

    #[tokio::test]
    async fn what_happens_before_a_watch_is_known_is_not_lost() {
        let mut world = World::new();
        let mut wanted = Paths::default();
        wanted.add("file");
        let added = world.names.adder().add([(&Directory::open(world.dir.path()).expect("opened"), &wanted)]);
        fs::write(world.path("file"), "x").expect("written");
        assert_eq!(world.woken().await, [] as [u8; 0], "nobody's yet");
        assert!(world.names.set(&1, added), "it happened already");
    }

    #[tokio::test]
    async fn who_lets_go_of_a_directory_is_told_apart_from_a_change() {
        let mut world = World::new();
        fs::create_dir(world.path("a")).expect("made");
        world.watch(1, &["a/*"]);
        drop(fs::File::open(world.path("a")).expect("opened"));
        let changed = timeout(Duration::from_secs(10), world.names.changed()).await.expect("in time").expect("read");
        assert_eq!((changed.keys, changed.released), (BTreeSet::new(), BTreeSet::from([1])));
    }
}
