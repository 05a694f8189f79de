//! The digest period: from the first finding that no digest holds to the digest that does.
//!
//! A digest is frozen when the checkpoint covers just what its spool holds, and nothing is reported before the checkpoint
//! says so. So a restart that finds a frozen digest with the number of the present period knows that the period ended
//! with that checkpoint.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::mail::message;
use super::outbox::{Fate, Outbox};
use super::spool::{self, Spool};
use super::{Occasion, summarize};
use crate::config::Config;
use crate::report::Cycle;
use crate::report::checkpoint::State;
use crate::report::status::MailStatus;
use crate::score::{Level, rfc3339};

/// Two digests are never closer than this.
const MIN_PERIOD: Duration = Duration::from_secs(60);

/// A digest that is frozen, and what of it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undelivered {
    /// Its number.
    number: u64,
    /// How many bytes had been written to forbidden.log when its period began, and when it was frozen.
    start: u64,
    end: u64,
    /// All of these lines are attached to it.
    whole: bool,
    /// How many digests had been dropped by then, of which it tells.
    told: u64,
    /// What became of it, while one before it waits: its lines can be removed, or not.
    done: Option<bool>,
}

/// What a restart needs to know of digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// How far the spool is written.
    pub spool: spool::Mark,
    /// When the period began, if it has.
    pub began: Option<SystemTime>,
    /// How many digests were dropped.
    pub dropped: u64,
    /// Of how many of those a digest told that was delivered.
    #[serde(default)]
    pub told: u64,
    /// Digests that are frozen, the oldest first.
    pub undelivered: VecDeque<Undelivered>,
    /// What was written to forbidden.log before this number of bytes is delivered.
    pub delivered_end: u64,
    /// What was written from this number of bytes on is partly in no mail, and stays until it is rotated.
    #[serde(default)]
    pub held: Option<u64>,
    /// How many bytes had been written to forbidden.log when the last digest was frozen that does not wait any more.
    #[serde(default)]
    pub covered: u64,
    /// When the last digest was made; before the first one, when podsecd was first started.
    #[serde(default)]
    pub last: Option<SystemTime>,
    /// The last that was delivered, and when that was recorded.
    #[serde(default)]
    pub delivered: Option<(u64, SystemTime)>,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark {
            spool: spool::Mark::at(1),
            began: None,
            dropped: 0,
            told: 0,
            undelivered: VecDeque::new(),
            delivered_end: 0,
            held: None,
            covered: 0,
            last: None,
            delivered: None,
        }
    }
}

impl Mark {
    /// How many digests were dropped of which no digest has told.
    pub fn untold(&self) -> u64 {
        self.dropped.saturating_sub(self.told)
    }
}

/// The present period.
#[derive(Debug)]
pub struct Period {
    directory: PathBuf,
    host: String,
    spool: Spool,
    outbox: Outbox,
    dropped: u64,
    told: u64,
    /// When it began, if it has: the first finding was spooled.
    began: Option<SystemTime>,
    /// When it is to end, and the same for people.
    due: Option<(Instant, SystemTime)>,
    /// When the last one ended.
    ended: Option<Instant>,
    undelivered: VecDeque<Undelivered>,
    delivered_end: u64,
    held: Option<u64>,
    /// How many bytes had been written to forbidden.log when the last digest was frozen that does not wait any more.
    covered: u64,
    last: SystemTime,
    delivered: Option<(u64, SystemTime)>,
    /// What is being read was written before podsecd was first started: all of it goes into one digest.
    history: bool,
}

impl Period {
    /// The period as it was at the mark; `written` is how many bytes had then been written to forbidden.log.
    ///
    /// # Errors
    /// Those of the spool's and the outbox's directories.
    pub fn open(directory: &Path, outbox: &Path, mark: Mark, written: u64, config: &Config) -> io::Result<Period> {
        let outbox = Outbox::open(outbox)?;
        let frozen = outbox.holds(mark.spool.number);
        let spool = if frozen { spool::Mark::at(mark.spool.number + 1) } else { mark.spool };
        let spool = Spool::open(directory, spool)?;
        let mut period = Period {
            directory: directory.to_path_buf(),
            host: host(),
            spool,
            outbox,
            dropped: mark.dropped,
            told: mark.told,
            began: mark.began.filter(|_| !frozen),
            due: None,
            ended: None,
            undelivered: mark.undelivered,
            delivered_end: mark.delivered_end,
            held: mark.held,
            covered: mark.covered,
            last: mark.last.unwrap_or_else(SystemTime::now),
            delivered: mark.delivered,
            history: false,
        };
        if frozen {
            // It was frozen with just this checkpoint.
            let attached = summarize(&spool::path(directory, mark.spool.number));
            let whole = attached.is_ok_and(|(_, lines)| lines.unattached == 0) && mark.spool.left_out == 0;
            period.note_frozen(mark.spool.number, written, whole);
        }
        period.begin(config);
        Ok(period)
    }

