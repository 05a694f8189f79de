//! What a period held, grouped so that a person can read it. Pure: entries of the spool come in, one after the other.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::spool::Spooled;
use crate::checks::kubeapi::ids::REFUSALS;
use crate::finding::{Kind, prefix};
use crate::report::text::shorten;
use crate::score::Level;

/// How many changes of conditions are told apart.
const MAX_CHANGES: usize = 4096;

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
    /// Changes of conditions that are too many to be told apart.
    pub further_changes: u64,
    /// How many findings were damaged and could not be read.
    pub damaged: u64,
    groups: Vec<Group>,
    /// Where the group of a key is; the key is what makes events one group: who did what to what, from where.
    index: HashMap<Box<[u8]>, usize>,
    /// The key of the last event.
    key: Vec<u8>,
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
    /// How many of them say something else: another path, name or answer.
    pub others: u64,
    /// They are too different to be told apart.
    pub various: bool,
}

impl Summary {
    /// Takes in the next finding.
    pub fn add(&mut self, finding: Spooled<'_>) {
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
        let message = shorten(&finding.message, MAX_TEXT).into_owned();
        let change = Change { raised, level: finding.level, time: finding.time, message };
        let key = (finding.id.into_owned(), finding.subject.into_owned());
        if self.changes.len() < MAX_CHANGES || self.changes.contains_key(&key) {
            self.changes.insert(key, change);
        } else {
            self.further_changes += 1;
        }
    }

    fn group(&mut self, finding: Spooled<'_>) {
        let told = &finding.fields;
        self.key.clear();
        for part in [
            finding.level.as_str(),
            &finding.id,
            &finding.subject,
            &told.impersonated_user,
            &told.verb,
            &told.resource,
            &told.subresource,
            &told.namespace,
            &told.source_ip,
        ] {
            // Nothing that stands in a part can look like the end of it.
            let part = prefix(part, MAX_TEXT);
            self.key.extend_from_slice(&(part.len() as u16).to_le_bytes());
            self.key.extend_from_slice(part.as_bytes());
        }
        let mut known = self.index.get(self.key.as_slice()).copied();
        let various = known.is_none() && self.groups.len() >= MAX_GROUPS;
        if various {
            self.key.clear();
            self.key.extend_from_slice(finding.id.as_bytes());
            known = self.index.get(self.key.as_slice()).copied();
        }
        let at = known.unwrap_or_else(|| {
            self.index.insert(self.key.as_slice().into(), self.groups.len());
            self.groups.push(Group {
                level: finding.level,
                id: finding.id.into_owned(),
                count: 0,
                first: finding.time,
                last: finding.time,
                message: shorten(&finding.message, MAX_TEXT).into_owned(),
                others: 0,
                various,
            });
            self.groups.len() - 1
        });
        let group = &mut self.groups[at];
        group.count += 1;
        group.others += u64::from(group.message != shorten(&finding.message, MAX_TEXT));
        group.first = group.first.min(finding.time);
        group.last = group.last.max(finding.time);
    }

    /// The groups: the worst first, and of those the most frequent.
    pub fn groups(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.groups.iter().collect();
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
        self.span.is_none() && self.damaged == 0
    }
}
