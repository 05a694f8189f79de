//! Follows a log that grows and is rotated: every line once and in order, over restarts, over rotations however many,
//! and over what others do to the files.
//!
//! Synchronous and without a clock: [`Follower::step`] does what can be done now. Whoever calls it waits for inotify
//! ([`crate::watch::wake`]) where it says that it has caught up.

mod files;
mod position;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;

pub use files::{FileId, LogFiles, Stamp};
pub use position::{FilePosition, Position, Print};

use self::files::Source;
use self::position::{HEAD, recognise};
use super::lines::{Lines, Piece, TAIL};

/// Where to begin when there is no position.
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

/// The file being read.
#[derive(Debug)]
struct Current {
    source: Source,
    id: FileId,
    name: String,
    /// If it is a backup.
    stamp: Option<Stamp>,
    /// Nobody writes it any more: its end is final.
    finished: bool,
    lines: Lines,
    head: Vec<u8>,
    /// It was said already that it is not where it should be.
    gone: bool,
    /// It was opened as the live file.
    was_live: bool,
}

/// How many former live files are kept open.
const MAX_FORMER: usize = 4;

/// Follows one log.
#[derive(Debug)]
pub struct Follower {
    files: LogFiles,
    start: Start,
    position: Position,
    /// The place in `position.file` is still to be found.
    resuming: bool,
    current: Option<Current>,
    /// Former live files, the oldest first. Somebody may have replaced or renamed them while their writer has them open:
    /// what comes there is still read.
    former: Vec<Current>,
}

impl Follower {
    /// Follows the log from a position, or from `start` if there is none.
    pub fn new(files: LogFiles, position: Option<Position>, start: Start) -> Follower {
        let resuming = position.as_ref().is_some_and(|position| position.file.is_some());
        let start = if position.is_some() { Start::Oldest } else { start };
        Follower { files, start, position: position.unwrap_or_default(), resuming, current: None, former: Vec::new() }
    }

    /// Where to read on after a restart. Everything before it was handed out.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The files that may grow now; a watcher watches them.
    pub fn open_files(&self) -> impl Iterator<Item = &std::fs::File> {
        self.current.iter().chain(&self.former).map(|current| current.source.file())
    }

