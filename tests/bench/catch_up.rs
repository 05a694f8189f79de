//! The daemon over audit-large.log against a scan of it and a bare loop of the same journal sends to the same journald.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use podsecd::report::{checkpoint::Checkpoint, status};

use crate::table::{Bound, Figure, Table, median};
use crate::world::{self, AUDIT_LOG, FORBIDDEN_LOG, LineCount, SOCKET, wait_until};
use crate::{data, scan};

const ROUNDS: usize = 3;
/// Refused requests in audit-large.log.
const REFUSALS: usize = 82_484;
/// Longer than any entry.
const LONGEST: usize = 256 << 10;
/// The recording ends when nothing came for so long.
const SILENCE: Duration = Duration::from_secs(3);

/// Measures in namespaces of its own.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    ["taskset", "xz", "unshare", "journalctl"].into_iter().try_for_each(data::needs)?;
    data::large()?;
    let [ours, forbidden, scan, sends, count] = world::enter("catch-up")?;
    table.add(Figure {
        what: "catch-up vs scan + bare sends: audit-large.log".into(),
        ours: format!("{ours:.3} s"),
        peer: format!("{:.3} s", scan + sends),
        ratio: ours / (scan + sends),
        bound: Bound::AtMost(1.5),
    });
    table.note(format!(
        "catch-up: by the clock, all files on tmpfs. The last line of forbidden.log stood after {forbidden:.3} s, \
         journal, checkpoint and status file (written every 200 ms at most) had followed after {ours:.3} s; scan {scan:.3} s, {count} sends to a real journald {sends:.3} s"
    ));
    Ok(())
}

/// Measures, and gives the numbers.
pub(crate) fn inside() -> Result<Vec<f64>, String> {
    world::make()?;
    let log = data::large()?;
    fs::copy(log, AUDIT_LOG).map_err(|error| error.to_string())?;
    let entries = record()?;
    let _journald = world::journald()?;
    let (mut ours, mut forbidden, mut scans, mut sends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        sync()?;
        let (last_line, all) = catch_up()?;
        ours.push(all);
        forbidden.push(last_line);
        sync()?;
        sends.push(send(&entries).map_err(|error| format!("{SOCKET}: {error}"))?);
        scans.push(scan::scan(Path::new(AUDIT_LOG))?.wall);
    }
    Ok(vec![median(&ours), median(&forbidden), median(&scans), median(&sends), entries.len() as f64])
}

/// Runs podsecd once before a stand-in for journald, and keeps what it sends.
fn record() -> Result<Vec<Vec<u8>>, String> {
    let text = |error: std::io::Error| format!("{SOCKET}: {error}");
    let socket = UnixDatagram::bind(SOCKET).map_err(text)?;
    socket.set_read_timeout(Some(SILENCE)).map_err(text)?;
    let receiver = thread::spawn(move || {
        let (mut entries, mut buffer) = (Vec::new(), vec![0; LONGEST]);
        while let Ok(length) = socket.recv(&mut buffer) {
            entries.push(buffer[..length].to_vec());
        }
        entries
    });
    catch_up()?;
    let entries = receiver.join().map_err(|_| "the receiver failed")?;
    let refusals =
        entries.iter().filter(|entry| memchr::memmem::find(entry, b"\nPODSEC_FINDING=kubeapi/").is_some()).count();
    if refusals < REFUSALS { Err(format!("{refusals} refusals were sent, not {REFUSALS}")) } else { Ok(entries) }
}

/// How long podsecd takes from its start to the last line of forbidden.log, and until journal, checkpoint and status have
/// followed; in seconds.
fn catch_up() -> Result<(f64, f64), String> {
    let _ = fs::remove_dir_all("/var/lib/podsecd");
    let _ = fs::remove_dir_all("/run/podsecd");
    let start = Instant::now();
    let podsecd = world::podsecd(None)?;
    let mut lines = LineCount::default();
    wait_until("forbidden.log is complete", || lines.of(Path::new(FORBIDDEN_LOG)) >= REFUSALS)?;
    let last_line = start.elapsed();
    wait_until("the journal took everything, too", is_settled)?;
    wait_until("the lag is 0", || world::has_no_lag(Path::new(status::PATH)))?;
    let all = start.elapsed();
    drop(podsecd);
    match lines.of(Path::new(FORBIDDEN_LOG)) {
        REFUSALS => Ok((last_line.as_secs_f64(), all.as_secs_f64())),
        count => Err(format!("forbidden.log has {count} lines, not {REFUSALS}")),
    }
}

/// Whether the checkpoint holds all of forbidden.log: then journald took all of it before.
fn is_settled() -> bool {
    let checkpoint = Checkpoint::load(Path::new("/var/lib/podsecd/checkpoint.json"));
    let mark = checkpoint.ok().flatten().and_then(|checkpoint| checkpoint.forbidden_log);
    mark.is_some_and(|mark| fs::metadata(FORBIDDEN_LOG).is_ok_and(|metadata| metadata.len() == mark.length))
}

/// How long the bare loop takes, in seconds.
fn send(entries: &[Vec<u8>]) -> std::io::Result<f64> {
    let start = Instant::now();
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET)?;
    for entry in entries {
        socket.send(entry)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Waits until journald has taken everything that was sent.
fn sync() -> Result<(), String> {
    match Command::new("journalctl").arg("--sync").status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("journalctl --sync: {other:?}")),
    }
}
