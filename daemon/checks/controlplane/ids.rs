//! The ids of check `controlplane`; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// The node is one of the control plane no longer, or has become one.
pub const ROLE_CHANGED: Id = Id("controlplane/role-changed");
/// Condition of a unit: it does not run.
pub const UNIT_DOWN: Id = Id("controlplane/unit-down");
/// systemd started a unit again by itself, or the kubelet a container.
pub const RESTARTED: Id = Id("controlplane/restarted");
/// Condition of a unit or container: it is started again and again.
pub const RESTARTING: Id = Id("controlplane/restarting");
/// Condition of a part: no process of it is there.
pub const COMPONENT_MISSING: Id = Id("controlplane/component-missing");
/// Condition of a part or unit: it runs as root of the host.
pub const REAL_ROOT: Id = Id("controlplane/real-root");
/// Condition of a part: it runs, but not in rootlesskit's user namespace or one below it.
pub const OUTSIDE_NAMESPACE: Id = Id("controlplane/outside-namespace");
/// Condition of an endpoint: it does not answer, or says that it is not well.
pub const UNHEALTHY: Id = Id("controlplane/unhealthy");
/// Condition of a systemd manager: it does not answer.
pub const MANAGER_UNAVAILABLE: Id = Id("controlplane/manager-unavailable");
/// Condition of the node: what runs on it cannot be seen.
pub const UNSEEN: Id = Id("controlplane/unseen");
/// podsecd started a unit again, or tried to.
pub const RESTART_TRIED: Id = Id("controlplane/restart-tried");
/// Condition of a unit: podsecd started it as often as it may, and it is down.
pub const RESTART_GIVEN_UP: Id = Id("controlplane/restart-given-up");
/// Condition of the node: more pods than a kubelet is made for.
pub const TOO_MANY_PODS: Id = Id("controlplane/too-many-pods");
/// Condition of the node: its kernel is too old.
pub const KERNEL_OLD: Id = Id("controlplane/kernel-old");
/// Condition of the node: u7s-admin may not limit what pods use.
pub const CGROUP_NOT_DELEGATED: Id = Id("controlplane/cgroup-not-delegated");
/// Condition of the node: u7s-admin's manager ends with its last session.
pub const NO_LINGER: Id = Id("controlplane/no-linger");
/// Condition of the node: few inotify watches for one user.
pub const WATCHES_LOW: Id = Id("controlplane/watches-low");
/// Condition of the node: few inotify instances for one user.
pub const INSTANCES_LOW: Id = Id("controlplane/instances-low");

/// What podsecd judges by itself, and remembers: podsecd-u7s can be killed by whoever has its user id.
pub const OF_HOST: &[Id] = &[ROLE_CHANGED];

/// Those of podsecd-u7s.
pub const OF_U7S: &[Id] = &[
    UNIT_DOWN,
    RESTARTED,
    RESTARTING,
    COMPONENT_MISSING,
    REAL_ROOT,
    OUTSIDE_NAMESPACE,
    UNHEALTHY,
    MANAGER_UNAVAILABLE,
    UNSEEN,
    RESTART_TRIED,
    RESTART_GIVEN_UP,
    TOO_MANY_PODS,
    KERNEL_OLD,
    CGROUP_NOT_DELEGATED,
    NO_LINGER,
    WATCHES_LOW,
    INSTANCES_LOW,
];
