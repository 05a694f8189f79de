//! A world of its own for podsecd: a mount namespace in which /run and /var/lib are empty, and podsecd in it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::data::PODSECD;

/// Says inside of the namespaces which part is to be measured.
pub(crate) const INSIDE: &str = "PODSECD_BENCH_INSIDE";
/// A directory on a disk, where logs lie: not every file system in memory can be read as podsecd reads a log.
const DISK: &str = "PODSECD_BENCH_DISK";
/// Where journald listens.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";
/// The audit log.
pub(crate) const AUDIT_LOG: &str = "/run/bench/audit/audit.log";
/// podsecd's forbidden.log.
pub(crate) const FORBIDDEN_LOG: &str = "/var/lib/podsecd/forbidden.log";

const CONFIG: &str = "/run/bench/podsecd.toml";
const JOURNALD: &str = "/lib/systemd/systemd-journald";
const JOURNALD_CONF: &str = "[Journal]\nStorage=volatile\nRuntimeMaxUse=1G\nRuntimeKeepFree=1M\n\
    RateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nForwardToWall=no\n";

/// Runs this binary again in namespaces of its own, which end with everything in them, and gives the numbers it prints.
pub(crate) fn enter<const COUNT: usize>(part: &str) -> Result<[f64; COUNT], String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("it needs root, for namespaces and mounts".into());
    }
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"]);
    let disk = tempfile::tempdir_in("/var/tmp").map_err(|error| error.to_string())?;
    command.arg(this).env(INSIDE, part).env(DISK, disk.path()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("unshare: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers.try_into() {
        Ok(numbers) if output.status.success() => Ok(numbers),
        _ => Err(format!("{part} failed in its namespace ({}), see above", output.status)),
    }
}

/// Makes the world inside of the namespaces of [`enter`].
pub(crate) fn make() -> Result<(), String> {
    for directory in ["/run", "/var/lib"] {
        let options = ["-t", "tmpfs", "-o", "size=4g,mode=755", "bench", directory];
        match Command::new("mount").args(options).status() {
            Ok(status) if status.success() => {}
            other => return Err(format!("mount of {directory}: {other:?}")),
        }
    }
    let text = |error: std::io::Error| error.to_string();
    let disk = std::env::var_os(DISK).ok_or("no disk")?;
    fs::create_dir("/run/bench").map_err(text)?;
    match Command::new("mount").arg("--bind").arg(disk).arg("/run/bench").status() {
        Ok(status) if status.success() => {}
        other => return Err(format!("mount of /run/bench: {other:?}")),
    }
    for directory in ["/run/bench/audit", "/run/systemd/journal", "/run/systemd/journald.conf.d"] {
        fs::create_dir_all(directory).map_err(text)?;
    }
    fs::write("/run/systemd/journald.conf.d/bench.conf", JOURNALD_CONF).map_err(text)?;
    fs::write(CONFIG, format!("[kubeapi]\naudit-log = \"{AUDIT_LOG}\"\n")).map_err(text)
}

/// A process that ends with its owner.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts podsecd as its unit does; below a root, or in the world.
pub(crate) fn podsecd(root: Option<&Path>) -> Result<Running, String> {
    podsecd_onto(root, Stdio::null())
}

/// The same, with its findings on this terminal if it looks at another tree.
pub(crate) fn podsecd_onto(root: Option<&Path>, output: impl Into<Stdio>) -> Result<Running, String> {
    let mut command = Command::new(PODSECD);
    match root {
        Some(root) => command.arg("--root").arg(root),
        None => command.args(["--config", CONFIG]),
    };
    command.envs([("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("WATCHDOG_USEC", "30000000")]);
    command.env_remove("WATCHDOG_PID").env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
    command.spawn().map(Running).map_err(|error| format!("podsecd: {error}"))
}

/// Starts a real journald in the world.
pub(crate) fn journald() -> Result<Running, String> {
    let _ = fs::remove_file(SOCKET);
    let mut command = Command::new(JOURNALD);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let journald = command.spawn().map(Running).map_err(|error| format!("{JOURNALD}: {error}"))?;
    wait_until("journald listens", || Path::new(SOCKET).exists())?;
    Ok(journald)
}

/// Waits for a condition, looking every millisecond.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() > end {
            return Err(format!("waited in vain until {what}"));
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Counts the lines of a file that grows.
#[derive(Default)]
pub(crate) struct LineCount {
    file: Option<File>,
    count: usize,
}

impl LineCount {
    /// How many lines the file has now; none if it is not there yet.
    pub(crate) fn of(&mut self, path: &Path) -> usize {
        if self.file.is_none() {
            self.file = File::open(path).ok();
        }
        let mut more = Vec::new();
        if let Some(file) = &mut self.file
            && file.read_to_end(&mut more).is_ok()
        {
            self.count += memchr::memchr_iter(b'\n', &more).count();
        }
        self.count
    }
}

/// Whether the status file says that the log is read to its end.
pub(crate) fn has_no_lag(status: &Path) -> bool {
    podsecd::report::status::Status::read(status)
        .is_ok_and(|(status, _)| status.audit_log.file.is_some() && status.audit_log.lag == 0)
}
