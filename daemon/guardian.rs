//! All state of the daemon, owned by one task: what the checks remember, which conditions are open, what is to be
//! reported next. No I/O, and the time comes in.

mod audit_log;
mod helpers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::checks::containers::assess::{self as containers, Complete};
use crate::checks::containers::source::Stores;
use crate::checks::controlplane::seen::Role;
use crate::checks::controlplane::settings::RoleSetting;
use crate::checks::forwards::forward::Forward;
use crate::checks::kubeapi::assess::{Assessor, parse_time};
use crate::checks::kubeapi::observe::Availability;
use crate::checks::policy::assess as policy;
use crate::checks::policy::ids::{ALL as OF_POLICY, SHARED};
use crate::checks::{self, images, kubeapi, own};
use crate::config::Config;
use crate::finding::{Fields, Finding, Id, Kind};
use crate::helper::{MAIL, U7S};
use crate::report::checkpoint::State;
use crate::report::status::{CheckStatus, Condition, Counted, HelperStatus, LogStatus, Losses, MailStatus, Status};
use crate::report::{self, Cycle, Trouble};
use crate::score::{Metrics, OpenConditions, condition, judge, rfc3339};
use crate::watch::follow::Position;
use crate::watch::tree::Moment;

/// Subjects of the stores of containers begin so.
const OF_STORES: &str = "containers: ";

/// The state.
#[derive(Debug)]
pub struct Guardian {
    config: Config,
    assessor: Assessor,
    policy: policy::Assessor,
    images: images::assess::Assessor,
    open: OpenConditions,
    metrics: Metrics,
    /// Where each audit log is to be read on.
    audit_logs: BTreeMap<PathBuf, Position>,
    /// Up to which moments all that happened in stores was told.
    stores: BTreeMap<PathBuf, Complete>,
    history_until: Option<String>,
    /// When helpers were last heard of, by their names.
    heard: BTreeMap<&'static str, SystemTime>,
    /// The forwards that the administrator added, of which podsecd-u7s has no say.
    forwards: BTreeSet<Forward>,
    /// What the node is, if that was seen.
    role: Option<Role>,
    /// What listens on the host was seen.
    has_seen_host: bool,
    /// How digests are.
    mail: Option<MailStatus>,
    /// To be reported.
    pending: Vec<report::Reported>,
    /// Position or conditions are newer than the last cycle.
    moved: bool,
    cycles: u64,
    started: SystemTime,
    counts: BTreeMap<Id, u64>,
    losses: Losses,
    lag: u64,
    /// Whether the audit log can be read, if that was said.
    log: Option<Availability>,
    /// It could, at some time.
    has_seen_log: bool,
    last_refusal: Option<SystemTime>,
}

