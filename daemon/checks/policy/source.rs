//! The source of check `policy`: looks once at everything, then again at what changed, until nobody wants to know any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::accounts::Account;
use super::assess::Observation;
use super::observe::{Home, Observer, System};
use super::places::{self, Places};
use super::settings::Settings;
use crate::watch::names::{Added, Adder, Names};

/// What the source sends.
#[derive(Debug)]
pub enum Message {
    /// What it saw.
    Observed(Box<Observation>),
    /// Not everything can be watched, and why, or everything can.
    Unwatched(Option<String>),
    /// It failed, and why; it sends nothing more.
    Failed(String),
}

/// Changes that follow each other so closely are looked at together.
const BURST: Duration = Duration::from_millis(200);
/// How long a home may take; behind it may be a file system whose server has died.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many homes may hang at once; then others are not looked at any more.
const MAX_HANGING: usize = 16;
/// How often a look may lead to further places.
const MAX_LOOKS: usize = 4;

/// Starts to look, at the node's own tree or the one below `root`; at everything again after `rescan`.
pub fn spawn(root: Option<PathBuf>, settings: Settings, rescan: Duration, sender: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        let looked = match Source::new(root, settings, rescan, sender.clone()) {
            Ok(source) => source.run().await,
            Err(error) => Err(error),
        };
        if let Err(error) = looked {
            // Nobody may want to know.
            let _ = sender.send(Message::Failed(error.to_string())).await;
        }
    });
}

/// What is looked at as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    System,
    /// The home of the account of that name.
    Home(String),
}

/// What is to be looked at.
#[derive(Debug, Default)]
struct Due {
    all: bool,
    system: bool,
    homes: BTreeSet<String>,
}

struct Source {
    observer: Arc<Observer>,
    settings: Settings,
    rescan: Duration,
    sender: mpsc::Sender<Message>,
    names: Names<Key>,
    worker: Worker,
    /// The accounts, as they were when their homes were looked at.
    accounts: BTreeMap<String, Account>,
    system: Arc<System>,
    /// The immutable flags in each home, when it was looked at.
    flags: BTreeMap<String, u16>,
    /// Homes that do not answer.
    hanging: BTreeSet<String>,
    /// Their names, when they do.
    recovered: (mpsc::Sender<String>, mpsc::Receiver<String>),
    unwatched: Option<String>,
}

impl Source {
    fn new(
        root: Option<PathBuf>,
        settings: Settings,
        rescan: Duration,
        sender: mpsc::Sender<Message>,
    ) -> io::Result<Source> {
        let names = Names::new()?;
        let observer = Arc::new(Observer::new(root.as_deref(), settings.clone())?);
        let worker = Worker::start(Arc::clone(&observer), names.adder())?;
        let (accounts, flags, hanging) = Default::default();
        let recovered = mpsc::channel(MAX_HANGING);
        let (system, unwatched) = (Arc::default(), None);
        Ok(Source { observer, settings, rescan, sender, names, worker, accounts, system, flags, hanging, recovered, unwatched })
    }

    async fn run(mut self) -> io::Result<()> {
        let mut due = Due { all: true, ..Due::default() };
        loop {
            let rescan = if due.all { Some(Instant::now() + self.rescan) } else { None };
            let observation = self.look(&mut due).await?;
            if self.sender.send(Message::Observed(Box::new(observation))).await.is_err() {
                return Ok(());
            }
            let _ = rescan;
            let looked = Instant::now();
            if !self.wait(&mut due).await? {
                return Ok(());
            }
            // What follows at once belongs to it.
            let end = (looked + BURST).max(Instant::now() + Duration::from_millis(10));
            loop {
                tokio::select! {
                    changed = self.names.changed() => { let changed = changed?; self.take(changed, &mut due).await?; }
                    () = sleep_until(end) => break,
                }
            }
        }
    }
}
