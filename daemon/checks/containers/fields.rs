//! Further fields of findings about containers; those about the user and the image are check `images`'.

use crate::finding::FieldName;

/// The container's name, or its id if it has none.
pub static CONTAINER: FieldName = FieldName { json: "\"container\":", journal: "PODSEC_CONTAINER" };
/// The container's id.
pub static CONTAINER_ID: FieldName = FieldName { json: "\"containerID\":", journal: "PODSEC_CONTAINER_ID" };
/// The pod in which it is.
pub static POD: FieldName = FieldName { json: "\"pod\":", journal: "PODSEC_POD" };
/// The pod's namespace.
pub static NAMESPACE: FieldName = FieldName { json: "\"namespace\":", journal: "PODSEC_NAMESPACE" };
/// The layer of the store.
pub static LAYER: FieldName = FieldName { json: "\"layer\":", journal: "PODSEC_LAYER" };
/// What was done: `created`, `written`, `replaced`, `removed`, `moved`, `attributes` or `changed`.
pub static CHANGE: FieldName = FieldName { json: "\"change\":", journal: "PODSEC_CHANGE" };
/// The first paths, as the container sees them.
pub static PATHS: FieldName = FieldName { json: "\"paths\":", journal: "PODSEC_PATH" };
/// The exit code of a container that stopped.
pub static EXIT_CODE: FieldName = FieldName { json: "\"exitCode\":", journal: "PODSEC_EXIT_CODE" };
/// Why it stopped: `exit`, `signal` or `out-of-memory`; `unknown` without an exit code.
pub static REASON: FieldName = FieldName { json: "\"reason\":", journal: "PODSEC_REASON" };
/// How many paths there are, at least.
pub static COUNT: FieldName = FieldName { json: "\"count\":", journal: "PODSEC_COUNT" };
