//! Where podsecd begins to read the audit log after podsec-inotify: behind the event of forbidden.log's last line.
//!
//! That line is `["<requestReceivedTimestamp>","<sourceIPs[0]>","<responseStatus.message>"]`, without the audit's id, so that
//! several events may match it: the stages of one request do, and requests of the same microsecond can. podsecd begins
//! behind the first of them. Behind a later one it could pass over what stands in between and was never told; what
//! podsec-inotify did tell of that is told twice. Where no event matches, all that is there is read. What podsec-inotify passed
//! over by itself before its last line (it loses what comes while the log is rotated) is not found by that.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use memchr::memmem::Finder;
use serde_json::Value;

use super::list;
use super::state::{self, Former, USER};
use crate::checks::kubeapi::event::Event;
use crate::checks::kubeapi::observe::{Seen, look_at};
use crate::config::{Config, Root};
use crate::report::checkpoint::{self, Checkpoint, State};
use crate::report::digest::period;
use crate::report::forbidden_log;
use crate::score::rfc3339;
use crate::watch::follow::{self, LogFiles, Place, Start};
use crate::watch::lines::{MAX_LINE, Piece};
use crate::watch::open::open_regular;
use anyhow::{Context, Result};

/// Where podsec-inotify keeps the time of the last event that it mailed: then forbidden.log is empty.
const LAST_TIME: &str = "/var/lib/podsec/u7s/log/kubeapi/lastTime.log";
/// How much of forbidden.log's end is read at first to find its last line, in bytes.
const LAST: u64 = 64 << 10;
/// The audit log is searched for so long: a gigabyte takes some seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// No time that kube-apiserver writes is longer, in bytes.
const MAX_TIME: usize = 64;

/// Where podsecd begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Where it is, for this reason.
    There(&'static str),
    /// Behind the event that forbidden.log told last, which was received at that time.
    Behind(String, Place),
    /// Where its configuration says, for this reason.
    Configured(Start, String),
}

impl Beginning {
    /// Finds it. `podsecd_runs`: then it is where it is.
    ///
    /// # Errors
    /// The checkpoint, forbidden.log or the audit log cannot be read.
    pub fn find(config: &Config, root: &Root, podsecd_runs: bool) -> Result<Beginning> {
        if podsecd_runs {
            return Ok(Beginning::There("it runs already"));
        }
        let configured = |why: &str| Ok(Beginning::Configured(config.kubeapi.start, why.to_owned()));
        if let Some(checkpoint) = Checkpoint::load(&root.path(checkpoint::PATH))? {
            let knows = checkpoint.state.audit_logs.contains_key(config.kubeapi.audit_log.as_ref());
            return if knows {
                Ok(Beginning::There("it has read it before"))
            } else {
                configured("podsecd ran before, and not with this audit log")
            };
        }
        let told = match Told::find(root)? {
            Ok(told) => told,
            Err(why) => return configured(&why),
        };
        let files = LogFiles::new(&root.path(&config.kubeapi.audit_log));
        let received = Finder::new(&told.received);
        match follow::find(&files, Instant::now() + PATIENCE, |piece| told.place(piece, &received)) {
            Ok(Some(place)) => Ok(Beginning::Behind(told.received, place)),
            Ok(None) => configured("no event in the audit log matches what podsec-inotify told last"),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => configured(&format!(
                "what podsec-inotify told last was not found in the audit log within {} s",
                PATIENCE.as_secs()
            )),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", files.live().display())),
        }
    }

    /// Keeps it for podsecd's first start, as the checkpoint of a podsecd that has told nothing. Where podsecd begins of its
    /// own accord, nothing is to be kept.
    ///
    /// # Errors
    /// The checkpoint cannot be written, or there is one: podsecd was started meanwhile.
    pub fn keep(&self, config: &Config, now: SystemTime) -> Result<()> {
        let Beginning::Behind(_, place) = self else { return Ok(()) };
        let audit_log: PathBuf = config.kubeapi.audit_log.as_ref().to_path_buf();
        let state = State {
            audit_logs: [(audit_log, place.position.clone())].into(),
            history_until: Some(rfc3339(now).into_owned()),
            ..State::default()
        };
        let bytes = serde_json::to_vec(&Checkpoint::new(state, None, period::Mark::default()))?;
        let written = state::write(Path::new(checkpoint::PATH), &bytes, Former::Keep);
        written.with_context(|| format!("cannot write {}", checkpoint::PATH))
    }
}

impl fmt::Display for Beginning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Beginning::There(why) => write!(out, "podsecd goes on where it is in the audit log: {why}"),
            Beginning::Behind(received, Place { file, offset, .. }) => write!(
                out,
                "podsecd begins behind the event that podsec-inotify told last, of {received}: {file} from byte {offset} on"
            ),
            Beginning::Configured(Start::Oldest, why) => {
                write!(out, "podsecd begins at the oldest backup of the audit log: {why}")
            }
            Beginning::Configured(Start::End, why) => {
                write!(out, "podsecd begins at the end of the audit log, as `start` in podsecd.toml says: {why}")
            }
        }
    }
}