impl Guardian {
    /// The state after a restart: `state` is what the checkpoint holds.
    pub fn new(config: Config, state: State, rootlesskit: bool, now: SystemTime) -> Guardian {
        let mut assessor = Assessor::new(state.started);
        assessor.set_rootlesskit(rootlesskit);
        assessor.history_until = state.history_until.as_deref().and_then(parse_time);
        let mut metrics = Metrics::new(config.metric_window.get());
        for (name, time) in &state.recent {
            if let (Some((id, _)), Some(time)) = (config.weights.find(name), parse_time(time)) {
                metrics.note_time(id, time.min(now));
            }
        }
        let mut open = OpenConditions::restore(state.open, &config.weights);
        open.set_population(&SHARED, state.podman_users);
        let refusals = kubeapi::ids::REFUSALS.iter().filter_map(|id| state.recent.get(id.0));
        let last_refusal = refusals.filter_map(|time| parse_time(time)).max();
        let complete = |(path, changes): (PathBuf, i64)| {
            let lives = state.lives.get(&path).copied();
            (path, Complete::from_nanoseconds(changes, lives))
        };
        Guardian {
            policy: policy::Assessor::new(config.policy.clone()),
            images: images::assess::Assessor::new(config.policy.clone()),
            open,
            metrics,
            config,
            assessor,
            audit_logs: state.audit_logs,
            stores: state.stores.into_iter().map(complete).collect(),
            history_until: state.history_until,
            heard: BTreeMap::new(),
            forwards: state.forwards,
            role: state.role,
            has_seen_host: false,
            mail: None,
            pending: Vec::new(),
            moved: false,
            cycles: 0,
            started: now,
            counts: BTreeMap::new(),
            losses: Losses::default(),
            lag: 0,
            log: None,
            has_seen_log: state.audit_log_seen,
            last_refusal,
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Puts another configuration in force.
    pub fn configure(&mut self, config: Config, rootlesskit: bool) {
        self.metrics.set_window(config.metric_window.get());
        self.assessor.set_rootlesskit(rootlesskit);
        if config.policy != self.config.policy {
            self.policy = policy::Assessor::new(config.policy.clone());
            self.images = images::assess::Assessor::new(config.policy.clone());
        }
        if config.controlplane.role != self.config.controlplane.role {
            self.role = None;
        }
        if config.kubeapi.audit_log != self.config.kubeapi.audit_log {
            self.log = None;
        }
        self.config = config;
    }

    /// Takes in what was seen of the container tools' configuration.
    pub fn assess_policy(&mut self, mut observation: policy::Observation, now: SystemTime) {
        let looks = std::mem::take(&mut observation.images);
        let mut events = self.images.assess(looks, &observation.gone, now);
        events.extend(self.policy.assess(observation, now));
        for event in events {
            self.find(event, false, now);
        }
        self.open.set_population(&SHARED, self.policy.population());
        self.settle(&[OF_POLICY], self.policy.conditions(), now);
        self.settle(&[images::ids::ALL], self.images.conditions(), now);
    }

    /// Takes in what was seen in the containers of a store.
    pub fn assess_containers(&mut self, observation: &containers::Observation, now: SystemTime) {
        for finding in containers::assess(observation) {
            self.find(finding, false, now);
        }
        self.stores.insert(observation.store.clone(), observation.complete);
        self.moved = true;
    }

    /// Takes in what of a store is not watched, and why.
    pub fn note_uncovered(&mut self, store: &Path, why: Option<String>, now: SystemTime) {
        let subject = subject_of(store);
        let store = store.display();
        let (kind, message) = match why {
            Some(why) => (Kind::Raised, format!("not all of the containers in {store} is watched: {why}")),
            None => (Kind::Cleared, format!("all of the containers in {store} is watched")),
        };
        self.find(condition(own::ids::WATCH_INCOMPLETE, kind, &subject, message, now), false, now);
    }

    /// These are the stores that there are: of others nothing is known any more.
    pub fn note_stores(&mut self, stores: &Stores, now: SystemTime) {
        self.stores.retain(|path, _| stores.contains_key(path));
        let subjects: BTreeSet<_> = stores.keys().map(|path| subject_of(path)).collect();
        let is_gone = |subject: &str| subject.starts_with(OF_STORES) && !subjects.contains(subject);
        let open = self.open.iter().filter(|(id, open)| *id == own::ids::WATCH_INCOMPLETE && is_gone(&open.subject));
        let gone: Vec<_> = open.map(|(_, open)| open.subject.clone()).collect();
        for subject in gone {
            let message = "the store is there no more".to_owned();
            self.find(condition(own::ids::WATCH_INCOMPLETE, Kind::Cleared, &subject, message, now), false, now);
        }
    }

    /// Up to which moments all that happened in the stores of containers was told, by their paths.
    pub fn stores(&self) -> &BTreeMap<PathBuf, Complete> {
        &self.stores
    }

    /// Takes in all conditions of these ids that hold, with their subjects and sentences; the others hold no longer.
    /// What is of a home of which nothing is known yet stays as it was.
    fn settle(&mut self, ids: &[&[Id]], holding: BTreeMap<(Id, String), String>, now: SystemTime) {
        let of_homes = |id: &Id| matches!(id.check(), "policy" | "images");
        let ended = self
            .open
            .iter()
            .filter(|(id, open)| {
                ids.iter().any(|ids| ids.contains(id)) && !holding.contains_key(&(*id, open.subject.clone()))
            })
            .filter(|(id, open)| !of_homes(id) || !self.policy.is_unknown(&open.subject));
        let ended: Vec<_> = ended.map(|(id, open)| (id, open.subject.clone(), open.message.clone())).collect();
        for (id, subject, message) in ended {
            let message = format!("no longer: {message}");
            self.find(condition(id, Kind::Cleared, &subject, message, now), false, now);
        }
        for ((id, subject), message) in holding {
            self.find(condition(id, Kind::Raised, &subject, message, now), false, now);
        }
    }

    /// Reports a harmless finding that user id `uid` wants; answers its subject, which no other has.
    pub fn test_alert(&mut self, uid: u32, now: SystemTime) -> String {
        let subject = format!("test {}", rfc3339(now));
        let message = format!("{subject}: user {uid} tries whether alerts arrive");
        self.find(event(own::ids::TEST_ALERT, &subject, message, now), false, now);
        subject
    }

    /// Number of the cycle with which all that was taken in so far is reported.
    pub fn next_cycle(&self) -> u64 {
        self.cycles + u64::from(self.has_findings())
    }

    /// Takes in what a report says about itself.
    pub fn note(&mut self, trouble: Trouble, now: SystemTime) {
        self.find(condition(trouble.id, trouble.kind, trouble.subject, trouble.message, now), false, now);
    }

    /// Takes in a finding: if it is news, it is scored and will be reported. `again`: the audit log shows it, and shows it
    /// again for sure after a restart that does not know of it. Told twice is better than not at all.
    fn find(&mut self, finding: Finding<'static>, again: bool, now: SystemTime) {
        if !self.open.changes(&finding) {
            return;
        }
        self.metrics.note(&finding, now);
        *self.counts.entry(finding.id).or_default() += 1;
        let metric = self.metrics.of(finding.id.check(), &self.open, &self.config.weights, now);
        let scored = judge(finding, &self.config.weights, &self.config.levels);
        self.pending.push(report::Reported { scored, metric, again });
        self.moved = true;
    }

    /// Whether there is something to report.
    pub fn has_findings(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a cycle would bring the checkpoint forward.
    pub fn has_moved(&self) -> bool {
        self.moved
    }

    /// What is to be reported now; [`Guardian::state`] holds afterwards.
    pub fn cycle(&mut self) -> Cycle {
        self.cycles += 1;
        self.moved = false;
        Cycle { number: self.cycles, findings: std::mem::take(&mut self.pending) }
    }

    /// What a restart needs to know.
    pub fn state(&self) -> State {
        let told = |moment: fn(&Complete) -> Moment| {
            self.stores.iter().map(|(path, complete)| (path.clone(), moment(complete).nanoseconds())).collect()
        };
        State {
            audit_logs: self.audit_logs.clone(),
            started: self.assessor.started().clone(),
            open: self.open.iter().map(|(_, open)| open.clone()).collect(),
            recent: self.metrics.all().map(|(id, time)| (id.to_string(), rfc3339(time).into_owned())).collect(),
            history_until: self.history_until.clone(),
            podman_users: self.open.population(SHARED[0]),
            stores: told(|complete| complete.changes),
            lives: told(|complete| complete.lives),
            forwards: self.forwards.clone(),
            audit_log_seen: self.has_seen_log,
            // What an operator set is no news when it is set otherwise.
            role: self.role.filter(|_| self.config.controlplane.role == RoleSetting::Auto),
        }
    }

    /// When a metric changes with nothing else happening, if ever.
    pub fn next_change(&self, now: SystemTime) -> Option<SystemTime> {
        self.metrics.next_change(now)
    }

    /// The status; `turn` is the number of seconds between two touches of its file.
    pub fn status(&self, turn: u64, now: SystemTime) -> Status {
        let weights = &self.config.weights;
        let level = |id: Id| weights.get(id).level.unwrap_or_else(|| self.config.levels.of(weights.get(id).weight));
        let conditions = self.open.iter().map(|(id, open)| Condition {
            id: open.id.clone(),
            subject: open.subject.clone(),
            level: level(id),
            weight: weights.get(id).weight,
            since: rfc3339(open.since).into_owned(),
            message: open.message.clone(),
            remedy: weights.get(id).remedy.clone(),
        });
        let file = self.position().and_then(|position| position.file.as_ref());
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: rfc3339(self.started).into_owned(),
            updated: rfc3339(now).into_owned(),
            turn,
            // What nobody has looked at yet is not known.
            checks: checks::NAMES
                .iter()
                .filter(|name| match **name {
                    "policy" | "images" | "containers" => self.policy.has_looked(),
                    "forwards" => self.has_seen_host || self.heard.contains_key(U7S),
                    "controlplane" => self.heard.contains_key(U7S),
                    _ => true,
                })
                .map(|name| ((*name).to_owned(), self.check_status(name, now)))
                .collect(),
            conditions: conditions.collect(),
            audit_log: LogStatus {
                file: file.map(|file| file.name.clone()),
                offset: file.map_or(0, |file| file.offset),
                lag: self.lag,
                expected: !matches!(self.log, Some(Availability::Absent(_))) || self.expects_log(),
                last_refusal: self.last_refusal.map(|time| rfc3339(time).into_owned()),
            },
            mail: self.mail.clone(),
            helpers: [MAIL, U7S]
                .iter()
                .map(|name| {
                    let heard = self.heard.get(name).map(|time| rfc3339(*time).into_owned());
                    ((*name).to_owned(), HelperStatus { heard })
                })
                .collect(),
            counts: self.counts.iter().map(|(id, count)| (id.to_string(), *count)).collect(),
            losses: self.losses.clone(),
        }
    }

    /// Metric, level and the ids that count of one check.
    pub fn check_status(&self, check: &str, now: SystemTime) -> CheckStatus {
        let weights = &self.config.weights;
        let recent = self.metrics.recent(now);
        let open = self.open.iter().map(|(id, open)| (id, open.since));
        let mut times: BTreeMap<Id, SystemTime> = BTreeMap::new();
        for (id, time) in recent.chain(open).filter(|(id, _)| id.check() == check) {
            let last = times.entry(id).or_insert(time);
            *last = (*last).max(time);
        }
        let mut findings: Vec<_> = times
            .into_iter()
            .map(|(id, time)| {
                let entry = weights.get(id);
                Counted {
                    id: id.to_string(),
                    weight: entry.weight,
                    level: entry.level.unwrap_or_else(|| self.config.levels.of(entry.weight)),
                    meaning: entry.meaning.clone(),
                    time: rfc3339(time).into_owned(),
                }
            })
            .collect();
        findings.sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.id.cmp(&b.id)));
        let metric = self.metrics.of(check, &self.open, weights, now);
        CheckStatus { metric, level: self.config.levels.of(metric), findings }
    }
}

/// Subject of what is not watched of a store of containers.
fn subject_of(store: &Path) -> String {
    format!("{OF_STORES}{}", store.display())
}

/// An event that happened now.
fn event(id: Id, subject: &str, message: String, now: SystemTime) -> Finding<'static> {
    Finding {
        time: now,
        id,
        kind: Kind::Event,
        subject: subject.to_owned().into(),
        message: message.into(),
        fields: Fields::default(),
    }
}
