//! Follows the audit log on a thread of its own, and sends what it shows of refused requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::event::{Event, Piece, is_plainly_no_refusal, read_line};
use crate::watch::follow::{Follower, LogFiles, Notice, Observed, Position, Start, Step};
use crate::watch::lines;
use crate::watch::wake::{Stop, Wake, Woken};

/// What a line showed.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A refused request, or a further stage of one.
    Refused(Box<Event<'a>>),
    /// Bytes that are no event.
    Unreadable {
        /// Where they start in the file, in bytes.
        offset: u64,
        /// How many they are.
        length: u64,
    },
}

/// Hands out what a piece of the log shows of refusals.
pub fn look_at<'a>(piece: lines::Piece<'a>, mut seen: impl FnMut(Seen<'a>)) {
    match piece {
        lines::Piece::Skipped { offset, length } => seen(Seen::Unreadable { offset, length }),
        lines::Piece::Line { bytes, .. } if is_plainly_no_refusal(bytes) => {}
        lines::Piece::Line { offset, bytes } => read_line(bytes, |piece| match piece {
            Piece::Event(event) if event.response.code >= 400 => seen(Seen::Refused(event)),
            Piece::Event(_) => {}
            Piece::Unreadable { at, length } => {
                seen(Seen::Unreadable { offset: offset + at as u64, length: length as u64 });
            }
        }),
    }
}

/// What the log showed.
#[derive(Debug)]
pub enum Observation {
    /// A refused request, or a further stage of one.
    Refused(Box<Event<'static>>),
    /// Bytes that are no event, in one run.
    Unreadable {
        /// Name of the file.
        file: String,
        /// Where they start in it, in bytes.
        offset: u64,
        /// How many they are.
        length: u64,
    },
    /// Something happened to the log.
    Notice(Notice),
    /// The log is not there or cannot be read, and why.
    Unavailable(String),
    /// The log can be read.
    Available,
}

/// Observations, and where the log is to be read on once they are reported.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the log.
    pub observations: Vec<Observation>,
    /// Everything before it is in this batch or in an earlier one.
    pub position: Position,
    /// How many bytes of the present file were not read yet.
    pub lag: u64,
}

/// What the source sends.
#[derive(Debug)]
pub enum Message {
    /// What it saw.
    Batch(Batch),
    /// It failed, and why; it sends nothing more.
    Failed(String),
}

/// How long a log may be absent before that is said: while it is rotated it is absent for less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);
/// After an error that stays.
const RETRY: Duration = Duration::from_secs(30);
/// How long progress that shows nothing may stay unsaid.
const UNSAID: Duration = Duration::from_secs(1);
/// How much progress, in steps of 256 KiB, may stay unsaid while there is more to read.
const UNSAID_STEPS: u32 = 16;

/// Starts to follow the log from a position, or from `start` if there is none, until the stop says so.
///
/// # Errors
/// Those of pthread_create(3).
pub fn spawn(
    files: LogFiles,
    position: Option<Position>,
    start: Start,
    stop: Stop,
    sender: mpsc::Sender<Message>,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("audit-log".into()).spawn(move || {
        let follower = Follower::new(files.clone(), position, start);
        let source = Source { files, follower, sender: sender.clone(), observations: Vec::new(), available: None };
        let failure = match catch_unwind(AssertUnwindSafe(|| source.run(stop))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        let _ = sender.blocking_send(Message::Failed(failure));
    })
}

struct Source {
    files: LogFiles,
    follower: Follower,
    sender: mpsc::Sender<Message>,
    observations: Vec<Observation>,
    /// What was said last about the log's being there.
    available: Option<bool>,
}

impl Source {
    fn run(mut self, stop: Stop) -> std::io::Result<()> {
        let mut wake = Wake::new(stop)?;
        let mut unsaid = 0;
        loop {
            let observations = &mut self.observations;
            let step = self.follower.step(&mut |observed| collect(observed, observations));
            if matches!(step, Ok(Step::Read)) {
                unsaid += 1;
                if self.observations.is_empty() && unsaid < UNSAID_STEPS {
                    continue;
                }
                if !self.send() {
                    return Ok(());
                }
                unsaid = 0;
                continue;
            }
            // A directory that cannot be watched can perhaps be read: then it is looked at from time to time.
            let step = match wake.watch(self.files.directory(), self.follower.open_files()) {
                Ok(true) => continue,
                Ok(false) => step,
                Err(error) => step.and(Err(error)),
            };
            let timeout = match &step {
                Ok(Step::CaughtUp) if self.available == Some(true) => (unsaid > 0).then_some(UNSAID),
                Ok(Step::CaughtUp) => Some(Duration::ZERO),
                Ok(_) => (self.available != Some(false)).then_some(PATIENCE),
                // Whatever ends the error, nothing may tell.
                Err(_) if self.available == Some(false) => Some(RETRY),
                Err(_) => Some(PATIENCE),
            };
            match wake.wait(timeout)? {
                Woken::Stopped => return Ok(()),
                Woken::Changed => {}
                Woken::TimedOut => {
                    self.say_availability(&step);
                    unsaid = 0;
                    if !self.send() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn say_availability(&mut self, step: &std::io::Result<Step>) {
        let why = match step {
            Ok(Step::Absent) => Some(format!("{} is not there", self.files.live().display())),
            Ok(_) => None,
            Err(error) => Some(format!("cannot read {}: {error}", self.files.live().display())),
        };
        if self.available != Some(why.is_none()) {
            self.available = Some(why.is_none());
            self.observations.push(why.map_or(Observation::Available, Observation::Unavailable));
        }
    }

    /// Sends what was collected; waits while the queue is full. False if nobody wants it any more.
    fn send(&mut self) -> bool {
        let batch = Batch {
            observations: std::mem::take(&mut self.observations),
            position: self.follower.position().clone(),
            lag: self.follower.lag(),
        };
        self.sender.blocking_send(Message::Batch(batch)).is_ok()
    }
}

/// Keeps what an observed piece or notice shows of refusals.
pub fn collect(observed: Observed<'_>, observations: &mut Vec<Observation>) {
    match observed {
        Observed::Notice(notice) => observations.push(Observation::Notice(notice)),
        Observed::Piece(file, piece) => look_at(piece, |seen| match seen {
            Seen::Refused(event) => observations.push(Observation::Refused(Box::new(event.into_owned()))),
            Seen::Unreadable { offset, length } => {
                // A damaged region is one observation, however many lines it seems to have.
                if let Some(Observation::Unreadable { file: same, offset: start, length: before }) =
                    observations.last_mut()
                    && same == file
                    && offset <= *start + *before + 1
                    && offset >= *start
                {
                    *before = offset + length - *start;
                } else {
                    observations.push(Observation::Unreadable { file: file.to_owned(), offset, length });
                }
            }
        }),
    }
}
