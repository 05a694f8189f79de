//! The arithmetic: weights, levels, the metric of a check, and which conditions are open.
//!
//! Pure: no I/O, and the time comes in as an argument.

mod conditions;
mod json;
mod level;
mod range;
mod weights;

use std::borrow::Cow;
use std::time::SystemTime;

pub(crate) use conditions::humantime_text;
pub use conditions::{Metrics, Open, OpenConditions, condition};
pub use json::{write_finding, write_finding_with};
pub use level::{Level, Levels};
pub use range::Range;
pub use weights::{Weight, WeightChanges, Weights};

use crate::finding::{Finding, Kind};

/// A finding with its weight and level: what reports write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scored<'a> {
    /// What was found.
    pub finding: Finding<'a>,
    /// podsec metric weight of its id.
    pub weight: u32,
    /// Level, [`Level::Low`] for whatever is cleared.
    pub level: Level,
    /// For a cleared condition: the level that it had.
    pub former_level: Option<Level>,
}

/// Judges a finding by the weights and the ranges.
pub fn judge<'a>(finding: Finding<'a>, weights: &Weights, levels: &Levels) -> Scored<'a> {
    let entry = weights.get(finding.id);
    let level = entry.level.unwrap_or_else(|| levels.of(entry.weight));
    let cleared = finding.kind == Kind::Cleared;
    Scored {
        weight: entry.weight,
        // Monitoring must not take the end of a trouble for an alert.
        level: if cleared { Level::Low } else { level },
        former_level: cleared.then_some(level),
        finding,
    }
}

impl Scored<'_> {
    /// The same without borrowed text.
    pub fn into_owned(self) -> Scored<'static> {
        let Scored { finding, weight, level, former_level } = self;
        Scored { finding: finding.into_owned(), weight, level, former_level }
    }
}

/// A time as RFC 3339 in UTC with microseconds. Times before 1970 or after 9999, which no clock that works has, are
/// shown as the nearest one that can be written.
pub fn rfc3339(time: SystemTime) -> Cow<'static, str> {
    const LAST: u64 = 253_402_300_799;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if since.as_secs() > LAST {
        return Cow::Borrowed("9999-12-31T23:59:59.999999Z");
    }
    Cow::Owned(humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + since).to_string())
}
