//! Judges what was seen of the forwards over time. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::declared::{Declared, Origin};
use super::entry::{Entry, Gap, Look, Past};
use super::forward::Forward;
use super::ids::{API_UNAVAILABLE, INTERRUPTED, NO_PORT_DRIVER, UNWATCHED, ZOMBIE};
use super::instance::Identity;
use crate::finding::{Fields, Finding, Id, Kind};

/// How a forward is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It listens on the host.
    Stands,
    /// It does not.
    Down,
    /// rootlesskit lists it, and it does not listen.
    Zombie,
    /// Somebody else has its place: who.
    Held(String),
    /// rootlesskit does not take it: why.
    Refused(String),
    /// That cannot be seen.
    Unknown,
}

/// A declared forward, as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How it is.
    pub state: State,
    /// Whether something listens inside; `None` if that cannot be seen.
    pub has_listener: Option<bool>,
}

/// What keeps the forwards from being looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// rootlesskit's API does not answer as it should: why.
    Api(String),
    /// The kernel's tables cannot be read: why.
    Tables(String),
    /// rootlesskit's port driver takes no forwards.
    NoPortDriver,
}

/// What was seen at once.
#[derive(Clone, Debug)]
pub struct Observation {
    /// When the look began: what stands did so at that time at the latest.
    pub began: Instant,
    /// When all was seen.
    pub at: Instant,
    /// The number of the declaration that held.
    pub wanted: u64,
    /// The rootlesskit that runs.
    pub instance: Option<Identity>,
    /// When rootlesskit ended that ran before.
    pub ended: Option<Instant>,
    /// Whether rootlesskit said which forwards it has.
    pub is_listed: bool,
    /// What was in the way.
    pub trouble: Option<Trouble>,
    /// Why changes are only seen at the next probe.
    pub unwatched: Option<String>,
    /// Declared forwards that rootlesskit lists and that do not listen; they are being mended.
    pub zombies: Vec<Forward>,
    /// All declared forwards.
    pub forwards: BTreeMap<Forward, Found>,
    /// When forwards were added, just before.
    pub added: BTreeMap<Forward, Instant>,
    /// Forwards that rootlesskit has and nobody declared.
    pub undeclared: BTreeSet<Forward>,
}

impl Observation {
    /// Nothing, at that time.
    pub fn new(at: Instant) -> Observation {
        Observation {
            began: at,
            at,
            wanted: 0,
            instance: None,
            ended: None,
            is_listed: false,
            trouble: None,
            unwatched: None,
            zombies: Vec::new(),
            forwards: BTreeMap::new(),
            added: BTreeMap::new(),
            undeclared: BTreeSet::new(),
        }
    }
}

/// What is shorter is an interruption and no condition: rootlesskit starts again within this.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// What never stood may still come: rootlesskit starts later than podsecd-u7s, and what runs inside later than rootlesskit.
pub const START_GRACE: Duration = Duration::from_secs(120);
/// So many gaps are named in a message.
const MAX_NAMED: usize = 40;
/// What is said of a forward that rootlesskit gave up.
pub(super) const ZOMBIE_SAYS: &str = "rootlesskit lists it, and nothing listens at it on the host";
/// Subject of what is about all forwards.
const ROOTLESSKIT: &str = "rootlesskit";

/// A row of the list of forwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    /// The forward.
    pub forward: Forward,
    /// Who wants it; nobody, if it is undeclared.
    pub origin: Option<Origin>,
    /// `up`, `down`, `zombie`, `conflict`, `refused`; `unknown` before the first look.
    pub state: String,
    /// Why, where there is more to say.
    pub why: Option<String>,
    /// Whether something listens inside; null if that is not known.
    pub has_listener: Option<bool>,
    /// Since when it is so: RFC 3339.
    pub since: Option<String>,
    /// How often it was interrupted since podsecd-u7s started.
    pub interruptions: u64,
    /// The last gap, and the longest one, in milliseconds.
    pub last_gap_ms: Option<u64>,
    /// See there.
    pub longest_gap_ms: Option<u64>,
}

