//! The file in which it is kept what programs there are. Its parts end with a NUL, which no name has: first its version and up to
//! which moment all was looked through, then for each file when it was noted, when it changed, its mode, its layer and its path.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Known;
use crate::watch::tree::Moment;

/// How a file begins, and its version.
const MAGIC: &str = "podsecd-programs";
pub(super) const VERSION: u32 = 1;
/// A file is not longer, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The first part: all was looked through up to this moment.
pub(super) fn head(sought: Moment) -> String {
    format!("{MAGIC} {VERSION} {}\0", sought.nanoseconds())
}

/// A file that is written.
#[derive(Debug)]
pub(super) struct Sheet {
    pub(super) writer: BufWriter<File>,
    pub(super) length: u64,
    pub(super) failure: Option<io::Error>,
    /// Not all had room in it.
    pub(super) is_full: bool,
}

impl Sheet {
    pub(super) fn create(path: &Path, sought: Moment) -> io::Result<Sheet> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut writer = BufWriter::new(file);
        let head = head(sought);
        writer.write_all(head.as_bytes())?;
        writer.flush()?;
        Ok(Sheet { writer, length: head.len() as u64, failure: None, is_full: false })
    }

    /// Goes on behind so many bytes.
    pub(super) fn append(path: &Path, length: u64) -> io::Result<Sheet> {
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(length)?;
        Ok(Sheet { writer: BufWriter::new(file), length, failure: None, is_full: false })
    }

    /// Adds what is known of a file, if there is room.
    pub(super) fn add(&mut self, layer: &str, path: &[u8], known: &Known) {
        let Known { changed, mode, noted, .. } = known;
        let head = format!("{} {} {mode:o} {layer} ", noted.nanoseconds(), changed.nanoseconds());
        let length = (head.len() + path.len() + 1) as u64;
        self.is_full |= self.length + length > MAX_BYTES;
        if self.is_full || self.failure.is_some() {
            return;
        }
        self.length += length;
        let written = [head.as_bytes(), path, b"\0"].iter().try_for_each(|part| self.writer.write_all(part));
        self.failure = written.err();
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.failure.map_or(Ok(()), Err)?;
        self.writer.flush()?;
        self.writer.get_ref().sync_data()
    }
}

/// What a file says of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) noted: Moment,
    pub(super) changed: Moment,
    pub(super) mode: u16,
    pub(super) layer: String,
    pub(super) path: Box<[u8]>,
}

/// The parts of a file, one after the other.
pub(super) struct Parts<R> {
    reader: R,
    /// How many bytes those that were read have.
    pub(super) length: u64,
}

impl Parts<io::Take<BufReader<File>>> {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Parts { reader: BufReader::new(File::open(path)?).take(MAX_BYTES), length: 0 })
    }
}

impl<R: BufRead> Parts<R> {
    fn part(&mut self) -> Option<Vec<u8>> {
        let mut part = Vec::new();
        let length = self.reader.read_until(0, &mut part).ok()?;
        // The last one may be torn.
        (part.pop() == Some(0)).then(|| {
            self.length += length as u64;
            part
        })
    }

    /// The first one: up to when was looked through; `None` if it is no such file, or one of another version.
    pub(super) fn head(&mut self) -> Option<Moment> {
        let (version, sought) = self.version()?;
        (version == VERSION).then(|| sought.parse().ok().map(Moment::from_nanoseconds))?
    }

    /// Its version, and the rest of the first one.
    pub(super) fn version(&mut self) -> Option<(u32, String)> {
        let part = self.part()?;
        let words = std::str::from_utf8(&part).ok()?.strip_prefix(MAGIC)?.strip_prefix(' ')?;
        let (version, rest) = words.split_once(' ')?;
        Some((version.parse().ok()?, rest.to_owned()))
    }
}

impl<R: BufRead> Iterator for Parts<R> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let part = self.part()?;
            // What is damaged, and the head, is nothing that is known.
            if let Some(entry) = entry(&part) {
                return Some(entry);
            }
        }
    }
}

fn entry(part: &[u8]) -> Option<Entry> {
    let mut words = part.splitn(5, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(words.next()?).ok();
    let mut moment = || text()?.parse().ok().map(Moment::from_nanoseconds);
    let (noted, changed) = (moment()?, moment()?);
    let mode = u16::from_str_radix(text()?, 8).ok()?;
    Some(Entry { noted, changed, mode, layer: text()?.to_owned(), path: words.next()?.into() })
}
