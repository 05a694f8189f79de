//! Composes the daemon, in the order in which the data flows: source, checks, score, reports.
//!
//! ```text
//! audit-log task ----Batch--> Guardian --Cycle--+--> journal task ----accepted--+
//! (follow, parse)   queue     (this task: all   |                               v
//!                   of 4      state, no locks)  +--> ledger thread: append, fdatasync, accepted, checkpoint
//! policy task ---Observed-->                    +--> status file                |
//! (watch, look)                    ^------------------- Trouble ----------------+
//!     | stores
//! containers thread --Observed--> (a task for each store: watch, gather)
//! helpers (findings.sock), podsecctl (control.sock) --^
//! ```
//!
//! A full queue stops whoever fills it, back to the log file, which waits. Nothing here blocks: the watchdog is fed
//! while journald, the disk or both take nothing.

mod ending;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::checks::containers::files::{OfCrio, Place};
use crate::checks::containers::record;
use crate::checks::containers::source::{self as containers, Stores};
use crate::checks::forwards::tables::Sockets;
use crate::checks::kubeapi::observe::{self, Message};
use crate::checks::own::ids::{CONFIG_REFUSED, PART_FAILED, WATCH_INCOMPLETE};
use crate::checks::policy::assess::Observation;
use crate::checks::policy::source as policy;
use crate::checks::policy::store::Store;
use crate::config::{self, Config, ConfigError, Root};
use crate::control::{self, Request};
use crate::finding::Kind;
use crate::guardian::Guardian;
use crate::handover::Handover;
use crate::helper::{Delivery, U7S};
use crate::report::checkpoint::{self, Checkpoint, State};
use crate::report::text::one_line;
use crate::report::{Trouble, digest, status};
use crate::reports::Reports;
use crate::score::rfc3339;
use crate::service::{log, next_turn, notify, passed_on, turns};
use crate::source::{Said, Source};
use crate::start::{
    Asked, HOST_TABLES, Input, beginning, is_behind_rootlesskit, lock, open_doors, receive_signals, role,
    u7s_is_enabled, u7s_users,
};
use crate::watch::follow::LogFiles;

/// The state directory.
const STATE: &str = "/var/lib/podsecd";
/// Between two turns without a watchdog.
const TURN: Duration = Duration::from_secs(15);
/// The status file is written at most this often.
const STATUS_PAUSE: Duration = Duration::from_millis(200);
/// What systemd keeps and nobody took for so long is of a log or a store that there is no more.
const UNCLAIMED: Duration = Duration::from_secs(60);
/// Why a source ended that says nothing.
const PANICKED: &str = "it panicked";

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Another configuration file than the default.
    pub config: Option<PathBuf>,
    /// The tree to look at.
    pub root: Root,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`ConfigError`] for the configuration; anything else that keeps it from starting, or a report that failed.
pub async fn run(options: Options) -> Result<()> {
    let config = config::load(options.config.as_deref(), &options.root)?;
    for directory in [STATE, record::DIRECTORY, digest::SPOOL, digest::OUTBOX, status::DIRECTORY] {
        let made = options.root.make(directory);
        made.with_context(|| format!("cannot make {}", options.root.path(directory).display()))?;
    }
    let _lock = lock(&options.root.path(STATE), "podsecd")?;
    let (checkpoint, status) = (options.root.path(checkpoint::PATH), options.root.path(status::PATH));
    let former = Checkpoint::load(&checkpoint)?;
    record::refuse_newer(&options.root.path(record::DIRECTORY))?;
    let guardian = guardian(config, former.as_ref(), &options.root);
    let (inputs, inputs_in) = mpsc::channel(4);
    receive_signals(inputs.clone())?;
    let (reports, troubles) = Reports::start(&guardian, former, checkpoint, &options.root, inputs)?;
    let (doors, handover) = passed_on();
    let (helpers, asked) = open_doors(&options.root, doors, reports.kept.clone())?;
    let turn = sd_notify::watchdog_enabled().map_or(TURN, |period| period / 2);
    let mut daemon = Daemon {
        options,
        guardian,
        reports,
        status,
        status_due: None,
        turn,
        handover,
        audit_log: Source::new(),
        policy: Source::new(),
        containers: Source::new(),
        accounts: BTreeMap::new(),
        stores: watch::channel(BTreeMap::new()).0,
        heard_u7s: Instant::now(),
    };
    daemon.note_role();
    daemon.start_audit_log();
    daemon.start_policy();
    daemon.start_containers();
    daemon.serve(troubles, helpers, asked, inputs_in).await
}

