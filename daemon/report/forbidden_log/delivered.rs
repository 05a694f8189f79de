//! Removes the lines that a delivered digest holds. Later ones stay.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use nix::fcntl::OFlag;

use super::{ForbiddenLog, Mark, recovery};
use crate::watch::follow::Print;

impl ForbiddenLog {
    /// How many bytes were written so far, in whatever file they are.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes were written before the first that is still in the file.
    pub fn first(&self) -> u64 {
        self.written - self.current.as_ref().map_or(0, |current| current.length)
    }

    /// Removes what was written before `end`, a number that [`ForbiddenLog::written`] gave; as far as it is in the file
    /// and was not rotated. To be called when all of the file is checkpointed.
    ///
    /// # Errors
    /// Those of open(2), write(2), fsync(2) and rename(2); nothing is removed then, try again.
    pub fn remove_before(&mut self, end: u64) -> io::Result<()> {
        self.look()?;
        let Some(current) = &self.current else { return Ok(()) };
        let first = self.written - current.length;
        let count = end.saturating_sub(first).min(current.length);
        let mut last = [0];
        let is_settled = self.recovered.unsettled(current.id).is_none();
        if count == 0 || !is_settled || current.file.read_at(&mut last, count - 1)? == 0 || last != *b"\n" {
            // Somebody changed the file: what stands there is not what was delivered.
            return Ok(());
        }
        let temporary = current.path.with_extension("log.new");
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = OFlag::O_NOFOLLOW.bits();
        let mut rest =
            OpenOptions::new().write(true).create_new(true).custom_flags(flags).mode(0o600).open(&temporary)?;
        let mut from: &File = &current.file;
        from.seek(SeekFrom::Start(count))?;
        io::copy(&mut from, &mut rest)?;
        rest.sync_all()?;
        std::fs::rename(&temporary, &current.path)?;
        if let Some(directory) = current.path.parent() {
            File::open(directory)?.sync_all()?;
        }
        let metadata = rest.metadata()?;
        self.counted = Some(((metadata.dev(), metadata.ino()), current.length - count));
        self.current = None;
        // Opened again as whatever is there now, so that the next mark knows it.
        self.look()
    }
}

impl Mark {
    /// The mark as it would be after [`ForbiddenLog::remove_before`], if the file is already as that leaves it: the
    /// removal was recorded, and podsecd ended between it and the next checkpoint.
    ///
    /// # Errors
    /// Those of open(2) and read(2), but for what is not there.
    pub fn after_removal(self, end: u64) -> io::Result<Mark> {
        let count = (end + self.length).saturating_sub(self.written).min(self.length);
        let length = self.length - count;
        if count == 0 || recovery::is_at(&self.path, &self)? {
            return Ok(self);
        }
        let Some(file) = recovery::open_own(&self.path)? else { return Ok(self) };
        let metadata = file.metadata()?;
        if metadata.len() < length {
            return Ok(self);
        }
        let kept = length.min(self.tail.length() as u64) as usize;
        let mut tail = vec![0; kept];
        file.read_exact_at(&mut tail, length - kept as u64)?;
        // Where less is left than the print is of, its length and its owner are all that is known.
        if kept == self.tail.length() && !self.tail.is_of(&tail) {
            return Ok(self);
        }
        let (device, inode) = (metadata.dev(), metadata.ino());
        Ok(Mark { device, inode, length, tail: Print::of(&tail), ..self })
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::ForbiddenLog as Limits;
    use crate::watch::open::tests::fails_without_descriptors;

    fn log(path: &Path, mark: Option<&Mark>) -> ForbiddenLog {
        let places = vec![PathBuf::from("/nowhere/else"), path.to_path_buf()];
        ForbiddenLog::new(places, Limits::default(), mark).expect("readable")
    }

    fn append(log: &mut ForbiddenLog, line: &str) {
        log.append(&[format!("{line}\n").into_bytes()]).expect("appended");
    }

    fn text(path: &Path) -> String {
        std::fs::read_to_string(path).expect("readable")
    }

    #[test]
    fn delivered_lines_go_and_later_ones_stay_also_over_a_restart_in_between() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forbidden.log");
        let mut first = log(&path, None);
        append(&mut first, "one");
        append(&mut first, "two");
        let end = first.written();
        append(&mut first, "three");
        let before = first.mark().expect("a mark");
        first.remove_before(end).expect("removed");
        assert_eq!(text(&path), "three\n");
        assert!(first.troubles.is_empty(), "{:?}", first.troubles);
        // podsecd ended before the next checkpoint.
        let mark = before.after_removal(end).expect("readable");
        let mut second = log(&path, Some(&mark));
        second.remove_before(end).expect("nothing is left to remove");
        append(&mut second, "four");
        assert_eq!(text(&path), "three\nfour\n");
        assert!(second.troubles.is_empty(), "{:?}", second.troubles);
        let end = second.written();
        second.remove_before(end).expect("removed");
        assert_eq!(text(&path), "");
    }

    #[test]
    fn a_file_that_cannot_be_read_at_the_start_is_not_taken_for_one_that_is_not_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forbidden.log");
        let mut log = log(&path, None);
        append(&mut log, "one");
        let mark = log.mark().expect("a mark");
        let (end, limits) = (log.written(), Limits::default());
        assert!(fails_without_descriptors(|| mark.clone().after_removal(end)));
        let elsewhere = Mark { path: dir.path().join("absent"), ..mark.clone() };
        for mark in [&mark, &elsewhere] {
            assert!(fails_without_descriptors(|| ForbiddenLog::new(vec![path.clone()], limits.clone(), Some(mark))));
        }
    }

    #[test]
    fn what_somebody_cut_is_not_taken_for_delivered() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forbidden.log");
        let mut log = log(&path, None);
        append(&mut log, "one");
        let end = log.written();
        File::options().write(true).open(&path).and_then(|file| file.set_len(0)).expect("cut");
        append(&mut log, "two");
        log.remove_before(end).expect("nothing to remove");
        assert_eq!(text(&path), "two\n");
    }

    #[test]
    fn a_stranger_in_the_way_keeps_lines_from_being_removed_but_not_from_being_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forbidden.log");
        let mut log = log(&path, None);
        append(&mut log, "one");
        std::fs::create_dir(path.with_extension("log.new")).expect("made");
        assert!(log.remove_before(log.written()).is_err());
        append(&mut log, "two");
        assert_eq!(text(&path), "one\ntwo\n");
    }
}
