//! The lines that helpers send, and what podsecd makes of them. Pure.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::MAX_LINE;
use crate::finding::{Fields, Finding, Id, Kind};

/// Longest subject, in bytes.
const MAX_SUBJECT: usize = 256;
/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// How many findings may wait to be reported before nothing more is taken from a helper.
pub const MAX_PENDING: usize = 1024;

/// A helper: who it is, and what it may report on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helper {
    /// The name of its unit, without `.service`.
    pub name: &'static str,
    /// Its user id.
    pub uid: u32,
    /// The ids of its findings.
    pub may: &'static [&'static [Id]],
    /// How many of its conditions may be open at once.
    pub conditions: usize,
}

impl Helper {
    /// Whether it may report on findings of an id.
    pub fn may_report(&self, id: Id) -> bool {
        self.may.iter().any(|ids| ids.contains(&id))
    }
}

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

/// The first line: all conditions that are open.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening<C> {
    /// A list of [`Condition`].
    pub conditions: C,
    /// They are all that there are; else there may be others, of which the helper knows nothing yet.
    #[serde(default = "yes")]
    pub all: bool,
}

fn yes() -> bool {
    true
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
    /// It is not taken now, and why.
    Later(String),
}

/// What a helper says, in podsecd's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Who says it.
    pub by: Helper,
    /// What it says.
    pub what: What,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// These are its open conditions; all of them, or those that it knows of.
    Conditions(Vec<Finding<'static>>, bool),
    /// This happened, or changed.
    Finding(Finding<'static>),
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
    /// It did not say which conditions are open.
    #[error("the first line must hold the open conditions")]
    First,
    /// Too many conditions.
    #[error("more than {0} conditions are open")]
    Conditions(usize),
    /// The reports take nothing.
    #[error("{MAX_PENDING} findings wait to be reported already; try again later")]
    Pending,
    /// A text is too long.
    #[error("{0} is longer than {1} bytes")]
    Text(&'static str, usize),
}

/// Reads a line of a helper.
///
/// # Errors
/// [`Refusal`]; nothing of the line is taken then.
pub fn parse(line: &[u8], by: Helper, now: SystemTime) -> Result<Reported, Refusal> {
    let malformed = |error: serde_json::Error| Refusal::Malformed(error.to_string());
    let value: serde_json::Value = serde_json::from_slice(line).map_err(malformed)?;
    if value.get("conditions").is_none() {
        let report = serde_json::from_value(value).map_err(malformed)?;
        return Ok(Reported { by, what: What::Finding(read_report(report, by, now)?) });
    }
    let opening: Opening<Vec<Condition>> = serde_json::from_value(value).map_err(malformed)?;
    if opening.conditions.len() > by.conditions {
        return Err(Refusal::Conditions(by.conditions));
    }
    let open = opening.conditions.into_iter();
    let open = open.map(|open| finding(&open.id, Kind::Raised, open.subject, open.message, by, now));
    Ok(Reported { by, what: What::Conditions(open.collect::<Result<_, _>>()?, opening.all) })
}

fn read_report(report: Report, by: Helper, now: SystemTime) -> Result<Finding<'static>, Refusal> {
    let kind = [Kind::Event, Kind::Raised, Kind::Cleared].into_iter().find(|kind| kind.as_str() == report.kind);
    let kind = kind.ok_or(Refusal::Kind(report.kind))?;
    if let Some(name) = report.fields.keys().next() {
        return Err(Refusal::Field(report.id, name.clone()));
    }
    finding(&report.id, kind, report.subject, report.message, by, now)
}

fn finding(
    id: &str,
    kind: Kind,
    subject: String,
    message: String,
    by: Helper,
    time: SystemTime,
) -> Result<Finding<'static>, Refusal> {
    let known = by.may.iter().copied().flatten().find(|known| known.0 == id).copied();
    let id = known.ok_or_else(|| Refusal::Id(id.to_owned()))?;
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

    const MAIL: Helper = Helper { name: "podsecd-mail", uid: 1, may: &[&[MAIL_FAILING, MAIL_REFUSED]], conditions: 2 };
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_helper_says_what_happened_in_a_line() {
        let line = br#"{"id":"self/mail-refused","kind":"event","subject":"digest 7","message":"no\nsuch user"}"#;
        let Ok(Reported { by: MAIL, what: What::Finding(finding) }) = parse(line, MAIL, NOW) else {
            panic!("not taken")
        };
        assert_eq!((finding.id, finding.kind), (MAIL_REFUSED, Kind::Event));
        assert_eq!((finding.subject.as_ref(), finding.message.as_ref()), ("digest 7", "no\nsuch user"));
        let line = br#"{"conditions":[{"id":"self/mail-failing","subject":"mail","message":"away"}]}"#;
        let Ok(Reported { what: What::Conditions(open, true), .. }) = parse(line, MAIL, NOW) else {
            panic!("not taken")
        };
        assert_eq!((open.len(), open[0].id, open[0].kind), (1, MAIL_FAILING, Kind::Raised));
    }

    #[test]
    fn what_a_helper_may_not_say_is_refused_with_the_reason() {
        let long =
            format!(r#"{{"id":"self/mail-refused","kind":"event","subject":"{}","message":""}}"#, "x".repeat(300));
        let open = r#"{"id":"self/mail-failing","subject":"","message":""},"#.repeat(3);
        let many = format!(r#"{{"conditions":[{}]}}"#, open.trim_end_matches(','));
        for (line, why) in [
            ("", "not a line of this protocol"),
            ("[]", "not a line of this protocol"),
            (r#"{"id":"self/mail-refused","kind":"event","subject":"","message":"","level":"Crash"}"#, "`level`"),
            (r#"{"id":"kubeapi/forbidden","kind":"event","subject":"","message":""}"#, "`kubeapi/forbidden`"),
            (r#"{"id":"self/mail-refused","kind":"alarm","subject":"","message":""}"#, "`alarm` is no kind"),
            (r#"{"id":"self/mail-refused","kind":"event","subject":"","message":"","fields":{"x":1}}"#, "no field `x`"),
            (&long, "the subject is longer than 256 bytes"),
            (r#"{"conditions":[{"id":"self/part-failed","subject":"","message":""}]}"#, "`self/part-failed`"),
            (r#"{"conditions":[],"id":"self/mail-refused"}"#, "`id`"),
            (&many, "more than 2 conditions"),
        ] {
            let refusal = parse(line.as_bytes(), MAIL, NOW).expect_err(line).to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
