//! The file that is being read.

use std::io::{self, IoSliceMut};
use std::os::unix::fs::MetadataExt;

use rustix::io::{ReadWriteFlags, preadv2};

use super::Observed;
use super::ends::Ends;
use super::files::{Backup, FileId, LogFiles, Source, Stamp};
use super::position::{FilePosition, Head, Known, Print, recognise};
use crate::watch::lines::{BLOCK, Lines, Piece, TAIL};

/// An open file, and how far it was read.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) source: Source,
    pub(super) id: FileId,
    pub(super) name: String,
    /// If it is a backup.
    pub(super) stamp: Option<Stamp>,
    /// Nobody writes it any more: its end is final.
    pub(super) finished: bool,
    pub(super) lines: Lines,
    head: Head,
    /// The lines read last, of a file that may still be cut.
    ends: Ends,
    /// It was said already that it is not where it should be.
    pub(super) gone: bool,
    /// It was opened as the live file.
    pub(super) was_live: bool,
}

impl Current {
    /// A file to be read from `offset`; a backup if it has a stamp.
    pub(super) fn open(source: Source, name: String, stamp: Option<Stamp>, offset: u64) -> io::Result<Current> {
        let known = Known { head: Head::default(), tail: Vec::new() };
        let mut current = Current::known(source, name, stamp, 0, known)?;
        // Where it does not reach there, it was cut meanwhile.
        if offset > 0 && !current.restart_at(offset)? {
            current.restart_at(0)?;
        }
        Ok(current)
    }

    /// A file that was known again, to be read from `offset`.
    pub(super) fn known(
        source: Source,
        name: String,
        stamp: Option<Stamp>,
        offset: u64,
        known: Known,
    ) -> io::Result<Current> {
        let mut source = source;
        let ends = if stamp.is_none() { Ends::before(&mut source, offset)? } else { Ends::default() };
        Ok(Current {
            id: source.id()?,
            finished: stamp.is_some(),
            was_live: stamp.is_none(),
            lines: Lines::at(offset, known.tail),
            head: known.head,
            ends,
            source,
            name,
            stamp,
            gone: false,
        })
    }

    /// Goes on at another offset, which is the beginning of a line; false if the file does not reach there.
    fn restart_at(&mut self, offset: u64) -> io::Result<bool> {
        let mut tail = vec![0; TAIL.min(offset as usize)];
        let start = offset - tail.len() as u64;
        if self.source.read_full(&mut tail, start)? < tail.len() {
            return Ok(false);
        }
        self.head = Head::of(&mut self.source, offset)?;
        if self.was_live {
            self.ends = Ends::before(&mut self.source, offset)?;
        }
        self.lines = Lines::at(offset, tail);
        Ok(true)
    }

    /// How far it was read, in whole lines.
    fn offset(&self) -> u64 {
        self.lines.position().map_or(self.lines.read_offset(), |(offset, _)| offset)
    }

    /// Where to read on after a restart. `None` while something is passed over; a file of which nothing was read is one
    /// like any other.
    pub(super) fn position(&self) -> Option<Option<FilePosition>> {
        let (offset, tail) = self.lines.position()?;
        let mut head = self.head.clone();
        head.truncate(offset);
        let (device, inode) = self.id;
        Some((offset > 0).then(|| FilePosition {
            name: self.name.clone(),
            device,
            inode,
            offset,
            head_at: head.at,
            head: Print::Bytes(head.bytes),
            tail: Print::of(tail),
        }))
    }

    /// Goes on after somebody cut it or wrote it over: where it is not any more what was read. False if that place is not
    /// known, so that something may have been written before the place where it goes on.
    pub(super) fn restart(&mut self) -> io::Result<bool> {
        // Somebody may cut it again meanwhile, but not for ever.
        for _ in 0..3 {
            let (start, known) = place(&self.ends, &self.head, self.offset(), &mut self.source)?;
            if self.restart_at(start)? {
                return Ok(known);
            }
        }
        self.restart_at(0)
    }

    /// Where to read on in a file that was put in this one's place, and whether that place is known: where it is not any
    /// more as this, or at its start.
    pub(super) fn continuation_in(&self, source: &mut Source) -> io::Result<(u64, bool)> {
        place(&self.ends, &self.head, self.offset(), source)
    }

