//! podsecd as a process, and what it leaves behind.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::model::Key;
use crate::world::{AUDIT, CONFIG, STATE, STDERR, wait_until};

/// So long may it take to catch up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A SIGKILL at the k-th system call of a name, counted per thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Injection {
    /// The system call.
    pub(crate) call: &'static str,
    /// Only on this file.
    pub(crate) path: Option<&'static str>,
    /// At which of them.
    pub(crate) k: u32,
}

/// A running podsecd.
#[derive(Debug)]
pub(crate) struct Podsecd {
    child: Child,
}

impl Podsecd {
    /// Starts it, to be killed by strace if there is an injection.
    ///
    /// # Errors
    /// Those of fork(2) and execve(2).
    pub(crate) fn start(injection: Option<Injection>) -> Result<Podsecd> {
        Podsecd::start_as(&[], injection)
    }

    /// The same with further arguments: a helper.
    ///
    /// # Errors
    /// Those of fork(2) and execve(2).
    pub(crate) fn start_as(arguments: &[&str], injection: Option<Injection>) -> Result<Podsecd> {
        let binary = env!("CARGO_BIN_EXE_podsecd");
        let mut command = match injection {
            None => Command::new(binary),
            Some(Injection { call, path, k }) => {
                let mut command = Command::new("strace");
                // -D: podsecd is our child, and strace is not between us. With --seccomp-bpf nothing is injected.
                command.args(["-D", "-f", "-qq", "-o", "/run/torture/strace.out"]);
                command.args(path.iter().flat_map(|path| ["-P", path]));
                command.arg(format!("--trace={call}")).arg(format!("--inject={call}:signal=KILL:when={k}"));
                command.arg(binary);
                command
            }
        };
        command.args(["--config", CONFIG]).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(File::options().create(true).append(true).open(STDERR)?).spawn();
        Ok(Podsecd { child: child.context("cannot start podsecd")? })
    }

    /// Whether it was killed.
    ///
    /// # Errors
    /// It ended in another way.
    pub(crate) fn is_dead(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else { return Ok(false) };
        if status.signal() == Some(9) {
            return Ok(true);
        }
        let log = fs::read_to_string(STDERR).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        bail!("podsecd ended by itself: {status}; its last words, the last first: {last:#?}")
    }

    /// kill -9.
    ///
    /// # Errors
    /// It had ended already, and not by a kill.
    pub(crate) fn kill(mut self) -> Result<()> {
        if !self.is_dead()? {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// Waits until it has caught up or was killed; true if it was killed.
    ///
    /// # Errors
    /// It ended by itself, or does not catch up.
    pub(crate) fn wait_caught_up(&mut self) -> Result<bool> {
        let mut dead = Ok(false);
        let ended = wait_until(PATIENCE, || {
            dead = self.is_dead();
            !matches!(dead, Ok(false)) || has_caught_up()
        });
        ensure!(
            ended,
            "podsecd does not catch up: {:?}",
            (Checkpoint::read(), fs::metadata(live()).map(|it| it.len()))
        );
        dead
    }
}

impl Drop for Podsecd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the configuration: forbidden.log is rotated at that size.
///
/// # Errors
/// Those of write(2).
pub(crate) fn configure(max_size: &str, keep: u8) -> Result<()> {
    let text = format!(
        "[kubeapi]\naudit-log = \"{}\"\n[forbidden-log]\nmax-size = \"{max_size}\"\nkeep = {keep}\n\
         keep-delivered = true\n[digest]\nperiod = \"300ms\"\noutbox-size = \"4GiB\"\n",
        live().display()
    );
    Ok(fs::write(CONFIG, text)?)
}

/// The audit log.
pub(crate) fn live() -> PathBuf {
    Path::new(AUDIT).join("audit.log")
}

/// forbidden.log.
pub(crate) fn forbidden_log() -> PathBuf {
    Path::new(STATE).join("forbidden.log")
}

/// What the checkpoint says, as far as it matters here.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    /// Inode of the audit file and how far it was read.
    pub(crate) position: Option<(u64, u64)>,
    /// Stamp of the newest backup that was read.
    pub(crate) newest_read: Option<String>,
    /// Inode of forbidden.log and its length.
    pub(crate) mark: Option<(u64, u64)>,
    /// Number of the present digest period.
    pub(crate) period: Option<u64>,
    /// Whether there are findings that are in no digest, or digests of which nothing is recorded.
    pub(crate) has_undelivered: bool,
}

impl Checkpoint {
    /// The checkpoint as it is now; nothing is in it if there is none.
    pub(crate) fn read() -> Checkpoint {
        let bytes = fs::read(Path::new(STATE).join("checkpoint.json")).unwrap_or_default();
        let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let position = &json["state"]["audit_logs"][live().to_string_lossy().as_ref()];
        let (file, mark) = (&position["file"], &json["forbidden_log"]);
        Checkpoint {
            position: file["inode"].as_u64().zip(file["offset"].as_u64()),
            newest_read: position["read"].as_array().and_then(|read| Some(read.last()?.as_str()?.to_owned())),
            period: json["digests"]["spool"]["number"].as_u64(),
            // One that could only say that another was refused waits for something else to say.
            has_undelivered: (json["digests"]["spool"]["length"] != 0 && json["digests"]["urgency"] != "waits")
                || json["digests"]["undelivered"].as_array().is_none_or(|digests| !digests.is_empty()),
            mark: mark["inode"].as_u64().zip(mark["length"].as_u64()),
        }
    }
}

/// Whether the checkpoint is at the end of the audit log. NULs at the end are nothing that was written: a cut leaves them.
pub(crate) fn has_caught_up() -> bool {
    let (Ok(metadata), Ok(content)) = (fs::metadata(live()), fs::read(live())) else { return false };
    let end = content.iter().rposition(|byte| *byte != 0).map(|last| (metadata.ino(), last as u64 + 1));
    Checkpoint::read().position == end
}

/// The rotated forbidden.logs with their numbers, the oldest first.
///
/// # Errors
/// Those of readdir(3).
pub(crate) fn rotated() -> Result<Vec<(u32, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(STATE)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.extend(name.strip_prefix("forbidden.log.").and_then(|number| number.parse().ok()).map(|it| (it, path)));
    }
    files.sort();
    files.reverse();
    Ok(files)
}

