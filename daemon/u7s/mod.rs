//! `podsecd u7s`: looks after the rootless side, with the rights of u7s-admin and no others (podsecd-u7s.service). What it
//! finds it reports to podsecd through the way in for helpers.
//!
//! ```text
//! forwards::source ----Observation--> U7s (this task: --conditions, events--> reporter --> findings.sock
//!   (rootlesskit, /proc)              all state)
//!        ^---- declared forwards -----'  ^  ^  ^---- podsecctl forwards (control)
//! forwards::services (Kubernetes API) ---'  |
//! controlplane::source (systemd, /proc) ----'
//! ```

mod cluster;
pub mod control;
mod control_plane;
mod forwards;
mod kept;
mod past;
mod reporter;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use self::cluster::Cluster;
use self::control::Asked;
use self::control_plane::ControlPlane;
use self::forwards::Forwards;
use self::reporter::{Holding, Reporter};
use crate::checks::controlplane::seen::Role;
use crate::config::{self, Config, Root};
use crate::finding::Finding;
use crate::helper;
use crate::report::text::one_line;
use crate::service::{next_turn, notify, passed_on, turns};
use crate::start::{Input, lock, receive_signals, role};

/// Runs it until SIGTERM or SIGINT.
///
/// # Errors
/// [`config::ConfigError`] for the configuration; anything else that keeps it from starting.
pub async fn run(file: Option<PathBuf>, root: Root) -> Result<()> {
    let config = config::load(file.as_deref(), &root)?;
    let state = root.make(kept::DIRECTORY).with_context(|| format!("cannot make {}", kept::DIRECTORY))?;
    let _lock = lock(&state, helper::U7S)?;
    let forwards = Forwards::load(&state).with_context(|| format!("cannot read {}", state.display()))?;
    let (inputs, inputs_in) = mpsc::channel(4);
    receive_signals(inputs)?;
    let (asked, asked_in) = mpsc::channel(4);
    tokio::spawn(crate::control::accept(passed_on().0.open(&root, control::SOCKET)?, asked));
    let reporter = Reporter::start(root.path(helper::SOCKET));
    let rootlesskit = state_directory(&config, &root);
    let cluster = Cluster::start(config.forwards.clone(), root.clone());
    let control_plane = ControlPlane::start(config.controlplane.clone(), rootlesskit.clone(), &root);
    let mut u7s =
        U7s { file, root, config, role: Role::default(), reporter, told: None, forwards, cluster, control_plane };
    u7s.follow_cluster();
    u7s.forwards.start(rootlesskit);
    u7s.serve(inputs_in, asked_in).await
}

/// rootlesskit's.
fn state_directory(config: &Config, root: &Root) -> PathBuf {
    let set = &config.forwards.state_directory;
    let uid = nix::unistd::geteuid();
    let usual = || PathBuf::from(format!("/run/user/{uid}/usernetes/rootlesskit"));
    root.path(if set.as_os_str().is_empty() { usual() } else { set.clone() })
}

struct U7s {
    file: Option<PathBuf>,
    root: Root,
    config: Config,
    /// What the node is, as it was last seen.
    role: Role,
    reporter: Reporter,
    /// What holds, as it was last told.
    told: Option<Holding>,
    forwards: Forwards,
    cluster: Cluster,
    control_plane: ControlPlane,
}

impl U7s {
    async fn serve(mut self, mut inputs: mpsc::Receiver<Input>, mut asked: mpsc::Receiver<Asked>) -> Result<()> {
        let mut turn = turns(self.turn())?;
        notify(&[NotifyState::Ready]);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "podsecd-u7s watches");
        loop {
            // Before podsecd has taken all nothing is to be kept; that it has wakes us.
            let settle_due = self.forwards.settle_due().filter(|_| self.reporter.has_told_all());
            let due = self.forwards.next_change().into_iter().chain(settle_due).min();
            let mut is_turn = false;
            tokio::select! {
                said = self.forwards.said() => {
                    let events = self.forwards.observe(said);
                    self.tell_of(events);
                }
                said = self.control_plane.said() => {
                    let events = self.control_plane.observe(said);
                    self.tell_of(events);
                }
                said = self.cluster.said() => if let Some(services) = self.cluster.observe(said) {
                    self.forwards.set_services(services);
                    self.declare();
                },
                Some(asked) = asked.recv() => {
                    self.forwards.answer(asked);
                    self.declare();
                }
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
                    self.forwards.turn();
                    self.control_plane.turn();
                }
                // What is known now is to be known after a restart.
                () = self.reporter.told() => {}
                // Then other conditions may hold.
                () = sleep_until(due.unwrap_or_else(std::time::Instant::now).into()), if due.is_some() => {}
            }
            self.tell(is_turn);
        }
        notify(&[NotifyState::Stopping]);
        if self.reporter.end().await {
            self.forwards.settle(true);
        }
        Ok(())
    }

    /// Between two turns: the probe's, and the watchdog's.
    fn turn(&self) -> Duration {
        let probe = self.config.u7s.probe.get();
        sd_notify::watchdog_enabled().map_or(probe, |watchdog| probe.min(watchdog / 2))
    }

    /// Says which forwards are to stand.
    fn declare(&mut self) {
        // What cannot be seen is what it was; check controlplane says so.
        self.role = role(&self.config, &self.root).unwrap_or(self.role);
        self.forwards.declare(&self.config.forwards, self.role == Role::ControlPlane);
    }

    /// Until the API says which Services there are, what there was stays, as far as it is allowed.
    fn follow_cluster(&mut self) {
        let allowed = self.cluster.allowed(self.forwards.services());
        self.forwards.set_services(allowed);
        self.declare();
    }

    /// Tells podsecd what happened.
    fn tell_of(&self, events: Vec<Finding<'static>>) {
        for event in events {
            tracing::info!("{}", one_line(&event.message));
            self.reporter.tell(&event);
        }
    }

    /// Tells podsecd which conditions hold, if they are others than before; and at every turn that we are here.
    fn tell(&mut self, is_turn: bool) {
        if self.reporter.has_told_all() {
            self.forwards.settle(false);
        }
        let mut conditions = self.forwards.conditions(self.config.u7s.probe.get());
        conditions.extend(self.cluster.conditions());
        conditions.extend(self.control_plane.conditions());
        let holding = Holding { all: self.forwards.is_settled() && self.control_plane.is_settled(), conditions };
        if is_turn || self.told.as_ref() != Some(&holding) {
            self.reporter.hold(holding.clone());
            self.told = Some(holding);
        }
    }

    /// SIGHUP: reads the configuration again; true if there are turns at other times. A bad one leaves the former in force.
    fn reload(&mut self) -> bool {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let loaded = config::load(self.file.as_deref(), &self.root);
        notify(&[NotifyState::Ready]);
        let config = match loaded {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("the new configuration is refused, the former stays in force: {error}");
                return false;
            }
        };
        let former = std::mem::replace(&mut self.config, config);
        let rootlesskit = state_directory(&self.config, &self.root);
        let is_elsewhere = rootlesskit != state_directory(&former, &self.root);
        if former.forwards != self.config.forwards {
            self.cluster = Cluster::start(self.config.forwards.clone(), self.root.clone());
            self.follow_cluster();
        }
        if is_elsewhere || former.controlplane != self.config.controlplane {
            let settings = self.config.controlplane.clone();
            self.control_plane.configure(settings, rootlesskit.clone());
        }
        if is_elsewhere {
            self.forwards.start(rootlesskit);
        }
        self.declare();
        tracing::info!("the configuration was read again");
        former.u7s != self.config.u7s
    }
}
