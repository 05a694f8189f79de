//! Reads what says who may run which image: the system's files, and those in each account's home.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::accounts::{Account, Accounts, overlaps};
use super::crio::Crio;
use super::document::{Document, Requirement, Signer};
use super::keys::{self, KeyFile, Writers};
use super::place::{Configuration, Place};
use super::places::{self, Places};
use super::rights::Rights;
use super::seen::{CRIO, CRIO_DROP_INS, Former, Home, Named, OWN, Policy, Read, SYSTEM, Strangers, System, Told};
use super::settings::Settings;
use super::storage::Storage;
use super::store::{Found, Stores};
use super::tree::{Broken, Tree, is_absent, read, unseen};
use crate::watch::names::{Added, Adder};
use crate::watch::open::{Directory, MAX_PARTS};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use sha2::{Digest, Sha256};

/// Policies of namespaces, where nothing else is said: crio.conf(5).
pub(super) const CRIO_POLICIES: &str = "/etc/crio/policies";
/// More entries of a directory are no configuration.
pub(super) const MAX_ENTRIES: usize = 256;
/// More homes of one directory are not looked at.
const MAX_HOMES: usize = 100_000;
/// How often what is found may lead to further places.
const MAX_LOOKS: usize = 4;
/// More scopes and requirements are no policy, nor are more registries a configuration: each costs memory.
pub(super) const MAX_SCOPES: usize = 2000;
/// More bytes of what CRI-O is told are not read.
const MAX_TOLD_BYTES: usize = 2 << 20;
/// More keys of a policy are not looked at.
const MAX_KEYS: usize = 64;
/// Nor are more bytes of them.
pub(in crate::checks) const MAX_KEY_BYTES: usize = 2 << 20;

/// What of ~/.config/containers decides who may run what.
const CONFIGURATION: [&str; 6] =
    ["policy.json", "storage.conf", "registries.conf", "registries.conf.d", "registries.d", "containers.conf"];

/// Reads it all.
#[derive(Debug)]
pub struct Observer {
    tree: Tree,
    settings: Settings,
}

impl Observer {
    /// Reads the node's own files, or those below a directory.
    ///
    /// # Errors
    /// Those of open(2) for that directory.
    pub fn new(root: Option<&Path>, settings: Settings) -> io::Result<Observer> {
        Ok(Observer { tree: Tree::new(root)?, settings })
    }

    /// passwd and group.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn accounts(&self) -> Read<Accounts> {
        let text = |path: &str| self.tree.read(Path::new(path)).map(Option::unwrap_or_default);
        Ok(Accounts::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    }

    /// What holds for all accounts.
    pub fn system(&self) -> System {
        let mut broken = Vec::new();
        let accounts = self.accounts().unwrap_or_else(|error| {
            broken.push(error);
            Accounts::default()
        });
        let mut overlapping = BTreeMap::new();
        for file in ["/etc/subuid", "/etc/subgid"] {
            match self.tree.read(Path::new(file)) {
                Ok(text) => drop(overlapping.insert(file, overlaps(&text.unwrap_or_default(), &accounts))),
                Err(error) => broken.push(error),
            }
        }
        let place = Place::System(&self.tree);
        System {
            is_configured: place.is_there(),
            policy: self.policy(&place),
            lookaside: place.lookaside(),
            registries: place.registries().unwrap_or_default(),
            drop_ins: place.drop_ins(),
            storage: place.parsed("storage.conf", Storage::parse),
            overlaps: overlapping,
            accounts,
            broken,
        }
    }

    /// The accounts that may have a home: those of passwd, and the owners of homes that it does not know.
    pub fn owners(&self, accounts: &Accounts) -> Vec<Account> {
        accounts.iter().cloned().chain(self.strangers(accounts).accounts).collect()
    }

    /// The owners of homes that passwd does not know.
    pub(super) fn strangers(&self, accounts: &Accounts) -> Strangers {
        let mut strangers = Strangers::default();
        for prefix in &self.settings.homes {
            let Ok(homes) = self.tree.directory(prefix) else { continue };
            for name in homes.names(MAX_HOMES).unwrap_or_default() {
                // Without asking a server that may have died: a home may be its.
                let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
                let Ok(stat) = statx(&homes, &name, flags, StatxFlags::BASIC_STATS) else {
                    strangers.unknown.insert(prefix.join(name));
                    continue;
                };
                if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory {
                    strangers.accounts.extend(accounts.stranger(&prefix.join(name), stat.stx_uid, stat.stx_gid));
                }
            }
        }
        strangers
    }

