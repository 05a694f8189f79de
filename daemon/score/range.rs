//! Ranges as the Nagios plugin guidelines define them (<https://nagios-plugins.org/doc/guidelines.html>, "Threshold and
//! ranges"): `[@]start:end`, `~` for minus infinity, no end for infinity, `10` for `0:10`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A range of numbers; alerts outside of it, or inside if it was written with `@`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Range {
    start: f64,
    end: f64,
    inside: bool,
}

impl Range {
    /// The range that alerts outside of `start..=end`.
    pub const fn outside(start: f64, end: f64) -> Range {
        Range { start, end, inside: false }
    }

    /// Whether `value` alerts. Both ends belong to the range.
    pub fn alerts(&self, value: f64) -> bool {
        (self.start..=self.end).contains(&value) == self.inside
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Range, String> {
        let wrong =
            |what: &str| format!("`{text}` is no Nagios range: {what}; write for example `100`, `10:100` or `~:5`");
        let number = |part: &str| match part.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(wrong(&format!("`{part}` is no number"))),
        };
        let (inside, rest) = text.strip_prefix('@').map_or((false, text), |rest| (true, rest));
        let (start, end) = match rest.split_once(':') {
            None => (0.0, number(rest)?),
            Some((start, end)) => (
                match start {
                    "" => 0.0,
                    "~" => f64::NEG_INFINITY,
                    _ => number(start)?,
                },
                if end.is_empty() { f64::INFINITY } else { number(end)? },
            ),
        };
        if start > end {
            return Err(wrong("it starts behind its end"));
        }
        Ok(Range { start, end, inside })
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Range, String> {
        text.parse()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inside {
            f.write_str("@")?;
        }
        if self.start == f64::NEG_INFINITY {
            f.write_str("~:")?;
        } else {
            write!(f, "{}:", self.start)?;
        }
        if self.end == f64::INFINITY { Ok(()) } else { write!(f, "{}", self.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_alert_as_the_nagios_guidelines_say() {
        for (range, alerts, silent) in [
            ("10", &[-1.0, 10.1, 11.0][..], &[0.0, 5.0, 10.0][..]),
            ("10:", &[9.9, -5.0], &[10.0, 1e9]),
            ("~:10", &[10.5, 11.0], &[-1e9, 0.0, 10.0]),
            ("10:20", &[9.0, 21.0], &[10.0, 20.0]),
            ("@10:20", &[10.0, 15.0, 20.0], &[9.0, 21.0]),
            ("0:100", &[101.0], &[100.0]),
        ] {
            let parsed: Range = range.parse().expect("a range");
            assert!(alerts.iter().all(|value| parsed.alerts(*value)), "{range}");
            assert!(!silent.iter().any(|value| parsed.alerts(*value)), "{range}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{range} written and read again");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_an_example() {
        for text in ["", ":", "x", "20:10", "1:2:3", "@", "nan", "inf", "~"] {
            let parsed = text.parse::<Range>();
            if text == ":" {
                assert_eq!(parsed, Ok(Range::outside(0.0, f64::INFINITY)));
                continue;
            }
            assert!(parsed.expect_err(text).contains("write for example"), "{text}");
        }
    }
}
