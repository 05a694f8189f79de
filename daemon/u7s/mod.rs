//! `podsecd u7s`: looks after the rootless side, with the rights of u7s-admin and no others (podsecd-u7s.service). What it
//! finds it reports to podsecd through the way in for helpers.
//!
//! ```text
//! forwards::source --Observation--> U7s (this task: all state) --conditions, events--> reporter --> findings.sock
//!        ^---- declared forwards -----'  ^     ^---- podsecctl forwards (control)
//!                   forwards::services --'
//! ```

pub mod control;
mod kept;
mod reporter;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep_until;

use self::control::{Answer, Asked, Request};
use self::kept::Kept;
use self::reporter::{Conditions, Holding, Reporter};
use crate::checks::forwards::assess::{Assessor, Observation, START_GRACE};
use crate::checks::forwards::declared::{self, Declared, Origin};
use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::ids::{SERVICES_UNAVAILABLE, UNWATCHED};
use crate::checks::forwards::services::{self, LeftOut, MAX_PORTS, Times};
use crate::checks::forwards::source::{self, Wanted};
use crate::config::{self, Config, Root};
use crate::doors::Doors;
use crate::guardian::MAX_FORWARDS;
use crate::helper;
use crate::report::text::one_line;
use crate::run::{next_turn, notify, turns};
use crate::source::{Said, Source};
use crate::start::{Input, is_control_plane, lock, receive_signals};

/// The apiserver starts later than we do, and may be away for a moment.
const AWAY_GRACE: Duration = Duration::from_secs(60);

/// Runs it until SIGTERM or SIGINT.
///
/// # Errors
/// [`config::ConfigError`] for the configuration; anything else that keeps it from starting.
pub async fn run(file: Option<PathBuf>, root: Root) -> Result<()> {
    let config = config::load(file.as_deref(), &root)?;
    let state = root.make(kept::DIRECTORY).with_context(|| format!("cannot make {}", kept::DIRECTORY))?;
    let _lock = lock(&state)?;
    let kept = Kept::load(&state).with_context(|| format!("cannot read {}", state.display()))?;
    let (inputs, inputs_in) = mpsc::channel(4);
    receive_signals(inputs)?;
    let (asked, asked_in) = mpsc::channel(4);
    tokio::spawn(crate::control::accept(Doors::of_systemd().open(&root, control::SOCKET)?, asked));
    let reporter = Reporter::start(root.path(helper::SOCKET));
    let mut u7s = U7s {
        file,
        root,
        config,
        kept,
        reporter,
        told: None,
        started: Instant::now(),
        seen: None,
        failed: None,
        look: Arc::new(Notify::new()),
        wanted: watch::channel(Wanted::default()).0,
        source: Source::new(),
        forwards: Assessor::default(),
        cluster: Source::new(),
        away: None,
        left_out: LeftOut::default(),
        waiting: Vec::new(),
    };
    u7s.declare();
    u7s.start_forwards();
    u7s.start_cluster();
    u7s.serve(inputs_in, asked_in).await
}

struct U7s {
    file: Option<PathBuf>,
    root: Root,
    config: Config,
    kept: Kept,
    reporter: Reporter,
    /// The conditions as they were last told.
    told: Option<Holding>,
    started: Instant,
    /// When the forwards were last looked at.
    seen: Option<Instant>,
    /// Why nobody looks at the forwards.
    failed: Option<String>,
    /// The turn of the probe, for the source of the forwards.
    look: Arc<Notify>,
    /// The forwards that are to stand, for their source.
    wanted: watch::Sender<Wanted>,
    source: Source<Box<Observation>>,
    forwards: Assessor,
    /// The Services of the cluster, if they are followed.
    cluster: Source<services::Message>,
    /// Why they cannot be found, and since when.
    away: Option<(String, Instant)>,
    left_out: LeftOut,
    waiting: Vec<Waiting>,
}

/// Who waits until a declaration was looked after.
struct Waiting {
    /// Its number.
    number: u64,
    forward: Forward,
    answer: oneshot::Sender<Result<Answer, String>>,
}

