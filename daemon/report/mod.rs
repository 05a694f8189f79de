//! Where findings go: the journal (or, with `--root`, the terminal), forbidden.log, and the status file.
//!
//! Each has its own queue. `ledger` is the order in which a cycle becomes final, and with it guarantee 1: nothing lost,
//! nothing twice.

pub mod checkpoint;
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
    /// The findings, in order, each with the metric of its check after it.
    pub findings: Vec<(Scored<'static>, u32)>,
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
