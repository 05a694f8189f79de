//! Descriptors that outlive podsecd: systemd keeps them for the next one (`FileDescriptorStoreMax=` of systemd.service(5)), so that
//! what the kernel tells while nobody runs waits in them to be read. What podsecd knows of them when it ends is kept likewise, in
//! a file without a name (memfd_create(2)).
//!
//! Each has a name: what it is, and a number that no other one has had, because systemd removes them by name. Whatever systemd
//! passes on may be of another version, or of another configuration: nothing of it keeps podsecd from starting, and what nobody
//! takes is given back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use sd_notify::NotifyState;

/// How many systemd keeps: `FileDescriptorStoreMax=` of podsecd.service. Of a store there are two, and as many that say what is
/// known of them.
const MAX_KEPT: usize = 1024;
/// systemd takes no longer names.
const MAX_NAME: usize = 255;
/// With the name of another one: what was known of it.
const PAST: &str = "past-";

/// What systemd kept, and is to keep.
#[derive(Clone, Debug, Default)]
pub struct Handover(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What nobody has.
    passed: Mutex<BTreeMap<String, Passed>>,
    next: AtomicU64,
    /// How many are kept.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Passed {
    descriptor: OwnedFd,
    /// Since when nobody has it.
    since: Instant,
    /// systemd keeps it.
    is_stored: bool,
}

/// A descriptor that systemd keeps until it is given up. If this is dropped, whoever wants to go on with it can take it over, as
/// the next podsecd can.
#[derive(Debug)]
pub struct Kept {
    name: String,
    /// `None`: it was given up.
    descriptor: Option<OwnedFd>,
    /// systemd keeps it, too.
    is_stored: bool,
    handover: Handover,
}

impl Kept {
    /// Its name, which no other one has had.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// systemd is to keep it no longer.
    pub fn give_up(mut self) {
        self.descriptor = None;
        self.handover.remove(&self.name);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(descriptor) = self.descriptor.take() {
            let passed = Passed { descriptor, since: Instant::now(), is_stored: self.is_stored };
            self.handover.passed().insert(std::mem::take(&mut self.name), passed);
        }
    }
}

impl Handover {
    /// What was passed on, by name.
    pub fn of(passed: impl IntoIterator<Item = (String, OwnedFd)>) -> Handover {
        let handover = Handover::default();
        for (name, descriptor) in passed {
            handover.0.count.fetch_add(1, Ordering::Relaxed);
            match split(&name) {
                Some((_, number)) => {
                    handover.0.next.fetch_max(number.saturating_add(1), Ordering::Relaxed);
                    let passed = Passed { descriptor, since: Instant::now(), is_stored: true };
                    handover.passed().insert(name, passed);
                }
                None => handover.remove(&name),
            }
        }
        handover
    }

    /// Takes over those that are `what`, the newest first.
    pub fn take(&self, what: &str) -> Vec<(OwnedFd, Kept)> {
        self.take_those(|its, _| its == what)
    }

    fn take_those(&self, is_it: impl Fn(&str, &Passed) -> bool) -> Vec<(OwnedFd, Kept)> {
        let mut passed = self.passed();
        let is_it = |(name, passed): &(&String, &Passed)| split(name).is_some_and(|(its, _)| is_it(its, passed));
        let mut names: Vec<_> = passed.iter().filter(is_it).map(|(name, _)| name.clone()).collect();
        names.sort_by_key(|name| std::cmp::Reverse(split(name).map(|(_, number)| number)));
        let take = |name: String| {
            let clone = passed.get(&name)?.descriptor.try_clone().ok()?;
            let Passed { descriptor, is_stored, .. } = passed.remove(&name)?;
            Some((clone, Kept { name, descriptor: Some(descriptor), is_stored, handover: self.clone() }))
        };
        names.into_iter().filter_map(take).collect()
    }

    /// Has systemd keep one. Where it does not, or there is no systemd, it is as if podsecd began anew.
    ///
    /// # Errors
    /// Those of fcntl(2): there may be no more descriptors.
    pub fn keep(&self, what: &str, descriptor: BorrowedFd<'_>) -> io::Result<Kept> {
        let mut kept = self.hold(what, descriptor.try_clone_to_owned()?);
        self.store(&mut kept);
        Ok(kept)
    }