    /// What a restart needs to know.
    pub fn mark(&self) -> Mark {
        Mark {
            spool: self.spool.mark(),
            began: self.began,
            dropped: self.dropped,
            told: self.told,
            undelivered: self.undelivered.clone(),
            delivered_end: self.delivered_end,
            held: self.held,
            covered: self.covered,
            last: Some(self.last),
            delivered: self.delivered,
        }
    }

    /// When it is to end, if there is something to say. History that is still being read is waited for.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.history).map(|(due, _)| due)
    }

    /// Says whether history is being read.
    pub fn set_history(&mut self, history: bool) {
        self.history = history;
    }

    /// Whether there is something to say.
    pub fn has_something(&self) -> bool {
        self.spool.mark().length > 0 || self.spool.mark().left_out > 0
    }

    /// For the status.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn status(&self) -> io::Result<MailStatus> {
        let frozen = self.outbox.frozen()?;
        let due = self.due.filter(|_| self.has_something() && !self.history);
        Ok(MailStatus {
            next: self.spool.mark().number,
            due: due.map(|(_, time)| rfc3339(time).into_owned()),
            waiting: frozen.len() as u64,
            waiting_since: frozen.first().map(|frozen| rfc3339(frozen.time).into_owned()),
            delivered: self.delivered.map(|(number, _)| number),
            delivered_at: self.delivered.map(|(_, time)| rfc3339(time).into_owned()),
            dropped: self.mark().untold(),
        })
    }

    /// Puts what the cycles found into the spool; all of it, or nothing.
    ///
    /// # Errors
    /// Those of [`Spool::append`].
    pub fn append<'c>(&mut self, cycles: impl Iterator<Item = &'c Cycle> + Clone, config: &Config) -> io::Result<()> {
        self.spool.append(cycles.clone())?;
        self.begin(config);
        let is_urgent = |level: Level| level <= Level::Fatal;
        if cycles.flat_map(|cycle| &cycle.findings).any(|reported| is_urgent(reported.scored.level)) {
            let earliest = self.ended.map_or_else(Instant::now, |ended| ended + MIN_PERIOD);
            if self.due.is_some_and(|(due, _)| due > earliest) {
                self.end_in(earliest.saturating_duration_since(Instant::now()));
            }
        }
        Ok(())
    }

    /// Begins the period if there is something to say and it has not begun. If there is nothing, it ends when that is to
    /// be said.
    pub fn begin(&mut self, config: &Config) {
        // A clock that was set back makes no period longer.
        let passed = |since: SystemTime| SystemTime::now().duration_since(since).unwrap_or_default();
        if self.has_something() {
            if self.began.is_none() || self.due.is_none() {
                let began = *self.began.get_or_insert_with(SystemTime::now);
                self.end_in(config.digest.period.get().saturating_sub(passed(began)));
            }
        } else {
            self.due = None;
            if let Some(interval) = config.digest.all_is_well.get() {
                self.end_in(interval.saturating_sub(passed(self.last)));
            }
        }
    }

    /// Another configuration is in force: a period that is shorter now ends earlier.
    pub fn configure(&mut self, config: &Config) {
        let former = self.due;
        self.due = None;
        self.begin(config);
        if let Some((due, time)) = former.filter(|_| self.has_something())
            && self.due.is_none_or(|(new, _)| new > due)
        {
            self.due = Some((due, time));
        }
    }

    fn end_in(&mut self, time: Duration) {
        self.due = Some((Instant::now() + time, SystemTime::now() + time));
    }

    /// Ends later: it cannot be frozen now.
    pub fn postpone(&mut self) {
        self.end_in(MIN_PERIOD);
    }

    /// Renders and freezes the digest. To be called when the checkpoint covers just what the spool holds; `end` is how
    /// many bytes were written to forbidden.log.
    ///
    /// # Errors
    /// What keeps it from being rendered or written; then it is not frozen.
    pub fn freeze(&mut self, state: &State, end: u64, config: &Config) -> anyhow::Result<()> {
        let (now, number) = (SystemTime::now(), self.spool.mark().number);
        let occasion = Occasion {
            number,
            host: &self.host,
            now,
            since: self.last,
            state,
            config,
            dropped: self.mark().untold(),
            left_out: self.spool.mark().left_out,
        };
        let (summary, lines) = summarize(&spool::path(&self.directory, number)).context("cannot read the spool")?;
        let whole = lines.unattached == 0 && occasion.left_out == 0;
        let message = message(&occasion, &summary, lines)?;
        self.outbox.freeze(number, &message)?;
        self.last = now;
        self.note_frozen(number, end, whole);
        Ok(())
    }

    fn note_frozen(&mut self, number: u64, end: u64, whole: bool) {
        let start = self.undelivered.back().map_or(self.covered, |last| last.end);
        self.undelivered.push_back(Undelivered { number, start, end, whole, told: self.dropped, done: None });
    }

    /// Goes on to the next period, after the digest was frozen. May be tried again.
    ///
    /// # Errors
    /// Those of fsync(2), open(2).
    pub fn begin_next(&mut self, config: &Config) -> io::Result<()> {
        self.outbox.sync()?;
        self.spool = Spool::open(&self.directory, spool::Mark::at(self.spool.mark().number + 1))?;
        (self.began, self.due) = (None, None);
        self.ended = Some(Instant::now());
        self.begin(config);
        Ok(())
    }

    /// Drops digests that nobody took for too long, or that are too many; answers how many.
    ///
    /// # Errors
    /// Those of readdir(3) and unlink(2).
    pub fn drop_superfluous(&mut self, config: &Config) -> io::Result<u64> {
        let superfluous = self.outbox.superfluous(&config.digest, SystemTime::now(), |number| {
            spool::path(&self.directory, number).metadata().map_or(0, |metadata| metadata.len())
        })?;
        for frozen in &superfluous {
            self.remove(frozen.number)?;
            self.dropped += 1;
        }
        Ok(superfluous.len() as u64)
    }

    /// Takes in which digests were delivered or set aside; answers whether there is anything to record.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn collect(&mut self) -> io::Result<bool> {
        for known in self.undelivered.iter_mut().filter(|known| known.done.is_none()) {
            let fate = self.outbox.fate(known.number);
            known.done = match fate {
                Fate::Waits => continue,
                Fate::Sent => Some(known.whole),
                // What was refused is kept aside with its lines.
                Fate::Refused => Some(true),
                Fate::SentBare | Fate::Gone => Some(false),
            };
            if matches!(fate, Fate::Sent | Fate::SentBare) {
                self.told = self.told.max(known.told);
                self.delivered = Some((known.number, SystemTime::now()));
            }
        }
        while let Some(first) = self.undelivered.front().copied()
            && let Some(removable) = first.done
        {
            self.undelivered.pop_front();
            self.covered = first.end;
            if !removable && first.start < first.end {
                self.held.get_or_insert(first.start);
            }
            let end = self.held.map_or(first.end, |held| held.min(first.end));
            self.delivered_end = self.delivered_end.max(end);
        }
        Ok(!self.outbox.sent()?.is_empty())
    }

    /// Says how many bytes had been written before the first that still stands in forbidden.log: what was rotated away
    /// need not be held. True if something was.
    pub fn release(&mut self, first: u64) -> bool {
        let released = self.held.is_some_and(|held| held < first);
        if released {
            self.held = None;
            self.delivered_end = self.delivered_end.max(first.min(self.covered));
        }
        released
    }

    /// What was written to forbidden.log before this number of bytes is delivered.
    pub fn delivered_end(&self) -> u64 {
        self.delivered_end
    }

    /// Removes what was delivered, and what it was made of. To be called when that is recorded.
    ///
    /// # Errors
    /// Those of readdir(3) and unlink(2); may be tried again.
    pub fn forget_delivered(&mut self) -> io::Result<()> {
        for number in self.outbox.sent()? {
            // Whatever others call their files: a period that has not ended is in no digest.
            if number < self.spool.mark().number {
                remove_spool(&self.directory, number)?;
            }
            self.outbox.forget(number)?;
        }
        Ok(())
    }

    /// Has the digests tried again that were refused; answers how many they are.
    ///
    /// # Errors
    /// Those of readdir(3) and rename(2).
    pub fn retry_refused(&self) -> io::Result<usize> {
        self.outbox.retry_refused()
    }

    /// Removes a digest and what it was made of.
    fn remove(&mut self, number: u64) -> io::Result<()> {
        remove_spool(&self.directory, number)?;
        self.outbox.remove(number)
    }
}

