//! Which scopes a transport knows: what its part of containers-transports(5) and containers-policy.json(5) says.

use super::super::reference::is_digest;

/// Why a scope is none of that transport, if so. Those that the tools do not look at, and unknown transports, take all.
pub(super) fn refuse(transport: &str, scope: &str) -> Option<String> {
    let refused = match transport {
        _ if scope.is_empty() => false,
        "dir" | "oci" | "oci-archive" | "sif" => {
            // OCI's paths may be followed by the name of an image.
            let path = if matches!(transport, "oci" | "oci-archive") {
                scope.split_once(':').map_or(scope, |(path, _)| path)
            } else {
                scope
            };
            path == "/" || !is_clean(path)
        }
        "docker-archive" | "tarball" => true,
        "docker-daemon" => is_digest(scope),
        "containers-storage" => {
            let store = scope.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(store, _)| store);
            let path = store.map(|store| store.split_once('@').map_or(store, |(_, path)| path));
            !path.is_some_and(is_clean)
        }
        _ => false,
    };
    refused.then(|| format!("`{scope}` is no scope of transport {transport}"))
}

/// An absolute path without `.`, `..`, `//` and a slash at its end.
fn is_clean(path: &str) -> bool {
    let Some(parts) = path.strip_prefix('/') else { return false };
    path == "/" || parts.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
