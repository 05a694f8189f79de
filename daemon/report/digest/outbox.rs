//! The outbox: digests that are frozen and wait to be delivered, a file each, named after its number.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config;
use crate::watch::open::open_own;

/// The directory of frozen digests.
#[derive(Clone, Debug)]
pub struct Outbox(PathBuf);

/// What the files of digests are called that wait.
const FROZEN: &str = ".eml";
/// Of those that were refused.
const REFUSED: &str = ".refused";
/// Of those that were delivered, whole or without their attachment.
const SENT: &str = ".sent";
const SENT_BARE: &str = ".sent-bare";

/// Within so many bytes a digest says its number.
const MAX_HEAD: u64 = 64 << 10;

/// What became of a frozen digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is still to be delivered.
    Waits,
    /// It was delivered.
    Sent,
    /// It was delivered without its attachment.
    SentBare,
    /// It was refused, and is set aside.
    Refused,
    /// It was dropped.
    Gone,
}

/// A frozen digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Its number.
    pub number: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// When it was frozen.
    pub time: SystemTime,
}

impl Outbox {
    /// The outbox in that directory, which is made if need be.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn open(directory: &Path) -> io::Result<Outbox> {
        fs::create_dir_all(directory)?;
        // podsecd-mail, which is of our group, renames what it delivered.
        fs::set_permissions(directory, Permissions::from_mode(0o770))?;
        Ok(Outbox::at(directory))
    }

    /// The outbox in a directory that is there.
    pub fn at(directory: &Path) -> Outbox {
        Outbox(directory.to_path_buf())
    }

    /// Where a digest stands that was delivered, and is not yet recorded as that; `bare`: without its attachment.
    fn sent_path(&self, number: u64, bare: bool) -> PathBuf {
        self.0.join(format!("{number}{}", if bare { SENT_BARE } else { SENT }))
    }

    /// Says that a digest was delivered; `bare`: without its attachment.
    ///
    /// # Errors
    /// Those of rename(2) and fsync(2).
    pub fn mark_sent(&self, number: u64, bare: bool) -> io::Result<()> {
        fs::rename(self.path(number), self.sent_path(number, bare))?;
        self.sync()
    }

    /// What became of a digest that was frozen.
    ///
    /// # Errors
    /// Those of lstat(2), but for what is not there.
    pub fn fate(&self, number: u64) -> io::Result<Fate> {
        // In this order: it is renamed from the first to one of the others.
        for (path, fate) in [
            (self.path(number), Fate::Waits),
            (self.sent_path(number, false), Fate::Sent),
            (self.sent_path(number, true), Fate::SentBare),
            (self.refused_path(number), Fate::Refused),
        ] {
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_file() => return Ok(fate),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Fate::Gone)
    }

    /// Sets a digest aside that was refused.
    ///
    /// # Errors
    /// Those of rename(2) and fsync(2).
    pub fn set_aside(&self, number: u64) -> io::Result<()> {
        fs::rename(self.path(number), self.refused_path(number))?;
        self.sync()
    }

    /// Has what was set aside tried again; answers how many there are.
    ///
    /// # Errors
    /// Those of readdir(3) and rename(2).
    pub fn retry_refused(&self) -> io::Result<usize> {
        let refused = self.list(REFUSED)?;
        for frozen in &refused {
            fs::rename(self.refused_path(frozen.number), self.path(frozen.number))?;
        }
        Ok(refused.len())
    }

    fn refused_path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number}{REFUSED}"))
    }

    /// Numbers of the digests that were delivered, the oldest first.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn sent(&self) -> io::Result<Vec<u64>> {
        let mut sent = [self.list(SENT)?, self.list(SENT_BARE)?].concat();
        sent.sort_by_key(|frozen| frozen.number);
        Ok(sent.into_iter().map(|frozen| frozen.number).collect())
    }

    /// Forgets a digest that was delivered.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn forget(&self, number: u64) -> io::Result<()> {
        remove(&self.sent_path(number, false))?;
        remove(&self.sent_path(number, true))
    }

    /// Whether a digest of that number was frozen and is not yet recorded as delivered. Only what podsecd itself made as
    /// that counts: others may write here, too, and give its files other names.
    ///
    /// # Errors
    /// Those of open(2) and read(2), but for what is not there.
    pub fn holds(&self, number: u64) -> io::Result<bool> {
        let [sent, sent_bare] = [false, true].map(|bare| self.sent_path(number, bare));
        for path in [self.path(number), self.refused_path(number), sent, sent_bare] {
            if let Some(file) = open_own(&path)?
                && starts_as(file, number)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Something that podsecd-mail.path takes for a digest and that is none, if there is something.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn stranger(&self) -> io::Result<Option<PathBuf>> {
        // In this order: one that is frozen meanwhile is none.
        let paths = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let digests: Vec<_> = self.frozen()?.iter().map(|frozen| self.path(frozen.number)).collect();
        let is_taken = |path: &PathBuf| path.as_os_str().as_encoded_bytes().ends_with(FROZEN.as_bytes());
        Ok(paths.into_iter().filter(is_taken).find(|path| !digests.contains(path)))
    }

    /// Numbers of the digests that were refused and are kept aside, the oldest first.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn refused(&self) -> io::Result<Vec<u64>> {
        Ok(self.list(REFUSED)?.into_iter().map(|frozen| frozen.number).collect())
    }

    /// The file of a digest.
    pub fn path(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number}{FROZEN}"))
    }

    /// Freezes a digest: from now on nothing about it changes.
    ///
    /// # Errors
    /// Those of open(2), write(2), fsync(2) and rename(2); then it is not frozen.
    pub fn freeze(&self, number: u64, message: &[u8]) -> io::Result<()> {
        let (path, temporary) = (self.path(number), self.0.join("new"));
        // podsecd-mail, which has the network, may write here, too: whatever it put there is not followed.
        remove(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&temporary)?;
        let mode = Permissions::from_mode(0o640);
        file.set_permissions(mode)
            .and_then(|()| file.write_all(message))
            .and_then(|()| file.sync_all())
            .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        fs::rename(&temporary, path)
    }

    /// Sees the names of what was frozen and removed safely on the disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    /// What is frozen, the oldest first.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn frozen(&self) -> io::Result<Vec<Frozen>> {
        self.list(FROZEN)
    }

    fn list(&self, suffix: &str) -> io::Result<Vec<Frozen>> {
        let mut frozen = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| number(name.strip_suffix(suffix)?));
            // What is no file is no digest, and could not be removed as one.
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file);
            if let (Some(number), Some(metadata)) = (number, metadata) {
                let time = metadata.modified()?;
                frozen.push(Frozen { number, length: metadata.len(), time });
            }
        }
        frozen.sort_by_key(|frozen| frozen.number);
        Ok(frozen)
    }

    /// How long the digests are in all that wait or were set aside, in bytes.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn size(&self) -> io::Result<u64> {
        Ok([self.frozen()?, self.list(REFUSED)?].concat().iter().map(|frozen| frozen.length).sum())
    }

    /// Which digests are to be dropped, because nobody took them for too long or there is too much of them; the oldest
    /// first, and what was set aside among them. The youngest is never dropped.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn superfluous(&self, limits: &config::Digest, now: SystemTime) -> io::Result<Vec<Frozen>> {
        let mut frozen = [self.frozen()?, self.list(REFUSED)?].concat();
        frozen.sort_by_key(|frozen| frozen.number);
        let mut size: u64 = frozen.iter().map(|frozen| frozen.length).sum();
        frozen.pop();
        let kept = frozen.iter().position(|frozen| {
            let much = size > limits.outbox_size.get();
            size -= frozen.length;
            // One from the future is not too old: the clock was set back.
            let old = now.duration_since(frozen.time).is_ok_and(|age| age > limits.outbox_age.get());
            !much && !old
        });
        frozen.truncate(kept.unwrap_or(frozen.len()));
        Ok(frozen)
    }

    /// Removes a digest; it is none if it is not there.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn remove(&self, number: u64) -> io::Result<()> {
        remove(&self.path(number))?;
        remove(&self.refused_path(number))
    }
}