/// What is known of the event that podsec-inotify told last.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    received: String,
    /// Not known where only the time was kept.
    source: Option<String>,
    message: Option<String>,
    /// Only in lines of podsecd.
    audit_id: Option<String>,
}

impl Told {
    /// By the last line of forbidden.log; or, where that was mailed and emptied, by the time that podsec-inotify keeps then. Inner
    /// error: why that is not known.
    ///
    /// # Errors
    /// We may not read it.
    fn find(root: &Root) -> Result<Result<Told, String>> {
        // A takeover that failed has put it aside.
        let mut line = last_line(&root.path(forbidden_log::PODSEC));
        if line.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            line = last_line(&root.path(list::aside()));
        }
        match line {
            Ok(Some(line)) => {
                let told = Told::parse(&line);
                return Ok(
                    told.ok_or_else(|| "the last line of forbidden.log is none that podsec-inotify writes".into())
                );
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(error).with_context(|| format!("cannot read {}", forbidden_log::PODSEC));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Ok(Err(format!("forbidden.log cannot be used: {error}")));
            }
            Ok(None) | Err(_) => {}
        }
        let mut time = Vec::new();
        let kept =
            open_podsecs(&root.path(LAST_TIME)).and_then(|file| file.take(MAX_TIME as u64 + 3).read_to_end(&mut time));
        let time = kept.ok().and_then(|_| serde_json::from_slice::<String>(&time).ok());
        let received = time.filter(|time| (1..=MAX_TIME).contains(&time.len()));
        let of = |received| Told { received, source: None, message: None, audit_id: None };
        let why = "podsec-inotify has left no whole line in forbidden.log, and no time in lastTime.log";
        Ok(received.map(of).ok_or_else(|| why.to_owned()))
    }

    /// Reads a line of podsec-inotify, or one of podsecd.
    fn parse(line: &[u8]) -> Option<Told> {
        let line: Vec<Value> = serde_json::from_slice(line).ok()?;
        let (received, source, message, more) = match &line[..] {
            [received, source, message] => (received, source, message, None),
            [received, source, message, more @ Value::Object(_)] => (received, source, message, Some(more)),
            _ => return None,
        };
        // What the event did not have is null.
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Null => Some(String::new()),
            _ => None,
        };
        let received = text(received).filter(|received| (1..=MAX_TIME).contains(&received.len()))?;
        let audit_id = more.and_then(|more| more.get("auditID")?.as_str()).map(str::to_owned);
        Some(Told { received, source: Some(text(source)?), message: Some(text(message)?), audit_id })
    }

    fn is_of(&self, event: &Event<'_>) -> bool {
        let is_same = || match &self.audit_id {
            // podsecd shortens long texts.
            Some(id) => event.audit_id == *id,
            None => {
                let source = event.source_ips.first().map_or("", AsRef::as_ref);
                self.source.as_ref().is_none_or(|its| *its == source)
                    && self.message.as_ref().is_none_or(|its| event.response.message == *its)
            }
        };
        event.request_received == self.received && is_same()
    }

    /// Where to go on if its event is in this piece of the audit log. `received` finds the time of the event, which most
    /// lines do not have.
    fn place(&self, piece: Piece<'_>, received: &Finder<'_>) -> Option<u64> {
        let Piece::Line { offset, bytes } = piece else { return None };
        received.find(bytes)?;
        let (mut is_found, mut is_last) = (false, true);
        look_at(piece, |seen| match seen {
            _ if is_found => is_last = false,
            Seen::Refused(event) => is_found = self.is_of(&event),
            Seen::Unreadable { .. } => {}
        });
        // After a full disk there may be further events on the line; they were not told for sure.
        is_found.then(|| if is_last { offset + bytes.len() as u64 + 1 } else { offset })
    }
}

/// The last whole line of a file, without its newline; `None` if there is none, or it is longer than any of the audit log.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = open_podsecs(path)?;
    let size = file.metadata()?.len();
    for most in [LAST, MAX_LINE as u64] {
        let start = size.saturating_sub(most);
        let mut bytes = vec![0; (size - start) as usize];
        file.read_exact_at(&mut bytes, start)?;
        let Some(end) = memchr::memrchr(b'\n', &bytes) else { continue };
        match memchr::memrchr(b'\n', &bytes[..end]) {
            Some(before) => return Ok(Some(bytes[before + 1..end].to_vec())),
            None if start == 0 => return Ok(Some(bytes[..end].to_vec())),
            None => {}
        }
    }
    Ok(None)
}

/// Opens what podsec-inotify, which runs as root, or podsecd has written. The directory is u7s-admin's, who may put something else
/// there: then podsecd would pass over what nobody told.
fn open_podsecs(path: &Path) -> io::Result<File> {
    let file = open_regular(path)?;
    let metadata = file.metadata()?;
    let own = nix::unistd::geteuid().as_raw();
    let podsecd = || nix::unistd::User::from_name(USER).ok().flatten().map(|user| user.uid.as_raw());
    let is_theirs = [0, own].contains(&metadata.uid()) || podsecd() == Some(metadata.uid());
    if !is_theirs || metadata.nlink() != 1 {
        return Err(io::Error::other("it is not a file of root's or podsecd's with one name"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
