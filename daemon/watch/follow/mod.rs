//! Follows a log that grows and is rotated: every line once and in order, over restarts, over rotations however many,
//! and over what others do to the files.
//!
//! Synchronous and without a clock: [`Follower::step`] does what can be done now. Whoever calls it waits for inotify
//! ([`crate::watch::wake`]) where it says that it has caught up.

mod current;
mod ends;
mod files;
mod open;
mod position;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use files::{FileId, LogFiles, Stamp};
pub use open::{Place, end, find};
pub use position::{FilePosition, Position, Print};

use self::current::Current;
use self::files::{Backup, Source};
use super::lines::Piece;

/// Where to begin when nothing was read before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// At the beginning of the oldest backup.
    #[default]
    Oldest,
    /// At the present end of the live file.
    End,
}

/// What [`Follower::step`] hands out.
#[derive(Debug, PartialEq, Eq)]
pub enum Observed<'a> {
    /// A line, or bytes that were passed over, of the file with that name.
    Piece(&'a str, Piece<'a>),
    /// Something that the log's writer does not do.
    Notice(Notice),
}

/// Something happened to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else than the writer's rotation changed the live file.
    Tampered {
        /// Its name.
        file: String,
        /// What was done.
        change: Change,
        /// How far it had been read, in bytes.
        offset: u64,
        /// How long the file of that name is now, in bytes.
        size: u64,
    },
    /// A file was gone before it was read to its end, or files after it may have been.
    Lost {
        /// Its name.
        file: String,
        /// How far it had been read, in bytes.
        offset: u64,
        /// The file with which reading goes on.
        next: String,
    },
    /// A file was cut, and had grown again when that was seen: what was written to it before this offset may be lost.
    Unseen {
        /// Its name.
        file: String,
        /// Where reading goes on, in bytes.
        offset: u64,
    },
    /// A compressed backup ends before its end.
    Torn {
        /// Its name.
        file: String,
        /// How far it could be read, in bytes after decompression.
        offset: u64,
    },
}

/// What was done to the live file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Cut short, or written over.
    Cut,
    /// Removed.
    Removed,
    /// Moved to where it is not known as a backup.
    Moved,
    /// Another file took its place.
    Replaced,
}

/// What a step achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was read or found out; there may be more.
    Read,
    /// All that is there was read.
    CaughtUp,
    /// There is no log.
    Absent,
}

/// How many former live files are kept open.
const MAX_FORMER: usize = 4;

/// Follows one log.
#[derive(Debug)]
pub struct Follower {
    files: LogFiles,
    position: Position,
    /// The places of the position are still to be found.
    resuming: bool,
    /// Files that another process had open, until they are: they may have no name any more.
    inherited: Vec<File>,
    current: Option<Current>,
    /// Former live files, the oldest first. Somebody may have replaced or renamed them while their writer has them open:
    /// what comes there is still read.
    former: Vec<Current>,
    /// The backups that were still to be read when that was looked at last.
    waiting: BTreeMap<Stamp, Backup>,
}

impl Follower {
    /// Follows the log from a position; the default is the beginning of the oldest backup.
    pub fn new(files: LogFiles, position: Position) -> Follower {
        let resuming = position.file.is_some() || !position.former.is_empty();
        let (inherited, former, waiting) = (Vec::new(), Vec::new(), BTreeMap::new());
        Follower { files, position, resuming, inherited, current: None, former, waiting }
    }

    /// The same, where another process had these files open.
    #[must_use]
    pub fn inherit(self, files: impl IntoIterator<Item = File>) -> Follower {
        let inherited = files.into_iter().filter(|_| self.resuming).collect();
        Follower { inherited, ..self }
    }

    /// Where to read on after a restart. Everything before it was handed out.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The files that may grow now; a watcher watches them.
    pub fn open_files(&self) -> impl Iterator<Item = &File> {
        self.current.iter().chain(&self.former).map(|current| current.source.file()).chain(&self.inherited)
    }

    /// How many bytes are still to be read of the file that is being read.
    pub fn lag(&self) -> u64 {
        let Some(current) = &self.current else { return 0 };
        let size = current.source.file().metadata().map_or(0, |metadata| metadata.len());
        size.saturating_sub(current.lines.read_offset())
    }

