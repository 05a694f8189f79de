//! What a runtime was told of a container: `config.json` of the OCI runtime specification
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config.md>). Pure.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::Deserialize;

/// Longest file, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// What has more mounts, or longer paths, is nothing that a runtime was told: each costs memory.
const MAX_MOUNTS: usize = 1024;
const MAX_PATH: usize = 4096;
const MAX_PARTS: usize = 64;

/// What of it is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The user as which the first process runs, in the container.
    pub uid: u32,
    /// How ids in the container are those of the user namespace above it: first in the container, first above, how many.
    pub mappings: Vec<(u32, u32, u32)>,
    /// What the runtime makes where it is not there, from the root on without a leading `/`: what is mounted in the container,
    /// and the directories above that; the working directory.
    pub targets: BTreeSet<Vec<u8>>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    process: Process,
    #[serde(default)]
    mounts: Option<Vec<Mount>>,
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Process {
    user: User,
    cwd: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    uid: u32,
}

#[derive(Deserialize)]
struct Mount {
    destination: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    uid_mappings: Option<Vec<Mapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
    size: u32,
}

impl Spec {
    /// Reads the file; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<Spec> {
        let File { process, mounts, linux } = serde_json::from_slice(bytes).ok()?;
        let (mut targets, mut left) = (BTreeSet::new(), MAX_BYTES);
        let mounts = mounts.into_iter().flatten().map(|mount| mount.destination);
        for path in mounts.take(MAX_MOUNTS).chain([process.cwd]).filter(|path| path.len() <= MAX_PATH) {
            let mut target = Vec::new();
            for part in Path::new(&path).components().take(MAX_PARTS) {
                if let Component::Normal(name) = part {
                    if !target.is_empty() {
                        target.push(b'/');
                    }
                    target.extend_from_slice(name.as_encoded_bytes());
                    // All of them together take no more memory than the file.
                    left = left.saturating_sub(target.len());
                    if left > 0 {
                        targets.insert(target.clone());
                    }
                }
            }
        }
        let mappings = linux.uid_mappings.into_iter().flatten();
        let mappings = mappings.map(|mapping| (mapping.container, mapping.host, mapping.size)).collect();
        Some(Spec { uid: process.user.uid, mappings, targets })
    }

    /// The id of the first process's user in the user namespace above the container's.
    pub fn outer_uid(&self) -> Option<u32> {
        map(&self.mappings, self.uid)
    }
}

/// An id as the namespace above has it; without mappings it is the same.
pub fn map(mappings: &[(u32, u32, u32)], id: u32) -> Option<u32> {
    if mappings.is_empty() {
        return Some(id);
    }
    mappings.iter().find_map(|(inner, outer, size)| {
        let offset = id.checked_sub(*inner).filter(|offset| offset < size)?;
        outer.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_what_is_mounted_and_what_is_above_it() {
        let text = br#"{"process":{"user":{"uid":33,"gid":33},"cwd":"/srv/app"},"mounts":[{"destination":"/etc/hosts","type":"bind"},
            {"destination":"/proc"},{"destination":"/data/../x"}],"linux":{"uidMappings":[{"containerID":0,"hostID":1,"size":1000},
            {"containerID":1000,"hostID":0,"size":1}]}}"#;
        let spec = Spec::parse(text).expect("valid");
        let targets: Vec<_> = spec.targets.iter().map(|target| String::from_utf8_lossy(target).into_owned()).collect();
        assert_eq!(targets, ["data", "data/x", "etc", "etc/hosts", "proc", "srv", "srv/app"]);
        assert_eq!(spec.outer_uid(), Some(34));
        assert_eq!(map(&spec.mappings, 1000), Some(0));
        assert_eq!(map(&spec.mappings, 1001), None);
        assert_eq!(Spec::parse(b"{}"), Some(Spec::default()));
        assert_eq!(Spec::parse(b"{"), None);
    }
}