/// The requests in a forbidden.log; a last line without its end is left out where that may be.
///
/// # Errors
/// A line is not what podsecd writes.
pub(crate) fn keys(path: &Path, may_be_torn: bool) -> Result<Vec<Key>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| path.display().to_string())?,
    };
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let whole = lines.enumerate().filter(|(_, line)| line.ends_with(b"\n") || !may_be_torn);
    whole.map(|(at, line)| key(line).with_context(|| format!("{}, line {}", path.display(), at + 1))).collect()
}

/// The requests that are to be mailed: in the digests that are not delivered, and in the spool.
///
/// # Errors
/// A digest or a line is not what podsecd writes.
pub(crate) fn unmailed() -> Result<Vec<Key>> {
    let (digests, periods) = (digests()?, periods()?);
    let mut keys = digests.iter().map(|number| keys_of_digest(*number)).collect::<Result<Vec<_>>>()?.concat();
    // What a digest was made of goes when the checkpoint knows of it, or at the next start.
    let present = Checkpoint::read().period;
    for number in periods.iter().filter(|number| Some(**number) >= present && !digests.contains(number)) {
        keys.extend(keys_of_period(*number)?);
    }
    Ok(keys)
}

/// Delivers the digests of the periods that have ended, as podsecd-mail does, while podsecd is down: their room is needed.
/// Answers their requests.
///
/// # Errors
/// As [`unmailed`].
pub(crate) fn deliver() -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    let present = periods()?.pop();
    for number in digests()?.into_iter().filter(|number| present.is_some_and(|present| *number < present)) {
        keys.extend(keys_of_digest(number)?);
        fs::rename(digest(number, "eml"), digest(number, "sent"))?;
    }
    Ok(keys)
}

fn keys_of_digest(number: u64) -> Result<Vec<Key>> {
    let message = fs::read(digest(number, "eml"))?;
    Ok(crate::mailed::read(&message).with_context(|| format!("digest {number}"))?.0)
}

fn period(number: u64) -> PathBuf {
    Path::new(STATE).join(format!("spool/{number}.jsonl"))
}

fn digest(number: u64, what: &str) -> PathBuf {
    Path::new(STATE).join(format!("outbox/{number}.{what}"))
}

/// The periods of which there is a spool, the oldest first.
fn periods() -> Result<Vec<u64>> {
    numbers("spool", ".jsonl")
}

/// The digests that are not delivered, the oldest first.
fn digests() -> Result<Vec<u64>> {
    numbers("outbox", ".eml")
}

fn numbers(directory: &str, ending: &str) -> Result<Vec<u64>> {
    let Ok(entries) = fs::read_dir(Path::new(STATE).join(directory)) else { return Ok(Vec::new()) };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(ending)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn keys_of_period(number: u64) -> Result<Vec<Key>> {
    let path = period(number);
    let mut keys = Vec::new();
    for line in fs::read(&path)?.split_inclusive(|byte| *byte == b'\n') {
        let json: Value = serde_json::from_slice(line).with_context(|| path.display().to_string())?;
        let fields = &json["finding"]["fields"];
        let (id, received) = (fields["auditID"].as_str(), fields["requestReceivedTimestamp"].as_str());
        keys.extend(id.zip(received).map(|(id, received)| Key { id: id.to_owned(), received: received.to_owned() }));
    }
    Ok(keys)
}

/// The request of a line of forbidden.log.
///
/// # Errors
/// It is none that podsecd writes.
pub(crate) fn key(line: &[u8]) -> Result<Key> {
    let text = String::from_utf8_lossy(line);
    let json: Value = serde_json::from_slice(line).with_context(|| format!("no JSON: {text}"))?;
    let (Some(received), Some(id)) = (json[0].as_str(), json[3]["auditID"].as_str()) else {
        bail!("not a line of forbidden.log: {text}")
    };
    ensure!(line.ends_with(b"\n"), "torn: {text}");
    Ok(Key { id: id.to_owned(), received: received.to_owned() })
}
