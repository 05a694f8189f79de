//! A world of its own for podsecd: namespaces, small file systems and a real journald; nothing of it reaches the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// podsecd's state, on a small file system of its own.
pub(crate) const STATE: &str = "/var/lib/podsecd";
/// The audit log's directory, on a small file system that reuses inodes.
pub(crate) const AUDIT: &str = "/run/torture/audit";
/// podsecd's configuration.
pub(crate) const CONFIG: &str = "/run/torture/podsecd.toml";
/// podsecd's own log.
pub(crate) const STDERR: &str = "/run/torture/podsecd.stderr";

const JOURNALD: &str = "/lib/systemd/systemd-journald";
const JOURNALD_CONF: &str = "[Journal]\nStorage=volatile\nRuntimeMaxUse=1500M\nRuntimeKeepFree=1M\n\
    RateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nForwardToWall=no\n";

/// Says inside of the namespaces which trial is to be run.
pub(crate) const INSIDE: &str = "PODSECD_TORTURE_INSIDE";

/// Why there can be no such world here, if there cannot.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("they need root, for namespaces and mounts".into());
    }
    let found =
        |name: &&str| ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].iter().any(|it| Path::new(it).join(name).exists());
    if let Some(name) = ["unshare", "mount", "strace", "journalctl"].iter().find(|name| !found(name)) {
        return Some(format!("{name} is not installed"));
    }
    (!Path::new(JOURNALD).exists()).then(|| format!("there is no {JOURNALD}"))
}

/// Runs this binary again in namespaces of its own, which end with everything in them.
///
/// # Errors
/// It failed; why stands on standard error.
pub(crate) fn enter(trial: &str, variables: &[(&str, String)]) -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"]);
    command.arg(std::env::current_exe()?).env(INSIDE, trial).envs(variables.iter().map(|(name, value)| (name, value)));
    // Standard output belongs to whoever lists and counts the trials.
    let status = command.stdin(Stdio::null()).stdout(io::stderr()).status().context("cannot run unshare")?;
    ensure!(status.success(), "{trial} failed ({status}), see above");
    Ok(())
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    journald: Child,
}

/// An entry of the journal.
#[derive(Debug)]
pub(crate) struct Entry {
    /// AUDIT_ID.
    pub(crate) audit_id: Option<String>,
    /// K8S_REQUEST_TIMESTAMP.
    pub(crate) received: Option<String>,
    /// PODSEC_FINDING.
    pub(crate) finding: Option<String>,
}

impl World {
    /// Makes the world inside of the namespaces of [`enter`]. podsecd's state has room for so many bytes.
    ///
    /// # Errors
    /// Something cannot be mounted or started.
    pub(crate) fn new(state_size: u64) -> Result<World> {
        for (directory, size) in [("/run", "3g".to_owned()), ("/var/lib", "1m".into()), (STATE, state_size.to_string())]
        {
            fs::create_dir_all(directory)?;
            run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "torture", directory])?;
        }
        fs::create_dir_all(AUDIT)?;
        mount_audit()?;
        fs::create_dir_all("/run/systemd/journald.conf.d")?;
        fs::write("/run/systemd/journald.conf.d/torture.conf", JOURNALD_CONF)?;
        let log = fs::File::create("/run/torture/journald.stderr")?;
        let journald = Command::new(JOURNALD).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let listens = || Path::new("/run/systemd/journal/socket").exists();
        if !wait_until(Duration::from_secs(10), listens) {
            bail!("journald does not start: {}", fs::read_to_string("/run/torture/journald.stderr")?);
        }
        Ok(World { journald })
    }

    /// All that podsecd wrote to the journal.
    ///
    /// # Errors
    /// journald died or cannot be read.
    pub(crate) fn journal(&mut self) -> Result<Vec<Entry>> {
        ensure!(self.journald.try_wait()?.is_none(), "journald died");
        run("journalctl", &["--sync"])?;
        let fields = "--output-fields=AUDIT_ID,K8S_REQUEST_TIMESTAMP,PODSEC_FINDING";
        let arguments = ["-D", "/run/log/journal", "-o", "json", "--all", "--quiet", "--no-pager", fields];
        let output = Command::new("journalctl").args(arguments).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "journalctl: {}", output.status);
        let mut entries = Vec::new();
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let json: serde_json::Value = serde_json::from_slice(line)?;
            let text = |name: &str| json[name].as_str().map(str::to_owned);
            let finding = text("PODSEC_FINDING");
            if finding.is_some() {
                let (audit_id, received) = (text("AUDIT_ID"), text("K8S_REQUEST_TIMESTAMP"));
                entries.push(Entry { audit_id, received, finding });
            }
        }
        Ok(entries)
    }

    /// Copies what explains a failure out of the world, if PODSECD_TORTURE_KEEP is set.
    pub(crate) fn keep(&self, name: &str) {
        if std::env::var_os("PODSECD_TORTURE_KEEP").is_none() {
            eprintln!("set PODSECD_TORTURE_KEEP=1 to keep the files of a failure");
            return;
        }
        let directory = std::env::temp_dir().join(format!("podsecd-torture-{name}"));
        let to = directory.display().to_string();
        let kept = fs::create_dir_all(&directory)
            .map_err(Into::into)
            .and_then(|()| run("cp", &["-a", STATE, AUDIT, CONFIG, STDERR, "/run/log/journal", &to]));
        match kept {
            Ok(()) => eprintln!("the files are kept in {to}"),
            Err(error) => eprintln!("the files cannot be kept in {to}: {error:#}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.journald.kill();
        let _ = self.journald.wait();
    }
}

/// ext4 gives a removed file's inode to the next one. Without it the log's file system is only small.
fn mount_audit() -> Result<()> {
    let image = "/run/torture/audit.img";
    fs::File::create(image)?.set_len(96 << 20)?;
    let ext4 = run("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", image])
        .and_then(|()| run("mount", &["-o", "loop", image, AUDIT]));
    if let Err(error) = ext4 {
        eprintln!("inodes are not reused in this run: {error:#}");
        run("mount", &["-t", "tmpfs", "-o", "size=96m", "torture", AUDIT])?;
    }
    Ok(())
}

/// Fills the file system of `directory` to its last byte, and gives the file that does it.
///
/// # Errors
/// Something else than a full disk.
pub(crate) fn fill(directory: &str) -> Result<PathBuf> {
    use io::Write;
    let path = Path::new(directory).join("filler");
    let mut file = fs::File::create(&path)?;
    for block in [1 << 20, 4096, 1] {
        let block = vec![b'f'; block];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(path)
}

/// Waits for a condition; false if it does not come true in time.
pub(crate) fn wait_until(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), complaint.trim());
    Ok(())
}
