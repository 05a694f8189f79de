//! Descriptors that outlive podsecd: systemd keeps them for the next one (`FileDescriptorStoreMax=` of systemd.service(5)), so that
//! what the kernel tells while nobody runs waits in them to be read.
//!
//! Each has a name: what it is, and a number that no other one has had, because systemd removes them by name. Whatever systemd
//! passes on may be of another version, or of another configuration: nothing of it keeps podsecd from starting, and what nobody
//! takes is given back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use sd_notify::NotifyState;

/// With the name of another one: podsecd ended in order; its number is when, in nanoseconds.
const ENDED: &str = "ended-";
/// systemd takes no longer ones.
const MAX_NAME: usize = 255;

/// What systemd kept, and is to keep.
#[derive(Clone, Debug, Default)]
pub struct Handover(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    passed: Mutex<BTreeMap<String, OwnedFd>>,
    /// When the podsecd before had reported all that it had read of them.
    ended: BTreeMap<String, SystemTime>,
    next: AtomicU64,
    /// What is given up from now on is for the next one.
    is_ending: AtomicBool,
}

/// A descriptor that systemd keeps as long as this lives, and for the next podsecd if this one ends.
#[derive(Debug)]
pub struct Kept {
    name: String,
    handover: Handover,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.handover.0.is_ending.load(Ordering::Acquire) {
            remove(&self.name);
        }
    }
}

impl Handover {
    /// What was passed on, by name.
    pub fn of(passed: impl IntoIterator<Item = (String, OwnedFd)>) -> Handover {
        let (mut known, mut ended, mut next) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (name, descriptor) in passed {
            match split(&name).map(|(what, number)| (what.strip_prefix(ENDED).ok_or(what), number)) {
                Some((Ok(what), nanoseconds)) => {
                    ended.insert(what.to_owned(), UNIX_EPOCH + Duration::from_nanos(nanoseconds));
                    // What it says is true once.
                    remove(&name);
                }
                Some((Err(_), number)) => {
                    next = next.max(number.saturating_add(1));
                    known.insert(name, descriptor);
                }
                None => remove(&name),
            }
        }
        let (passed, next) = (Mutex::new(known), AtomicU64::new(next));
        Handover(Arc::new(Shared { passed, ended, next, is_ending: AtomicBool::new(false) }))
    }

    /// If the podsecd before ended in order, when: it had reported all that it had read of this.
    pub fn ended(&self, what: &str) -> Option<SystemTime> {
        self.0.ended.get(what).copied()
    }

    /// Takes over those that are `what`, the newest first.
    pub fn take(&self, what: &str) -> Vec<(OwnedFd, Kept)> {
        let mut passed = self.passed();
        let is_it = |name: &String| split(name).is_some_and(|(its, _)| its == what);
        let mut names: Vec<_> = passed.keys().filter(|name| is_it(name)).cloned().collect();
        names.sort_by_key(|name| std::cmp::Reverse(split(name).map(|(_, number)| number)));
        let take = |name: String| Some((passed.remove(&name)?, Kept { name, handover: self.clone() }));
        names.into_iter().filter_map(take).collect()
    }

    /// Has systemd keep one. Where it does not, or there is no systemd, it is as if podsecd began anew.
    pub fn keep(&self, what: &str, descriptor: BorrowedFd<'_>) -> Kept {
        let name = format!("{what}.{}", self.0.next.fetch_add(1, Ordering::Relaxed));
        store(&name, descriptor);
        Kept { name, handover: self.clone() }
    }

    /// Gives back what nobody took.
    pub fn give_back(&self) {
        std::mem::take(&mut *self.passed()).into_keys().for_each(|name| remove(&name));
    }

    /// podsecd ends: what it had systemd keep is for the next one. To be called before anything of it is given up.
    pub fn begin_end(&self) {
        self.0.is_ending.store(true, Ordering::Release);
    }

    /// All that was read of this was reported.
    pub fn end(&self, what: &str, now: SystemTime) {
        let nanoseconds = now.duration_since(UNIX_EPOCH).map(|since| since.as_nanos()).unwrap_or_default();
        if let Ok(descriptor) = eventfd(0, EventfdFlags::CLOEXEC) {
            store(&format!("{ENDED}{what}.{nanoseconds}"), descriptor.as_fd());
        }
    }

    fn passed(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a descriptor of that name is, and its number.
fn split(name: &str) -> Option<(&str, u64)> {
    let (what, number) = name.rsplit_once('.')?;
    Some((what, number.parse().ok()?))
}

fn store(name: &str, descriptor: BorrowedFd<'_>) {
    debug_assert!(name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "{name}");
    // systemd is not to wait for events of it.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[descriptor]) {
        tracing::debug!(%error, name, "systemd cannot be given a descriptor to keep");
    }
}

fn remove(name: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        tracing::debug!(%error, name, "systemd cannot be told to give up a descriptor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(names: &[&str]) -> Handover {
        let descriptor = || eventfd(0, EventfdFlags::CLOEXEC).expect("made");
        Handover::of(names.iter().map(|name| ((*name).to_owned(), descriptor())))
    }

    fn taken(handover: &Handover, what: &str) -> Vec<String> {
        handover.take(what).iter().map(|(_, kept)| kept.name.clone()).collect()
    }

    #[test]
    fn what_was_kept_is_found_by_what_it_is_the_newest_first_and_once() {
        let handover = passed(&["layers-1.9", "layers-1.10", "layers-2.3", "layers.7"]);
        assert_eq!(taken(&handover, "layers-1"), ["layers-1.10", "layers-1.9"]);
        assert_eq!(taken(&handover, "layers-1"), Vec::<String>::new());
        assert_eq!(taken(&handover, "layers"), ["layers.7"]);
    }

    #[test]
    fn no_name_is_given_twice() {
        let handover = passed(&["layers-1.41", "audit.12"]);
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC).expect("made");
        let names = ["a", "a"].map(|what| handover.keep(what, descriptor.as_fd()).name.clone());
        assert_eq!(names, ["a.42", "a.43"]);
    }

    #[test]
    fn what_has_a_name_that_is_none_of_ours_is_not_kept() {
        let handover = passed(&["stored", "", "a.b", "a.-1", "a.99999999999999999999999", "connection"]);
        assert!(handover.passed().is_empty());
    }

    #[test]
    fn when_podsecd_ended_in_order_is_known_to_the_next_one() {
        assert_eq!(passed(&["layers-1.3", "ended-layers-2.5"]).ended("layers-1"), None);
        let at = UNIX_EPOCH + Duration::from_nanos(1_764_000_000_123_456_789);
        assert_eq!(passed(&["ended-layers-1.1764000000123456789", "layers-1.3"]).ended("layers-1"), Some(at));
    }
}
