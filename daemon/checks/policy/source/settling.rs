//! When images that look unfinished are judged as they are. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A pull takes less from an image's entry in the list to its name, which is written last.
const TIME: Duration = Duration::from_secs(5);
/// So much of it an account has in a [`WINDOW`]: its owner could make images look unfinished again and again.
const BUDGET: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(600);

/// Whether an account has images that look unfinished, and since when: the account's, not an image's, since its owner could
/// replace the image by another one for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settling {
    /// What is there at the first look counts at once.
    is_seen: bool,
    /// Since when there are some, and when they count.
    unfinished: Option<(Instant, Instant)>,
    /// When the window began, and how much of the budget is used.
    window: Option<(Instant, Duration)>,
}

impl Settling {
    /// Takes in whether there are any now; answers whether they count: those that were there at first, and those that stay.
    pub(super) fn note(&mut self, is_unfinished: bool, now: Instant) -> bool {
        let used = match self.window {
            Some((since, used)) if now < since + WINDOW => used,
            _ => Duration::ZERO,
        };
        match (is_unfinished, self.unfinished) {
            (true, None) => {
                let time = if self.is_seen { TIME.min(BUDGET.saturating_sub(used)) } else { Duration::ZERO };
                self.unfinished = Some((now, now + time));
                if used.is_zero() {
                    self.window = Some((now, used));
                }
            }
            (false, Some((since, then))) => {
                self.unfinished = None;
                self.window = self.window.map(|(begin, _)| (begin, used + (now.min(then) - since)));
            }
            _ => {}
        }
        self.is_seen = true;
        self.due(now).is_none()
    }

    /// When they are to be looked at again if nothing happens.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.unfinished.map(|(_, then)| then).filter(|then| *then > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_at_first_and_what_stays_counts() {
        let start = Instant::now();
        // Seconds, whether there are unfinished ones, whether they count, when they are to be looked at again.
        for looks in [
            &[(0, true, true, None), (1, true, true, None)][..],
            &[(0, false, true, None), (1, true, false, Some(6)), (2, false, true, None), (9, true, false, Some(14))],
            &[(0, false, true, None), (1, true, false, Some(6)), (5, true, false, Some(6)), (6, true, true, None)],
        ] {
            let mut settling = Settling::default();
            for (second, is_unfinished, counts, due) in looks {
                let at = |second: &u64| start + Duration::from_secs(*second);
                let now = at(second);
                assert_eq!(settling.note(*is_unfinished, now), *counts, "{looks:?} at {second}");
                assert_eq!(settling.due(now), due.as_ref().map(at), "{looks:?} at {second}");
            }
        }
    }

    #[test]
    fn who_has_unfinished_images_again_and_again_has_used_up_what_is_their_due() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut settling = Settling::default();
        settling.note(false, start);
        let mut uncounted = Duration::ZERO;
        for tenth in 0..12_000 {
            // Nine seconds of ten, for twenty minutes.
            let counts = settling.note(tenth % 100 >= 10, start + second / 10 * tenth);
            uncounted += if counts { Duration::ZERO } else { second / 10 };
        }
        assert!(uncounted <= 2 * (BUDGET + TIME), "{uncounted:?} of twenty minutes");
    }
}
