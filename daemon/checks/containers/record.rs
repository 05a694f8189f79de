//! What is known of programs, of setuid files and of files with capabilities in a store's layers, in memory and on disk: so that
//! what the kernel does not tell is told once, also after a restart, and that it is noticed if one is missing.
//!
//! In memory there is a number for each, with its mode and when it changed. The names are in a file, to which is added what
//! changes, and which is written anew each time when all was looked through.

mod sheet;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FileType;
use uuid::Uuid;

use self::sheet::{Entry, Parts, Sheet};
use crate::version::{self, Unusable};
use crate::watch::tree::{Moment, Stat};

/// Where the files are.
pub const DIRECTORY: &str = "/var/lib/podsecd/containers";
/// So many files of a store are known, and of a layer. Others may be told again, and are not missed.
const MAX_KNOWN: usize = 128 << 10;
const MAX_OF_LAYER: usize = 32 << 10;
/// Longer paths are not known, in bytes.
const MAX_PATH: usize = 4096;
/// So often it is written down that a file changed, at most, if there are not too many.
const PAUSE: Duration = Duration::from_secs(10);
const MAX_DEFERRED: usize = 1024;
/// What is told of a file so soon after another is of the same.
const MOMENT: Duration = Duration::from_secs(2);
/// So many directories that went are remembered.
const MAX_DEPARTED: usize = 1024;
/// The mode of what is there no more, or is to be told whatever it is like.
const GONE: u16 = 0;
/// When it is noted what is still to be told.
const UNTOLD: Moment = Moment::from_nanoseconds(i64::MAX);

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    changed: Moment,
    mode: u16,
    /// When it was noted what is to be told of it; [`Moment::MIN`]: nothing is.
    noted: Moment,
    /// When it was seen last, by number of the seek.
    turn: u8,
}

impl Known {
    /// Whether the file is still that. All that was removed from an image has one inode, which each of them changes.
    pub(super) fn is_same(&self, stat: &Stat) -> bool {
        self.mode == stat.mode && (self.changed == stat.changed || self.is_whiteout())
    }

    /// Whether it is no file, but says that there is none.
    pub(super) fn is_whiteout(&self) -> bool {
        FileType::from_raw_mode(self.mode.into()) == FileType::CharacterDevice
    }
}

/// How it is known how a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Something happened to it.
    Told,
    /// A walk found that something may have.
    Found,
    /// A walk found it in a directory that came.
    Made,
    /// A walk saw it.
    Seen,
}

/// Its layer and its path.
type File = (String, Box<[u8]>);

/// What is known of the programs of a store.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// By layer, and in it by number.
    layers: BTreeMap<String, HashMap<u64, Known>>,
    count: usize,
    /// There are more since all was looked through last.
    is_full: bool,
    /// Nobody can choose paths that have the same number.
    random: RandomState,
    /// All was looked through up to this moment.
    sought: Moment,
    /// All was told up to this moment when it was read.
    told: Moment,
    file: Option<Sheet>,
    /// What is written down later, since when, and when it was noted last.
    deferred: HashMap<File, (Instant, Moment)>,
    /// What is looked through now: from when on, and the file that is written.
    seek: Option<(Moment, Sheet)>,
    turn: u8,
    /// Directories that went from their layers since all was looked through last.
    departed: Vec<File>,
    /// Why it cannot be kept on disk.
    failure: Option<String>,
}

impl Record {
    /// Reads what was kept of a store of which all was told up to that moment. If there is nothing, or nothing of use, all is
    /// looked through from then on.
    pub(super) fn open(directory: &Path, store: &Path, told: Moment) -> Record {
        let sought = told;
        let path = directory.join(file_name(store));
        let mut record = Record {
            path,
            layers: BTreeMap::new(),
            count: 0,
            is_full: false,
            random: RandomState::new(),
            sought,
            told,
            file: None,
            deferred: HashMap::new(),
            seek: None,
            turn: 0,
            departed: Vec::new(),
            failure: None,
        };
        let mut parts = Parts::open(&record.path);
        match parts.as_mut().ok().and_then(Parts::head) {
            Some(sought) => {
                record.sought = sought;
                let (mut length, mut untold) = (0, Vec::new());
                if let Ok(mut parts) = parts {
                    untold.extend(parts.by_ref().filter_map(|entry| record.load(entry)));
                    length = parts.length;
                }
                // What was torn is no part.
                record.file = record.kept(Sheet::append(&record.path, length));
                for Entry { layer, path, changed, .. } in untold {
                    // Until it is told: there may be further restarts.
                    record.write(&layer, &path, Known { noted: UNTOLD, changed, mode: GONE, turn: 0 });
                }
            }
            None => record.file = record.kept(Sheet::create(&record.path, sought)),
        }
        record
    }