    /// Which parts of an account's configuration are immutable, as bits; looking has no effect.
    pub(super) fn flags(&self, account: &Account) -> u16 {
        let own = CONFIGURATION.map(|name| format!("{OWN}/{name}"));
        let names: Vec<_> = own.iter().map(String::as_str).chain([OWN, ".config"]).collect();
        self.tree.flags(&account.home, &names)
    }

    /// Looks at what holds for all accounts, all of it watched if there is an `adder`.
    pub(super) fn watch_system(&self, adder: Option<&Adder>) -> (System, Added) {
        let (mut seen, added) = self.watch(adder, || self.system(), |system| places::of_system(&self.tree, system));
        (seen.pop().unwrap_or_default(), added)
    }

    /// Looks at an account's home, likewise. What was found at first is told, too, if it was something else: whoever writes
    /// there may know when somebody looks.
    pub(super) fn watch_home(
        &self,
        adder: Option<&Adder>,
        account: &Account,
        system: &System,
        former: &Former,
    ) -> (Vec<io::Result<Home>>, Added) {
        let places = |home: &io::Result<Home>| match home {
            Ok(home) => places::of_home(&self.tree, home, system),
            Err(_) => places::of_unreadable(account),
        };
        self.watch(adder, || self.home(account, system, former), places)
    }

    /// Looks who has a home that passwd does not know, likewise.
    pub(super) fn watch_strangers(&self, adder: Option<&Adder>, accounts: &Accounts) -> (Strangers, Added) {
        let (mut seen, added) =
            self.watch(adder, || self.strangers(accounts), |_| places::of_strangers(&self.settings));
        (seen.pop().unwrap_or_default(), added)
    }

    /// Watches first and looks then; a look before tells what to watch, and what was found may lead further.
    fn watch<T>(&self, adder: Option<&Adder>, look: impl Fn() -> T, places: impl Fn(&T) -> Places) -> (Vec<T>, Added) {
        let mut added = Added::default();
        let first = look();
        let Some(adder) = adder else { return (vec![first], added) };
        let (mut wanted, mut last) = (places(&first), None);
        for _ in 0..MAX_LOOKS {
            let open = places::open(&self.tree, &wanted);
            added.extend(adder.add(open.iter().map(|(directory, paths)| (directory, paths))));
            let seen = last.insert(look());
            let further = places(seen);
            if further == wanted {
                break;
            }
            wanted = further;
        }
        ([Some(first), last].into_iter().flatten().collect(), added)
    }

    /// What an account's home says, and what held when that could be read last.
    ///
    /// # Errors
    /// Those of open(2) for the home, but for what says that it is not there: somebody mounted something over it.
    pub fn home(&self, account: &Account, system: &System, former: &Former) -> io::Result<Home> {
        let directory = match self.tree.directory(&account.home) {
            Err(error) if is_absent(&error) => None,
            found => Some(found?),
        };
        let place = Place::Home(Configuration::of(&account.home, directory.as_ref()));
        let runs_crio = account.name == self.settings.crio_user;
        let crio = directory.as_ref().filter(|_| runs_crio).and_then(|directory| self.told(account, directory));
        // First of what is the user's, before somebody sees that something is read here.
        let policy = self.policy(&place);
        let mut home = Home {
            account: account.clone(),
            policy,
            runs_crio,
            crio,
            lookaside: place.lookaside(),
            registries: place.registries(),
            drop_ins: place.drop_ins(),
            storage: place.parsed("storage.conf", Storage::parse),
            images: Found::default(),
            former_stores: BTreeSet::new(),
            targets: Vec::new(),
            changeable: None,
            replaceable: false,
        };
        if let (Some(directory), Place::Home(configuration)) = (&directory, &place) {
            look_at_rights(&mut home, directory, configuration);
        }
        if home.hides_stores() {
            home.former_stores.clone_from(&former.stores);
        }
        home.images = self.stores(account, directory.as_ref()).look(&home, system);
        Ok(home)
    }

    /// The policy of a place, with its keys.
    fn policy(&self, place: &Place<'_>) -> Option<Read<Arc<Policy>>> {
        self.complete(&place.path("policy.json"), place.read("policy.json"))
    }

    /// A policy and its keys.
    fn complete(&self, file: &Path, text: Read<Option<Vec<u8>>>) -> Option<Read<Arc<Policy>>> {
        let complete = |text: Vec<u8>| {
            let document = Document::parse(&text).map_err(|error| Broken::new(file, &error))?;
            if document.size() > MAX_SCOPES {
                return Err(too_many("scopes and requirements", file));
            }
            let mut left = MAX_KEY_BYTES;
            let key = |(at, (path, openpgp)): (usize, (&str, bool))| {
                let key = if at == MAX_KEYS {
                    KeyFile::Unread(format!("the policy names more than {MAX_KEYS}"))
                } else {
                    self.key(Path::new(path), openpgp, &mut left)
                };
                (path.to_owned(), key)
            };
            let keys = key_files(&document).into_iter().enumerate().take(MAX_KEYS + 1).map(key).collect();
            Ok(Arc::new(Policy { file: file.to_path_buf(), document, keys }))
        };
        text.map(|text| text.map(complete)).transpose().map(Result::flatten)
    }

