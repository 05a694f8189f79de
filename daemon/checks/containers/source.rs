//! The source of check `containers`: a thread of its own, so that nothing else keeps it from reading what changed, with a task
//! for each store.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::assess::{Complete, Observation};
use super::files::{Files, Place};
use super::neighbours::Neighbours;
use super::record;
use super::scarcity::Pool;
use super::settings::Settings;
use super::store::{self, Store};
use crate::checks::policy::observe::Observer;
use crate::checks::policy::settings::Settings as PolicySettings;
use crate::handover::Handover;
use crate::watch::tree::Scope;

/// What the source sends.
#[derive(Debug)]
pub enum Message {
    /// What it saw in a store.
    Observed(Observation),
    /// What of a store is not watched, and why; `None`: all of it is.
    Uncovered(PathBuf, Option<String>),
    /// It failed, and why; it sends nothing more.
    Failed(String),
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// So long changes of a layer are gathered at most, while it goes on changing.
    pub gather: Duration,
    /// After this all is walked for what the kernel does not tell.
    pub rescan: Duration,
}

/// What to watch, and how.
pub struct Task {
    /// Another tree than the node's.
    pub root: Option<PathBuf>,
    /// What of containers is told.
    pub settings: Settings,
    /// Whose stores they are is known by these.
    pub policy: PolicySettings,
    /// How long things take.
    pub times: Times,
    /// Where all is told up to these moments, by store.
    pub complete: BTreeMap<PathBuf, Complete>,
    /// Where it is kept what programs there are.
    pub state: PathBuf,
    /// What systemd keeps.
    pub handover: Handover,
}

/// A store that cannot be watched is tried again after this.
const PAUSE: Duration = Duration::from_secs(30);
/// So many threads read lists and homes that may not answer.
const MAX_BLOCKING: usize = 32;

/// The stores that there are, by their paths, and who may keep them there.
pub type Stores = BTreeMap<PathBuf, Vec<Place>>;

/// Starts to watch the stores that there are, by their paths; when nobody says any more which, it tells what it read, and ends.
pub fn spawn(task: Task, stores: watch::Receiver<Stores>, sender: mpsc::Sender<Message>) {
    let failing = sender.clone();
    let started = std::thread::Builder::new().name("containers".into()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(MAX_BLOCKING).build();
        let watched = runtime.and_then(|runtime| {
            let watched = runtime.block_on(watch_all(task, stores, sender.clone()));
            // Some may wait for a home that does not answer.
            runtime.shutdown_background();
            watched
        });
        if let Err(error) = watched {
            // Nobody may want to know.
            let _ = sender.blocking_send(Message::Failed(error.to_string()));
        }
    });
    if let Err(error) = started {
        let _ = failing.try_send(Message::Failed(error.to_string()));
    }
}

async fn watch_all(task: Task, mut stores: watch::Receiver<Stores>, sender: mpsc::Sender<Message>) -> io::Result<()> {
    let observer = Arc::new(Observer::new(task.root.as_deref(), task.policy.clone())?);
    let (pool, neighbours) = (Pool::new(), Neighbours::default());
    let mut known: BTreeMap<PathBuf, Arc<Progress>> = BTreeMap::new();
    record::tidy(&task.state, task.complete.keys());
    let mut running: BTreeMap<PathBuf, Running> = BTreeMap::new();
    // Those that nobody names any more tell what they read.
    let mut ending: BTreeMap<PathBuf, JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted = stores.borrow_and_update().clone();
        ending.retain(|_, handle| !handle.is_finished());
        let is_named = |path: &PathBuf, Running { named: places, progress, .. }: &Running| {
            wanted.get(path).is_some_and(|wanted| match progress.owner() {
                // Anybody may name the stores of others: that changes nothing for those.
                Some(owner) => wanted.iter().any(|place| place.is_same(&owner)),
                None => {
                    wanted.len() == places.len() && wanted.iter().zip(&*places).all(|(one, other)| one.is_same(other))
                }
            })
        };
        let (named, unnamed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            running.into_iter().partition(|(path, running)| is_named(path, running));
        running = named;
        ending.extend(unnamed.into_iter().map(|(path, Running { handle, .. })| (path, handle)));
        for (path, places) in wanted {
            running.entry(path).or_insert_with_key(|path| {
                let (end, ends) = watch::channel(());
                let former = ending.remove(path);
                let observer = Arc::clone(&observer);
                let progress = known.entry(path.clone()).or_insert_with(|| {
                    let complete = Mutex::new(task.complete.get(path).copied());
                    Arc::new(Progress { owner: Mutex::default(), complete })
                });
                let progress = Arc::clone(progress);
                let scope = task.settings.scope(path);
                let (path, times, state) = (path.clone(), task.times, task.state.clone());
                let named = places.clone();
                let (progress_of, handover) = (Arc::clone(&progress), task.handover.clone());
                let watched =
                    Watched { path, places, scope, times, state, progress: progress_of, handover, former, ends };
                let among = (pool.clone(), neighbours.clone());
                let handle = tokio::spawn(keep_watching(observer, watched, among, sender.clone()));
                Running { named, progress, handle, _end: end }
            });
        }
        tokio::select! {
            changed = stores.changed() => if changed.is_err() { break },
            () = sender.closed() => return Ok(()),
        }
    }
    // Nobody says any more which there are: what was read is told.
    drop(sender);
    let mut ended = Ok(());
    let running: Vec<_> = running.into_values().map(|Running { handle, .. }| handle).collect();
    for handle in running.into_iter().chain(ending.into_values()) {
        // What one that panicked had read, the next one looks for.
        ended = handle.await.map_err(io::Error::other).and(ended);
    }
    ended
}