/// The state with which to begin.
fn guardian(config: Config, former: Option<&Checkpoint>, root: &Root) -> Guardian {
    let now = SystemTime::now();
    let history = || State { history_until: Some(rfc3339(now).into_owned()), ..State::default() };
    let state = former.map_or_else(history, |former| former.state.clone());
    for open in state.open.iter().filter(|open| config.weights.find(&open.id).is_none()) {
        let (id, subject) = (one_line(&open.id).into_owned(), one_line(&open.subject).into_owned());
        log(move || {
            tracing::warn!("another podsecd told of {id} ({subject}), which this one does not know: it ends here");
        });
    }
    let rootlesskit = is_behind_rootlesskit(&config, root);
    let mut guardian = Guardian::new(config, state, rootlesskit, now);
    guardian.note(configuration(Kind::Cleared, VALID.to_owned()), now);
    if guardian.position().is_none() {
        guardian.set_position(beginning(guardian.config(), root));
    }
    guardian
}

/// What podsecctl is told that asks too late.
const ENDING: &str = "podsecd is ending";
/// What is said when [`CONFIG_REFUSED`] ends.
const VALID: &str = "the configuration is valid and in force";

fn configuration(kind: Kind, message: String) -> Trouble {
    Trouble { id: CONFIG_REFUSED, kind, subject: "podsecd.toml", message }
}

struct Daemon {
    options: Options,
    guardian: Guardian,
    reports: Reports,
    status: PathBuf,
    /// When the status file is to be written.
    status_due: Option<Instant>,
    /// Between two turns.
    turn: Duration,
    /// What systemd keeps for the next podsecd.
    handover: Handover,
    audit_log: Source<Message>,
    policy: Source<policy::Message>,
    containers: Source<containers::Message>,
    /// The stores of containers, as check policy finds them; by account, and by path.
    accounts: BTreeMap<String, Vec<Place>>,
    stores: watch::Sender<Stores>,
    /// When podsecd-u7s was last heard of, or podsecd started.
    heard_u7s: Instant,
}

impl Daemon {
    /// Starts to follow the audit log.
    fn start_audit_log(&mut self) {
        let log = self.options.root.path(&self.guardian.config().kubeapi.audit_log);
        let position = self.guardian.position().cloned().unwrap_or_default();
        observe::spawn(LogFiles::new(&log), position, self.handover.clone(), self.audit_log.start());
    }

    /// Starts to look at who may run what.
    fn start_policy(&mut self) {
        let root = self.options.root.directory().map(ToOwned::to_owned);
        let config = self.guardian.config();
        policy::spawn(root, config.policy.clone(), config.watch.rescan.get(), self.policy.start());
    }

    /// Starts to watch the containers of the stores that there are, or will be.
    fn start_containers(&mut self) {
        let config = self.guardian.config();
        let task = containers::Task {
            root: self.options.root.directory().map(ToOwned::to_owned),
            settings: config.containers.clone(),
            policy: config.policy.clone(),
            times: containers::Times { gather: config.watch.gather.get(), rescan: config.watch.rescan.get() },
            complete: self.guardian.stores().clone(),
            state: self.options.root.path(record::DIRECTORY),
            handover: self.handover.clone(),
        };
        containers::spawn(task, self.stores.subscribe(), self.containers.start());
    }

