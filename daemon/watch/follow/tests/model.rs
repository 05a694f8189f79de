//! The follower against a simple model: whatever writer, rotation, compression and restarts do in whatever order, every
//! line comes out once and in order.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::super::*;

/// What can happen to a log.
#[derive(Clone, Debug)]
pub(super) enum Act {
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

pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) writer: File,
    /// The writer's own offset: after a rotation kube-apiserver does not open its file for appending.
    pub(super) at: u64,
    appending: bool,
    pub(super) written: Vec<String>,
    half: Option<String>,
    rotations: u32,
    /// Of the clock.
    pub(super) hour: u32,
    /// Backups that are there: stamp, and how many lines had been written by its end.
    backups: Vec<(String, usize)>,
    pub(super) follower: Follower,
    pub(super) read: Vec<String>,
    pub(super) notices: Vec<Notice>,
    truncations: usize,
    /// Position, lines and notices at the last save; what came after it comes again after a restart.
    pub(super) saved: (Position, usize, usize),
}

impl World {
    pub(super) fn new(appending: bool) -> World {
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
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

    pub(super) fn last_written(&self) -> u64 {
        self.written.last().map_or(0, |line| line.len() as u64 + 1)
    }

    fn next_line(&self) -> String {
        let number = self.written.len();
        // Some are longer than a print, some shorter than its tail. As of an audit event, no two have the same end.
        format!("line {number} {}{number}", "x".repeat(number * 7919 % 400))
    }

    pub(super) fn act(&mut self, act: &Act) {
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

    pub(super) fn step(&mut self) -> Step {
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

    pub(super) fn catch_up(&mut self) {
        for _ in 0..1000 {
            if self.step() == Step::CaughtUp {
                return;
            }
        }
        panic!("it never catches up: {:?}", self.follower);
    }

    pub(super) fn save(&mut self) {
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