    /// Leaves what is known of something that is kept, by its name: for whoever takes that over in this podsecd, or takes what is
    /// left when it ends.
    ///
    /// # Errors
    /// Those of memfd_create(2) and write(2).
    pub fn leave(&self, what: &str, known: &[u8]) -> io::Result<()> {
        self.write(what, known).map(drop)
    }

    /// The same for the next podsecd: if it says that all was told, that must have been reported.
    ///
    /// # Errors
    /// The same ones.
    pub fn bequeath(&self, what: &str, known: &[u8]) -> io::Result<Kept> {
        let mut kept = self.write(what, known)?;
        self.store(&mut kept);
        Ok(kept)
    }

    /// What was known of something that was kept, by its name, to be given up when it is not needed any more; `None`: nothing, or it cannot be
    /// read.
    pub fn take_past(&self, what: &str) -> Option<(Vec<u8>, Kept)> {
        let mut newest = None;
        for (descriptor, kept) in self.take(&format!("{PAST}{what}")) {
            match read(descriptor) {
                Ok(known) if newest.is_none() => newest = Some((known, kept)),
                _ => kept.give_up(),
            }
        }
        newest
    }

    /// What was left in this podsecd and nobody took, and of what it is.
    pub fn take_left(&self) -> Vec<(String, Vec<u8>)> {
        let left = self.take_those(|what, passed| what.starts_with(PAST) && !passed.is_stored);
        let mut newest = BTreeMap::new();
        for (descriptor, kept) in left {
            if let (Some((what, _)), Ok(known)) = (split(&kept.name), read(descriptor)) {
                newest.entry(what[PAST.len()..].to_owned()).or_insert(known);
            }
            kept.give_up();
        }
        newest.into_iter().collect()
    }

    /// Those that are `what`, and what is known of them, are not given back for now: somebody will take them.
    pub fn claim(&self, what: &str) {
        let of_it = format!("{what}.");
        let is_it = |name: &str| name.strip_prefix(PAST).unwrap_or(name).starts_with(&of_it);
        for (_, passed) in self.passed().iter_mut().filter(|(name, _)| is_it(name)) {
            passed.since = Instant::now();
        }
    }

    /// Gives back what nobody took for so long.
    pub fn give_back(&self, patience: Duration) {
        let mut passed = self.passed();
        let is_unclaimed = |passed: &Passed| passed.since.elapsed() >= patience;
        let (unclaimed, rest): (BTreeMap<_, _>, _) =
            std::mem::take(&mut *passed).into_iter().partition(|(_, passed)| is_unclaimed(passed));
        *passed = rest;
        unclaimed.keys().for_each(|name| self.remove(name));
    }

    fn write(&self, what: &str, known: &[u8]) -> io::Result<Kept> {
        let create = |flags| memfd_create("podsecd", MemfdFlags::CLOEXEC | flags);
        // Some nodes want it, older kernels do not know it.
        let mut file = File::from(create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()))?);
        file.write_all(known)?;
        Ok(self.hold(&format!("{PAST}{what}"), file.into()))
    }

    fn hold(&self, what: &str, descriptor: OwnedFd) -> Kept {
        let name = format!("{what}.{}", self.0.next.fetch_add(1, Ordering::Relaxed));
        if self.0.count.fetch_add(1, Ordering::Relaxed) == MAX_KEPT {
            tracing::warn!(
                "systemd keeps no more than {MAX_KEPT} descriptors: what else is watched begins anew at a restart"
            );
        }
        Kept { name, descriptor: Some(descriptor), is_stored: false, handover: self.clone() }
    }

    fn store(&self, kept: &mut Kept) {
        let Kept { name, descriptor: Some(descriptor), is_stored, .. } = kept else { return };
        *is_stored = true;
        debug_assert!(
            name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'),
            "{name}"
        );
        // systemd is not to wait for events of it.
        let state = [NotifyState::FdStore, NotifyState::FdName(name.as_str()), NotifyState::Custom("FDPOLL=0")];
        if let Err(error) = sd_notify::notify_with_fds(&state, &[descriptor.as_fd()]) {
            tracing::debug!(%error, name, "systemd cannot be given a descriptor to keep");
        }
    }

    fn remove(&self, name: &str) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
            tracing::debug!(%error, name, "systemd cannot be told to give up a descriptor");
        }
    }

    fn passed(&self) -> MutexGuard<'_, BTreeMap<String, Passed>> {
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    let (mut file, mut known) = (File::from(descriptor), Vec::new());
    // Anything else may not answer.
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.rewind()?;
    file.read_to_end(&mut known).map(|_| known)
}