    /// A store, as an account that keeps it there opens it.
    ///
    /// # Errors
    /// Those of open(2).
    pub(in crate::checks) fn open_store(&self, account: &Account, path: &Path) -> io::Result<Directory> {
        let directory = self.tree.directory(&account.home).ok();
        self.stores(account, directory.as_ref()).open(path).map(|(store, _)| store)
    }

    /// The files of the node.
    pub(in crate::checks) fn tree(&self) -> &Tree {
        &self.tree
    }

    fn stores<'a>(&'a self, account: &'a Account, home: Option<&'a Directory>) -> Stores<'a> {
        Stores { tree: &self.tree, account, podman_group: &self.settings.podman_group, home }
    }

    /// The text of a file of keys, of as many bytes as are left. Whoever writes a policy may name any file.
    pub(in crate::checks) fn read_key(&self, path: &Path, left: &mut usize) -> io::Result<Vec<u8>> {
        read_key(open_key(&self.tree, path)?, left)
    }

    /// A file of keys, of OpenPGP or others.
    fn key(&self, path: &Path, openpgp: bool, left: &mut usize) -> KeyFile {
        let mut found = || -> io::Result<_> {
            let file = open_key(&self.tree, path)?;
            let writers = keys::writers(Rights::of(&file)?.writers());
            Ok((writers, self.replacers(path)?, read_key(file, left)?))
        };
        let (writers, replacers, text) = match found() {
            Ok(found) => found,
            Err(error) if is_absent(&error) && self.tree.hides(path).is_none() => {
                return KeyFile::Unusable(error.to_string());
            }
            Err(error) => return KeyFile::Unread(error.to_string()),
        };
        let digest = Sha256::digest(&text).into();
        match if openpgp { keys::parse(&text).map(|keys| keys::last_expiry(&keys)) } else { Ok(None) } {
            Ok(expires) => KeyFile::Found { writers, replacers, expires, digest },
            Err(reason) => KeyFile::Unusable(reason),
        }
    }

    /// Who may put something else in the place of a file, in any directory on the way to it.
    fn replacers(&self, path: &Path) -> io::Result<Writers> {
        let target = self.tree.target(path);
        let above = [Some(path), target.as_deref()].into_iter().flatten().flat_map(|path| path.ancestors().skip(1));
        let directories: BTreeSet<&Path> = above.take(2 * MAX_PARTS + 1).collect();
        if directories.len() > 2 * MAX_PARTS {
            return Err(io::Error::other(format!("its path has more than {MAX_PARTS} parts")));
        }
        let mut replacers = Writers::new();
        for directory in directories {
            let further = Rights::of(self.tree.directory(directory)?)?.replacers();
            replacers = keys::writers(replacers.into_iter().chain(further));
        }
        Ok(replacers)
    }

    /// What CRI-O is told, if there is a crio.conf.
    fn told(&self, account: &Account, home: &Directory) -> Option<Read<Told>> {
        let file = account.home.join(CRIO);
        let main = match read(home.file(Path::new(CRIO))) {
            Ok(main) => main?,
            Err(error) => return Some(Err(Broken::unread(file, &error))),
        };
        let mut left = MAX_TOLD_BYTES;
        let mut read = |path: &Path| -> Read<Option<Vec<u8>>> {
            let text = self.tree.read(path)?;
            let length = text.as_ref().map_or(0, Vec::len);
            let too_much = || io::Error::other(format!("CRI-O is told more than {} MiB", MAX_TOLD_BYTES >> 20));
            left = left.checked_sub(length).ok_or_else(|| Broken::unread(path, &too_much()))?;
            Ok(text)
        };
        let mut told = || -> Read<Told> {
            let mut crio = Crio::default();
            crio.read(&main).map_err(|reason| Broken::new(&file, &reason))?;
            // All of them, whatever they are called.
            for path in self.files_of(Path::new(CRIO_DROP_INS), "")? {
                let text = read(&path)?.unwrap_or_default();
                crio.read(&text).map_err(|reason| Broken::new(path, &reason))?;
            }
            if crio.insecure_registries.len() > MAX_SCOPES {
                return Err(too_many("insecure registries", &file));
            }
            let policy = match crio.signature_policy.as_deref() {
                None => Named::None,
                Some(path) if path == Path::new(SYSTEM).join("policy.json") => Named::System,
                Some(path) => {
                    let missing = || match self.tree.hides(path) {
                        Some(_) => Err(Broken::unread(path, &unseen())),
                        None => Err(Broken::new(path, &"crio.conf names it, and it is not there")),
                    };
                    Named::Other(self.complete(path, read(path)).unwrap_or_else(missing))
                }
            };
            let directory = crio.signature_policy_dir.as_deref().unwrap_or(Path::new(CRIO_POLICIES));
            let namespaces = self.files_of(directory, ".json")?.into_iter();
            let namespaces = namespaces.filter_map(|path| self.complete(&path, read(&path))).collect();
            Ok(Told { crio, policy, namespaces })
        };
        Some(told())
    }

    /// The files of a directory of the system that end so, sorted by name; none if it is not there.
    fn files_of(&self, path: &Path, end: &str) -> Read<Vec<PathBuf>> {
        let directory = match self.tree.directory(path) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            other => other.map_err(|error| Broken::unread(path, &error))?,
        };
        let names = directory.names(MAX_ENTRIES).map_err(|error| Broken::unread(path, &error))?;
        let names = names.into_iter().filter(|name| name.as_bytes().ends_with(end.as_bytes()));
        Ok(names.map(|name| path.join(name)).collect())
    }
}

