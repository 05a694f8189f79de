//! The ids of this check; weights, meanings and remedies are in `policy/weights.toml`.

use crate::finding::Id;

/// 401: the client could not say who it is.
pub const UNAUTHENTICATED: Id = Id("kubeapi/unauthenticated");
/// 403 of a known user.
pub const FORBIDDEN: Id = Id("kubeapi/forbidden");
/// 403 of system:anonymous.
pub const FORBIDDEN_ANONYMOUS: Id = Id("kubeapi/forbidden-anonymous");
/// Any other 4xx.
pub const CLIENT_ERROR: Id = Id("kubeapi/client-error");
/// 500 and above.
pub const SERVER_ERROR: Id = Id("kubeapi/server-error");
/// Condition: every peer is 127.0.0.1, because rootlesskit hides it.
pub const SOURCE_HIDDEN: Id = Id("kubeapi/source-hidden");
/// Somebody else than kube-apiserver cut, removed, moved or replaced the log.
pub const AUDIT_TRUNCATED: Id = Id("kubeapi/audit-truncated");

/// The classes of refused requests, which podsec calls Critical without distinction.
pub const REFUSALS: [Id; 5] = [UNAUTHENTICATED, FORBIDDEN, FORBIDDEN_ANONYMOUS, CLIENT_ERROR, SERVER_ERROR];

/// All of them.
pub const ALL: &[Id] =
    &[UNAUTHENTICATED, FORBIDDEN, FORBIDDEN_ANONYMOUS, CLIENT_ERROR, SERVER_ERROR, SOURCE_HIDDEN, AUDIT_TRUNCATED];
