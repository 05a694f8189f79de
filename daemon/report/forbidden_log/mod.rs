//! forbidden.log: podsec's list of refused requests, each exactly once.
//!
//! Others may write into its directory (it belongs to u7s-admin) and podsec's own script may still empty it. So the file
//! is never trusted to be what it was: before and after each append its name, identity and length are looked at.

mod delivered;
mod recovery;

use std::borrow::Cow;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use self::recovery::Recovered;
use super::Trouble;
use super::digest::spool::Spooled;
use super::text::shown_json;
use crate::checks::kubeapi::{fields, ids};
use crate::checks::own::ids::{FORBIDDEN_LOG_CHANGED, FORBIDDEN_LOG_UNAVAILABLE};
use crate::config::ForbiddenLog as Limits;
use crate::finding::{FieldName, Finding, Kind, Value};
use crate::watch::follow::{FileId, Print};

/// Where podsec has it, if it is installed.
pub const PODSEC: &str = "/var/lib/podsec/u7s/log/kubeapi/forbidden.log";
/// Where it is else.
pub const OWN: &str = "/var/lib/podsecd/forbidden.log";

/// How many of a file's last bytes help to know it again.
const TAIL: u64 = 64;

/// The line of a refused request: podsec's three elements, and an object with more. `None` for other findings.
pub fn line(finding: &Finding<'_>) -> Option<Vec<u8>> {
    if finding.kind != Kind::Event || !ids::REFUSALS.contains(&finding.id) {
        return None;
    }
    let fields = &finding.fields;
    let text = |name: &FieldName| match fields.get(name) {
        Some(Value::Text(text)) => Some(text.as_ref()),
        // The first of what the client claimed.
        Some(Value::List(list)) => list.first().map(AsRef::as_ref),
        _ => None,
    };
    let code = match fields.get(fields::CODE) {
        Some(Value::Number(code)) => *code,
        _ => 0,
    };
    Some(written(text, code))
}

/// Whether a finding in the spool has a line.
pub fn has_line(finding: &Spooled<'_>) -> bool {
    finding.kind == Kind::Event.as_str() && ids::REFUSALS.iter().any(|id| id.0 == finding.id)
}

/// The line of a refused request in the spool.
pub fn line_of(finding: &Spooled<'_>) -> Vec<u8> {
    let told = &finding.fields;
    let text = |name: &FieldName| {
        let text = [
            (fields::AUDIT_ID, &told.audit_id),
            (fields::REQUEST_RECEIVED, &told.request_received_timestamp),
            (fields::RESOURCE, &told.resource),
            (fields::RESPONSE_MESSAGE, &told.response_message),
            (fields::SOURCE_IP, &told.source_ip),
            (fields::USER, &told.user),
            (fields::VERB, &told.verb),
        ]
        .into_iter()
        .find(|(known, _)| *known == name);
        // The first of what the client claimed.
        let text = text.map_or_else(|| told.forwarded_for.first(), |(_, text)| Some(text));
        text.map(AsRef::as_ref).filter(|text| !text.is_empty())
    };
    written(text, told.code)
}

/// What a line has beyond podsec's three elements.
#[derive(Serialize)]
struct More<'t> {
    #[serde(rename = "auditID")]
    audit_id: Option<&'t str>,
    code: u64,
    resource: Option<&'t str>,
    user: Option<&'t str>,
    verb: Option<&'t str>,
}

fn written<'t>(text: impl Fn(&FieldName) -> Option<&'t str>, code: u64) -> Vec<u8> {
    let source = text(fields::FORWARDED_FOR).or(text(fields::SOURCE_IP));
    let more = More {
        audit_id: text(fields::AUDIT_ID),
        code,
        resource: text(fields::RESOURCE),
        user: text(fields::USER),
        verb: text(fields::VERB),
    };
    let line = (text(fields::REQUEST_RECEIVED), source, text(fields::RESPONSE_MESSAGE), more);
    // Texts and numbers can always be written.
    let mut line = serde_json::to_string(&line).unwrap_or_default();
    if let Cow::Owned(shown) = shown_json(&line) {
        line = shown;
    }
    line.push('\n');
    line.into_bytes()
}

