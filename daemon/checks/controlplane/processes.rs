//! What runs in and beside rootlesskit, by `/proc` (proc_pid_stat(5), proc_pid_cgroup(5), proc_pid_ns(5)).
//!
//! The namespaces of a process whose user namespace u7s-admin owns are readable for u7s-admin without any capability
//! (user_namespaces(7): the owner has all capabilities in it), also those of the uids that are subordinate to it.
//!
//! Any process may call itself as it likes. One of a pod is in a control group that CRI-O named, which it cannot leave; so
//! names count only of what is in no container, and in the namespace in which CRI-O and the kubelet are. Which container is
//! which part CRI-O says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::iter::successors;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::containers::{Records, container_of};
use super::seen::{Child, Part, Place, Process, Processes};
use crate::watch::open::open_regular;

/// More bytes of a file in `/proc/PID` are not read: a line of `stat`, and twelve paths of control groups.
const MAX_BYTES: u64 = 16 << 10;
/// More processes are not looked at.
const MAX_PROCESSES: usize = 1 << 16;
/// So far up it is looked for a process in rootlesskit's namespace.
const MAX_ANCESTORS: usize = 64;
/// More bytes is no number of a process.
const MAX_NUMBER: u64 = 16;
/// The unit of times in `/proc/PID/stat`, whatever the kernel's own is: USER_HZ, in hertz.
const USER_HZ: f64 = 100.0;

/// A line of the table of processes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    name: String,
    parent: u32,
    /// When it was started, in units of [`USER_HZ`] since the machine was.
    started: u64,
}

impl Line {
    /// Of `/proc/PID/stat`. The name may hold anything, also parentheses.
    fn parse(text: &str) -> Option<Line> {
        let (head, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let (parent, started) = (fields.nth(1)?, fields.nth(17)?);
        let name = head.split_once('(')?.1.to_owned();
        Some(Line { name, parent: parent.parse().ok()?, started: started.parse().ok()? })
    }
}

/// Looks at the processes of a node.
#[derive(Debug)]
pub struct Observer {
    proc: PathBuf,
    state_directory: PathBuf,
    /// What the path of a control group of u7s-admin's manager has in it.
    manager: String,
    records: Option<Records>,
}

impl Observer {
    /// Of those in that `/proc`. `state_directory` is rootlesskit's, `store` CRI-O's, `uid` that of u7s-admin.
    pub fn new(proc: PathBuf, state_directory: PathBuf, store: Option<PathBuf>, uid: u32) -> Observer {
        let manager = format!("/user@{uid}.service/");
        Observer { proc, state_directory, manager, records: store.map(Records::new) }
    }

    /// What runs. `uptime` is for how long the machine has run.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn observe(&mut self, uptime: Option<Duration>) -> io::Result<Processes> {
        let table = self.table()?;
        let mut seen = Processes { real_root: self.real_root(&table), ..Processes::default() };
        let child = self.child_pid().and_then(|pid| Some((pid, table.get(&pid)?)));
        let Some((pid, line)) = child else { return Ok(seen) };
        let since = |uptime: Duration| uptime.saturating_sub(Duration::from_secs_f64(line.started as f64 / USER_HZ));
        seen.child = Some(Child { pid, age: uptime.map(since) });
        let look = Look { proc: &self.proc, table: &table, manager: &self.manager, inside: namespace(&self.proc, pid) };
        let mut of_containers: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (pid, candidate) in &table {
            let cgroup = read(&self.proc.join(pid.to_string()).join("cgroup")).unwrap_or_default();
            if let Some(container) = container_of(&cgroup) {
                of_containers.entry(container.to_owned()).or_default().push(*pid);
            } else if let Some((part, place)) = look.part(*pid, candidate, line.parent, &cgroup) {
                let process = Process { pid: *pid, container: None, place };
                seen.parts.entry(part).or_default().push(process);
            }
        }
        let containers = match self.records.as_mut().map(Records::containers) {
            Some(Ok(containers)) => containers,
            other => {
                let why = other.and_then(Result::err).map_or_else(
                    || "nobody of /etc/passwd has u7s-admin's user id".to_owned(),
                    |error| error.to_string(),
                );
                seen.why = Some(format!("which containers are of the control plane cannot be seen: {why}"));
                seen.unknown = Part::ALL.into_iter().filter(|part| part.is_container()).collect();
                return Ok(seen);
            }
        };
        let mut pods = BTreeSet::new();
        for container in containers {
            let Some(pids) = of_containers.get(&container.id) else { continue };
            pods.insert(&container.pod);
            let first = pids.iter().min_by_key(|pid| table[pid].started);
            if let (Some(part), Some(pid)) = (container.part, first) {
                let place = look.place(*pid);
                let process = Process { pid: *pid, container: Some(container.id.clone()), place };
                seen.parts.entry(part).or_default().push(process);
            }
        }
        seen.pods = Some(pods.len());
        Ok(seen)
    }