    /// Takes in what the file says. Answers what did not come to be told, as far as it knows.
    fn load(&mut self, entry: Entry) -> Option<Entry> {
        let Entry { noted, changed, mode, ref layer, ref path } = entry;
        let known = Known { changed, mode, noted, turn: 0 };
        if noted >= self.told {
            self.insert(layer, path, Known { mode: GONE, noted: UNTOLD, ..known });
            return (noted != UNTOLD).then_some(entry);
        }
        match mode {
            GONE => drop(self.remove(layer, path)),
            _ => drop(self.insert(layer, path, known)),
        }
        None
    }

    /// All that the kernel does not tell was sought up to this moment.
    pub(super) fn sought(&self) -> Moment {
        self.sought
    }

    /// Why it cannot be kept on disk.
    pub(super) fn failure(&self) -> Option<&str> {
        let is_full = self.is_full || self.file.as_ref().is_some_and(|sheet| sheet.is_full);
        self.failure.as_deref().or(is_full.then_some("there are too many"))
    }

    /// Whether all is looked through now.
    pub(super) fn is_seeking(&self) -> bool {
        self.seek.is_some()
    }

    /// Whether a file is known, and is like this.
    pub(super) fn knows(&self, layer: &str, path: &[u8], stat: &Stat) -> bool {
        self.get(layer, path).is_some_and(|known| known.is_same(stat))
    }

    /// Takes in how a file is. Answers whether that is to be told.
    pub(super) fn note(&mut self, layer: &str, path: &[u8], stat: &Stat, how: How) -> bool {
        let former = self.get(layer, path);
        let same = former.filter(|former| former.is_same(stat));
        let now = Moment::at(SystemTime::now());
        let is_news = match how {
            How::Told => true,
            How::Found => same.is_none(),
            // An event may have told a moment ago that it is written to.
            How::Made => same.is_none_or(|same| same.noted <= now && now.since(same.noted) < MOMENT),
            How::Seen => former.is_some() && same.is_none(),
        };
        // Of what is written to all the time not each time is written down.
        let lately = former.filter(|former| {
            is_news && former.mode == stat.mode && former.noted <= now && now.since(former.noted) < PAUSE
        });
        let lately = lately.filter(|_| self.deferred.len() < MAX_DEFERRED);
        let noted = match lately.or(same.filter(|_| !is_news)) {
            Some(former) => former.noted,
            None if is_news => now,
            None => Moment::MIN,
        };
        let known = Known { changed: stat.changed, mode: stat.mode, noted, turn: self.turn };
        if !self.insert(layer, path, known) {
            return is_news;
        }
        if lately.is_some() {
            let deferred = self.deferred.entry((layer.to_owned(), path.into()));
            deferred.or_insert_with(|| (Instant::now(), now)).1 = now;
        } else if is_news || former.is_none() {
            self.write(layer, path, known);
        } else if former.is_some_and(|former| former.turn != self.turn) {
            self.write_anew(layer, path, known);
        }
        is_news
    }

    /// Writes down what was put off for so long.
    fn settle(&mut self, pause: Duration) {
        let due: Vec<_> = self.deferred.extract_if(|_, (since, _)| since.elapsed() >= pause).collect();
        for ((layer, path), (_, noted)) in due {
            let Some(known) = self.get(&layer, &path) else { continue };
            let known = Known { noted, ..known };
            self.insert(&layer, &path, known);
            self.write(&layer, &path, known);
        }
    }

    /// A directory came to that path: what is told of one that went from there does not hold of this one.
    pub(super) fn note_directory(&mut self, layer: &str, path: &[u8]) {
        self.departed.retain(|(of, directory)| of != layer || **directory != *path);
    }

    /// A file is there no more, or a directory with all that is in it.
    pub(super) fn forget(&mut self, layer: &str, path: &[u8], is_directory: bool) {
        if is_directory {
            // What was removed had nothing in it any more.
            let has_any = self.layers.get(layer).is_some_and(|known| !known.is_empty());
            if has_any && self.departed.len() < MAX_DEPARTED {
                self.departed.push((layer.to_owned(), path.into()));
            }
        } else if let Some(former) = self.remove(layer, path) {
            let gone = Known { mode: GONE, noted: Moment::at(SystemTime::now()), ..former };
            self.write(layer, path, gone);
        }
    }

    /// Whether it was told that a file went, as a directory went in which it was.
    pub(super) fn has_departed(&self, layer: &str, path: &[u8]) -> bool {
        let is_below = |directory: &[u8]| path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'));
        self.departed.iter().any(|(of, directory)| of == layer && is_below(directory))
    }

    /// Begins to look all through.
    pub(super) fn begin(&mut self, beginning: Moment) {
        self.turn = self.turn.wrapping_add(1);
        self.is_full = false;
        match Sheet::create(&self.path.with_extension("new"), beginning) {
            Ok(sheet) => self.seek = Some((beginning, sheet)),
            Err(error) => {
                // What there is stays; what is missing is not noticed.
                self.failure = Some(format!("cannot write {}: {error}", self.path.display()));
                self.sought = beginning;
            }
        }
    }

