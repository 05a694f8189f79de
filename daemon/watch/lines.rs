//! Splits a growing file into lines, in bounded memory.

use std::io;

use memchr::memchr_iter;

/// Longest line that is kept whole, in bytes.
pub const MAX_LINE: usize = 16 << 20;

/// How much is read at once: small enough to stay in a core's cache while it is looked at.
pub const BLOCK: usize = 256 << 10;

/// A piece of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A line without its newline.
    Line {
        /// Where it starts in the file, in bytes.
        offset: u64,
        /// The line. Neither empty nor longer than the limit; does not start with NUL.
        bytes: &'a [u8],
    },
    /// Bytes that were passed over: a line beyond the limit, or a run of NULs at the start of a line.
    Skipped {
        /// Where they start in the file, in bytes.
        offset: u64,
        /// How many they are.
        length: u64,
    },
}

/// What is being passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    /// A run of NULs, which truncating a file leaves that its writer goes on writing at its old place.
    Nuls,
    /// A line that is too long, up to its newline.
    Line,
}

/// The unfinished rest of what was read, and where in the file it stands.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    /// How many bytes of the buffer are filled.
    filled: usize,
    /// How many of those hold no newline for sure.
    searched: usize,
    /// File offset of the buffer's first byte.
    offset: u64,
    skip: Option<(Skip, u64)>,
    /// The bytes that stand in the file before `offset`, or before the run of NULs that is being passed over: the last
    /// [`TAIL`] of them.
    before: Vec<u8>,
    limit: usize,
}

/// How many of the bytes before a place are remembered to know the place again: an audit event's times are among them.
pub const TAIL: usize = 1024;

impl Lines {
    /// Starts at an offset, which is the beginning of a line; `before` is what stands before it.
    pub fn at(offset: u64, before: Vec<u8>) -> Lines {
        Lines { before, ..Lines::with_limit(offset, MAX_LINE) }
    }

    /// Starts at an offset with another limit for the length of a line, in bytes.
    pub fn with_limit(offset: u64, limit: usize) -> Lines {
        Lines { buffer: Vec::new(), filled: 0, searched: 0, offset, skip: None, before: Vec::new(), limit }
    }

    /// Offset of the first byte that was not handed out yet, and the bytes before it: where a reader has to start again
    /// after a restart. `None` while a line that is too long is passed over; the former position holds until that ends.
    pub fn position(&self) -> Option<(u64, &[u8])> {
        match self.skip {
            None => Some((self.offset, &self.before)),
            Some((Skip::Nuls, run)) => Some((run, &self.before)),
            Some((Skip::Line, _)) => None,
        }
    }

    /// Offset of the next byte to be read from the file.
    pub fn read_offset(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// The bytes before [`Lines::read_offset`], at most [`TAIL`] of them.
    pub fn last_bytes(&self) -> Vec<u8> {
        let mut last = self.before.clone();
        last.extend(nuls_before(self.skip, self.offset));
        last.extend_from_slice(&self.buffer[self.filled.saturating_sub(TAIL)..self.filled]);
        last.drain(..last.len().saturating_sub(TAIL));
        last
    }

    /// Reads one block by `read`, which fills the slice it gets from its start and says how far.
    /// Answers how many bytes were read; 0 is the present end of the file.
    pub fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let want = self.filled + BLOCK;
        if self.buffer.len() < want {
            // No doubling: a line near the limit must not take twice its length. A long line costs a few copies more.
            let grown = want.max(self.buffer.len() + self.buffer.len() / 4);
            self.buffer.reserve_exact(grown - self.buffer.len());
            self.buffer.resize(grown, 0);
        }
        let count = read(&mut self.buffer[self.filled..want])?;
        self.filled += count;
        Ok(count)
    }

