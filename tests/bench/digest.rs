//! The rendering of a digest, against the scan of the log that its findings come from.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::data::{self, PODSECCTL, needs};
use crate::table::{Bound, Figure, Table, median};

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

/// Makes the spool and a checkpoint that names it; the length of the spool.
fn spool(log: &Path, root: &Path) -> Result<u64, String> {
    let state = root.join("var/lib/podsecd");
    let text = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(state.join("spool")).map_err(text)?;
    let mut scan = Command::new(PODSECCTL);
    let output = scan.args(["audit", "scan", "--json"]).arg(log).stderr(Stdio::null()).output().map_err(text)?;
    let mut spool = std::fs::File::create(state.join("spool/1.jsonl")).map_err(text)?;
    for finding in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = [&b"{\"again\":true,\"finding\":"[..], finding, b"}\n"].concat();
        spool.write_all(&line).map_err(text)?;
    }
    use podsecd::report::checkpoint::{Checkpoint, State};
    Checkpoint::new(State::default(), None, Default::default()).save(&state.join("checkpoint.json")).map_err(text)?;
    spool.metadata().map(|metadata| metadata.len()).map_err(text)
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
