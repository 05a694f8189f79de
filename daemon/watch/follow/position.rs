//! Where a follower stands, in a form that survives a restart and that knows its file again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{Backup, FileId, Source, Stamp};
use crate::watch::lines::TAIL;

/// How many bytes from the start of a file help to know it again.
pub(super) const HEAD: usize = 256;

/// How many backups are remembered as read.
const MAX_READ: usize = 4096;
/// How many of those are that are not there any more: a directory may be away for a moment.
const MAX_GONE: usize = 64;

/// Where to read on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Stamps of the backups that need no reading any more. A set, and not the last of them: a clock that was set back
    /// gives a later backup an earlier stamp. Shared, because a position is copied with every event.
    pub read: Arc<BTreeSet<Stamp>>,
    /// The file that is being read. Shared for the same reason.
    pub file: Option<Arc<FilePosition>>,
    /// Former live files which somebody renamed or replaced, while their writer may still write them.
    pub former: Vec<FilePosition>,
}

impl Position {
    /// The backups that are still to be read, the oldest first.
    pub(super) fn unread(&self, backups: &BTreeMap<Stamp, Backup>) -> Vec<(Stamp, Backup)> {
        // Where more were read than are remembered, those before the first are read.
        let floor = self.read.first().filter(|_| self.read.len() >= MAX_READ);
        let unread = |stamp: &Stamp| !self.read.contains(stamp) && floor.is_none_or(|floor| stamp > floor);
        let unread = backups.iter().filter(|(stamp, _)| unread(stamp));
        unread.map(|(stamp, backup)| (stamp.clone(), backup.clone())).collect()
    }

    /// Forgets backups that are gone, and those that are too many; of both the oldest.
    pub(super) fn forget_gone(&mut self, backups: &BTreeMap<Stamp, Backup>) {
        let gone: Vec<_> = self.read.iter().filter(|stamp| !backups.contains_key(*stamp)).cloned().collect();
        let too_many = &gone[..gone.len().saturating_sub(MAX_GONE)];
        if too_many.is_empty() && self.read.len() <= MAX_READ {
            return;
        }
        let read = Arc::make_mut(&mut self.read);
        for stamp in too_many {
            read.remove(stamp);
        }
        while read.len() > MAX_READ {
            read.pop_first();
        }
    }
}

/// A place in a file, and how to know that file: by its identity or, where that changed or was given to another file,
/// by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilePosition {
    /// Name when it was last seen, without directory; for people.
    pub name: String,
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes before this offset were read; never 0.
    pub offset: u64,
    /// Where its first bytes stand that are no NULs.
    pub head_at: u64,
    /// Those bytes.
    pub head: Print,
    /// The bytes before the offset.
    pub tail: Print,
}

impl FilePosition {
    /// Device and inode number.
    pub fn id(&self) -> FileId {
        (self.device, self.inode)
    }
}

/// Some bytes of a file, to know it again. Written as a hash: the log's own bytes would be a copy of what users sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Hash", into = "Hash")]
pub enum Print {
    /// The bytes themselves. They are hashed when they are written, and not at every place that is passed.
    Bytes(Vec<u8>),
    /// Read from a checkpoint.
    Hash(Hash),
}

/// The hash of some bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hash {
    /// How many bytes.
    pub length: usize,
    /// The first half of their SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Print {
    /// The print of these bytes.
    pub fn of(bytes: &[u8]) -> Print {
        Print::Bytes(bytes.to_vec())
    }

    /// Of how many bytes.
    pub fn length(&self) -> usize {
        match self {
            Print::Bytes(bytes) => bytes.len(),
            Print::Hash(hash) => hash.length,
        }
    }

    /// Whether it is the print of these bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        match self {
            Print::Bytes(own) => own == bytes,
            Print::Hash(hash) => *hash == Hash::of(bytes),
        }
    }
}

impl Hash {
    fn of(bytes: &[u8]) -> Hash {
        let hash = Sha256::digest(bytes);
        let sha256 = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Hash { length: bytes.len(), sha256 }
    }
}

