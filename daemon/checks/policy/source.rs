//! The source of checks `policy` and `images`: looks at everything, then at what changes, until nobody wants to know any more.
//!
//! Homes are their owners', and behind them may be file systems whose servers have died. So another thread looks at them,
//! one after the other; one that takes too long is left to that thread, and a new thread looks at the others.

mod due;
mod lateness;
mod pace;
mod settling;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use self::due::{Due, EVERYTHING, HOMES, STRANGERS, SYSTEM};
use self::lateness::{Lateness, MAX_LATE, PATIENCE};
use self::pace::Pace;
use self::settling::Settling;
use self::worker::{Answer, Job, Seen, Task, Worker};
use super::accounts::Account;
use super::assess::Observation;
use super::observe::Observer;
use super::seen::{Former, Home, Strangers, System};
use super::settings::Settings;
use crate::watch::names::{Added, Changed, Names};

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

/// So long after somebody was not looked at in time that is told.
const HURRIED: Duration = Duration::from_secs(10);
/// A home that cannot be read is looked at again after this time.
const UNREADABLE: Duration = Duration::from_secs(30);

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
    /// Who has a home that passwd does not know.
    Strangers,
    /// The home of the account of that name.
    Home(String),
}

struct Source {
    observer: Arc<Observer>,
    /// Whose home is looked at first.
    first: [String; 2],
    rescan: Duration,
    sender: mpsc::Sender<Message>,
    names: Names<Key>,
    worker: Worker,
    system: Arc<System>,
    /// Those that passwd does not know.
    strangers: Vec<Account>,
    accounts: BTreeMap<String, Known>,
    pace: Pace,
    /// When those are to be looked at that have used up what is their due, and until then are not watched; and those
    /// whose images look unfinished.
    later: BTreeMap<String, Instant>,
    /// Those who have used it up lately, and until when that is told.
    hurried: BTreeMap<String, Instant>,
    lateness: Lateness,
    /// Homes that were something else a moment before they were looked at last.
    glimpses: Vec<Home>,
    /// Answers that come late.
    answered: (mpsc::Sender<LateAnswer>, mpsc::Receiver<LateAnswer>),
    /// What could not be watched, and why.
    failures: BTreeMap<Key, String>,
    /// Whether changes were lost since everything was looked at, and whether they were before.
    lost: (bool, bool),
    /// What was said of that last.
    unwatched: Option<String>,
}

/// An account as it was when its home was looked at.
struct Known {
    account: Account,
    /// The immutable flags in its home.
    flags: u16,
    settling: Settling,
    /// What held when it could be read.
    former: Former,
}

/// Whose it is; `None` of a thread that failed.
type LateAnswer = (String, Option<Answer>);

impl Source {
    fn new(
        root: Option<&Path>,
        settings: Settings,
        rescan: Duration,
        sender: mpsc::Sender<Message>,
    ) -> io::Result<Source> {
        let names = Names::new()?;
        let first = [settings.crio_user.clone(), "root".to_owned()];
        let observer = Arc::new(Observer::new(root, settings)?);
        let worker = Worker::start(&observer, Task { adder: Some(names.adder()), images: true })?;
        Ok(Source {
            observer,
            first,
            rescan,
            sender,
            names,
            worker,
            system: Arc::default(),
            strangers: Vec::new(),
            accounts: BTreeMap::new(),
            pace: Pace::default(),
            later: BTreeMap::new(),
            hurried: BTreeMap::new(),
            lateness: Lateness::default(),
            glimpses: Vec::new(),
            answered: mpsc::channel(MAX_LATE),
            failures: BTreeMap::new(),
            lost: (false, false),
            unwatched: None,
        })
    }

