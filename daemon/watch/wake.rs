//! Waits until a directory or open files change: inotify(7), without a timer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The first of the watched files was written to; nothing else happened.
    Written,
    /// Something changed, or changes were lost: look at everything.
    Changed,
}

/// Watches one directory and a few open files.
#[derive(Debug)]
pub struct Wake {
    inotify: AsyncFd<Inotify>,
    /// Kept, so that it need not be cleared at every change.
    buffer: Box<[u8]>,
    watches: Vec<WatchDescriptor>,
    /// That of the first file.
    written: Option<WatchDescriptor>,
}

/// How much is read of what changed, in bytes.
const BUFFER: usize = 4096;
/// Longest event: the header and a name.
const MAX_EVENT: usize = 16 + 256;

impl Wake {
    /// To be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of inotify_init1(2): the number of instances per user is limited.
    pub fn new() -> io::Result<Wake> {
        #[expect(deprecated, reason = "what takes its place is unsafe; an Inotify owns its descriptor and keeps it")]
        let inotify = AsyncFd::with_interest(Inotify::init()?, Interest::READABLE)?;
        let buffer = vec![0; BUFFER].into();
        Ok(Wake { inotify, buffer, watches: Vec::new(), written: None })
    }

    /// Watches `directory`, or its nearest ancestor as long as it is not there, these files, and whether one of the
    /// ancestors is moved or removed; nothing else any more.
    /// True if something is watched that was not: it may have changed before, so look at it once more.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2): the number of watches per user is limited.
    pub fn watch<'f>(&mut self, directory: &Path, files: impl Iterator<Item = &'f File>) -> io::Result<bool> {
        // Adding what is watched already answers with its descriptor, and a descriptor is never given twice. So there
        // is no state that a removed directory or a recycled inode could make untrue.
        let (first, directory) = self.add_directory(directory)?;
        let mut watches = vec![first];
        for file in files {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            watches.push(self.inotify.get_ref().watches().add(path, WatchMask::MODIFY)?);
        }
        self.written = watches.get(1).cloned();
        // One that cannot be watched does not keep the others from it.
        watches.extend(ancestors(directory).filter_map(|path| self.add_ancestor(path).ok()));
        // What was an ancestor before was not watched for what comes and goes in it.
        let new = self.watches.first() != watches.first() || watches.iter().any(|watch| !self.watches.contains(watch));
        for former in std::mem::replace(&mut self.watches, watches) {
            if !self.watches.contains(&former) {
                // It is gone already if what it watched is.
                let _ = self.inotify.get_ref().watches().remove(former);
            }
        }
        Ok(new)
    }

    fn add_ancestor(&self, path: &Path) -> io::Result<WatchDescriptor> {
        let mask = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        self.inotify.get_ref().watches().add(path, mask)
    }

    /// The watch of the directory or of its nearest ancestor, and which it is.
    fn add_directory<'d>(&self, directory: &'d Path) -> io::Result<(WatchDescriptor, &'d Path)> {
        let own = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | own;
        for path in directory.ancestors() {
            match self.inotify.get_ref().watches().add(path, mask) {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                other => return other.map(|watch| (watch, path)),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn changed(&mut self) -> io::Result<Woken> {
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            let (mut count, mut written) = (0, true);
            match ready.get_inner_mut().read_events(&mut self.buffer) {
                Ok(events) => {
                    for event in events {
                        count += 1;
                        written &= event.mask == EventMask::MODIFY && Some(event.wd) == self.written;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            // So few cannot have filled the buffer: nothing is left to read.
            if count < BUFFER / MAX_EVENT {
                ready.clear_ready();
            }
            if count > 0 {
                return Ok(if written { Woken::Written } else { Woken::Changed });
            }
        }
    }
}

/// The directories above, but for the root.
fn ancestors(directory: &Path) -> impl Iterator<Item = &Path> {
    directory.ancestors().skip(1).filter(|path| path.parent().is_some())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// What woke within 10 seconds.
    async fn woken(wake: &mut Wake) -> Option<Woken> {
        timeout(Duration::from_secs(10), wake.changed()).await.ok().map(|woken| woken.expect("read"))
    }

    /// Whether nothing woke, for as long as a test can wait.
    async fn sleeps(wake: &mut Wake) -> bool {
        timeout(Duration::from_millis(50), wake.changed()).await.is_err()
    }

    #[tokio::test]
    async fn a_directory_that_appears_later_is_watched_from_then_on() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("etc/audit");
        let mut wake = Wake::new().expect("inotify");
        let look = |wake: &mut Wake| wake.watch(&directory, std::iter::empty()).expect("watched");
        assert!(look(&mut wake));
        for part in ["etc", "etc/audit"] {
            std::fs::create_dir(root.path().join(part)).expect("made");
            assert_eq!(woken(&mut wake).await, Some(Woken::Changed), "{part}");
            assert!(look(&mut wake), "{part}");
        }
        assert!(!look(&mut wake), "nothing new");
        std::fs::write(directory.join("audit.log"), "").expect("written");
        assert_eq!(woken(&mut wake).await, Some(Woken::Changed));
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(woken(&mut wake).await, Some(Woken::Changed));
        assert!(look(&mut wake), "its parent instead");
    }

    #[tokio::test]
    async fn a_file_wakes_when_it_is_written_even_after_it_was_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("audit.log");
        let mut file = File::create(&path).expect("made");
        let mut wake = Wake::new().expect("inotify");
        assert!(wake.watch(root.path(), [&file].into_iter()).expect("watched"));
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(woken(&mut wake).await, Some(Woken::Changed));
        assert!(!wake.watch(root.path(), [&file].into_iter()).expect("watched"));
        assert!(sleeps(&mut wake).await);
        file.write_all(b"x").expect("written");
        assert_eq!(woken(&mut wake).await, Some(Woken::Written));
        wake.watch(root.path(), std::iter::empty()).expect("watched");
        assert_eq!(woken(&mut wake).await, Some(Woken::Changed), "the end of a watch wakes, too");
        file.write_all(b"x").expect("written");
        assert!(sleeps(&mut wake).await, "it is watched no longer");
    }

    #[tokio::test]
    async fn a_directory_whose_ancestor_was_moved_is_found_again() {
        let root = tempfile::tempdir().expect("a directory");
        let (above, directory) = (root.path().join("etc"), root.path().join("etc/kubernetes/audit"));
        std::fs::create_dir_all(&directory).expect("made");
        let mut wake = Wake::new().expect("inotify");
        assert!(wake.watch(&directory, std::iter::empty()).expect("watched"));
        std::fs::rename(&above, root.path().join("old")).expect("moved");
        std::fs::create_dir_all(&directory).expect("made");
        assert_eq!(woken(&mut wake).await, Some(Woken::Changed));
        assert!(wake.watch(&directory, std::iter::empty()).expect("watched"), "it is another one");
    }

    #[tokio::test]
    async fn a_write_to_another_file_is_a_change() {
        let root = tempfile::tempdir().expect("a directory");
        let mut files = ["one", "two"].map(|name| File::create(root.path().join(name)).expect("made"));
        let mut wake = Wake::new().expect("inotify");
        wake.watch(root.path(), files.iter()).expect("watched");
        for (written, expected) in [(&[0][..], Woken::Written), (&[1], Woken::Changed), (&[0, 1], Woken::Changed)] {
            for at in written {
                files[*at].write_all(b"x").expect("written");
            }
            assert_eq!(woken(&mut wake).await, Some(expected), "{written:?}");
        }
    }

    #[tokio::test]
    async fn what_changed_together_with_a_write_is_not_taken_for_one() {
        let root = tempfile::tempdir().expect("a directory");
        let mut file = File::create(root.path().join("audit.log")).expect("made");
        let mut wake = Wake::new().expect("inotify");
        wake.watch(root.path(), [&file].into_iter()).expect("watched");
        for number in 0..40 {
            file.write_all(b"x").expect("written");
            std::fs::write(root.path().join(format!("{number}-{}", "x".repeat(200))), "").expect("written");
        }
        let mut wakes = 0;
        while let Ok(woken) = timeout(Duration::from_millis(50), wake.changed()).await {
            assert_eq!(woken.expect("read"), Woken::Changed);
            wakes += 1;
        }
        assert!(wakes > 1, "more than one buffer");
    }
}
