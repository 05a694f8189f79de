//! What an operator may set: the names that podsec gives to things.

use std::path::PathBuf;

use serde::Deserialize;

/// Names of groups, registries and places; podsec's are the defaults.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// The group of those who may run containers.
    pub podman_group: String,
    /// The group of those who make images; their default policy may be anything.
    pub developer_group: String,
    /// The group of administrators, in which nobody who runs containers should be.
    pub admin_group: String,
    /// Directories with homes, also of users whom passwd does not know. Absolute.
    pub homes: Vec<PathBuf>,
    /// The registry whose images must be signed.
    pub signed_registry: String,
    /// Where signatures are looked for by default.
    pub signature_store: String,
    /// The account that runs CRI-O, which its crio.conf tells what holds.
    pub crio_user: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            podman_group: "podman".into(),
            developer_group: "podman_dev".into(),
            admin_group: "wheel".into(),
            homes: vec!["/home".into()],
            signed_registry: "registry.local".into(),
            signature_store: "http://sigstore.local:81/sigstore/".into(),
            crio_user: "u7s-admin".into(),
        }
    }
}