    /// How many bytes are in the backups, compressed or not, that are still to be read behind that file, and in the live
    /// file behind them.
    pub fn lag_behind(&self) -> u64 {
        if self.current.as_ref().is_some_and(|current| !current.finished) {
            return 0;
        }
        let present = self.current.as_ref().and_then(|current| current.stamp.as_ref());
        let waiting = self.waiting.iter().filter(|(stamp, _)| Some(*stamp) != present).map(|(_, backup)| &backup.name);
        let length = |path: PathBuf| path.symlink_metadata().map_or(0, |metadata| metadata.len());
        let backups: u64 = waiting.map(|name| length(self.files.directory().join(name))).sum();
        backups + length(self.files.live().to_path_buf())
    }

    /// Reads at most one block, or finds out what became of the files.
    ///
    /// # Errors
    /// What open(2), read(2) or readdir(3) say; the follower stays where it is and can be asked again.
    pub fn step(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        if self.current.is_none() && !self.open_next(sink)? {
            return Ok(Step::Absent);
        }
        let Some(current) = &mut self.current else { return Ok(Step::Read) };
        if !current.finished && !current.is_unchanged()? {
            self.restart_changed(sink)?;
            return Ok(Step::Read);
        }
        match current.read(sink) {
            Ok(0) if current.finished => self.finish(sink),
            Ok(0) => return self.look_around(sink),
            Ok(_) => {}
            Err(error) if matches!(current.source, Source::Gzip(_)) => {
                tracing::debug!(file = current.name, %error, "a compressed backup cannot be read to its end");
                let torn = Notice::Torn { file: current.name.clone(), offset: current.lines.read_offset() };
                sink(Observed::Notice(torn));
                self.finish(sink);
            }
            Err(error) => return Err(error),
        }
        self.note_position();
        Ok(Step::Read)
    }