/// So many forwards that nobody declared are listed.
const MAX_UNDECLARED: usize = 256;

/// What is known of the forwards.
#[derive(Debug, Default)]
pub struct Assessor {
    /// What was known of them before podsecd-u7s started.
    former: BTreeMap<Forward, Past>,
    entries: BTreeMap<Forward, Entry>,
    undeclared: BTreeSet<Forward>,
    trouble: Option<(Trouble, Instant)>,
    unwatched: Option<String>,
}

impl Assessor {
    /// Nothing was seen yet; this was, before.
    pub fn new(former: BTreeMap<Forward, Past>) -> Assessor {
        Assessor { former, ..Assessor::default() }
    }

    /// What is to be known of them when podsecd-u7s is started again.
    pub fn past(&self) -> BTreeMap<Forward, Past> {
        let seen = self.entries.iter().map(|(forward, entry)| (*forward, entry.past));
        self.former.iter().map(|(forward, past)| (*forward, *past)).chain(seen).collect()
    }

    /// Takes in what was seen; what happened.
    pub fn assess(&mut self, observation: Observation, now: SystemTime) -> Vec<Finding<'static>> {
        let mut gaps = Vec::new();
        self.trouble = match (observation.trouble, self.trouble.take()) {
            (Some(trouble), Some((_, since))) => Some((trouble, since)),
            (Some(trouble), None) => Some((trouble, observation.at)),
            (None, _) => None,
        };
        self.undeclared = observation.undeclared.into_iter().take(MAX_UNDECLARED).collect();
        self.unwatched = observation.unwatched;
        self.entries.retain(|forward, _| observation.forwards.contains_key(forward));
        let Observation { began, at, instance, ended, .. } = observation;
        let look = Look { began, at, instance, ended, now };
        // What is declared later did not stand for us.
        let former = std::mem::take(&mut self.former);
        for (forward, found) in observation.forwards {
            let past = || former.get(&forward).copied().unwrap_or_default();
            let entry = self.entries.entry(forward).or_insert_with(|| Entry::new(&look, past()));
            let added = observation.added.get(&forward).copied();
            if let Some(gap) = entry.see(found, added, &look) {
                gaps.push((forward, gap));
            }
        }
        let zombie = |forward: Forward| {
            let message = format!("{forward}: {ZOMBIE_SAYS}");
            finding(ZOMBIE, Kind::Raised, &forward.to_string(), message, now)
        };
        // It may be mended before anybody asks which conditions hold.
        observation.zombies.into_iter().map(zombie).chain(interrupted(gaps, now)).collect()
    }

    /// All conditions that hold, with their subjects and sentences.
    pub fn conditions(&self, declared: &Declared, at: Instant) -> BTreeMap<(Id, String), String> {
        let mut holding = BTreeMap::new();
        if let Some((trouble, since)) = &self.trouble
            && at.saturating_duration_since(*since) >= GRACE
        {
            let (id, message) = match trouble {
                Trouble::Api(why) => (API_UNAVAILABLE, format!("rootlesskit's API cannot be used: {why}")),
                Trouble::Tables(why) => (API_UNAVAILABLE, why.clone()),
                Trouble::NoPortDriver => {
                    (NO_PORT_DRIVER, "rootlesskit runs with a port driver that takes no forwards".to_owned())
                }
            };
            holding.insert((id, ROOTLESSKIT.to_owned()), message);
        }
        if let Some(why) = &self.unwatched {
            holding.insert((UNWATCHED, ROOTLESSKIT.to_owned()), why.clone());
        }
        // Whoever forwards without that API may do so all the same.
        let has_driver = !matches!(self.trouble, Some((Trouble::NoPortDriver, _)));
        for (forward, entry) in self.entries.iter().filter(|_| has_driver) {
            let wants_listener = declared.get(forward).is_some_and(|declaration| declaration.has_listener);
            for (id, message) in entry.conditions(forward, wants_listener, at) {
                holding.insert((id, forward.to_string()), message);
            }
        }
        holding
    }

    /// When the conditions may be others though nothing happens: at the end of a period of grace.
    pub fn next_change(&self, at: Instant) -> Option<Instant> {
        let of_entries = self
            .entries
            .values()
            .flat_map(|entry| [entry.away().map(|since| since + entry.grace()), entry.unheard_due()]);
        let of_trouble = self.trouble.as_ref().map(|(_, since)| *since + GRACE);
        of_entries.flatten().chain(of_trouble).filter(|due| *due > at).min()
    }

    /// The list of forwards.
    pub fn rows(&self, declared: &Declared) -> Vec<Row> {
        let row = |(forward, declaration): (&Forward, &super::declared::Declaration)| {
            let entry = self.entries.get(forward);
            let milliseconds = |gap: Duration| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
            let (state, why) = entry.map_or(("unknown", None), |entry| entry.state.words());
            Row {
                forward: *forward,
                origin: Some(declaration.origin),
                state: state.to_owned(),
                why: why.map(ToOwned::to_owned),
                has_listener: entry.and_then(|entry| entry.has_listener),
                since: entry.map(|entry| humantime::format_rfc3339_seconds(entry.since).to_string()),
                interruptions: entry.map_or(0, |entry| entry.count),
                last_gap_ms: entry.and_then(|entry| entry.gap).map(milliseconds),
                longest_gap_ms: entry.and_then(|entry| entry.longest).map(milliseconds),
            }
        };
        let undeclared = self.undeclared.iter().map(|forward| Row {
            forward: *forward,
            origin: None,
            state: "up".to_owned(),
            why: None,
            has_listener: None,
            since: None,
            interruptions: 0,
            last_gap_ms: None,
            longest_gap_ms: None,
        });
        declared.iter().map(row).chain(undeclared).collect()
    }
}

