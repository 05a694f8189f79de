//! The nouns: what a check concluded.
//!
//! A [`Finding`] is plain data. It borrows from the observation where it can, so that scanning a log of a hundred
//! thousand refusals copies nothing; [`Finding::into_owned`] cuts that tie where one has to travel.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

/// Name of a finding, `check/what`, such as `kubeapi/forbidden`. Every id has an entry in `policy/weights.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub &'static str);

impl Id {
    /// The check that the finding belongs to: the part before the slash.
    pub fn check(self) -> &'static str {
        self.0.split_once('/').map_or(self.0, |(check, _)| check)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Whether a finding happened once or says that a condition changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It happened once.
    Event,
    /// A condition began to hold.
    Raised,
    /// A condition holds no longer.
    Cleared,
}

impl Kind {
    /// The word for it in JSON and in `PODSEC_KIND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Raised => "raised",
            Kind::Cleared => "cleared",
        }
    }
}

/// Name of a further field of a finding, as JSON and as journald spell it.
#[derive(Debug, PartialEq, Eq)]
pub struct FieldName {
    /// Name in a JSON finding, with quotes and colon as it is written; audit.k8s.io's name where it has one.
    pub json: &'static str,
    /// Name of the journal field (upper case, systemd.journal-fields(7)).
    pub journal: &'static str,
}

impl FieldName {
    /// Name in a JSON finding.
    pub fn json_name(&self) -> &'static str {
        self.json.trim_end_matches(':').trim_matches('"')
    }
}

/// The event was in the logs before podsecd was first started.
pub static HISTORY: FieldName = FieldName { json: "\"history\":", journal: "PODSEC_HISTORY" };

/// Value of a further field. Text may have been written by an attacker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// One text.
    Text(Cow<'a, str>),
    /// Several texts; one journal field each.
    List(Vec<Cow<'a, str>>),
    /// A whole number.
    Number(u64),
}

impl Value<'_> {
    fn into_owned(self) -> Value<'static> {
        match self {
            Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Value::List(list) => Value::List(list.into_iter().map(|text| Cow::Owned(text.into_owned())).collect()),
            Value::Number(number) => Value::Number(number),
        }
    }
}

/// Further fields of a finding, in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a>(pub Vec<(&'static FieldName, Value<'a>)>);

impl<'a> Fields<'a> {
    /// Adds a text, unless it is empty.
    pub fn text(&mut self, name: &'static FieldName, text: impl Into<Cow<'a, str>>) {
        let text = text.into();
        if !text.is_empty() {
            self.add(name, Value::Text(text));
        }
    }

    /// Adds a list, unless it is empty.
    pub fn list(&mut self, name: &'static FieldName, list: Vec<Cow<'a, str>>) {
        if !list.is_empty() {
            self.add(name, Value::List(list));
        }
    }

    /// Adds a number.
    pub fn number(&mut self, name: &'static FieldName, number: u64) {
        self.add(name, Value::Number(number));
    }

    /// One copy of this for all fields: a finding that comes after a pause finds the code not in the core's cache.
    #[inline(never)]
    fn add(&mut self, name: &'static FieldName, value: Value<'a>) {
        self.0.push((name, value));
    }

    /// The value of a field, if the finding has it.
    pub fn get(&self, name: &FieldName) -> Option<&Value<'a>> {
        self.0.iter().find(|(have, _)| *have == name).map(|(_, value)| value)
    }
}

/// What a check concluded. Weight and level are not its business: [`crate::score`] adds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<'a> {
    /// When it happened, by the clock of whoever observed it.
    pub time: SystemTime,
    /// What it is.
    pub id: Id,
    /// Event, raised or cleared.
    pub kind: Kind,
    /// Whom or what it is about (user, container, port, file). (id, subject) is a condition's key.
    pub subject: Cow<'a, str>,
    /// One sentence for people, without level. May hold attacker text; reports escape it.
    pub message: Cow<'a, str>,
    /// Further fields.
    pub fields: Fields<'a>,
}

impl Finding<'_> {
    /// The same finding without borrowed text.
    pub fn into_owned(self) -> Finding<'static> {
        Finding {
            time: self.time,
            id: self.id,
            kind: self.kind,
            subject: Cow::Owned(self.subject.into_owned()),
            message: Cow::Owned(self.message.into_owned()),
            fields: Fields(self.fields.0.into_iter().map(|(name, value)| (name, value.into_owned())).collect()),
        }
    }
}

/// The beginning of a text: whole characters, at most `most` bytes of them.
pub fn prefix(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}
