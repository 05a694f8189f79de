//! The test node: Debian 12 with systemd as PID 1 in systemd-nspawn, our files installed where an RPM would put them.
//!
//! `build` makes its root, once; `hold` boots a node and takes it down; this file starts `hold` and talks to the node.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::{net::UnixDatagram, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// A running node. Dropping it takes it down; nothing of it outlives the test process, however that ends.
pub(crate) struct Node {
    /// `hold`: the node lives as long as the standard input of this process is open.
    holder: Child,
    init: Option<u32>,
    root: PathBuf,
    /// What nspawn and the node's systemd print; without a name, so that nothing can be left over.
    console: File,
}

impl Node {
    /// Why no node can run on this machine, with the remedy; `None` if one can.
    pub(crate) fn missing() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            let reason = "it needs root, for mounts and namespaces: run the tests as root";
            return Some(reason.to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |tool: &&str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
        let tools = ["mmdebstrap", "systemd-nspawn", "unshare", "nsenter"];
        if let Some(tool) = tools.iter().find(|tool| !found(tool)) {
            let remedy = "apt-get install mmdebstrap systemd-container";
            return Some(format!("{tool} is missing: {remedy}"));
        }
        let unshare = Command::new("unshare").args(["--mount", "true"]).output();
        let unshare = unshare.expect("unshare was just found");
        let refused = text(&unshare.stderr);
        (!unshare.status.success()).then(|| format!("root may not mount here: {refused}"))
    }

    /// Boots a node with our files installed; podsecd is not yet enabled in it.
    ///
    /// # Panics
    /// When the node does not come up within a minute; the message has its console output. Units that failed are only
    /// printed.
    pub(crate) fn boot() -> Self {
        Self::boot_with(|_| {})
    }

