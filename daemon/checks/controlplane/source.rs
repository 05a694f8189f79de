//! Observes the node: at its start, at each turn, and when systemd says that a unit changed.
//!
//! It has no timer of its own. At a turn all is looked at; after a signal, a moment later, what a change of units may have
//! changed. Files and `/proc` are read on a thread that may hang: then what it would have seen is unknown until it answers.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::facts::{MANIFESTS, Places};
use super::health::{ETCD_PORT, Prober, is_local, kubelet, listens};
use super::processes::Observer;
use super::restart::Restarts;
use super::seen::{Action, Answer, Bus, Facts, Observation, Part, Processes, Role, Target, Unit};
use super::settings::{Endpoint, Expected, Health, Settings};
use super::units::Manager;

/// Where the system's bus is (D-Bus specification, well-known message bus instances).
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// So long after a signal it is looked; after further ones before the next turn each time twice as long, so that whoever holds
/// u7s-admin's bus cannot keep us busy.
const SETTLING: Duration = Duration::from_millis(500);
/// It is doubled so often at most.
const MAX_DOUBLED: u32 = 6;
/// Files are read within that time, or what is in them is unknown.
const TIME: Duration = Duration::from_secs(3);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Task {
    /// What an operator set.
    pub settings: Settings,
    /// u7s-admin's.
    pub uid: u32,
    /// rootlesskit's, with `child_pid` in it; where it lies, also in another tree.
    pub state_directory: PathBuf,
    /// The tree; `None`: the node's own. Of another tree no endpoint is asked over the network.
    pub root: Option<PathBuf>,
}

/// What the source says.
#[derive(Clone, Debug)]
pub enum Message {
    /// What it saw.
    Observed(Box<Observation>),
    /// It ended, and why.
    Failed(String),
}

/// Starts to observe, on this thread's runtime; it ends when nobody receives. Each `turn.notify_one()` makes it look at all.
pub fn spawn(task: Task, turn: Arc<Notify>, sender: mpsc::Sender<Message>) {
    tokio::spawn(async move {
        let observed = match Source::new(task) {
            Ok(source) => source.run(&turn, &sender).await,
            Err(why) => Err(why),
        };
        if let Err(why) = observed {
            // If nobody receives, nobody misses it.
            let _ = sender.send(Message::Failed(why)).await;
        }
    });
}

struct Source {
    settings: Settings,
    is_elsewhere: bool,
    wake: Arc<Notify>,
    managers: [Manager; 2],
    restarts: Restarts,
    prober: Prober,
    /// Those that let nobody in without credentials.
    refused: BTreeSet<Target>,
    looker: Looker,
    /// As it was last seen.
    role: Role,
}

impl Source {
    fn new(task: Task) -> Result<Source, String> {
        let Task { settings, uid, state_directory, root } = task;
        let is_elsewhere = root.is_some();
        let places = Places::new(root, uid);
        let wake = Arc::new(Notify::new());
        let manager = |bus: Bus, socket: &str| Manager::new(bus, places.path(socket), Arc::clone(&wake));
        let managers = [manager(Bus::System, SYSTEM_BUS), manager(Bus::User, &format!("/run/user/{uid}/bus"))];
        let store = places.account().map(|account| account.store);
        let observer = Observer::new(places.path("/proc"), state_directory, store, uid);
        let look = Look { settings: settings.clone(), places, observer, is_elsewhere };
        let looker = Looker { look: Some(look), busy: None };
        let restarts = Restarts::new(settings.restart.clone());
        let prober = Prober::new()?;
        let (refused, role) = (BTreeSet::new(), Role::default());
        Ok(Source { settings, is_elsewhere, wake, managers, restarts, prober, refused, looker, role })
    }

    async fn run(mut self, turn: &Notify, sender: &mpsc::Sender<Message>) -> Result<(), String> {
        // How many signals were heeded since the last turn; at a turn, none.
        let mut heeded = 0;
        loop {
            let observation = self.observe(heeded == 0).await?;
            if sender.send(Message::Observed(Box::new(observation))).await.is_err() {
                return Ok(());
            }
            let signalled = async {
                self.wake.notified().await;
                sleep(SETTLING * (1 << heeded.min(MAX_DOUBLED))).await;
                // Those that came meanwhile are of the same change.
                let _ = timeout(Duration::ZERO, self.wake.notified()).await;
            };
            heeded = tokio::select! {
                () = turn.notified() => 0,
                () = signalled => heeded + 1,
                () = sender.closed() => return Ok(()),
            };
        }
    }

    async fn observe(&mut self, is_turn: bool) -> Result<Observation, String> {
        let mut seen = Observation::default();
        for manager in &mut self.managers {
            let (bus, units) = (manager.bus(), manager.units(is_turn).await);
            seen.units.extend(units.as_ref().into_iter().flat_map(|units| (*units).clone()));
            seen.managers.insert(bus, units.map(drop));
        }
        self.act(&mut seen).await;
        match self.looker.look().await? {
            Err(why) => seen.unseen = Some(why),
            Ok(looked) => {
                self.role = *looked.role.as_ref().unwrap_or(&self.role);
                if is_turn && self.settings.health != Health::Off {
                    seen.health = Some(self.ask(&looked).await);
                }
                seen.facts = Some(looked.facts);
                match looked.processes {
                    Ok(processes) => {
                        let unread = looked.role.err().map(|why| format!("{MANIFESTS}: {why}"));
                        seen.unseen = processes.why.clone().or(unread);
                        seen.processes = Some(processes);
                    }
                    Err(why) => seen.unseen = Some(why),
                }
            }
        }
        seen.role = self.role;
        Ok(seen)
    }