    /// Hands out the pieces that are complete.
    pub fn drain(&mut self, mut sink: impl FnMut(Piece<'_>)) {
        let mut start = 0;
        let (filled, base) = (self.filled, self.offset);
        let former = self.skip;
        for newline in memchr_iter(b'\n', &self.buffer[self.searched..filled]) {
            let end = self.searched + newline;
            if self.skip.map(|(skip, _)| skip) == Some(Skip::Line) {
                start = end + 1;
                finish(&mut self.skip, base + end as u64, &mut sink);
                continue;
            }
            start += skip_nuls(&mut self.skip, &self.buffer[start..end], base + start as u64, &mut sink);
            finish(&mut self.skip, base + start as u64, &mut sink);
            if end - start > self.limit {
                sink(Piece::Skipped { offset: base + start as u64, length: (end - start) as u64 });
            } else if start < end {
                sink(Piece::Line { offset: base + start as u64, bytes: &self.buffer[start..end] });
            }
            start = end + 1;
        }
        if self.skip.map(|(skip, _)| skip) != Some(Skip::Line) {
            start += skip_nuls(&mut self.skip, &self.buffer[start..filled], base + start as u64, &mut sink);
            if filled - start > self.limit {
                self.skip = Some((Skip::Line, base + start as u64));
            }
        }
        if self.skip != former {
            self.before.extend(nuls_before(former, base));
        }
        match self.skip {
            Some((Skip::Line, _)) => self.keep(filled),
            Some((Skip::Nuls, run)) => {
                self.keep(run.saturating_sub(base) as usize);
                self.pass(self.filled as u64);
            }
            None => self.keep(start),
        }
    }

    /// Whether a run of NULs reaches to the last byte that was read.
    pub fn is_in_nuls(&self) -> bool {
        matches!(self.skip, Some((Skip::Nuls, _)))
    }

    /// Goes on behind a hole of the file, which reads as NULs; to be called within a run of them.
    pub fn pass(&mut self, length: u64) {
        self.offset += length;
        self.filled = 0;
        self.searched = 0;
    }

    /// Goes back to before the NULs at the end: where a file still grows, its writer may not have come there yet. That is
    /// so when somebody else made it longer.
    pub fn unread_nuls(&mut self) {
        if let Some((Skip::Nuls, run)) = self.skip {
            self.skip = None;
            self.offset = run;
        } else if self.skip.is_none() {
            let end = self.buffer[..self.filled].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            self.filled = end;
            self.searched = self.searched.min(end);
        }
    }

    /// Ends the file: what is left without a newline is handed out as it is.
    pub fn finish(&mut self, mut sink: impl FnMut(Piece<'_>)) {
        self.before.extend(nuls_before(self.skip, self.offset));
        finish(&mut self.skip, self.offset, &mut sink);
        // While a line is being passed over, nothing of it is in the buffer.
        if self.filled > 0 {
            sink(Piece::Line { offset: self.offset, bytes: &self.buffer[..self.filled] });
        }
        self.keep(self.filled);
    }

    /// Drops the first bytes of the buffer, and the memory that a long line needed.
    fn keep(&mut self, from: usize) {
        let rest = self.filled - from;
        if from > 0 {
            self.before.extend_from_slice(&self.buffer[from.saturating_sub(TAIL)..from]);
            self.buffer.copy_within(from..self.filled, 0);
        }
        self.before.drain(..self.before.len().saturating_sub(TAIL));
        self.offset += from as u64;
        self.filled = rest;
        self.searched = rest;
        if rest <= BLOCK && self.buffer.len() > 4 * BLOCK {
            self.buffer.truncate(rest);
            self.buffer.shrink_to_fit();
        }
    }
}

/// The NULs of the run that is being passed over, from its start to `offset`; at most [`TAIL`] of them.
fn nuls_before(skip: Option<(Skip, u64)>, offset: u64) -> impl Iterator<Item = u8> {
    let count = match skip {
        Some((Skip::Nuls, run)) => (offset - run).min(TAIL as u64),
        _ => 0,
    };
    std::iter::repeat_n(0, count as usize)
}

/// Ends what is being passed over, at the offset where it ended.
fn finish(skip: &mut Option<(Skip, u64)>, end: u64, sink: &mut impl FnMut(Piece<'_>)) {
    if let Some((_, start)) = skip.take()
        && start < end
    {
        sink(Piece::Skipped { offset: start, length: end - start });
    }
}

/// Passes over the NULs at the start of a line; answers how many there were.
fn skip_nuls(skip: &mut Option<(Skip, u64)>, line: &[u8], offset: u64, sink: &mut impl FnMut(Piece<'_>)) -> usize {
    if skip.is_none() && line.first() != Some(&0) {
        return 0;
    }
    let nuls = line.iter().position(|byte| *byte != 0).unwrap_or(line.len());
    skip.get_or_insert((Skip::Nuls, offset));
    if nuls < line.len() {
        finish(skip, offset + nuls as u64, sink);
    }
    nuls
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Got {
        Line(u64, Vec<u8>),
        Skipped(u64, u64),
    }

    /// What comes out when the file arrives in pieces of these sizes.
    fn split(file: &[u8], limit: usize, sizes: &[usize]) -> (Vec<Got>, Option<u64>) {
        let (mut lines, mut got) = (Lines::with_limit(0, limit), Vec::new());
        let (mut at, mut size) = (0, sizes.iter().cycle());
        while at < file.len() {
            let count = (*size.next().expect("endless")).clamp(1, file.len() - at);
            lines
                .fill(|block| {
                    block[..count].copy_from_slice(&file[at..at + count]);
                    Ok(count)
                })
                .expect("no I/O");
            at += count;
            lines.drain(|piece| {
                got.push(match piece {
                    Piece::Line { offset, bytes } => Got::Line(offset, bytes.to_vec()),
                    Piece::Skipped { offset, length } => Got::Skipped(offset, length),
                });
            });
        }
        assert!(file.ends_with(&lines.last_bytes()) && lines.last_bytes().len() == file.len().min(TAIL));
        if let Some((offset, before)) = lines.position() {
            assert!(file[..offset as usize].ends_with(before) && before.len() == (offset as usize).min(TAIL));
        }
        (got, lines.position().map(|(offset, _)| offset))
    }

    /// The same, said simply.
    fn model(file: &[u8], limit: usize) -> (Vec<Got>, u64) {
        let (mut got, mut offset) = (Vec::new(), 0);
        let end = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in file[..end].split_inclusive(|byte| *byte == b'\n') {
            let line = &line[..line.len() - 1];
            let nuls = line.iter().take_while(|byte| **byte == 0).count();
            if nuls > 0 {
                got.push(Got::Skipped(offset, nuls as u64));
            }
            let (start, rest) = (offset + nuls as u64, &line[nuls..]);
            if rest.len() > limit {
                got.push(Got::Skipped(start, rest.len() as u64));
            } else if !rest.is_empty() {
                got.push(Got::Line(start, rest.to_vec()));
            }
            offset += line.len() as u64 + 1;
        }
        (got, end as u64)
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_file_arrives(
            file in prop::collection::vec(prop::sample::select(&b"\n\0ab"[..]), 0..200),
            limit in 1_usize..8,
            sizes in prop::collection::vec(1_usize..20, 1..10),
        ) {
            let (expected, end) = model(&file, limit);
            let (mut got, position) = split(&file, limit, &sizes);
            // A run of NULs is handed out as soon as it ends, which may be in the last, unfinished line.
            let early = got.len() > expected.len();
            if early {
                prop_assert!(matches!(got.pop(), Some(Got::Skipped(offset, _)) if offset >= end));
            }
            let right = position.is_none_or(|position| if early { position > end } else { position == end });
            prop_assert!(right);
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_line_of_the_limit_is_kept_whole_and_one_byte_more_is_not() {
        let file = [vec![b'x'; MAX_LINE], b"\n".to_vec(), vec![b'y'; MAX_LINE + 1], b"\nz\n".to_vec()].concat();
        let (got, _) = split(&file, MAX_LINE, &[BLOCK]);
        let [Got::Line(0, first), Got::Skipped(offset, length), Got::Line(_, last)] = &got[..] else {
            panic!("three pieces expected, not {}", got.len());
        };
        let second = MAX_LINE as u64 + 1;
        assert_eq!((first.len(), *offset, *length, last), (MAX_LINE, second, second, &b"z".to_vec()));
    }

    #[test]
    fn memory_is_given_back_after_a_long_line() {
        let mut lines = Lines::at(0, Vec::new());
        for _ in 0..40 {
            lines
                .fill(|block| {
                    block.fill(b'x');
                    Ok(block.len())
                })
                .expect("no I/O");
            lines.drain(|_| panic!("no line yet"));
        }
        assert!(lines.buffer.capacity() >= 40 * BLOCK);
        lines
            .fill(|block| {
                block[0] = b'\n';
                Ok(1)
            })
            .expect("no I/O");
        lines.drain(|_| {});
        assert!(lines.buffer.capacity() <= 4 * BLOCK, "{}", lines.buffer.capacity());
    }
}
