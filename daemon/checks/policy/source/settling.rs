//! When images that look unfinished are judged as they are. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A pull takes less from an image's entry in the list to its name, which is written last.
const TIME: Duration = Duration::from_secs(5);

/// Whether an account has images that look unfinished, and since when: the account's, not an image's, since its owner could
/// replace the image by another one for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Settling {
    #[default]
    Unseen,
    Finished,
    /// They count from then on.
    Unfinished(Instant),
}

impl Settling {
    /// Takes in whether there are any now; answers whether they count: those that were there at first, and those that stay.
    pub(super) fn note(&mut self, is_unfinished: bool, now: Instant) -> bool {
        *self = match *self {
            _ if !is_unfinished => Settling::Finished,
            Settling::Unseen => Settling::Unfinished(now),
            Settling::Finished => Settling::Unfinished(now + TIME),
            unfinished @ Settling::Unfinished(_) => unfinished,
        };
        !matches!(*self, Settling::Unfinished(then) if then > now)
    }

    /// When they are to be looked at again if nothing happens.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match *self {
            Settling::Unfinished(then) if then > now => Some(then),
            _ => None,
        }
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
}