    /// Starts again what is down, where that is wanted.
    async fn act(&mut self, seen: &mut Observation) {
        if seen.managers.get(&Bus::User).is_none_or(Result::is_err) {
            return;
        }
        // Whether an administrator stopped all of it must be known.
        let is_known = seen.units.contains_key(&Unit::U7s) || !self.settings.expects(Expected::Unit(Unit::U7s));
        if !is_known {
            return;
        }
        let (due, given_up) = self.restarts.due(&seen.units, Instant::now());
        seen.given_up = Some(given_up);
        for due in due {
            let Some(manager) = self.managers.iter().find(|manager| manager.bus() == due.unit.bus()) else { continue };
            let outcome = manager.restart(due.unit).await;
            seen.actions.push(Action { unit: due.unit, attempt: due.attempt, limit: due.limit, outcome });
        }
    }

    /// Asks who is to be asked, all at once.
    async fn ask(&mut self, looked: &Looked) -> BTreeMap<Target, Answer> {
        let is_control_plane = self.role == Role::ControlPlane;
        let child = looked.processes.as_ref().ok().and_then(|processes| processes.child);
        let settings = &self.settings;
        let expects = |part| settings.expects(Expected::Part(part));
        let apiserver = (is_control_plane && expects(Part::KubeApiserver)).then(|| settings.apiserver.clone());
        let kubelet = expects(Part::Kubelet).then(kubelet);
        let at_virtual = looked.holds_address.then(|| settings.at_virtual_address()).flatten();
        let (apiserver, kubelet) = (self.told(Target::Apiserver, apiserver), self.told(Target::Kubelet, kubelet));
        let balancer = self.told(Target::LoadBalancer, settings.load_balancer.0.clone());
        let told = tokio::join!(apiserver, kubelet, balancer, self.told(Target::VirtualAddress, at_virtual));
        let mut answers = BTreeMap::new();
        for (target, told) in [told.0, told.1, told.2, told.3].into_iter().flatten() {
            if told.is_refused {
                self.refused.insert(target);
            }
            // Whoever starts lets nobody in at first.
            if told.answer.is_err() {
                self.refused.remove(&target);
            }
            answers.insert(target, told.answer);
        }
        if let Some(listens) =
            looked.etcd_listens.filter(|_| is_control_plane && child.is_some() && expects(Part::Etcd))
        {
            let why = || format!("nobody listens at port {ETCD_PORT} in rootlesskit's network namespace");
            let answer = if listens { Ok(format!("it listens at port {ETCD_PORT}")) } else { Err(why()) };
            answers.insert(Target::Etcd, answer);
        }
        answers
    }

    async fn told(&self, target: Target, endpoint: Option<Endpoint>) -> Option<(Target, super::health::Told)> {
        let endpoint = endpoint.filter(|_| !self.is_elsewhere)?;
        let how = if self.refused.contains(&target) { Health::Handshake } else { self.settings.health };
        Some((target, self.prober.ask(&endpoint, how).await))
    }
}

/// What is read from files.
struct Looked {
    /// By its manifests, if they can be seen.
    role: io::Result<Role>,
    processes: Result<Processes, String>,
    facts: Facts,
    /// Whether somebody listens at etcd's port, if that can be seen.
    etcd_listens: Option<bool>,
    /// Whether this node holds the virtual address.
    holds_address: bool,
}

/// Reads files.
struct Look {
    settings: Settings,
    places: Places,
    observer: Observer,
    is_elsewhere: bool,
}

impl Look {
    fn look(&mut self) -> Looked {
        let (role, proc) = (self.places.role(self.settings.role), self.places.path("/proc"));
        let uptime = (!self.is_elsewhere).then(|| Duration::try_from(clock_gettime(ClockId::Boottime)).ok()).flatten();
        let processes = self.observer.observe(uptime).map_err(|error| format!("{}: {error}", proc.display()));
        let child = processes.as_ref().ok().and_then(|processes| processes.child);
        let etcd_listens = child.and_then(|child| listens(&proc, child.pid, ETCD_PORT));
        let holds_address = self.settings.virtual_address.0.is_some_and(|address| is_local(&proc, address));
        Looked { role, processes, facts: self.places.facts(), etcd_listens, holds_address }
    }
}

/// Has files read on another thread; on one, even if that hangs.
struct Looker {
    look: Option<Look>,
    busy: Option<JoinHandle<(Look, Looked)>>,
}

impl Looker {
    /// What is there now. Inner error: nothing was read in time.
    ///
    /// # Errors
    /// It panicked.
    async fn look(&mut self) -> Result<Result<Looked, String>, String> {
        loop {
            let is_fresh = self.look.is_some();
            if let Some(mut look) = self.look.take() {
                self.busy = Some(spawn_blocking(move || {
                    let looked = look.look();
                    (look, looked)
                }));
            }
            let Some(busy) = &mut self.busy else { return Err("nothing is there to look".to_owned()) };
            let Ok(ended) = timeout(TIME, busy).await else {
                return Ok(Err(format!("files of the node are not read within {} s", TIME.as_secs())));
            };
            self.busy = None;
            let (look, looked) = ended.map_err(|error| format!("the look at the node failed: {error}"))?;
            self.look = Some(look);
            // What was read too late is of then.
            if is_fresh {
                return Ok(Ok(looked));
            }
        }
    }
}
