//! Follows the audit log, and sends what it shows of refused requests.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::mem::discriminant;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until};

use super::event::{Event, Piece, is_plainly_no_refusal, read_line};
use crate::handover::{Handover, Kept};
use crate::watch::follow::{FileId, Follower, LogFiles, Notice, Observed, Position, Step};
use crate::watch::lines;
use crate::watch::wake::{Wake, Woken};

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
    /// Whether the log can be read: that changed.
    Log(Availability),
}

/// Whether the log can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It can.
    Available,
    /// It is not there: a sentence that says where.
    Absent(String),
    /// It cannot: a sentence that says why.
    Unreadable(String),
}

/// Observations, and where the log is to be read on once they are reported.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the log.
    pub observations: Vec<Observation>,
    /// Everything before it is in this batch or in an earlier one.
    pub position: Position,
    /// How many bytes were not read yet, of the present file and of those behind it.
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
/// What systemd keeps of the log.
const LOG: &str = "audit-log";
/// After an error that stays.
const RETRY: Duration = Duration::from_secs(30);
/// How long progress that shows nothing may stay unsaid.
const UNSAID: Duration = Duration::from_secs(1);
/// How much progress, in steps of 256 KiB, may stay unsaid while there is more to read.
const UNSAID_STEPS: u32 = 16;

/// Starts to follow the log from a position, until nobody wants to know any more.
///
/// Single events are read on the runtime's own thread, from memory: from the write to the finding only one thread has to
/// be woken. Whatever may wait for a disk is done on another.
pub fn spawn(files: LogFiles, position: Position, handover: Handover, sender: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        let failure = match follow(files, position, handover, sender.clone()).await {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        // Nobody may want to know.
        let _ = sender.send(Message::Failed(failure)).await;
    });
}

