//! Reads the images of an account's stores, and judges their signatures: work for a thread that may block.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::keys::KeyFiles;
use super::known::Known;
use super::list::{self, Image};
use super::signature::cut;
use super::verify::{Evidence, Outcome, verify};
use crate::checks::policy::accounts::Account;
use crate::checks::policy::assess::{MAX_LISTED, list_first};
use crate::checks::policy::choose::{Place, choose, unsigned_scopes};
use crate::checks::policy::observe::{MAX_KEY_BYTES, Observer};
use crate::checks::policy::reference::Reference;
use crate::checks::policy::seen::{Former, Home, Policy, System};
use crate::checks::policy::store::{LIST, LISTS};
use crate::checks::policy::tree::{Broken, is_absent};
use crate::watch::open::Directory;

/// Longest manifest that the container tools take, and so longest blob here, in bytes.
const MAX_BLOB: u64 = 4 << 20;
/// So much is told of a name, in characters.
const MAX_NAME: usize = 256;

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
    /// Whether also the unfinished ones count: they had time to be finished.
    pub is_settled: bool,
}

/// The images of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// What is remembered of them.
    pub known: Vec<Known>,
    /// What is to be said of them.
    pub finished: Judged,
    /// What is to be said of those that look as if they were just being pulled.
    pub unfinished: Judged,
    /// Their ids.
    pub unfinished_ids: BTreeSet<String>,
}

/// What is to be said of images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Those that are not signed as the policy asks, and why.
    pub unsigned: Several,
    /// Those of which that cannot be told, and why.
    pub unverifiable: Several,
    /// Those that no scope of the policy lets in.
    pub outside: Several,
}

/// Sentences, of which only the first are kept: whoever writes a store writes how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Several {
    first: BTreeSet<String>,
    more: usize,
}

/// What is to be said of an image under one of its names.
enum State {
    Unsigned(String),
    Unverifiable(String),
    Outside,
}

/// So much processor time is spent on one account's signatures in one look.
const MAX_EFFORT: Duration = Duration::from_secs(2);

/// Looks at all images of an account, by its home and what held when that could be read last.
pub fn look(observer: &Observer, (home, former): (&Home, &Former), system: &System, now: SystemTime) -> Look {
    let policy = home.policy_of_images(system, former);
    let unsigned = policy.into_iter().flat_map(|policy| unsigned_scopes(&policy.document));
    let keys = policy.map_or_else(KeyFiles::default, |policy| keys(observer, policy));
    let judge = Judge { policy, keys, now, until: spent() + MAX_EFFORT, left: Cell::new(list::MAX_BYTES as u64) };
    let mut lists = BTreeMap::new();
    for store in &home.images.stores {
        let directory = observer.open_store(&home.account, &store.path);
        for driver in LISTS {
            let path = store.path.join(driver);
            let list = match &directory {
                Ok(directory) => judge.look(directory, &path, driver),
                Err(error) => Some(Err(Broken::unread(&path, error))),
            };
            lists.extend(list.map(|list| (path, list)));
        }
    }
    let unread = home.images.unread.iter().map(|broken| (broken.file.clone(), Err(broken.clone())));
    lists.extend(unread);
    Look {
        account: home.account.clone(),
        is_judged: home.is_judged(system),
        unsigned_scopes: unsigned.map(ToOwned::to_owned).collect(),
        lists,
        is_settled: true,
    }
}

impl Look {
    /// Whether there are unfinished images.
    pub fn is_unfinished(&self) -> bool {
        self.lists.values().flatten().any(|images| !images.unfinished_ids.is_empty())
    }
}

/// The keys that a policy names.
fn keys(observer: &Observer, policy: &Policy) -> KeyFiles {
    let (mut keys, mut left) = (KeyFiles::default(), MAX_KEY_BYTES);
    for (path, _) in &policy.keys {
        let bytes = observer.read_key(Path::new(path), &mut left);
        keys.insert(path, bytes.as_deref().map_err(ToString::to_string));
    }
    keys
}

/// What images are judged by.
struct Judge<'a> {
    policy: Option<&'a Arc<Policy>>,
    keys: KeyFiles,
    now: SystemTime,
    /// The thread's processor time at which there has been enough of it.
    until: Duration,
    /// How many bytes of lists are still read.
    left: Cell<u64>,
}

