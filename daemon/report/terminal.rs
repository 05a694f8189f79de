//! With `--root`, findings are lines on the terminal and nowhere else.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{Cycle, Reported, journal};
use crate::score::{Scored, rfc3339};

/// A finding as a line: time, id, and the journal's message.
pub fn line(scored: &Scored<'_>) -> String {
    format!("{} {:<27} {}", &rfc3339(scored.finding.time)[..19], scored.finding.id.0, journal::message(scored))
}

/// Writes cycles to standard output as they come, and says up to which one. A terminal may block.
pub fn run(mut cycles: mpsc::Receiver<Arc<Cycle>>, accepted: &watch::Sender<u64>) {
    while let Some(cycle) = cycles.blocking_recv() {
        let mut out = io::stdout().lock();
        for Reported { scored, .. } in &cycle.findings {
            // Whoever closed the terminal does not want to see them.
            let _ = writeln!(out, "{}", line(scored));
        }
        let _ = out.flush();
        accepted.send_replace(cycle.number);
    }
}
