//! The source of checks `policy` and `images`: looks at everything, then at what changes, until nobody wants to know any more.
//!
//! Homes are their owners', and behind them may be file systems whose servers have died. So another thread looks at them,
//! one after the other; one that takes too long is left to that thread, and a new thread looks at the others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::accounts::Account;
use super::assess::Observation;
use super::observe::{Home, Observer, System};
use super::settings::Settings;
use crate::checks::images::observe as images;
use crate::watch::names::{Added, Adder, Changed, Names};

/// What the source sends.
#[derive(Debug)]
pub enum Message {
    /// What it saw.
    Observed(Box<Observation>),
    /// Why not everything can be watched; `None`: it can.
    Unwatched(Option<String>),
    /// It failed, and why; it sends nothing more.
    Failed(String),
}

/// Changes that follow each other so closely are looked at together.
const BURST: Duration = Duration::from_millis(200);
/// How long a home may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// When so many do not answer, no further one is tried.
const MAX_HANGING: usize = 16;

/// Starts to look, at the node's own tree or the one below `root`; at everything again after `rescan`.
pub fn spawn(root: Option<PathBuf>, settings: Settings, rescan: Duration, sender: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        let looked = match Source::new(root.as_deref(), settings, rescan, sender.clone()) {
            Ok(source) => source.run().await,
            Err(error) => Err(error),
        };
        if let Err(error) = looked {
            // Nobody may want to know.
            let _ = sender.send(Message::Failed(error.to_string())).await;
        }
    });
}

/// Looks once at everything, at images only where they are `wanted`, and watches nothing.
///
/// # Errors
/// Those of open(2) for `root`, of inotify_init1(2) and pthread_create(3).
pub async fn look_once(root: Option<&Path>, settings: Settings, wanted: bool) -> io::Result<Observation> {
    let (sender, _receiver) = mpsc::channel(1);
    let mut source = Source::new(root, settings, Duration::MAX, sender)?;
    source.worker = Worker::start(&source.observer, Task { adder: None, images: wanted })?;
    Ok(source.look(Due::everything()).await?.0)
}

/// What is looked at as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    System,
    /// The home of the account of that name.
    Home(String),
}

/// What is to be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    system: bool,
    all_homes: bool,
    homes: BTreeSet<String>,
}

struct Source {
    observer: Arc<Observer>,
    rescan: Duration,
    sender: mpsc::Sender<Message>,
    names: Names<Key>,
    worker: Worker,
    system: Arc<System>,
    /// The accounts as they were when their homes were looked at, with the immutable flags in them.
    accounts: BTreeMap<String, (Account, u16)>,
    /// Those whose homes do not answer.
    hanging: BTreeSet<String>,
    /// Names of those that do again.
    recovered: (mpsc::Sender<String>, mpsc::Receiver<String>),
    /// What could not be watched, and why.
    failures: BTreeMap<Key, String>,
    /// What was said of that last.
    unwatched: Option<String>,
}

impl Source {
    fn new(
        root: Option<&Path>,
        settings: Settings,
        rescan: Duration,
        sender: mpsc::Sender<Message>,
    ) -> io::Result<Source> {
        let names = Names::new()?;
        let observer = Arc::new(Observer::new(root, settings)?);
        let worker = Worker::start(&observer, Task { adder: Some(names.adder()), images: true })?;
        Ok(Source {
            observer,
            rescan,
            sender,
            names,
            worker,
            system: Arc::default(),
            accounts: BTreeMap::new(),
            hanging: BTreeSet::new(),
            recovered: mpsc::channel(MAX_HANGING),
            failures: BTreeMap::new(),
            unwatched: None,
        })
    }

    async fn run(mut self) -> io::Result<()> {
        let mut due = Due::everything();
        let mut rescan = Instant::now() + self.rescan;
        loop {
            let (observation, again) = self.look(due).await?;
            due = again;
            if self.sender.send(Message::Observed(Box::new(observation))).await.is_err() {
                return Ok(());
            }
            let pause = Instant::now() + BURST;
            while due.is_empty() {
                match self.rest(&mut due, rescan).await? {
                    Rest::Noted => {}
                    Rest::Over => {
                        due = Due::everything();
                        rescan = Instant::now() + self.rescan;
                    }
                    Rest::Ended => return Ok(()),
                }
            }
            // What follows closely belongs to it.
            let until = pause.max(Instant::now() + BURST / 10);
            while matches!(self.rest(&mut due, until).await?, Rest::Noted) {}
        }
    }