    /// Like [`Node::boot`], after `prepare` was called with the root of the node's file tree.
    pub(crate) fn boot_with(prepare: impl FnOnce(&Path)) -> Self {
        let console = tempfile::tempfile().expect("create a file for the console log");
        let holder = start_holder(&cached_root(), &console);
        let root = PathBuf::from(format!("/proc/{}/root/run/node", holder.id()));
        let mut node = Self { holder, init: None, root, console };

        let mut ready = String::new();
        let stdout = node.holder.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut ready).expect("read from hold");
        if ready != "ready\n" {
            node.fail("laying the node's root failed");
        }
        let notify = node.root.with_file_name("notify");
        let notify = UnixDatagram::bind(notify).expect("bind the notify socket");
        prepare(&node.root);
        let stdin = node.holder.stdin.as_mut().expect("stdin is piped");
        if stdin.write_all(b"boot\n").is_err() {
            node.fail("hold is gone");
        }
        node.wait_until_booted(&notify);
        node
    }

    /// nspawn names the PID of the node's init, then passes on its READY=1: systemd answers, units may still start.
    fn wait_until_booted(&mut self, notify: &UnixDatagram) {
        notify.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let mut ready = false;
        while !ready || self.init.is_none() {
            if !matches!(self.holder.try_wait(), Ok(None)) {
                self.fail("the node ended while it booted");
            }
            if Instant::now() > deadline {
                self.fail("the node did not boot in time");
            }
            let mut buffer = [0; 4096];
            let Ok(length) = notify.recv(&mut buffer) else {
                continue;
            };
            for line in text(&buffer[..length]).lines() {
                ready |= line == "READY=1";
                if let Some(pid) = line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                    self.init = Some(pid.parse().expect("a PID"));
                    self.root = PathBuf::from(format!("/proc/{pid}/root"));
                }
            }
        }
        let state = self.try_shell("timeout 60 systemctl is-system-running --wait");
        match text(&state.stdout).trim_end() {
            "running" => {}
            "degraded" => eprintln!("the node runs, but units failed:\n{}", self.failed_units()),
            state => self.fail(&format!("the node does not run but is {state:?}")),
        }
    }

    /// The failed units with their state and last messages; empty if there are none.
    pub(crate) fn failed_units(&self) -> String {
        let status = self.try_shell("systemctl status --failed --no-pager --full '*'");
        text(&status.stdout)
    }

    /// Runs a command in the node, as root, with a clean environment and no standard input.
    ///
    /// It is in the node's namespaces, but in no unit: what must live in a unit needs `systemd-run`.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        self.enter(command).output().expect("run nsenter")
    }

    /// Runs a shell script in the node; gives its standard output.
    ///
    /// # Panics
    /// When the script fails; the message has the script and its output.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = self.try_shell(script);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "in the node: {}\n--- script\n{script}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
            output.status,
        );
        stdout
    }

    /// Runs a shell script in the node (`sh -euc`) whether or not it succeeds.
    pub(crate) fn try_shell(&self, script: &str) -> Output {
        self.run(&["sh", "-euc", script])
    }

    /// The journal's entries that match (`journalctl` arguments), everything included that was sent before this call.
    ///
    /// [`field`] reads their fields. Thousands of entries are large: `--output-fields=…` takes what is needed.
    ///
    /// # Panics
    /// When journalctl fails, which it also does when `--grep` finds nothing.
    pub(crate) fn journal(&self, matches: &[&str]) -> Vec<Value> {
        // Without --all, journalctl gives null for a value above 4 KiB.
        let script = r#"journalctl --sync; exec journalctl --quiet --all --output=json "$@""#;
        let mut command = self.enter(&["sh", "-euc", script, "journal"]);
        command.args(matches).stdout(Stdio::piped());
        let mut child = command.spawn().expect("run nsenter");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let entries = serde_json::Deserializer::from_reader(stdout).into_iter();
        let entries: Result<_, _> = entries.collect();
        let entries = entries.expect("journalctl writes JSON");
        let status = child.wait().expect("wait for journalctl");
        assert!(status.success(), "journalctl {matches:?}: {status}");
        entries
    }

    /// The mailbox of `user`, empty if there is none.
    pub(crate) fn mailbox(&self, user: &str) -> String {
        text(&fs::read(self.root.join("var/mail").join(user)).unwrap_or_default())
    }

    /// Looks every 50 ms whether `done`.
    ///
    /// # Panics
    /// When it is not after `timeout`; the message has `what` and the end of the journal.
    pub(crate) fn wait_until(&self, what: &str, timeout: Duration, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + timeout;
        while !done() {
            if Instant::now() > deadline {
                panic!("not after {timeout:?}: {what}\n{}", self.last_words());
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The node's file tree as this process can read and write it.
    ///
    /// An absolute symbolic link in it (`/var/run`) leads into *this machine's* tree: name the target.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn last_words(&self) -> String {
        let script = "journalctl -q --no-pager --lines=30; echo; timeout 5 systemctl list-jobs";
        let words = text(&self.try_shell(script).stdout);
        format!("the end of its journal, and the jobs of its systemd:\n{words}")
    }

    fn enter(&self, command: &[&str]) -> Command {
        let init = self.init.expect("the node has booted");
        let mut nsenter = Command::new("nsenter");
        nsenter.env_clear().envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
        nsenter.args(["--all", "--target", &init.to_string(), "--"]);
        nsenter.args(command).stdin(Stdio::null());
        nsenter
    }

    /// Panics with `what`, the console log, and, once there is one, the end of the journal.
    fn fail(&self, what: &str) -> ! {
        // Opened anew: a clone would move the position at which the node writes.
        let console = format!("/proc/self/fd/{}", self.console.as_raw_fd());
        let console = text(&fs::read(console).unwrap_or_default());
        let journal = self.init.map(|_| self.last_words()).unwrap_or_default();
        panic!("{what}; its console:\n{console}\n{journal}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // hold does the rest; waiting means that the next test finds the machine as this one did.
        drop(self.holder.stdin.take());
        let status = self.holder.wait();
        if !panicking() && !matches!(&status, Ok(status) if status.success()) {
            self.fail(&format!("taking the node down: {status:?}"));
        }
    }
}

/// All values of a field of a journal entry; none if it is not there.
///
/// journalctl writes a string, an array of bytes where the value is not printable, an array of these where the field
/// is there more than once.
pub(crate) fn field(entry: &Value, name: &str) -> Vec<String> {
    let byte = |byte: &Value| byte.as_u64()?.try_into().ok();
    match &entry[name] {
        Value::Null => Vec::new(),
        Value::String(value) => vec![value.clone()],
        Value::Array(array) => match array.iter().map(byte).collect::<Option<Vec<u8>>>() {
            Some(bytes) => vec![text(&bytes)],
            None => {
                let one = |value| field(&serde_json::json!({ name: value }), name);
                array.iter().flat_map(one).collect()
            }
        },
        other => panic!("journalctl gave {name}={other}"),
    }
}

/// Builds the root if this version of `build` has not done so yet.
fn cached_root() -> PathBuf {
    let build = Path::new(REPOSITORY).join("tests/node/build");
    let output = Command::new(&build).stderr(Stdio::inherit()).output().expect("run tests/node/build");
    assert!(output.status.success(), "tests/node/build: {}", output.status);
    PathBuf::from(text(&output.stdout).trim_end())
}

fn start_holder(cached: &Path, console: &File) -> Child {
    let repository = Path::new(REPOSITORY);
    let mut command = Command::new("unshare");
    command.args(["--mount".as_ref(), repository.join("tests/node/hold").as_path(), cached]);
    command.arg(repository.join("packaging/install"));
    // The binaries under test are those that cargo built for this test, whichever profile that is.
    if let Some(podsecd) = option_env!("CARGO_BIN_EXE_podsecd") {
        let directory = Path::new(podsecd).parent().expect("a file is in a directory");
        command.env("BINARIES", directory);
    }
    // Out of reach of what a terminal or a test runner sends to our process group: it has to clean up.
    command.process_group(0);
    let console = console.try_clone().expect("clone a file");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(console);
    command.spawn().expect("run unshare")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