    async fn serve(
        mut self,
        mut troubles: mpsc::Receiver<Trouble>,
        mut helpers: mpsc::Receiver<Delivery>,
        mut asked: mpsc::Receiver<Asked>,
        mut inputs: mpsc::Receiver<Input>,
    ) -> Result<()> {
        let turn = turns(self.turn)?;
        let mut mail = self.reports.mail.clone();
        // Whoever waited until podsecd is there may ask how it is.
        self.write_status();
        notify(&[NotifyState::Ready]);
        log(|| tracing::info!(version = env!("CARGO_PKG_VERSION"), "podsecd watches"));
        loop {
            let have_room = self.reports.have_room_for_more();
            let audit_log = only_if(have_room, self.audit_log.said());
            let policy = only_if(have_room, self.policy.said());
            let containers = only_if(have_room, self.containers.said());
            tokio::select! {
                said = audit_log => self.observe(said),
                said = policy => self.observe_policy(said),
                said = containers => self.observe_containers(said),
                Some(trouble) = troubles.recv() => self.guardian.note(trouble, SystemTime::now()),
                // They are few, and wait for their answers themselves: a journal that takes nothing keeps none of them out.
                Some(delivery) = helpers.recv() => self.hear(delivery),
                Some(asked) = asked.recv() => self.answer(asked),
                Ok(()) = mail.changed() => {
                    mail.mark_unchanged();
                    self.note_mail();
                }
                Some(input) = inputs.recv() => match input {
                    Input::Stop => break,
                    Input::Reload => self.reload().await,
                    Input::Ended(part) => bail!("{part} failed"),
                },
                () = next_turn(&turn) => {
                    self.turn().await;
                    continue;
                }
                () = at(self.status_due) => {
                    self.write_status();
                    continue;
                }
                () = self.reports.room_for_more(), if !have_room => {}
            }
            if self.guardian.has_findings() && self.reports.have_room() {
                self.send_cycle().await;
            }
            let soon = Instant::now() + STATUS_PAUSE;
            self.status_due = Some(self.status_due.map_or(soon, |due| due.min(soon)));
        }
        self.stop().await;
        Ok(())
    }

    /// Takes in how digests are. Nobody delivers those of another tree.
    fn note_mail(&mut self) {
        let mail = self.reports.mail.borrow().clone();
        self.guardian.note_mail(mail, !self.options.root.is_elsewhere(), SystemTime::now());
    }

    /// Takes in what this node is. Of another tree that is not asked.
    fn note_role(&mut self) {
        if !self.options.root.is_elsewhere() {
            self.guardian.note_role(role(self.guardian.config(), &self.options.root), SystemTime::now());
        }
    }

    /// Takes in how the rootless side looks from here. Of another tree that cannot be said.
    fn note_rootless(&mut self) {
        if self.options.root.is_elsewhere() {
            return;
        }
        let now = SystemTime::now();
        self.guardian.note_u7s(u7s_is_enabled(), self.heard_u7s.elapsed(), now);
        self.note_role();
        // Without that user there is nothing to see.
        if let Some(users) = u7s_users() {
            let sockets = Sockets::read_tcp(Path::new(HOST_TABLES));
            self.guardian.assess_exposure(sockets, &users, now);
        }
    }

    /// Takes in what a helper says.
    fn hear(&mut self, delivery: Delivery) {
        if delivery.reported.by.name == U7S {
            self.heard_u7s = Instant::now();
        }
        let taken = self.guardian.hear(delivery.reported, SystemTime::now());
        // It may be gone; what it said is taken in.
        let _ = delivery.taken.send(taken);
    }

