//! Further fields of findings about images.

use crate::finding::FieldName;

/// The image's name, or its id if it has none.
pub static IMAGE: FieldName = FieldName { json: "\"image\":", journal: "PODSEC_IMAGE" };
/// The digest of its manifest.
pub static DIGEST: FieldName = FieldName { json: "\"digest\":", journal: "PODSEC_IMAGE_DIGEST" };
/// The user in whose store it is.
pub static USER: FieldName = FieldName { json: "\"user\":", journal: "PODSEC_USER" };
/// That user's id on the node.
pub static HOST_UID: FieldName = FieldName { json: "\"hostUID\":", journal: "PODSEC_HOST_UID" };
