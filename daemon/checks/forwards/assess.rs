//! Judges what was seen of the forwards over time. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::declared::{Declared, Origin};
use super::forward::Forward;
use super::ids::{
    API_UNAVAILABLE, CONFLICT, DOWN, FLAPPING, INTERRUPTED, NO_LISTENER, NO_PORT_DRIVER, REFUSED, UNWATCHED, ZOMBIE,
};
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
    /// When.
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
const GRACE: Duration = Duration::from_secs(5);
/// What never stood may still come: rootlesskit starts later than podsecd-u7s, and what runs inside later than rootlesskit.
pub const START_GRACE: Duration = Duration::from_secs(120);
/// So many interruptions within this time are a condition, which holds until there were fewer than two.
const FLAPS: usize = 4;
const FLAP_WINDOW: Duration = Duration::from_secs(600);
/// So many gaps are named in a message.
const MAX_NAMED: usize = 40;
/// What is said of a forward that rootlesskit gave up.
const ZOMBIE_SAYS: &str = "rootlesskit lists it, and nothing listens at it on the host";
/// What is said where the beginning was not seen.
const WHILE_AWAY: &str = "; podsecd-u7s was away when that began: it counts from when it saw them stand last";
/// Subject of what is about all forwards.
const ROOTLESSKIT: &str = "rootlesskit";

/// A declared forward over time.
#[derive(Debug)]
struct Entry {
    state: State,
    has_listener: Option<bool>,
    /// Since when it is as it is.
    since: SystemTime,
    /// Since when it is looked at.
    first: Instant,
    /// When it was last seen standing; before it is looked at, by the podsecd-u7s before.
    stood: Option<Instant>,
    /// Since when it does not stand.
    down: Option<Instant>,
    /// Since when nothing listens inside.
    unheard: Option<Instant>,
    /// When interruptions ended.
    interruptions: VecDeque<Instant>,
    count: u64,
    gap: Option<Duration>,
    longest: Option<Duration>,
    is_flapping: bool,
}

/// For how long a forward was interrupted.
#[derive(Clone, Copy, Debug)]
struct Gap {
    length: Duration,
    /// It may have been less: nobody saw when it began.
    is_bound: bool,
}

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
    /// When forwards were last seen standing by the podsecd-u7s before.
    former: BTreeMap<Forward, Instant>,
    entries: BTreeMap<Forward, Entry>,
    undeclared: BTreeSet<Forward>,
    trouble: Option<(Trouble, Instant)>,
    unwatched: Option<String>,
}

impl Assessor {
    /// Nothing was seen yet, but when forwards stood before.
    pub fn new(former: BTreeMap<Forward, Instant>) -> Assessor {
        Assessor { former, ..Assessor::default() }
    }

