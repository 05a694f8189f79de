//! What the source saw. Plain data, without judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A D-Bus on which a systemd manager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bus {
    /// The system's.
    System,
    /// u7s-admin's.
    User,
}

impl Bus {
    /// The manager that is there, for people.
    pub fn name(self) -> &'static str {
        match self {
            Bus::System => "the system's systemd",
            Bus::User => "u7s-admin's systemd",
        }
    }
}

/// A unit of systemd that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// The system's, which starts the others.
    U7s,
    /// u7s-admin's: rootlesskit, slirp4netns, CRI-O.
    Rootlesskit,
    /// u7s-admin's: the kubelet.
    Kubelet,
    /// The system's: a kubelet of real root, which a rootless node has not.
    SystemKubelet,
    /// The system's: a CRI-O of real root, likewise.
    SystemCrio,
}

impl Unit {
    /// Those that are to run.
    pub const EXPECTED: [Unit; 3] = [Unit::U7s, Unit::Rootlesskit, Unit::Kubelet];
    /// All of them.
    pub const ALL: [Unit; 5] = [Unit::U7s, Unit::Rootlesskit, Unit::Kubelet, Unit::SystemKubelet, Unit::SystemCrio];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Unit::U7s => "u7s.service",
            Unit::Rootlesskit => "rootlesskit.service",
            Unit::Kubelet | Unit::SystemKubelet => "kubelet.service",
            Unit::SystemCrio => "crio.service",
        }
    }

    /// Where its manager is.
    pub fn bus(self) -> Bus {
        match self {
            Unit::Rootlesskit | Unit::Kubelet => Bus::User,
            Unit::U7s | Unit::SystemKubelet | Unit::SystemCrio => Bus::System,
        }
    }

    /// Whom a finding is about: name and manager.
    pub fn subject(self) -> String {
        match self.bus() {
            Bus::System => format!("system {}", self.name()),
            Bus::User => format!("user {}", self.name()),
        }
    }
}

/// What a manager says of a unit, in systemd's words (org.freedesktop.systemd1(5)); each is of 64 characters at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// LoadState: `loaded`, `not-found`, `masked`.
    pub load: String,
    /// ActiveState: `active`, `inactive`, `failed`, `activating`, `deactivating`.
    pub active: String,
    /// SubState: `running`, `dead`, `auto-restart`.
    pub sub: String,
    /// Result: `success`, `exit-code`, `signal`, `start-limit-hit`.
    pub result: String,
    /// NRestarts: how often the manager started it again by itself.
    pub restarts: u32,
    /// MainPID; 0: none.
    pub main_pid: u32,
}

impl UnitState {
    /// Whether it does not run, and nothing is under way that would change it.
    pub fn is_down(&self) -> bool {
        ["inactive", "failed"].contains(&&*self.active)
    }

    /// Whether it runs, or is about to.
    pub fn is_up(&self) -> bool {
        ["active", "reloading", "refreshing", "activating"].contains(&&*self.active)
    }
}

/// A part of the node: a process beside rootlesskit or a container in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The network of rootlesskit's child.
    Slirp4netns,
    /// CRI-O.
    Crio,
    /// The kubelet.
    Kubelet,
    /// A static pod's container, as the three after it.
    KubeApiserver,
    /// Likewise.
    Etcd,
    /// Likewise.
    KubeScheduler,
    /// Likewise.
    KubeControllerManager,
    /// A container that each node has.
    KubeProxy,
    /// A container that some node has.
    Coredns,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 9] = [
        Part::Slirp4netns,
        Part::Crio,
        Part::Kubelet,
        Part::KubeApiserver,
        Part::Etcd,
        Part::KubeScheduler,
        Part::KubeControllerManager,
        Part::KubeProxy,
        Part::Coredns,
    ];

    /// The name of its program or container.
    pub fn name(self) -> &'static str {
        match self {
            Part::Slirp4netns => "slirp4netns",
            Part::Crio => "crio",
            Part::Kubelet => "kubelet",
            Part::KubeApiserver => "kube-apiserver",
            Part::Etcd => "etcd",
            Part::KubeScheduler => "kube-scheduler",
            Part::KubeControllerManager => "kube-controller-manager",
            Part::KubeProxy => "kube-proxy",
            Part::Coredns => "coredns",
        }
    }

    /// Whether the kubelet starts it from a file of the node, not because the apiserver says so.
    pub fn is_static(self) -> bool {
        matches!(self, Part::KubeApiserver | Part::Etcd | Part::KubeScheduler | Part::KubeControllerManager)
    }

    /// Whether it is a container.
    pub fn is_container(self) -> bool {
        !matches!(self, Part::Slirp4netns | Part::Crio | Part::Kubelet)
    }

    /// Whether a node of that role has it, wherever pods are scheduled.
    pub fn is_expected_of(self, role: Role) -> bool {
        match self {
            Part::Coredns => false,
            part => !part.is_static() || role == Role::ControlPlane,
        }
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The apiserver runs here, and all that belongs to it.
    ControlPlane,
    /// Only pods run here.
    #[default]
    Worker,
}