    /// Waits for something to be due.
    async fn rest(&mut self, due: &mut Due, until: Instant) -> io::Result<Rest> {
        tokio::select! {
            changed = self.names.changed() => self.note(changed?, due).await?,
            Some(name) = self.recovered.1.recv() => {
                self.hanging.remove(&name);
                due.homes.insert(name);
            }
            () = self.sender.closed() => return Ok(Rest::Ended),
            () = sleep_until(until) => return Ok(Rest::Over),
        }
        Ok(Rest::Noted)
    }

    /// Takes in what changed.
    async fn note(&mut self, changed: Changed<Key>, due: &mut Due) -> io::Result<()> {
        due.system |= changed.lost;
        due.all_homes |= changed.lost;
        for key in changed.keys {
            due.add(key);
        }
        for key in changed.released {
            let Key::Home(name) = &key else { continue };
            let Some((account, flags)) = self.accounts.get(name).cloned() else { continue };
            if self.ask(name, Job::Flags(account)).await?.is_some_and(|answer| answer.flags != flags) {
                due.add(key);
            }
        }
        Ok(())
    }

    /// Looks at what is due; answers also what is due again.
    async fn look(&mut self, mut due: Due) -> io::Result<(Observation, Due)> {
        let (mut observation, mut again) = (Observation::default(), Due::default());
        if due.system {
            let answer = self.worker.ask(Job::System).await?;
            again.system = self.watch(&Key::System, answer.added);
            if let Seen::System(system, owners) = answer.seen {
                // Where images are, and what they are judged by.
                due.all_homes |= (&system.storage, &system.policy) != (&self.system.storage, &self.system.policy);
                self.system = Arc::from(system);
                observation.system = Some(Arc::clone(&self.system));
                observation.gone = self.note_owners(owners, &mut due);
            }
        }
        if due.all_homes {
            due.homes.extend(self.accounts.keys().cloned());
        }
        for name in due.homes {
            let Some((account, _)) = self.accounts.get(&name).cloned() else { continue };
            match self.ask(&name, Job::Home(account.clone(), Arc::clone(&self.system))).await? {
                None => drop(observation.hanging.insert(name)),
                Some(answer) => {
                    if self.watch(&Key::Home(name.clone()), answer.added) {
                        again.homes.insert(name.clone());
                    }
                    self.accounts.insert(name, (account, answer.flags));
                    if let Seen::Home(home, images) = answer.seen {
                        observation.homes.push(*home);
                        observation.images.extend(images.map(|images| *images));
                    }
                }
            }
        }
        let unwatched = self.failures.values().next().cloned();
        if unwatched != self.unwatched {
            self.unwatched.clone_from(&unwatched);
            // That nobody listens is seen soon enough.
            let _ = self.sender.send(Message::Unwatched(unwatched)).await;
        }
        Ok((observation, again))
    }

    /// Takes in who there is: whose home is to be looked at because it is new, or other groups are; answers who is gone.
    fn note_owners(&mut self, owners: Vec<Account>, due: &mut Due) -> Vec<String> {
        let mut former = std::mem::take(&mut self.accounts);
        for owner in owners {
            let name = owner.name.clone();
            match former.remove(&name) {
                Some(known) if known.0 == owner => drop(self.accounts.insert(name, known)),
                _ => {
                    due.homes.insert(name.clone());
                    self.accounts.insert(name, (owner, 0));
                }
            }
        }
        for name in former.keys() {
            let key = Key::Home(name.clone());
            self.names.forget(&key);
            self.failures.remove(&key);
        }
        former.into_keys().collect()
    }

