//! What was tried, and when to try again. Pure: the time comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Answer;

/// After a try that failed: the first pause, and the longest. Each is twice as long as the one before.
const MIN_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// A pause that grows.
#[derive(Clone, Copy, Debug)]
struct Pause {
    length: Duration,
    /// When it ends.
    end: Instant,
}

impl Pause {
    fn first(now: Instant) -> Pause {
        Pause { length: MIN_PAUSE, end: now }
    }

    fn grow(&mut self, now: Instant) {
        self.end = now + self.length;
        self.length = (2 * self.length).min(MAX_PAUSE);
    }
}

/// The digests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    /// The server takes nothing until then.
    away: Option<Pause>,
    /// Digests that failed since the last that was taken, refused ones among them; and why the last of them did.
    failed: BTreeSet<u64>,
    trouble: Option<String>,
    /// When the first of them did.
    since: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    pause: Pause,
    /// The server refused it with its attachment.
    bare: bool,
}

impl Queue {
    /// Takes in which digests wait now; true if there are new ones.
    pub(super) fn see(&mut self, numbers: &[u64], now: Instant) -> bool {
        self.waiting.retain(|number, _| numbers.contains(number));
        let known = self.waiting.len();
        for number in numbers {
            self.waiting.entry(*number).or_insert(Waiting { pause: Pause::first(now), bare: false });
        }
        self.waiting.len() > known
    }

    /// The digest to be tried now: the one that is due for longest, so that none that fails slowly keeps another from its
    /// turn; of several the oldest.
    pub(super) fn next(&self, now: Instant) -> Option<u64> {
        let away = self.away.is_some_and(|pause| pause.end > now);
        let due = self.waiting.iter().filter(|(_, waiting)| !away && waiting.pause.end <= now);
        due.min_by_key(|(number, waiting)| (waiting.pause.end, **number)).map(|(number, _)| *number)
    }