/// How far the file is written, and how to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Its path.
    pub path: PathBuf,
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// Its last bytes.
    pub tail: Print,
    /// How many bytes were written up to there, over all files.
    pub written: u64,
}

/// The open file.
#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    id: FileId,
    length: u64,
}

/// forbidden.log, wherever it is.
#[derive(Debug)]
pub struct ForbiddenLog {
    /// Where it should be, the best place first.
    places: Vec<PathBuf>,
    limits: Limits,
    /// The best place could not be used to the end; it is not tried again before the next start.
    avoid_best: bool,
    current: Option<Current>,
    recovered: Recovered,
    /// How many bytes were written, over all files and whatever became of them. The file ends with the last of them.
    written: u64,
    /// It was never written: what lies in its place then, if it is root's, is podsec-inotify's list, which nobody changed.
    is_first: bool,
    /// A file of whose bytes so many are counted in that already.
    counted: Option<(FileId, u64)>,
    /// What is to be said about it.
    pub troubles: Vec<Trouble>,
}

impl ForbiddenLog {
    /// The log at the first of these places that can be used, as it was at the mark.
    ///
    /// # Errors
    /// What keeps podsecd from seeing what stands behind the mark; may be tried again.
    pub fn new(places: Vec<PathBuf>, limits: Limits, mark: Option<&Mark>) -> io::Result<ForbiddenLog> {
        let written = mark.map_or(0, |mark| mark.written);
        let counted = mark.map(|mark| ((mark.device, mark.inode), mark.length));
        let recovered = mark.map(|mark| Recovered::behind(mark, &places)).transpose()?;
        let (recovered, as_left) = recovered.unwrap_or_default();
        let mut log = ForbiddenLog {
            places,
            limits,
            avoid_best: false,
            current: None,
            recovered,
            written,
            is_first: mark.is_none(),
            counted,
            troubles: Vec::new(),
        };
        if mark.is_some() && !as_left {
            log.changed("it is not as it was left");
        }
        Ok(log)
    }

    /// Changes the limits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Of these lines, those that do not stand in the file already.
    pub fn missing(&mut self, lines: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut missing = Vec::new();
        for line in lines {
            let Err(foreign) = self.recovered.take(&line) else { continue };
            if foreign > 0 {
                self.changed(&format!("{foreign} lines of somebody else were appended"));
            }
            missing.push(line);
        }
        missing
    }

    /// Appends the lines and sees them safely on the disk; all of them, or none.
    ///
    /// # Errors
    /// Those of open(2), write(2) and fdatasync(2). Nothing of the lines is left in the file; try again later.
    pub fn append(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        // Somebody may take the file away while it is written, but not for ever.
        for _ in 0..16 {
            self.look()?;
            let Some(current) = &mut self.current else { continue };
            let before = current.length;
            let fragment = std::mem::take(&mut self.recovered.fragment);
            let ours = fragment.is_empty() || lines[0].starts_with(&fragment);
            current.mend_end(&fragment, &lines[0])?;
            let start = current.length;
            if !ours {
                self.changed("a piece of a line of somebody else was appended");
            }
            let Some(current) = &mut self.current else { continue };
            let bytes = lines.concat();
            if let Err(error) = current.file.write_all(&bytes).and_then(|()| current.file.sync_data()) {
                current.file.set_len(start)?;
                return Err(error);
            }
            current.length += bytes.len() as u64;
            self.written = self.written - before + current.length;
            let file = current.file.try_clone()?;
            if self.is_in_place() {
                return Ok(());
            }
            // They come again in the file that is in place now; where this one is kept, they would stand twice.
            if file.metadata()?.len() == start + bytes.len() as u64 {
                file.set_len(start)?;
            }
        }
        self.leave_best("somebody takes it away again and again");
        Err(io::Error::other("somebody takes the file away again and again"))
    }