impl U7s {
    async fn serve(mut self, mut inputs: mpsc::Receiver<Input>, mut asked: mpsc::Receiver<Asked>) -> Result<()> {
        let mut turn = turns(self.turn())?;
        notify(&[NotifyState::Ready]);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "podsecd-u7s watches");
        loop {
            let due = self.forwards.next_change(Instant::now());
            let due = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut is_turn = false;
            tokio::select! {
                said = self.source.said() => self.observe(said),
                said = self.cluster.said() => self.observe_cluster(said),
                Some(asked) = asked.recv() => self.answer(asked),
                Some(input) = inputs.recv() => match input {
                    Input::Stop => break,
                    Input::Reload => if self.reload() {
                        turn = turns(self.turn())?;
                    },
                    // None of its parts is one of these.
                    Input::Ended(_) => {}
                },
                () = next_turn(&turn) => {
                    is_turn = true;
                    notify(&[NotifyState::Watchdog]);
                    // The role of the node may have changed.
                    self.declare();
                    self.look.notify_one();
                }
                () = due => {}
            }
            self.tell(is_turn);
        }
        notify(&[NotifyState::Stopping]);
        self.reporter.end().await;
        Ok(())
    }

    /// Between two turns: the probe's, and the watchdog's.
    fn turn(&self) -> Duration {
        let probe = self.config.u7s.probe.get();
        sd_notify::watchdog_enabled().map_or(probe, |watchdog| probe.min(watchdog / 2))
    }

    fn start_forwards(&mut self) {
        let (wanted, look) = (self.wanted.subscribe(), Arc::clone(&self.look));
        source::spawn(self.state_directory(), wanted, look, self.source.start());
    }

    /// Follows the Services of the cluster, if that is wanted; whoever did before stops.
    fn start_cluster(&mut self) {
        (self.away, self.left_out) = (None, LeftOut::default());
        let settings = &self.config.forwards;
        // Until the API says what there is, what there was stays, as far as it is allowed.
        let mut services = self.kept.forwards().services.clone();
        services.retain(|forward| settings.follows_services() && settings.allows_node_port(&forward.end));
        if settings.follows_services() {
            let kubeconfig = self.root.path(&settings.kubeconfig);
            // Each change is kept on the disk.
            let times = Times { gather: Duration::from_secs(1), ..Times::default() };
            services::spawn(kubeconfig, times, self.cluster.start());
        } else {
            self.cluster.stop();
        }
        self.set_services(services);
    }

    /// Takes in what the source of the Services says.
    fn observe_cluster(&mut self, said: Said<services::Message>) {
        match said {
            Said::Message(message) => {
                self.cluster.works();
                match message {
                    services::Message::Services(ports) => {
                        self.set_services(declared::of_services(&ports, &self.config.forwards));
                    }
                    services::Message::LeftOut(left_out) => self.left_out = left_out,
                    services::Message::Away(why) => {
                        let since = self.away.take().map_or_else(Instant::now, |(_, since)| since);
                        self.away = Some((why, since));
                    }
                    services::Message::Back => self.away = None,
                }
            }
            // It has no other end.
            Said::Panicked => {
                tracing::error!("the watch of Services panicked and is started again");
                self.cluster.failed();
            }
            Said::Due => self.start_cluster(),
        }
    }

    /// These are the forwards that Services want, and no others any more.
    fn set_services(&mut self, services: BTreeSet<Forward>) {
        let mut forwards = self.kept.forwards().clone();
        let gone: Vec<_> = forwards.services.difference(&services).copied().collect();
        forwards.withdrawn.extend(gone);
        forwards.withdrawn.retain(|forward| !services.contains(forward));
        forwards.services = services;
        self.keep(forwards);
        self.declare();
    }

    /// Conditions of the watch of Services.
    fn cluster_conditions(&self) -> Conditions {
        let mut holding = Conditions::new();
        if let Some((why, since)) = &self.away
            && since.elapsed() >= AWAY_GRACE
        {
            let message = format!("Services cannot be read from the Kubernetes API: {why}");
            holding.insert((SERVICES_UNAVAILABLE, "Services".into()), message);
        }
        let LeftOut { unfit, beyond } = self.left_out;
        if unfit > 0 || beyond > 0 {
            let message = format!(
                "not all NodePorts are forwarded: {beyond} are more than {MAX_PORTS}, {unfit} have numbers or names that cannot be"
            );
            holding.insert((SERVICES_UNAVAILABLE, "NodePorts".into()), message);
        }
        holding
    }

    /// rootlesskit's.
    fn state_directory(&self) -> PathBuf {
        let set = &self.config.forwards.state_directory;
        let uid = nix::unistd::geteuid();
        let usual = || PathBuf::from(format!("/run/user/{uid}/usernetes/rootlesskit"));
        self.root.path(if set.as_os_str().is_empty() { usual() } else { set.clone() })
    }

    /// Says which forwards are to stand, if they are others than before.
    fn declare(&mut self) {
        let kept = self.kept.forwards();
        let settings = &self.config.forwards;
        let declared = declared::declare(settings, is_control_plane(&self.root), &kept.administrator, &kept.services);
        let mut withdrawn = declared::unwanted(settings, &declared);
        withdrawn.extend(kept.withdrawn.iter().filter(|forward| !declared.contains_key(forward)));
        self.wanted.send_if_modified(|wanted| {
            let next = Wanted {
                number: wanted.number,
                declared,
                withdrawn,
                remove_undeclared: settings.remove_undeclared,
                connect: settings.connect.clone(),
            };
            let is_news = *wanted != next;
            if is_news {
                *wanted = Wanted { number: wanted.number + 1, ..next };
            }
            is_news
        });
    }

    fn declared(&self) -> Declared {
        self.wanted.borrow().declared.clone()
    }

    /// Takes in what the source of the forwards says.
    fn observe(&mut self, said: Said<Box<Observation>>) {
        match said {
            Said::Message(observation) => {
                self.source.works();
                (self.seen, self.failed) = (Some(Instant::now()), None);
                self.see(*observation);
            }
            Said::Panicked => {
                tracing::error!("the looking after the forwards panicked and is started again");
                self.failed = Some("the looking after the forwards panicked and is started again".into());
                self.source.failed();
            }
            Said::Due => self.start_forwards(),
        }
    }

    fn see(&mut self, observation: Observation) {
        let (number, is_listed) = (observation.wanted, observation.is_listed);
        if is_listed && number == self.wanted.borrow().number {
            let mut forwards = self.kept.forwards().clone();
            // What rootlesskit has no more need not be taken from it.
            forwards.withdrawn.retain(|forward| observation.undeclared.contains(forward));
            self.keep(forwards);
        }
        for event in self.forwards.assess(observation, SystemTime::now()) {
            tracing::info!("{}", one_line(&event.message));
            self.reporter.tell(&event);
        }
        let rows = self.rows();
        for Waiting { forward, answer, .. } in self.waiting.extract_if(.., |waiting| waiting.number <= number) {
            let row = rows.get(&forward).cloned();
            let _ = answer.send(row.map_or(Ok(Answer::Removed(is_listed)), |row| match row.origin {
                Some(_) => Ok(Answer::Added(row)),
                None => Ok(Answer::Removed(false)),
            }));
        }
    }

    fn rows(&self) -> BTreeMap<Forward, crate::checks::forwards::assess::Row> {
        self.forwards.rows(&self.declared()).into_iter().map(|row| (row.forward, row)).collect()
    }

    fn keep(&mut self, forwards: kept::Forwards) -> bool {
        let kept = self.kept.keep(forwards);
        if let Err(error) = &kept {
            tracing::error!("cannot keep the forwards in {}: {error}", kept::DIRECTORY);
        }
        kept.is_ok()
    }

    /// Does what podsecctl asks for.
    fn answer(&mut self, Asked { request, uid, answer }: Asked) {
        let mut forwards = self.kept.forwards().clone();
        let refused = match request {
            Request::List => {
                let _ = answer.send(Ok(Answer::Forwards(self.rows().into_values().collect())));
                return;
            }
            Request::Add(forward) => {
                forwards.withdrawn.remove(&forward);
                forwards.administrator.insert(forward);
                let too_many = forwards.administrator.len() > MAX_FORWARDS;
                let too_many = too_many.then(|| format!("there are {MAX_FORWARDS} of them already; remove some"));
                too_many.or_else(|| self.other_holder(&forward))
            }
            Request::Remove(forward) => {
                forwards.administrator.remove(&forward);
                forwards.withdrawn.insert(forward);
                self.other_origin(&forward)
            }
        };
        let (Request::Add(forward) | Request::Remove(forward)) = request else { return };
        let refused = refused.or_else(|| {
            let is_kept = self.keep(forwards);
            (!is_kept).then(|| format!("it cannot be kept in {}; see journalctl -u podsecd-u7s", kept::DIRECTORY))
        });
        if let Some(why) = refused {
            let _ = answer.send(Err(why));
            return;
        }
        tracing::info!(uid, "user id {uid} asks to {} the forward {forward}", request.verb());
        self.declare();
        // If nothing is new, the next look says how it is all the same.
        self.look.notify_one();
        self.waiting.push(Waiting { number: self.wanted.borrow().number, forward, answer });
    }

    /// Why the administrator cannot add a forward: what is declared already has its place. A Service gives way.
    fn other_holder(&self, forward: &Forward) -> Option<String> {
        let wanted = self.wanted.borrow();
        let (held, declaration) = declared::holder(&wanted.declared, forward)?;
        let is_taken = held != forward && declaration.origin != Origin::Service;
        is_taken.then(|| format!("{held}, which is declared by {}, has its place", declaration.origin))
    }

    /// Why the administrator cannot remove a forward: somebody else wants it.
    fn other_origin(&self, forward: &Forward) -> Option<String> {
        let origin = self.wanted.borrow().declared.get(forward)?.origin;
        let remedy = match origin {
            Origin::Administrator => return None,
            Origin::Podsec => "set `podsec = false` of [forwards], and `declare` those of its list that are to stand",
            Origin::Configuration => "take it out of `declare` of [forwards]",
            Origin::Service => "remove the Service, or narrow `node-ports` of [forwards]",
        };
        Some(format!("{forward} is declared by {origin}: {remedy}"))
    }

    /// Tells podsecd which conditions hold, if they are others than before; and at every turn that we are here.
    fn tell(&mut self, is_turn: bool) {
        let mut conditions = self.forwards.conditions(&self.declared(), Instant::now());
        conditions.extend(self.cluster_conditions());
        // A look takes less than that, whatever rootlesskit does.
        let most = 2 * self.config.u7s.probe.get() + Duration::from_secs(60);
        let is_late = self.seen.unwrap_or(self.started).elapsed() > most;
        let late = || is_late.then(|| "the looking after the forwards has said nothing for long".to_owned());
        if let Some(why) = self.failed.clone().or_else(late) {
            conditions.insert((UNWATCHED, "podsecd-u7s".into()), why);
        }
        // Until then what was open before a restart may still be.
        let all = self.seen.is_some() && self.started.elapsed() > START_GRACE + Duration::from_secs(10);
        let holding = Holding { all, conditions };
        if is_turn || self.told.as_ref() != Some(&holding) {
            self.reporter.hold(holding.clone());
            self.told = Some(holding);
        }
    }

    /// SIGHUP: reads the configuration again; true if it is another. A bad one leaves the former in force.
    fn reload(&mut self) -> bool {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let loaded = config::load(self.file.as_deref(), &self.root);
        notify(&[NotifyState::Ready]);
        match loaded {
            Err(error) => {
                tracing::error!("the new configuration is refused, the former stays in force: {error}");
                false
            }
            Ok(config) => {
                let former = std::mem::replace(&mut self.config, config);
                self.declare();
                if former.forwards.state_directory != self.config.forwards.state_directory {
                    self.start_forwards();
                }
                if former.forwards != self.config.forwards {
                    self.start_cluster();
                }
                tracing::info!("the configuration was read again");
                former.u7s != self.config.u7s
            }
        }
    }
}

impl Request {
    fn verb(self) -> &'static str {
        match self {
            Request::List => "list",
            Request::Add(_) => "add",
            Request::Remove(_) => "remove",
        }
    }
}