/// A store that is watched.
struct Running {
    /// Who names it.
    named: Vec<Place>,
    progress: Arc<Progress>,
    handle: JoinHandle<()>,
    /// It ends when this is dropped.
    _end: watch::Sender<()>,
}

/// How far a store is watched, also when it is watched anew.
#[derive(Debug)]
pub(super) struct Progress {
    /// Whose it is, if he is among those who name it.
    owner: Mutex<Option<Place>>,
    /// Up to which moments all was sent.
    complete: Mutex<Option<Complete>>,
}

impl Progress {
    fn owner(&self) -> Option<Place> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All was sent up to these moments.
    pub(super) fn note(&self, complete: Complete) {
        *self.complete.lock().unwrap_or_else(PoisonError::into_inner) = Some(complete);
    }

    /// Up to which moments all was sent.
    pub(super) fn complete(&self) -> Option<Complete> {
        *self.complete.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store to watch.
struct Watched {
    path: PathBuf,
    places: Vec<Place>,
    scope: Scope,
    times: Times,
    state: PathBuf,
    progress: Arc<Progress>,
    handover: Handover,
    /// Who watched it before, and is about to end.
    former: Option<JoinHandle<()>>,
    /// Nobody is at the other end any more when the watch ends.
    ends: watch::Receiver<()>,
}

/// Watches a store, again and again if it has to be.
async fn keep_watching(
    observer: Arc<Observer>,
    Watched { path, places, scope, times, state, progress, handover, former, mut ends }: Watched,
    (pool, neighbours): (Pool, Neighbours),
    sender: mpsc::Sender<Message>,
) {
    if let Some(former) = former {
        tokio::select! {
            // What one that panicked had read is looked for.
            _ = former => {}
            _ = ends.changed() => return,
        }
    }
    loop {
        let (observer, places) = (Arc::clone(&observer), places.clone());
        let chosen = tokio::select! {
            chosen = spawn_blocking(move || Files::choose(&observer, places)) => chosen,
            _ = ends.changed() => return,
        };
        let opened = match chosen.map_err(io::Error::other).flatten() {
            Ok((files, is_owner)) => {
                let owner = is_owner.then(|| files.place.clone());
                *progress.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
                let (scope, progress, member) = (scope.clone(), Arc::clone(&progress), pool.member());
                let neighbour = neighbours.join(&path, files.place.account.uid);
                let task =
                    store::Task { scope, times, state: &state, member, neighbour, progress, handover: &handover };
                Store::open(Arc::new(files), task, sender.clone(), &mut ends).await
            }
            Err(error) => Err(error),
        };
        let why = match opened {
            Ok(Some(mut store)) => match store.run(&mut ends, &handover).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Ok(None) => return,
            Err(error) => error,
        };
        if sender.send(Message::Uncovered(path.clone(), Some(why.to_string()))).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            _ = ends.changed() => return,
        }
    }
}
