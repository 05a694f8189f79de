//! When periods end, and what becomes of their digests.

use std::time::Duration;

use super::*;
use crate::checks::own::ids::{MAIL_REFUSED, PART_FAILED};
use crate::finding::{Id, Kind};
use crate::report::Reported;
use crate::report::digest::deadline::MIN_PERIOD;
use crate::score::{Level, Levels, Scored, Weights, condition, judge};

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
        self.append(period, PART_FAILED, level, false);
    }

    fn append(&self, period: &mut Period, id: Id, level: Level, again: bool) {
        let finding = condition(id, Kind::Event, "x", format!("y{again}"), SystemTime::now());
        let scored = Scored { level, ..judge(finding, &Weights::shipped(), &Levels::default()) };
        let cycle = Cycle { number: 1, findings: vec![Reported { scored, metric: 0, again }] };
        period.append([&cycle].into_iter(), &self.config).expect("appended");
    }

    /// How many digests had to be dropped.
    fn tidy(&self, period: &mut Period) -> u64 {
        let before = period.mark().dropped;
        period.drop_superfluous(&self.config).expect("tidied");
        period.remove_dropped().expect("removed");
        period.mark().dropped - before
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
    let before = Instant::now();
    period.begin_next(&world.config).expect("begun");
    let after = Instant::now();
    world.find_at(&mut period, Level::Crash);
    // When it ends is taken from two readings of the clock.
    let due = period.due().expect("due");
    let slack = Duration::from_millis(100);
    assert!((before + MIN_PERIOD..=after + MIN_PERIOD + slack).contains(&due), "{due:?} {before:?} {after:?}");
}

#[test]
fn urgency_is_kept_over_a_restart_and_so_is_the_minute_between_digests() {
    let world = World::new();
    let mut period = world.open(Mark::default());
    let before = period.mark();
    world.find_at(&mut period, Level::Fatal);
    for (what, mark) in [("checkpointed", period.mark()), ("not checkpointed", before)] {
        assert!(world.open(mark).due().expect(what) <= Instant::now(), "{what}");
    }
    world.freeze(&mut period, 10);
    period.begin_next(&world.config).expect("begun");
    world.find_at(&mut period, Level::Fatal);
    let due = world.open(period.mark()).due().expect("due");
    assert!(due > Instant::now() + MIN_PERIOD / 2, "a digest was made just before the restart");
}

#[test]
fn a_digest_that_could_only_say_that_one_was_refused_waits_for_something_else_to_say() {
    let world = World::new();
    let mut period = world.open(Mark::default());
    world.append(&mut period, MAIL_REFUSED, Level::Fatal, false);
    assert!(period.has_something() && period.due().is_none(), "not by itself");
    assert_eq!(world.open(period.mark()).due(), None, "nor after a restart");
    world.find(&mut period);
    assert!(period.due().is_some());
}

#[test]
fn a_digest_is_not_made_at_once_again_and_again_where_it_cannot_be_made() {
    let world = World::new();
    let mut period = world.open(Mark::default());
    world.find_at(&mut period, Level::Fatal);
    period.postpone();
    world.find_at(&mut period, Level::Fatal);
    assert!(period.due().expect("due") > Instant::now() + MIN_PERIOD / 2);
}

#[test]
fn what_comes_again_after_a_restart_is_left_to_the_next_digest_while_no_checkpoint_has_it() {
    let world = World::new();
    let mut period = world.open(Mark::default());
    world.append(&mut period, PART_FAILED, Level::Low, true);
    period.cover();
    world.append(&mut period, PART_FAILED, Level::Low, true);
    world.append(&mut period, PART_FAILED, Level::Fatal, false);
    let counts = |number| {
        let (summary, _) = summarize(&spool::path(&world.directory.path().join("spool"), number)).expect("readable");
        summary.events
    };
    for _ in 0..2 {
        // May be tried again.
        period.set_apart().expect("set apart");
        assert_eq!(counts(1), 2);
    }
    world.freeze(&mut period, 10);
    period.begin_next(&world.config).expect("begun");
    assert!(period.take_back(&world.config).expect("taken"));
    assert_eq!((counts(2), period.due().is_some()), (1, true));
    period.set_apart().expect("set apart");
    assert!(!period.has_something(), "a restart would keep nothing of it");
    assert!(period.take_back(&world.config).expect("taken"));
    assert_eq!(counts(2), 1);
}