    /// The number that rootlesskit wrote down of its child; it is there only while rootlesskit runs.
    fn child_pid(&self) -> Option<u32> {
        let mut text = String::new();
        let file = open_regular(&self.state_directory.join("child_pid")).ok()?;
        file.take(MAX_NUMBER).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    fn table(&self) -> io::Result<BTreeMap<u32, Line>> {
        let pids = fs::read_dir(&self.proc)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let line = |pid: u32| Some((pid, Line::parse(&read(&self.proc.join(pid.to_string()).join("stat"))?)?));
        Ok(pids.take(MAX_PROCESSES).filter_map(line).collect())
    }

    /// The processes of real root that are called as a part. No pod of a rootless node can have that uid.
    fn real_root(&self, table: &BTreeMap<u32, Line>) -> Vec<(Part, u32)> {
        let parts = Part::ALL.into_iter().filter(|part| !matches!(part, Part::Slirp4netns | Part::Coredns));
        let parts: Vec<_> = parts.collect();
        let named = table.iter().filter_map(|(pid, line)| {
            // The kernel cuts names at 15 bytes.
            let is_it = |part: &&Part| part.name().get(..15).unwrap_or(part.name()) == line.name;
            Some((*parts.iter().find(is_it)?, *pid))
        });
        named.filter(|(_, pid)| uid(&self.proc, *pid) == Some(0)).collect()
    }
}

/// What is needed to say what a process is.
struct Look<'l> {
    proc: &'l Path,
    table: &'l BTreeMap<u32, Line>,
    manager: &'l str,
    /// The user namespace of rootlesskit's child.
    inside: Option<String>,
}

impl Look<'_> {
    /// What part a process is that is in no container.
    fn part(&self, pid: u32, line: &Line, rootlesskit: u32, cgroup: &str) -> Option<(Part, Place)> {
        let of_unit = |unit: &str| cgroup.lines().any(|path| path.contains(self.manager) && path.contains(unit));
        let (part, is_of_unit) = match &*line.name {
            // It is beside the namespace, and is meant to be.
            "slirp4netns" => return (line.parent == rootlesskit).then_some((Part::Slirp4netns, Place::Inside)),
            "crio" => (Part::Crio, of_unit("/rootlesskit.service")),
            "kubelet" => (Part::Kubelet, of_unit("/kubelet.service")),
            _ => return None,
        };
        let place = self.place(pid);
        (place == Place::Inside || is_of_unit).then_some((part, place))
    }

    /// Where a process is. A user namespace below rootlesskit's was made by a process that was in that: it or one of its
    /// ancestors.
    fn place(&self, pid: u32) -> Place {
        let own = namespace(self.proc, pid);
        if self.inside.is_none() || own.is_none() {
            return Place::Unknown;
        }
        // Of an ancestor that may not be read the namespace is not u7s-admin's, and so not that one.
        let parent = |pid: &u32| self.table.get(pid).map(|line| line.parent).filter(|pid| *pid > 0);
        let ancestors = successors(parent(&pid), parent).take(MAX_ANCESTORS).map(|pid| namespace(self.proc, pid));
        let is_inside = [own].into_iter().chain(ancestors).any(|namespace| namespace == self.inside);
        if is_inside { Place::Inside } else { Place::Outside }
    }
}

/// The user namespace of a process, as the kernel names it: `user:[4026531837]`.
fn namespace(proc: &Path, pid: u32) -> Option<String> {
    fs::read_link(proc.join(pid.to_string()).join("ns/user")).ok()?.into_os_string().into_string().ok()
}