/// There is more in a file than podsecd bears.
pub(super) fn too_many(what: &str, file: &Path) -> Broken {
    Broken::unread(file, &io::Error::other(format!("more than {MAX_SCOPES} {what}")))
}

fn open_key(tree: &Tree, path: &Path) -> io::Result<File> {
    if path.is_absolute() { tree.file(path) } else { Err(io::Error::other("its path is not absolute")) }
}

fn read_key(file: File, left: &mut usize) -> io::Result<Vec<u8>> {
    let text = read(Ok(file))?.unwrap_or_default();
    let too_much = || io::Error::other(format!("the keys of one policy have more than {MAX_KEY_BYTES} bytes"));
    *left = left.checked_sub(text.len()).ok_or_else(too_much)?;
    Ok(text)
}

/// The files of keys that a policy names, and whether they are of OpenPGP.
fn key_files(document: &Document) -> BTreeMap<&str, bool> {
    let lists = document.transports.values().flat_map(BTreeMap::values).chain([&document.default]);
    let requirements = lists.flat_map(|requirements| requirements.iter());
    let files = requirements.flat_map(|requirement| match requirement {
        Requirement::SignedBy(signed) => signed.keys.files().iter().map(|file| (file.as_str(), true)).collect(),
        Requirement::SigstoreSigned(signed) => match &signed.signer {
            Signer::Keys(keys) => keys.files().iter().map(|file| (file.as_str(), false)).collect(),
            Signer::Fulcio { .. } | Signer::Pki { .. } => Vec::new(),
        },
        _ => Vec::new(),
    });
    files.collect()
}

/// What of its configuration an account may change, whether it may put another in its place, and where links in it lead.
fn look_at_rights(home: &mut Home, directory: &Directory, configuration: &Configuration<'_>) {
    let account = &home.account;
    let may_change = |rights: &Rights| rights.let_change(account.uid, &account.gids);
    let own = Path::new(OWN);
    let mut links = directory.target(Path::new(CRIO)).into_iter().chain(directory.target(own)).collect::<Vec<_>>();
    let Ok(rights) = configuration.directory("").and_then(Rights::of) else { return };
    // What is immutable cannot be renamed, but what it lies in can.
    let parent = own.parent().and_then(|parent| Rights::of(directory.find(parent).ok()?).ok());
    home.replaceable = parent.is_some_and(|parent| {
        may_change(&parent) && !rights.immutable
            || !parent.immutable && Rights::of(directory).is_ok_and(|home| may_change(&home))
    });
    let mut changeable = may_change(&rights).then(|| own.to_path_buf());
    for name in CONFIGURATION {
        let Ok((found, over)) = configuration.walk(name) else { continue };
        links.extend((over > 0).then(|| directory.path_of(&found)).flatten());
        let mut look = |name: &Path, found: OwnedFd| {
            if changeable.is_none() && Rights::of(found).is_ok_and(|rights| may_change(&rights)) {
                changeable = Some(own.join(name));
            }
        };
        let inner = if name.ends_with(".d") { configuration.directory(name).ok() } else { None };
        for file in inner.iter().flat_map(|inner| inner.names(MAX_ENTRIES).unwrap_or_default()) {
            if let Some(found) = inner.as_ref().and_then(|inner| inner.find(Path::new(&file)).ok()) {
                look(&Path::new(name).join(&file), found);
            }
        }
        look(Path::new(name), found);
    }
    (home.changeable, home.targets) = (changeable, links);
}
