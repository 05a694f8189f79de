//! Judges what was seen: the conditions of units, parts, endpoints and of the node. Pure.
//!
//! What was not seen this time, because nobody answered, stands as it was. A node takes its time to start, and a container is
//! away for a moment when it is started again: what is missing is told after a while.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use super::ids::*;
use super::seen::{Action, Bus, Facts, Observation, Part, Place, Process, Processes, Role, Target, Unit, UnitState};
use super::settings::{Expected, Settings};
use crate::finding::{Fields, Finding, Id, Kind};

/// Conditions that hold: by id and subject, with the sentence that says it.
pub type Conditions = BTreeMap<(Id, String), String>;

/// What is away for so long is missing: longer than a turn of the probe, so that it was away twice.
const PATIENCE: Duration = Duration::from_secs(45);
/// So long after rootlesskit's start its parts may be on their way: the kubelet and the static pods need a minute or two.
const START: Duration = Duration::from_secs(3 * 60);
/// Who is started again so often within that time has a trouble that starting does not mend.
const MANY: usize = 3;
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// So many starts of one are remembered.
const MAX_REMEMBERED: usize = 16;
/// What the kubelet takes by default (`maxPods`), and what Kubernetes is tested with
/// (<https://kubernetes.io/docs/setup/best-practices/cluster-large/>).
const MAX_PODS: usize = 110;
/// From this release on the kernel has native overlayfs in user namespaces, kill of control groups, and `idmapped` mounts:
/// podsec asks for it.
const KERNEL: (u32, u32) = (5, 15);
/// What the kubelet needs to limit pods.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// All pods of a rootless node count as one user for the kernel. The kernel's least default is 8192 watches; a pod that
/// follows logs or files takes hundreds, and 110 of them more than that.
const MIN_WATCHES: u64 = 65_536;
/// Likewise: the default of 128 is not one for each of 110 pods besides the kubelet and CRI-O; and podsecd itself takes four for
/// each user with containers.
const MIN_INSTANCES: u64 = 512;
/// The subject of what is of the node.
const NODE: &str = "node";

/// What the clocks say: periods are by the one that nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// For periods.
    pub at: Instant,
    /// For findings.
    pub time: SystemTime,
}

/// What is remembered of the observations.
#[derive(Clone, Debug)]
pub struct Assessor {
    settings: Settings,
    role: Role,
    /// Why a manager does not answer, and since when.
    silent: BTreeMap<Bus, (Instant, String)>,
    /// Why what runs cannot be seen, and since when.
    unseen: BTreeMap<&'static str, (Instant, String)>,
    units: BTreeMap<Unit, UnitState>,
    /// Since when units are down.
    down: BTreeMap<Unit, Instant>,
    given_up: BTreeSet<Unit>,
    processes: Option<Processes>,
    /// Since when there is no child of rootlesskit.
    childless: Option<Instant>,
    /// Since when parts are missing.
    missing: BTreeMap<Part, Instant>,
    /// The last containers of parts.
    containers: BTreeMap<Part, BTreeSet<String>>,
    /// Since when endpoints are not well, and what came back last.
    unwell: BTreeMap<Target, (Instant, String)>,
    facts: Facts,
    /// When units and containers were started again.
    restarts: BTreeMap<String, VecDeque<Instant>>,
    conditions: Conditions,
}

impl Assessor {
    /// Nothing was seen yet.
    pub fn new(settings: Settings) -> Assessor {
        Assessor {
            settings,
            role: Role::default(),
            silent: BTreeMap::new(),
            unseen: BTreeMap::new(),
            units: BTreeMap::new(),
            down: BTreeMap::new(),
            given_up: BTreeSet::new(),
            processes: None,
            childless: None,
            missing: BTreeMap::new(),
            containers: BTreeMap::new(),
            unwell: BTreeMap::new(),
            facts: Facts::default(),
            restarts: BTreeMap::new(),
            conditions: Conditions::new(),
        }
    }