impl State {
    fn words(&self) -> (&'static str, Option<&str>) {
        match self {
            State::Stands => ("up", None),
            State::Down => ("down", None),
            State::Zombie => ("zombie", None),
            State::Held(who) => ("conflict", Some(who)),
            State::Refused(why) => ("refused", Some(why)),
            State::Unknown => ("unknown", None),
        }
    }
}

/// What is told of forwards that stand again: one event, whatever their number.
fn interrupted(mut gaps: Vec<(Forward, Gap)>, now: SystemTime) -> Option<Finding<'static>> {
    gaps.sort_by_key(|(forward, gap)| (std::cmp::Reverse(gap.length), *forward));
    let (first, longest) = gaps.first()?;
    let seconds = |gap: &Gap| format!("{:.3} s", gap.length.as_secs_f64());
    let most = |gap: &Gap| if gap.is_bound { "at most " } else { "" };
    if gaps.len() == 1 {
        let message = format!("{first} stands again, after a gap of {}{}", most(longest), seconds(longest));
        return Some(finding(INTERRUPTED, Kind::Event, &first.to_string(), message, now));
    }
    let mut message = format!("{} forwards stand again, after gaps of up to {}: ", gaps.len(), seconds(longest));
    for (at, (forward, gap)) in gaps.iter().take(MAX_NAMED).enumerate() {
        // Writing into a String cannot fail.
        let _ = write!(message, "{}{forward} {}{}", if at == 0 { "" } else { ", " }, most(gap), seconds(gap));
    }
    if gaps.len() > MAX_NAMED {
        let _ = write!(message, " and {} more", gaps.len() - MAX_NAMED);
    }
    Some(finding(INTERRUPTED, Kind::Event, ROOTLESSKIT, message, now))
}

fn finding(id: Id, kind: Kind, subject: &str, message: String, time: SystemTime) -> Finding<'static> {
    let subject = subject.to_owned().into();
    Finding { time, id, kind, subject, message: message.into(), fields: Fields::default() }
}
