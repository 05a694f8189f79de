//! When changes of a layer are told, and how much of them: soon and in detail at first, then in periods that grow, and with less
//! detail, while it goes on. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::gather::Key;

/// So long after the first one changes of a layer are told of which it is not known yet that its container was started: the
/// runtime is given time to say what it made.
const AT_START: Duration = Duration::from_secs(1);
/// So long after the first one others are.
const SOON: Duration = Duration::from_millis(150);
/// So many directories of each kind of change are told one by one at first; each next time half of it.
const MAX_DIRECTORIES: usize = 16;
/// So many always are.
const MIN_DIRECTORIES: usize = 4;

/// When changes of a layer are told.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// When what is gathered is to be told.
    pub(super) due: Instant,
    /// When the period is over.
    next: Instant,
    /// How long the next one will be.
    period: Duration,
    least: Duration,
    directories: usize,
    /// What was told in this period, or is to be told: what is not does not wait for its end.
    lately: BTreeSet<Key>,
}

impl Pace {
    /// Nothing was told yet.
    pub(super) fn new(now: Instant) -> Pace {
        let (directories, lately) = (MAX_DIRECTORIES, BTreeSet::new());
        Pace { due: now, next: now, period: SOON, least: AT_START, directories, lately }
    }

    /// It is known that the container was started, or there is none.
    pub(super) fn note_start(&mut self) {
        self.least = SOON;
    }

    /// Something is to be told; `is_first`: nothing else is.
    pub(super) fn note(&mut self, key: Key, is_first: bool, now: Instant) {
        if now >= self.next {
            self.lately.clear();
            if is_first && now >= self.next + self.period {
                self.period = SOON;
                self.directories = MAX_DIRECTORIES;
            }
        }
        let is_news = self.lately.insert(key);
        let due = if is_news || now >= self.next { now + self.least } else { self.next };
        self.due = if is_first { due } else { self.due.min(due) };
    }

    /// So many directories of each kind of change are to be told one by one.
    pub(super) fn directories(&self) -> usize {
        self.directories
    }

    /// All is told; a period is `most` long at most.
    pub(super) fn note_told(&mut self, now: Instant, most: Duration) {
        self.directories = (self.directories / 2).max(MIN_DIRECTORIES);
        if now >= self.next {
            self.next = now + self.period;
            self.period = (self.period * 3 / 2).min(most.max(SOON));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::containers::change::What;
    use crate::checks::containers::class::Class;
    use crate::checks::containers::gather::Thing;

    const KEY: Key = Key { what: What::Written, class: Class::Other, thing: Thing::File };
    const MOST: Duration = Duration::from_secs(10);

    /// When a layer is told that changes each hundredth of a second for so long.
    fn told(pace: &mut Pace, start: Instant, length: Duration) -> Vec<Duration> {
        let (mut now, mut told, mut gathers) = (start, Vec::new(), false);
        while now < start + length || gathers {
            if gathers && pace.due <= now {
                pace.note_told(now, MOST);
                (gathers, told) = (false, [told, vec![now - start]].concat());
            }
            if now < start + length {
                pace.note(KEY, !gathers, now);
                gathers = true;
            }
            now += Duration::from_millis(10);
        }
        told
    }

    #[test]
    fn what_goes_on_for_a_while_is_told_in_twice_that_time() {
        for length in [600, 1000, 1300, 2000, 5000, 10_000, 14_000] {
            let (start, length) = (Instant::now(), Duration::from_millis(length));
            let mut pace = Pace::new(start);
            pace.note_start();
            let told = told(&mut pace, start, length);
            assert!(*told.last().expect("told") <= 2 * length, "{length:?}: {told:?}");
        }
    }

    #[test]
    fn what_goes_on_for_ever_is_told_in_long_periods_and_what_comes_later_soon_again() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note_start();
        let hour = told(&mut pace, start, Duration::from_secs(3600));
        assert!(hour.len() < 380, "{}", hour.len());
        assert_eq!(pace.directories(), MIN_DIRECTORIES);
        let later = start + Duration::from_secs(4000);
        assert_eq!(told(&mut pace, later, Duration::from_millis(10)), [SOON]);
        pace.note(KEY, true, later + Duration::from_secs(1000));
        assert_eq!(pace.directories(), MAX_DIRECTORIES);
    }

    #[test]
    fn what_was_not_told_lately_does_not_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note_start();
        told(&mut pace, start, Duration::from_secs(60));
        let now = start + Duration::from_secs(61);
        pace.note(KEY, true, now);
        assert!(pace.due > now + SOON);
        pace.note(Key { class: Class::Setuid, ..KEY }, false, now);
        assert_eq!(pace.due, now + SOON);
    }
}