    /// Takes in what was seen; answers what happened since.
    pub fn assess(&mut self, observation: Observation, now: Clocks) -> Vec<Finding<'static>> {
        let mut events: Vec<_> = observation.actions.iter().map(|action| tried(action, now.time)).collect();
        self.role = observation.role;
        if let Some(given_up) = observation.given_up {
            self.given_up = given_up;
        }
        for (bus, answer) in observation.managers {
            keep_since(&mut self.silent, bus, answer.err(), now.at);
        }
        for (unit, state) in observation.units {
            events.extend(self.note_unit(unit, state, now));
        }
        keep_since(&mut self.unseen, NODE, observation.unseen, now.at);
        if let Some(processes) = observation.processes {
            events.extend(self.note_processes(processes, now));
        }
        if let Some(answers) = observation.health {
            // Who is asked no more, as an address that another node holds now, is not unwell here.
            self.unwell.retain(|target, _| answers.contains_key(target));
            for (target, answer) in answers {
                keep_since(&mut self.unwell, target, answer.err(), now.at);
            }
        }
        self.facts = observation.facts.unwrap_or_else(|| std::mem::take(&mut self.facts));
        self.judge(now.at);
        events
    }

    /// Other settings are in force.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// All conditions that hold.
    pub fn conditions(&self) -> Conditions {
        self.conditions.clone()
    }

    fn note_unit(&mut self, unit: Unit, state: UnitState, now: Clocks) -> Option<Finding<'static>> {
        if state.is_down() {
            self.down.entry(unit).or_insert(now.at);
        } else {
            self.down.remove(&unit);
        }
        let former = self.units.insert(unit, state);
        let (state, former) = (&self.units[&unit], former?);
        // Whoever stops and starts it by hand sets the count back.
        let times = state.restarts.checked_sub(former.restarts).filter(|times| *times > 0)?;
        let message = format!("{} was started again by {}", unit.name(), unit.bus().name());
        let message = if times == 1 { message } else { format!("{message} {times} times") };
        Some(self.restarted(unit.subject(), times as usize, message, now))
    }

    fn note_processes(&mut self, processes: Processes, now: Clocks) -> Vec<Finding<'static>> {
        let child = |processes: &Processes| processes.child.map(|child| child.pid);
        if child(&processes).is_none() || self.processes.as_ref().and_then(child) != child(&processes) {
            // What is in another rootlesskit was not started again by the kubelet.
            self.containers.clear();
        }
        if child(&processes).is_some() {
            self.childless = None;
        } else {
            self.childless.get_or_insert(now.at);
        }
        let mut events = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| !processes.unknown.contains(part)) {
            let found: &[Process] = processes.parts.get(&part).map_or(&[], Vec::as_slice);
            // What is not expected is not missed, and the time begins when it is.
            let is_there = !found.is_empty() || processes.child.is_none() || !part.is_expected_of(self.role);
            keep_since(&mut self.missing, part, (!is_there).then_some(()), now.at);
            let ids: BTreeSet<_> = found.iter().filter_map(|process| process.container.clone()).collect();
            if ids.is_empty() {
                continue;
            }
            if let Some(former) = self.containers.insert(part, ids.clone()) {
                let times = ids.difference(&former).count().min(former.difference(&ids).count());
                let message =
                    format!("{} runs in another container than before: it ended, or was replaced", part.name());
                events.extend((times > 0).then(|| self.restarted(part.name().to_owned(), times, message, now)));
            }
        }
        self.processes = Some(processes);
        events
    }

    fn restarted(&mut self, subject: String, times: usize, message: String, now: Clocks) -> Finding<'static> {
        let starts = self.restarts.entry(subject.clone()).or_default();
        starts.extend(std::iter::repeat_n(now.at, times.min(MAX_REMEMBERED)));
        starts.drain(..starts.len().saturating_sub(MAX_REMEMBERED));
        event(RESTARTED, subject, message, now.time)
    }

    fn judge(&mut self, now: Instant) {
        self.conditions = Conditions::new();
        self.judge_units(now);
        self.judge_restarts(now);
        self.judge_parts(now);
        self.judge_health(now);
        self.judge_node();
    }

    fn add(&mut self, id: Id, subject: impl Into<String>, message: String) {
        self.conditions.insert((id, subject.into()), message);
    }

    fn judge_units(&mut self, now: Instant) {
        let expected: Vec<_> =
            Unit::EXPECTED.into_iter().filter(|unit| self.settings.expects(Expected::Unit(*unit))).collect();
        for (bus, (since, why)) in self.silent.clone() {
            if is_long(since, now, PATIENCE) && expected.iter().any(|unit| unit.bus() == bus) {
                let message = format!("{} does not answer, its units stand as they were: {why}", bus.name());
                self.add(MANAGER_UNAVAILABLE, bus.name(), message);
            }
        }
        for (subject, (since, why)) in self.unseen.clone() {
            if is_long(since, now, PATIENCE) {
                let message = format!("what runs on the node cannot be seen, it is judged as it was: {why}");
                self.add(UNSEEN, subject, message);
            }
        }
        for unit in expected {
            let Some((state, since)) = self.units.get(&unit).zip(self.down.get(&unit)) else { continue };
            let UnitState { active, sub, result, .. } = state;
            let what = match &*state.load {
                "loaded" => format!("is {active} ({sub}, {result})"),
                "not-found" => "is not installed".to_owned(),
                load => format!("cannot run: it is {load}"),
            };
            // What failed stays so; what is inactive may be about to start.
            if active == "failed" || is_long(*since, now, PATIENCE) {
                self.add(UNIT_DOWN, unit.subject(), format!("{} of {} {what}", unit.name(), unit.bus().name()));
            }
        }
        for unit in self.given_up.clone() {
            let message =
                format!("{} is down, and podsecd has started it as often as it may within an hour", unit.name());
            self.add(RESTART_GIVEN_UP, unit.subject(), message);
        }
        for unit in [Unit::SystemKubelet, Unit::SystemCrio] {
            if let Some(state) = self.units.get(&unit).filter(|state| state.is_up()) {
                let message = format!(
                    "{} of the system is {} (process {}): it runs as root, though the node is rootless",
                    unit.name(),
                    state.active,
                    state.main_pid
                );
                self.add(REAL_ROOT, unit.subject(), message);
            }
        }
    }

    fn judge_restarts(&mut self, now: Instant) {
        self.restarts.retain(|_, starts| {
            starts.retain(|start| !is_long(*start, now, WINDOW));
            !starts.is_empty()
        });
        for (subject, starts) in self.restarts.clone() {
            if starts.len() >= MANY {
                let many = if starts.len() == MAX_REMEMBERED { "at least " } else { "" };
                let (count, minutes) = (starts.len(), WINDOW.as_secs() / 60);
                self.add(
                    RESTARTING,
                    &subject,
                    format!("{subject} was started again {many}{count} times in {minutes} minutes"),
                );
            }
        }
    }

    fn judge_parts(&mut self, now: Instant) {
        let is_down = |unit: Unit| self.units.get(&unit).is_some_and(UnitState::is_down);
        let is_expected = self.settings.expects(Expected::Unit(Unit::Rootlesskit)) && !is_down(Unit::Rootlesskit);
        if is_expected && self.childless.is_some_and(|since| is_long(since, now, PATIENCE)) {
            let message = "rootlesskit does not run: there is no process of the number in its child_pid".to_owned();
            self.add(COMPONENT_MISSING, "rootlesskit", message);
        }
        let Some(processes) = self.processes.clone() else { return };
        for (part, pid) in &processes.real_root {
            let message =
                format!("{} runs as root of the host (process {pid}), though the node is rootless", part.name());
            self.add(REAL_ROOT, part.name(), message);
        }
        for (part, found) in &processes.parts {
            if let Some(process) = found.iter().find(|process| process.place == Place::Outside) {
                let container = process.container.as_ref().map(|id| format!(", container {id}")).unwrap_or_default();
                let message = format!(
                    "{} (process {}{container}) is not in rootlesskit's user namespace, nor in one below it",
                    part.name(),
                    process.pid
                );
                self.add(OUTSIDE_NAMESPACE, part.name(), message);
            }
        }
        if !self.is_started() {
            return;
        }
        for (part, since) in self.missing.clone() {
            let is_expected = part.is_expected_of(self.role) && self.settings.expects(Expected::Part(part));
            let is_told = part == Part::Kubelet && self.units.get(&Unit::Kubelet).is_some_and(UnitState::is_down);
            if is_expected && !is_told && is_long(since, now, PATIENCE) {
                let what =
                    if part.is_container() { "no running container of kube-system is it" } else { "it does not run" };
                self.add(COMPONENT_MISSING, part.name(), format!("{} is missing: {what}", part.name()));
            }
        }
    }

    /// Whether rootlesskit has been there for long enough for all its parts; as far as can be seen.
    fn is_started(&self) -> bool {
        let Some(processes) = &self.processes else { return true };
        processes.child.is_some_and(|child| child.age.is_none_or(|age| age >= START))
    }

    fn judge_health(&mut self, now: Instant) {
        for (target, (since, why)) in self.unwell.clone() {
            if is_long(since, now, PATIENCE) && (self.is_started() || !target.is_inside()) {
                self.add(UNHEALTHY, target.name(), format!("{} is not well: {why}", target.name()));
            }
        }
    }

    fn judge_node(&mut self) {
        let pods = self.processes.as_ref().and_then(|processes| processes.pods).unwrap_or_default();
        let Facts { kernel, controllers, lingers, watches, instances } = self.facts.clone();
        if pods > MAX_PODS {
            self.add(TOO_MANY_PODS, NODE, format!("{pods} pods run here; Kubernetes is made for {MAX_PODS} on a node"));
        }
        if let Some(release) = kernel.filter(|release| version(release).is_some_and(|version| version < KERNEL)) {
            let (major, minor) = KERNEL;
            let message = format!("the kernel is {release}; rootless Kubernetes needs {major}.{minor} or later");
            self.add(KERNEL_OLD, NODE, message);
        }
        let lacks = |has: Vec<String>| CONTROLLERS.into_iter().filter(move |name| !has.iter().any(|has| has == name));
        let lacking: Vec<_> = controllers.map(lacks).into_iter().flatten().collect();
        if !lacking.is_empty() {
            let lacking = lacking.join(", ");
            let message = format!("u7s-admin's manager was not given these controllers of control groups: {lacking}");
            self.add(CGROUP_NOT_DELEGATED, NODE, message);
        }
        if lingers == Some(false) {
            let message =
                "u7s-admin does not linger: its manager, and all in it, ends with its last session".to_owned();
            self.add(NO_LINGER, NODE, message);
        }
        for (id, name, limit, least) in [
            (WATCHES_LOW, "max_user_watches", watches, MIN_WATCHES),
            (INSTANCES_LOW, "max_user_instances", instances, MIN_INSTANCES),
        ] {
            if let Some(limit) = limit.filter(|limit| *limit < least) {
                let message = format!("fs.inotify.{name} is {limit}, for all pods together; {least} is advised");
                self.add(id, NODE, message);
            }
        }
    }
}

