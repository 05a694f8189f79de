//! Judges what was seen of the forwards over time. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::declared::{Declared, Origin};
use super::forward::Forward;
use super::ids::{
    API_UNAVAILABLE, CONFLICT, DOWN, FLAPPING, INTERRUPTED, NO_LISTENER, NO_PORT_DRIVER, REFUSED, UNWATCHED, ZOMBIE,
};
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
/// Subject of what is about all forwards.
const ROOTLESSKIT: &str = "rootlesskit";

/// A declared forward over time.
#[derive(Debug)]
struct Entry {
    state: State,
    has_listener: Option<bool>,
    /// Since when it is as it is.
    since: SystemTime,
    /// When it was last seen standing.
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
    entries: BTreeMap<Forward, Entry>,
    undeclared: BTreeSet<Forward>,
    trouble: Option<(Trouble, Instant)>,
    unwatched: Option<String>,
}

impl Assessor {
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
        for (forward, found) in observation.forwards {
            let entry = self.entries.entry(forward).or_insert_with(|| Entry::new(now));
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
            [entry.down.map(|since| since + entry.grace()), entry.unheard.map(|since| since + START_GRACE)]
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
    fn new(now: SystemTime) -> Entry {
        Entry {
            state: State::Down,
            has_listener: None,
            since: now,
            stood: None,
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
    ) -> Option<Duration> {
        if found.state != self.state {
            self.since = now;
        }
        // With rootlesskit all that stood went, whether or not that was seen.
        let went = ended.filter(|ended| self.down.is_none() && self.stood.is_some_and(|stood| stood <= *ended));
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
            gap = self.down.take().filter(is_interruption).map(|since| until.saturating_duration_since(since));
            self.stood = Some(at.max(until));
        }
        if let Some(gap) = gap {
            self.count += 1;
            self.gap = Some(gap);
            self.longest = self.longest.max(Some(gap));
            self.interruptions.push_back(at);
            if self.interruptions.len() > FLAPS {
                self.interruptions.pop_front();
            }
        }
        self.is_flapping = self.interruptions.len() >= FLAPS || self.is_flapping && self.interruptions.len() >= 2;
        gap
    }

    fn grace(&self) -> Duration {
        if self.stood.is_some() { GRACE } else { START_GRACE }
    }

    fn conditions(&self, forward: &Forward, wants_listener: bool, at: Instant) -> Vec<(Id, String)> {
        let is_long =
            |since: Option<Instant>, grace| since.is_some_and(|since| at.saturating_duration_since(since) >= grace);
        let mut holding = Vec::new();
        match &self.state {
            State::Down if is_long(self.down, self.grace()) => {
                holding.push((DOWN, format!("{forward} is declared and does not listen on the host")));
            }
            State::Zombie => {
                holding.push((ZOMBIE, format!("{forward}: {ZOMBIE_SAYS}")));
            }
            State::Held(who) => {
                holding.push((CONFLICT, format!("{forward} cannot stand: {who} has its place on the host")));
            }
            State::Refused(why) if is_long(self.down, GRACE) => {
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
fn interrupted(mut gaps: Vec<(Forward, Duration)>, now: SystemTime) -> Option<Finding<'static>> {
    gaps.sort_by_key(|(forward, gap)| (std::cmp::Reverse(*gap), *forward));
    let (first, longest) = gaps.first()?;
    let seconds = |gap: &Duration| format!("{:.3} s", gap.as_secs_f64());
    if gaps.len() == 1 {
        let message = format!("{first} stands again, after a gap of {}", seconds(longest));
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
    Some(finding(INTERRUPTED, Kind::Event, ROOTLESSKIT, message, now))
}

fn finding(id: Id, kind: Kind, subject: &str, message: String, time: SystemTime) -> Finding<'static> {
    let subject = subject.to_owned().into();
    Finding { time, id, kind, subject, message: message.into(), fields: Fields::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::forwards::declared::Declaration;

    const A: &str = "0.0.0.0:6443:6443/tcp";
    const B: &str = "0.0.0.0:10250:10250/tcp";

    /// What is seen at a time, and what that makes.
    struct World {
        assessor: Assessor,
        declared: Declared,
        start: Instant,
    }

    impl World {
        fn new(declared: &[&str]) -> World {
            let declaration = Declaration { origin: Origin::Podsec, has_listener: true };
            let declared = declared.iter().map(|text| (text.parse().expect("a forward"), declaration)).collect();
            World { assessor: Assessor::default(), declared, start: Instant::now() }
        }

        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        /// All forwards are seen so; the messages of events.
        fn see(&mut self, seconds: f64, state: &State, change: impl Fn(&mut Observation)) -> Vec<String> {
            let mut observation = Observation::new(self.at(seconds));
            let found = Found { state: state.clone(), has_listener: Some(true) };
            observation.forwards = self.declared.keys().map(|forward| (*forward, found.clone())).collect();
            change(&mut observation);
            let events = self.assessor.assess(observation, SystemTime::UNIX_EPOCH);
            events.into_iter().map(|event| event.message.into_owned()).collect()
        }

        /// The conditions that hold, without their sentences.
        fn conditions(&self, seconds: f64) -> Vec<(&'static str, String)> {
            let holding = self.assessor.conditions(&self.declared, self.at(seconds));
            holding.into_keys().map(|(id, subject)| (id.0, subject)).collect()
        }
    }

    #[test]
    fn forwards_that_stand_are_no_condition_and_no_news() {
        let mut world = World::new(&[A, B]);
        assert!(world.see(0.0, &State::Down, |_| {}).is_empty(), "they were only just declared");
        assert!(world.see(0.1, &State::Stands, |_| {}).is_empty());
        assert!(world.conditions(100.0).is_empty());
    }

    #[test]
    fn a_restart_of_rootlesskit_is_one_event_with_the_gap_of_each_forward() {
        let mut world = World::new(&[A, B]);
        world.see(0.0, &State::Stands, |_| {});
        let ended = world.at(10.0);
        assert!(world.see(10.1, &State::Down, |seen| seen.ended = Some(ended)).is_empty());
        assert!(world.conditions(12.0).is_empty(), "it may be there again at once");
        let added = world.at(11.5);
        let events = world.see(11.7, &State::Stands, |seen| {
            seen.ended = Some(ended);
            seen.added.insert(A.parse().expect("a forward"), added);
        });
        let expected = format!("2 forwards stand again, after gaps of up to 1.700 s: {B} 1.700 s, {A} 1.500 s");
        assert_eq!(events, [expected]);
        assert!(world.see(12.0, &State::Stands, |_| {}).is_empty());
    }

    #[test]
    fn a_restart_that_nobody_saw_has_a_gap_all_the_same() {
        let mut world = World::new(&[A]);
        world.see(0.0, &State::Stands, |_| {});
        let (ended, added) = (world.at(10.0), world.at(10.5));
        let events = world.see(10.6, &State::Stands, |seen| {
            seen.ended = Some(ended);
            seen.added.insert(A.parse().expect("a forward"), added);
        });
        assert_eq!(events, [format!("{A} stands again, after a gap of 0.500 s")]);
    }

    #[test]
    fn what_stays_down_is_a_condition_until_it_stands() {
        let mut world = World::new(&[A]);
        world.see(0.0, &State::Stands, |_| {});
        world.see(30.0, &State::Down, |_| {});
        // It went at some time since it was last seen standing.
        assert_eq!(world.conditions(30.0), [("forwards/down", A.to_owned())]);
        let events = world.see(90.0, &State::Stands, |_| {});
        assert_eq!(events, [format!("{A} stands again, after a gap of 90.000 s")]);
        assert!(world.conditions(90.0).is_empty());
    }

    #[test]
    fn each_state_is_its_own_condition() {
        for (state, seconds, expected) in [
            (State::Down, 119.0, None),
            (State::Down, 120.0, Some("forwards/down")),
            (State::Unknown, 1000.0, None),
            (State::Zombie, 0.0, Some("forwards/zombie")),
            (State::Held("process 7 (nginx)".into()), 0.0, Some("forwards/conflict")),
            (State::Refused("permission denied".into()), 6.0, Some("forwards/refused")),
        ] {
            let mut world = World::new(&[A]);
            world.see(0.0, &state, |_| {});
            let conditions: Vec<_> = world.conditions(seconds).into_iter().map(|(id, _)| id).collect();
            assert_eq!(conditions, expected.into_iter().collect::<Vec<_>>(), "{state:?} after {seconds} s");
        }
    }

    #[test]
    fn nobody_who_listens_inside_is_a_condition_where_somebody_should_and_after_two_minutes() {
        for (wants, expected) in [(true, &[("forwards/no-listener", A.to_owned())][..]), (false, &[])] {
            let mut world = World::new(&[A]);
            world.declared.values_mut().for_each(|declaration| declaration.has_listener = wants);
            let unheard = |seen: &mut Observation| {
                seen.forwards.values_mut().for_each(|found| found.has_listener = Some(false));
            };
            world.see(0.0, &State::Stands, unheard);
            assert!(world.conditions(119.0).is_empty(), "it may still start");
            assert_eq!(world.assessor.next_change(world.at(0.0)), Some(world.at(120.0)));
            world.see(120.0, &State::Stands, unheard);
            assert_eq!(world.conditions(120.0), expected);
            world.see(121.0, &State::Stands, |_| {});
            assert!(world.conditions(121.0).is_empty());
        }
    }

    #[test]
    fn what_is_interrupted_again_and_again_flaps_until_it_has_been_quiet() {
        let mut world = World::new(&[A]);
        world.see(0.0, &State::Stands, |_| {});
        for minute in 1..=4 {
            let at = f64::from(minute) * 60.0;
            assert!(world.conditions(at).is_empty());
            world.see(at, &State::Down, |_| {});
            world.see(at + 1.0, &State::Stands, |_| {});
        }
        assert_eq!(world.conditions(241.0), [("forwards/flapping", A.to_owned())]);
        world.see(720.0, &State::Stands, |_| {});
        assert_eq!(world.conditions(720.0).len(), 1, "two were in these ten minutes");
        world.see(800.0, &State::Stands, |_| {});
        assert!(world.conditions(800.0).is_empty());
        assert_eq!(world.assessor.rows(&world.declared)[0].interruptions, 4);
    }

    #[test]
    fn an_api_that_does_not_answer_is_one_condition_and_the_forwards_that_stand_are_none() {
        let mut world = World::new(&[A, B]);
        for seconds in [0.0, 10.0, 40.0] {
            world
                .see(seconds, &State::Stands, |seen| seen.trouble = Some(Trouble::Api("no answer within 10 s".into())));
        }
        assert_eq!(world.conditions(40.0), [("forwards/api-unavailable", "rootlesskit".to_owned())]);
        world.see(41.0, &State::Stands, |seen| seen.trouble = Some(Trouble::NoPortDriver));
        assert_eq!(world.conditions(41.0), [("forwards/no-port-driver", "rootlesskit".to_owned())]);
    }
}
