//! The files of one log: the live one, and the backups that rotation made of it.
//!
//! kube-apiserver rotates with lumberjack: `audit.log` is renamed to `audit-2026-11-22T03-05-05.122.log` (UTC), and may
//! be compressed to the same name with `.gz`, which lies beside it until it is complete.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::watch::open::{metadata, open_regular};

/// When a backup was made, as its name says: `2026-11-22T03-05-05.122`. Sorts by time.
pub type Stamp = String;

/// Device and inode number.
pub type FileId = (u64, u64);

/// Where the files of a log are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    live: PathBuf,
    directory: PathBuf,
    stem: String,
    /// With its dot.
    extension: String,
}

/// A backup: its name without directory, and whether only the compressed one is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// File name.
    pub name: String,
    /// Compressed with gzip.
    pub gzip: bool,
}

impl LogFiles {
    /// The files of the log whose live file is `live`.
    pub fn new(live: &Path) -> LogFiles {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        LogFiles {
            directory: live.parent().unwrap_or(Path::new("/")).to_path_buf(),
            stem: text(live.file_stem()),
            extension: live.extension().map_or_else(String::new, |_| format!(".{}", text(live.extension()))),
            live: live.to_path_buf(),
        }
    }

    /// The file that is being written.
    pub fn live(&self) -> &Path {
        &self.live
    }

    /// The directory of all of them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name of the live file without directory.
    pub fn live_name(&self) -> String {
        self.live.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Identity of the file that now has the live name.
    pub fn live_id(&self) -> Option<FileId> {
        metadata(&self.live).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// All backups, the oldest first. Of a backup that lies there plain and compressed, the plain one: the compressed
    /// one may be half-written.
    pub fn backups(&self) -> io::Result<BTreeMap<Stamp, Backup>> {
        let mut backups = BTreeMap::<Stamp, Backup>::new();
        for entry in self.directory.read_dir()? {
            let entry = entry?;
            // A directory or a link with a backup's name is no backup: kube-apiserver renames a regular file.
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some((stamp, gzip)) = self.stamp(&name) else { continue };
            if !gzip || !backups.contains_key(stamp) {
                backups.insert(stamp.to_owned(), Backup { gzip, name });
            }
        }
        Ok(backups)
    }

    /// Stamp of a backup's name, and whether the name is that of a compressed one.
    fn stamp<'n>(&self, name: &'n str) -> Option<(&'n str, bool)> {
        let rest = name.strip_prefix(&self.stem)?.strip_prefix('-')?;
        let (rest, gzip) = rest.strip_suffix(".gz").map_or((rest, false), |rest| (rest, true));
        let stamp = rest.strip_suffix(&self.extension)?;
        let form = b"dddd-dd-ddTdd-dd-dd.ddd";
        let fits = |(byte, form): (u8, &u8)| if *form == b'd' { byte.is_ascii_digit() } else { byte == *form };
        (stamp.len() == form.len() && stamp.bytes().zip(form).all(fits)).then_some((stamp, gzip))
    }

    /// Opens a file of the log's directory by its name.
    pub fn open(&self, name: &str, gzip: bool) -> io::Result<Source> {
        let file = open_regular(&self.directory.join(name))?;
        Ok(if gzip { Source::Gzip(Box::new(MultiGzDecoder::new(file))) } else { Source::Plain(file) })
    }

    /// The name, in the log's directory, of the file with this identity.
    pub fn name_of(&self, id: FileId) -> io::Result<Option<String>> {
        for entry in self.directory.read_dir()? {
            let entry = entry?;
            // d_ino needs no stat, and hints well; the metadata decide.
            use std::os::unix::fs::DirEntryExt;
            if entry.ino() == id.1
                && entry.metadata().is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == id)
                && let Ok(name) = entry.file_name().into_string()
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

/// An open file of the log.
#[derive(Debug)]
pub enum Source {
    /// As kube-apiserver wrote it.
    Plain(File),
    /// Compressed; can only be read from its start to its end.
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Source {
    /// Reads the bytes at `offset`. A compressed file must be read at the offset where it stands.
    pub fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            let result = match self {
                Source::Plain(file) => file.read_at(buffer, offset),
                Source::Gzip(decoder) => decoder.read(buffer),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Fills the buffer from `offset` as far as the file reaches; answers how far.
    pub fn read_full(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Offset of the first byte at `offset` or behind it that is not in a hole; the end of the file if there is none.
    pub fn next_data(&self, offset: u64) -> io::Result<u64> {
        let Source::Plain(file) = self else { return Ok(offset) };
        match lseek(file, offset as i64, Whence::SeekData) {
            Ok(data) => Ok(data as u64),
            Err(Errno::ENXIO) => Ok(file.metadata()?.len().max(offset)),
            // A file system that knows no holes.
            Err(Errno::EINVAL) => Ok(offset),
            Err(error) => Err(error.into()),
        }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        match self {
            Source::Plain(file) => file,
            Source::Gzip(decoder) => decoder.get_ref(),
        }
    }

    /// Device and inode number.
    pub fn id(&self) -> io::Result<FileId> {
        self.file().metadata().map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_known_by_their_names_and_sorted_by_time() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in [
            "audit.log",
            "audit-2026-11-22T03-06-09.302.log.gz",
            "audit-2026-11-22T03-06-08.372.log",
            "audit-2026-11-22T03-06-08.372.log.gz",
            "audit-2026-11-22T03-06-10.282.log",
            "audit-2026-11-22.log",
            "audit-2026-11-22T03-06-10.282.log.tmp",
            "other-2026-11-22T03-06-10.282.log",
            "audit.log.1",
        ] {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        std::fs::create_dir(dir.path().join("audit-9999-11-22T03-06-10.282.log")).expect("made");
        let backups = LogFiles::new(&dir.path().join("audit.log")).backups().expect("listed");
        let names: Vec<_> = backups.values().map(|backup| (backup.name.as_str(), backup.gzip)).collect();
        assert_eq!(
            names,
            [
                ("audit-2026-11-22T03-06-08.372.log", false),
                ("audit-2026-11-22T03-06-09.302.log.gz", true),
                ("audit-2026-11-22T03-06-10.282.log", false),
            ]
        );
    }
}
