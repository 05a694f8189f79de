//! The running rootlesskit, as its state directory and /proc(5) show it: known by kinship, not by name.
//!
//! Whoever has u7s-admin's user id can write another `child_pid` there. What is read here says where to look, and nothing is
//! done to a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::plan::Own;

/// Where rootlesskit writes the pid of its child, before its API is there.
pub const CHILD_PID: &str = "child_pid";
/// More processes, and more descriptors of one, are not looked at.
const MAX_CHILDREN: usize = 64;
const MAX_DESCRIPTORS: usize = 256 << 10;

/// What tells a rootlesskit from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process.
    parent: u32,
    /// When that was started: clock ticks since the node was (proc_pid_stat(5)).
    started: u64,
}

/// A running rootlesskit.
#[derive(Debug)]
pub struct Instance {
    /// Which one it is.
    pub identity: Identity,
    /// The process whose network namespace the forwards lead to.
    pub child: u32,
    /// rootlesskit itself.
    pub parent: u32,
    ended: AsyncFd<OwnedFd>,
}

impl Instance {
    /// The one with this state directory, if it runs. To be called within a tokio runtime.
    pub fn find(state_directory: &Path) -> Option<Instance> {
        let child = number(&read(&state_directory.join(CHILD_PID)).ok()?)?;
        let parent = parent(child)?;
        let identity = Identity { parent, started: started(parent)? };
        let pid = Pid::from_raw(i32::try_from(parent).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        #[expect(deprecated, reason = "what takes its place is unsafe; an OwnedFd is owned and does not change")]
        let ended = AsyncFd::with_interest(process, Interest::READABLE).ok()?;
        // The number may have been given to another process before the descriptor was.
        (self::parent(child)? == parent).then_some(Instance { identity, child, parent, ended })
    }

    /// Waits until it ends.
    pub async fn ended(&self) {
        // A pidfd is readable when its process ends (pidfd_open(2)).
        if self.ended.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it runs still.
    pub fn runs(&self) -> bool {
        let mut process = [PollFd::new(self.ended.get_ref(), PollFlags::IN)];
        poll(&mut process, Some(&Timespec::default())).is_ok_and(|ended| ended == 0)
    }

    /// The tables of sockets inside.
    pub fn tables_inside(&self) -> PathBuf {
        process(self.child).join("net")
    }

    /// Which sockets are its own, and those of the processes that it started besides the child: the port driver slirp4netns
    /// listens itself. A rootlesskit with file capabilities does not let us look.
    pub fn sockets(&self) -> Own {
        // The kernel has them by the thread that started them (proc_pid_task(5)).
        let threads = fs::read_dir(process(self.parent).join("task")).into_iter().flatten().flatten();
        let children =
            threads.filter_map(|thread| read(&thread.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
        let children = children.split_ascii_whitespace().filter_map(number);
        let helpers = children.filter(|pid| *pid != self.child).take(MAX_CHILDREN);
        let mut inodes = BTreeSet::new();
        for pid in helpers.chain([self.parent]) {
            match sockets_of(pid) {
                Ok(sockets) => inodes.extend(sockets),
                // It may have ended.
                Err(_) if pid != self.parent => {}
                Err(_) => return Own::User(nix::unistd::geteuid().as_raw()),
            }
        }
        Own::Inodes(inodes)
    }
}

/// Who holds these sockets: pid and command of each process, as far as we may look into it. Looks at all processes: to be
/// called where that may take long.
pub fn holders(inodes: &BTreeSet<u64>) -> BTreeMap<u64, (u32, String)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut holders = BTreeMap::new();
    for pid in pids.filter_map(|entry| number::<u32>(entry.file_name().to_str()?)) {
        let held: Vec<_> = sockets_of(pid).unwrap_or_default().intersection(inodes).copied().collect();
        if !held.is_empty() {
            let command = read(&process(pid).join("comm")).unwrap_or_default().trim_end().to_owned();
            holders.extend(held.into_iter().map(|inode| (inode, (pid, command.clone()))));
        }
        if holders.len() == inodes.len() {
            break;
        }
    }
    holders
}

fn process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn parent(pid: u32) -> Option<u32> {
    let status = read(&process(pid).join("status")).ok()?;
    number(status.lines().find_map(|line| line.strip_prefix("PPid:"))?)
}

/// When a process was started: the 22nd field, behind a name in which anything may be.
fn started(pid: u32) -> Option<u64> {
    let stat = read(&process(pid).join("stat")).ok()?;
    number(stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?)
}

fn sockets_of(pid: u32) -> io::Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for descriptor in fs::read_dir(process(pid).join("fd"))?.take(MAX_DESCRIPTORS) {
        let target = fs::read_link(descriptor?.path()).unwrap_or_default();
        let socket = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(socket.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(inodes)
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

/// The beginning of a small file.
fn read(path: &Path) -> io::Result<String> {
    // A pipe in its place must not be waited for.
    let file = rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let mut text = String::new();
    File::from(file).take(4096).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn it_is_found_by_the_pid_of_its_child_and_its_end_is_seen() {
        // `sh` stands for rootlesskit, `sleep` for its child.
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 10 >/dev/null & echo $!; wait"]).stdout(Stdio::piped());
        let mut shell = shell.spawn().expect("started");
        let mut child = String::new();
        let mut output = io::BufReader::new(shell.stdout.take().expect("piped"));
        io::BufRead::read_line(&mut output, &mut child).expect("read");
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Instance::find(dir.path()).is_none(), "no child_pid");
        fs::write(dir.path().join(CHILD_PID), &child).expect("written");
        let instance = Instance::find(dir.path()).expect("found");
        assert_eq!((instance.parent, instance.child), (shell.id(), child.trim().parse().expect("a pid")));
        assert!(timeout(Duration::from_millis(50), instance.ended()).await.is_err(), "it runs");
        shell.kill().expect("killed");
        timeout(Duration::from_secs(5), instance.ended()).await.expect("it has ended");
        shell.wait().expect("waited for");
    }

    #[test]
    fn the_holder_of_a_socket_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = socket.local_addr().expect("has one").port();
        let listed = crate::checks::forwards::tables::Sockets::read(Path::new("/proc/self/net")).expect("read");
        let inode = listed.iter().find(|listed| listed.port == port).expect("listed").inode;
        let holders = holders(&[inode, u64::MAX].into());
        assert_eq!(holders.keys().collect::<Vec<_>>(), [&inode]);
        assert_eq!(holders[&inode].0, std::process::id());
    }
}
