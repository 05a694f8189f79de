//! Digests: what a period held, as one mail.
//!
//! `period` goes from one to the next, `deadline` says when. `spool` keeps the findings of the period, `summary` groups
//! them (pure), `text` words them, `mail` makes the message and seals it, `outbox` keeps it until it is delivered.

mod deadline;
pub mod mail;
pub mod outbox;
pub mod period;
pub mod spool;
pub mod summary;
pub mod text;

use std::io;
use std::path::Path;
use std::time::SystemTime;

use self::mail::Lines;
use self::summary::Summary;
use crate::config::Config;
use crate::report::checkpoint::State;
use crate::report::forbidden_log;

/// podsecd's spool, beside its other state.
pub const SPOOL: &str = "/var/lib/podsecd/spool";
/// Where digests wait to be delivered.
pub const OUTBOX: &str = "/var/lib/podsecd/outbox";

/// When, where and as which digest a summary is told.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// Number of the digest.
    pub number: u64,
    /// Name of this node.
    pub host: &'a str,
    /// Now.
    pub now: SystemTime,
    /// When the last digest was made, or podsecd first started.
    pub since: SystemTime,
    /// What the checkpoint holds: the conditions that hold now, and where the reading stands.
    pub state: &'a State,
    /// The configuration in force.
    pub config: &'a Config,
    /// How many digests before this one were dropped, because nobody took them.
    pub dropped: u64,
    /// How many findings of the period the spool had no room for.
    pub left_out: u64,
}

/// What a file of the spool holds, and the lines of forbidden.log that it makes. A file that is not there holds nothing.
///
/// # Errors
/// Those of [`spool::read`] and of its entries.
pub fn summarize(spool: &Path) -> io::Result<(Summary, Lines)> {
    let (mut summary, mut lines) = (Summary::default(), Lines::default());
    let read = spool::read(spool, |entry| {
        if forbidden_log::has_line(&entry.finding) {
            lines.add(|| forbidden_log::line_of(&entry.finding))?;
        }
        summary.add(entry.finding);
        Ok(())
    });
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        read => {
            summary.damaged = read.unwrap_or_default();
            Ok((summary, lines))
        }
    }
}
