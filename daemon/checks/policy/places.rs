//! What has to be watched so that no change of what was read goes unseen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::accounts::Account;
use super::observe::CRIO_POLICIES;
use super::seen::{CRIO, CRIO_DROP_INS, Home, Named, OWN, Policy, Read, SYSTEM, System};
use super::settings::Settings;
use super::store::{Candidates, LAYERS, LIST, LISTS};
use super::tree::Tree;
use crate::watch::names::Paths;
use crate::watch::open::Directory;

/// What is of interest, by the directory below which it is.
pub(super) type Places = BTreeMap<PathBuf, Paths>;

/// The places of what holds for all accounts.
pub(super) fn of_system(tree: &Tree, system: &System) -> Places {
    let mut places = Places::new();
    let etc = places.entry("/etc".into()).or_default();
    for name in ["passwd", "group", "subuid", "subgid"] {
        etc.add(name);
    }
    for sub in ["*", "registries.d/*", "registries.conf.d/*"] {
        add(&mut places, &Path::new(SYSTEM).join(sub));
    }
    add_keys(&mut places, tree, system.policy.as_ref());
    // podsec's files there are links.
    for name in ["policy.json", "registries.conf", "storage.conf"] {
        add_with_target(&mut places, tree, &Path::new(SYSTEM).join(name));
    }
    places
}

/// The places where homes come and go.
pub(super) fn of_strangers(settings: &Settings) -> Places {
    let mut places = Places::new();
    settings.homes.iter().for_each(|homes| add(&mut places, &homes.join("*")));
    places
}

/// The places of a home that cannot be read.
pub(super) fn of_unreadable(account: &Account) -> Places {
    let mut places = Places::new();
    add(&mut places, &account.home);
    places
}

/// The places of what an account's home says.
pub(super) fn of_home(tree: &Tree, home: &Home, system: &System) -> Places {
    let path = &home.account.home;
    let mut places = Places::new();
    let own = places.entry(path.clone()).or_default();
    for sub in ["*", "registries.d/*", "registries.conf.d/*"] {
        own.add(Path::new(OWN).join(sub));
    }
    for target in &home.targets {
        own.add(target);
        own.add(target.join("*"));
    }
    // Whether what it lies in is immutable matters, too.
    own.add(OWN);
    if home.runs_crio {
        own.add(CRIO);
        add(&mut places, &Path::new(CRIO_DROP_INS).join("*"));
    }
    let candidates = Candidates::of(home, system);
    let names: Vec<_> = LISTS.iter().map(|list| Path::new(list).join(LIST)).chain([LAYERS.into()]).collect();
    for store in candidates.own.union(&candidates.additional) {
        let below = store.strip_prefix(path).ok();
        match below {
            Some(below) => names.iter().for_each(|name| places.entry(path.clone()).or_default().add(below.join(name))),
            // Whose it is matters, too.
            None => add(&mut places, store),
        }
        // From the home that is watched only as far as the way does not lead out of it.
        let is_apart = home.images.stores.iter().any(|found| found.is_apart && found.path == *store);
        if below.is_none() || is_apart {
            let own = places.entry(store.clone()).or_default();
            names.iter().for_each(|name| own.add(name));
        }
    }
    add_keys(&mut places, tree, home.policy.as_ref());
    for told in home.crio.iter().flatten() {
        let policies = told.crio.signature_policy_dir.as_deref().unwrap_or(Path::new(CRIO_POLICIES));
        add(&mut places, &policies.join("*"));
        if let (Named::Other(policy), Some(file)) = (&told.policy, &told.crio.signature_policy) {
            add_with_target(&mut places, tree, file);
            add_keys(&mut places, tree, Some(policy));
        }
        told.namespaces.iter().for_each(|policy| add_keys(&mut places, tree, Some(policy)));
    }
    places
}

/// Opens the directories; of those that are not there the nearest that is.
pub(super) fn open(tree: &Tree, places: &Places) -> Vec<(Directory, Paths)> {
    let open = |(place, paths): (&PathBuf, &Paths)| {
        place.ancestors().find_map(|above| {
            let directory = tree.directory(above).ok()?;
            Some((directory, paths.below(place.strip_prefix(above).ok()?)))
        })
    };
    places.iter().filter_map(open).collect()
}

/// Adds an absolute path; a relative one is nobody's.
fn add(places: &mut Places, path: &Path) {
    if let (true, Some(directory), Some(name)) = (path.is_absolute(), path.parent(), path.file_name()) {
        places.entry(directory.to_path_buf()).or_default().add(name);
    }
}

/// Adds an absolute path, and where it leads if it is a link: what is there is of interest, too.
fn add_with_target(places: &mut Places, tree: &Tree, path: &Path) {
    add(places, path);
    if let Some(target) = tree.target(path) {
        add(places, &target);
    }
}

/// Adds the keys of a policy.
fn add_keys(places: &mut Places, tree: &Tree, policy: Option<&Read<Arc<Policy>>>) {
    for policy in policy.into_iter().flatten() {
        policy.keys.iter().for_each(|(path, _)| add_with_target(places, tree, Path::new(path)));
    }
}