#[test]
fn a_damaged_finding_keeps_no_other_from_being_mailed() {
    let world = World::new();
    let mut period = world.open(Mark::default());
    world.find(&mut period);
    let spool = spool::path(&world.directory.path().join("spool"), 1);
    let text = std::fs::read_to_string(&spool).expect("readable");
    std::fs::write(&spool, format!("{{\"again\":\0}}\n{text}")).expect("written");
    world.freeze(&mut period, 10);
    let message = std::fs::read_to_string(world.outbox().path(1)).expect("frozen");
    assert!(message.contains("1 event") && message.contains("1 finding could not be read"), "{message}");
}

#[test]
fn what_a_digest_was_made_of_goes_when_it_is_delivered_or_its_room_is_needed() {
    let mut world = World::new();
    let mut period = world.open(Mark::default());
    let spool = |number| spool::path(&world.directory.path().join("spool"), number);
    for end in [10, 20, 30] {
        (0..20).for_each(|_| world.find(&mut period));
        world.freeze(&mut period, end);
        period.begin_next(&world.config).expect("begun");
    }
    let there = || [1, 2, 3, 4].map(|number| spool(number).exists());
    assert_eq!(there(), [true; 4]);
    world.outbox().mark_sent(2, false).expect("renamed");
    period.collect().expect("collected");
    period.forget_delivered().expect("forgotten");
    assert_eq!(there(), [true, false, true, true]);
    // There is room for the digests, and not for more.
    assert!(world.outbox().size().expect("listed") < 2048);
    world.config.digest.outbox_size = "2KiB".to_owned().try_into().expect("a size");
    assert_eq!(world.tidy(&mut period), 0, "no digest is dropped for it");
    assert_eq!((there(), numbers(&world.outbox())), ([false, false, false, true], vec![1, 3]));
}

#[test]
fn a_quiet_interval_ends_with_a_digest_that_says_so() {
    let mut world = World::new();
    let mut period = world.open(Mark::default());
    world.find(&mut period);
    world.freeze(&mut period, 10);
    period.begin_next(&world.config).expect("begun");
    assert_eq!(period.due(), None, "by default nothing is said of nothing");
    world.config.digest.all_is_well = "7days".to_owned().try_into().expect("an interval");
    period.configure(&world.config);
    let days = period.due().expect("due").saturating_duration_since(Instant::now()).as_secs() / 86_400;
    assert_eq!(days, 6, "a moment less than seven");
    world.config.digest.all_is_well = "1s".to_owned().try_into().expect("an interval");
    period.postpone();
    period.begin(&world.config);
    assert!(period.due().expect("due") > Instant::now() + MIN_PERIOD / 2, "not at once where it could not be made");
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
    assert_eq!(world.tidy(&mut period), 2);
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
    assert_eq!(world.tidy(&mut period), 2);
    assert_eq!((numbers(&world.outbox()), period.mark().dropped), (vec![3], 2));
    world.find(&mut period);
    world.freeze(&mut period, 40);
    let next = std::fs::read_to_string(world.outbox().path(4)).expect("frozen");
    assert!(next.contains("2 digests before this one had to be dropped"), "{next}");
}

#[test]
fn what_is_dropped_is_counted_once_and_goes_over_a_kill_at_any_instant() {
    let mut world = World::new();
    let mut period = world.open(Mark::default());
    for end in [10, 20, 30] {
        world.find(&mut period);
        world.freeze(&mut period, end);
        period.begin_next(&world.config).expect("begun");
    }
    world.config.digest.outbox_size = "1KiB".to_owned().try_into().expect("a size");
    let before = period.mark();
    for _ in 0..2 {
        // May be tried again.
        assert!(period.drop_superfluous(&world.config).expect("tidied"));
    }
    assert_eq!(numbers(&world.outbox()), [1, 2, 3], "nothing goes that is not recorded");
    let recorded = period.mark();
    let mut killed = world.open(before);
    assert_eq!((numbers(&world.outbox()), killed.mark().dropped), (vec![1, 2, 3], 0));
    assert!(killed.drop_superfluous(&world.config).expect("tidied"));
    assert_eq!(killed.mark(), recorded);
    for _ in 0..2 {
        let killed = world.open(recorded.clone());
        assert_eq!((numbers(&world.outbox()), killed.mark().dropped), (vec![3], 2));
        assert!(killed.mark().dropping.is_empty());
    }
}