    /// Whether the bytes read last still stand where they were read. They do not after the file was cut and grew again.
    pub(super) fn is_unchanged(&mut self) -> io::Result<bool> {
        let last = self.lines.last_bytes();
        let mut now = [0; TAIL];
        let now = &mut now[..last.len()];
        let filled = self.source.read_full(now, self.lines.read_offset() - last.len() as u64)?;
        Ok(filled == last.len() && *now == *last)
    }

    /// Reads one block and hands out its pieces; answers how many bytes it came forward. 0 is the end.
    pub(super) fn read(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<u64> {
        let start = self.lines.read_offset();
        if self.lines.is_in_nuls() {
            self.lines.pass(self.source.next_data(start)? - start);
        }
        let offset = self.lines.read_offset();
        let (source, head) = (&mut self.source, &mut self.head);
        let count = self.lines.fill(|block| {
            let count = source.read(block, offset)?;
            head.keep(offset, &block[..count]);
            Ok(count)
        })?;
        Ok(self.hand_out(start, count, sink))
    }

    /// The same, if what was read last still stands where it was and what follows is in memory: this waits for no disk.
    /// Answers 0 also where that is not so, and where there is more than a block.
    pub(super) fn read_cached(&mut self, sink: &mut dyn FnMut(Observed<'_>)) -> io::Result<u64> {
        let (offset, last) = (self.lines.read_offset(), self.lines.last_bytes());
        let Source::Plain(file) = &self.source else { return Ok(0) };
        let head = &mut self.head;
        let mut now = [0; TAIL];
        let now = &mut now[..last.len()];
        let count = self.lines.fill(|block| {
            let mut buffers = [IoSliceMut::new(now), IoSliceMut::new(block)];
            let start = offset - last.len() as u64;
            let count = preadv2(file, &mut buffers, start, ReadWriteFlags::NOWAIT)?;
            let count = if *now == *last { count.saturating_sub(last.len()) } else { 0 };
            head.keep(offset, &block[..count]);
            Ok(count)
        })?;
        let forward = self.hand_out(offset, count, sink);
        Ok(if count < BLOCK { forward } else { 0 })
    }

    /// Hands out the pieces of the block that was read last; answers how many bytes it came forward from `start`.
    fn hand_out(&mut self, start: u64, count: usize, sink: &mut dyn FnMut(Observed<'_>)) -> u64 {
        let (was_live, ends) = (self.was_live, &mut self.ends);
        self.lines.drain(|piece| {
            if let Piece::Line { offset, bytes } = piece
                && was_live
            {
                ends.note(offset + bytes.len() as u64, bytes);
            }
            sink(Observed::Piece(&self.name, piece));
        });
        if count < BLOCK && !self.finished {
            self.unread_nuls();
        }
        self.lines.read_offset().saturating_sub(start)
    }

    /// Forgets the NULs at the end.
    fn unread_nuls(&mut self) {
        self.lines.unread_nuls();
        self.head.truncate(self.lines.read_offset());
    }

    /// The compressed backup, of these, that this file has become.
    pub(super) fn find_compressed(&self, files: &LogFiles, among: &[(Stamp, Backup)]) -> io::Result<Option<Stamp>> {
        let Some(Some(position)) = self.position() else { return Ok(None) };
        for (stamp, backup) in among.iter().filter(|(_, backup)| backup.gzip) {
            let Ok(mut source) = files.open(&backup.name, true) else { continue };
            if recognise(&mut source, &position).is_ok_and(|known| known.is_some()) {
                return Ok(Some(stamp.clone()));
            }
        }
        Ok(None)
    }

    /// Whether no name of it is left.
    pub(super) fn is_unlinked(&self) -> io::Result<bool> {
        Ok(self.source.file().metadata()?.nlink() == 0)
    }
}

/// Where to read on in a file that was read to `offset`, and whether that place is known.
fn place(ends: &Ends, head: &Head, offset: u64, source: &mut Source) -> io::Result<(u64, bool)> {
    Ok(match ends.first_changed(source)? {
        Some(start) => (start, true),
        None if head.begins(source)? => (offset.min(source.file().metadata()?.len()), false),
        None => (0, true),
    })
}
