//! The source of check `containers`: a thread of its own, so that nothing else keeps it from reading what changed, with a task
//! for each store.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::assess::{Complete, Observation};
use super::files::{Files, Place};
use super::record;
use super::scarcity::Pool;
use super::settings::Settings;
use super::store::{self, Store};
use crate::checks::policy::observe::Observer;
use crate::checks::policy::settings::Settings as PolicySettings;
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
}

/// A store that cannot be watched is tried again after this.
const PAUSE: Duration = Duration::from_secs(30);
/// So many threads read lists and homes that may not answer.
const MAX_BLOCKING: usize = 32;

/// The stores that there are, by their paths, and who may keep them there.
pub type Stores = BTreeMap<PathBuf, Vec<Place>>;

/// Starts to watch the stores that there are, by their paths.
pub fn spawn(task: Task, stores: watch::Receiver<Stores>, sender: mpsc::Sender<Message>) {
    let failing = sender.clone();
    let started = std::thread::Builder::new().name("containers".into()).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(MAX_BLOCKING).build();
        let watched = runtime.and_then(|runtime| runtime.block_on(watch_all(task, stores, sender.clone())));
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
    let pool = Pool::new();
    record::tidy(&task.state, task.complete.keys());
    let mut running: BTreeMap<PathBuf, (Vec<Place>, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let wanted = stores.borrow_and_update().clone();
        running.retain(|path, (places, handle)| {
            let are_same = |wanted: &Vec<Place>| {
                wanted.len() == places.len() && wanted.iter().zip(&*places).all(|(one, other)| one.is_same(other))
            };
            let stays = wanted.get(path).is_some_and(are_same);
            if !stays {
                handle.abort();
            }
            stays
        });
        for (path, places) in wanted {
            running.entry(path).or_insert_with_key(|path| {
                let (observer, wanted) = (Arc::clone(&observer), places.clone());
                let complete = task.complete.get(path).copied();
                let scope = task.settings.scope(path);
                let watched =
                    Watched { path: path.clone(), places: wanted, scope, times: task.times, state: task.state.clone() };
                (places, tokio::spawn(keep_watching(observer, watched, complete, pool.clone(), sender.clone())))
            });
        }
        tokio::select! {
            changed = stores.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}

/// A store to watch.
struct Watched {
    path: PathBuf,
    places: Vec<Place>,
    scope: Scope,
    times: Times,
    state: PathBuf,
}

/// Watches a store, again and again if it has to be.
async fn keep_watching(
    observer: Arc<Observer>,
    Watched { path, places, scope, times, state }: Watched,
    mut complete: Option<Complete>,
    pool: Pool,
    sender: mpsc::Sender<Message>,
) {
    loop {
        let (observer, places) = (Arc::clone(&observer), places.clone());
        let chosen = spawn_blocking(move || Files::choose(&observer, places)).await;
        let opened = match chosen.map_err(io::Error::other).flatten() {
            Ok(files) => {
                let task = store::Task { scope: scope.clone(), times, state: &state, member: pool.member() };
                Store::open(Arc::new(files), task, complete, sender.clone()).await
            }
            Err(error) => Err(error),
        };
        let why = match opened {
            Ok(mut store) => match store.run().await {
                Ok(()) => return,
                Err(error) => {
                    complete = Some(store.complete());
                    error
                }
            },
            Err(error) => error,
        };
        if sender.send(Message::Uncovered(path.clone(), Some(why.to_string()))).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}