    /// All was looked through. What was not seen is asked for, by layer and path: it answers what there is, if there is any.
    pub(super) fn finish(&mut self, mut ask: impl FnMut(&Record, &str, &[u8], Known) -> Option<Stat>) {
        if self.seek.is_none() {
            return;
        }
        self.settle(Duration::ZERO);
        let Some((beginning, mut sheet)) = self.seek.take() else { return };
        self.flush();
        for Entry { layer, path, .. } in Parts::open(&self.path).into_iter().flatten() {
            let Some(known) = self.get(&layer, &path).filter(|known| known.turn != self.turn) else { continue };
            match ask(self, &layer, &path, known) {
                Some(stat) => {
                    let noted = if known.is_same(&stat) { known.noted } else { Moment::at(SystemTime::now()) };
                    let known = Known { changed: stat.changed, mode: stat.mode, noted, turn: self.turn };
                    self.insert(&layer, &path, known);
                    sheet.add(&layer, &path, &known);
                }
                None => {
                    self.remove(&layer, &path);
                    sheet.add(&layer, &path, &Known { mode: GONE, noted: Moment::at(SystemTime::now()), ..known });
                }
            }
        }
        self.departed.clear();
        self.sought = beginning;
        let length = sheet.length;
        let finished = sheet.finish().and_then(|()| fs::rename(self.path.with_extension("new"), &self.path));
        let appended = finished.and_then(|()| Sheet::append(&self.path, length));
        self.failure = None;
        self.file = self.kept(appended);
    }

    /// Forgets the other layers.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.layers.retain(|layer, _| is_there(layer));
        self.count = self.layers.values().map(HashMap::len).sum();
    }

    /// Hands what was noted to the kernel.
    pub(super) fn flush(&mut self) {
        self.settle(PAUSE);
        let flushed = self.file.as_mut().map_or(Ok(()), |sheet| sheet.writer.flush());
        if let Err(error) = flushed {
            self.fail(&error);
        }
    }

    fn get(&self, layer: &str, path: &[u8]) -> Option<Known> {
        self.layers.get(layer)?.get(&self.random.hash_one(path)).copied()
    }

    /// Answers whether there is room for it.
    fn insert(&mut self, layer: &str, path: &[u8], known: Known) -> bool {
        if !self.layers.contains_key(layer) {
            self.layers.insert(layer.to_owned(), HashMap::new());
        }
        let Some(of_layer) = self.layers.get_mut(layer) else { return false };
        let has_room = self.count < MAX_KNOWN && of_layer.len() < MAX_OF_LAYER && path.len() <= MAX_PATH;
        match of_layer.entry(self.random.hash_one(path)) {
            Place::Occupied(mut former) => drop(former.insert(known)),
            Place::Vacant(place) if has_room => {
                self.count += 1;
                place.insert(known);
            }
            Place::Vacant(_) => {
                self.is_full = true;
                return false;
            }
        }
        true
    }

    fn remove(&mut self, layer: &str, path: &[u8]) -> Option<Known> {
        let former = self.layers.get_mut(layer)?.remove(&self.random.hash_one(path));
        self.count -= usize::from(former.is_some());
        former
    }

    /// Writes down how a file is.
    fn write(&mut self, layer: &str, path: &[u8], known: Known) {
        self.write_anew(layer, path, known);
        let Some(sheet) = &mut self.file else { return };
        sheet.add(layer, path, &known);
        if let Some(error) = sheet.failure.take() {
            self.fail(&error);
        }
    }

    /// Writes it down where all is written anew, if it is.
    fn write_anew(&mut self, layer: &str, path: &[u8], known: Known) {
        if let Some((_, sheet)) = &mut self.seek {
            sheet.add(layer, path, &known);
        }
    }

    fn kept(&mut self, sheet: io::Result<Sheet>) -> Option<Sheet> {
        match sheet {
            Ok(sheet) => Some(sheet),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.file = None;
        self.failure = Some(format!("cannot write {}: {error}", self.path.display()));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.settle(Duration::ZERO);
    }
}

/// Refuses what a newer podsecd kept there.
///
/// # Errors
/// Which file that is.
pub fn refuse_newer(directory: &Path) -> Result<(), Unusable> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        // What has no version is none of ours, or torn.
        if let Some((version, _)) = Parts::open(&path).ok().and_then(|mut parts| parts.version()) {
            version::refuse_newer(&path.display(), version, sheet::VERSION)?;
        }
    }
    Ok(())
}

/// Removes what was kept of other stores.
pub(super) fn tidy<'s>(directory: &Path, stores: impl Iterator<Item = &'s PathBuf>) {
    let kept: Vec<_> = stores.map(|store| OsString::from(file_name(store))).collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !kept.contains(&entry.file_name()) {
            // If it stays, it is of no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The name of a store's file.
fn file_name(store: &Path) -> String {
    format!("{}.programs", Uuid::new_v5(&Uuid::NAMESPACE_URL, store.as_os_str().as_encoded_bytes()))
}
