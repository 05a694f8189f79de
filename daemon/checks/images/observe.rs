//! Reads the images of an account's stores, and judges their signatures: work for a thread that may block.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::keys::KeyFiles;
use super::known::Known;
use super::list::{self, Image};
use super::verify::{Evidence, Outcome, verify};
use crate::checks::policy::accounts::Account;
use crate::checks::policy::choose::{self, DOCKER, Place, Verdict};
use crate::checks::policy::document::Requirements;
use crate::checks::policy::observe::{Home, Observer, Policy, System};
use crate::checks::policy::reference::Reference;
use crate::checks::policy::tree::{Broken, is_absent};
use crate::watch::open::Directory;

/// Where a store lists its images, by the driver that keeps them.
const LISTS: [&str; 2] = ["overlay-images", "vfs-images"];
/// Longest manifest that the container tools take, and so longest blob here, in bytes.
const MAX_BLOB: u64 = 4 << 20;

/// An account's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Whose they are.
    pub account: Account,
    /// Whether they are judged: not where there are neither images nor a policy.
    pub is_judged: bool,
    /// Scopes of the policy that holds whose images need no signature.
    pub unsigned_scopes: Vec<String>,
    /// The images, by store and driver.
    pub lists: BTreeMap<PathBuf, Result<Images, Broken>>,
}

/// The images of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// What is remembered of them.
    pub known: Vec<Known>,
    /// What is to be said of those that are not signed as the policy asks, by their names.
    pub states: BTreeMap<String, State>,
}

/// What is to be said of an image under one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is not signed as the policy asks, and why.
    Unsigned(String),
    /// That cannot be told, and why.
    Unverifiable(String),
    /// No scope of the policy lets it in.
    Outside,
}

/// Looks at all images of an account.
pub fn look(observer: &Observer, home: &Home, system: &System, now: SystemTime) -> Look {
    let policy = home.effective(system).1.and_then(|policy| policy.as_ref().ok());
    let scopes = policy.and_then(|policy| policy.document.transports.get(DOCKER));
    let unsigned = scopes.into_iter().flatten().filter(|(_, list)| choose::judge(list) == Verdict::Anything);
    let judge = Judge { policy, keys: policy.map_or_else(KeyFiles::default, |policy| keys(observer, policy)), now };
    let mut lists = BTreeMap::new();
    for store in &home.stores {
        let Ok(directory) = observer.open_store(home, &store.path) else { continue };
        for driver in LISTS {
            if let Some(list) = judge.look(&directory, &store.path.join(driver), driver) {
                lists.insert(store.path.join(driver), list);
            }
        }
    }
    Look {
        account: home.account.clone(),
        is_judged: home.is_judged(system),
        unsigned_scopes: unsigned.map(|(scope, _)| scope.clone()).collect(),
        lists,
    }
}

/// The keys that a policy names.
fn keys(observer: &Observer, policy: &Policy) -> KeyFiles {
    let mut keys = KeyFiles::default();
    for (path, _) in &policy.keys {
        let bytes = observer.read_key(Path::new(path));
        keys.insert(path, bytes.as_deref().map_err(ToString::to_string));
    }
    keys
}

/// What images are judged by.
struct Judge<'a> {
    policy: Option<&'a Arc<Policy>>,
    keys: KeyFiles,
    now: SystemTime,
}

impl Judge<'_> {
    /// The images of one driver of a store; `None` if it has none.
    fn look(&self, store: &Directory, path: &Path, driver: &str) -> Option<Result<Images, Broken>> {
        let file = path.join("images.json");
        let bytes = match read(store, &Path::new(driver).join("images.json"), list::MAX_BYTES as u64) {
            Err(error) if is_absent(&error) => return None,
            Err(error) => return Some(Err(Broken::new(file, &error))),
            Ok(bytes) => bytes,
        };
        let images = list::parse(&bytes).map_err(|error| Broken::new(file, &error));
        Some(images.map(|images| {
            let known = images.iter().map(Known::from).collect();
            let states = images.iter().flat_map(|image| self.states(store, driver, image)).collect();
            Images { known, states }
        }))
    }

    fn states(&self, store: &Directory, driver: &str, image: &Image) -> Vec<(String, State)> {
        let blob = |name: &str| read(store, &Path::new(driver).join(&image.id).join(list::file_name(name)), MAX_BLOB);
        let names = image.names.iter().filter_map(|name| {
            let state = match Reference::parse(name).map(Reference::image) {
                Ok(reference) => self.state(&reference, image, blob)?,
                Err(_) => State::Outside,
            };
            Some((name.clone(), state))
        });
        names.collect()
    }

    /// What is to be said of an image, if it is not signed as the policy asks.
    fn state(&self, name: &Reference, image: &Image, blob: impl Fn(&str) -> io::Result<Vec<u8>>) -> Option<State> {
        let Some(policy) = self.policy else {
            return Some(State::Unverifiable("there is no valid policy".to_owned()));
        };
        match choose::choose(&policy.document, name) {
            (Place::Default, _) => Some(State::Outside),
            (_, requirements) => self.judge(requirements, name, image, blob),
        }
    }

    fn judge(
        &self,
        requirements: &Requirements,
        name: &Reference,
        image: &Image,
        blob: impl Fn(&str) -> io::Result<Vec<u8>>,
    ) -> Option<State> {
        let unreadable =
            |what: &str, error: &io::Error| Some(State::Unverifiable(format!("its {what} cannot be read: {error}")));
        let sizes = match &image.signatures {
            Ok(sizes) => &sizes.own,
            Err(why) => return Some(State::Unverifiable(why.clone())),
        };
        let signatures = match blob("signatures") {
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return unreadable("signatures", &error),
            Ok(signatures) => signatures,
        };
        let manifest = match blob("manifest") {
            Err(error) => return unreadable("manifest", &error),
            Ok(manifest) => manifest,
        };
        let index = name.digest().and_then(|digest| blob(&format!("manifest-{digest}")).ok());
        let evidence = Evidence { name, manifest: &manifest, index: index.as_deref(), signatures: &signatures, sizes };
        Some(match verify(requirements, &evidence, &self.keys, self.now) {
            Outcome::Signed => return None,
            Outcome::Unsigned(why) => State::Unsigned(why),
            Outcome::Unverifiable(why) => State::Unverifiable(why),
            Outcome::Rejected(_) => State::Outside,
            Outcome::Anything if sizes.is_empty() => State::Unsigned("it has no signature".to_owned()),
            Outcome::Anything => State::Unverifiable("the policy names no key for its signature".to_owned()),
        })
    }
}

fn read(directory: &Directory, name: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    directory.file(name)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::Error::other(format!("larger than {} MiB", most >> 20))) } else { Ok(bytes) }
}
