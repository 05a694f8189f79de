//! How bad a finding is, in podsec's words.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Range;

/// podsec's levels, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Level {
    /// Syslog 0; reaches every terminal.
    Crash,
    /// Syslog 1.
    Fatal,
    /// Syslog 2.
    Critical,
    /// Syslog 3.
    High,
    /// Syslog 4.
    Middle,
    /// Syslog 4.
    Warning,
    /// Syslog 5.
    Low,
    /// Syslog 6.
    Debug,
}

impl Level {
    /// All levels, the worst first.
    pub const ALL: [Level; 8] = [
        Level::Crash,
        Level::Fatal,
        Level::Critical,
        Level::High,
        Level::Middle,
        Level::Warning,
        Level::Low,
        Level::Debug,
    ];

    /// The word that podsec, nagwad and Icinga know.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Crash => "Crash",
            Level::Fatal => "Fatal",
            Level::Critical => "Critical",
            Level::High => "High",
            Level::Middle => "Middle",
            Level::Warning => "Warning",
            Level::Low => "Low",
            Level::Debug => "Debug",
        }
    }

    /// syslog(3) priority, 0 to 6.
    pub fn priority(self) -> u8 {
        match self {
            Level::Crash => 0,
            Level::Fatal => 1,
            Level::Critical => 2,
            Level::High => 3,
            Level::Middle | Level::Warning => 4,
            Level::Low => 5,
            Level::Debug => 6,
        }
    }

    /// What a Nagios plugin answers for a metric of this level: 2 CRITICAL, 1 WARNING, 0 OK, the way nagwad sorts them.
    pub fn nagios(self) -> u8 {
        match self {
            Level::Crash | Level::Fatal | Level::Critical | Level::High | Level::Middle => 2,
            Level::Warning => 1,
            Level::Low | Level::Debug => 0,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        Level::ALL.into_iter().find(|level| level.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Level::ALL.iter().map(|level| level.as_str()).collect();
            format!("`{text}` is no level; use one of {}", known.join(", "))
        })
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Level, String> {
        text.parse()
    }
}

impl From<Level> for &'static str {
    fn from(level: Level) -> &'static str {
        level.as_str()
    }
}

/// Which weights and metrics have which level: for each level a Nagios range; outside of it, the level holds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[expect(missing_docs, reason = "each key is the level of its name")]
pub struct Levels {
    pub crash: Option<Range>,
    pub fatal: Option<Range>,
    pub critical: Option<Range>,
    pub high: Option<Range>,
    pub middle: Option<Range>,
    pub warning: Option<Range>,
    pub low: Option<Range>,
    pub debug: Option<Range>,
}

impl Default for Levels {
    /// podsec's own: its timers call every check with `-c 100`.
    fn default() -> Levels {
        let critical = Some(Range::outside(0.0, 100.0));
        let none = None;
        Levels { crash: none, fatal: none, critical, high: none, middle: none, warning: none, low: none, debug: none }
    }
}

impl Levels {
    /// The worst level whose range alerts on `value`; [`Level::Low`] where none does.
    pub fn of(&self, value: u32) -> Level {
        let alerts = |range: Option<Range>| range.is_some_and(|range| range.alerts(f64::from(value)));
        Level::ALL.into_iter().find(|level| alerts(self.range(*level))).unwrap_or(Level::Low)
    }

    fn range(&self, level: Level) -> Option<Range> {
        match level {
            Level::Crash => self.crash,
            Level::Fatal => self.fatal,
            Level::Critical => self.critical,
            Level::High => self.high,
            Level::Middle => self.middle,
            Level::Warning => self.warning,
            Level::Low => self.low,
            Level::Debug => self.debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podsec_alerts_at_101_and_not_at_100() {
        let levels = Levels::default();
        for (value, level) in [(0, Level::Low), (100, Level::Low), (101, Level::Critical), (5000, Level::Critical)] {
            assert_eq!(levels.of(value), level, "metric {value}");
        }
    }

    #[test]
    fn the_worst_range_that_alerts_wins() {
        let levels = Levels { warning: "10".parse().ok(), fatal: "500".parse().ok(), ..Levels::default() };
        for (value, level) in [(10, Level::Low), (11, Level::Warning), (101, Level::Critical), (501, Level::Fatal)] {
            assert_eq!(levels.of(value), level, "metric {value}");
        }
    }
}