/// Whether a process is in rootlesskit's user namespace, or one below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is.
    Inside,
    /// It is not.
    Outside,
    /// The kernel does not tell.
    Unknown,
}

/// A process of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// The container of which it is the first process: 64 hexadecimal digits.
    pub container: Option<String>,
    /// Where it is.
    pub place: Place,
}

/// What rootlesskit runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// rootlesskit's child: the first process of its namespaces; its number on the host.
    pub pid: u32,
    /// For how long it has been there, if the clock says it.
    pub age: Option<Duration>,
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// rootlesskit's child. `None`: there is none, and nothing in it.
    pub child: Option<Child>,
    /// The processes of each part that has any.
    pub parts: BTreeMap<Part, Vec<Process>>,
    /// Parts of which the records cannot be read: whether they are there nobody knows.
    pub unknown: BTreeSet<Part>,
    /// Processes of real root that are called as parts: name and number.
    pub real_root: Vec<(Part, u32)>,
    /// How many pods have a process; `None`: the records cannot be read.
    pub pods: Option<usize>,
    /// Why what runs in containers is unknown.
    pub why: Option<String>,
}

/// Who is asked whether it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The apiserver of this node.
    Apiserver,
    /// The kubelet.
    Kubelet,
    /// etcd's port.
    Etcd,
    /// The load balancer.
    LoadBalancer,
    /// The address that this node holds.
    VirtualAddress,
}

impl Target {
    /// Whom a finding is about.
    pub fn name(self) -> &'static str {
        match self {
            Target::Apiserver => "kube-apiserver",
            Target::Kubelet => "kubelet",
            Target::Etcd => "etcd",
            Target::LoadBalancer => "load balancer",
            Target::VirtualAddress => "virtual address",
        }
    }

    /// Whether it is of what rootlesskit runs.
    pub fn is_inside(self) -> bool {
        matches!(self, Target::Apiserver | Target::Kubelet | Target::Etcd)
    }
}

/// What came back, for people: that it is well, or why not. May hold text of whoever answered.
pub type Answer = Result<String, String>;

/// What the node is like; `None`: it cannot be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's release, such as `6.12.8-6.12-alt1`.
    pub kernel: Option<String>,
    /// The controllers of control groups that u7s-admin's manager has.
    pub controllers: Option<Vec<String>>,
    /// Whether u7s-admin's manager stays without a session.
    pub lingers: Option<bool>,
    /// `fs.inotify.max_user_watches`.
    pub watches: Option<u64>,
    /// `fs.inotify.max_user_instances`.
    pub instances: Option<u64>,
}

/// podsecd started a unit again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Which.
    pub unit: Unit,
    /// The how manieth time within an hour, from 1 on.
    pub attempt: u32,
    /// How many times it may be.
    pub limit: u32,
    /// Why the manager did not, if it did not.
    pub outcome: Result<(), String>,
}

/// What the source saw at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What the node is.
    pub role: Role,
    /// The managers that were asked; why one does not answer.
    pub managers: BTreeMap<Bus, Result<(), String>>,
    /// The units of those that answer.
    pub units: BTreeMap<Unit, UnitState>,
    /// What was done.
    pub actions: Vec<Action>,
    /// Units that are down and have been started as often as they may.
    pub given_up: Option<BTreeSet<Unit>>,
    /// What runs; `None`: it cannot be seen now.
    pub processes: Option<Processes>,
    /// Why it cannot be seen, if it cannot.
    pub unseen: Option<String>,
    /// Who was asked, and what came back; `None`: nobody was asked this time.
    pub health: Option<BTreeMap<Target, Answer>>,
    /// What the node is like; `None`: it was not looked at this time.
    pub facts: Option<Facts>,
}
