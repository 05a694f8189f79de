//! `podsecctl audit scan --json` against podsec's jq filter and against rg, which only counts.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::data::{self, PODSECCTL, needs};
use crate::table::{Bound, Figure, Table, median};

/// What podsec-inotify-check-kubeapi pipes the log through.
const FILTER: &str =
    "select(.responseStatus.code>=400)|[.requestReceivedTimestamp,.sourceIPs[0],.responseStatus.message]";
const ROUNDS: usize = 3;
/// Ours and rg take a fraction of a second, so they are run several times in each round.
const REPEATS: usize = 5;

/// Both logs.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    ["taskset", "jq", "rg", "xz"].into_iter().try_for_each(needs)?;
    compare(table, "audit-large.log (48 % refusals)", &data::large()?, Bound::AtLeast(15.0, 30.0))?;
    compare(table, "one line in 50 a refusal", &data::sparse()?, Bound::AtLeast(50.0, 100.0))
}

fn compare(table: &mut Table, name: &str, log: &Path, bound: Bound) -> Result<(), String> {
    let (mut ours, mut jq, mut rg) = (Vec::new(), Vec::new(), Vec::new());
    // The first reading brings the file into the page cache.
    seconds(&["rg", "-c", "x"], log)?;
    for _ in 0..ROUNDS {
        for _ in 0..REPEATS {
            ours.push(scan(log)?);
            rg.push(seconds(&["rg", "-c", r#""code":[45]"#], log)?);
        }
        jq.push(seconds(&["jq", "-c", FILTER], log)?);
    }
    let (ours, jq, rg) = (median(&ours), median(&jq), median(&rg));
    let text = |time: f64| format!("{time:.3} s");
    let what = format!("scan --json vs jq: {name}");
    table.add(Figure { what, ours: text(ours), peer: text(jq), ratio: jq / ours, bound });
    let what = format!("scan --json vs rg -c: {name}");
    table.add(Figure { what, ours: text(ours), peer: text(rg), ratio: ours / rg, bound: Bound::AtMost(1.0) });
    Ok(())
}

/// How long one scan takes.
pub(crate) fn scan(log: &Path) -> Result<f64, String> {
    seconds(&[PODSECCTL, "audit", "scan", "--json"], log)
}

/// How long a program takes with the log, on one core and with its output to /dev/null.
fn seconds(command: &[&str], log: &Path) -> Result<f64, String> {
    let start = Instant::now();
    let mut pinned = Command::new("taskset");
    let status = pinned.args(["-c", "0"]).args(command).arg(log).stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(start.elapsed().as_secs_f64()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("taskset: {error}")),
    }
}
