//! The follower against a simple model: whatever writer, rotation, compression and restarts do in whatever order, every
//! line comes out once and in order.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

/// What can happen to a log.
#[derive(Clone, Debug)]
enum Act {
    /// This many lines are written.
    Append(u8),
    /// Half a line is written; its rest comes with whatever is written next.
    Half,
    /// As kube-apiserver does it; the clock may have been set back before.
    Rotate(bool),
    /// The newest plain backup is compressed: 0 half-way, 1 to the end with the plain one still there, 2 wholly.
    Compress(u8),
    /// The oldest backup is deleted, if a restart would not need it.
    Delete,
    /// Somebody empties the live file once it is read; the writer appends at its new end or at its old place.
    Truncate,
    /// Somebody cuts the last lines off the live file once it is read, and its writer writes on before that is seen.
    CutBack(u8),
    /// Somebody makes the live file longer by so many NULs, a hole or written; the writer goes on at its old place, if
    /// it does not append.
    Lengthen(u16, bool),
    /// The follower does this many steps.
    Step(u8),
    /// The position is saved.
    Save,
    /// The follower starts again at the saved position.
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (1_u8..5).prop_map(Act::Append),
        2 => Just(Act::Half),
        3 => prop_oneof![5 => Just(false), 1 => Just(true)].prop_map(Act::Rotate),
        2 => (0_u8..3).prop_map(Act::Compress),
        1 => Just(Act::Delete),
        1 => Just(Act::Truncate),
        1 => (1_u8..9).prop_map(Act::CutBack),
        1 => (1_u16..1000, any::<bool>()).prop_map(|(length, hole)| Act::Lengthen(length, hole)),
        4 => (1_u8..6).prop_map(Act::Step),
        3 => Just(Act::Save),
        2 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 1..40)
}

struct World {
    dir: tempfile::TempDir,
    writer: File,
    /// The writer's own offset: after a rotation kube-apiserver does not open its file for appending.
    at: u64,
    appending: bool,
    written: Vec<String>,
    half: Option<String>,
    rotations: u32,
    /// Of the clock.
    hour: u32,
    /// Backups that are there: stamp, and how many lines had been written by its end.
    backups: Vec<(String, usize)>,
    follower: Follower,
    read: Vec<String>,
    notices: Vec<Notice>,
    truncations: usize,
    /// Position, lines and notices at the last save; what came after it comes again after a restart.
    saved: (Position, usize, usize),
}

impl World {
    fn new(appending: bool) -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let writer = OpenOptions::new().create(true).append(true).open(&path).expect("made");
        let follower = Follower::new(LogFiles::new(&path), Position::default());
        World {
            dir,
            writer,
            at: 0,
            appending,
            written: Vec::new(),
            half: None,
            rotations: 0,
            hour: 12,
            backups: Vec::new(),
            follower,
            read: Vec::new(),
            notices: Vec::new(),
            truncations: 0,
            saved: (Position::default(), 0, 0),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&mut self, text: &str) {
        use std::os::unix::fs::FileExt;
        if self.is_appending() {
            self.writer.write_all(text.as_bytes()).expect("written");
        } else {
            self.writer.write_all_at(text.as_bytes(), self.at).expect("written");
        }
        self.at += text.len() as u64;
    }

    fn is_appending(&self) -> bool {
        self.appending || self.rotations == 0
    }

    fn finish_half(&mut self) {
        if let Some(line) = self.half.take() {
            let rest = format!("{}\n", &line[line.len() / 2..]);
            self.write(&rest);
            self.written.push(line);
        }
    }