    /// Reads what was appended to the live file, as far as that is in memory: never waits for a disk. For where nothing
    /// but a write is known to have happened since [`Step::CaughtUp`]. False if [`Follower::step`] has to look; it has to
    /// as well as long as there is a [lag](Follower::lag).
    pub fn read_appended(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> bool {
        let Some(current) = self.current.as_mut().filter(|current| !current.finished && !current.gone) else {
            return false;
        };
        // Whatever the error, it is met again there.
        let read = current.read_cached(sink).is_ok_and(|count| count > 0);
        self.note_position();
        read
    }

    /// Ends the present file and goes on to the next.
    fn finish(&mut self, sink: &mut dyn FnMut(Observed<'_>)) {
        if let Some(mut current) = self.current.take() {
            current.lines.finish(|piece| sink(Observed::Piece(&current.name, piece)));
            if let Some(stamp) = &current.stamp {
                Arc::make_mut(&mut self.position.read).insert(stamp.clone());
            }
            self.position.file = None;
            if current.was_live {
                // Its writer has closed it, if it was its writer who renamed it. If not, what it writes on shows here.
                self.keep_open(current, sink);
            }
        }
    }

    fn note_position(&mut self) {
        if let Some(position) = self.current.as_ref().and_then(Current::position) {
            self.position.file = position.map(Arc::new);
        }
        if self.former.iter().any(|former| former.gone) || !self.position.former.is_empty() {
            let gone = self.former.iter().filter(|former| former.gone);
            self.position.former = gone.filter_map(|former| former.position().flatten()).collect();
        }
    }

    /// At the end of the live file: is it still the live file?
    fn look_around(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        let Some(current) = &mut self.current else { return Ok(Step::Read) };
        let live = self.files.live_id();
        if live == Some(current.id) {
            return self.read_former(sink);
        }
        // In this order: what has no name any more, because it was compressed, is listed as compressed.
        let name = self.files.name_of(current.id)?;
        let backups = self.files.backups()?;
        if let Some((stamp, backup)) = backups.iter().find(|(_, backup)| Some(&backup.name) == name.as_ref()) {
            // Rotated. What was written to it after it was last read is read before it is left.
            current.name.clone_from(&backup.name);
            current.stamp = Some(stamp.clone());
            current.finished = true;
            return Ok(Step::Read);
        }
        let unlinked = current.is_unlinked()?;
        let unread = self.position.unread(&backups);
        if unlinked && let Some(stamp) = current.find_compressed(&self.files, &unread)? {
            current.stamp = Some(stamp);
            current.finished = true;
            return Ok(Step::Read);
        }
        let tampered = |change, size| {
            let (file, offset) = (current.name.clone(), current.lines.read_offset());
            Observed::Notice(Notice::Tampered { file, change, offset, size })
        };
        let change = if unlinked { Change::Removed } else { Change::Moved };
        if let Some((_, next)) = unread.first() {
            // The writer has gone on to other files.
            if unlinked && current.lines.read_offset() == 0 {
                self.current = None;
                return Ok(Step::Read);
            } else if unlinked {
                let (file, offset) = (current.name.clone(), current.lines.read_offset());
                sink(Observed::Notice(Notice::Lost { file, offset, next: next.name.clone() }));
            } else if !current.gone {
                sink(tampered(change, 0));
            }
            current.finished = true;
            return Ok(Step::Read);
        }
        if live.is_none() {
            // Its writer has it open and writes on, whatever its name.
            if !current.gone {
                sink(tampered(change, 0));
                current.gone = true;
            }
            return self.read_former(sink);
        }
        self.follow_replacement(sink)
    }

    /// Somebody put another file in the live file's place.
    fn follow_replacement(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        let mut source = self.files.open(&self.files.live_name(), false)?;
        let Some(former) = &self.current else { return Ok(Step::Read) };
        let size = source.file().metadata()?.len();
        let (start, known) = former.continuation_in(&mut source)?;
        let current = Current::open(source, self.files.live_name(), None, start)?;
        let Some(mut former) = self.current.replace(current) else { return Ok(Step::Read) };
        if !std::mem::replace(&mut former.gone, true) {
            let (file, offset) = (former.name.clone(), former.lines.read_offset());
            sink(Observed::Notice(Notice::Tampered { file, change: Change::Replaced, offset, size }));
        }
        if !known {
            sink(Observed::Notice(Notice::Unseen { file: self.files.live_name(), offset: start }));
        }
        self.keep_open(former, sink);
        self.note_position();
        Ok(Step::Read)
    }

    /// Keeps a former live file open: whoever writes it may still do so. Of too many, those go first that were left by
    /// their writer, as far as one knows.
    fn keep_open(&mut self, former: Current, sink: &mut dyn FnMut(Observed<'_>)) {
        if self.former.len() == MAX_FORMER {
            let left = self.former.iter().position(|former| !former.gone);
            let former = self.former.remove(left.unwrap_or(0));
            if former.gone {
                let (file, offset, next) = (former.name.clone(), former.lines.read_offset(), self.files.live_name());
                sink(Observed::Notice(Notice::Lost { file, offset, next }));
            }
        }
        self.former.push(former);
    }

    /// Reads what was written to former live files. In one that was rotated that shows that it was not its writer who
    /// renamed it.
    fn read_former(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        for former in &mut self.former {
            if !former.is_unchanged()? {
                say_cut(former, sink)?;
                // What is left of a line that was cut shows nobody's writing.
                former.read(sink)?;
                self.note_position();
                return Ok(Step::Read);
            }
            let offset = former.lines.read_offset();
            if former.read(sink)? > 0 {
                if !std::mem::replace(&mut former.gone, true) {
                    let (file, change, size) = (former.name.clone(), Change::Moved, 0);
                    sink(Observed::Notice(Notice::Tampered { file, change, offset, size }));
                }
                self.note_position();
                return Ok(Step::Read);
            }
        }
        // The disk space of a backup that was deleted is not to be held for ever.
        self.former.retain(|former| former.gone || former.is_unlinked().is_ok_and(|unlinked| !unlinked));
        Ok(Step::CaughtUp)
    }

    /// The live file was cut short or written over by somebody else.
    fn restart_changed(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        say_cut(current, sink)?;
        self.note_position();
        Ok(())
    }
}

/// Goes on in a file that was cut short or written over, and says so.
fn say_cut(current: &mut Current, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<()> {
    let (offset, size) = (current.lines.read_offset(), current.source.file().metadata()?.len());
    let known = current.restart()?;
    let file = current.name.clone();
    sink(Observed::Notice(Notice::Tampered { file: file.clone(), change: Change::Cut, offset, size }));
    if !known {
        sink(Observed::Notice(Notice::Unseen { file, offset: current.lines.read_offset() }));
    }
    Ok(())
}