    async fn run(mut self) -> io::Result<()> {
        let mut due = Due::everything();
        let mut rescan = Instant::now() + self.rescan;
        loop {
            let (observation, again) = self.look(due).await?;
            due = again;
            let glimpses = Observation { homes: std::mem::take(&mut self.glimpses), ..Observation::default() };
            if !glimpses.homes.is_empty() && self.sender.send(Message::Observed(Box::new(glimpses))).await.is_err() {
                return Ok(());
            }
            if self.sender.send(Message::Observed(Box::new(observation))).await.is_err() {
                return Ok(());
            }
            let pause = Instant::now() + BURST;
            while due.is_empty() && !self.lateness.has_silent() {
                match self.rest(&mut due, self.next_time().map_or(rescan, |time| time.min(rescan))).await? {
                    Rest::Noted => {}
                    Rest::Over if Instant::now() >= rescan => {
                        due = Due::everything();
                        rescan = Instant::now() + self.rescan;
                    }
                    Rest::Over => {
                        self.note_time(&mut due);
                        self.tell_unwatched(self.why_unwatched()).await;
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
            changed = self.names.changed() => self.note(changed?, due),
            Some((name, answer)) = self.answered.1.recv() => self.note_answer(name, answer, due),
            () = self.sender.closed() => return Ok(Rest::Ended),
            () = sleep_until(until) => return Ok(Rest::Over),
        }
        Ok(Rest::Noted)
    }

    /// Takes in what changed.
    fn note(&mut self, changed: Changed<Key>, due: &mut Due) {
        if changed.lost {
            self.lost.0 = true;
            self.want(EVERYTHING.to_owned(), due);
        }
        for key in changed.keys {
            match key {
                Key::System => self.want(SYSTEM.to_owned(), due),
                Key::Strangers => self.want(STRANGERS.to_owned(), due),
                Key::Home(name) => self.want(name, due),
            }
        }
        for key in changed.released {
            if let Key::Home(name) = key {
                due.released.insert(name);
            }
        }
    }

    /// A home is to be looked at, or more than one: soon, but no more often than is its due. Who has used that up is not
    /// even watched until then.
    fn want(&mut self, name: String, due: &mut Due) {
        let now = Instant::now();
        let when = self.pace.when(&name, now);
        if when <= now {
            due.add(name);
        } else {
            if ![STRANGERS, SYSTEM, HOMES, EVERYTHING].contains(&name.as_str()) {
                self.names.forget(&Key::Home(name.clone()));
            }
            self.hurried.insert(name.clone(), when + HURRIED);
            self.later.entry(name).or_insert(when);
        }
    }

    /// Takes in an answer that came late.
    fn note_answer(&mut self, name: String, answer: Option<Answer>, due: &mut Due) {
        let (again, untried) = self.lateness.note_late_answer(&name);
        if again {
            self.want(name.clone(), due);
        }
        untried.into_iter().for_each(|name| due.add(name));
        due.answers.extend(answer.map(|answer| (name, answer)));
    }

    /// When something is due though nothing happens.
    fn next_time(&self) -> Option<Instant> {
        self.later.values().chain(self.hurried.values()).copied().chain(self.lateness.next_time()).min()
    }

    /// Takes in that it is later.
    fn note_time(&mut self, due: &mut Due) {
        let now = Instant::now();
        self.later.retain(|name, when| {
            let is_due = *when <= now;
            if is_due {
                due.add(name.clone());
            }
            !is_due
        });
        self.hurried.retain(|_, until| *until > now);
        self.lateness.note_time(now);
    }

    /// Looks at what is due; answers also what is due again.
    async fn look(&mut self, mut due: Due) -> io::Result<(Observation, Due)> {
        let beginning = Instant::now();
        let (mut observation, mut again) = (Observation::default(), Due::default());
        let is_everything = due.system && due.all_homes;
        if is_everything {
            self.lost = (false, self.lost.0);
        }
        if due.system {
            let Some(answer) = self.ask_system().await? else { return Ok((observation, again)) };
            self.pace.note(SYSTEM, answer.took, Instant::now());
            again.system = self.watch(&Key::System, answer.added);
            if let Seen::System(system) = answer.seen {
                let former = std::mem::replace(&mut self.system, Arc::from(system));
                // Where images are, and what they are judged by.
                if !due.all_homes && (&self.system.storage, &self.system.policy) != (&former.storage, &former.policy) {
                    self.want(HOMES.to_owned(), &mut due);
                }
                observation.system = Some(Arc::clone(&self.system));
            }
            due.strangers = true;
        }
        if due.strangers {
            let strangers = self.ask(STRANGERS, Job::Strangers(Arc::clone(&self.system))).await?;
            due.answers.extend(strangers.map(|answer| (STRANGERS.to_owned(), answer)));
        }
        let (strangers, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut due.answers).into_iter().partition(|(name, _)| name == STRANGERS);
        let other_owners = observation.system.is_some() || !strangers.is_empty();
        for (name, answer) in strangers {
            self.take_in(name, answer, &mut observation, &mut due, &mut again);
        }
        if other_owners {
            observation.gone = self.note_owners(&mut due);
        }
        for (name, answer) in late {
            self.take_in(name, answer, &mut observation, &mut due, &mut again);
        }
        if due.all_homes {
            due.unasked = self.accounts.keys().filter(|name| !due.homes.contains(*name)).cloned().collect();
            due.homes.extend(due.unasked.iter().cloned());
        }
        for name in std::mem::take(&mut due.released) {
            let Some(Known { account, .. }) = self.accounts.get(&name) else { continue };
            if let Some(answer) = self.ask(&name, Job::Flags(account.clone())).await? {
                self.take_in(name, answer, &mut observation, &mut due, &mut again);
            }
        }
        for name in self.in_order(std::mem::take(&mut due.homes)) {
            let Some(Known { account, former, .. }) = self.accounts.get(&name) else { continue };
            self.later.remove(&name);
            let job = Job::Home(account.clone(), Arc::clone(&self.system), former.clone());
            if let Some(answer) = self.ask(&name, job).await? {
                self.take_in(name, answer, &mut observation, &mut due, &mut again);
            }
        }
        observation.hanging = self.lateness.take_silent();
        observation.hanging.retain(|name| self.accounts.contains_key(name));
        if due.all_homes {
            let took = beginning.elapsed().min(PATIENCE);
            self.pace.note(if is_everything { EVERYTHING } else { HOMES }, took, Instant::now());
        }
        self.tell_unwatched(self.why_unwatched()).await;
        Ok((observation, again))
    }

    /// Homes in the order in which they are looked at.
    fn in_order(&self, mut homes: BTreeSet<String>) -> Vec<String> {
        let first = self.first.iter().filter_map(|name| homes.take(name)).collect::<Vec<_>>();
        first.into_iter().chain(homes).collect()
    }

    /// Takes in what was seen.
    fn take_in(&mut self, name: String, answer: Answer, observation: &mut Observation, due: &mut Due, again: &mut Due) {
        let (key, now) = (Key::Home(name.clone()), Instant::now());
        // Flags are looked at in no time.
        if !due.unasked.contains(&name) && !matches!(answer.seen, Seen::Flags(_)) {
            self.pace.note(&name, answer.took.min(PATIENCE), now);
        }
        match answer.seen {
            // It is asked for elsewhere.
            Seen::System(_) => {}
            Seen::Strangers(Strangers { mut accounts, unknown }) => {
                again.strangers |= self.watch(&Key::Strangers, answer.added);
                accounts.extend(self.strangers.drain(..).filter(|stranger| unknown.contains(&stranger.home)));
                self.strangers = accounts;
            }
            Seen::Flags(flags) => {
                if self.accounts.get(&name).is_some_and(|known| known.flags != flags) {
                    due.homes.insert(name);
                }
            }
            Seen::Unreadable(_) if !self.accounts.contains_key(&name) => self.names.forget(&key),
            Seen::Unreadable(why) => {
                if self.watch(&key, answer.added) {
                    self.want(name.clone(), again);
                }
                // Unmounting tells nobody.
                let soon = (now + UNREADABLE).max(self.pace.when(&name, now));
                self.later.entry(name.clone()).or_insert(soon);
                observation.unreadable.insert(name, why);
            }
            Seen::Home(first, home, mut images, flags) => {
                let happened = self.watch(&key, answer.added);
                let Some(known) = self.accounts.get_mut(&name) else {
                    self.names.forget(&key);
                    return;
                };
                known.flags = flags;
                known.former = home.remembered(&self.system, &known.former);
                if let Some(images) = &mut images {
                    images.is_settled = known.settling.note(images.is_unfinished(), now);
                }
                let due = known.settling.due(now);
                self.later.extend(due.map(|due| (name.clone(), due.max(self.pace.when(&name, now)))));
                if happened {
                    self.want(name, again);
                }
                self.glimpses.extend(first.map(|first| *first));
                observation.homes.push(*home);
                observation.images.extend(images.map(|images| *images));
            }
        }
    }

    /// Takes in who there is: whose home is to be looked at because it is new, or other groups are; answers who is gone.
    fn note_owners(&mut self, due: &mut Due) -> Vec<String> {
        let mut former = std::mem::take(&mut self.accounts);
        for owner in self.system.accounts.iter().chain(&self.strangers) {
            let name = owner.name.clone();
            match former.remove(&name) {
                Some(known) if known.account == *owner => drop(self.accounts.insert(name, known)),
                known => {
                    due.homes.insert(name.clone());
                    let former = known.map(|known| known.former).unwrap_or_default();
                    let known = Known { account: owner.clone(), flags: 0, settling: Settling::default(), former };
                    self.accounts.insert(name, known);
                }
            }
        }
        for name in former.keys() {
            let key = Key::Home(name.clone());
            self.names.forget(&key);
            self.failures.remove(&key);
            self.pace.forget(name);
            self.later.remove(name);
            self.hurried.remove(name);
            self.lateness.forget(name);
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

    /// Why not everything can be watched, if so.
    fn why_unwatched(&self) -> Option<String> {
        let strangers = self.lateness.is_late(STRANGERS).then(|| "a directory of homes does not answer".to_owned());
        let lost = self.lost.1.then(|| "changes were lost, since more happened than can be followed".to_owned());
        let hurried = self.hurried.keys().next().map(|name| match name.as_str() {
            STRANGERS => "homes come and go so often that podsecd looks for them every few seconds only".to_owned(),
            SYSTEM | HOMES | EVERYTHING => {
                "what holds for all changes so often that podsecd looks at it every few seconds only".to_owned()
            }
            name => format!("so much changes in the home of {name} that podsecd looks at it every few seconds only"),
        });
        self.failures.values().next().cloned().or(strangers).or(lost).or(hurried)
    }

    async fn tell_unwatched(&mut self, unwatched: Option<String>) {
        if unwatched != self.unwatched {
            self.unwatched.clone_from(&unwatched);
            // That nobody listens is seen soon enough.
            let _ = self.sender.send(Message::Unwatched(unwatched)).await;
        }
    }

    /// Has somebody look at what holds for all, without which nothing can be judged; `None` if nobody wants to know.
    async fn ask_system(&mut self) -> io::Result<Option<Answer>> {
        if let Ok(answer) = timeout(PATIENCE, self.worker.ask(Job::System)).await {
            return answer.map(Some);
        }
        self.tell_unwatched(Some("the system's configuration does not answer".to_owned())).await;
        tokio::select! {
            answer = self.worker.answer() => answer.map(Some),
            () = self.sender.closed() => Ok(None),
        }
    }

    /// Has somebody look at an account's home; `None` if it does not answer in time, or what is there is more than podsecd
    /// bears: the others must not suffer from it.
    async fn ask(&mut self, name: &str, job: Job) -> io::Result<Option<Answer>> {
        let Some(patience) = self.lateness.patience(name) else { return Ok(None) };
        let since = Instant::now();
        let answer = timeout(patience, self.worker.ask(job)).await;
        if let Ok(Ok(answer)) = answer {
            self.lateness.note_answer(name, answer.took);
            return Ok(Some(answer));
        }
        let fresh = Worker::start(&self.observer, self.worker.task.clone())?;
        let mut stuck = std::mem::replace(&mut self.worker, fresh);
        if answer.is_ok() {
            self.lateness.note_failure(name);
            return Ok(None);
        }
        self.lateness.note_late(name, since, patience);
        let (answered, name) = (self.answered.0.clone(), name.to_owned());
        tokio::spawn(async move {
            let answer = stuck.answer().await.ok();
            let _ = answered.send((name, answer)).await;
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
