//! What was told of how containers run, so that no start and no end is told twice, whoever says so. Pure.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::watch::tree::Moment;

/// So long after a container's last process conmon may say how it ended; then nobody will.
const PATIENCE: Duration = Duration::from_secs(5);
/// As many as a store has containers; what happens to further ones may be told twice.
const MAX_RUNS: usize = 20_000;

/// The containers that ran, by their ids.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Runs(HashMap<String, Run>);

/// How a container ran last.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Run {
    /// When its start was noted, if that was seen.
    started: Option<Moment>,
    /// When it ended, if that was told.
    ended: Option<Moment>,
    /// The exit file that was told, by the time at which it came; `None`: something else said that it ended.
    file: Option<Moment>,
    /// Since when nothing runs in its control group: until when conmon may say so, and the time of it.
    #[serde(with = "empty")]
    empty: Option<(Instant, SystemTime)>,
}

/// Of that only the time is handed on: conmon may say so after it, too.
mod empty {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(super) fn serialize<S: Serializer>(empty: &Option<(Instant, SystemTime)>, to: S) -> Result<S::Ok, S::Error> {
        empty.map(|(_, time)| Moment::at(time)).serialize(to)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<(Instant, SystemTime)>, D::Error> {
        let empty = Option::<Moment>::deserialize(from)?;
        Ok(empty.map(|moment| (Instant::now() + PATIENCE, moment.time())))
    }
}

impl Runs {
    /// A start was noted at that moment; if that was missed, at that moment at the latest. Answers whether that is news.
    pub(super) fn start(&mut self, container: &str, at: Moment, is_missed: bool) -> bool {
        let Some(run) = self.run(container) else { return true };
        if is_missed && run.started.is_some() && run.ended.is_none() {
            return false;
        }
        if run.ended.is_none_or(|ended| ended < at) {
            (run.ended, run.file) = (None, None);
        }
        run.empty = None;
        run.started.replace(at) != Some(at)
    }

    /// An exit file came at that moment. Answers whether that is news.
    pub(super) fn end_by_file(&mut self, container: &str, at: Moment) -> bool {
        let Some(run) = self.run(container) else { return true };
        let is_news = run.ended.is_none() || run.file.is_some_and(|file| file != at);
        *run = Run {
            started: run.started,
            ended: Some(run.ended.filter(|_| !is_news).unwrap_or(at)),
            file: Some(at),
            empty: None,
        };
        is_news
    }

    /// It ended at that moment, as something else than an exit file says. Answers whether that is news.
    pub(super) fn end_otherwise(&mut self, container: &str, at: Moment) -> bool {
        let Some(run) = self.run(container) else { return true };
        run.empty = None;
        let is_news = run.ended.is_none();
        run.ended.get_or_insert(at);
        is_news
    }

    /// Nothing runs in its control group any more. `has_run`: something was seen to run there.
    pub(super) fn note_empty(&mut self, container: &str, has_run: bool, (now, time): (Instant, SystemTime)) {
        if !has_run && !self.0.contains_key(container) {
            return;
        }
        if let Some(run) = self.run(container).filter(|run| run.ended.is_none() && (has_run || run.started.is_some())) {
            run.empty.get_or_insert((now + PATIENCE, time));
        }
    }

    /// Since when nothing runs in the group of a container, if nobody said yet that it ended.
    pub(super) fn empty_since(&self, container: &str) -> Option<SystemTime> {
        self.0.get(container)?.empty.map(|(_, time)| time)
    }

    /// When the next one is to be told of which nobody says that it ended.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|run| Some(run.empty?.0)).min()
    }