    /// How many bytes are still to be read of the file that is being read. Backups behind it do not count.
    pub fn lag(&self) -> u64 {
        let Some(current) = &self.current else { return 0 };
        let size = current.source.file().metadata().map_or(0, |metadata| metadata.len());
        size.saturating_sub(current.lines.read_offset())
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

    /// Ends the present file and goes on to the next.
    fn finish(&mut self, sink: &mut dyn FnMut(Observed<'_>)) {
        if let Some(mut current) = self.current.take() {
            current.lines.finish(|piece| sink(Observed::Piece(&current.name, piece)));
            // A clock that was set back gives a later backup an earlier stamp; what was read stays read.
            self.position.after = current.stamp.clone().max(self.position.after.take());
            self.position.file = None;
            if current.was_live {
                // Its writer has closed it, if it was its writer who renamed it. If not, what it writes on shows here.
                self.keep_open(current);
            }
        }
    }

    fn note_position(&mut self) {
        if let Some(current) = &self.current
            && let Some((offset, tail)) = current.lines.position()
        {
            let head = &current.head[..current.head.len().min(offset as usize)];
            // A file of which nothing was read is one like any other behind `after`; its identity would prove nothing.
            self.position.file = (offset > 0).then(|| FilePosition {
                name: current.name.clone(),
                device: current.id.0,
                inode: current.id.1,
                offset,
                head: Print::of(head),
                tail: Print::of(tail),
            });
        }
    }

    /// At the end of the live file: is it still the live file?
    fn look_around(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        let Some(current) = &mut self.current else { return Ok(Step::Read) };
        let live = self.files.live_id();
        if live == Some(current.id) {
            return self.read_former(sink);
        }
        let backups = self.files.backups()?;
        let name = self.files.name_of(current.id)?;
        if let Some((stamp, backup)) = backups.iter().find(|(_, backup)| Some(&backup.name) == name.as_ref()) {
            // Rotated. What was written to it after it was last read is read before it is left.
            current.name.clone_from(&backup.name);
            current.stamp = Some(stamp.clone());
            current.finished = true;
            return Ok(Step::Read);
        }
        let metadata = current.source.file().metadata()?;
        let unlinked = metadata.nlink() == 0;
        let newer = newer(&backups, self.position.after.as_ref());
        if unlinked && let Some(stamp) = current.find_compressed(&self.files, &newer)? {
            current.stamp = Some(stamp);
            current.finished = true;
            return Ok(Step::Read);
        }
        let tampered = |change, size| {
            let (file, offset) = (current.name.clone(), current.lines.read_offset());
            Observed::Notice(Notice::Tampered { file, change, offset, size })
        };
        let change = if unlinked { Change::Removed } else { Change::Moved };
        if let Some((_, next)) = newer.first() {
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
        let Some(mut former) = self.current.take() else { return Ok(Step::Read) };
        let size = source.file().metadata()?.len();
        let position = former.lines.position().map_or(former.lines.read_offset(), |(offset, _)| offset);
        if !former.gone {
            let file = former.name.clone();
            let (change, offset) = (Change::Replaced, former.lines.read_offset());
            sink(Observed::Notice(Notice::Tampered { file, change, offset, size }));
        }
        former.gone = true;
        let start = continuation(&mut source, &former.head, position)?;
        self.current = Some(Current::open(source, self.files.live_name(), None, start)?);
        self.note_position();
        self.keep_open(former);
        Ok(Step::Read)
    }

    /// Keeps a former live file open: whoever writes it may still do so.
    fn keep_open(&mut self, former: Current) {
        if self.former.len() == MAX_FORMER {
            self.former.remove(0);
        }
        self.former.push(former);
    }

    /// Reads what was written to former live files. In one that was rotated that shows that it was not its writer who
    /// renamed it.
    fn read_former(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<Step> {
        for former in &mut self.former {
            let offset = former.lines.read_offset();
            if former.read(sink)? > 0 {
                if !std::mem::replace(&mut former.gone, true) {
                    let (file, change, size) = (former.name.clone(), Change::Moved, 0);
                    sink(Observed::Notice(Notice::Tampered { file, change, offset, size }));
                }
                return Ok(Step::Read);
            }
        }
        // The disk space of a backup that was deleted is not to be held for ever.
        let is_there = |former: &Current| former.source.file().metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        self.former.retain(|former| former.gone || is_there(former));
        Ok(Step::CaughtUp)
    }

    /// The live file was cut short or written over by somebody else.
    fn restart_changed(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let size = current.source.file().metadata()?.len();
        let offset = current.lines.read_offset();
        let position = current.lines.position().map_or(offset, |(offset, _)| offset);
        let start = continuation(&mut current.source, &current.head, position)?;
        let file = current.name.clone();
        sink(Observed::Notice(Notice::Tampered { file, change: Change::Cut, offset, size }));
        self.current = Some(Current::open(current.source, current.name, current.stamp, start)?);
        self.note_position();
        Ok(())
    }

    /// Opens the file to read next. False if there is none yet.
    fn open_next(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<bool> {
        // The live file first, then the list: a rotation in between shows in the list.
        let live = match self.files.open(&self.files.live_name(), false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let backups = match self.files.backups() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if self.resuming {
            let Some(position) = self.position.file.clone() else { return Ok(false) };
            if let Some(found) = self.find(&position, &backups)? {
                self.current = Some(found);
                self.resuming = false;
                return Ok(true);
            }
            let newer = newer(&backups, self.position.after.as_ref());
            if live.is_none() && newer.is_empty() {
                return Ok(false);
            }
            self.resuming = false;
            return self.open_instead(&position, live, newer.into_iter().next(), sink);
        }
        if self.start == Start::End {
            self.start = Start::Oldest;
            self.position.after = backups.keys().next_back().cloned();
            return self.open_end(live);
        }
        let live_id = live.as_ref().map(Source::id).transpose()?;
        for (stamp, backup) in newer(&backups, self.position.after.as_ref()) {
            match self.files.open(&backup.name, backup.gzip) {
                // Removed, or compressed, since it was listed: what is there now shows at the next step.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                Err(error) => return Err(error),
                // It is what was opened as the live file, which comes last.
                Ok(source) if Some(source.id()?) == live_id => {}
                Ok(source) => {
                    self.current = Some(Current::open(source, backup.name, Some(stamp), 0)?);
                    return Ok(true);
                }
            }
        }
        let Some(live) = live else { return Ok(false) };
        self.current = Some(Current::open(live, self.files.live_name(), None, 0)?);
        self.note_position();
        Ok(true)
    }

    fn open_end(&mut self, live: Option<Source>) -> io::Result<bool> {
        let Some(live) = live else { return Ok(false) };
        let end = live.file().metadata()?.len();
        self.current = Some(Current::open(live, self.files.live_name(), None, end)?);
        self.note_position();
        Ok(true)
    }

    /// The file of the position is gone, or its content is: goes on with what is there, and says what happened.
    fn open_instead(
        &mut self,
        position: &FilePosition,
        live: Option<Source>,
        next: Option<(Stamp, files::Backup)>,
        sink: &mut dyn FnMut(Observed<'_>),
    ) -> io::Result<bool> {
        let (file, offset) = (position.name.clone(), position.offset);
        let (mut source, name, stamp) = match next {
            Some((stamp, backup)) => (self.files.open(&backup.name, backup.gzip)?, backup.name, Some(stamp)),
            None => match live {
                Some(live) => (live, self.files.live_name(), None),
                None => return Ok(false),
            },
        };
        // A compressed file is another file than the one that was read, whatever its number.
        let same_file = matches!(source, Source::Plain(_)) && source.id()? == position.id();
        if stamp.is_some() && !same_file {
            self.position.file = None;
            sink(Observed::Notice(Notice::Lost { file, offset, next: name }));
            return Ok(true);
        }
        let size = source.file().metadata()?.len();
        let change = if same_file { Change::Cut } else { Change::Replaced };
        let mut head = vec![0; position.head.length.min(HEAD)];
        let same_head = source.read_full(&mut head, 0)? == head.len() && Print::of(&head) == position.head;
        let start = if same_head { offset.min(size) } else { 0 };
        sink(Observed::Notice(Notice::Tampered { file, change, offset, size }));
        self.current = Some(Current::open(source, name, stamp, start)?);
        self.note_position();
        Ok(true)
    }

    /// Finds the file of a position again: by its identity under whatever name, else by its content.
    fn find(&self, position: &FilePosition, backups: &BTreeMap<Stamp, files::Backup>) -> io::Result<Option<Current>> {
        let live = self.files.live_name();
        let named = self.files.name_of(position.id())?;
        let plain = backups.iter().filter(|(_, backup)| !backup.gzip);
        let compressed = newer(backups, self.position.after.as_ref()).into_iter().filter(|(_, backup)| backup.gzip);
        let names = named.into_iter().chain([live.clone()]).chain(plain.map(|(_, backup)| backup.name.clone()));
        let candidates = names.map(|name| (name, false)).chain(compressed.map(|(_, backup)| (backup.name, true)));
        for (name, gzip) in candidates {
            let mut source = match self.files.open(&name, gzip) {
                Err(error) if is_no_log(&error) => continue,
                other => other?,
            };
            // A compressed file that is torn is not the one, or is lost anyway.
            let known = match recognise(&mut source, position) {
                Err(_) if gzip => None,
                other => other?,
            };
            let Some(known) = known else { continue };
            let stamp = backups.iter().find(|(_, backup)| backup.name == name).map(|(stamp, _)| stamp.clone());
            return Ok(Some(Current {
                id: source.id()?,
                finished: stamp.is_some(),
                gone: false,
                was_live: stamp.is_none(),
                lines: Lines::at(position.offset, known.tail),
                head: known.head,
                source,
                name,
                stamp,
            }));
        }
        Ok(None)
    }
}

/// Whether what was to be opened is not there, or is nothing that kube-apiserver writes (a link, a directory).
fn is_no_log(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}

/// The backups behind `after`, the oldest first.
fn newer(backups: &BTreeMap<Stamp, files::Backup>, after: Option<&Stamp>) -> Vec<(Stamp, files::Backup)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let range = backups.range::<Stamp, _>((from, Bound::Unbounded));
    range.map(|(stamp, backup)| (stamp.clone(), backup.clone())).collect()
}

/// Where to read on in a file that somebody cut or replaced: where it begins as before, behind what was read, or at
/// its end if it is shorter now; where it begins anew, at its start.
fn continuation(source: &mut Source, head: &[u8], position: u64) -> io::Result<u64> {
    let size = source.file().metadata()?.len();
    let mut now = vec![0; head.len()];
    let same = !head.is_empty() && source.read_full(&mut now, 0)? == head.len() && now == head;
    Ok(if same { position.min(size) } else { 0 })
}

impl Current {
    /// A file to be read from `offset`; a backup if it has a stamp.
    fn open(mut source: Source, name: String, stamp: Option<Stamp>, offset: u64) -> io::Result<Current> {
        let mut head = vec![0; if offset == 0 { 0 } else { HEAD.min(offset as usize) }];
        let mut tail = vec![0; TAIL.min(offset as usize)];
        if offset > 0 {
            let filled = source.read_full(&mut head, 0)?;
            head.truncate(filled);
            let start = offset - tail.len() as u64;
            let filled = source.read_full(&mut tail, start)?;
            tail.truncate(filled);
        }
        let id = source.id()?;
        let finished = stamp.is_some();
        let (lines, was_live) = (Lines::at(offset, tail), !finished);
        Ok(Current { source, id, name, stamp, finished, lines, head, gone: false, was_live })
    }

    /// Whether the bytes read last still stand where they were read. They do not after the file was cut and grew again.
    fn is_unchanged(&mut self) -> io::Result<bool> {
        let last = self.lines.last_bytes();
        if last.is_empty() {
            return Ok(true);
        }
        let mut now = [0; TAIL];
        let now = &mut now[..last.len()];
        let filled = self.source.read_full(now, self.lines.read_offset() - last.len() as u64)?;
        Ok(filled == last.len() && *now == *last)
    }

    /// Reads one block and hands out its pieces; answers how many bytes were read.
    fn read(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<usize> {
        let offset = self.lines.read_offset();
        let (source, head) = (&mut self.source, &mut self.head);
        let count = self.lines.fill(|block| {
            let count = source.read(block, offset)?;
            if head.len() < HEAD && head.len() as u64 == offset {
                head.extend_from_slice(&block[..count.min(HEAD - head.len())]);
            }
            Ok(count)
        })?;
        self.lines.drain(|piece| sink(Observed::Piece(&self.name, piece)));
        Ok(count)
    }

    /// The compressed backup, of these, that this file has become.
    fn find_compressed(&self, files: &LogFiles, among: &[(Stamp, files::Backup)]) -> io::Result<Option<Stamp>> {
        let Some((offset, tail)) = self.lines.position() else { return Ok(None) };
        let head = &self.head[..self.head.len().min(offset as usize)];
        let (device, inode) = self.id;
        let (name, head, tail) = (self.name.clone(), Print::of(head), Print::of(tail));
        let position = FilePosition { name, device, inode, offset, head, tail };
        for (stamp, backup) in among.iter().filter(|(_, backup)| backup.gzip) {
            let Ok(mut source) = files.open(&backup.name, true) else { continue };
            if recognise(&mut source, &position).is_ok_and(|known| known.is_some()) {
                return Ok(Some(stamp.clone()));
            }
        }
        Ok(None)
    }
}
