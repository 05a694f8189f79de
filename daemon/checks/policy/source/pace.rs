//! How often what one account owns is looked at: as often as it changes, but not for ever. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Who is looked at all the time is looked at once in this time.
const INTERVAL: Duration = Duration::from_secs(5);
/// Of whoever takes long, so many times that long.
const SHARE: u32 = 20;
/// Nobody owes more than that.
const MAX_DEBT: Duration = Duration::from_secs(60);
/// This much may be taken in advance: sixty looks that take no time.
const CREDIT: Duration = Duration::from_secs(300);

/// When accounts have used up what is their due (the generic cell rate algorithm).
#[derive(Debug, Default)]
pub(super) struct Pace(BTreeMap<String, Instant>);

impl Pace {
    /// When an account may be looked at: now, or later.
    pub(super) fn when(&mut self, name: &str, now: Instant) -> Instant {
        match self.0.get(name) {
            Some(used) if *used > now => (*used - CREDIT).max(now),
            Some(_) => {
                self.0.remove(name);
                now
            }
            None => now,
        }
    }

    /// It was looked at, which took so long.
    pub(super) fn note(&mut self, name: &str, took: Duration, now: Instant) {
        let used = self.0.entry(name.to_owned()).or_insert(now);
        *used = ((*used).max(now) + INTERVAL.max(took * SHARE)).min(now + CREDIT + MAX_DEBT);
    }

    /// It is there no more.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an account that changes all the time is looked at within a time, if a look takes so long.
    fn looks(within: Duration, took: Duration) -> u64 {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let (mut now, mut count) = (start, 0);
        while now < start + within {
            let when = pace.when("alice", now);
            if when > now {
                now = when;
                continue;
            }
            pace.note("alice", took, now);
            now += took.max(Duration::from_millis(200));
            count += 1;
        }
        count
    }

    #[test]
    fn who_changes_all_the_time_is_looked_at_less_and_less() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        for (within, took, expected) in [
            (Duration::from_secs(10), Duration::from_millis(1), 50..=50),
            (minute, Duration::from_millis(1), 61..=75),
            (hour, Duration::from_millis(1), 720..=800),
            (hour, Duration::from_secs(2), 90..=110),
        ] {
            let looks = looks(within, took);
            assert!(expected.contains(&looks), "{looks} within {within:?}, each {took:?}");
        }
    }

    #[test]
    fn who_rests_is_forgotten_and_others_are_not_held_up() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            pace.note("alice", Duration::ZERO, now);
        }
        assert!(pace.when("alice", now) > now);
        assert_eq!(pace.when("bob", now), now);
        let later = now + Duration::from_secs(361);
        assert_eq!((pace.when("alice", later), pace.0.len()), (later, 0));
    }
}
