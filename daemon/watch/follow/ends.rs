//! The lines of a file that were read last, by which the place is found up to which it still is as it was, after somebody
//! cut it and it grew again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;

use super::files::Source;

/// How many lines are remembered.
const MAX_LINES: usize = 4096;
/// How many of a line's first bytes, and of its last ones, help to know it again: the former have an audit event's id, the
/// latter often its times.
const MAX_PRINT: usize = 256;
/// How far before its place a file is read again when it is opened there.
const BACK: u64 = 2 << 20;

/// The end of a line.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Where its newline stands.
    offset: u64,
    /// How many bytes long it is, or what of it is known.
    length: u64,
    /// Of its first and its last bytes.
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
            // The first may be a piece of a line; a short one would be known again everywhere.
            if let Some(line) = line.strip_suffix(b"\n")
                && (start == 0 || at > start || line.len() >= MAX_PRINT)
            {
                ends.note(at + line.len() as u64, line);
            }
            at += line.len() as u64;
        }
        Ok(ends)
    }

    /// Takes in the line that ends there.
    pub(super) fn note(&mut self, offset: u64, line: &[u8]) {
        // An empty one would be known again everywhere.
        if line.is_empty() {
            return;
        }
        if self.ends.len() == MAX_LINES {
            self.ends.pop_front();
            self.all = false;
        }
        let first = &line[..line.len().min(MAX_PRINT)];
        let hash = self.hasher.hash_one((first, last(line)));
        self.ends.push_back(End { offset, length: line.len() as u64, hash });
    }

    /// Where the first line begins that does not stand there any more as it did; `None` if that is not known.
    pub(super) fn first_changed(&self, source: &mut Source) -> io::Result<Option<u64>> {
        let mut newline = [0];
        for end in self.ends.iter().rev() {
            let start = end.offset - end.length;
            let mut first = vec![0; end.length.min(MAX_PRINT as u64) as usize];
            let mut before_end = first.clone();
            let same = source.read_full(&mut first, start)? == first.len()
                && source.read_full(&mut before_end, end.offset - first.len() as u64)? == first.len()
                && self.hasher.hash_one((&first[..], &before_end[..])) == end.hash;
            // A short one would be known again in the midst of another. NULs are a hole, behind which one begins, too.
            let begins_line = first.len() == MAX_PRINT
                || start == 0
                || (source.read_full(&mut newline, start - 1)? == 1 && matches!(newline, [b'\n' | 0]));
            if same && begins_line {
                // Its newline may be gone.
                let whole = source.read_full(&mut newline, end.offset)? == 1 && newline == *b"\n";
                return Ok(Some(end.offset + u64::from(whole)));
            }
        }
        Ok(self.all.then_some(0))
    }
}

fn last(line: &[u8]) -> &[u8] {
    &line[line.len().saturating_sub(MAX_PRINT)..]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn source(path: &std::path::Path, text: &str) -> Source {
        fs::write(path, text).expect("written");
        Source::Plain(fs::File::open(path).expect("opened"))
    }

    #[test]
    fn the_first_changed_line_is_found_and_nothing_is_known_again_where_it_does_not_stand() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let line = |number: usize| format!("{{\"auditID\":\"{number}\",{}}}\n", "\"same\":1,".repeat(60));
        let lines: Vec<_> = (0..9).map(line).collect();
        let whole = lines.concat() + "\n\nshort\n";
        let ends = Ends::before(&mut source(&path, &whole), whole.len() as u64).expect("read");
        let at = |count: usize| lines[..count].concat().len();
        for (what, now, expected) in [
            ("nothing", whole.clone(), whole.len()),
            ("cut behind a line", lines[..4].concat(), at(4)),
            ("cut in a line", whole[..at(5) - 100].to_owned(), at(4)),
            ("its newline cut", whole[..at(5) - 1].to_owned(), at(5) - 1),
            ("other lines of the same length behind", lines[..4].concat() + &line(11) + &line(12), at(4)),
            ("a line of the same end directly behind a cut one", whole[..at(5) - 90].to_owned() + &line(7), at(4)),
            ("cut to nothing", String::new(), 0),
            ("another file", "x".repeat(9000), 0),
        ] {
            let found = ends.first_changed(&mut source(&path, &now)).expect("read");
            assert_eq!(found, Some(expected as u64), "{what}");
        }
    }

    #[test]
    fn what_lies_far_back_is_not_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        // A piece of a line at the beginning of what is read again, and an empty one.
        let whole = format!("{}\n\nx\n", "y".repeat(3 << 20));
        let ends = Ends::before(&mut source(&path, &whole), whole.len() as u64).expect("read");
        assert_eq!(ends.first_changed(&mut source(&path, &"z".repeat(4 << 20))).expect("read"), None);
    }
}
