//! The spool: every finding of the present digest period, until the digest that holds it is frozen and delivered.
//!
//! One file a period, named after the number of the digest that it becomes, a line of JSON for each finding. What is in
//! it counts as reported: a restart drops only what the audit log will yield again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::Cycle;
use crate::score::{Level, write_finding};

/// From this length on the spool takes no more findings of the audit log, whose refusals forbidden.log has, too: an
/// intruder must not fill the disk by being refused.
const MAX_LENGTH: u64 = 256 << 20;

/// How far the spool is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Number of the digest whose period it is; the first is 1.
    pub number: u64,
    /// Length of its file, in bytes.
    pub length: u64,
    /// How many findings the spool had no room for.
    pub left_out: u64,
}

impl Mark {
    /// The beginning of a period.
    pub fn at(number: u64) -> Mark {
        Mark { number, length: 0, left_out: 0 }
    }
}

/// A finding in the spool.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// The audit log yields it again after a restart that does not know of it.
    pub again: bool,
    /// The finding.
    pub finding: Spooled,
}

/// What a digest says of a finding; the JSON finding of the interface.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the interface")]
pub struct Spooled {
    #[serde(with = "crate::score::humantime_text")]
    pub time: SystemTime,
    pub id: String,
    pub kind: String,
    pub level: Level,
    pub subject: String,
    pub message: String,
    pub fields: serde_json::Map<String, Value>,
}

impl Spooled {
    /// A field that is one text; empty if it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The file of the present period.
#[derive(Debug)]
pub struct Spool {
    file: File,
    mark: Mark,
}

impl Spool {
    /// The spool as it was at the mark. What stands behind it is kept, but for what the log will yield again, and for a
    /// torn line.
    ///
    /// # Errors
    /// Those of open(2), read(2), write(2) and rename(2); nothing of the spool is lost.
    pub fn open(directory: &Path, mark: Mark) -> io::Result<Spool> {
        std::fs::create_dir_all(directory)?;
        let path = path(directory, mark.number);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let kept = kept(&bytes, mark.length);
        if !bytes.starts_with(&kept) {
            let temporary = path.with_extension("new");
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&kept)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.set_len(kept.len() as u64)?;
        File::open(directory)?.sync_all()?;
        Ok(Spool { file, mark: Mark { length: kept.len() as u64, ..mark } })
    }

    /// How far it is written.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Appends what the cycles found and sees it safely on the disk; all of it, or nothing.
    ///
    /// # Errors
    /// Those of write(2) and fdatasync(2); try again later.
    pub fn append<'c>(&mut self, cycles: impl IntoIterator<Item = &'c Cycle>) -> io::Result<()> {
        let (mut lines, mut left_out) = (Vec::new(), 0);
        for reported in cycles.into_iter().flat_map(|cycle| &cycle.findings) {
            if reported.again && self.mark.length + lines.len() as u64 >= MAX_LENGTH {
                left_out += 1;
                continue;
            }
            lines.extend_from_slice(if reported.again {
                b"{\"again\":true,\"finding\":"
            } else {
                b"{\"again\":false,\"finding\":"
            });
            write_finding(&mut lines, &reported.scored);
            lines.extend_from_slice(b"}\n");
        }
        if !lines.is_empty()
            && let Err(error) = self.file.write_all(&lines).and_then(|()| self.file.sync_data())
        {
            self.file.set_len(self.mark.length)?;
            return Err(error);
        }
        self.mark.length += lines.len() as u64;
        self.mark.left_out += left_out;
        Ok(())
    }
}

/// The file of a period.
pub fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}.jsonl"))
}

/// What is in a file of the spool, in the order in which it was found. A torn last line is no entry.
///
/// # Errors
/// Those of read(2); `InvalidData` with the line's number for a line that is no entry.
pub fn read(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    let mut lines = BufReader::with_capacity(256 << 10, File::open(path)?);
    let (mut line, mut number) = (Vec::new(), 0);
    Ok(std::iter::from_fn(move || {
        line.clear();
        number += 1;
        match lines.read_until(b'\n', &mut line) {
            Err(error) => Some(Err(error)),
            Ok(_) if !line.ends_with(b"\n") => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("line {number} is no finding: {error}"))
            })),
        }
    }))
}

/// What a restart keeps of a file that was written up to `length` when that was recorded.
fn kept(bytes: &[u8], length: u64) -> Vec<u8> {
    let (recorded, behind) = bytes.split_at((length as usize).min(bytes.len()));
    let mut kept = recorded.to_vec();
    for line in behind.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        if serde_json::from_slice::<Entry>(line).is_ok_and(|entry| !entry.again) {
            kept.extend_from_slice(line);
        }
    }
    kept
}
