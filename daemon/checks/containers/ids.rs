//! The ids of check `containers`; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// Something in a container's files changed.
pub const FILE_CHANGED: Id = Id("containers/file-changed");
/// Something in `/etc`, `/root` or `/home` of a container changed.
pub const SETTINGS_CHANGED: Id = Id("containers/settings-changed");
/// A program or a library of a container changed.
pub const BINARY_CHANGED: Id = Id("containers/binary-changed");
/// A file of a container runs with the rights of its owner or group, and is new or changed.
pub const SETUID_FILE: Id = Id("containers/setuid-file");
/// A file of a container has capabilities, and is new or changed.
pub const FILE_CAPABILITY: Id = Id("containers/file-capability");
/// The layer of an image changed on disk, which is no container's doing.
pub const IMAGE_LAYER_CHANGED: Id = Id("containers/image-layer-changed");

/// A container was started.
pub const STARTED: Id = Id("containers/started");
/// A container stopped.
pub const STOPPED: Id = Id("containers/stopped");
/// A container stopped, and the kernel had killed it or a part of it for want of memory.
pub const OUT_OF_MEMORY: Id = Id("containers/out-of-memory");

/// A container starts and stops all the time.
pub const RESTARTING: Id = Id("containers/restarting");

/// All of them.
pub const ALL: &[Id] = &[
    FILE_CHANGED,
    SETTINGS_CHANGED,
    BINARY_CHANGED,
    SETUID_FILE,
    FILE_CAPABILITY,
    IMAGE_LAYER_CHANGED,
    STARTED,
    STOPPED,
    OUT_OF_MEMORY,
    RESTARTING,
];