    /// Does what podsecctl asks for. The answer comes when it is done, which nothing else waits for.
    fn answer(&mut self, Asked { request, uid, answer }: Asked) {
        let ending = || Err(ENDING.to_owned());
        match request {
            Request::TestAlert => {
                let subject = self.guardian.test_alert(uid, SystemTime::now());
                self.answer_when_settled(control::Answer::TestAlert(subject), answer);
            }
            Request::SendDigest => {
                log(move || tracing::info!(uid, "podsecctl closes the digest period"));
                let wanted = self.reports.wanted.clone();
                tokio::spawn(async move {
                    let (sent_to, sent) = oneshot::channel();
                    let sent = if wanted.send(sent_to).await.is_ok() { sent.await.ok() } else { None };
                    let _ = answer.send(sent.map_or_else(ending, |sent| Ok(control::Answer::Digest(sent))));
                });
            }
            Request::Declare(forward) | Request::Withdraw(forward) => {
                let is_wanted = matches!(request, Request::Declare(_));
                match self.guardian.declare(forward, is_wanted, uid, SystemTime::now()) {
                    Ok(is_news) => self.answer_when_settled(control::Answer::Declared(is_news), answer),
                    // It may have gone.
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
        }
    }

    /// Answers when all that was taken in so far is reported and kept.
    fn answer_when_settled(&self, said: control::Answer, answer: oneshot::Sender<Result<control::Answer, String>>) {
        let (number, mut settled) = (self.guardian.next_cycle(), self.reports.settled.clone());
        tokio::spawn(async move {
            let settled = settled.wait_for(|settled| *settled >= number).await.is_ok();
            let _ = answer.send(if settled { Ok(said) } else { Err(ENDING.into()) });
        });
    }

    /// Takes in what the source of the audit log says.
    fn observe(&mut self, said: Said<Message>) {
        match said {
            Said::Message(Message::Batch(batch)) => {
                self.audit_log.works();
                self.guardian.assess(batch, SystemTime::now());
            }
            Said::Message(Message::Failed(why)) => {
                self.audit_log.failed();
                self.note_failed("audit-log", "the reading of the audit log", &why);
            }
            Said::Panicked => {
                self.audit_log.failed();
                self.note_failed("audit-log", "the reading of the audit log", PANICKED);
            }
            Said::Due => self.start_audit_log(),
        }
    }

    /// Takes in what the source of check `policy` says.
    fn observe_policy(&mut self, said: Said<policy::Message>) {
        match said {
            Said::Message(policy::Message::Observed(observation)) => {
                self.policy.works();
                self.note_stores(&observation);
                self.guardian.assess_policy(*observation, SystemTime::now());
            }
            Said::Message(policy::Message::Unwatched(why)) => {
                let (kind, message) = match why {
                    Some(why) => (Kind::Raised, format!("not all of check policy can be watched: {why}")),
                    None => (Kind::Cleared, "all of check policy is watched".to_owned()),
                };
                let trouble = Trouble { id: WATCH_INCOMPLETE, kind, subject: "policy", message };
                self.guardian.note(trouble, SystemTime::now());
            }
            Said::Message(policy::Message::Failed(why)) => {
                self.policy.failed();
                self.note_failed("policy", "the watch of check policy", &why);
            }
            Said::Panicked => {
                self.policy.failed();
                self.note_failed("policy", "the watch of check policy", PANICKED);
            }
            Said::Due => self.start_policy(),
        }
    }

    /// Takes in where there are stores of containers.
    fn note_stores(&mut self, observation: &Observation) {
        observation.gone.iter().for_each(|name| drop(self.accounts.remove(name)));
        for home in &observation.homes {
            let told = || home.crio.iter().flatten().next().map(|told| told.crio.clone()).unwrap_or_default();
            let crio = home.runs_crio.then(told);
            let crio = crio.map(|crio| OfCrio { run_root: crio.runroot, exits: crio.container_exits_dir });
            let place =
                |store: &Store| Place { path: store.path.clone(), account: home.account.clone(), crio: crio.clone() };
            self.accounts.insert(home.account.name.clone(), home.images.stores.iter().map(place).collect());
        }
        let mut stores = Stores::new();
        for place in self.accounts.values().flatten() {
            stores.entry(place.path.clone()).or_default().push(place.clone());
        }
        // Before all homes were looked at, what was there before may still come.
        if observation.system.is_some() {
            self.guardian.note_stores(&stores, SystemTime::now());
        }
        self.stores.send_if_modified(|former| {
            let is_news = *former != stores;
            *former = stores;
            is_news
        });
    }

    /// Takes in what the source of check `containers` says.
    fn observe_containers(&mut self, said: Said<containers::Message>) {
        match said {
            Said::Message(containers::Message::Observed(observation)) => {
                self.containers.works();
                self.guardian.assess_containers(&observation, SystemTime::now());
            }
            Said::Message(containers::Message::Uncovered(store, why)) => {
                self.guardian.note_uncovered(&store, why, SystemTime::now());
            }
            Said::Message(containers::Message::Failed(why)) => {
                self.containers.failed();
                self.note_failed("containers", "the watch of check containers", &why);
            }
            Said::Panicked => {
                self.containers.failed();
                self.note_failed("containers", "the watch of check containers", PANICKED);
            }
            Said::Due => self.start_containers(),
        }
    }

    /// A source failed.
    fn note_failed(&mut self, subject: &'static str, what: &str, why: &str) {
        let message = format!("{what} failed ({why}) and is started again");
        self.guardian.note(Trouble { id: PART_FAILED, kind: Kind::Event, subject, message }, SystemTime::now());
    }

    /// Hands a cycle to the reports; there is room for it.
    async fn send_cycle(&mut self) {
        let cycle = Arc::new(self.guardian.cycle());
        self.reports.sent = cycle.number;
        // They only fail when the report has ended, which is told as such.
        let _ = self.reports.to_journal.try_send(Arc::clone(&cycle));
        // The journal, which is a task of this thread, goes first: what the ledger needs takes as long as sending.
        tokio::task::yield_now().await;
        let _ = self.reports.to_ledger.try_send((cycle, self.guardian.state()));
    }

    /// The watchdog's turn: the only thing that happens when nothing happens.
    async fn turn(&mut self) {
        notify(&[NotifyState::Watchdog]);
        self.handover.give_back(UNCLAIMED);
        self.note_mail();
        self.note_rootless();
        let has_findings = self.guardian.has_findings();
        // Progress that found nothing reaches the checkpoint here.
        if self.guardian.has_moved() && self.reports.have_room_for_more() {
            self.send_cycle().await;
        }
        if has_findings || status::touch(&self.status).is_err() {
            self.write_status();
        }
    }

    /// Writes the status file. If a metric will change with nothing else happening, it is due again then.
    fn write_status(&mut self) {
        let now = SystemTime::now();
        if let Err(error) = self.guardian.status(self.turn.as_secs(), now).write(&self.status) {
            let path = self.status.clone();
            log(move || tracing::warn!("cannot write {}: {error}", path.display()));
        }
        self.status_due = self
            .guardian
            .next_change(now)
            .map(|change| Instant::now() + change.duration_since(now).unwrap_or_default() + Duration::from_millis(1));
    }

    /// SIGHUP: reads the configuration again. A bad one leaves the former in force and is a condition.
    async fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let loaded = config::load(self.options.config.as_deref(), &self.options.root);
        let (kind, message) = match &loaded {
            Ok(_) => (Kind::Cleared, VALID.to_owned()),
            Err(error) => {
                (Kind::Raised, format!("the new configuration is refused, the former stays in force: {error}"))
            }
        };
        self.guardian.note(configuration(kind, message), SystemTime::now());
        match loaded {
            Ok(config) => self.configure(config).await,
            Err(error) => {
                log(move || tracing::error!("the new configuration is refused, the former stays in force: {error}"));
            }
        }
        notify(&[NotifyState::Ready]);
    }

    async fn configure(&mut self, config: Config) {
        let other_log = config.kubeapi.audit_log != self.guardian.config().kubeapi.audit_log;
        let former = self.guardian.config();
        let others = (&config.policy, config.watch) != (&former.policy, former.watch);
        let containers = others || config.containers != former.containers;
        self.reports.configure(&config);
        let rootlesskit = is_behind_rootlesskit(&config, &self.options.root);
        self.guardian.configure(config, rootlesskit);
        self.note_role();
        // Of another tree, too, of which the role is not asked.
        self.guardian.judge_log(SystemTime::now());
        if other_log {
            if self.guardian.position().is_none() {
                self.guardian.set_position(beginning(self.guardian.config(), &self.options.root));
            }
            self.start_audit_log();
        }
        if others {
            self.start_policy();
        }
        if containers {
            self.go_on_with_containers().await;
        }
        log(|| tracing::info!("the configuration was read again"));
    }
}

/// Waits for something, if it is wanted at all.
async fn only_if<T>(is_wanted: bool, something: impl Future<Output = T>) -> T {
    if is_wanted { something.await } else { std::future::pending().await }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The error of a refused configuration, if that is what it is.
pub fn refused_configuration(error: &anyhow::Error) -> Option<&ConfigError> {
    error.downcast_ref()
}
