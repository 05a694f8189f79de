//! The ids of check `images`; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// Condition of a user: the policy has registries whose images need no signature.
pub const UNSUPPORTED_REGISTRY: Id = Id("images/unsupported-registry");
/// Condition of a user: has images that are not signed as the policy asks.
pub const UNSIGNED: Id = Id("images/unsigned");
/// Condition of a user: has images that no registry of the policy covers.
pub const OUTSIDE_POLICY: Id = Id("images/outside-policy");
/// Condition of a user: has images whose signatures cannot be judged offline.
pub const UNVERIFIABLE: Id = Id("images/unverifiable");
/// Condition of a store: its list of images cannot be read.
pub const LIST_INVALID: Id = Id("images/list-invalid");
/// Condition of a store: podsecd does not read it, though the container tools may.
pub const STORE_UNREAD: Id = Id("images/store-unread");
/// An image is there that was not.
pub const CREATED: Id = Id("images/created");
/// An image is other than it was.
pub const CHANGED: Id = Id("images/changed");
/// An image is gone.
pub const DELETED: Id = Id("images/deleted");
/// An image got a name.
pub const TAGGED: Id = Id("images/tagged");
/// An image lost a name.
pub const UNTAGGED: Id = Id("images/untagged");

/// More happened to a user's images than is told one by one.
pub const MORE_CHANGES: Id = Id("images/more-changes");

/// All of them.
pub const ALL: &[Id] = &[
    UNSUPPORTED_REGISTRY,
    UNSIGNED,
    OUTSIDE_POLICY,
    UNVERIFIABLE,
    LIST_INVALID,
    STORE_UNREAD,
    CREATED,
    CHANGED,
    DELETED,
    TAGGED,
    UNTAGGED,
    MORE_CHANGES,
];
