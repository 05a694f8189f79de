//! Fields of this check's findings: audit.k8s.io's names in JSON, and their names in the journal.

use crate::finding::FieldName;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $json:literal, $journal:literal;)*) => {
        $($(#[$doc])* pub const $name: &FieldName = &FieldName { json: concat!("\"", $json, "\":"), journal: $journal };)*
    };
}

fields! {
    /// Chosen by the client, if it wants to: neither unique nor a UUID.
    AUDIT_ID = "auditID", "AUDIT_ID";
    /// With the auditID, the key of a request.
    REQUEST_RECEIVED = "requestReceivedTimestamp", "K8S_REQUEST_TIMESTAMP";
    /// Stage of the line that the finding was made of.
    STAGE = "stage", "K8S_STAGE";
    /// HTTP status; aggregated API servers also answer with codes above 599.
    CODE = "code", "K8S_CODE";
    /// The authenticated user.
    USER = "user", "K8S_USER";
    /// Its groups.
    GROUPS = "groups", "K8S_GROUP";
    /// Whom it impersonates.
    IMPERSONATED = "impersonatedUser", "K8S_IMPERSONATED_USER";
    /// Verb of the request.
    VERB = "verb", "K8S_VERB";
    /// API group of the object.
    API_GROUP = "apiGroup", "K8S_API_GROUP";
    /// Resource of the object.
    RESOURCE = "resource", "K8S_RESOURCE";
    /// Sub-resource, such as exec.
    SUBRESOURCE = "subresource", "K8S_SUBRESOURCE";
    /// Namespace of the object.
    NAMESPACE = "namespace", "K8S_NAMESPACE";
    /// Name of the object.
    NAME = "name", "K8S_NAME";
    /// The real peer: the last of sourceIPs.
    SOURCE_IP = "sourceIP", "K8S_SOURCE_IP";
    /// What the client claimed before it (X-Forwarded-For, X-Real-Ip).
    FORWARDED_FOR = "forwardedFor", "K8S_FORWARDED_FOR";
    /// What the client calls itself; the apiserver cuts it at 1024 bytes.
    USER_AGENT = "userAgent", "K8S_USER_AGENT";
    /// The request's URI; not cut by the apiserver.
    REQUEST_URI = "requestURI", "K8S_URI";
    /// responseStatus.reason.
    REASON = "reason", "K8S_REASON";
    /// responseStatus.message.
    RESPONSE_MESSAGE = "responseMessage", "K8S_RESPONSE_MESSAGE";
}
