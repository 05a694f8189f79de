//! Recorded data, and podsecd on a tree of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The daemon's binary.
pub(crate) const PODSECD: &str = env!("CARGO_BIN_EXE_podsecd");
/// The control program's binary.
pub(crate) const PODSECCTL: &str = env!("CARGO_BIN_EXE_podsecctl");

/// A recorded file; what is packed is unpacked.
pub(crate) fn recorded(name: &str) -> Vec<u8> {
    let path = Path::new("tests/data/audit").join(name);
    if path.exists() {
        return std::fs::read(path).expect("readable");
    }
    let packed = format!("{}.xz", path.display());
    let output = Command::new("xz").args(["-dc", &packed]).output().expect("xz is installed");
    assert!(output.status.success(), "{packed}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs podsecctl to its end.
pub(crate) fn podsecctl(arguments: &[&str]) -> Output {
    Command::new(PODSECCTL).args(arguments).output().expect("podsecctl runs")
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A tree for podsecd, in a temporary directory.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    /// A tree with these audit logs.
    pub(crate) fn new(logs: &[(&str, &[u8])]) -> Tree {
        let tree = Tree(tempfile::tempdir().expect("a directory"));
        for directory in ["etc/kubernetes/audit", "etc/podsecd"] {
            std::fs::create_dir_all(tree.path(directory)).expect("made");
        }
        for (name, content) in logs {
            std::fs::write(tree.path("etc/kubernetes/audit").join(name), content).expect("written");
        }
        tree
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn root(&self) -> String {
        self.0.path().display().to_string()
    }

    /// The lines of forbidden.log; none if there is none.
    pub(crate) fn forbidden_log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("var/lib/podsecd/forbidden.log")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// The status, if there is one.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(self.path("run/podsecd/status.json")).ok()?).ok()
    }

    /// Starts podsecd on the tree, and waits until it runs. It is killed when it is dropped.
    pub(crate) fn start(&self) -> Daemon {
        let daemon = self.spawn();
        wait_until("podsecd runs", || self.status().is_some_and(|status| status["pid"] == daemon.0.id()));
        daemon
    }

    /// Starts podsecd on the tree.
    pub(crate) fn spawn(&self) -> Daemon {
        self.spawn_with(&[])
    }

    /// Starts podsecd on the tree with something more in its environment.
    pub(crate) fn spawn_with(&self, environment: &[(&str, &str)]) -> Daemon {
        self.spawn_onto(std::fs::File::create(self.path("output")).expect("made"), environment)
    }

    /// The same, with its findings on this terminal.
    pub(crate) fn spawn_onto(&self, output: impl Into<Stdio>, environment: &[(&str, &str)]) -> Daemon {
        let errors = std::fs::File::options().create(true).append(true).open(self.path("errors")).expect("made");
        let mut command = Command::new(PODSECD);
        command.envs(environment.iter().copied());
        let child = command.args(["--root", &self.root()]).stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        Daemon(child.expect("podsecd starts"))
    }
}

/// A running podsecd.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Asks it to stop, and waits until it has; its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.0.wait().expect("it ends").code()
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something holds: for longer than a digest is put off, and than a machine may be busy with others.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A line of the audit log.
pub(crate) fn event(id: &str, code: u32) -> String {
    format!(
        concat!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"{}","#,
            r#""stage":"ResponseComplete","requestURI":"/api/v1/secrets","verb":"list","user":{{"username":"alice","#,
            r#""groups":["dev"]}},"sourceIPs":["10.0.0.7"],"userAgent":"curl","objectRef":{{"resource":"secrets"}},"#,
            r#""responseStatus":{{"metadata":{{}},"message":"no","reason":"Forbidden","code":{}}},"#,
            r#""requestReceivedTimestamp":"2026-11-22T02:58:59.072009Z","#,
            r#""stageTimestamp":"2026-11-22T02:58:59.072529Z"}}"#,
            "\n"
        ),
        id, code
    )
}
