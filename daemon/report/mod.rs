//! Where findings go: the journal (or, with `--root`, the terminal), forbidden.log, and the status file.
//!
//! Each has its own queue. `ledger` is the order in which a cycle becomes final, and with it guarantee 1: nothing lost,
//! nothing twice.

pub mod checkpoint;
pub mod digest;
pub mod forbidden_log;
pub mod journal;
pub mod ledger;
pub mod status;
pub mod terminal;
pub mod text;

use crate::score::Scored;

/// What is reported together.
#[derive(Debug)]
pub struct Cycle {
    /// Counts up from 1.
    pub number: u64,
    /// The findings, in order.
    pub findings: Vec<Reported>,
}

impl Cycle {
    /// Its lines of forbidden.log.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        self.findings.iter().filter_map(|reported| forbidden_log::line(&reported.scored.finding)).collect()
    }
}

/// A finding to be reported.
#[derive(Debug)]
pub struct Reported {
    /// The finding with its weight and level.
    pub scored: Scored<'static>,
    /// The metric of its check after it.
    pub metric: u32,
    /// The audit log yields it again after a restart that does not know of it.
    pub again: bool,
}

/// What a report has to say about itself; it becomes a finding of check `self`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One of [`crate::checks::own::ids`].
    pub id: crate::finding::Id,
    /// Event, raised or cleared.
    pub kind: crate::finding::Kind,
    /// What it is about.
    pub subject: &'static str,
    /// One sentence.
    pub message: String,
}
