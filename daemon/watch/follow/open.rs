//! Which file to read next, and finding the places of a position again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::current::Current;
use super::files::{Backup, LogFiles, Source, Stamp};
use super::position::{FilePosition, Head, Known, Position, before, recognise};
use super::{Change, Follower, Notice, Observed};
use crate::watch::lines::{Piece, TAIL};

/// How far back from its end a file is searched for the end of its last whole line.
const MAX_UNFINISHED: u64 = 1 << 20;

/// The present end of a log: where to read on if nothing of the past is wanted.
///
/// # Errors
/// Those of open(2), read(2) and readdir(3). A log that is not there has its end at its beginning.
pub fn end(files: &LogFiles) -> io::Result<Position> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    // The live file first: what becomes a backup in between is known again by its content.
    let live = match files.open(&files.live_name(), false) {
        Err(error) if absent(&error) => None,
        other => Some(other?),
    };
    let backups = match files.backups() {
        Err(error) if absent(&error) => return Ok(Position::default()),
        other => other?,
    };
    let file = match live {
        Some(mut live) => {
            let end = last_line_end(&mut live)?;
            Current::open(live, files.live_name(), None, end)?.position().flatten()
        }
        None => None,
    };
    Ok(Position { read: Arc::new(backups.into_keys().collect()), file: file.map(Arc::new), former: Vec::new() })
}

/// Offset behind the last newline; the file's size if its last line is very long.
fn last_line_end(source: &mut Source) -> io::Result<u64> {
    let size = source.file().metadata()?.len();
    let start = size.saturating_sub(MAX_UNFINISHED);
    let mut last = vec![0; (size - start) as usize];
    let filled = source.read_full(&mut last, start)?;
    let newline = memchr::memrchr(b'\n', &last[..filled]);
    Ok(newline.map_or(if start == 0 { 0 } else { size }, |at| start + at as u64 + 1))
}

/// A place in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name, without directory.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Where to read on.
    pub position: Position,
}

/// The first place, from the oldest backup on, that `place` answers to a piece: an offset in the piece's file that is the
/// beginning of a line, or the end of the file.
///
/// # Errors
/// `TimedOut`: it was not found by then; those of open(2), read(2) and readdir(3).
pub fn find(
    files: &LogFiles,
    deadline: Instant,
    mut place: impl FnMut(Piece<'_>) -> Option<u64>,
) -> io::Result<Option<Place>> {
    // The live file first: what becomes a backup in between is known again by its content.
    let live = match files.open(&files.live_name(), false) {
        Err(error) if is_no_log(&error) => None,
        other => Some(other?),
    };
    let live_id = live.as_ref().map(Source::id).transpose()?;
    let backups = match files.backups() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        other => other?,
    };
    let mut read = BTreeSet::new();
    for (stamp, backup) in backups {
        let source = match files.open(&backup.name, backup.gzip) {
            // Removed since it was listed.
            Err(error) if is_no_log(&error) => continue,
            other => other?,
        };
        if Some(source.id()?) == live_id {
            continue;
        }
        let current = Current::open(source, backup.name, Some(stamp.clone()), 0)?;
        if let Some((offset, current)) = search(current, deadline, &mut place)? {
            return place_at(files, current, offset, read).map(Some);
        }
        read.insert(stamp);
    }
    let Some(live) = live else { return Ok(None) };
    let current = Current::open(live, files.live_name(), None, 0)?;
    let found = search(current, deadline, &mut place)?;
    found.map(|(offset, current)| place_at(files, current, offset, read)).transpose()
}

