//! The rendering of a digest, against the scan of the log that its findings come from.

use std::path::Path;
use std::process::Command;

use crate::data::{self, PODSECCTL, needs};
use crate::table::{Bound, Figure, Table, median};
use crate::world::{self, LineCount};

/// Refused requests in the log.
const REFUSALS: usize = 82_484;
/// How often each is measured.
const ROUNDS: usize = 5;
/// Most memory, in MiB.
const MEMORY: f64 = 32.0;

/// Renders the digest of audit-large, whose spool a tree of its own holds, as often as the log is scanned.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    ["taskset", "python3", "xz"].into_iter().try_for_each(needs)?;
    let log = data::large()?;
    let root = tempfile::tempdir().map_err(|error| error.to_string())?;
    let spool = spool(&log, root.path())?;
    let (mut digests, mut scans, mut peak) = (Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..ROUNDS {
        let (seconds, mebibytes) =
            measure(&["digest", "preview", "--eml", "--root", &root.path().display().to_string()])?;
        digests.push(seconds);
        peak = peak.max(mebibytes);
        scans.push(measure(&["audit", "scan", "--json", &log.display().to_string()])?.0);
    }
    let (digest, scan) = (median(&digests), median(&scans));
    table.add(Figure {
        what: "digest of audit-large.log vs its scan, CPU time".into(),
        ours: format!("{digest:.3} s"),
        peer: format!("{scan:.3} s"),
        ratio: digest / scan,
        bound: Bound::AtMost(1.0),
    });
    table.add(Figure {
        what: "memory, peak of VmRSS while it is rendered".into(),
        ours: format!("{peak:.1} MiB"),
        peer: "-".into(),
        ratio: peak,
        bound: Bound::AtMost(MEMORY),
    });
    table.note(format!("digest: {} MiB of spool, podsecctl digest preview --eml; user and system time", spool >> 20));
    Ok(())
}

/// Has podsecd read the log; the length of the spool that it leaves.
fn spool(log: &Path, root: &Path) -> Result<u64, String> {
    let text = |error: std::io::Error| error.to_string();
    let audit = root.join("etc/kubernetes/audit");
    std::fs::create_dir_all(&audit).and_then(|()| std::fs::copy(log, audit.join("audit.log"))).map_err(text)?;
    let podsecd = world::podsecd(Some(root))?;
    let mut lines = LineCount::default();
    let forbidden_log = root.join(world::FORBIDDEN_LOG.trim_start_matches('/'));
    world::wait_until("the log is read", || lines.of(&forbidden_log) >= REFUSALS)?;
    let spool = root.join("var/lib/podsecd/spool/1.jsonl");
    let length = || spool.metadata().map_or(0, |metadata| metadata.len());
    let mut former = 0;
    world::wait_until("the spool stands", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        former == std::mem::replace(&mut former, length())
    })?;
    drop(podsecd);
    Ok(length())
}

/// CPU time in seconds and the peak of resident memory in MiB, as getrusage(2) tells Python of its children.
fn measure(arguments: &[&str]) -> Result<(f64, f64), String> {
    let script = "import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)";
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "python3", "-c", script, PODSECCTL]).args(arguments);
    let output = command.output().map_err(|error| format!("taskset: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [seconds, kibibytes] if output.status.success() => Ok((seconds, kibibytes / 1024.0)),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
