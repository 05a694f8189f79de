//! `podsecctl audit scan --json` against podsec's jq filter and against rg, which only counts.

use std::path::Path;
use std::process::{Command, Stdio};

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
    measure(&["rg", "-c", "x"], log)?;
    for _ in 0..ROUNDS {
        for _ in 0..REPEATS {
            ours.push(scan(log)?);
            rg.push(measure(&["rg", "-c", r#""code":[45]"#], log)?);
        }
        jq.push(measure(&["jq", "-c", FILTER], log)?);
    }
    let middle = |times: &[Time], of: fn(&Time) -> f64| median(&times.iter().map(of).collect::<Vec<_>>());
    let cpu = |times| middle(times, |time| time.cpu);
    let wall = |times| middle(times, |time| time.wall);
    let text = |time: f64| format!("{time:.3} s");
    let (our_cpu, jq_cpu, rg_cpu) = (cpu(&ours), cpu(&jq), cpu(&rg));
    let what = format!("scan --json vs jq: {name}");
    table.add(Figure { what, ours: text(our_cpu), peer: text(jq_cpu), ratio: jq_cpu / our_cpu, bound });
    let what = format!("scan --json vs rg -c: {name}");
    let (ratio, bound) = (our_cpu / rg_cpu, Bound::AtMost(1.0));
    table.add(Figure { what, ours: text(our_cpu), peer: text(rg_cpu), ratio, bound });
    let (our_wall, jq_wall, rg_wall) = (wall(&ours), wall(&jq), wall(&rg));
    table.note(format!(
        "scan, {name}: CPU time (user and system), because others may use the core. By the clock: {our_wall:.3} s, \
         jq {jq_wall:.3} s ({:.1} times as long), rg {rg_wall:.3} s",
        jq_wall / our_wall
    ));
    Ok(())
}

/// What a run took, in seconds.
#[derive(Clone, Copy)]
pub(crate) struct Time {
    /// By the clock.
    pub(crate) wall: f64,
    /// On the core, user and system.
    pub(crate) cpu: f64,
}

/// What one scan takes.
pub(crate) fn scan(log: &Path) -> Result<Time, String> {
    measure(&[PODSECCTL, "audit", "scan", "--json"], log)
}

/// What a program takes with the log, on one core and with its output to /dev/null; bash reads the clocks.
fn measure(command: &[&str], log: &Path) -> Result<Time, String> {
    let script = r#"TIMEFORMAT="%3R %3U %3S"; { time "$0" "$@" >/dev/null 2>&3; } 3>/dev/null"#;
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", "0", "bash", "-c", script]).args(command).arg(log).stdin(Stdio::null());
    let output = pinned.output().map_err(|error| format!("taskset: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let times: Vec<f64> = text.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    match times[..] {
        [wall, user, system] if output.status.success() => Ok(Time { wall, cpu: user + system }),
        _ => Err(format!("{command:?}: {}: {text}", output.status)),
    }
}