    /// These are the watches of what is looked at as one; true if something happened to it already.
    fn watch(&mut self, key: &Key, added: Added) -> bool {
        match &added.failure {
            Some(failure) => drop(self.failures.insert(key.clone(), failure.to_string())),
            None => drop(self.failures.remove(key)),
        }
        self.names.set(key, added)
    }

    /// Has somebody look at an account's home; `None` if it does not answer, or what is there is more than podsecd bears:
    /// the others must not suffer from it.
    async fn ask(&mut self, name: &str, job: Job) -> io::Result<Option<Answer>> {
        if self.hanging.contains(name) || self.hanging.len() == MAX_HANGING {
            return Ok(None);
        }
        let answer = timeout(PATIENCE, self.worker.ask(job)).await;
        if let Ok(Ok(answer)) = answer {
            return Ok(Some(answer));
        }
        let fresh = Worker::start(&self.observer, self.worker.task.clone())?;
        let mut stuck = std::mem::replace(&mut self.worker, fresh);
        if answer.is_ok() {
            return Ok(None);
        }
        self.hanging.insert(name.to_owned());
        let (recovered, name) = (self.recovered.0.clone(), name.to_owned());
        tokio::spawn(async move {
            let _ = stuck.answers.recv().await;
            let _ = recovered.send(name).await;
        });
        Ok(None)
    }
}

/// Why a rest ended.
enum Rest {
    /// Something may be due.
    Noted,
    /// The time is over.
    Over,
    /// Nobody wants to know any more.
    Ended,
}

impl Due {
    fn everything() -> Due {
        Due { system: true, all_homes: true, homes: BTreeSet::new() }
    }

    fn is_empty(&self) -> bool {
        *self == Due::default()
    }

    fn add(&mut self, key: Key) {
        match key {
            Key::System => self.system = true,
            Key::Home(name) => drop(self.homes.insert(name)),
        }
    }
}

/// How to look.
#[derive(Clone)]
struct Task {
    /// What adds watches for what is looked at, if that is wanted.
    adder: Option<Adder>,
    /// At images, too.
    images: bool,
}

/// A thread that looks.
struct Worker {
    task: Task,
    jobs: std::sync::mpsc::Sender<Job>,
    answers: mpsc::Receiver<Answer>,
}

enum Job {
    System,
    Home(Account, Arc<System>),
    /// Only at the immutable flags.
    Flags(Account),
}

struct Answer {
    seen: Seen,
    added: Added,
    flags: u16,
}

enum Seen {
    System(Box<System>, Vec<Account>),
    Home(Box<Home>, Option<Box<images::Look>>),
    Flags,
}

impl Worker {
    fn start(observer: &Arc<Observer>, task: Task) -> io::Result<Worker> {
        let (jobs, jobs_in) = std::sync::mpsc::channel();
        let (answers_in, answers) = mpsc::channel(1);
        let (observer, how) = (Arc::clone(observer), task.clone());
        std::thread::Builder::new().name("policy".into()).spawn(move || {
            while let Ok(job) = jobs_in.recv() {
                if answers_in.blocking_send(do_job(&observer, &how, job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Worker { task, jobs, answers })
    }

    async fn ask(&mut self, job: Job) -> io::Result<Answer> {
        let failed = || io::Error::other("the thread that looks at homes failed");
        self.jobs.send(job).map_err(|_| failed())?;
        self.answers.recv().await.ok_or_else(failed)
    }
}

fn do_job(observer: &Observer, task: &Task, job: Job) -> Answer {
    let adder = task.adder.as_ref();
    match job {
        Job::System => {
            let (system, added) = observer.watch_system(adder);
            let owners = observer.owners(&system.accounts);
            Answer { seen: Seen::System(Box::new(system), owners), added, flags: 0 }
        }
        Job::Home(account, system) => {
            // Flags that change in between are looked at once more.
            let flags = observer.flags(&account);
            let (home, added) = observer.watch_home(adder, &account, &system);
            let images = task.images.then(|| images::look(observer, &home, &system, SystemTime::now()));
            Answer { seen: Seen::Home(Box::new(home), images.map(Box::new)), added, flags }
        }
        Job::Flags(account) => Answer { seen: Seen::Flags, added: Added::default(), flags: observer.flags(&account) },
    }
}