    fn next_line(&self) -> String {
        let number = self.written.len();
        // Some are longer than a print, some shorter than its tail. As of an audit event, no two have the same end.
        format!("line {number} {}{number}", "x".repeat(number * 7919 % 400))
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Append(count) => {
                self.finish_half();
                for _ in 0..*count {
                    let line = self.next_line();
                    self.write(&format!("{line}\n"));
                    self.written.push(line);
                }
            }
            Act::Half => {
                self.finish_half();
                let line = self.next_line();
                self.write(&line[..line.len() / 2]);
                self.half = Some(line);
            }
            Act::Rotate(set_back) => self.rotate(*set_back),
            Act::Compress(how) => self.compress(*how),
            Act::Delete => {
                if self.backups.first().is_some_and(|(_, end)| *end < self.saved.1) {
                    let (stamp, _) = self.backups.remove(0);
                    for name in [format!("audit-{stamp}.log"), format!("audit-{stamp}.log.gz")] {
                        let _ = fs::remove_file(self.path(&name));
                    }
                }
            }
            Act::Truncate => {
                self.finish_half();
                self.catch_up();
                self.save();
                let content = fs::read(self.path("audit.log")).expect("read");
                if content.iter().any(|byte| *byte != 0) {
                    self.writer.set_len(0).expect("cut");
                    self.truncations += 1;
                    if self.is_appending() {
                        self.at = 0;
                    }
                    // A writer that goes on at its old place leaves the file empty until then.
                    self.catch_up();
                }
            }
            Act::CutBack(lines) => {
                self.finish_half();
                self.catch_up();
                let content = fs::read(self.path("audit.log")).expect("read");
                let ends =
                    || content.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u64 + 1);
                if ends().count() > usize::from(*lines) {
                    let end = ends().rev().nth(usize::from(*lines)).expect("there are more");
                    self.writer.set_len(end).expect("cut");
                    self.truncations += 1;
                    if self.is_appending() {
                        self.at = end;
                    }
                    self.act(&Act::Append(lines % 5 + 1));
                    self.catch_up();
                    self.save();
                }
            }
            Act::Lengthen(length, hole) => {
                if self.is_appending() {
                    self.finish_half();
                }
                let end = self.writer.metadata().expect("open").len();
                if *hole {
                    self.writer.set_len(end + u64::from(*length)).expect("made longer");
                } else {
                    let path = self.path("audit.log");
                    let mut other = OpenOptions::new().append(true).open(path).expect("opened");
                    other.write_all(&vec![0; usize::from(*length)]).expect("written");
                }
            }
            Act::Step(count) => {
                for _ in 0..*count {
                    self.step();
                }
            }
            Act::Save => self.save(),
            Act::Restart => {
                self.read.truncate(self.saved.1);
                self.notices.truncate(self.saved.2);
                let files = LogFiles::new(&self.path("audit.log"));
                self.follower = Follower::new(files, self.saved.0.clone());
            }
        }
    }

    fn rotate(&mut self, set_back: bool) {
        self.finish_half();
        self.rotations += 1;
        // In what order to read two backups with the clock set back between them, nobody knows.
        let all_read = self.backups.iter().all(|(_, end)| *end < self.saved.1);
        self.hour -= u32::from(set_back && self.hour > 0 && all_read);
        let stamp = format!("2026-11-22T{:02}-05-05.{:03}", self.hour, self.rotations);
        let path = self.path("audit.log");
        fs::rename(&path, self.path(&format!("audit-{stamp}.log"))).expect("renamed");
        self.backups.push((stamp, self.written.len()));
        self.writer = File::create(&path).expect("made");
        self.at = 0;
    }

    fn compress(&mut self, how: u8) {
        let Some((stamp, _)) = self.backups.last() else { return };
        let (plain, packed) = (self.path(&format!("audit-{stamp}.log")), self.path(&format!("audit-{stamp}.log.gz")));
        let Ok(content) = fs::read(&plain) else { return };
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&content).expect("compressed");
        let mut content = encoder.finish().expect("compressed");
        if how == 0 {
            content.truncate(content.len() / 2);
        }
        fs::write(&packed, content).expect("written");
        if how == 2 {
            fs::remove_file(&plain).expect("removed");
        }
    }

    fn step(&mut self) -> Step {
        let (read, notices) = (&mut self.read, &mut self.notices);
        self.follower
            .step(&mut |observed| match observed {
                Observed::Piece(_, Piece::Line { bytes, .. }) => {
                    read.push(String::from_utf8(bytes.to_vec()).expect("text"));
                }
                // The hole that a writer leaves which goes on at its old place.
                Observed::Piece(..) => {}
                Observed::Notice(notice) => notices.push(notice),
            })
            .expect("no I/O error")
    }

    fn catch_up(&mut self) {
        for _ in 0..1000 {
            if self.step() == Step::CaughtUp {
                return;
            }
        }
        panic!("it never catches up: {:?}", self.follower);
    }

    fn save(&mut self) {
        let json = serde_json::to_string(self.follower.position()).expect("json");
        self.saved = (serde_json::from_str(&json).expect("the same"), self.read.len(), self.notices.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_line_comes_out_once_and_in_order(acts in acts(), appending: bool) {
        let mut world = World::new(appending);
        for act in &acts {
            world.act(act);
        }
        world.finish_half();
        world.catch_up();
        prop_assert_eq!(&world.read, &world.written);
        // What was cut, and then compressed while nobody looked, cannot be told from what was lost.
        let said = |notice: &Notice| match notice {
            Notice::Tampered { change, .. } => *change == Change::Cut,
            Notice::Lost { .. } => world.truncations > 0,
            Notice::Torn { .. } | Notice::Unseen { .. } => false,
        };
        prop_assert!(world.notices.iter().all(said), "{:?}", world.notices);
        prop_assert_eq!(world.notices.len(), world.truncations);
    }
}

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

impl World {
    fn last_written(&self) -> u64 {
        self.written.last().map_or(0, |line| line.len() as u64 + 1)
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