    /// Goes on at podsecd's own place: whoever owns the directory of the best one can keep podsecd from writing there, but
    /// not from going on.
    fn leave_best(&mut self, why: &str) {
        self.avoid_best = true;
        self.current = None;
        self.unavailable(Kind::Raised, format!("podsec's forbidden.log is given up until the next start: {why}"));
    }

    /// The mark of the file as it is now.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn mark(&mut self) -> io::Result<Mark> {
        if self.current.is_none() {
            self.open()?;
        }
        let Some(current) = &self.current else { return Err(io::ErrorKind::NotFound.into()) };
        // What a restart would yield again is not covered: after a further restart it will be recovered once more.
        let length = self.recovered.unsettled(current.id).map_or(current.length, |from| from.min(current.length));
        let mut tail = vec![0; length.min(TAIL) as usize];
        let start = length - tail.len() as u64;
        // Somebody may have cut it; then the mark will not match, as it should.
        let _ = current.file.read_exact_at(&mut tail, start);
        let (device, inode) = current.id;
        let path = current.path.clone();
        Ok(Mark {
            path,
            device,
            inode,
            length,
            tail: Print::of(&tail),
            written: self.written - (current.length - length),
        })
    }

    /// Rotates the file if it has reached its size. To be called when all of it is checkpointed; true if it was.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rotate(&mut self) -> io::Result<bool> {
        let Some(current) = &self.current else { return Ok(false) };
        if current.length < self.limits.max_size.get() || self.recovered.unsettled(current.id).is_some() {
            return Ok(false);
        }
        if let Err(error) = shift(&current.path, self.limits.keep) {
            if current.path == self.places[self.places.len() - 1] {
                return Err(error);
            }
            self.leave_best(&format!("cannot rotate it: {error}"));
        }
        self.current = None;
        Ok(true)
    }

    /// Before an append: opens the file if need be, and notices what others did to it.
    fn look(&mut self) -> io::Result<()> {
        if self.current.is_some() && !self.is_in_place() {
            self.current = None;
        }
        if self.current.is_none() {
            return self.open();
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let size = current.file.metadata()?.len();
        let was = std::mem::replace(&mut current.length, size);
        match size.cmp(&was) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => self.changed(&format!("cut from {was} to {size} bytes")),
            std::cmp::Ordering::Greater => {
                self.written += size - was;
                self.changed(&format!("{} bytes of somebody else were appended", size - was));
            }
        }
        Ok(())
    }

    /// Whether the file is still the one of its name, and as long as it should be at least.
    fn is_in_place(&mut self) -> bool {
        let Some(current) = &self.current else { return false };
        let there = current.path.symlink_metadata().is_ok_and(|metadata| {
            (metadata.dev(), metadata.ino()) == current.id && metadata.nlink() == 1 && metadata.is_file()
        });
        if !there {
            self.changed("removed, linked or replaced");
            self.current = None;
        }
        there
    }

    /// Opens the file at the best place that can be used.
    fn open(&mut self) -> io::Result<()> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for (at, path) in self.places.clone().into_iter().enumerate() {
            let best = at == 0;
            if (best && self.avoid_best) || !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match self.open_place(&path) {
                Ok(current) => {
                    if best {
                        self.unavailable(Kind::Cleared, "podsec's forbidden.log can be written".into());
                    }
                    let counted =
                        self.counted.take().filter(|(id, _)| *id == current.id).map_or(0, |(_, length)| length);
                    self.written += current.length.saturating_sub(counted);
                    self.current = Some(current);
                    self.is_first = false;
                    return Ok(());
                }
                // No room is no reason to go elsewhere.
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    return Err(error);
                }
                Err(error) => {
                    if best {
                        self.unavailable(Kind::Raised, format!("cannot write {}: {error}", path.display()));
                    }
                    last = error;
                }
            }
        }
        Err(last)
    }

    fn open_place(&mut self, path: &Path) -> io::Result<Current> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).append(true).custom_flags(flags.bits()).mode(0o600);
        for _ in 0..3 {
            let why = match options.open(path) {
                Ok(file) => {
                    let metadata = file.metadata()?;
                    if is_own(&metadata) {
                        let (id, length) = ((metadata.dev(), metadata.ino()), metadata.len());
                        return Ok(Current { file, path: path.to_path_buf(), id, length });
                    }
                    "not a regular file of podsecd's own with one name".to_owned()
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match options.clone().create_new(true).open(path) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                        // After a crash of the machine the file is to be there as its lines are.
                        _ => File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?,
                    }
                    continue;
                }
                Err(error) => error.to_string(),
            };
            let is_roots = |metadata: Metadata| metadata.is_file() && metadata.nlink() == 1 && metadata.uid() == 0;
            let is_former = self.is_first && path.symlink_metadata().is_ok_and(is_roots);
            // Whatever it is, it is kept beside.
            shift(path, self.limits.keep.max(1))?;
            if !is_former {
                self.changed(&format!("{why}; moved to {}", rotated(path, 1).display()));
            }
        }
        Err(io::Error::other("somebody puts something in its place again and again"))
    }

    fn changed(&mut self, what: &str) {
        // Once for each append says it: whoever does it in a loop must not fill the journal.
        if self.troubles.iter().any(|trouble| trouble.id == FORBIDDEN_LOG_CHANGED) {
            return;
        }
        self.troubles.push(Trouble {
            id: FORBIDDEN_LOG_CHANGED,
            kind: Kind::Event,
            subject: "forbidden.log",
            message: format!("forbidden.log was changed by somebody else: {what}"),
        });
    }

    fn unavailable(&mut self, kind: Kind, message: String) {
        self.troubles.push(Trouble { id: FORBIDDEN_LOG_UNAVAILABLE, kind, subject: "forbidden.log", message });
    }
}

