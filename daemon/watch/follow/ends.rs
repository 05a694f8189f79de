//! The lines of a file that were read last, by which the place is found up to which it still is as it was, after somebody
//! cut it and it grew again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;

use super::files::Source;

/// How many lines are remembered.
const MAX_LINES: usize = 4096;
/// How many of a line's last bytes help to know it again; the times are among those of an audit event.
const MAX_PRINT: usize = 256;
/// How far before its place a file is read again when it is opened there.
const BACK: u64 = 256 << 10;

/// The end of a line.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Where its newline stands.
    offset: u64,
    /// How many bytes before that were hashed.
    length: u16,
    hash: u64,
}

/// The ends of the lines that were read last, the newest last.
#[derive(Debug, Default)]
pub(super) struct Ends {
    hasher: RandomState,
    ends: VecDeque<End>,
    /// No line was forgotten, from the beginning of the file on.
    all: bool,
}

impl Ends {
    /// Those before a place of a file.
    pub(super) fn before(source: &mut Source, offset: u64) -> io::Result<Ends> {
        let start = offset.saturating_sub(BACK);
        let mut ends = Ends { all: start == 0, ..Ends::default() };
        let mut bytes = vec![0; (offset - start) as usize];
        let filled = source.read_full(&mut bytes, start)?;
        let mut at = start;
        for line in bytes[..filled].split_inclusive(|byte| *byte == b'\n') {
            if let Some(line) = line.strip_suffix(b"\n") {
                ends.note(at + line.len() as u64, line);
            }
            at += line.len() as u64;
        }
        Ok(ends)
    }

    /// Takes in the line that ends there.
    pub(super) fn note(&mut self, offset: u64, line: &[u8]) {
        let print = &line[line.len().saturating_sub(MAX_PRINT)..];
        if self.ends.len() == MAX_LINES {
            self.ends.pop_front();
            self.all = false;
        }
        let hash = self.hasher.hash_one(print);
        self.ends.push_back(End { offset, length: print.len() as u16, hash });
    }

    /// Where the first line begins that does not stand there any more as it did; `None` if that is not known.
    pub(super) fn first_changed(&self, source: &mut Source) -> io::Result<Option<u64>> {
        let mut bytes = [0; MAX_PRINT + 1];
        for end in self.ends.iter().rev() {
            let length = usize::from(end.length);
            let filled = source.read_full(&mut bytes[..=length], end.offset - end.length as u64)?;
            if filled >= length && self.hasher.hash_one(&bytes[..length]) == end.hash {
                // Its newline may be gone.
                let whole = filled > length && bytes[length] == b'\n';
                return Ok(Some(end.offset + u64::from(whole)));
            }
        }
        Ok(self.all.then_some(0))
    }
}
