//! What a restart needs to know, written so that a crash at any instant leaves the former or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::period;
use super::forbidden_log::Mark;
use crate::checks::controlplane::seen::Role;
use crate::checks::forwards::forward::Forward;
use crate::checks::kubeapi::assess::Started;
use crate::finding::Id;
use crate::score::Open;
use crate::version::{self, Unusable, Version};
use crate::watch::follow::Position;
use crate::watch::open::open_regular;

/// podsecd's checkpoint.
pub const PATH: &str = "/var/lib/podsecd/checkpoint.json";
/// Version of this file's format, and of all else that is kept beside it: spool, outbox, programs. It is read before any of
/// those is touched; a newer one is refused, an older one would be read and converted.
const VERSION: u32 = 1;

/// What the reports bring to its end: everything before it is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Where each audit log is to be read on: the one that is followed, and those that were, by their paths.
    pub audit_logs: BTreeMap<PathBuf, Position>,
    /// Refused requests whose other stage may still come.
    pub started: Started,
    /// Open conditions.
    pub open: Vec<Open>,
    /// The last event of each id, for the metrics: RFC 3339.
    pub recent: BTreeMap<String, String>,
    /// Events before this time are history: RFC 3339.
    pub history_until: Option<String>,
    /// How many users the shares of check `policy` are of.
    #[serde(default)]
    pub podman_users: usize,
    /// Up to which moments the changes in the stores of containers were told, by their paths: nanoseconds since 1970.
    #[serde(default)]
    pub stores: BTreeMap<PathBuf, i64>,
    /// Likewise their starts and stops.
    #[serde(default)]
    pub lives: BTreeMap<PathBuf, i64>,
    /// The forwards that the administrator added.
    #[serde(default)]
    pub forwards: BTreeSet<Forward>,
    /// There was an audit log that could be read.
    #[serde(default)]
    pub audit_log_seen: bool,
    /// What the node was by its manifests, if that was seen.
    #[serde(default)]
    pub role: Option<Role>,
}

impl State {
    /// Whether a condition of that id is open. Whoever raises it clears it after a restart, too.
    pub fn is_open(&self, id: Id) -> bool {
        self.open.iter().any(|open| open.id == id.0)
    }
}

/// The checkpoint file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    version: Version<VERSION>,
    /// State of the checks.
    pub state: State,
    /// How far forbidden.log is written.
    pub forbidden_log: Option<Mark>,
    /// How far digests are.
    #[serde(default)]
    pub digests: period::Mark,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}; see that it is a regular file of podsecd's user")]
    Io(String, #[source] io::Error),
    /// It is not a checkpoint, or a newer podsecd's.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl Checkpoint {
    /// Reads the checkpoint; `None` at the first start.
    pub fn load(path: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
        let mut bytes = Vec::new();
        match open_regular(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => drop(other.map_err(|error| CheckpointError::Io(path.display().to_string(), error))?),
        }
        let then = "podsecd begins anew at the oldest backup of the audit log";
        Ok(Some(version::read(path, &bytes, VERSION, then)?))
    }

    /// The checkpoint of this state.
    pub fn new(state: State, forbidden_log: Option<Mark>, digests: period::Mark) -> Checkpoint {
        Checkpoint { version: Version::default(), state, forbidden_log, digests }
    }

    /// Writes it: temporary file, fsync, rename, fsync of the directory.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_others_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("checkpoint.json");
        assert!(Checkpoint::load(&path).expect("none").is_none());
        let state = State { history_until: Some("1970-01-01T00:00:00Z".into()), ..State::default() };
        let checkpoint = Checkpoint::new(state, None, period::Mark::default());
        checkpoint.save(&path).expect("saved");
        assert_eq!(Checkpoint::load(&path).expect("read"), Some(checkpoint));
        let whole = std::fs::read_to_string(&path).expect("text");
        let unknown = |before: &str| whole.replacen(before, &format!("\"new\":1,{before}"), 1);
        for (text, words) in [
            ("{\"version\":2}".to_owned(), "is of version 2"),
            (unknown("\"version\""), "unknown field `new`"),
            (unknown("\"audit_logs\""), "unknown field `new`"),
            (unknown("\"undelivered\""), "unknown field `new`"),
            ("{\"version\":1}".to_owned(), "missing field"),
            (String::new(), "is damaged"),
            (whole[..whole.len() / 2].to_owned(), "is damaged"),
        ] {
            std::fs::write(&path, &text).expect("written");
            let refused = Checkpoint::load(&path).expect_err(&text).to_string();
            assert!(refused.contains(words) && refused.contains("checkpoint.json"), "{refused}");
            assert_eq!(std::fs::read_to_string(&path).expect("text"), text, "it stays");
        }
    }
}
