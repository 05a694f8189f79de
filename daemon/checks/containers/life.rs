//! When containers start and stop: by the files that conmon leaves where the runtime keeps what is lost when the node is
//! switched off (<https://github.com/containers/conmon>).
//!
//! `pidfile` is written when a container was started, by nothing else. `exits/ID` comes by rename when it ended, and is gone a
//! few milliseconds later: whoever cleans up reads it, too.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::files::{Files, LifePlaces, Runtime};
use super::records::is_id;
use crate::watch::tree::{Change, Entry, Event, Interest, Moment, News, Scope, Trees};

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It was started.
    Started,
    /// It stopped.
    Stopped {
        /// Its exit code; 128 and the signal's number if a signal ended it, which a program can say, too. `None`: it was gone
        /// before it could be read.
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
}

/// More bytes is no number of a process and no exit code.
const MAX_NUMBER: usize = 16;

/// Watches the lives of a store's containers.
pub(super) struct Lives {
    trees: Trees,
    files: Arc<Files>,
    places: LifePlaces,
    /// When those were started that were told, by their ids.
    started: HashMap<String, Moment>,
    is_gone: bool,
    /// Events were lost, or not understood.
    is_doubted: bool,
}

impl Lives {
    /// Watches; what happened since then is told, too. `None`: there is nothing yet.
    pub(super) fn open(files: &Arc<Files>, since: Moment) -> io::Result<Option<Lives>> {
        let Some(base) = files.run_base()? else { return Ok(None) };
        let places = files.life_places();
        let wanted = places.containers.iter().chain(&places.exits).map(PathBuf::as_path);
        let scope = Scope::new([Path::new("/")], wanted);
        let mut trees = Trees::new(base, Interest::NONE)?;
        trees.add(0, Path::new(""), Arc::new(scope));
        trees.walk(0, News::Since(since), 1)?;
        Ok(Some(Lives {
            trees,
            files: Arc::clone(files),
            places,
            started: HashMap::new(),
            is_gone: false,
            is_doubted: false,
        }))
    }

    /// Whether something else is mounted there by now.
    pub(super) fn is_elsewhere(&self) -> bool {
        !matches!(self.files.run_base(), Ok(Some(base)) if self.trees.is_below(&base))
    }

    /// Forgets when the others were started.
    pub(super) fn forget_others(&mut self, is_known: impl Fn(&str) -> bool) {
        self.started.retain(|container, _| is_known(container));
    }

    /// Waits for something to happen, and adds it.
    ///
    /// # Errors
    /// Those of read(2); the directory is gone.
    pub(super) async fn tell(&mut self, lived: &mut Vec<Happened>) -> io::Result<()> {
        if std::mem::take(&mut self.is_doubted) {
            self.trees.walk(0, News::Since(self.trees.drained()), 1)?;
        }
        let Lives { trees, files, places, started, is_gone, is_doubted } = self;
        let mut tell = |event: Event<'_>| match event {
            Event::Changed(mut entry) => lived.extend(life(&mut entry, files, places, started)),
            Event::Gone(_) => *is_gone = true,
            Event::Lost | Event::Doubted(_) => *is_doubted = true,
            Event::Uncovered(..) | Event::Walked(..) => {}
        };
        trees.tell(&mut tell).await?;
        if *is_gone { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }
}

/// What an entry says.
fn life(
    entry: &mut Entry<'_>,
    files: &Files,
    places: &LifePlaces,
    started: &mut HashMap<String, Moment>,
) -> Option<Happened> {
    if entry.is_directory || matches!(entry.change, Change::Removed | Change::MovedFrom | Change::Lacking) {
        return None;
    }
    let (directory, name) = (std::str::from_utf8(entry.directory).ok()?, std::str::from_utf8(entry.name).ok()?);
    let time = SystemTime::now();
    let is_exit = places.exits.iter().any(|exits| exits == Path::new(directory));
    if is_exit && is_id(name) && entry.change != Change::Created {
        let container = name.to_owned();
        // First of all: it will not be there for long.
        let code = entry.read(MAX_NUMBER).and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
        let out_of_memory = files.is_out_of_memory(&container);
        return Some(Happened { time, container, life: Life::Stopped { code, out_of_memory }, runtime: None });
    }
    let below = |place: &PathBuf| Path::new(directory).strip_prefix(place).ok()?.to_str();
    let place = places.containers.iter().find_map(below)?;
    let container = place.strip_suffix("/userdata").filter(|id| is_id(id))?.to_owned();
    if name != "pidfile" {
        return None;
    }
    let stat = entry.stat().filter(|stat| stat.size > 0)?;
    let is_news = started.insert(container.clone(), stat.changed) != Some(stat.changed);
    is_news.then(|| {
        let runtime = Some(files.runtime(&container));
        Happened { time, container, life: Life::Started, runtime }
    })
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
}
