//! When containers start and stop: by the files that conmon leaves where the runtime keeps what is lost when the node is
//! switched off (<https://github.com/containers/conmon>).
//!
//! `pidfile` is written when a container was started, by nothing else. `exits/ID` comes by rename when it ended, and is gone a
//! few milliseconds later: whoever cleans up reads it, too. If it was missed, CRI-O has the exit code in the store, and podman
//! writes it to the journal. If it never comes, nobody told conmon's end: then the kernel says by the container's control group
//! that nothing runs in it any more, as it says what it killed for want of memory.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::files::{Files, LifePlaces, Runtime};
use super::groups::Groups;
use super::journal::Journal;
use super::records::is_id;
use super::runs::Runs;
use super::store::{Holding, open_lives};
use crate::handover::Handover;
use crate::watch::tree::{Change, Entry, Event, Moment, News, Past, Scope, Trees, why};

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It was started.
    Started,
    /// It stopped.
    Stopped {
        /// Its exit code; 128 and the signal's number if a signal ended it, which a program can say, too. `None`: nobody says
        /// it, or not for long enough.
        code: Option<i32>,
        /// The kernel killed it, or a part of it, because it had used up its memory.
        out_of_memory: bool,
    },
    /// It starts and stops so often that only the first times of each minute are told.
    Often,
}

/// How often each container started or stopped lately.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<String, (Instant, u32)>);

/// So many starts and stops of a container are told within a minute.
const MAX_TOLD: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);

impl Counts {
    /// What is to be told of that; `None`: nothing more in this minute.
    pub(super) fn note(&mut self, container: &str, life: Life, now: Instant) -> Option<Life> {
        self.0.retain(|_, (since, _)| *since + MINUTE > now);
        let (_, count) = self.0.entry(container.to_owned()).or_insert((now, 0));
        *count = count.saturating_add(1);
        match *count {
            count if count <= MAX_TOLD => Some(life),
            count if count == MAX_TOLD + 1 => Some(Life::Often),
            _ => None,
        }
    }
}

/// What happened to which container, and when.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) time: SystemTime,
    pub(super) container: String,
    pub(super) life: Life,
    /// How one that was started runs: that may be there for a moment only.
    pub(super) runtime: Option<Runtime>,
    /// Only its control group says so: of what is no container of the store it says nothing.
    pub(super) is_of_group: bool,
}

/// More bytes is no number of a process and no exit code.
pub(super) const MAX_NUMBER: usize = 16;
/// What tells of starts and stops is looked for no more often.
const PAUSE: Duration = Duration::from_millis(100);
/// What cannot be watched is tried again after this.
const RETRY: Duration = Duration::from_secs(30);
/// A container has two; whoever makes more has none of them watched: the watches are needed for files.
const MAX_DIRECTORIES: usize = 8192;

/// Watches the lives of a store's containers.
pub(super) struct Lives {
    files: Arc<Files>,
    places: LifePlaces,
    /// Where conmon notes them, if that is there.
    trees: Option<(Trees, Holding)>,
    /// What systemd keeps.
    handover: Handover,
    /// Events were lost, or not understood.
    is_doubted: bool,
    /// The control groups, if the node has those that tell something.
    groups: Option<Groups>,
    /// What podman notes, if podman keeps the store.
    journal: Option<Journal>,
    runs: Runs,
    /// What happened since then is told when it is watched again.
    since: Moment,
    /// When the last of what was noted was.
    noted: Moment,
    /// What CRI-O keeps was looked at once.
    is_sought: bool,
    /// When what is not there is looked for again.
    due: Instant,
    /// What of it is not watched, and why; and what of it the walk that is under way could not watch.
    lacks: Option<String>,
    short: Option<String>,
    /// When that is tried again.
    retry: Instant,
    /// Why the control groups are not watched, and when that is tried again.
    lacks_groups: Option<String>,
    retry_groups: Instant,
}

/// What conmon noted.
#[derive(Clone, Copy)]
enum Noted {
    Started {
        /// The file was gone before it could be looked at.
        is_missed: bool,
    },
    Stopped {
        code: Option<i32>,
        /// Likewise.
        is_missed: bool,
    },
}

impl Lives {
    /// Watches nothing yet; what was noted after that moment is told, too.
    pub(super) fn new(files: &Arc<Files>, noted: Moment, handover: &Handover) -> Lives {
        let Files { observer, place } = &**files;
        let has_journal = !observer.tree().is_elsewhere() && place.crio.is_none();
        Lives {
            files: Arc::clone(files),
            places: files.life_places(),
            trees: None,
            handover: handover.clone(),
            is_doubted: false,
            groups: None,
            journal: has_journal.then(|| Journal::new(place.account.uid)),
            runs: Runs::default(),
            since: noted.next(),
            noted,
            is_sought: false,
            due: Instant::now(),
            lacks: None,
            short: None,
            retry: Instant::now(),
            lacks_groups: None,
            retry_groups: Instant::now(),
        }
    }