fn remove_spool(directory: &Path, number: u64) -> io::Result<()> {
    match std::fs::remove_file(spool::path(directory, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The node's name, as it can stand in a mail address.
pub fn host() -> String {
    let name = nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned());
    let is_usable = |name: &String| lettre::Address::new("root", name).is_ok();
    name.ok().filter(is_usable).unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::own::ids::PART_FAILED;
    use crate::finding::Kind;
    use crate::report::Reported;
    use crate::score::{Levels, Scored, Weights, condition, judge};

    struct World {
        directory: tempfile::TempDir,
        config: Config,
    }

    impl World {
        fn new() -> World {
            World { directory: tempfile::tempdir().expect("a directory"), config: Config::default() }
        }

        fn open(&self, mark: Mark) -> Period {
            let at = |name| self.directory.path().join(name);
            Period::open(&at("spool"), &at("outbox"), mark, 10, &self.config).expect("opened")
        }

        fn outbox(&self) -> Outbox {
            Outbox::at(&self.directory.path().join("outbox"))
        }

        fn find(&self, period: &mut Period) {
            self.find_at(period, Level::Low);
        }

        fn find_at(&self, period: &mut Period, level: Level) {
            let finding = condition(PART_FAILED, Kind::Event, "x", "y".into(), SystemTime::now());
            let scored = Scored { level, ..judge(finding, &Weights::shipped(), &Levels::default()) };
            let cycle = Cycle { number: 1, findings: vec![Reported { scored, metric: 0, again: false }] };
            period.append([&cycle].into_iter(), &self.config).expect("appended");
        }

        fn freeze(&self, period: &mut Period, end: u64) {
            period.freeze(&State::default(), end, &self.config).expect("frozen");
        }
    }

    fn numbers(outbox: &Outbox) -> Vec<u64> {
        outbox.frozen().expect("listed").iter().map(|frozen| frozen.number).collect()
    }

    #[test]
    fn a_period_begins_with_its_first_finding_and_goes_on_over_a_restart() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        assert_eq!(period.due(), None);
        world.find(&mut period);
        let (mark, due) = (period.mark(), period.due().expect("due"));
        let after = world.open(mark).due().expect("due");
        let difference = after.max(due) - after.min(due);
        assert!(difference < Duration::from_secs(5), "{difference:?}");
    }

    #[test]
    fn a_fatal_finding_ends_the_period_early_but_not_twice_a_minute() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        world.find_at(&mut period, Level::Low);
        assert!(period.due().expect("due") > Instant::now() + MIN_PERIOD);
        world.find_at(&mut period, Level::Fatal);
        assert!(period.due().expect("due") <= Instant::now());
        world.freeze(&mut period, 10);
        period.begin_next(&world.config).expect("begun");
        world.find_at(&mut period, Level::Crash);
        let due = period.due().expect("due");
        let seconds = due.saturating_duration_since(Instant::now()).as_secs();
        assert!((58..=60).contains(&seconds), "{seconds}");
    }

    #[test]
    fn history_is_waited_for_and_a_quiet_interval_ends_with_a_digest_that_says_so() {
        let mut world = World::new();
        let mut period = world.open(Mark::default());
        world.find(&mut period);
        period.set_history(true);
        assert_eq!(period.due(), None);
        period.set_history(false);
        assert!(period.due().is_some());
        world.freeze(&mut period, 10);
        period.begin_next(&world.config).expect("begun");
        assert_eq!(period.due(), None, "by default nothing is said of nothing");
        world.config.digest.all_is_well = "7days".to_owned().try_into().expect("an interval");
        period.configure(&world.config);
        let days = period.due().expect("due").saturating_duration_since(Instant::now()).as_secs() / 86_400;
        assert_eq!(days, 6, "a moment less than seven");
        world.find(&mut period);
        let due = period.due().expect("due").saturating_duration_since(Instant::now());
        assert!(due <= Duration::from_secs(600), "what happens is not held back: {due:?}");
    }

    #[test]
    fn a_digest_that_was_frozen_before_a_crash_is_not_made_again() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        world.find(&mut period);
        let mark = period.mark();
        world.freeze(&mut period, 10);
        let message = std::fs::read(world.outbox().path(1)).expect("frozen");
        let mut period = world.open(mark);
        assert_eq!((period.mark().spool, period.due()), (spool::Mark::at(2), None));
        world.find(&mut period);
        world.freeze(&mut period, 20);
        assert_eq!(numbers(&world.outbox()), [1, 2]);
        assert_eq!(std::fs::read(world.outbox().path(1)).expect("frozen"), message);
    }

    #[test]
    fn lines_are_delivered_when_the_digests_before_them_are() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        for end in [10, 20, 30] {
            world.find(&mut period);
            world.freeze(&mut period, end);
            period.begin_next(&world.config).expect("begun");
        }
        for (sent, end) in [(2, 0), (1, 20), (3, 30)] {
            world.outbox().mark_sent(sent, false).expect("renamed");
            assert!(period.collect().expect("collected"));
            assert_eq!(period.delivered_end(), end, "after {sent}");
            period.forget_delivered().expect("forgotten");
            assert!(!spool::path(&world.directory.path().join("spool"), sent).exists());
        }
        assert!(!period.collect().expect("nothing"));
    }

    #[test]
    fn lines_that_no_mail_holds_stay_until_they_are_rotated() {
        for (what, end) in [("dropped", 10), ("bare", 10), ("refused, and kept aside", 30)] {
            let world = World::new();
            let mut period = world.open(Mark::default());
            for end in [10, 20, 30] {
                world.find(&mut period);
                world.freeze(&mut period, end);
                period.begin_next(&world.config).expect("begun");
            }
            match what {
                "dropped" => world.outbox().remove(2).expect("removed"),
                "bare" => world.outbox().mark_sent(2, true).expect("renamed"),
                _ => world.outbox().set_aside(2).expect("renamed"),
            }
            [1, 3].into_iter().for_each(|number| world.outbox().mark_sent(number, false).expect("renamed"));
            assert!(period.collect().expect("collected"));
            assert_eq!(period.delivered_end(), end, "{what}");
            let mut period = world.open(period.mark());
            assert!(!period.release(10) && period.delivered_end() == end, "{what}: it is still there");
            assert_eq!(period.release(11), end < 30, "{what}");
        }
    }

    #[test]
    fn a_digest_counts_as_whole_only_if_all_of_its_lines_are_attached() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        world.find(&mut period);
        period.note_frozen(1, 20, false);
        world.outbox().freeze(1, b"x").expect("frozen");
        world.outbox().mark_sent(1, false).expect("renamed");
        assert!(period.collect().expect("collected"));
        assert_eq!((period.delivered_end(), period.mark().held), (0, Some(0)));
    }

    #[test]
    fn what_others_put_into_the_outbox_removes_no_spool_of_the_present() {
        let world = World::new();
        let mut period = world.open(Mark::default());
        world.find(&mut period);
        for name in ["1.sent", "18446744073709551615.sent"] {
            std::fs::write(world.directory.path().join("outbox").join(name), "").expect("written");
        }
        assert!(period.collect().expect("collected"));
        period.forget_delivered().expect("forgotten");
        assert!(spool::path(&world.directory.path().join("spool"), 1).exists());
        assert_eq!(period.mark().delivered, None);
    }

    #[test]
    fn drops_are_untold_until_a_digest_that_tells_of_them_is_delivered() {
        let mut world = World::new();
        let mut period = world.open(Mark::default());
        let next = |world: &World, period: &mut Period, end: u64| {
            world.find(period);
            world.freeze(period, end);
            period.begin_next(&world.config).expect("begun");
        };
        [10, 20, 30].into_iter().for_each(|end| next(&world, &mut period, end));
        world.config.digest.outbox_size = "1KiB".to_owned().try_into().expect("a size");
        assert_eq!(period.drop_superfluous(&world.config).expect("dropped"), 2);
        world.outbox().mark_sent(3, false).expect("renamed");
        period.collect().expect("collected");
        assert_eq!(period.mark().untold(), 2, "the third was made before");
        next(&world, &mut period, 40);
        assert!(std::fs::read_to_string(world.outbox().path(4)).expect("frozen").contains("2 digests before this one"));
        world.outbox().mark_sent(4, false).expect("renamed");
        period.collect().expect("collected");
        assert_eq!(period.mark().untold(), 0);
    }

    #[test]
    fn the_oldest_digests_are_dropped_when_there_is_no_room() {
        let mut world = World::new();
        world.config.digest.outbox_size = "1KiB".to_owned().try_into().expect("a size");
        let mut period = world.open(Mark::default());
        for end in [10, 20, 30] {
            world.find(&mut period);
            world.freeze(&mut period, end);
            period.begin_next(&world.config).expect("begun");
        }
        assert_eq!(period.drop_superfluous(&world.config).expect("dropped"), 2);
        assert_eq!((numbers(&world.outbox()), period.mark().dropped), (vec![3], 2));
        world.find(&mut period);
        world.freeze(&mut period, 40);
        let next = std::fs::read_to_string(world.outbox().path(4)).expect("frozen");
        assert!(next.contains("2 digests before this one had to be dropped"), "{next}");
    }
}
