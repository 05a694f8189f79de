//! The ids of check `forwards`; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// Condition: a declared forward does not listen on the host.
pub const DOWN: Id = Id("forwards/down");
/// Condition: rootlesskit lists a forward that does not listen.
pub const ZOMBIE: Id = Id("forwards/zombie");
/// Condition: nothing listens inside at the port to which a forward leads.
pub const NO_LISTENER: Id = Id("forwards/no-listener");
/// Condition: somebody else has the place of a declared forward.
pub const CONFLICT: Id = Id("forwards/conflict");
/// Condition: rootlesskit does not take a declared forward.
pub const REFUSED: Id = Id("forwards/refused");
/// Condition: a forward was interrupted again and again.
pub const FLAPPING: Id = Id("forwards/flapping");
/// Condition: rootlesskit's API does not answer, or not as it should.
pub const API_UNAVAILABLE: Id = Id("forwards/api-unavailable");
/// Condition: rootlesskit runs with a port driver that takes no forwards.
pub const NO_PORT_DRIVER: Id = Id("forwards/no-port-driver");
/// Condition: rootlesskit's state directory is not watched, or nobody looks after the forwards at all.
pub const UNWATCHED: Id = Id("forwards/unwatched");
/// Condition: Services cannot be read from the Kubernetes API.
pub const SERVICES_UNAVAILABLE: Id = Id("forwards/services-unavailable");
/// Forwards were interrupted, and stand again.
pub const INTERRUPTED: Id = Id("forwards/interrupted");
/// Condition: u7s-admin's user id listens on the host where nothing is declared.
pub const UNDECLARED: Id = Id("forwards/undeclared");
/// Condition: etcd or the kubelet is offered to all addresses.
pub const EXPOSED: Id = Id("forwards/exposed");

/// Those of podsecd-u7s.
pub const OF_U7S: &[Id] = &[
    DOWN,
    ZOMBIE,
    NO_LISTENER,
    CONFLICT,
    REFUSED,
    FLAPPING,
    API_UNAVAILABLE,
    NO_PORT_DRIVER,
    UNWATCHED,
    SERVICES_UNAVAILABLE,
    INTERRUPTED,
];

/// The administrator declared a forward.
pub const DECLARED: Id = Id("forwards/declared");
/// The administrator withdrew a forward.
pub const WITHDRAWN: Id = Id("forwards/withdrawn");

/// The conditions that podsecd judges by itself: podsecd-u7s has the user id of whoever escapes a pod.
pub const OF_HOST: &[Id] = &[UNDECLARED, EXPOSED];

/// What administrators do, which podsecd tells.
pub const OF_ADMINISTRATORS: &[Id] = &[DECLARED, WITHDRAWN];