    /// Looks for what is to be watched, if it is not. It comes when its user logs in; until then no container runs. Adds what
    /// happened to these containers meanwhile.
    pub(super) async fn open(&mut self, containers: impl Iterator<Item = &String>, lived: &mut Vec<Happened>) {
        if self.trees.is_some() || self.due > Instant::now() {
            self.open_groups();
            return;
        }
        self.due = Instant::now() + PAUSE;
        self.trees = self.open_trees().unwrap_or_else(|error| self.fail(&error));
        self.open_groups();
        if self.trees.is_some() || !self.is_sought {
            self.is_sought = true;
            self.seek(containers.cloned().collect(), lived).await;
        }
    }

    /// Watches where conmon notes what happens. `None`: there is nothing yet.
    fn open_trees(&mut self) -> io::Result<Option<(Trees, Holding)>> {
        let Some(base) = self.files.run_base()? else { return Ok(None) };
        let wanted = self.places.containers.iter().chain(&self.places.exits).map(PathBuf::as_path);
        let scope = Scope::new([Path::new("/")], wanted);
        let (mut trees, holding, runs) = open_lives(base, &self.files.place.path, (&self.handover, self.since))?;
        if let Ok(runs) = serde_json::from_str(&runs) {
            self.runs.go_on(runs);
        }
        trees.add(0, Path::new(""), Arc::new(scope));
        trees.walk(0, News::Since(self.since), 1)?;
        Ok(Some((trees, holding)))
    }

    fn open_groups(&mut self) {
        let now = Instant::now();
        if self.trees.is_some() && self.groups.is_none() && self.retry_groups <= now {
            self.retry_groups = now + RETRY;
            match Groups::open(&self.files) {
                Ok(groups) => (self.groups, self.lacks_groups) = (groups, None),
                Err(error) => self.fail_groups(&error),
            }
        }
    }

    fn fail_groups(&mut self, error: &io::Error) {
        (self.groups, self.lacks_groups) = (None, Some(why(error)));
        self.retry_groups = Instant::now() + RETRY;
    }

    /// Adds which of these ended while nobody watched, if CRI-O keeps them.
    async fn seek(&mut self, containers: Vec<String>, lived: &mut Vec<Happened>) {
        if self.files.place.crio.is_none() {
            return;
        }
        let (files, since) = (Arc::clone(&self.files), self.since);
        let seek = move || {
            let ended = containers.into_iter().filter_map(|container| {
                let (code, at) = files.lasting_exit(&container).filter(|(_, at)| *at >= since)?;
                let out_of_memory = files.is_out_of_memory(&container);
                Some((container, at, Life::Stopped { code: Some(code), out_of_memory }))
            });
            ended.collect::<Vec<_>>()
        };
        for (container, at, life) in spawn_blocking(seek).await.unwrap_or_default() {
            self.noted = self.noted.max(at);
            if self.runs.end_otherwise(&container, at) {
                lived.push(Happened { time: at.time(), container, life, runtime: None, is_of_group: false });
            }
        }
    }

    /// When the last of what was noted was.
    pub(super) fn noted(&self) -> Moment {
        self.noted
    }

    /// Whether all that was noted was added.
    pub(super) fn is_settled(&self) -> bool {
        self.is_answered() && self.runs.due().is_none()
    }

    /// The same, but for what nobody may say any more.
    pub(super) fn is_answered(&self) -> bool {
        let is_walking = self.trees.as_ref().is_some_and(|(trees, _)| trees.is_walking() || trees.is_behind());
        !is_walking && self.journal.as_ref().is_none_or(Journal::is_settled)
    }

    /// Adds that those stopped of which the journal did not say how.
    pub(super) fn finish(&mut self, lived: &mut Vec<Happened>) {
        lived.extend(self.journal.iter_mut().flat_map(Journal::give_up));
    }

    /// What is known, for whoever goes on; nothing was read after that moment.
    pub(super) fn leave(&mut self, now: Moment) -> Option<(Past, &Holding)> {
        let is_all = self.is_answered() && !self.is_doubted;
        let (trees, holding) = self.trees.as_mut()?;
        let runs = serde_json::to_string(&self.runs).unwrap_or_default();
        Some((trees.leave(runs, is_all.then_some(now)), holding))
    }

    /// Watches no longer what is not there any more: whoever logs out and in again has another file system there. Forgets what
    /// was of other containers.
    pub(super) fn look_again(&mut self, is_known: impl Fn(&str) -> bool) {
        let is_there = |trees: &Trees| matches!(self.files.run_base(), Ok(Some(base)) if trees.is_below(&base));
        let (now, is_short) = (Instant::now(), self.lacks.is_some());
        if self.trees.as_ref().is_some_and(|(trees, _)| !is_there(trees) || is_short && self.retry <= now) {
            self.close();
            self.retry = now + RETRY;
        }
        self.runs.forget_others(&is_known);
        self.groups.iter_mut().for_each(|groups| groups.forget_others(&is_known));
    }

