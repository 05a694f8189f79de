//! The writer of the audit log: what kube-apiserver does to it, and what happens to kube-apiserver.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::events::Event;
use crate::model::Model;
use crate::podsecd::{Checkpoint, live};
use crate::world::{AUDIT, fill};

/// The writer.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    /// The model of what was written.
    pub(crate) model: Model,
    /// Half of a line was written: the rest of it.
    half: Option<(Vec<u8>, Event)>,
    /// Milliseconds on the clock by which backups are named.
    clock: u64,
    /// A backup that is being compressed.
    compressing: Option<PathBuf>,
}

impl Writer {
    /// Begins a log, as kube-apiserver does: at first it appends.
    ///
    /// # Errors
    /// Those of open(2).
    pub(crate) fn new() -> Result<Writer> {
        let file = File::options().create(true).append(true).open(live())?;
        Ok(Writer { file, model: Model::default(), half: None, clock: 0, compressing: None })
    }

    /// Writes a line at once. On a full disk a piece of it stays, and the request is not logged.
    ///
    /// # Errors
    /// Those of write(2) but a full disk.
    pub(crate) fn append(&mut self, event: Event) -> Result<bool> {
        self.finish_half()?;
        let mut written = 0;
        while written < event.line.len() {
            match self.file.write(&event.line[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        if written + 1 == event.line.len() {
            // Only the newline is missing; it is a whole event all the same, which the next one follows.
            self.half = Some((b"\n".to_vec(), event));
            return Ok(false);
        }
        let whole = written == event.line.len();
        if whole {
            self.logged(event);
        }
        Ok(whole)
    }

    /// Writes the beginning of a line; the rest comes later.
    ///
    /// # Errors
    /// Those of write(2).
    pub(crate) fn append_half(&mut self, event: Event, at: usize) -> Result<()> {
        self.finish_half()?;
        self.file.write_all(&event.line[..at])?;
        self.half = Some((event.line[at..].to_vec(), event));
        Ok(())
    }

    /// Writes the beginning of a line that will never be whole, as a full disk leaves it.
    ///
    /// # Errors
    /// Those of write(2).
    pub(crate) fn tear(&mut self, event: &Event, at: usize) -> Result<()> {
        self.finish_half()?;
        Ok(self.file.write_all(&event.line[..at.min(event.line.len() - 2)])?)
    }

    /// Writes the rest of a half line.
    ///
    /// # Errors
    /// Those of write(2).
    pub(crate) fn finish_half(&mut self) -> Result<()> {
        if let Some((rest, event)) = self.half.take() {
            self.file.write_all(&rest)?;
            self.logged(event);
        }
        Ok(())
    }

    fn logged(&mut self, event: Event) {
        if let Some(key) = event.key {
            self.model.expect(key);
        }
    }

    /// Rotates: the file gets another name, and a new one takes its place, which is not opened to append.
    ///
    /// # Errors
    /// Those of rename(2) and open(2).
    pub(crate) fn rotate(&mut self) -> Result<()> {
        self.finish_half()?;
        self.clock += 1 + self.clock % 977;
        let (seconds, millis) = (self.clock / 1000, self.clock % 1000);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let name = format!("audit-2026-11-22T{hours:02}-{minutes:02}-{seconds:02}.{millis:03}.log");
        fs::rename(live(), Path::new(AUDIT).join(name))?;
        self.file = File::create(live())?;
        Ok(())
    }

    /// Goes on with compressing a backup: half of the compressed file, the other half, the end of the plain one.
    ///
    /// # Errors
    /// Those of the files.
    pub(crate) fn compress(&mut self) -> Result<()> {
        let Some(plain) = self.compressing.take() else {
            self.compressing = backups()?.into_iter().find(|path| path.extension().is_some_and(|it| it == "log"));
            return Ok(());
        };
        let compressed = plain.with_extension("log.gz");
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        io::copy(&mut File::open(&plain)?, &mut encoder)?;
        let bytes = encoder.finish()?;
        match fs::metadata(&compressed).map(|metadata| metadata.len() as usize) {
            Err(_) => fs::write(&compressed, &bytes[..bytes.len() / 2])?,
            Ok(length) if length < bytes.len() => fs::write(&compressed, &bytes)?,
            Ok(_) => {
                fs::remove_file(&plain)?;
                return Ok(());
            }
        }
        self.compressing = Some(plain);
        Ok(())
    }

    /// Deletes the backups that podsecd will not need any more, as its checkpoint says.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub(crate) fn delete_read(&mut self) -> Result<()> {
        let Some(newest) = Checkpoint::read().newest_read else { return Ok(()) };
        let last = format!("audit-{newest}.log.gz");
        for path in backups()?.iter().filter(|path| path.file_name().is_some_and(|it| *it <= *last.as_str())) {
            let plain = path.with_extension("").with_extension("log");
            if self.compressing.as_ref().is_none_or(|compressing| ![&plain, path].contains(&compressing)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Cuts the log to a length. A file that is not opened to append then gets a hole.
    ///
    /// # Errors
    /// Those of truncate(2).
    pub(crate) fn cut(&mut self, length: u64) -> Result<()> {
        Ok(File::options().write(true).open(live())?.set_len(length)?)
    }

    /// Removes the log and begins a new one, which then has the same inode if nobody has it open.
    ///
    /// # Errors
    /// Those of unlink(2) and open(2).
    pub(crate) fn begin_anew(&mut self) -> Result<()> {
        fs::remove_file(live())?;
        self.file = File::create("/dev/null")?;
        self.file = File::create(live())?;
        Ok(())
    }

    /// Fills the log's disk while it writes these, and frees it.
    ///
    /// # Errors
    /// Those of the files.
    pub(crate) fn fill_up(&mut self, events: Vec<Event>) -> Result<()> {
        self.finish_half()?;
        let filler = fill(AUDIT)?;
        for event in events {
            self.append(event)?;
            if self.half.is_some() {
                break;
            }
        }
        Ok(fs::remove_file(filler)?)
    }
}

/// The backups, the oldest first.
fn backups() -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(AUDIT)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit-2"));
    let mut backups: Vec<_> = paths.into_iter().filter(named).collect();
    backups.sort();
    Ok(backups)
}
