//! Which conditions are open, and the metric of each check.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Weights;
use crate::finding::{Fields, Finding, Id, Kind};

/// An open condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Id of the condition.
    pub id: String,
    /// Whom or what it is about.
    pub subject: String,
    /// Since when it holds.
    #[serde(with = "humantime_text")]
    pub since: SystemTime,
    /// The sentence with which it was raised.
    pub message: String,
}

/// The open conditions, keyed by (id, subject).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenConditions {
    open: BTreeMap<(Id, String), Open>,
    /// Ids whose weight counts only for a share, and of how many subjects.
    populations: BTreeMap<Id, usize>,
}

impl OpenConditions {
    /// Takes up the conditions that were open before a restart; ids that this version does not know are dropped.
    pub fn restore(open: Vec<Open>, weights: &Weights) -> OpenConditions {
        let known = open.into_iter().filter_map(|open| {
            let (id, _) = weights.find(&open.id)?;
            Some(((id, open.subject.clone()), open))
        });
        OpenConditions { open: known.collect(), populations: BTreeMap::new() }
    }

    /// The weight of these ids counts only for the share of so many subjects to which they apply; with none, not at all.
    pub fn set_population(&mut self, ids: &[Id], population: usize) {
        self.populations.extend(ids.iter().map(|id| (*id, population)));
    }

    /// Of how many subjects the share of that id is, 0 where none was set.
    pub fn population(&self, id: Id) -> usize {
        self.populations.get(&id).copied().unwrap_or_default()
    }

    /// How much of its weight an id counts: so many of so many.
    fn share(&self, id: Id) -> (u64, u64) {
        let Some(population) = self.populations.get(&id) else { return (1, 1) };
        let subjects = self.open.keys().filter(|(open, _)| *open == id).count().min(*population);
        (subjects as u64, (*population).max(1) as u64)
    }

    /// Takes a finding in. False if it says nothing new: raised and open already, or cleared and not open.
    pub fn changes(&mut self, finding: &Finding<'_>) -> bool {
        let key = (finding.id, finding.subject.to_string());
        match finding.kind {
            Kind::Event => true,
            Kind::Cleared => self.open.remove(&key).is_some(),
            Kind::Raised => {
                let open = Open {
                    id: finding.id.to_string(),
                    subject: key.1.clone(),
                    since: finding.time,
                    message: finding.message.to_string(),
                };
                match self.open.entry(key) {
                    Entry::Vacant(place) => {
                        place.insert(open);
                        true
                    }
                    // Raised again: what it says now is newer, but it is no news.
                    Entry::Occupied(mut former) => {
                        former.get_mut().message = open.message;
                        false
                    }
                }
            }
        }
    }

    /// All of them, sorted by id and subject.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &Open)> {
        self.open.iter().map(|((id, _), open)| (*id, open))
    }
}

/// A condition that began or ceased to hold.
pub fn condition(id: Id, kind: Kind, subject: &str, message: String, now: SystemTime) -> Finding<'static> {
    Finding {
        time: now,
        id,
        kind,
        subject: subject.to_owned().into(),
        message: message.into(),
        fields: Fields::default(),
    }
}

/// The metric of each check: the sum of the weights of the ids that have open conditions or had events in the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    window: Duration,
    last_event: BTreeMap<Id, SystemTime>,
}

impl Metrics {
    /// No event so far; `window` is how long an event counts.
    pub fn new(window: Duration) -> Metrics {
        Metrics { window, last_event: BTreeMap::new() }
    }

    /// Changes how long an event counts.
    pub fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Takes an event in; anything else is a condition's business. One from the future happened now.
    pub fn note(&mut self, finding: &Finding<'_>, now: SystemTime) {
        if finding.kind == Kind::Event {
            self.note_time(finding.id, finding.time.min(now));
        }
    }

    /// An event of that id happened then.
    pub fn note_time(&mut self, id: Id, time: SystemTime) {
        let last = self.last_event.entry(id).or_insert(time);
        *last = (*last).max(time);
    }

    /// The last event of each id that still counts: (id, time).
    pub fn recent(&self, now: SystemTime) -> impl Iterator<Item = (Id, SystemTime)> {
        self.last_event
            .iter()
            .map(|(id, time)| (*id, *time))
            // After the clock was set back nothing is known of what lies in the future.
            .filter(move |(_, time)| now.duration_since(*time).is_ok_and(|age| age < self.window))
    }

    /// The last event of each id, whether it still counts or not.
    pub fn all(&self) -> impl Iterator<Item = (Id, SystemTime)> {
        self.last_event.iter().map(|(id, time)| (*id, *time))
    }