impl Current {
    /// Makes the file end with a newline: cuts off what was torn of the line that comes now, ends what is not ours.
    fn mend_end(&mut self, fragment: &[u8], next: &[u8]) -> io::Result<()> {
        let mut last = [0];
        if self.length == 0 || self.file.read_at(&mut last, self.length - 1)? == 0 || last == *b"\n" {
            return Ok(());
        }
        if !fragment.is_empty() && next.starts_with(fragment) {
            self.length -= fragment.len() as u64;
            return self.file.set_len(self.length);
        }
        self.file.write_all(b"\n")?;
        self.length += 1;
        Ok(())
    }
}

/// Whether it is a regular file of podsecd's own with one name.
fn is_own(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1 && metadata.uid() == nix::unistd::geteuid().as_raw()
}

/// The name of the file that was rotated so many times.
fn rotated(path: &Path, times: u8) -> PathBuf {
    PathBuf::from(format!("{}.{times}", path.display()))
}

/// Rotates: .1 becomes .2 and so on, the file becomes .1; of older ones `keep` are kept.
pub(crate) fn shift(path: &Path, keep: u8) -> io::Result<()> {
    if keep == 0 {
        return std::fs::remove_file(path);
    }
    for times in (1..keep).rev() {
        match std::fs::rename(rotated(path, times), rotated(path, times + 1)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    std::fs::rename(path, rotated(path, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_podsecds_nor_podsec_inotifys_is_kept_beside_and_told_of() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("forbidden.log");
        // One name more: it is not podsecd's own.
        let put = |name: &str| {
            std::fs::write(directory.path().join(name), name).expect("written");
            std::fs::rename(directory.path().join(name), &path).expect("moved");
            std::fs::hard_link(&path, directory.path().join(name)).expect("linked");
        };
        put("a stranger's");
        let mut log = ForbiddenLog::new(vec![path.clone()], Limits::default(), None).expect("readable");
        // At the first start, too.
        for _ in 0..2 {
            log.append(&[b"line\n".to_vec()]).expect("appended");
            assert_eq!(std::fs::read(rotated(&path, 1)).expect("kept"), b"a stranger's");
            let troubles = std::mem::take(&mut log.troubles);
            assert!(troubles.iter().any(|trouble| trouble.id == FORBIDDEN_LOG_CHANGED), "{troubles:?}");
            put("a stranger's");
        }
    }
}