/// What a descriptor of that name is, and its number.
fn split(name: &str) -> Option<(&str, u64)> {
    let (what, number) = name.rsplit_once('.')?;
    Some((what, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn descriptor() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).expect("made")
    }

    fn passed(names: &[&str]) -> Handover {
        Handover::of(names.iter().map(|name| ((*name).to_owned(), descriptor())))
    }

    fn taken(handover: &Handover, what: &str) -> Vec<String> {
        handover.take(what).iter().map(|(_, kept)| kept.name.clone()).collect()
    }

    #[test]
    fn what_was_kept_is_found_by_what_it_is_the_newest_first_and_once() {
        let handover = passed(&["layers-1.9", "layers-1.10", "layers-2.3", "layers.7"]);
        let held = handover.take("layers-1");
        assert_eq!(held.iter().map(|(_, kept)| &kept.name[..]).collect::<Vec<_>>(), ["layers-1.10", "layers-1.9"]);
        assert_eq!(taken(&handover, "layers-1"), Vec::<String>::new());
        assert_eq!(taken(&handover, "layers"), ["layers.7"]);
    }

    #[test]
    fn what_is_dropped_can_be_taken_over_and_what_is_given_up_cannot() {
        let handover = passed(&[]);
        drop(handover.keep("a", descriptor().as_fd()).expect("kept"));
        handover.keep("b", descriptor().as_fd()).expect("kept").give_up();
        assert_eq!((taken(&handover, "a"), taken(&handover, "b")), (vec!["a.0".to_owned()], vec![]));
        handover.give_back(Duration::from_secs(60));
        assert_eq!(taken(&handover, "a"), ["a.0"]);
        handover.leave("a.0", b"known").expect("left");
        drop(handover.keep("aa", descriptor().as_fd()).expect("kept"));
        std::thread::sleep(Duration::from_millis(100));
        handover.claim("a");
        handover.give_back(Duration::from_millis(100));
        assert!(handover.take_past("a.0").is_some());
        assert_eq!((taken(&handover, "a"), taken(&handover, "aa")), (vec!["a.0".to_owned()], vec![]));
        handover.give_back(Duration::ZERO);
        assert_eq!(taken(&handover, "a"), Vec::<String>::new());
    }

    #[test]
    fn no_name_is_given_twice() {
        let handover = passed(&["layers-1.41", "audit.12"]);
        let names = ["a", "a"].map(|what| handover.keep(what, descriptor().as_fd()).expect("kept").name.clone());
        assert_eq!(names, ["a.42", "a.43"]);
    }

    #[test]
    fn what_has_a_name_that_is_none_of_ours_is_not_kept() {
        let handover = passed(&["stored", "", "a.b", "a.-1", "a.99999999999999999999999", "connection"]);
        assert!(handover.passed().is_empty());
    }

    #[test]
    fn what_was_known_is_read_until_it_is_given_up_and_only_the_last_of_it() {
        let handover = passed(&[]);
        handover.leave("a", b"first").expect("left");
        handover.bequeath("a", b"second").expect("left");
        for _ in 0..2 {
            assert_eq!(handover.take_past("a").map(|(known, _)| known), Some(b"second".to_vec()));
        }
        handover.take_past("a").expect("known").1.give_up();
        assert!(handover.take_past("a").is_none());
        handover.leave("a", b"third").expect("left");
        handover.leave("a", b"fourth").expect("left");
        assert_eq!(handover.take_left(), [("a".to_owned(), b"fourth".to_vec())]);
        assert!(handover.take_past("a").is_none() && handover.take_left().is_empty());
        // What is no file is nothing that anybody left.
        assert!(passed(&["past-a.1"]).take_past("a").is_none());
    }

    #[test]
    fn the_shipped_unit_has_systemd_keep_as_many() {
        let unit = include_str!("../units/podsecd.service");
        assert!(unit.lines().any(|line| line == format!("FileDescriptorStoreMax={MAX_KEPT}")), "{unit}");
    }
}