impl From<Hash> for Print {
    fn from(hash: Hash) -> Print {
        Print::Hash(hash)
    }
}

impl From<Print> for Hash {
    fn from(print: Print) -> Hash {
        match print {
            Print::Bytes(bytes) => Hash::of(&bytes),
            Print::Hash(hash) => hash,
        }
    }
}

/// The first bytes of a file, but for NULs: a file that was cut begins with a hole, like any other that was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Where they stand.
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl Head {
    /// That of a file of which `end` bytes were read.
    pub(super) fn of(source: &mut Source, end: u64) -> io::Result<Head> {
        let mut head = Head::default();
        let mut block = vec![0; 64 << 10];
        let mut at = source.next_data(0)?;
        while at < end && !head.is_full() {
            let want = block.len().min((end - at) as usize);
            let count = source.read(&mut block[..want], at)?;
            if count == 0 {
                break;
            }
            head.keep(at, &block[..count]);
            at += count as u64;
        }
        Ok(head)
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= HEAD
    }

    /// Takes what belongs to it of a block that was read at `offset`.
    pub(super) fn keep(&mut self, mut offset: u64, mut block: &[u8]) {
        if self.bytes.is_empty() {
            let Some(nuls) = block.iter().position(|byte| *byte != 0) else { return };
            (offset, block) = (offset + nuls as u64, &block[nuls..]);
            self.at = offset;
        }
        if !self.is_full() && self.at + self.bytes.len() as u64 == offset {
            self.bytes.extend_from_slice(&block[..block.len().min(HEAD - self.bytes.len())]);
        }
    }

    /// Forgets what stands behind `end`.
    pub(super) fn truncate(&mut self, end: u64) {
        self.bytes.truncate(usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX));
        if self.bytes.is_empty() {
            self.at = 0;
        }
    }

    /// Whether a file that can be read anywhere begins so. Nothing begins as nothing.
    pub(super) fn begins(&self, source: &mut Source) -> io::Result<bool> {
        let mut now = vec![0; self.bytes.len()];
        Ok(!now.is_empty() && source.read_full(&mut now, self.at)? == now.len() && now == self.bytes)
    }
}

/// A file that was known again, standing at the offset: its first bytes and those before the offset.
pub(super) struct Known {
    pub(super) head: Head,
    pub(super) tail: Vec<u8>,
}

/// What stands before an offset of `source`, unread so far: its first bytes, and `tail` bytes right before the offset.
/// `None` if it does not reach there.
pub(super) fn before(source: &mut Source, offset: u64, tail: usize) -> io::Result<Option<Known>> {
    let (head, tail) = if let Source::Gzip(_) = source {
        let (mut head, mut tail, mut at) = (Head::default(), vec![0; tail], 0);
        let mut block = vec![0; 64 << 10];
        while at < offset {
            let want = block.len().min((offset - at) as usize);
            let count = source.read(&mut block[..want], at)?;
            if count == 0 {
                return Ok(None);
            }
            head.keep(at, &block[..count]);
            at += count as u64;
            tail.extend_from_slice(&block[..count]);
            tail.drain(..count);
        }
        (head, tail)
    } else {
        let mut last = vec![0; tail];
        if source.read_full(&mut last, offset.saturating_sub(tail as u64))? < tail {
            return Ok(None);
        }
        (Head::of(source, offset)?, last)
    };
    Ok(Some(Known { head, tail }))
}

/// Whether `source`, unread so far, is the file of that position.
pub(super) fn recognise(source: &mut Source, position: &FilePosition) -> io::Result<Option<Known>> {
    let known = before(source, position.offset, position.tail.length().min(TAIL))?;
    let is_same = |known: &Known| {
        let head = &known.head;
        head.at == position.head_at && position.head.is_of(&head.bytes) && position.tail.is_of(&known.tail)
    };
    Ok(known.filter(is_same))
}