async fn follow(
    files: LogFiles,
    position: Position,
    handover: Handover,
    sender: mpsc::Sender<Message>,
) -> std::io::Result<()> {
    let said = distance(&position);
    let (mut inherited, mut kept) = (Vec::new(), BTreeMap::new());
    for (descriptor, its) in handover.take(LOG) {
        let file = File::from(descriptor);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => {
                kept.insert((metadata.dev(), metadata.ino()), its);
                inherited.push(file);
            }
            _ => its.give_up(),
        }
    }
    let mut source = Source {
        follower: Follower::new(files.clone(), position).inherit(inherited),
        handover,
        kept,
        wake: Wake::new()?,
        files,
        sender,
        observations: Vec::new(),
        said,
        unsaid_since: None,
        availability: None,
        otherwise_since: None,
    };
    loop {
        let (back, step) = spawn_blocking(move || {
            let step = source.catch_up();
            (source, step)
        })
        .await?;
        source = back;
        let Some(step) = step else { return Ok(()) };
        match source.rest(&step).await? {
            Rest::Ended => return Ok(()),
            Rest::Disturbed => {}
            Rest::Over => {
                source.say_availability(&step);
                let batch = source.batch(source.follower.lag());
                if source.sender.send(Message::Batch(batch)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

struct Source {
    files: LogFiles,
    follower: Follower,
    handover: Handover,
    /// The open files, as systemd keeps them for the next podsecd.
    kept: BTreeMap<FileId, Kept>,
    wake: Wake,
    sender: mpsc::Sender<Message>,
    observations: Vec<Observation>,
    /// How far the position was that was sent last.
    said: Distance,
    /// Since when it is further.
    unsaid_since: Option<Instant>,
    /// What was said last of whether the log can be read.
    availability: Option<Availability>,
    /// Since when it is otherwise, and not said: whoever disturbs the directory without end does not put that off.
    otherwise_since: Option<Instant>,
}

/// Backups read, offset in the present file, and offsets in former ones: grows with whatever is read.
type Distance = (usize, u64, u64);

fn id(file: &File) -> Option<FileId> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn distance(position: &Position) -> Distance {
    let file = position.file.as_ref().map_or(0, |file| file.offset);
    (position.read.len(), file, position.former.iter().map(|former| former.offset).sum())
}

/// Why a rest ended.
enum Rest {
    /// More than a write happened.
    Disturbed,
    /// The time is over.
    Over,
    /// Nobody wants to know any more.
    Ended,
}

impl Source {
    /// Reads all that is there, and sees that what comes next wakes. `None` if nobody wants it any more.
    fn catch_up(&mut self) -> Option<std::io::Result<Step>> {
        let mut steps = 0;
        loop {
            let observations = &mut self.observations;
            let step = self.follower.step(&mut |observed| collect(observed, observations));
            self.keep_open();
            steps = (steps + 1) % UNSAID_STEPS;
            let due = self.unsaid_due().is_some_and(|due| steps == 0 || due <= Instant::now());
            if due || !self.observations.is_empty() {
                let batch = self.batch(self.follower.lag() + self.follower.lag_behind());
                self.sender.blocking_send(Message::Batch(batch)).ok()?;
            }
            if matches!(step, Ok(Step::Read)) {
                continue;
            }
            // A directory that cannot be watched can perhaps be read: then it is looked at from time to time.
            match self.wake.watch(self.files.directory(), self.follower.open_files()) {
                Ok(true) => {}
                Ok(false) => return Some(step),
                Err(error) => return Some(step.and(Err(error))),
            }
        }
    }

    /// Whatever becomes of the names of what is open: whoever is there next can read it to its end.
    fn keep_open(&mut self) {
        let open: BTreeMap<_, _> = self.follower.open_files().filter_map(|file| Some((id(file)?, file))).collect();
        let closed: Vec<_> = self.kept.keys().filter(|id| !open.contains_key(*id)).copied().collect();
        closed.iter().filter_map(|id| self.kept.remove(id)).for_each(Kept::give_up);
        for (id, file) in open {
            if let Entry::Vacant(vacant) = self.kept.entry(id)
                && let Ok(kept) = self.handover.keep(LOG, file.as_fd())
            {
                vacant.insert(kept);
            }
        }
    }

    /// Until when to wait, after this step, until something is to be said though nothing changes.
    fn due(&mut self, step: &std::io::Result<Step>) -> Option<Instant> {
        let otherwise_since = self.otherwise_since.take();
        match (step, &self.availability) {
            (Ok(Step::CaughtUp), Some(Availability::Available)) => self.unsaid_due(),
            (Ok(Step::CaughtUp), _) => Some(Instant::now()),
            (Ok(_), Some(Availability::Absent(_))) => None,
            // Whatever ends the error, nothing may tell.
            (Err(_), Some(Availability::Unreadable(_))) => Some(Instant::now() + RETRY),
            _ => Some(*self.otherwise_since.insert(otherwise_since.unwrap_or_else(Instant::now)) + PATIENCE),
        }
    }

    /// Waits for changes, and reads what is merely appended where the step before had caught up.
    async fn rest(&mut self, step: &std::io::Result<Step>) -> std::io::Result<Rest> {
        let caught_up = matches!(step, Ok(Step::CaughtUp)) && self.availability == Some(Availability::Available);
        let mut due = self.due(step);
        if due.is_some_and(|due| due <= Instant::now()) {
            return Ok(Rest::Over);
        }
        loop {
            let over = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let woken = tokio::select! {
                // What was written does not wait for the rest to be looked at; sending says soon enough that it ended.
                biased;
                woken = self.wake.changed() => woken?,
                () = self.sender.closed() => return Ok(Rest::Ended),
                () = over => return Ok(Rest::Over),
            };
            let observations = &mut self.observations;
            if woken == Woken::Changed
                || !caught_up
                || !self.follower.read_appended(&mut |observed| collect(observed, observations))
            {
                return Ok(Rest::Disturbed);
            }
            if !self.observations.is_empty() {
                let batch = self.batch(0);
                if self.sender.send(Message::Batch(batch)).await.is_err() {
                    return Ok(Rest::Ended);
                }
                // What was found goes its way first.
                yield_now().await;
            }
            // A page of which its writer holds the lock is not read from memory.
            if self.follower.lag() > 0 {
                return Ok(Rest::Disturbed);
            }
            due = self.unsaid_due();
            if due.is_some_and(|due| due <= Instant::now()) {
                return Ok(Rest::Over);
            }
        }
    }

    fn say_availability(&mut self, step: &std::io::Result<Step>) {
        let live = self.files.live().display();
        let availability = match step {
            Ok(Step::Absent) => Availability::Absent(format!("{live} is not there")),
            Ok(_) => Availability::Available,
            Err(error) => Availability::Unreadable(format!("cannot read {live}: {error}")),
        };
        if self.availability.as_ref().map(discriminant) != Some(discriminant(&availability)) {
            self.availability = Some(availability.clone());
            self.observations.push(Observation::Log(availability));
        }
    }

    /// When it is to be said how far was read, if that was not said.
    fn unsaid_due(&mut self) -> Option<Instant> {
        if distance(self.follower.position()) == self.said {
            return None;
        }
        Some(*self.unsaid_since.get_or_insert_with(Instant::now) + UNSAID)
    }

    /// What was collected.
    fn batch(&mut self, lag: u64) -> Batch {
        let position = self.follower.position().clone();
        self.said = distance(&position);
        self.unsaid_since = None;
        Batch { observations: std::mem::take(&mut self.observations), position, lag }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use tokio::time::timeout;

    use super::*;

    fn line(id: &str, code: u16) -> String {
        format!(
            concat!(
                r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"{}","stage":"ResponseComplete","verb":"get","#,
                r#""user":{{"username":"alice"}},"responseStatus":{{"metadata":{{}},"code":{}}}}}"#,
                "\n"
            ),
            id, code
        )
    }

    /// The auditIDs of what is refused, when there are so many, and nothing more comes.
    async fn refused(receiver: &mut mpsc::Receiver<Message>, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        let patience = |count: usize| Duration::from_millis(if count > 0 { 20_000 } else { 500 });
        while let Ok(Some(Message::Batch(batch))) =
            timeout(patience(count.saturating_sub(ids.len())), receiver.recv()).await
        {
            ids.extend(batch.observations.into_iter().filter_map(|observation| match observation {
                Observation::Refused(event) => Some(event.audit_id.into_owned()),
                _ => None,
            }));
        }
        ids
    }

    #[tokio::test]
    async fn what_comes_in_two_files_at_once_is_seen_in_both() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let mut former = File::create(&path).expect("made");
        former.write_all(line("first", 403).as_bytes()).expect("written");
        let (sender, mut receiver) = mpsc::channel(4);
        spawn(LogFiles::new(&path), Position::default(), Handover::default(), sender);
        assert_eq!(refused(&mut receiver, 1).await, ["first"]);
        fs::rename(&path, dir.path().join("audit-2026-11-22T03-05-05.001.log")).expect("renamed");
        let mut live = File::create(&path).expect("made");
        live.write_all(line("new", 403).as_bytes()).expect("written");
        assert_eq!(refused(&mut receiver, 1).await, ["new"]);
        former.write_all(line("behind", 403).as_bytes()).expect("written");
        live.write_all(line("beside", 403).as_bytes()).expect("written");
        let mut both = refused(&mut receiver, 2).await;
        both.sort();
        assert_eq!(both, ["behind", "beside"]);
    }

    #[tokio::test]
    async fn that_the_log_is_absent_is_said_though_the_directory_is_never_quiet() {
        let dir = tempfile::tempdir().expect("a directory");
        let (sender, mut receiver) = mpsc::channel(4);
        spawn(LogFiles::new(&dir.path().join("audit.log")), Position::default(), Handover::default(), sender);
        let disturb = async {
            loop {
                fs::write(dir.path().join("other"), "").expect("written");
                fs::remove_file(dir.path().join("other")).expect("removed");
                tokio::time::sleep(PATIENCE / 100).await;
            }
        };
        let said = async {
            let Some(Message::Batch(batch)) = receiver.recv().await else { panic!("it ended") };
            assert!(matches!(batch.observations[..], [Observation::Log(Availability::Absent(_))]), "{batch:?}");
        };
        tokio::select! {
            () = disturb => {}
            () = said => {}
            () = tokio::time::sleep(10 * PATIENCE) => panic!("it is never said"),
        }
    }

    #[tokio::test]
    async fn how_far_it_read_is_said_though_nothing_is_refused_and_the_directory_is_never_quiet() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let mut file = File::create(&path).expect("made");
        let (sender, mut receiver) = mpsc::channel(4);
        spawn(LogFiles::new(&path), Position::default(), Handover::default(), sender);
        assert!(matches!(receiver.recv().await, Some(Message::Batch(_))), "the log is there");
        let disturb = async {
            loop {
                file.write_all(line("a", 200).as_bytes()).expect("written");
                fs::write(dir.path().join("other"), "").expect("written");
                fs::remove_file(dir.path().join("other")).expect("removed");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = disturb => {}
            message = receiver.recv() => {
                assert!(matches!(message, Some(Message::Batch(batch)) if batch.position.file.is_some()));
            }
            () = tokio::time::sleep(10 * UNSAID) => panic!("it is never said"),
        }
    }
}