    /// When forwards were last seen standing. What stands is taken to do so until `end`, if that is now.
    pub fn stood(&self, end: Option<Instant>) -> BTreeMap<Forward, Instant> {
        let stood = |entry: &Entry| match entry.state {
            State::Stands if entry.down.is_none() => end.or(entry.stood),
            _ => entry.stood,
        };
        let seen = self.entries.iter().filter_map(|(forward, entry)| Some((*forward, stood(entry)?)));
        self.former.iter().map(|(forward, stood)| (*forward, *stood)).chain(seen).collect()
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
        // What is declared later did not stand for us.
        let former = std::mem::take(&mut self.former);
        for (forward, found) in observation.forwards {
            let stood = || former.get(&forward).copied().filter(|stood| *stood < observation.at);
            let entry = self.entries.entry(forward).or_insert_with(|| Entry::new(observation.at, stood(), now));
            let added = observation.added.get(&forward).copied();
            if let Some(gap) = entry.see(found, observation.at, observation.ended, added, now) {
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
        let of_entries = self.entries.values().flat_map(|entry| {
            [entry.away().map(|since| since + entry.grace()), entry.unheard.map(|since| since + START_GRACE)]
        });
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

impl Entry {
    fn new(first: Instant, stood: Option<Instant>, now: SystemTime) -> Entry {
        Entry {
            state: State::Down,
            has_listener: None,
            since: now,
            first,
            stood,
            down: None,
            unheard: None,
            interruptions: VecDeque::new(),
            count: 0,
            gap: None,
            longest: None,
            is_flapping: false,
        }
    }

    /// Takes in how it was seen; for how long it was interrupted, if that ends now. It is no interruption that it is declared,
    /// and does not stand yet.
    fn see(
        &mut self,
        found: Found,
        at: Instant,
        ended: Option<Instant>,
        added: Option<Instant>,
        now: SystemTime,
    ) -> Option<Gap> {
        if found.state != self.state {
            self.since = now;
        }
        // With rootlesskit all that stood went, whether or not that was seen; before it was looked at, when it stood last.
        let before = self.stood.filter(|stood| *stood < self.first);
        let went = ended.filter(|ended| self.down.is_none() && self.stood.is_some_and(|stood| stood <= *ended));
        let went = went.map(|ended| before.unwrap_or(ended));
        // What is added though it stood when it was last seen was gone since then at the longest.
        let was_mended = || self.stood.filter(|_| added.is_some());
        if found.state == State::Unknown {
            (self.state, self.has_listener) = (found.state, found.has_listener);
            return None;
        }
        let stands = found.state == State::Stands;
        self.down = match self.down.or(went) {
            Some(since) => Some(since),
            None if stands => was_mended(),
            None => Some(self.stood.unwrap_or(at)),
        };
        (self.state, self.has_listener) = (found.state, found.has_listener);
        self.unheard = match self.has_listener {
            Some(false) if stands => self.unheard.or(Some(at)),
            _ => None,
        };
        while self.interruptions.front().is_some_and(|first| at.saturating_duration_since(*first) > FLAP_WINDOW) {
            self.interruptions.pop_front();
        }
        let mut gap = None;
        if stands {
            let until = added.unwrap_or(at);
            let is_interruption = |_: &Instant| self.stood.is_some();
            gap = self
                .down
                .take()
                .filter(is_interruption)
                .map(|since| Gap { length: until.saturating_duration_since(since), is_bound: since < self.first });
            self.stood = Some(at.max(until));
        }
        if let Some(Gap { length, .. }) = gap {
            self.count += 1;
            self.gap = Some(length);
            self.longest = self.longest.max(Some(length));
            self.interruptions.push_back(at);
            if self.interruptions.len() > FLAPS {
                self.interruptions.pop_front();
            }
        }
        self.is_flapping = self.interruptions.len() >= FLAPS || self.is_flapping && self.interruptions.len() >= 2;
        gap
    }

    /// Since when it is known not to stand.
    fn away(&self) -> Option<Instant> {
        self.down.map(|since| since.max(self.first))
    }

    fn grace(&self) -> Duration {
        if self.stood.is_some() { GRACE } else { START_GRACE }
    }

    fn conditions(&self, forward: &Forward, wants_listener: bool, at: Instant) -> Vec<(Id, String)> {
        let is_long =
            |since: Option<Instant>, grace| since.is_some_and(|since| at.saturating_duration_since(since) >= grace);
        let mut holding = Vec::new();
        match &self.state {
            State::Down if is_long(self.away(), self.grace()) => {
                holding.push((DOWN, format!("{forward} is declared and does not listen on the host")));
            }
            State::Zombie => {
                holding.push((ZOMBIE, format!("{forward}: {ZOMBIE_SAYS}")));
            }
            State::Held(who) => {
                holding.push((CONFLICT, format!("{forward} cannot stand: {who} has its place on the host")));
            }
            State::Refused(why) if is_long(self.away(), GRACE) => {
                holding.push((REFUSED, format!("{forward}: rootlesskit does not take it: {why}")));
            }
            _ => {}
        }
        if wants_listener && is_long(self.unheard, START_GRACE) {
            holding.push((NO_LISTENER, format!("{forward} stands, and nothing listens inside where it leads to")));
        }
        if self.is_flapping {
            let minutes = FLAP_WINDOW.as_secs() / 60;
            holding
                .push((FLAPPING, format!("{forward} was interrupted {FLAPS} times and more within {minutes} minutes")));
        }
        holding
    }
}

/// What is told of forwards that stand again: one event, whatever their number.
fn interrupted(mut gaps: Vec<(Forward, Gap)>, now: SystemTime) -> Option<Finding<'static>> {
    gaps.sort_by_key(|(forward, gap)| (std::cmp::Reverse(gap.length), *forward));
    let (first, longest) = gaps.first()?;
    let seconds = |gap: &Gap| format!("{:.3} s", gap.length.as_secs_f64());
    let is_bound = gaps.iter().any(|(_, gap)| gap.is_bound);
    if gaps.len() == 1 {
        let most = if is_bound { "at most " } else { "" };
        let message = format!("{first} stands again, after a gap of {most}{}", seconds(longest));
        let message = if is_bound { message + WHILE_AWAY } else { message };
        return Some(finding(INTERRUPTED, Kind::Event, &first.to_string(), message, now));
    }
    let mut message = format!("{} forwards stand again, after gaps of up to {}: ", gaps.len(), seconds(longest));
    for (at, (forward, gap)) in gaps.iter().take(MAX_NAMED).enumerate() {
        // Writing into a String cannot fail.
        let _ = write!(message, "{}{forward} {}", if at == 0 { "" } else { ", " }, seconds(gap));
    }
    if gaps.len() > MAX_NAMED {
        let _ = write!(message, " and {} more", gaps.len() - MAX_NAMED);
    }
    if is_bound {
        message.push_str(WHILE_AWAY);
    }
    Some(finding(INTERRUPTED, Kind::Event, ROOTLESSKIT, message, now))
}

fn finding(id: Id, kind: Kind, subject: &str, message: String, time: SystemTime) -> Finding<'static> {
    let subject = subject.to_owned().into();
    Finding { time, id, kind, subject, message: message.into(), fields: Fields::default() }
}