/// The number, as podsecd writes it: `7`, and not `07` or `+7`.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Whether a message was made as the digest of that number.
fn starts_as(file: File, number: u64) -> io::Result<bool> {
    let mut head = Vec::new();
    file.take(MAX_HEAD).read_to_end(&mut head)?;
    Ok(super::mail::number(&head) == Some(number))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // A directory is none of ours, and stays.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::open::tests::fails_without_descriptors;

    #[test]
    fn a_clock_that_was_set_back_drops_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::open(dir.path()).expect("made");
        (1..4).for_each(|number| outbox.freeze(number, b"digest").expect("frozen"));
        let limits = config::Config::default().digest;
        let before = SystemTime::now() - std::time::Duration::from_secs(3600);
        assert_eq!(outbox.superfluous(&limits, before).expect("listed"), []);
    }

    #[test]
    fn what_podsecd_mail_may_put_there_is_neither_followed_nor_taken_for_a_digest() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::open(&dir.path().join("outbox")).expect("made");
        let state = dir.path().join("checkpoint.json");
        fs::write(&state, "state").expect("written");
        std::os::unix::fs::symlink(&state, dir.path().join("outbox/new")).expect("linked");
        std::os::unix::fs::symlink(&state, dir.path().join("outbox/7.sent")).expect("linked");
        fs::create_dir(dir.path().join("outbox/8.sent")).expect("made");
        fs::create_dir(dir.path().join("outbox/1.refused")).expect("made");
        outbox.freeze(1, b"digest").expect("frozen");
        assert_eq!(fs::read_to_string(&state).expect("readable"), "state");
        assert_eq!(fs::read_to_string(outbox.path(1)).expect("readable"), "digest");
        assert_eq!(outbox.sent().expect("listed"), Vec::<u64>::new());
        outbox.remove(1).expect("removed");
    }

    #[test]
    fn only_what_has_the_name_of_a_digest_is_one_and_the_rest_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::open(dir.path()).expect("made");
        outbox.freeze(7, b"digest").expect("frozen");
        assert_eq!(outbox.stranger().expect("listed"), None);
        for name in ["7-copy.eml", "007.eml", "+7.eml", ".eml", "x.eml", "99999999999999999999.eml"] {
            fs::write(dir.path().join(name), "x").expect("written");
            assert_eq!(outbox.stranger().expect("listed"), Some(dir.path().join(name)));
            assert_eq!(outbox.frozen().expect("listed").len(), 1, "{name}");
            fs::remove_file(dir.path().join(name)).expect("removed");
        }
        fs::create_dir(dir.path().join("8.eml")).expect("made");
        assert_eq!(outbox.stranger().expect("listed"), Some(dir.path().join("8.eml")));
    }

    #[test]
    fn a_digest_under_the_name_of_another_is_not_that() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::open(dir.path()).expect("made");
        let message = "Subject: x\r\nMessage-ID: <podsecd.7.1790000000.0123@node>\r\n\r\n";
        outbox.freeze(7, message.as_bytes()).expect("frozen");
        let held = || [7, 8].map(|number| outbox.holds(number).expect("readable"));
        assert_eq!(held(), [true, false]);
        fs::rename(outbox.path(7), outbox.path(8)).expect("renamed");
        assert_eq!(held(), [false, false]);
    }

    #[test]
    fn an_outbox_that_cannot_be_read_is_not_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let outbox = Outbox::open(dir.path()).expect("made");
        outbox.freeze(7, b"digest").expect("frozen");
        assert!(fails_without_descriptors(|| outbox.holds(7)));
        let unreadable = Outbox::at(&dir.path().join("x".repeat(300)));
        assert!(unreadable.fate(7).is_err());
    }
}
