//! What was written to forbidden.log and not checkpointed: a restart yields it again, and it must not be written twice.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Mark, TAIL, is_own, rotated};
use crate::watch::follow::FileId;
use crate::watch::open;

/// How much of a file is searched for lines that a restart would write again. What was not checkpointed is less.
const MAX_SEARCH: u64 = 16 << 20;

/// The lines behind the mark.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// For each line, which of `places` it stands at.
    lines: HashMap<Vec<u8>, VecDeque<usize>>,
    /// In which file and where the lines start, and whether they were yielded again.
    places: Vec<(FileId, u64, bool)>,
    /// A last line without its end.
    pub(super) fragment: Vec<u8>,
    /// In which file and where that starts.
    fragment_at: (FileId, u64),
    /// Every line is either to be yielded again or somebody else's.
    exact: bool,
    /// A line came that does not stand there, so all that do were yielded again.
    passed: bool,
}

impl Recovered {
    /// What stands behind the mark, in its file or in those at `places`; and whether that file is as it was left.
    ///
    /// # Errors
    /// Those of open(2) and read(2), but for what is not there: what is taken for that is written twice.
    pub(super) fn behind(mark: &Mark, places: &[PathBuf]) -> io::Result<(Recovered, bool)> {
        let mut recovered = Recovered::default();
        let whole = |path: &Path| Ok::<_, io::Error>(open_own(path)?.map(|file| (file, 0)));
        let mut sources: Vec<(File, u64)> = Vec::new();
        if let Some(file) = known(&mark.path, mark)? {
            sources.push((file, mark.length));
            recovered.exact = true;
        } else if let Some(file) = known(&rotated(&mark.path, 1), mark)? {
            // Rotated right after the mark: what came after it is in the new file.
            sources.push((file, mark.length));
            sources.extend(whole(&mark.path)?);
            recovered.exact = true;
        } else {
            sources.extend(whole(&mark.path)?);
        }
        let as_left = recovered.exact || mark.length == 0;
        // It is elsewhere now, since podsec was installed or its directory can be used again.
        for place in places.iter().filter(|place| **place != mark.path) {
            sources.extend(whole(place)?);
        }
        if sources.len() > 1 {
            recovered.exact &= sources[1..].iter().all(|(file, _)| file.metadata().is_ok_and(|it| it.len() == 0));
        }
        for (file, from) in sources {
            recovered.read(&file, from)?;
        }
        Ok((recovered, as_left))
    }

    fn read(&mut self, file: &File, from: u64) -> io::Result<()> {
        let metadata = file.metadata()?;
        let (id, size) = ((metadata.dev(), metadata.ino()), metadata.len());
        let start = if self.exact { from } else { from.max(size.saturating_sub(MAX_SEARCH)) };
        let mut bytes = vec![0; size.saturating_sub(start).min(MAX_SEARCH) as usize];
        file.read_exact_at(&mut bytes, start)?;
        let mut at = start;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if line.ends_with(b"\n") {
                self.lines.entry(line.to_vec()).or_default().push_back(self.places.len());
                self.places.push((id, at, false));
            } else {
                self.fragment = line.to_vec();
                self.fragment_at = (id, at);
            }
            at += line.len() as u64;
        }
        Ok(())
    }

    /// Takes a line that was yielded again.
    ///
    /// # Errors
    /// It does not stand there. So many lines of somebody else do.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<(), usize> {
        if let Some(places) = self.lines.get_mut(line) {
            if let Some(place) = places.pop_front() {
                self.places[place].2 = true;
            }
            if places.is_empty() {
                self.lines.remove(line);
            }
            return Ok(());
        }
        self.passed = true;
        if !self.exact {
            return Err(0);
        }
        // All of ours stand before the first that does not.
        let foreign = self.lines.len();
        self.lines.clear();
        Err(foreign)
    }

    /// Where in that file the lines begin that may still be yielded again, if there are any: behind the last that was,
    /// because they come in their order.
    pub(super) fn unsettled(&self, file: FileId) -> Option<u64> {
        let places: Vec<_> = self.places.iter().filter(|(of, ..)| *of == file).collect();
        let settled = places.iter().rposition(|(.., taken)| *taken).map_or(0, |last| last + 1);
        let line = if self.passed { None } else { places.get(settled).map(|(_, start, _)| *start) };
        let fragment = !self.fragment.is_empty() && self.fragment_at.0 == file;
        line.or(fragment.then_some(self.fragment_at.1))
    }
}

/// The file of the mark, if it is at that path and was not changed before the mark.
fn known(path: &Path, mark: &Mark) -> io::Result<Option<File>> {
    let Some(file) = open_own(path)? else { return Ok(None) };
    let metadata = file.metadata()?;
    let mut tail = vec![0; mark.tail.length().min(TAIL as usize)];
    let Some(start) = mark.length.checked_sub(tail.len() as u64) else { return Ok(None) };
    if (metadata.dev(), metadata.ino()) != (mark.device, mark.inode) || metadata.len() < mark.length {
        return Ok(None);
    }
    file.read_exact_at(&mut tail, start)?;
    Ok(mark.tail.is_of(&tail).then_some(file))
}

/// Opens what podsecd wrote, if it is there. Lines that somebody else wrote beforehand must not pass for ours.
pub(super) fn open_own(path: &Path) -> io::Result<Option<File>> {
    let Some(file) = open::open_own(path)? else { return Ok(None) };
    Ok(is_own(&file.metadata()?).then_some(file))
}

/// Whether the file of the mark is at that path.
pub(super) fn is_at(path: &Path, mark: &Mark) -> io::Result<bool> {
    Ok(known(path, mark)?.is_some())
}
