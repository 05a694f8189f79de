//! The lines that helpers send, and what podsecd makes of them. Pure.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::MAX_LINE;
use crate::finding::{Fields, Finding, Id, Kind};

/// Longest subject and longest message, in bytes.
const MAX_SUBJECT: usize = 256;
const MAX_MESSAGE: usize = 4096;

/// How many conditions of a helper may be open at once.
pub const MAX_CONDITIONS: usize = 64;

/// How many findings may wait to be reported before nothing more is taken from a helper.
pub const MAX_PENDING: usize = 1024;

/// A condition that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Its id.
    pub id: String,
    /// Whom or what it is about.
    pub subject: String,
    /// One sentence.
    pub message: String,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Opening<C> {
    pub(super) conditions: C,
}

/// Each further line: something that happened, or a condition that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Its id.
    pub id: String,
    /// `event`, `raised` or `cleared`.
    pub kind: String,
    /// Whom or what it is about.
    pub subject: String,
    /// One sentence.
    pub message: String,
    /// Further fields; no id of today has any.
    #[serde(default)]
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// podsecd's answer to a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It counts as reported.
    Taken,
    /// It is not taken, and why.
    Refused(String),
}

/// What a line says, in podsecd's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// These are its open conditions, of these ids.
    Conditions(&'static [Id], Vec<Finding<'static>>),
    /// This happened, or changed, of these ids.
    Finding(&'static [Id], Finding<'static>),
}

/// Why a line is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none of the protocol's.
    #[error("not a line of this protocol: {0}")]
    Malformed(String),
    /// Longer than [`MAX_LINE`].
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// No such id, or none that this helper may report on.
    #[error("`{0}` is none of the findings that this helper may report on")]
    Id(String),
    /// No such kind.
    #[error("`{0}` is no kind; write event, raised or cleared")]
    Kind(String),
    /// A field that the id does not have.
    #[error("`{0}` has no field `{1}`")]
    Field(String, String),
    /// Too many conditions.
    #[error("more than {MAX_CONDITIONS} conditions are open")]
    Conditions,
    /// The reports take nothing.
    #[error("{MAX_PENDING} findings wait to be reported already; try again later")]
    Pending,
    /// A text is too long.
    #[error("{0} is longer than {1} bytes")]
    Text(&'static str, usize),
}

/// Reads the first line of a helper that may report on these ids.
///
/// # Errors
/// [`Refusal`]; nothing of the line is taken then.
pub fn parse_conditions(line: &[u8], may: &'static [Id], now: SystemTime) -> Result<Reported, Refusal> {
    let opening: Opening<Vec<Condition>> = parse(line)?;
    if opening.conditions.len() > MAX_CONDITIONS {
        return Err(Refusal::Conditions);
    }
    let findings = opening
        .conditions
        .into_iter()
        .map(|open| finding(&open.id, Kind::Raised, open.subject, open.message, may, now));
    Ok(Reported::Conditions(may, findings.collect::<Result<_, _>>()?))
}

/// Reads a further line.
///
/// # Errors
/// [`Refusal`].
pub fn parse_report(line: &[u8], may: &'static [Id], now: SystemTime) -> Result<Reported, Refusal> {
    let report: Report = parse(line)?;
    let kind = [Kind::Event, Kind::Raised, Kind::Cleared].into_iter().find(|kind| kind.as_str() == report.kind);
    let kind = kind.ok_or(Refusal::Kind(report.kind))?;
    if let Some(name) = report.fields.keys().next() {
        return Err(Refusal::Field(report.id, name.clone()));
    }
    finding(&report.id, kind, report.subject, report.message, may, now).map(|finding| Reported::Finding(may, finding))
}

fn parse<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(line).map_err(|error| Refusal::Malformed(error.to_string()))
}

fn finding(
    id: &str,
    kind: Kind,
    subject: String,
    message: String,
    may: &[Id],
    time: SystemTime,
) -> Result<Finding<'static>, Refusal> {
    let id = may.iter().find(|known| known.0 == id).copied().ok_or_else(|| Refusal::Id(id.to_owned()))?;
    for (what, text, most) in [("the subject", &subject, MAX_SUBJECT), ("the message", &message, MAX_MESSAGE)] {
        if text.len() > most {
            return Err(Refusal::Text(what, most));
        }
    }
    Ok(Finding { time, id, kind, subject: subject.into(), message: message.into(), fields: Fields::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::own::ids::{MAIL_FAILING, MAIL_REFUSED};

    const MAY: &[Id] = &[MAIL_FAILING, MAIL_REFUSED];
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_helper_says_what_happened_in_a_line() {
        let line = br#"{"id":"self/mail-refused","kind":"event","subject":"digest 7","message":"no\nsuch user"}"#;
        let Ok(Reported::Finding(MAY, finding)) = parse_report(line, MAY, NOW) else { panic!("not taken") };
        assert_eq!((finding.id, finding.kind), (MAIL_REFUSED, Kind::Event));
        assert_eq!((finding.subject.as_ref(), finding.message.as_ref()), ("digest 7", "no\nsuch user"));
        let line = br#"{"conditions":[{"id":"self/mail-failing","subject":"mail","message":"away"}]}"#;
        let Ok(Reported::Conditions(MAY, open)) = parse_conditions(line, MAY, NOW) else { panic!("not taken") };
        assert_eq!((open.len(), open[0].id, open[0].kind), (1, MAIL_FAILING, Kind::Raised));
    }

    #[test]
    fn what_a_helper_may_not_say_is_refused_with_the_reason() {
        let long =
            format!(r#"{{"id":"self/mail-refused","kind":"event","subject":"{}","message":""}}"#, "x".repeat(300));
        for (line, why) in [
            ("", "not a line of this protocol"),
            ("[]", "not a line of this protocol"),
            (r#"{"id":"self/mail-refused","kind":"event","subject":"","message":"","level":"Crash"}"#, "`level`"),
            (r#"{"id":"kubeapi/forbidden","kind":"event","subject":"","message":""}"#, "`kubeapi/forbidden`"),
            (r#"{"id":"self/mail-refused","kind":"alarm","subject":"","message":""}"#, "`alarm` is no kind"),
            (r#"{"id":"self/mail-refused","kind":"event","subject":"","message":"","fields":{"x":1}}"#, "no field `x`"),
            (&long, "the subject is longer than 256 bytes"),
        ] {
            let refusal = parse_report(line.as_bytes(), MAY, NOW).expect_err(line).to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
        let alien = br#"{"conditions":[{"id":"self/part-failed","subject":"","message":""}]}"#;
        let open = r#"{"id":"self/mail-failing","subject":"","message":""},"#.repeat(MAX_CONDITIONS + 1);
        let many = format!(r#"{{"conditions":[{}]}}"#, open.trim_end_matches(','));
        assert_eq!(parse_conditions(many.as_bytes(), MAY, NOW), Err(Refusal::Conditions));
        assert_eq!(parse_conditions(alien, MAY, NOW), Err(Refusal::Id("self/part-failed".into())));
    }
}