/// Reads a file to the first place, or to its end.
fn search(
    mut current: Current,
    deadline: Instant,
    place: &mut dyn FnMut(Piece<'_>) -> Option<u64>,
) -> io::Result<Option<(u64, Current)>> {
    loop {
        // A small backup may unpack to a very large one.
        if deadline <= Instant::now() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut found = None;
        let count = current.read(&mut |observed| {
            if let (None, Observed::Piece(_, piece)) = (found, observed) {
                found = place(piece);
            }
        });
        match (found, count) {
            (Some(offset), _) => return Ok(Some((offset, current))),
            (None, Ok(0)) => return Ok(None),
            (None, Ok(_)) => {}
            // Whoever follows the log reads no more of it, either.
            (None, Err(_)) if matches!(current.source, Source::Gzip(_)) => return Ok(None),
            (None, Err(error)) => return Err(error),
        }
    }
}

/// The place at an offset of a file that was read beyond it; these backups need no reading.
fn place_at(files: &LogFiles, current: Current, offset: u64, read: BTreeSet<Stamp>) -> io::Result<Place> {
    let Current { source, name, stamp, .. } = current;
    let mut source = match source {
        // It can only be read from its start.
        Source::Gzip(_) => files.open(&name, true)?,
        plain => plain,
    };
    let cut = || io::Error::other(format!("{name} was cut while it was read; try again"));
    let known = before(&mut source, offset, TAIL.min(offset as usize))?.ok_or_else(cut)?;
    let file = Current::known(source, name.clone(), stamp, offset, known)?.position().flatten();
    let position = Position { read: Arc::new(read), file: file.map(Arc::new), former: Vec::new() };
    Ok(Place { file: name, offset, position })
}

impl Follower {
    /// Opens the file to read next. False if there is none yet.
    pub(super) fn open_next(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<bool> {
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
            let (former, lost) = self.find_former()?;
            let resumed = match self.position.file.clone() {
                Some(position) => self.resume(&position, live, &backups, sink)?,
                None => true,
            };
            if resumed {
                self.resuming = false;
                self.former = former;
                self.inherited.clear();
                lost.into_iter().for_each(|notice| sink(Observed::Notice(notice)));
                self.note_position();
            }
            return Ok(resumed);
        }
        self.notice_lost(&backups, sink);
        let live_id = live.as_ref().map(Source::id).transpose()?;
        for (stamp, backup) in self.position.unread(&backups) {
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

    /// Notices backups that were there to be read, and are gone before they were.
    fn notice_lost(&mut self, backups: &BTreeMap<Stamp, Backup>, sink: &mut dyn FnMut(Observed<'_>)) {
        self.position.forget_gone(backups);
        let unread = self.position.unread(backups);
        let next = unread.first().map_or_else(|| self.files.live_name(), |(_, backup)| backup.name.clone());
        for (stamp, backup) in self.position.unread(&self.waiting) {
            if !backups.contains_key(&stamp) {
                sink(Observed::Notice(Notice::Lost { file: backup.name, offset: 0, next: next.clone() }));
            }
        }
        self.waiting = unread.into_iter().collect();
    }

    /// Opens the file of the position again, or what is there instead. False if nothing is there yet.
    fn resume(
        &mut self,
        position: &FilePosition,
        live: Option<Source>,
        backups: &BTreeMap<Stamp, Backup>,
        sink: &mut dyn FnMut(Observed<'_>),
    ) -> io::Result<bool> {
        if let Some(found) = self.find(position, backups)? {
            self.current = Some(found);
            return Ok(true);
        }
        let next = self.position.unread(backups).into_iter().next();
        if live.is_none() && next.is_none() {
            return Ok(false);
        }
        self.open_instead(position, live, next, sink)
    }

    /// The file of the position is gone, or its content is: goes on with what is there, and says what happened.
    fn open_instead(
        &mut self,
        position: &FilePosition,
        live: Option<Source>,
        next: Option<(Stamp, Backup)>,
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
        let head = Head::of(&mut source, offset)?;
        let same = head.at == position.head_at && !head.bytes.is_empty() && position.head.is_of(&head.bytes);
        let start = if same { offset.min(size) } else { 0 };
        self.current = Some(Current::open(source, name, stamp, start)?);
        sink(Observed::Notice(Notice::Tampered { file: file.clone(), change, offset, size }));
        if start > 0 {
            sink(Observed::Notice(Notice::Unseen { file, offset: start }));
        }
        self.note_position();
        Ok(true)
    }

    /// Finds the file of a position again: by its identity under whatever name, else by its content.
    fn find(&self, position: &FilePosition, backups: &BTreeMap<Stamp, Backup>) -> io::Result<Option<Current>> {
        let live = self.files.live_name();
        let named = self.files.name_of(position.id())?;
        let plain = backups.iter().filter(|(_, backup)| !backup.gzip);
        let compressed = self.position.unread(backups).into_iter().filter(|(_, backup)| backup.gzip);
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
            return Current::known(source, name, stamp, position.offset, known).map(Some);
        }
        let inherited = self.find_inherited(position);
        inherited.map(|(source, known)| Current::known(source, live, None, position.offset, known)).transpose()
    }

    /// The file of a position among those that another process had open. One that cannot be read is not it.
    fn find_inherited(&self, position: &FilePosition) -> Option<(Source, Known)> {
        self.inherited.iter().find_map(|file| {
            let mut source = Source::Plain(file.try_clone().ok()?);
            let is_it = source.id().is_ok_and(|id| id == position.id());
            let known = is_it.then(|| recognise(&mut source, position).ok()).flatten().flatten();
            known.map(|known| (source, known))
        })
    }

    /// Finds the former live files again that may still be written; of the others it says that they are lost.
    fn find_former(&self) -> io::Result<(Vec<Current>, Vec<Notice>)> {
        let (mut former, mut lost) = (Vec::new(), Vec::new());
        for position in &self.position.former {
            let name = self.files.name_of(position.id())?;
            let source = name.map(|name| (self.files.open(&name, false), name));
            let known = match source {
                Some((Ok(mut source), name)) => recognise(&mut source, position)?.map(|known| (source, name, known)),
                Some((Err(error), _)) if !is_no_log(&error) => return Err(error),
                _ => {
                    let found = self.find_inherited(position);
                    found.map(|(source, known)| (source, position.name.clone(), known))
                }
            };
            if let Some((source, name, known)) = known {
                let mut found = Current::known(source, name, None, position.offset, known)?;
                found.gone = true;
                former.push(found);
            } else {
                let (file, next) = (position.name.clone(), self.files.live_name());
                lost.push(Notice::Lost { file, offset: position.offset, next });
            }
        }
        Ok((former, lost))
    }
}

/// Whether what was to be opened is not there, or is nothing that kube-apiserver writes (a link, a directory).
fn is_no_log(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(nix::libc::ELOOP)
}
