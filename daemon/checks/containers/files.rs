//! Reads what a store says of its containers. Blocking: for threads that may wait.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, fstat, statx};

use super::groups;
use super::life::{MAX_NUMBER, exit_code};
use super::records::{self, Owner, is_id};
use super::spec::{self, Spec};
use super::users::Subordinates;
use crate::checks::policy::accounts::Account;
use crate::checks::policy::observe::Observer;
use crate::checks::policy::tree::{is_absent, read_most};
use crate::watch::names::{Added, Adder, Paths};
use crate::watch::open::{self, Directory};
use crate::watch::tree::Moment;

/// The directory of the layers.
pub(super) const LAYERS: &str = "overlay";
/// What says whose they are.
const CONTAINERS: [&str; 2] = ["overlay-containers/containers.json", "overlay-containers/volatile-containers.json"];
const LAYER_LISTS: [&str; 2] = ["overlay-layers/layers.json", "overlay-layers/volatile-layers.json"];
const IMAGES: [&str; 1] = ["overlay-images/images.json"];
/// Where podman notes it: of root, and of others.
const OF_ROOT: [&str; 2] = ["containers/storage/overlay-containers", "libpod/exits"];
const OF_PODMAN: [&str; 2] = ["containers/overlay-containers", "libpod/tmp/exits"];
/// Where CRI-O does, as podsec sets it up.
const OF_CRIO: [&str; 2] = ["usernetes/containers/storage/overlay-containers", "usernetes/crio/exits"];
/// The control groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// Those of the containers of root's podman: by systemd, and without.
const GROUPS_OF_ROOT: [&str; 2] = ["machine.slice", "libpod_parent"];
/// More layers are not looked for.
const MAX_LAYERS: usize = 100_000;

/// A store of containers, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    /// The account that keeps it.
    pub account: Account,
    /// What CRI-O is told of it, if CRI-O keeps it.
    pub crio: Option<OfCrio>,
}

/// Where CRI-O keeps what is lost when the node is switched off, if its configuration says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfCrio {
    /// crio.conf's `runroot`.
    pub run_root: Option<PathBuf>,
    /// Its `container_exits_dir`.
    pub exits: Option<PathBuf>,
}

/// Where it is told which containers start and stop: below the directory of [`Files::run_base`].
#[derive(Clone, Debug)]
pub(super) struct LifePlaces {
    /// With a directory for each container.
    pub(super) containers: Vec<PathBuf>,
    /// With a file for each container that ended.
    pub(super) exits: Vec<PathBuf>,
}

impl Place {
    /// Whether another one is watched in the same way.
    pub fn is_same(&self, other: &Place) -> bool {
        let of = |place: &Place| (place.account.name.clone(), place.account.uid, place.account.home.clone());
        self.path == other.path && self.crio == other.crio && of(self) == of(other)
    }
}

/// The files of a store.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) observer: Arc<Observer>,
    pub(super) place: Place,
}

/// What the lists say.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Whose each layer is.
    pub(super) owners: BTreeMap<String, Owner>,
    /// Layers that are there, and in no list.
    pub(super) unlisted: BTreeSet<String>,
}

/// What is known of how a container runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Runtime {
    /// What the runtime was told, if that is there.
    pub(super) spec: Option<Spec>,
    /// When it was started last.
    pub(super) started: Option<Moment>,
    /// The id of its first process on the node.
    pub(super) host_uid: Option<u32>,
}

