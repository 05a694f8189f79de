//! What has to be watched so that no change of what was read goes unseen.

use std::path::{Path, PathBuf};

use super::observe::{CRIO, CRIO_DROP_INS, CRIO_POLICIES, Home, Named, OWN, Policy, Read, System};
use super::settings::Settings;
use super::store::candidates;
use super::tree::Tree;
use crate::watch::names::Paths;
use crate::watch::open::Directory;

/// Directories, each with what is of interest below it.
pub(super) type Places = Vec<(Directory, Paths)>;

/// The places of what holds for all accounts, by their paths.
pub(super) fn of_system(tree: &Tree, settings: &Settings, system: Option<&System>) -> Places {
    let mut etc = Paths::default();
    for path in ["passwd", "group", "subuid", "subgid"] {
        etc.add(path);
    }
    for path in ["containers/*", "containers/registries.d/*", "containers/registries.conf.d/*"] {
        etc.add(path);
    }
    let mut places: Places = tree.directory(Path::new("/etc")).map(|directory| (directory, etc)).into_iter().collect();
    places.extend(settings.homes.iter().filter_map(|homes| nearest(tree, &homes.join("*"))));
    if let Some(system) = system {
        places.extend(keys(tree, system.policy.as_ref()));
        // podsec's files there are links; where they lead is of interest, too.
        let links = ["policy.json", "registries.conf", "storage.conf"].map(|name| Path::new("/etc/containers").join(name));
        places.extend(links.iter().filter_map(|link| nearest(tree, &tree.target(link)?)));
    }
    places
}

/// The places of what an account's home says.
pub(super) fn of_home(tree: &Tree, path: &Path, is_crio: bool, seen: Option<(&Home, &System)>) -> Places {
    let Ok(home) = tree.directory(path) else { return nearest(tree, path).into_iter().collect() };
    let mut own = Paths::default();
    for sub in ["*", "registries.d/*", "registries.conf.d/*"] {
        own.add(Path::new(OWN).join(sub));
    }
    let mut places = Places::new();
    if is_crio {
        own.add(CRIO);
        places.extend(nearest(tree, &Path::new(CRIO_DROP_INS).join("*")));
    }
    if let Some((seen, system)) = seen {
        for store in candidates(seen, system) {
            for name in ["overlay-images/images.json", "vfs-images/images.json", "overlay"] {
                let wanted = store.join(name);
                match wanted.strip_prefix(path) {
                    Ok(below) => own.add(below),
                    Err(_) => places.extend(nearest(tree, &wanted)),
                }
            }
        }
        places.extend(keys(tree, seen.policy.as_ref()));
        for told in seen.crio.iter().flatten() {
            let policies = told.crio.signature_policy_dir.as_deref().unwrap_or(Path::new(CRIO_POLICIES));
            places.extend(nearest(tree, &policies.join("*")));
            if let Named::Other(policy) = &told.policy {
                places.extend(told.crio.signature_policy.as_deref().and_then(|path| nearest(tree, path)));
                places.extend(keys(tree, Some(policy)));
            }
            places.extend(told.namespaces.iter().flat_map(|policy| keys(tree, Some(policy))));
        }
    }
    places.push((home, own));
    places
}

/// Where the keys of a policy are.
fn keys<'a>(tree: &'a Tree, policy: Option<&'a Read<std::sync::Arc<Policy>>>) -> impl Iterator<Item = (Directory, Paths)> + 'a {
    let keys = policy.into_iter().flatten().flat_map(|policy| policy.keys.keys());
    keys.map(Path::new).filter(|path| path.is_absolute()).filter_map(|path| nearest(tree, path))
}

/// The nearest directory above a path that is there, and what is of interest below it.
fn nearest(tree: &Tree, path: &Path) -> Option<(Directory, Paths)> {
    path.ancestors().skip(1).find_map(|above| {
        let directory = tree.directory(above).ok()?;
        let mut paths = Paths::default();
        paths.add(path.strip_prefix(above).ok()?);
        Some((directory, paths))
    })
}

/// What was wanted of places, to see whether it is still the same.
pub(super) fn wanted(places: &Places) -> Vec<(PathBuf, Paths)> {
    places.iter().map(|(directory, paths)| (directory.path(), paths.clone())).collect()
}