    fn close(&mut self) {
        let Some((trees, holding)) = self.trees.take() else { return };
        if self.lacks.is_none() && !trees.is_walking() {
            self.since = trees.drained();
        }
        holding.give_up();
    }

    /// What of it is not watched, and why.
    pub(super) fn lacks(&self) -> Option<&str> {
        self.lacks.as_deref().or(self.lacks_groups.as_deref())
    }

    /// Something cannot be watched; it is tried again later.
    fn fail<T>(&mut self, error: &io::Error) -> Option<T> {
        self.lacks = Some(why(error));
        self.due = Instant::now() + RETRY;
        None
    }

    /// Waits for something to happen, and adds it. Nothing gets lost if it is not waited for.
    pub(super) async fn tell(&mut self, lived: &mut Vec<Happened>) {
        let (mut noted, mut emptied) = (Vec::new(), Vec::new());
        let due = self.runs.due();
        let Lives { places, trees, is_doubted, groups, journal, lacks, short, .. } = self;
        tokio::select! {
            biased;
            // An exit code is there for milliseconds only.
            told = read(trees, places, (is_doubted, lacks, short), &mut noted) => if let Err(error) = told {
                self.close();
                if error.kind() != io::ErrorKind::NotFound {
                    self.fail::<()>(&error);
                }
            },
            told = read_groups(groups, &mut emptied) => if let Err(error) = told {
                self.fail_groups(&error);
            },
            answered = answer(journal) => lived.push(answered),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        // What the kernel says of an end it said before conmon did.
        if let Some(groups) = self.groups.as_mut().filter(|_| !noted.is_empty())
            && let Err(error) = groups.catch_up(&mut emptied)
        {
            self.fail_groups(&error);
        }
        for (container, at, noted) in noted {
            self.noted = self.noted.max(at);
            self.note(container, at, noted, lived);
        }
        let (now, time) = (Instant::now(), SystemTime::now());
        for container in emptied {
            let has_run = self.groups.as_ref().is_some_and(|groups| groups.has_run(&container));
            self.runs.note_empty(&container, has_run, (now, time));
        }
        for (container, time) in self.runs.take_due(now) {
            // It may have been started again, or what was its group is not watched any more.
            if self.groups.as_ref().is_some_and(|groups| !groups.is_populated(&container)) {
                self.end_by_group(container, time, lived);
            }
        }
    }

    /// Takes in what conmon noted.
    fn note(&mut self, container: String, at: Moment, noted: Noted, lived: &mut Vec<Happened>) {
        match noted {
            Noted::Started { is_missed } => {
                if let Some(time) = self.runs.empty_since(&container) {
                    self.end_by_group(container.clone(), time, lived);
                }
                if self.runs.start(&container, at, is_missed) {
                    self.groups.iter_mut().for_each(|groups| groups.begin(&container));
                    let runtime = Some(self.files.runtime(&container));
                    let (time, life) = (at.time(), Life::Started);
                    lived.push(Happened { time, container, life, runtime, is_of_group: false });
                }
            }
            Noted::Stopped { code, is_missed } => {
                if self.runs.end_by_file(&container, at) {
                    self.end(container, at.time(), (code, is_missed), false, lived);
                }
            }
        }
    }

    fn end_by_group(&mut self, container: String, time: SystemTime, lived: &mut Vec<Happened>) {
        if self.runs.end_otherwise(&container, Moment::at(time)) {
            self.end(container, time, (None, true), true, lived);
        }
    }

    /// A container ended, which was not told yet.
    fn end(
        &mut self,
        container: String,
        time: SystemTime,
        (code, is_missed): (Option<i32>, bool),
        is_of_group: bool,
        lived: &mut Vec<Happened>,
    ) {
        let is_killed = self.groups.as_mut().is_some_and(|groups| groups.take_killed(&container));
        let out_of_memory = is_killed || self.files.is_out_of_memory(&container);
        let lasting = || self.files.lasting_exit(&container).map(|(code, _)| code);
        let code = code.or_else(lasting);
        let since = self.runs.started(&container).unwrap_or(Moment::MIN);
        let life = Life::Stopped { code, out_of_memory };
        let happened = Happened { time, container, life, runtime: None, is_of_group };
        match self.journal.as_mut().filter(|_| code.is_none() && is_missed) {
            Some(journal) => lived.extend(journal.ask(happened, since)),
            None => lived.push(happened),
        }
    }
}

/// Waits until conmon notes something.
///
/// # Errors
/// Those of read(2); `NotFound`: the directory is gone; there are too many in it.
async fn read(
    trees: &mut Option<(Trees, Holding)>,
    places: &LifePlaces,
    (is_doubted, lacks, short): (&mut bool, &mut Option<String>, &mut Option<String>),
    seen: &mut Vec<(String, Moment, Noted)>,
) -> io::Result<()> {
    let Some((trees, holding)) = trees else { return std::future::pending().await };
    if *is_doubted && !trees.is_walking() {
        *is_doubted = false;
        trees.walk(0, News::Since(trees.drained()), 1)?;
    }
    let mut is_gone = false;
    let mut tell = |event: Event<'_>| match event {
        Event::Changed(mut entry) => seen.extend(noted(&mut entry, places)),
        Event::Gone(_) => is_gone = true,
        Event::Lost | Event::Doubted(_) => *is_doubted = true,
        // What of it is still there was found.
        Event::Untold(_) => {}
        Event::Uncovered(_, uncovered) => {
            *lacks = Some(uncovered.why.clone());
            *short = Some(uncovered.why);
        }
        Event::Walked(..) => *lacks = short.take(),
    };
    trees.tell(&mut tell).await?;
    holding.forget_past(trees);
    match trees.count() {
        _ if is_gone => Err(io::ErrorKind::NotFound.into()),
        count if count > MAX_DIRECTORIES => Err(io::Error::other("there are too many directories")),
        _ => Ok(()),
    }
}