impl Files {
    /// Whose a store is that several may name: of him in whose home it is, else of whom the directory belongs to. Anybody can
    /// name the stores of others. And whether he is among those who name it.
    ///
    /// # Errors
    /// None of them can open it.
    pub(super) fn choose(observer: &Arc<Observer>, places: Vec<Place>) -> io::Result<(Files, bool)> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        let mut of_another = None;
        for place in places {
            let files = Files { observer: Arc::clone(observer), place };
            match files.store().and_then(|store| Ok(fstat(&store)?.st_uid)) {
                Ok(uid) if files.is_at_home() || uid == files.place.account.uid => return Ok((files, true)),
                Ok(uid) => of_another = Some((files, uid)),
                Err(error) => failure = error,
            }
        }
        let (mut files, uid) = of_another.ok_or(failure)?;
        files.place.account = Account {
            name: format!("uid {uid}"),
            uid,
            home: PathBuf::from("/"),
            groups: Vec::new(),
            gids: BTreeSet::new(),
        };
        Ok((files, false))
    }

    fn is_at_home(&self) -> bool {
        let home = &self.place.account.home;
        home.components().count() > 1 && self.place.path.starts_with(home)
    }

    fn store(&self) -> io::Result<Directory> {
        self.observer.open_store(&self.place.account, &self.place.path)
    }

    /// The directory of the layers, if it is there.
    pub(super) fn layers(&self) -> io::Result<Option<Directory>> {
        match self.store().and_then(|store| store.directory(Path::new(LAYERS))) {
            // While a container of root runs, podman has it mounted on itself.
            Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) && self.place.account.is_root() => {
                self.observer.tree().directory(&self.place.path.join(LAYERS)).map(Some)
            }
            Err(error) if is_absent(&error) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Watches the lists, and whether there are layers.
    pub(super) fn watch(&self, adder: &Adder) -> io::Result<Added> {
        let mut paths = Paths::default();
        paths.add(LAYERS);
        CONTAINERS.iter().chain(&LAYER_LISTS).chain(&IMAGES).for_each(|path| paths.add(path));
        let store = self.store()?;
        Ok(adder.add([(&store, &paths)]))
    }

    /// What the lists say now.
    pub(super) fn lists(&self) -> io::Result<Lists> {
        let store = self.store()?;
        let read_all = |names: &[&str]| -> io::Result<Vec<Vec<u8>>> {
            let texts = names.iter().map(|name| read(&store, name, records::MAX_BYTES));
            texts.filter_map(Result::transpose).collect()
        };
        // Containers last: one that is made has its layer before.
        let (images, layers, containers) = (read_all(&IMAGES)?, read_all(&LAYER_LISTS)?, read_all(&CONTAINERS)?);
        let owners = records::owners(&containers, &layers, &images).map_err(io::Error::other)?;
        let names = self.layers()?.map(|layers| layers.names(MAX_LAYERS)).transpose()?.unwrap_or_default();
        let names = names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| is_id(name));
        let unlisted = names.filter(|name| !owners.contains_key(name)).collect();
        Ok(Lists { owners, unlisted })
    }

    /// How a container runs.
    pub(super) fn runtime(&self, container: &str) -> Runtime {
        let userdata = format!("overlay-containers/{container}/userdata");
        let text = self.store().and_then(|store| read(&store, &format!("{userdata}/config.json"), spec::MAX_BYTES));
        let spec = text.ok().flatten().and_then(|text| Spec::parse(&text));
        let Account { name, uid, .. } = &self.place.account;
        let subuid = self.observer.tree().read(Path::new("/etc/subuid")).ok().flatten().unwrap_or_default();
        let outer = spec.as_ref().and_then(Spec::outer_uid);
        let host_uid = outer.and_then(|outer| Subordinates::of(name, *uid, &subuid).host(outer));
        let pidfile = Path::new(container).join("userdata/pidfile");
        let run = self.run_root().and_then(|run| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            Ok(statx(run.find(&pidfile)?, c"", flags, StatxFlags::MTIME)?)
        });
        let started = run.ok().map(|stat| Moment::of(stat.stx_mtime));
        Runtime { spec, started, host_uid }
    }

    /// The directory below which the runtime keeps what is lost when the node is switched off; `None` if it is not there yet.
    pub(super) fn run_base(&self) -> io::Result<Option<Directory>> {
        let (tree, uid) = (self.observer.tree(), self.place.account.uid);
        let base = match tree.directory(&self.run_path()) {
            Err(error) if is_absent(&error) => return Ok(None),
            base => base?,
        };
        // systemd makes the directory, and mounts the user's own file system there then.
        let is_mounted =
            uid == 0 || tree.is_elsewhere() || base.mount() != tree.directory(Path::new("/run/user"))?.mount();
        Ok(is_mounted.then_some(base))
    }

    fn run_path(&self) -> PathBuf {
        match self.place.account.uid {
            0 => PathBuf::from("/run"),
            uid => PathBuf::from(format!("/run/user/{uid}")),
        }
    }

    /// Where it is told which containers start and stop: by podman, and by CRI-O where it runs. What lies elsewhere than in
    /// the user's own directory is not looked for.
    pub(super) fn life_places(&self) -> LifePlaces {
        let base = self.run_path();
        let [containers, exits] = if self.place.account.is_root() { OF_ROOT } else { OF_PODMAN };
        let mut places = LifePlaces { containers: vec![containers.into()], exits: vec![exits.into()] };
        if let Some(OfCrio { run_root, exits }) = &self.place.crio {
            let below = |path: &Option<PathBuf>| Some(path.as_deref()?.strip_prefix(&base).ok()?.to_path_buf());
            let run_root = below(run_root).map(|root| root.join("overlay-containers"));
            // Its own come first.
            places.containers.insert(0, run_root.unwrap_or_else(|| OF_CRIO[0].into()));
            places.exits.insert(0, below(exits).unwrap_or_else(|| OF_CRIO[1].into()));
        }
        places
    }

    /// Where the runtime keeps what is of containers.
    fn run_root(&self) -> io::Result<Directory> {
        let base = self.run_base()?.ok_or(io::ErrorKind::NotFound)?;
        let places = self.life_places();
        base.directory(&places.containers[0])
    }

    /// The exit code that CRI-O keeps of a container until it is removed, and when it came there.
    pub(super) fn lasting_exit(&self, container: &str) -> Option<(i32, Moment)> {
        self.place.crio.as_ref()?;
        let file = open_own(&self.store().ok()?, &format!("overlay-containers/{container}/userdata/exit"))?;
        let stat = statx(&file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::CTIME).ok()?;
        let text = read_most(Ok(file), MAX_NUMBER as u64).ok()??;
        Some((exit_code(&text)?, Moment::of(stat.stx_ctime)))
    }

    /// The directory of all control groups, if the node has those of version 2 and no others.
    pub(super) fn groups_base(&self) -> io::Result<Option<Directory>> {
        let groups = match self.observer.tree().directory(Path::new(GROUPS)) {
            Err(error) if is_absent(&error) => return Ok(None),
            groups => groups?,
        };
        Ok(groups.find(Path::new("cgroup.controllers")).is_ok().then_some(groups))
    }

    /// Where the groups of the account's containers are, below that directory.
    pub(super) fn group_places(&self) -> Vec<PathBuf> {
        match self.place.account.uid {
            0 => GROUPS_OF_ROOT.map(PathBuf::from).to_vec(),
            uid => vec![PathBuf::from(format!("user.slice/user-{uid}.slice"))],
        }
    }

    /// What a file of a control group says; `None` if it is there no more.
    pub(super) fn read_group(&self, path: &Path) -> Option<Vec<u8>> {
        let file = open_own(&self.groups_base().ok()??, path.to_str()?)?;
        read_most(Ok(file), groups::MAX_BYTES as u64).ok()?
    }

    /// Whether conmon noted that the kernel killed something of a container because it had used up its memory.
    pub(super) fn is_out_of_memory(&self, container: &str) -> bool {
        let (note, own) = (format!("{container}/userdata/oom"), format!("overlay-containers/{container}/userdata/oom"));
        self.run_root().is_ok_and(|run| run.find(Path::new(&note)).is_ok())
            || self.store().is_ok_and(|store| store.find(Path::new(&own)).is_ok())
    }
}

/// Opens a regular file to which no link leads.
fn open_own(directory: &Directory, path: &str) -> Option<File> {
    let (found, links) = directory.walk(Path::new(path)).ok()?;
    if links == 0 { open::read(&found).ok() } else { None }
}

/// The text of a file; `None` if it is not there.
fn read(directory: &Directory, name: &str, most: usize) -> io::Result<Option<Vec<u8>>> {
    let text = read_most(directory.file(Path::new(name)), most as u64);
    text.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}