/// The real user id of a process, as we see it: whoever calls a set-user-ID program by the name of a part is not root by that.
fn uid(proc: &Path, pid: u32) -> Option<u32> {
    let status = read(&proc.join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::super::containers::tests::{container, id, list, sandbox};
    use super::*;

    /// A node in a directory: `/proc`, rootlesskit's state, CRI-O's store.
    pub(in super::super) struct Node(pub(in super::super) tempfile::TempDir);

    const USER: u32 = 495;
    const SLICE: &str = "/user.slice/user-495.slice/user@495.service/app.slice";
    const HOST: u32 = 1;
    const INSIDE: u32 = 2;

    impl Node {
        pub(in super::super) fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        pub(in super::super) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, bytes).expect("written");
        }

        /// A process: number, parent, name, user namespace, uid, control group.
        fn process(&self, pid: u32, parent: u32, name: &str, namespace: u32, uid: u32, cgroup: &str) {
            let zeros = "0 ".repeat(17);
            self.write(&format!("proc/{pid}/stat"), format!("{pid} ({name}) S {parent} {zeros}{} 0 0\n", pid * 100));
            self.write(&format!("proc/{pid}/status"), format!("Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"));
            self.write(&format!("proc/{pid}/cgroup"), format!("0::{cgroup}\n"));
            fs::create_dir_all(self.path(&format!("proc/{pid}/ns"))).expect("made");
            if namespace > 0 {
                let link = self.path(&format!("proc/{pid}/ns/user"));
                let _ = fs::remove_file(&link);
                symlink(format!("user:[{namespace}]"), link).expect("linked");
            }
        }

        /// A control plane as podsec makes one.
        pub(in super::super) fn new() -> Node {
            let node = Node(tempfile::tempdir().expect("a directory"));
            node.process(1, 0, "systemd", 0, 0, "/init.scope");
            node.process(10, 1, "systemd", HOST, USER, &format!("{SLICE}/init.scope"));
            let rootlesskit = format!("{SLICE}/rootlesskit.service/rootlesskit_evac");
            node.process(20, 10, "rootlesskit", HOST, USER, &rootlesskit);
            node.process(21, 20, "exe", INSIDE, USER, &rootlesskit);
            node.process(22, 20, "slirp4netns", HOST, USER, &rootlesskit);
            node.process(23, 21, "crio", INSIDE, USER, &rootlesskit);
            node.process(30, 10, "nsenter", HOST, USER, &format!("{SLICE}/kubelet.service"));
            node.process(31, 30, "kubelet", INSIDE, USER, &format!("{SLICE}/kubelet.service"));
            node.write("run/user/495/usernetes/rootlesskit/child_pid", "21");
            let parts = [("kube-apiserver", '1', 'a'), ("etcd", '2', 'b'), ("kube-scheduler", '3', 'c')];
            let more = [("kube-controller-manager", '4', 'd'), ("kube-proxy", '5', 'e'), ("web", '6', 'f')];
            let mut records = Vec::new();
            for (at, (name, own, pod)) in parts.into_iter().chain(more).enumerate() {
                let namespace = if name == "web" { "default" } else { "kube-system" };
                records.extend([sandbox(pod, namespace, &format!("{name}-node")), container(own, pod, name)]);
                node.contain(40 + at as u32, name, own, INSIDE);
            }
            node.write(&format!("{STORE}/overlay-containers/volatile-containers.json"), list(&records));
            node
        }

        /// A process of a container.
        fn contain(&self, pid: u32, name: &str, container: char, namespace: u32) {
            let name = name.get(..15).unwrap_or(name);
            let group = format!("{SLICE}/rootlesskit.service/kubepods/podx/crio-{}", id(container));
            self.process(pid, 21, name, namespace, 100_000, &group);
        }

        fn observe(&self) -> Processes {
            let state = self.path("run/user/495/usernetes/rootlesskit");
            let mut observer = Observer::new(self.path("proc"), state, Some(self.path(STORE)), USER);
            observer.observe(Some(Duration::from_secs(100))).expect("readable")
        }

        fn has(&self, part: Part) -> Vec<(u32, Place)> {
            let processes = self.observe().parts.remove(&part).unwrap_or_default();
            processes.iter().map(|process| (process.pid, process.place)).collect()
        }
    }

    const STORE: &str = "var/lib/u7s-admin/.local/share/usernetes/containers/storage";

    #[test]
    fn a_node_as_podsec_makes_it_has_all_parts_inside() {
        let seen = Node::new().observe();
        assert_eq!(seen.child, Some(Child { pid: 21, age: Some(Duration::from_secs(79)) }));
        let expected: Vec<_> =
            Part::ALL.into_iter().filter(|part| part.is_expected_of(super::super::seen::Role::ControlPlane)).collect();
        assert_eq!(seen.parts.keys().copied().collect::<Vec<_>>(), expected);
        assert!(seen.parts.values().flatten().all(|process| process.place == Place::Inside), "{seen:?}");
        assert_eq!((seen.pods, seen.real_root.len(), seen.unknown.len()), (Some(6), 0, 0));
        let apiserver = &seen.parts[&Part::KubeApiserver][0];
        assert_eq!(apiserver.container.as_deref(), Some(&*id('1')));
    }

    #[test]
    fn a_name_makes_no_part() {
        let node = Node::new();
        for pid in [31, 23, 22, 41] {
            fs::remove_dir_all(node.path(&format!("proc/{pid}"))).expect("removed");
        }
        // A pod with what it may choose: names, its own processes' parents and namespaces.
        for (pid, name) in [(60, "kubelet"), (61, "crio"), (62, "slirp4netns"), (63, "etcd"), (64, "a) S 20 (etcd")] {
            node.contain(pid, name, '6', INSIDE);
        }
        // The user's own, in the host's namespace and in none of the units.
        node.process(70, 10, "kubelet", HOST, USER, &format!("{SLICE}/x.service"));
        node.process(71, 10, "slirp4netns", HOST, USER, &format!("{SLICE}/rootlesskit.service"));
        for part in [Part::Kubelet, Part::Crio, Part::Slirp4netns, Part::Etcd] {
            assert_eq!(node.has(part), [], "{part:?}");
        }
    }

    #[test]
    fn who_left_the_namespace_is_outside_and_who_is_in_one_below_it_is_not() {
        let node = Node::new();
        node.process(31, 10, "kubelet", HOST, USER, &format!("{SLICE}/kubelet.service"));
        node.process(23, 10, "crio", 7, USER, &format!("{SLICE}/rootlesskit.service/rootlesskit_evac"));
        node.contain(41, "etcd", '2', 8);
        node.contain(40, "kube-apiserver", '1', INSIDE);
        node.process(44, 10, "kube-proxy", 9, 100_000, &format!("{SLICE}/crio-{}", id('5')));
        node.process(42, 21, "kube-scheduler", 0, 100_000, &format!("{SLICE}/crio-{}", id('3')));
        fs::remove_file(node.path("proc/42/ns/user")).expect("removed");
        for (part, pid, place) in [
            (Part::Kubelet, 31, Place::Outside),
            (Part::Crio, 23, Place::Outside),
            (Part::Etcd, 41, Place::Inside),
            (Part::KubeApiserver, 40, Place::Inside),
            (Part::KubeProxy, 44, Place::Outside),
            (Part::KubeScheduler, 42, Place::Unknown),
        ] {
            assert_eq!(node.has(part), [(pid, place)], "{part:?}");
        }
    }

    #[test]
    fn a_part_of_real_root_is_seen() {
        let node = Node::new();
        node.process(80, 1, "kubelet", HOST, 0, "/system.slice/kubelet.service");
        node.process(81, 1, "kube-controller", HOST, 0, "/x");
        node.process(82, 1, "etcd", HOST, 300, "/system.slice/etcd.service");
        // A link of that name to a set-user-ID program.
        node.process(83, 1, "kube-proxy", HOST, 300, "/user.slice");
        node.write("proc/83/status", "Name:\tkube-proxy\nUid:\t300\t0\t0\t0\n");
        assert_eq!(node.observe().real_root, [(Part::Kubelet, 80), (Part::KubeControllerManager, 81)]);
        assert_eq!(node.has(Part::Kubelet), [(31, Place::Inside)]);
    }

    #[test]
    fn without_rootlesskit_there_is_nothing_in_it_and_without_records_nothing_is_known_of_containers() {
        let node = Node::new();
        fs::remove_dir_all(node.path(STORE)).expect("removed");
        let seen = node.observe();
        assert_eq!((seen.unknown.len(), seen.pods), (6, None));
        assert_eq!(seen.parts.len(), 3);
        for text in ["", "x", "99", "-1", "21 21", "212121212121212121212121"] {
            node.write("run/user/495/usernetes/rootlesskit/child_pid", text);
            assert_eq!(node.observe(), Processes::default(), "{text}");
        }
        fs::remove_dir_all(node.path("proc")).expect("removed");
        let mut observer = Observer::new(node.path("proc"), node.path("x"), None, USER);
        assert!(observer.observe(None).is_err());
    }
}
