//! What others do to a log and its backups, one thing at a time.

mod model;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use self::model::{Act, World};
use super::*;

/// A world with ten lines written and read.
fn settled() -> World {
    let mut world = World::new(true);
    world.act(&Act::Append(10));
    world.catch_up();
    world.save();
    world
}

#[test]
fn what_others_do_to_the_file_is_told_apart_and_survived() {
    type Meddle = fn(&World);
    let cases: [(&str, Meddle, Change); 5] = [
        ("removed", |world| fs::remove_file(world.path("audit.log")).expect("removed"), Change::Removed),
        ("moved", |world| fs::rename(world.path("audit.log"), world.path("old")).expect("moved"), Change::Moved),
        ("emptied", |world| world.writer.set_len(0).expect("cut"), Change::Cut),
        ("its end cut off", |world| world.writer.set_len(world.at - 50).expect("cut"), Change::Cut),
        (
            "replaced",
            |world| {
                fs::write(world.path("new"), "line new\n").expect("written");
                fs::rename(world.path("new"), world.path("audit.log")).expect("moved");
            },
            Change::Replaced,
        ),
    ];
    for (name, meddle, change) in cases {
        let mut world = settled();
        meddle(&world);
        world.catch_up();
        world.act(&Act::Append(1));
        world.catch_up();
        world.catch_up();
        let [Notice::Tampered { file, change: said, offset, .. }] = &world.notices[..] else {
            panic!("{name}: {:?}", world.notices);
        };
        assert_eq!((file.as_str(), *said, *offset), ("audit.log", change, world.at - world.last_written()), "{name}");
        assert!(world.read.last().expect("lines").ends_with(world.written.last().expect("lines")), "{name}");
        assert!(world.read.len() <= 12, "{name}: nothing twice");
    }
}

#[test]
fn where_it_is_not_known_how_far_a_file_was_cut_what_may_be_lost_is_said() {
    for (name, lines, restarts) in [("cut far back", 5000, false), ("cut while nobody looked", 20, true)] {
        let mut world = World::new(true);
        (0..lines / 20).for_each(|_| world.act(&Act::Append(20)));
        world.catch_up();
        world.save();
        world.writer.set_len(1000).expect("cut");
        world.act(&Act::Append(1));
        if restarts {
            world.act(&Act::Restart);
        }
        world.catch_up();
        let size = fs::metadata(world.path("audit.log")).expect("there").len();
        let [Notice::Tampered { change: Change::Cut, .. }, Notice::Unseen { offset, .. }] = &world.notices[..] else {
            panic!("{name}: {:?}", world.notices);
        };
        assert_eq!(*offset, size, "{name}");
        world.act(&Act::Append(2));
        world.catch_up();
        assert_eq!(world.read[world.read.len() - 2..], world.written[world.written.len() - 2..], "{name}");
    }
}

#[test]
fn a_file_that_its_writer_did_not_rename_is_read_on() {
    let mut world = settled();
    fs::rename(world.path("audit.log"), world.path("audit-2026-11-22T03-05-05.001.log")).expect("renamed");
    File::create(world.path("audit.log")).expect("made");
    world.catch_up();
    world.act(&Act::Append(3));
    world.catch_up();
    world.catch_up();
    assert_eq!(world.read, world.written);
    assert!(matches!(&world.notices[..], [Notice::Tampered { change: Change::Moved, .. }]), "{:?}", world.notices);
}