/// Remembers since when something holds, and the last of what is told of it; forgets it when it holds no longer.
fn keep_since<K: Ord, T: SinceWith>(since: &mut BTreeMap<K, T>, key: K, holds: Option<T::Told>, now: Instant) {
    match holds {
        Some(told) => {
            let first = since.get(&key).map_or(now, T::since);
            since.insert(key, T::new(first, told));
        }
        None => drop(since.remove(&key)),
    }
}

/// Since when something holds, with or without what is told of it.
trait SinceWith {
    type Told;
    fn new(since: Instant, told: Self::Told) -> Self;
    fn since(&self) -> Instant;
}

impl SinceWith for Instant {
    type Told = ();
    fn new(since: Instant, (): ()) -> Instant {
        since
    }
    fn since(&self) -> Instant {
        *self
    }
}

impl SinceWith for (Instant, String) {
    type Told = String;
    fn new(since: Instant, told: String) -> (Instant, String) {
        (since, told)
    }
    fn since(&self) -> Instant {
        self.0
    }
}

/// Whether that was so long ago.
fn is_long(since: Instant, now: Instant, period: Duration) -> bool {
    now.saturating_duration_since(since) >= period
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn tried(action: &Action, now: SystemTime) -> Finding<'static> {
    let Action { unit, attempt, limit, outcome } = action;
    let (name, manager) = (unit.name(), unit.bus().name());
    let message = match outcome {
        Ok(()) => format!("{name} was down; podsecd had {manager} start it again"),
        Err(why) => format!("{name} is down; podsecd could not have {manager} start it again: {why}"),
    };
    event(RESTART_TRIED, unit.subject(), format!("{message} ({attempt} of {limit} times within an hour)"), now)
}

fn event(id: Id, subject: String, message: String, time: SystemTime) -> Finding<'static> {
    let (subject, message) = (subject.into(), message.into());
    Finding { time, id, kind: Kind::Event, subject, message, fields: Fields::default() }
}