    /// How long there is nothing to be tried.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        let first = self.waiting.values().map(|waiting| waiting.pause.end).min().unwrap_or(now);
        let end = self.away.map_or(first, |away| away.end.max(first));
        end.saturating_duration_since(now)
    }

    /// Whether a digest is to be tried without its attachment.
    pub(super) fn is_bare(&self, number: u64) -> bool {
        self.waiting.get(&number).is_some_and(|waiting| waiting.bare)
    }

    /// Takes in what became of a try.
    pub(super) fn note(&mut self, number: u64, answer: &Answer, now: Instant) {
        match answer {
            Answer::Taken => *self = Queue { waiting: std::mem::take(&mut self.waiting), ..Queue::default() },
            Answer::Refused(why) | Answer::Later(why) | Answer::Away(why) | Answer::Left(why) => {
                self.failed.insert(number);
                self.since.get_or_insert(now);
                self.trouble = Some(why.clone());
                if let Answer::Away(_) | Answer::Left(_) = answer {
                    // Whatever waits fails with it.
                    self.failed.extend(self.waiting.keys());
                    self.away.get_or_insert(Pause::first(now)).grow(now);
                } else {
                    self.away = None;
                }
            }
        }
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        match answer {
            Answer::Taken => drop(self.waiting.remove(&number)),
            Answer::Refused(_) if !waiting.bare => waiting.bare = true,
            Answer::Refused(_) => drop(self.waiting.remove(&number)),
            // Where it is because of this one, another is taken at the next try.
            Answer::Later(_) | Answer::Left(_) => waiting.pause.grow(now),
            Answer::Away(_) => {}
        }
    }

    /// How many digests failed since the last that was taken. `refused` are those that are set aside: the ones right before
    /// count too, which may have been refused by an earlier process.
    pub(super) fn failing(&self, refused: &[u64]) -> usize {
        let Some(first) = self.failed.first() else { return 0 };
        let before = refused.iter().rev().filter(|number| *number < first);
        let in_a_row = before.zip((0..*first).rev()).take_while(|(number, expected)| **number == *expected).count();
        self.failed.len() + in_a_row
    }

    /// Whether nothing was taken for long.
    pub(super) fn fails_long(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= MAX_PAUSE)
    }

    /// Whether the server took no message at all at the last try.
    pub(super) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// Why the last try failed, if it did.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of these digests, and the answers of a server to the tries of an hour: which were tried, at which second.
    fn tries(numbers: &[u64], answer: impl Fn(u64, u64, bool) -> Answer, seconds: u64) -> Vec<(u64, u64)> {
        let start = Instant::now();
        let (mut queue, mut tries) = (Queue::default(), Vec::new());
        let (mut left, mut second) = (numbers.to_vec(), 0);
        while second <= seconds && !left.is_empty() {
            let now = start + Duration::from_secs(second);
            queue.see(&left, now);
            let Some(number) = queue.next(now) else {
                second += queue.pause(now).as_secs().max(1);
                continue;
            };
            tries.push((number, second));
            let bare = queue.is_bare(number);
            let answer = answer(number, second, bare);
            if answer == Answer::Taken || (bare && matches!(answer, Answer::Refused(_))) {
                left.retain(|other| *other != number);
            }
            queue.note(number, &answer, now);
        }
        tries
    }

    fn why() -> String {
        "why".into()
    }

    #[test]
    fn a_server_that_is_away_is_tried_ever_less_often_and_then_takes_all_in_order() {
        let answer = |_, second, _| if second < 70 { Answer::Away(why()) } else { Answer::Taken };
        let expected = [(1, 0), (1, 5), (1, 15), (1, 35), (1, 75), (2, 75), (3, 75)];
        assert_eq!(tries(&[1, 2, 3], answer, 3600), expected);
        let seldom = tries(&[1], |_, _, _| Answer::Away(why()), 48 * 3600);
        let last: Vec<_> = seldom.iter().rev().take(2).map(|(_, second)| second).collect();
        assert_eq!(last[0] - last[1], 3600);
    }

    #[test]
    fn a_digest_that_is_not_taken_does_not_keep_the_next_from_it() {
        let answer = |number, second, _| if number == 1 && second < 10 { Answer::Later(why()) } else { Answer::Taken };
        assert_eq!(tries(&[1, 2], answer, 3600), [(1, 0), (2, 0), (1, 5), (1, 15)]);
    }

    #[test]
    fn a_server_that_goes_away_at_one_digest_is_offered_another_when_it_is_tried_again() {
        let answer = |number, second, _| {
            if number == 1 && second < 10 { Answer::Left(why()) } else { Answer::Taken }
        };
        assert_eq!(tries(&[1, 2, 3], answer, 3600), [(1, 0), (2, 5), (3, 5), (1, 5), (1, 15)]);
        let answer = |_, second, _| if second < 70 { Answer::Left(why()) } else { Answer::Taken };
        let seconds: Vec<_> = tries(&[1, 2, 3], answer, 3600).iter().map(|(_, second)| *second).collect();
        assert_eq!(seconds, [0, 5, 15, 35, 75, 75, 75], "it is tried no more often than one that is away");
    }

    #[test]
    fn a_digest_that_is_refused_is_tried_once_more_without_attachment() {
        let answer = |number, _, _| if number == 1 { Answer::Refused(why()) } else { Answer::Taken };
        assert_eq!(tries(&[1, 2], answer, 3600), [(1, 0), (1, 0), (2, 0)]);
        let answer = |_, _, bare| if bare { Answer::Taken } else { Answer::Refused(why()) };
        assert_eq!(tries(&[1], answer, 3600), [(1, 0), (1, 0)]);
    }

    #[test]
    fn failures_count_digests_and_end_with_one_that_is_taken() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.see(&[1], now);
        for _ in 0..3 {
            queue.note(1, &Answer::Later(why()), now);
        }
        assert_eq!((queue.failing(&[]), queue.trouble()), (1, Some("why")));
        queue.see(&[1, 2], now);
        queue.note(2, &Answer::Away(why()), now);
        assert_eq!((queue.failing(&[]), queue.is_away()), (2, true));
        queue.note(1, &Answer::Taken, now);
        assert_eq!((queue.failing(&[]), queue.trouble(), queue.is_away()), (0, None, false));
    }

    #[test]
    fn digests_that_an_earlier_process_had_refused_count_if_none_was_taken_since() {
        for (refused, failing) in [(&[][..], 1), (&[3], 1), (&[4, 6], 2), (&[4, 5, 6], 4), (&[5, 6, 7, 9], 3)] {
            let (mut queue, now) = (Queue::default(), Instant::now());
            queue.see(&[7], now);
            assert_eq!(queue.failing(refused), 0);
            queue.note(7, &Answer::Refused(why()), now);
            assert_eq!(queue.failing(refused), failing, "{refused:?}");
        }
    }

    #[test]
    fn digests_that_fail_slowly_do_not_keep_a_new_one_from_its_turn() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        let numbers: Vec<_> = (1..=9).collect();
        queue.see(&numbers[..8], now);
        for _ in 0..8 {
            let number = queue.next(now).expect("one is due");
            // Each try takes ten minutes.
            now += Duration::from_secs(600);
            queue.note(number, &Answer::Later(why()), now);
        }
        queue.see(&numbers, now);
        let mut next = std::iter::from_fn(|| {
            let number = queue.next(now)?;
            now += Duration::from_secs(600);
            queue.note(number, &Answer::Later(why()), now);
            Some(number)
        });
        let place = next.by_ref().take(10).position(|number| number == 9);
        assert!(place.is_some_and(|place| place < 9), "{place:?}");
    }

    #[test]
    fn one_digest_that_fails_for_an_hour_fails_long() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.see(&[1], now);
        queue.note(1, &Answer::Later(why()), now);
        queue.note(1, &Answer::Later(why()), now + MAX_PAUSE / 2);
        assert!(!queue.fails_long(now + MAX_PAUSE / 2) && queue.fails_long(now + MAX_PAUSE));
        queue.note(1, &Answer::Taken, now + MAX_PAUSE);
        assert!(!queue.fails_long(now + 2 * MAX_PAUSE));
    }
}