impl Judge<'_> {
    /// The images of one driver of a store; `None` if it has none.
    fn look(&self, store: &Directory, path: &Path, driver: &str) -> Option<Result<Images, Broken>> {
        let file = path.join(LIST);
        let bytes = match read(store, &Path::new(driver).join(LIST), self.left.get()) {
            Err(error) if is_absent(&error) => return None,
            Err(error) => return Some(Err(Broken::unread(file, &error))),
            Ok(bytes) => bytes,
        };
        self.left.set(self.left.get() - bytes.len() as u64);
        let images = list::parse(&bytes).map_err(|error| Broken::new(file, &error));
        Some(images.map(|images| {
            let mut all = Images { known: images.iter().map(Known::from).collect(), ..Images::default() };
            for image in &images {
                self.judge(&Stored::new(store, driver, image), &mut all);
            }
            all
        }))
    }

    /// Says of an image, under each of its names, if it is not signed as the policy asks.
    fn judge(&self, stored: &Stored<'_>, images: &mut Images) {
        let mut say = |name: &str, state| {
            let judged = if stored.is_unfinished(&state) {
                images.unfinished_ids.insert(stored.image.id.clone());
                &mut images.unfinished
            } else {
                &mut images.finished
            };
            match state {
                State::Unsigned(why) => judged.unsigned.add(name, &why),
                State::Unverifiable(why) => judged.unverifiable.add(name, &why),
                State::Outside => judged.outside.add(name, ""),
            }
        };
        for name in &stored.image.names {
            if let Some(state) = self.state(name, stored) {
                say(name, state);
            }
        }
        if stored.image.names.is_empty() {
            // It is run by its id, and was pulled under a name that it has lost.
            let mut former = stored.image.former_names.iter().map(|name| self.state(name, stored));
            let first = former.next().unwrap_or(Some(State::Outside));
            if let Some(state) = first.filter(|_| former.all(|state| state.is_some())) {
                say(&stored.image.id, state);
            }
        }
    }

    /// What is to be said of an image under that name, if it is not signed as the policy asks.
    fn state(&self, name: &str, stored: &Stored<'_>) -> Option<State> {
        let Some(policy) = self.policy else {
            return Some(State::Unverifiable("there is no valid policy".to_owned()));
        };
        let Ok(name) = Reference::parse(name).map(Reference::image) else { return Some(State::Outside) };
        let (place, requirements) = choose(&policy.document, &name);
        if place == Place::Default {
            return Some(State::Outside);
        }
        if spent() >= self.until {
            return Some(State::Unsigned("not verified: it takes too long to verify all images".into()));
        }
        let index = name.digest().and_then(|digest| stored.blob(&format!("manifest-{digest}")).ok());
        let evidence = match stored.evidence(&name, index.as_deref()) {
            Ok(evidence) => evidence,
            Err(why) => return Some(State::Unsigned(why)),
        };
        let is_signed = || cut(evidence.signatures, evidence.sizes).is_ok_and(|signatures| !signatures.is_empty());
        Some(match verify(requirements, &evidence, &self.keys, self.now) {
            Outcome::Signed => return None,
            Outcome::Unsigned(why) => State::Unsigned(why),
            Outcome::Unverifiable(why) => State::Unverifiable(why),
            Outcome::Rejected(_) => State::Outside,
            Outcome::Anything if !is_signed() => State::Unsigned("it has no signature".to_owned()),
            Outcome::Anything => State::Unverifiable("the policy names no key for its signature".to_owned()),
        })
    }
}

/// Processor time of this thread.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or(Duration::MAX)
}

/// An image in its store; its blobs are read when they are needed first.
struct Stored<'s> {
    image: &'s Image,
    store: &'s Directory,
    directory: PathBuf,
    manifest: OnceCell<Result<Vec<u8>, String>>,
    signatures: OnceCell<Result<Vec<u8>, String>>,
}

impl<'s> Stored<'s> {
    fn new(store: &'s Directory, driver: &str, image: &'s Image) -> Stored<'s> {
        let directory = Path::new(driver).join(&image.id);
        Stored { image, store, directory, manifest: OnceCell::new(), signatures: OnceCell::new() }
    }

    fn blob(&self, name: &str) -> io::Result<Vec<u8>> {
        read(self.store, &self.directory.join(list::file_name(name)), MAX_BLOB)
    }

    /// What is known of it under that name, which may have the digest of a list of manifests.
    fn evidence<'e>(&'e self, name: &'e Reference, index: Option<&'e [u8]>) -> Result<Evidence<'e>, String> {
        let sizes = &self.image.signatures.as_ref().map_err(Clone::clone)?.own;
        let manifest = self.manifest.get_or_init(|| self.blob("manifest").map_err(|error| wrong("manifest", &error)));
        Ok(Evidence {
            name,
            manifest: manifest.as_ref().map_err(Clone::clone)?,
            digest: self.image.digest.as_deref().filter(|digest| !digest.is_empty()),
            index,
            signatures: self.signatures().as_ref().map_err(Clone::clone)?,
            sizes,
        })
    }

    fn signatures(&self) -> &Result<Vec<u8>, String> {
        self.signatures.get_or_init(|| match self.blob("signatures") {
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            other => other.map_err(|error| wrong("signatures", &error)),
        })
    }

    /// Whether that is to be said of it just because it is being pulled: the tools write its name last, and its signatures
    /// before they write how long each is.
    fn is_unfinished(&self, state: &State) -> bool {
        let Image { names, former_names, signatures, .. } = self.image;
        // Of signatures that were not read nothing was said.
        match (state, signatures, self.signatures.get()) {
            _ if names.is_empty() && former_names.is_empty() => true,
            (State::Unsigned(_), Ok(sizes), Some(Ok(signatures))) => {
                sizes.own.iter().map(|size| u128::from(*size)).sum::<u128>() != signatures.len() as u128
            }
            _ => false,
        }
    }
}

impl Several {
    /// One more: an image, and why.
    fn add(&mut self, name: &str, why: &str) {
        let name: String = name.chars().take(MAX_NAME).collect();
        self.first.insert(if why.is_empty() { name } else { format!("{name} ({why})") });
        if self.first.len() > MAX_LISTED {
            self.first.pop_last();
            self.more += 1;
        }
    }

    /// These and others.
    pub(super) fn and(mut self, others: &Several) -> Several {
        self.first.extend(others.first.iter().cloned());
        self.more += others.more;
        while self.first.len() > MAX_LISTED {
            self.first.pop_last();
            self.more += 1;
        }
        self
    }

    /// All in a sentence; `None` if there are none.
    pub(super) fn list(&self) -> Option<String> {
        list_first(&self.first.iter().map(String::as_str).collect::<Vec<_>>(), self.more)
    }
}

fn wrong(blob: &str, error: &io::Error) -> String {
    format!("its {blob} cannot be read: {error}")
}

fn read(directory: &Directory, name: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    directory.file(name)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        Err(io::Error::other(format!("longer than {most} bytes, which is more than podsecd reads")))
    } else {
        Ok(bytes)
    }
}