async fn read_groups(groups: &mut Option<Groups>, emptied: &mut Vec<String>) -> io::Result<()> {
    match groups {
        Some(groups) => groups.tell(emptied).await,
        None => std::future::pending().await,
    }
}

async fn answer(journal: &mut Option<Journal>) -> Happened {
    match journal {
        Some(journal) => journal.answer().await,
        None => std::future::pending().await,
    }
}

/// What an entry says, of which container, and when it came to be.
fn noted(entry: &mut Entry<'_>, places: &LifePlaces) -> Option<(String, Moment, Noted)> {
    let is_of_file =
        matches!(entry.change, Change::Created | Change::Written | Change::MovedTo(_) | Change::Found { .. });
    if entry.is_directory || !is_of_file {
        return None;
    }
    let (directory, name) = (std::str::from_utf8(entry.directory).ok()?, std::str::from_utf8(entry.name).ok()?);
    let is_exit = places.exits.iter().any(|exits| exits == Path::new(directory));
    if is_exit && is_id(name) {
        let container = name.to_owned();
        // First of all: it will not be there for long.
        let text = entry.read(MAX_NUMBER);
        let (code, is_missed) = (text.as_deref().and_then(exit_code), text.is_none());
        // Who does not rename one to its place has just begun with it.
        if code.is_none() && !is_missed && entry.change == Change::Created {
            return None;
        }
        let at = entry.stat().map_or_else(now, |stat| stat.changed);
        return Some((container, at, Noted::Stopped { code, is_missed }));
    }
    let below = |place: &PathBuf| Path::new(directory).strip_prefix(place).ok()?.to_str();
    let place = places.containers.iter().find_map(below)?;
    let container = place.strip_suffix("/userdata").filter(|id| is_id(id) && name == "pidfile")?.to_owned();
    match entry.stat() {
        Some(stat) => (stat.size > 0).then_some((container, stat.changed, Noted::Started { is_missed: false })),
        // It was written, and the container was removed since then.
        None if entry.change == Change::Written => Some((container, now(), Noted::Started { is_missed: true })),
        None => None,
    }
}

fn now() -> Moment {
    Moment::at(SystemTime::now())
}

/// The exit code that conmon writes.
pub(super) fn exit_code(text: &[u8]) -> Option<i32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_starts_and_stops_all_the_time_is_told_as_that() {
        let (mut counts, now) = (Counts::default(), Instant::now());
        let mut told = |container: &str, times: usize, now: Instant| {
            (0..times).filter_map(|_| counts.note(container, Life::Started, now)).collect::<Vec<_>>()
        };
        let often = told("one", 1000, now);
        assert_eq!((often.len(), often.last()), (21, Some(&Life::Often)));
        assert_eq!(told("other", 1, now), [Life::Started], "others are told");
        assert_eq!(told("one", 1, now + MINUTE), [Life::Started], "and it is a minute later");
    }

    #[test]
    fn an_exit_code_is_a_number_and_nothing_else() {
        for (text, code) in [(&b"0"[..], Some(0)), (b"137\n", Some(137)), (b"-1", Some(-1))] {
            assert_eq!(exit_code(text), code);
        }
        for text in [&b""[..], b"x", b"1 2", b"\xff", b"99999999999"] {
            assert_eq!(exit_code(text), None);
        }
    }
}
