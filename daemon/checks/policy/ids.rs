//! The ids of check `policy`; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// Condition of a user: has images, but is not in group podman.
pub const USER_OUTSIDE_PODMAN: Id = Id("policy/user-outside-podman");
/// Condition of a user: the default policy rejects not.
pub const DEFAULT_NOT_REJECT: Id = Id("policy/default-not-reject");
/// Condition of a user: registry.local's images need no signature.
pub const REGISTRY_LOCAL_UNSIGNED: Id = Id("policy/registry-local-unsigned");
/// Condition of a user: the images of a registry in the policy need no signature.
pub const UNSIGNED_REGISTRY: Id = Id("policy/unsigned-registry");
/// Condition of a user: the policy has other transports than docker.
pub const FOREIGN_TRANSPORT: Id = Id("policy/foreign-transport");
/// Condition of a user: signatures are looked for elsewhere by default.
pub const FOREIGN_SIGSTORE: Id = Id("policy/foreign-sigstore");
/// Condition of a user of group podman: is in group wheel.
pub const PODMAN_IN_WHEEL: Id = Id("policy/podman-in-wheel");
/// Condition of a user of group podman: may change the own configuration.
pub const CONFIG_WRITABLE: Id = Id("policy/config-writable");
/// Condition of a user of group podman: has no storage.conf.
pub const CONFIG_MISSING: Id = Id("policy/config-missing");

/// Condition of a user: may put another configuration in place of the own.
pub const CONFIG_REPLACEABLE: Id = Id("policy/config-replaceable");
/// Condition of a user: a registry that needs no signatures is spoken to insecurely.
pub const INSECURE_REGISTRY: Id = Id("policy/insecure-registry");
/// Condition of a user: images come from a mirror that no scope covers.
pub const MIRROR_OUTSIDE: Id = Id("policy/mirror-outside");
/// Condition of a user: runs images from a store that belongs to others.
pub const FOREIGN_STORE: Id = Id("policy/foreign-store");
/// Condition of two users: they can become the same users in their namespaces.
pub const SUBID_OVERLAP: Id = Id("policy/subid-overlap");
/// Condition of a user: the home does not answer.
pub const HOME_HANGING: Id = Id("policy/home-hanging");
/// Condition of a file: it cannot be read, or is not valid.
pub const FILE_INVALID: Id = Id("policy/file-invalid");
/// Condition of a file: podsecd does not read it, though the container tools may.
pub const FILE_UNREAD: Id = Id("policy/file-unread");
/// Condition of a policy: a scope wants less than the one around it.
pub const WEAKER_SCOPE: Id = Id("policy/weaker-scope");
/// Condition of a policy: the images of all registries, or of a whole domain, need no signature.
pub const ACCEPTS_ANYTHING: Id = Id("policy/accepts-anything");
/// Condition of a policy: a key cannot be read.
pub const KEY_MISSING: Id = Id("policy/key-missing");
/// Condition of a policy: a key has expired.
pub const KEY_EXPIRED: Id = Id("policy/key-expired");
/// Condition of a policy: others than root and image makers may change a key.
pub const KEY_WRITABLE: Id = Id("policy/key-writable");
/// Condition of a policy: the users of group podman may put another key in its place.
pub const KEY_REPLACEABLE: Id = Id("policy/key-replaceable");
/// Condition of a policy: signatures of other names or tags count.
pub const IDENTITY_LOOSENED: Id = Id("policy/identity-loosened");
/// A policy, or what CRI-O is told, was changed, and what that means.
pub const CHANGED: Id = Id("policy/changed");

/// Those that count only for the share of the users of group podman to whom they apply.
pub const SHARED: [Id; 2] = [CONFIG_WRITABLE, CONFIG_MISSING];

/// All of them.
pub const ALL: &[Id] = &[
    USER_OUTSIDE_PODMAN,
    DEFAULT_NOT_REJECT,
    REGISTRY_LOCAL_UNSIGNED,
    UNSIGNED_REGISTRY,
    FOREIGN_TRANSPORT,
    FOREIGN_SIGSTORE,
    PODMAN_IN_WHEEL,
    CONFIG_WRITABLE,
    CONFIG_MISSING,
    CONFIG_REPLACEABLE,
    INSECURE_REGISTRY,
    MIRROR_OUTSIDE,
    FOREIGN_STORE,
    SUBID_OVERLAP,
    HOME_HANGING,
    FILE_INVALID,
    FILE_UNREAD,
    WEAKER_SCOPE,
    ACCEPTS_ANYTHING,
    KEY_MISSING,
    KEY_EXPIRED,
    KEY_WRITABLE,
    KEY_REPLACEABLE,
    IDENTITY_LOOSENED,
    CHANGED,
];
