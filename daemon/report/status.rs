//! The status file: what podsecd knows now, for people, `podsecctl` and monitoring.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::score::Level;

/// Where it is.
pub const PATH: &str = "/run/podsecd/status.json";
/// Its directory.
pub const DIRECTORY: &str = "/run/podsecd";

/// The status. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// podsecd's version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// When it was started.
    pub started: String,
    /// When this was written. The file is touched at every turn, also when nothing in it changed.
    pub updated: String,
    /// Seconds between two turns; a file that was not touched for three of them is stale.
    pub turn: u64,
    /// The checks by name.
    pub checks: BTreeMap<String, CheckStatus>,
    /// Open conditions.
    pub conditions: Vec<Condition>,
    /// The audit log.
    pub audit_log: LogStatus,
    /// Digests; without one nothing is known of them yet.
    pub mail: Option<MailStatus>,
    /// The helpers by name.
    pub helpers: BTreeMap<String, HelperStatus>,
    /// Findings since the start, by id.
    pub counts: BTreeMap<String, u64>,
    /// What could not be judged since the start.
    pub losses: Losses,
}

/// A check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// podsec metric: the sum of the weights of `findings`.
    pub metric: u32,
    /// Its level.
    pub level: Level,
    /// The ids that count now, the heaviest first.
    pub findings: Vec<Counted>,
}

/// An id that counts in a metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The id.
    pub id: String,
    /// Its weight.
    pub weight: u32,
    /// Its level.
    pub level: Level,
    /// What it means.
    pub meaning: String,
    /// When it happened last, or since when the condition holds.
    pub time: String,
}

/// An open condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its id.
    pub id: String,
    /// Whom or what it is about.
    pub subject: String,
    /// Its level.
    pub level: Level,
    /// Its weight.
    pub weight: u32,
    /// Since when it holds.
    pub since: String,
    /// What was said when it was raised.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Where the reading of the audit log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// The file being read.
    pub file: Option<String>,
    /// Bytes of it that were read.
    pub offset: u64,
    /// Bytes of it that were not.
    pub lag: u64,
    /// False: it is not there, and is not expected of this node. A worker has none.
    #[serde(default = "is_expected")]
    pub expected: bool,
    /// When the last refusal happened.
    pub last_refusal: Option<String>,
}

/// An earlier version did not say it.
fn is_expected() -> bool {
    true
}

/// Digests and their delivery. Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailStatus {
    /// Number of the next digest.
    pub next: u64,
    /// When it will be made, if there is something to say.
    pub due: Option<String>,
    /// How many wait to be delivered.
    pub waiting: u64,
    /// Since when the oldest of them does.
    pub waiting_since: Option<String>,
    /// Number of the last one that was delivered.
    pub delivered: Option<u64>,
    /// When that was recorded.
    pub delivered_at: Option<String>,
    /// How many were dropped since.
    pub dropped: u64,
    /// Numbers of those that were refused and are kept aside; the newest hundred.
    pub refused: Vec<u64>,
    /// How many findings of the present period are too many for its digest.
    pub left_out: u64,
}

/// A helper: a process of podsecd's beside the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperStatus {
    /// When it reported last; it does when there is something to report. RFC 3339.
    pub heard: Option<String>,
}

/// What could not be judged since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Bytes of the audit log that are no event.
    pub unreadable_bytes: u64,
    /// How often a part of the log was gone before it was read.
    pub lost_files: u64,
    /// How often somebody changed the log.
    pub tampered: u64,
}

impl Status {
    /// Writes it for everybody to read: temporary file, rename.
    ///
    /// # Errors
    /// Those of open(2), write(2) and rename(2).
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.write_all(b"\n")?;
        std::fs::rename(&temporary, path)
    }

    /// Reads it, with the time since it was last touched, in seconds.
    ///
    /// # Errors
    /// Those of open(2) and read(2); `InvalidData` if it is no status.
    pub fn read(path: &Path) -> io::Result<(Status, u64)> {
        let file = crate::watch::open::open_regular(path)?;
        let touched = file.metadata()?.modified()?;
        let age = SystemTime::now().duration_since(touched).unwrap_or_default().as_secs();
        let status = serde_json::from_reader(io::BufReader::new(file))?;
        Ok((status, age))
    }

    /// Whether the daemon that wrote it seems to be alive.
    pub fn is_fresh(&self, age: u64) -> bool {
        age <= 3 * self.turn.max(1)
    }
}

/// Touches the file.
///
/// # Errors
/// Those of open(2) and futimens(2).
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_modified(SystemTime::now())
}