#[test]
fn a_log_behind_a_link_of_root_is_the_live_file() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut world = settled();
    fs::create_dir(world.path("links")).expect("made");
    std::os::unix::fs::symlink(world.path("audit.log"), world.path("links/audit.log")).expect("linked");
    world.follower = Follower::new(LogFiles::new(&world.path("links/audit.log")), Position::default());
    world.read.clear();
    world.catch_up();
    world.act(&Act::Append(1));
    world.catch_up();
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn a_file_that_is_replaced_again_and_again_is_still_read() {
    let mut world = settled();
    for _ in 0..3 {
        fs::write(world.path("new"), "").expect("written");
        fs::rename(world.path("new"), world.path("audit.log")).expect("moved");
        world.catch_up();
        world.act(&Act::Append(1));
        world.catch_up();
    }
    assert_eq!(world.read, world.written);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_come_twice() {
    let mut world = settled();
    for stamp in ["2026-11-22T12-00-00.000", "2026-11-22T11-30-00.000"] {
        fs::rename(world.path("audit.log"), world.path(&format!("audit-{stamp}.log"))).expect("renamed");
        world.writer = File::create(world.path("audit.log")).expect("made");
        world.act(&Act::Append(2));
        world.catch_up();
    }
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn what_only_has_the_name_of_a_backup_is_passed_over() {
    let mut world = settled();
    fs::create_dir(world.path("audit-2026-11-22T03-05-05.000.log")).expect("made");
    std::os::unix::fs::symlink("/etc/passwd", world.path("audit-2026-11-22T03-05-06.000.log")).expect("linked");
    fs::hard_link(world.path("audit.log"), world.path("audit-2026-11-22T03-05-04.000.log")).expect("linked");
    world.follower = Follower::new(LogFiles::new(&world.path("audit.log")), Position::default());
    world.read.clear();
    world.catch_up();
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn a_backup_that_went_unread_is_named() {
    let mut world = settled();
    world.act(&Act::Append(1));
    world.act(&Act::Rotate(false));
    world.act(&Act::Append(1));
    world.act(&Act::Rotate(false));
    fs::remove_file(world.path("audit-2026-11-22T12-05-05.001.log")).expect("removed");
    world.act(&Act::Restart);
    world.catch_up();
    let [Notice::Lost { file, next, .. }] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!((file.as_str(), next.as_str()), ("audit.log", "audit-2026-11-22T12-05-05.002.log"));
    assert_eq!(world.read.len(), 11);
}

#[test]
fn whoever_inherits_the_open_file_reads_it_to_its_end_though_it_was_removed() {
    let mut world = settled();
    let open: Vec<_> = world.follower.open_files().map(|file| file.try_clone().expect("cloned")).collect();
    world.act(&Act::Append(2));
    world.act(&Act::Rotate(false));
    fs::remove_file(world.path("audit-2026-11-22T12-05-05.001.log")).expect("removed");
    world.act(&Act::Append(1));
    let position = world.follower.position().clone();
    // What is no file of this log, or cannot be read, is passed over.
    let others = [world.writer.try_clone().expect("cloned"), File::open(world.dir.path()).expect("opened")];
    let follower = Follower::new(LogFiles::new(&world.path("audit.log")), position);
    world.follower = follower.inherit(others.into_iter().chain(open));
    world.catch_up();
    // Somebody took a log away, of which nothing is missing.
    let [Notice::Tampered { change: Change::Replaced, .. }] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!(world.read, world.written);
}

#[test]
fn a_backup_that_goes_while_an_older_one_is_read_is_named() {
    let mut world = settled();
    for _ in 0..2 {
        world.act(&Act::Rotate(false));
        world.act(&Act::Append(1));
    }
    world.follower = Follower::new(LogFiles::new(&world.path("audit.log")), Position::default());
    world.read.clear();
    world.step();
    fs::remove_file(world.path("audit-2026-11-22T12-05-05.002.log")).expect("removed");
    world.catch_up();
    let [Notice::Lost { file, next, offset: 0 }] = &world.notices[..] else { panic!("{:?}", world.notices) };
    assert_eq!((file.as_str(), next.as_str()), ("audit-2026-11-22T12-05-05.002.log", "audit.log"));
    assert_eq!(world.read.len(), 11);
}

#[test]
fn a_backup_with_an_earlier_stamp_is_read_after_a_restart() {
    let mut world = settled();
    world.act(&Act::Rotate(false));
    world.act(&Act::Append(1));
    world.catch_up();
    world.save();
    for act in [Act::Rotate(true), Act::Append(2), Act::Rotate(false), Act::Append(1), Act::Restart] {
        world.act(&act);
    }
    assert!(world.hour < 12, "the clock was set back");
    world.catch_up();
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn a_replaced_file_is_read_on_after_a_restart_or_named() {
    for removed in [false, true] {
        let mut world = settled();
        fs::rename(world.path("audit.log"), world.path("hidden")).expect("moved");
        fs::write(world.path("audit.log"), "").expect("written");
        world.catch_up();
        world.act(&Act::Append(1));
        world.catch_up();
        world.save();
        world.act(&Act::Append(1));
        if removed {
            fs::remove_file(world.path("hidden")).expect("removed");
        }
        world.act(&Act::Restart);
        world.catch_up();
        let lost =
            world.notices.iter().any(|notice| matches!(notice, Notice::Lost { file, .. } if file == "audit.log"));
        assert_eq!((world.read.len(), lost), if removed { (11, true) } else { (12, false) });
    }
}

#[test]
fn a_hole_of_any_size_is_passed_at_once() {
    let mut world = settled();
    world.writer.set_len(1 << 40).expect("made longer");
    world.catch_up();
    world.act(&Act::Append(2));
    let steps = (0..).find(|_| world.step() == Step::CaughtUp);
    assert!(steps.expect("it ends") < 10);
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn what_is_appended_is_read_from_memory_and_nothing_else_is() {
    let mut world = settled();
    world.act(&Act::Append(1));
    let mut read = Vec::new();
    let mut sink = |observed: Observed<'_>| {
        let Observed::Piece(_, Piece::Line { bytes, .. }) = observed else { panic!("{observed:?}") };
        read.push(String::from_utf8(bytes.to_vec()).expect("text"));
    };
    // A file system in memory may know no such reading.
    let cached = world.follower.read_appended(&mut sink);
    assert!(!world.follower.read_appended(&mut sink), "nothing was appended");
    world.read.extend(read);
    world.catch_up();
    assert_eq!(&world.read, &world.written);
    if cached {
        assert_eq!(world.follower.lag(), 0);
    }
    world.writer.set_len(0).expect("cut");
    world.act(&Act::Append(1));
    assert!(!world.follower.read_appended(&mut |observed| panic!("{observed:?}")), "it was cut");
}

#[test]
fn a_recycled_inode_is_no_known_file() {
    let mut world = settled();
    world.act(&Act::Append(2));
    world.act(&Act::Rotate(false));
    world.act(&Act::Append(3));
    // The new live file now has the number that the rotated one had.
    let id = world.path("audit.log").metadata().expect("there");
    Arc::make_mut(world.saved.0.file.as_mut().expect("a file")).inode = id.ino();
    world.act(&Act::Restart);
    world.catch_up();
    assert_eq!((world.read, world.notices), (world.written, vec![]));
}

#[test]
fn the_end_of_a_log_leaves_out_the_past() {
    let mut world = World::new(true);
    for act in [Act::Append(3), Act::Rotate(false), Act::Append(3), Act::Half] {
        world.act(&act);
    }
    let files = LogFiles::new(&world.path("audit.log"));
    world.follower = Follower::new(files.clone(), end(&files).expect("read"));
    world.act(&Act::Append(1));
    world.catch_up();
    assert_eq!(world.read, world.written[6..], "from the unfinished line on");
    assert_eq!(end(&LogFiles::new(&world.path("absent/audit.log"))).expect("nothing"), Position::default());
}

#[test]
fn a_log_that_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit/audit.log");
    let mut follower = Follower::new(LogFiles::new(&path), Position::default());
    assert_eq!(follower.step(&mut |_| {}).expect("no error"), Step::Absent);
    fs::create_dir(dir.path().join("audit")).expect("made");
    assert_eq!(follower.step(&mut |_| {}).expect("no error"), Step::Absent);
    fs::write(&path, "one\n").expect("written");
    assert_eq!(follower.step(&mut |_| {}).expect("no error"), Step::Read);
}
