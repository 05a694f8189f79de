//! Homes that do not answer: how long each is waited for, and of whom it is to be told. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// How long a home may take before the others are looked at.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// When so many are late, further ones may only take less.
const MANY_LATE: usize = 4;
const LITTLE_PATIENCE: Duration = Duration::from_millis(250);
/// When so many are late, no further one is tried: each keeps a thread.
pub(super) const MAX_LATE: usize = 64;

/// Who is late.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Those whose homes have not answered yet.
    late: BTreeMap<String, Late>,
    /// Those who were late the last time; nobody waits for them.
    slow: BTreeSet<String>,
    /// Those that were not tried since too many are late.
    untried: BTreeSet<String>,
    /// Those of whom it is to be told that they do not answer.
    silent: BTreeSet<String>,
}

/// A home that has not answered yet.
#[derive(Debug)]
struct Late {
    since: Instant,
    /// Whether it was told.
    is_told: bool,
    /// Whether it is to be looked at again.
    again: bool,
}

impl Lateness {
    /// How long a home is waited for; `None` if it is not to be asked now.
    pub(super) fn patience(&mut self, name: &str) -> Option<Duration> {
        if let Some(late) = self.late.get_mut(name) {
            late.again = true;
            return None;
        }
        match self.late.len() {
            MAX_LATE.. => {
                self.untried.insert(name.to_owned());
                self.silent.insert(name.to_owned());
                None
            }
            _ if self.slow.contains(name) => Some(Duration::ZERO),
            MANY_LATE.. => Some(LITTLE_PATIENCE),
            _ => Some(PATIENCE),
        }
    }

    /// It answered in time.
    pub(super) fn note_answer(&mut self, name: &str, took: Duration) {
        if took < PATIENCE / 2 {
            self.slow.remove(name);
        }
    }

    /// Whoever looked at it failed, and will not answer.
    pub(super) fn note_failure(&mut self, name: &str) {
        self.silent.insert(name.to_owned());
    }

    /// It did not answer in time.
    pub(super) fn note_late(&mut self, name: &str, since: Instant, patience: Duration) {
        // Nobody waited for a slow one yet.
        let is_told = !patience.is_zero();
        if is_told {
            self.silent.insert(name.to_owned());
        }
        self.slow.insert(name.to_owned());
        self.late.insert(name.to_owned(), Late { since, is_told, again: false });
    }

    /// It answered late, or never will. Whether it is to be looked at again, and who can be tried now.
    pub(super) fn note_late_answer(&mut self, name: &str) -> (bool, BTreeSet<String>) {
        let again = self.late.remove(name).is_some_and(|late| late.again);
        (again, std::mem::take(&mut self.untried))
    }

    /// When it is to be told of somebody whom nobody waits for.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.late.values().filter(|late| !late.is_told).map(|late| late.since + PATIENCE).min()
    }

    /// Takes in that it is later.
    pub(super) fn note_time(&mut self, now: Instant) {
        for (name, late) in self.late.iter_mut().filter(|(_, late)| !late.is_told && late.since + PATIENCE <= now) {
            late.is_told = true;
            self.silent.insert(name.clone());
        }
    }

    /// Whether somebody has not answered yet.
    pub(super) fn is_late(&self, name: &str) -> bool {
        self.late.contains_key(name)
    }

    /// Whether something is to be told.
    pub(super) fn has_silent(&self) -> bool {
        !self.silent.is_empty()
    }

    /// Of whom it is to be told, once.
    pub(super) fn take_silent(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.silent)
    }

    /// It is there no more.
    pub(super) fn forget(&mut self, name: &str) {
        for set in [&mut self.slow, &mut self.untried, &mut self.silent] {
            set.remove(name);
        }
        if let Some(late) = self.late.get_mut(name) {
            late.is_told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_are_late_the_less_are_others_waited_for_and_in_the_end_not_tried() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        let name = |number: usize| format!("user{number}");
        for number in 0..MAX_LATE {
            let patience = lateness.patience(&name(number));
            assert_eq!(patience, Some(if number < MANY_LATE { PATIENCE } else { LITTLE_PATIENCE }), "{number}");
            lateness.note_late(&name(number), now, PATIENCE);
        }
        assert_eq!(lateness.patience("alice"), None);
        assert_eq!(lateness.patience(&name(0)), None, "who is late is not asked twice");
        assert_eq!(lateness.take_silent().len(), MAX_LATE + 1);
        assert_eq!(lateness.note_late_answer(&name(1)), (false, ["alice".to_owned()].into()));
        assert_eq!(lateness.note_late_answer(&name(0)), (true, BTreeSet::new()), "it was asked for in between");
    }

    #[test]
    fn who_was_late_is_not_waited_for_before_it_was_quick_and_is_told_when_it_is_time() {
        let (mut lateness, now) = (Lateness::default(), Instant::now());
        lateness.note_late("alice", now, PATIENCE);
        lateness.note_late_answer("alice");
        lateness.take_silent();
        assert_eq!(lateness.patience("alice"), Some(Duration::ZERO));
        lateness.note_late("alice", now, Duration::ZERO);
        assert_eq!((lateness.has_silent(), lateness.next_time()), (false, Some(now + PATIENCE)));
        lateness.note_time(now + PATIENCE);
        assert_eq!((lateness.take_silent(), lateness.next_time()), (["alice".to_owned()].into(), None));
        lateness.note_late_answer("alice");
        for (took, patience) in [(PATIENCE, Duration::ZERO), (PATIENCE / 4, PATIENCE)] {
            lateness.note_answer("alice", took);
            assert_eq!(lateness.patience("alice"), Some(patience));
        }
    }
}
