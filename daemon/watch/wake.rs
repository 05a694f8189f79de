//! Waits until a directory or open files change: inotify(7), without a timer.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use inotify::{Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Why waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something changed, or changes were lost: look at everything.
    Changed,
    /// The time is over.
    TimedOut,
    /// Somebody said stop.
    Stopped,
}

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Stop> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Stop(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// Ends every wait that has this stop, now and later.
    pub fn stop(&self) {
        // It can only fail when 2^64 - 1 stops were counted.
        let _ = self.0.write(1);
    }
}

/// Watches one directory and a few open files.
#[derive(Debug)]
pub struct Wake {
    inotify: Inotify,
    stop: Stop,
    watches: Vec<WatchDescriptor>,
}

impl Wake {
    /// # Errors
    /// Those of inotify_init1(2): the number of instances per user is limited.
    pub fn new(stop: Stop) -> io::Result<Wake> {
        Ok(Wake { inotify: Inotify::init()?, stop, watches: Vec::new() })
    }

    /// Watches `directory`, or its nearest ancestor as long as it is not there, and these files; nothing else any more.
    /// True if something is watched that was not: it may have changed before, so look at it once more.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2): the number of watches per user is limited.
    pub fn watch<'f>(&mut self, directory: &Path, files: impl Iterator<Item = &'f File>) -> io::Result<bool> {
        // Adding what is watched already answers with its descriptor, and a descriptor is never given twice. So there
        // is no state that a removed directory or a recycled inode could make untrue.
        let mut watches = vec![self.add_directory(directory)?];
        for file in files {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            watches.push(self.inotify.watches().add(path, WatchMask::MODIFY)?);
        }
        let new = watches.iter().any(|watch| !self.watches.contains(watch));
        for former in std::mem::replace(&mut self.watches, watches) {
            if !self.watches.contains(&former) {
                // It is gone already if what it watched is.
                let _ = self.inotify.watches().remove(former);
            }
        }
        Ok(new)
    }

    fn add_directory(&self, directory: &Path) -> io::Result<WatchDescriptor> {
        let own = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | own;
        for path in directory.ancestors() {
            match self.inotify.watches().add(path, mask) {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Waits for a change; without a timeout for ever.
    ///
    /// # Errors
    /// Those of poll(2) and read(2).
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Woken> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX),
        };
        loop {
            let mut ready = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.0.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, timeout) {
                Ok(0) => return Ok(Woken::TimedOut),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) if ready[1].any() == Some(true) => return Ok(Woken::Stopped),
                Ok(_) => {}
            }
            // What changed does not matter: whoever waits looks at everything.
            let mut buffer = [0; 4096];
            while self.inotify.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {}
            return Ok(Woken::Changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_secs(10));
    const NEVER: Option<Duration> = Some(Duration::from_millis(50));

    #[test]
    fn a_directory_that_appears_later_is_watched_from_then_on() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("etc/audit");
        let mut wake = Wake::new(Stop::new().expect("a stop")).expect("inotify");
        let look = |wake: &mut Wake| wake.watch(&directory, std::iter::empty()).expect("watched");
        assert!(look(&mut wake));
        for part in ["etc", "etc/audit"] {
            std::fs::create_dir(root.path().join(part)).expect("made");
            assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed, "{part}");
            assert!(look(&mut wake), "{part}");
        }
        assert!(!look(&mut wake), "nothing new");
        std::fs::write(directory.join("audit.log"), "").expect("written");
        assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed);
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed);
        assert!(look(&mut wake), "its parent instead");
    }

    #[test]
    fn a_file_wakes_when_it_is_written_even_after_it_was_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("audit.log");
        let mut file = File::create(&path).expect("made");
        let mut wake = Wake::new(Stop::new().expect("a stop")).expect("inotify");
        assert!(wake.watch(root.path(), [&file].into_iter()).expect("watched"));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed);
        assert!(!wake.watch(root.path(), [&file].into_iter()).expect("watched"));
        assert_eq!(wake.wait(NEVER).expect("waited"), Woken::TimedOut);
        file.write_all(b"x").expect("written");
        assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed);
        wake.watch(root.path(), std::iter::empty()).expect("watched");
        assert_eq!(wake.wait(SOON).expect("waited"), Woken::Changed, "the end of a watch wakes, too");
        file.write_all(b"x").expect("written");
        assert_eq!(wake.wait(NEVER).expect("waited"), Woken::TimedOut, "it is watched no longer");
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let stop = Stop::new().expect("a stop");
        let mut wake = Wake::new(stop.clone()).expect("inotify");
        std::thread::spawn(move || stop.stop());
        assert_eq!(wake.wait(None).expect("waited"), Woken::Stopped);
    }
}
