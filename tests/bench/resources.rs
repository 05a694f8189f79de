//! Memory and idleness of the daemon below a root of its own with the recorded rotated logs and ten containers.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::Duration;

use crate::containers;
use crate::table::{Bound, Figure, Table};
use crate::world::{self, LineCount, Running, wait_until};

/// Refused requests in the rotated logs.
const REFUSALS: usize = 321;
/// The longest line that is kept whole.
const LONGEST_LINE: usize = 16 << 20;
/// How long podsecd may settle after it has read the logs.
const SETTLING: Duration = Duration::from_secs(20);
/// How long it is watched idling: so many of its turns.
const IDLING: Duration = Duration::from_secs(60);
const TURNS: u64 = 4;

/// Resident memory, idle and while a long line passes.
pub(crate) fn memory(table: &mut Table) -> Result<(), String> {
    let node = Node::start()?;
    sleep(SETTLING);
    let idle = node.status_mib("VmRSS:")?;
    table.add(mebibytes("memory, VmRSS idle", idle, 12.0));
    // From here on VmHWM is the peak since now.
    fs::write(format!("/proc/{}/clear_refs", node.podsecd.0.id()), "5").map_err(|error| error.to_string())?;
    let log = node.root.path().join("etc/kubernetes/audit/audit.log");
    let writer = thread::spawn(move || append(&log));
    let (mut lines, mut sampled, mut samples) = (LineCount::default(), idle, 0);
    let mut failure = None;
    wait_until("the long line stands in forbidden.log", || {
        match node.status_mib("VmRSS:") {
            Ok(now) => sampled = sampled.max(now),
            Err(why) => failure = Some(why),
        }
        samples += 1;
        failure.is_some() || lines.of(&node.forbidden_log()) > REFUSALS
    })?;
    failure.map_or(Ok(()), Err)?;
    writer.join().map_err(|_| "the writer failed")?.map_err(|error| error.to_string())?;
    let kernel = node.status_mib("VmHWM:")?;
    sleep(Duration::from_secs(1));
    let after = node.status_mib("VmRSS:")?;
    table.add(mebibytes("memory, VmRSS peak while a line of 16 MiB passes", sampled.max(kernel), 64.0));
    table.note(format!(
        "memory: the peak is {sampled:.1} MiB in {samples} samples, one a millisecond, and {kernel:.1} MiB as the kernel \
         says (VmHWM, which was reset before); a second after the line VmRSS is {after:.1} MiB"
    ));
    Ok(())
}

/// Wake-ups while nothing happens.
pub(crate) fn idle(table: &mut Table) -> Result<(), String> {
    let node = Node::start()?;
    sleep(SETTLING);
    let before = node.switches()?;
    sleep(IDLING);
    let after = node.switches()?;
    let mut by_task = Vec::new();
    let mut sum = 0;
    for (name, count) in &after {
        let former = before.iter().find(|(former, _)| former == name).map_or(0, |(_, count)| *count);
        sum += count - former;
        by_task.push(format!("{name} {}", count - former));
    }
    table.add(Figure {
        what: "idle, voluntary context switches per watchdog turn".into(),
        ours: format!("{sum} in {} s", IDLING.as_secs()),
        peer: format!("{TURNS} turns"),
        ratio: sum as f64 / TURNS as f64,
        bound: Bound::AtMost(2.0),
    });
    table.note(format!("idle, by task: {}", by_task.join(", ")));
    Ok(())
}

fn mebibytes(what: &str, ours: f64, most: f64) -> Figure {
    let what = what.to_owned();
    Figure { what, ours: format!("{ours:.1} MiB"), peer: "-".into(), ratio: ours, bound: Bound::AtMost(most) }
}

/// podsecd in a directory of its own, after it has read the logs.
struct Node {
    podsecd: Running,
    root: tempfile::TempDir,
}

impl Node {
    fn start() -> Result<Node, String> {
        let root = tempfile::tempdir().map_err(|error| error.to_string())?;
        copy_logs(&root.path().join("etc/kubernetes/audit")).map_err(|error| error.to_string())?;
        containers::make_containers(root.path()).map_err(|error| error.to_string())?;
        let node = Node { podsecd: world::podsecd(Some(root.path()))?, root };
        let mut lines = LineCount::default();
        wait_until("the logs are read", || lines.of(&node.forbidden_log()) >= REFUSALS)?;
        wait_until("the lag is 0", || world::has_no_lag(&node.root.path().join("run/podsecd/status.json")))?;
        Ok(node)
    }

    fn forbidden_log(&self) -> PathBuf {
        self.root.path().join(world::FORBIDDEN_LOG.trim_start_matches('/'))
    }

    /// A size of /proc/PID/status.
    fn status_mib(&self, name: &str) -> Result<f64, String> {
        let path = format!("/proc/{}/status", self.podsecd.0.id());
        number(&path, name).map(|kibibytes| kibibytes as f64 / 1024.0)
    }

    /// How often each task went to sleep.
    fn switches(&self) -> Result<Vec<(String, u64)>, String> {
        let tasks = format!("/proc/{}/task", self.podsecd.0.id());
        let mut switches = Vec::new();
        for task in fs::read_dir(&tasks).map_err(|error| format!("{tasks}: {error}"))? {
            let path = task.map_err(|error| error.to_string())?.path();
            let name = fs::read_to_string(path.join("comm")).map_err(|error| error.to_string())?;
            let count = number(&path.join("status").display().to_string(), "voluntary_ctxt_switches:")?;
            switches.push((name.trim().to_owned(), count));
        }
        Ok(switches)
    }
}

/// The number behind a name in a file of /proc.
fn number(path: &str, name: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("{path} has no {name}"))
}

fn copy_logs(to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for log in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/audit/rotated"))? {
        let log = log?;
        if log.path().extension().is_some_and(|extension| extension == "log") {
            fs::copy(log.path(), to.join(log.file_name()))?;
        }
    }
    Ok(())
}

/// Appends a refused request whose line has the greatest length.
fn append(log: &Path) -> std::io::Result<()> {
    let head = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"bench-giant","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/dev/configmaps","verb":"create","user":{"username":"mallory","groups":["dev","system:authenticated"]},"sourceIPs":["127.0.0.1"],"userAgent":"kubectl/v1.31.0","objectRef":{"resource":"configmaps","namespace":"dev","apiVersion":"v1"},"responseStatus":{"metadata":{},"status":"Failure","message":"configmaps is forbidden","reason":"Forbidden","code":403},"requestObject":{"kind":"ConfigMap","apiVersion":"v1","data":{"giant":""#;
    let tail = r#""}},"requestReceivedTimestamp":"2026-11-22T03:07:00.000001Z","stageTimestamp":"2026-11-22T03:07:00.000002Z"}"#;
    let mut line = head.as_bytes().to_vec();
    line.resize(LONGEST_LINE - tail.len(), b'y');
    line.extend_from_slice(tail.as_bytes());
    line.push(b'\n');
    OpenOptions::new().append(true).open(log)?.write_all(&line)
}
