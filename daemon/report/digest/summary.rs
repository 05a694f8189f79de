//! What a period held, grouped so that a person can read it. Pure: entries of the spool come in, one after the other.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::spool::Spooled;
use crate::checks::kubeapi::ids::REFUSALS;
use crate::finding::{Kind, prefix};
use crate::report::text::shorten;
use crate::score::Level;

/// How many groups are told apart. What does not belong to one of them is counted by id.
const MAX_GROUPS: usize = 4096;

/// Longest text that is kept of a finding, in bytes: clients choose how long theirs are.
const MAX_TEXT: usize = 512;

/// A period.
#[derive(Debug, Default)]
pub struct Summary {
    /// The worst level of what was not cleared; `None` if nothing was found.
    pub worst: Option<Level>,
    /// Requests that were refused.
    pub refusals: u64,
    /// Other events.
    pub events: u64,
    /// Time of the first finding and of the last one.
    pub span: Option<(SystemTime, SystemTime)>,
    /// Conditions that changed, by (id, subject): the last change of each.
    pub changes: BTreeMap<(String, String), Change>,
    groups: BTreeMap<Key, Group>,
}

/// A condition that changed.
#[derive(Debug)]
pub struct Change {
    /// It began to hold, or it no longer does.
    pub raised: bool,
    /// Level when it was raised, `Low` when it was cleared.
    pub level: Level,
    /// When.
    pub time: SystemTime,
    /// The sentence with which it changed.
    pub message: String,
}

/// What makes events one group: who did what to what, from where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    level: Level,
    id: String,
    parts: [String; 7],
}

/// Events that are alike.
#[derive(Debug)]
pub struct Group {
    /// Their level.
    pub level: Level,
    /// Their id.
    pub id: String,
    /// How many they are.
    pub count: u64,
    /// When the first happened.
    pub first: SystemTime,
    /// When the last happened.
    pub last: SystemTime,
    /// What the first says.
    pub message: String,
    /// They are too different to be told apart.
    pub various: bool,
}

impl Summary {
    /// Takes in the next finding.
    pub fn add(&mut self, finding: Spooled) {
        let (first, last) = self.span.unwrap_or((finding.time, finding.time));
        self.span = Some((first.min(finding.time), last.max(finding.time)));
        if finding.kind != Kind::Cleared.as_str() {
            self.worst = self.worst.into_iter().chain([finding.level]).min();
        }
        if finding.kind == Kind::Event.as_str() {
            let refused = REFUSALS.iter().any(|id| id.0 == finding.id);
            *(if refused { &mut self.refusals } else { &mut self.events }) += 1;
            return self.group(finding);
        }
        let raised = finding.kind == Kind::Raised.as_str();
        let change = Change { raised, level: finding.level, time: finding.time, message: finding.message };
        self.changes.insert((finding.id, finding.subject), change);
    }

    fn group(&mut self, finding: Spooled) {
        let names = ["impersonatedUser", "verb", "resource", "subresource", "namespace", "sourceIP"];
        let [impersonated, verb, resource, subresource, namespace, source] =
            names.map(|name| prefix(finding.text(name), MAX_TEXT).to_owned());
        let subject = prefix(&finding.subject, MAX_TEXT).to_owned();
        let mut key = Key {
            level: finding.level,
            id: finding.id.clone(),
            parts: [subject, impersonated, verb, resource, subresource, namespace, source],
        };
        let various = self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key);
        if various {
            key.parts = Default::default();
        }
        let group = self.groups.entry(key).or_insert_with(|| Group {
            level: finding.level,
            id: finding.id,
            count: 0,
            first: finding.time,
            last: finding.time,
            message: shorten(&finding.message, MAX_TEXT).into_owned(),
            various,
        });
        group.count += 1;
        group.first = group.first.min(finding.time);
        group.last = group.last.max(finding.time);
    }

    /// The groups: the worst first, and of those the most frequent.
    pub fn groups(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.groups.values().collect();
        groups.sort_by_key(|group| (group.level, std::cmp::Reverse(group.count), group.first));
        groups
    }

    /// How many conditions were raised, and how many cleared.
    pub fn changed(&self) -> (usize, usize) {
        let raised = self.changes.values().filter(|change| change.raised).count();
        (raised, self.changes.len() - raised)
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.span.is_none()
    }
}