    /// The metric of a check.
    pub fn of(&self, check: &str, open: &OpenConditions, weights: &Weights, now: SystemTime) -> u32 {
        let mut ids: Vec<Id> = self.recent(now).map(|(id, _)| id).chain(open.iter().map(|(id, _)| id)).collect();
        ids.sort_unstable();
        ids.dedup();
        let weigh = |id: &Id| {
            let (subjects, population) = open.share(*id);
            // No more than the weight.
            u32::try_from(u64::from(weights.get(*id).weight) * subjects / population).unwrap_or(u32::MAX)
        };
        ids.iter().filter(|id| id.check() == check).map(weigh).fold(0, u32::saturating_add)
    }

    /// When the next event ceases to count, if any counts: the metric may change then with nothing else happening.
    pub fn next_change(&self, now: SystemTime) -> Option<SystemTime> {
        self.recent(now).map(|(_, time)| time + self.window).min()
    }
}

/// RFC 3339 text for a `SystemTime`.
pub(crate) mod humantime_text {
    use std::time::SystemTime;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::score::rfc3339(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        deserializer.deserialize_str(Text)
    }

    struct Text;

    impl Visitor<'_> for Text {
        type Value = SystemTime;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a time as RFC 3339 writes it")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<SystemTime, E> {
            humantime::parse_rfc3339(text).map_err(E::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kubeapi::ids::{CLIENT_ERROR, FORBIDDEN, SOURCE_HIDDEN};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn event(id: Id, seconds: u64) -> Finding<'static> {
        condition(id, Kind::Event, "alice", String::new(), at(seconds))
    }

    #[test]
    fn a_condition_is_news_only_when_it_changes() {
        let mut open = OpenConditions::default();
        let said = |kind| condition(SOURCE_HIDDEN, kind, "node", "text".into(), at(1));
        let answers = [Kind::Cleared, Kind::Raised, Kind::Raised, Kind::Cleared, Kind::Cleared, Kind::Raised]
            .map(|kind| open.changes(&said(kind)));
        assert_eq!(answers, [false, true, false, true, false, true]);
    }

    #[test]
    fn an_id_counts_once_however_often_it_happened() {
        let (mut metrics, weights) = (Metrics::new(Duration::from_secs(900)), Weights::shipped());
        for seconds in 0..50 {
            metrics.note(&event(FORBIDDEN, seconds), at(60));
        }
        metrics.note(&event(CLIENT_ERROR, 20), at(60));
        assert_eq!(metrics.of("kubeapi", &OpenConditions::default(), &weights, at(60)), 111);
        assert_eq!(metrics.of("policy", &OpenConditions::default(), &weights, at(60)), 0);
    }

    #[test]
    fn an_event_ceases_to_count_when_the_window_has_passed() {
        let (mut metrics, weights) = (Metrics::new(Duration::from_secs(900)), Weights::shipped());
        // It says of itself that it is from the future.
        metrics.note(&event(FORBIDDEN, 5000), at(100));
        for (now, metric) in [(100, 101), (999, 101), (1000, 0)] {
            assert_eq!(metrics.of("kubeapi", &OpenConditions::default(), &weights, at(now)), metric, "at {now}");
        }
        assert_eq!(metrics.next_change(at(100)), Some(at(1000)));
        assert_eq!(metrics.next_change(at(1000)), None);
    }

    #[test]
    fn an_id_with_a_population_counts_for_the_share_to_which_it_applies() {
        let (metrics, weights) = (Metrics::new(Duration::from_secs(900)), Weights::shipped());
        let mut open = OpenConditions::default();
        for subject in ["alice", "bob"] {
            open.changes(&condition(CLIENT_ERROR, Kind::Raised, subject, String::new(), at(0)));
        }
        for (population, metric) in [(3, 6), (2, 10), (1, 10), (0, 0)] {
            open.set_population(&[CLIENT_ERROR], population);
            assert_eq!(metrics.of("kubeapi", &open, &weights, at(0)), metric, "of {population}");
        }
    }

    #[test]
    fn an_open_condition_counts_until_it_is_cleared() {
        let (metrics, weights) = (Metrics::new(Duration::from_secs(900)), Weights::shipped());
        let mut open = OpenConditions::default();
        open.changes(&condition(SOURCE_HIDDEN, Kind::Raised, "node", String::new(), at(0)));
        assert_eq!(metrics.of("kubeapi", &open, &weights, at(1_000_000)), weights.get(SOURCE_HIDDEN).weight);
    }
}