    /// Those that are to be told now, and since when nothing runs in their groups.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(String, SystemTime)> {
        let due = self.0.iter_mut().filter_map(|(container, run)| {
            let (_, time) = run.empty.take_if(|(due, _)| *due <= now)?;
            Some((container.clone(), time))
        });
        due.collect()
    }

    /// When it was started, if that was seen.
    pub(super) fn started(&self, container: &str) -> Option<Moment> {
        self.0.get(container)?.started
    }

    /// Goes on with what somebody else knew.
    pub(super) fn go_on(&mut self, former: Runs) {
        for (container, run) in former.0 {
            self.0.entry(container).or_insert(run);
        }
    }

    /// Forgets the others.
    pub(super) fn forget_others(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|container, _| is_known(container));
    }

    fn run(&mut self, container: &str) -> Option<&mut Run> {
        let has_room = self.0.len() < MAX_RUNS || self.0.contains_key(container);
        has_room.then(|| self.0.entry(container.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Moment {
        Moment::from_nanoseconds(second * 1_000_000_000)
    }

    /// Those that are told a while after their groups are empty.
    fn told_late(runs: &mut Runs, now: Instant) -> usize {
        assert_eq!(runs.take_due(now), [], "conmon may still say so");
        runs.take_due(now + PATIENCE).len()
    }

    #[test]
    fn each_start_and_each_end_is_told_once() {
        let mut runs = Runs::default();
        for run in [10, 20, 30] {
            assert_eq!([runs.start("c", at(run), false), runs.start("c", at(run), false)], [true, false]);
            assert_eq!([runs.end_by_file("c", at(run + 5)), runs.end_by_file("c", at(run + 5))], [true, false]);
            assert!(!runs.end_otherwise("c", at(run + 6)), "what CRI-O keeps is of the same end");
        }
        assert_eq!([runs.start("c", at(41), true), runs.start("c", at(42), true)], [true, false]);
        assert!(runs.end_by_file("c", at(43)) && runs.start("c", at(44), true));
        assert!(runs.end_otherwise("missed", at(1)));
        assert!(!runs.end_by_file("missed", at(1)), "what comes late is of the same end");
        assert!(!runs.end_by_file("missed", at(1)));
        assert!(runs.end_by_file("missed", at(2)), "and this is of another one");
    }

    #[test]
    fn who_goes_on_tells_nothing_again_and_forgets_no_end_that_is_still_to_be_told() {
        let (mut runs, now, time) = (Runs::default(), Instant::now(), SystemTime::now());
        runs.start("told", at(10), false);
        runs.end_by_file("told", at(15));
        runs.start("killed", at(10), false);
        runs.note_empty("killed", false, (now, time));
        let mut next = Runs::default();
        next.go_on(serde_json::from_str(&serde_json::to_string(&runs).expect("written")).expect("read"));
        assert!(!next.start("told", at(10), false) && !next.end_by_file("told", at(15)));
        assert_eq!(next.empty_since("killed"), Some(time));
        assert_eq!(told_late(&mut next, Instant::now()), 1);
    }

    #[test]
    fn what_a_walk_finds_in_any_order_is_told_once() {
        let mut runs = Runs::default();
        assert!(runs.end_by_file("c", at(15)) && runs.start("c", at(10), false));
        assert!(!runs.end_by_file("c", at(15)) && !runs.start("c", at(10), false));
    }

    #[test]
    fn a_container_that_nobody_says_anything_of_is_told_by_its_group_and_no_other_is() {
        let (mut runs, now, time) = (Runs::default(), Instant::now(), SystemTime::now());
        runs.start("killed", at(10), false);
        runs.note_empty("killed", false, (now, time));
        assert_eq!((runs.due(), runs.empty_since("killed")), (Some(now + PATIENCE), Some(time)));
        assert_eq!(told_late(&mut runs, now), 1);
        assert!(runs.end_otherwise("killed", at(11)) && !runs.end_by_file("killed", at(12)));

        runs.note_empty("from before", true, (now, time));
        assert_eq!(told_late(&mut runs, now), 1);

        runs.start("noted", at(10), false);
        runs.note_empty("noted", true, (now, time));
        assert!(runs.end_by_file("noted", at(11)));
        runs.note_empty("noted", true, (now, time));
        runs.note_empty("never ran", false, (now, time));
        assert_eq!((told_late(&mut runs, now), runs.due()), (0, None));
    }

    #[test]
    fn whoever_makes_more_containers_than_there_can_be_takes_no_memory_for_that() {
        let mut runs = Runs::default();
        for number in 0..=MAX_RUNS {
            assert!(runs.start(&number.to_string(), at(1), false));
        }
        assert_eq!(runs.0.len(), MAX_RUNS);
        runs.forget_others(|container| container == "1");
        assert_eq!(runs.0.len(), 1);
    }
}
