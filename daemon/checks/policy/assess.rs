//! Judges what was read: the conditions of each account, of each policy, and of the system. Pure.

mod account;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

pub(super) use self::policy::scope_name;
use super::accounts::{Account, Overlap};
use super::change::Changes;
use super::crio::Crio;
use super::ids::{FILE_INVALID, FILE_UNREAD, HOME_HANGING, SUBID_OVERLAP};
use super::seen::{Home, Policy, SYSTEM, System};
use super::settings::Settings;
use super::tree::Broken;
use crate::checks::images::observe as images;
use crate::finding::{Finding, Id};

/// Conditions that hold: by id and subject, with the sentence that says it.
pub type Conditions = BTreeMap<(Id, String), String>;

/// What the source saw.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// What holds for all accounts, if that was looked at.
    pub system: Option<Arc<System>>,
    /// The homes that were looked at.
    pub homes: Vec<Home>,
    /// Accounts that are there no more.
    pub gone: Vec<String>,
    /// The images of those whose homes were looked at.
    pub images: Vec<images::Look>,
    /// Accounts whose homes do not answer; what was known of them stays.
    pub hanging: BTreeSet<String>,
    /// Those whose homes are there but cannot be read, and why; likewise.
    pub unreadable: BTreeMap<String, String>,
}

/// What is remembered of the observations.
#[derive(Clone, Debug)]
pub struct Assessor {
    settings: Settings,
    /// `None` before the first observation.
    system: Option<Arc<System>>,
    of_system: Conditions,
    homes: BTreeMap<String, Assessed>,
    /// The last policies that held, by account, and could be read.
    effective: BTreeMap<String, Arc<Policy>>,
    /// What CRI-O was told last, by account, as far as that could be read; no crio.conf tells nothing.
    told: BTreeMap<String, Crio>,
    hanging: BTreeSet<String>,
    unreadable: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Assessed {
    home: Home,
    conditions: Conditions,
}

impl Assessor {
    /// Nothing was observed yet.
    pub fn new(settings: Settings) -> Assessor {
        Assessor {
            settings,
            system: None,
            of_system: Conditions::new(),
            homes: BTreeMap::new(),
            effective: BTreeMap::new(),
            told: BTreeMap::new(),
            hanging: BTreeSet::new(),
            unreadable: BTreeMap::new(),
        }
    }

    /// Takes in what was seen; answers what changed in meaning since.
    pub fn assess(&mut self, observation: Observation, now: SystemTime) -> Vec<Finding<'static>> {
        let is_new = observation.system.is_some();
        let looked_at: Vec<_> = observation.homes.iter().map(|home| home.account.name.clone()).collect();
        let mut changes = Changes::default();
        for name in observation.gone {
            self.homes.remove(&name);
            self.effective.remove(&name);
            self.told.remove(&name);
            self.hanging.remove(&name);
            self.unreadable.remove(&name);
        }
        if let Some(system) = observation.system {
            self.of_system = judge_system(&system, &self.settings, now);
            self.system = Some(system);
        }
        let Some(system) = &self.system else { return Vec::new() };
        if is_new {
            for assessed in self.homes.values_mut() {
                assessed.conditions = account::judge(&assessed.home, system, &self.settings, now);
            }
        }
        for home in observation.homes {
            let conditions = account::judge(&home, system, &self.settings, now);
            let name = home.account.name.clone();
            if home.runs_crio && !matches!(home.crio, Some(Err(_))) {
                let told = home.crio.iter().flatten().next().map(|told| told.crio.clone()).unwrap_or_default();
                if let Some(former) = self.told.insert(name.clone(), told.clone()) {
                    changes.note_crio(&home.account, &former, &told);
                }
            }
            self.hanging.remove(&name);
            self.unreadable.remove(&name);
            self.homes.insert(name, Assessed { home, conditions });
        }
        self.hanging.retain(|name| !observation.unreadable.contains_key(name));
        self.hanging.extend(observation.hanging);
        self.unreadable.extend(observation.unreadable);
        let touched = if is_new { self.homes.keys().cloned().collect() } else { looked_at };
        for name in &touched {
            if let Some(present) = self.effective(name)
                && let Some(former) = self.effective.insert(name.clone(), Arc::clone(&present))
            {
                changes.note(name, &former, &present);
            }
        }
        changes.into_findings(now)
    }

    /// All conditions that hold.
    pub fn conditions(&self) -> Conditions {
        let of_homes = self.homes.values().flat_map(|assessed| &assessed.conditions);
        let read = self.of_system.iter().chain(of_homes).map(|(key, message)| (key.clone(), message.clone()));
        let hanging = self.hanging.iter().map(|name| {
            let message = format!("the home of {name} does not answer; its configuration is judged as it was before");
            ((HOME_HANGING, name.clone()), message)
        });
        let unreadable = self.unreadable.iter().map(|(name, why)| {
            let id = if self.is_concerned(name) { FILE_UNREAD } else { HOME_HANGING };
            let message = format!("the home of {name} cannot be read ({why}); what was known of it is judged");
            ((id, name.clone()), message)
        });
        read.chain(hanging).chain(unreadable).collect()
    }

    /// Whether an account may run containers, or has done so.
    fn is_concerned(&self, name: &str) -> bool {
        let Some(system) = &self.system else { return false };
        let is_podman = |account: &Account| account.is_in(&self.settings.podman_group) || account.is_root();
        self.homes.get(name).is_some_and(|known| known.home.is_judged(system))
            || system.accounts.find(name).is_some_and(is_podman)
    }

    /// Whether a condition's subject is of an account whose home has not answered since the start: whether it still holds,
    /// nobody knows.
    pub fn is_unknown(&self, subject: &str) -> bool {
        let is_of = |name: &String| {
            let home = self.system.iter().find_map(|system| system.accounts.find(name)).map(|account| &account.home);
            let rest = subject.strip_prefix(name.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
                || home.is_some_and(|home| Path::new(subject).starts_with(home))
        };
        self.hanging.iter().chain(self.unreadable.keys()).any(|name| !self.homes.contains_key(name) && is_of(name))
    }

    /// Whether anything was observed yet.
    pub fn has_looked(&self) -> bool {
        self.system.is_some()
    }

    /// How many accounts the share is of that the conditions in [`super::ids::SHARED`] count for.
    pub fn population(&self) -> usize {
        self.homes.values().filter(|assessed| account::is_podman_user(&assessed.home.account, &self.settings)).count()
    }

    /// The policy that holds for an account which it concerns, if it can be read.
    fn effective(&self, name: &str) -> Option<Arc<Policy>> {
        let system = self.system.as_ref()?;
        let home = &self.homes.get(name)?.home;
        let policy = home.effective(system).1?.as_ref().ok()?;
        let is_podman_user = account::is_podman_user(&home.account, &self.settings);
        let concerned = home.is_judged(system) || home.policy.is_some() || is_podman_user;
        concerned.then(|| Arc::clone(policy))
    }
}

/// Gathers conditions.
#[derive(Default)]
pub(in crate::checks) struct Gathered(Conditions);

impl Gathered {
    /// They all.
    pub(in crate::checks) fn conditions(self) -> Conditions {
        self.0
    }

    /// One more.
    pub(in crate::checks) fn add(&mut self, id: Id, subject: &dyn fmt::Display, message: String) {
        let brief = |text: String, most: usize| match text.char_indices().nth(most) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        self.0.insert((id, brief(subject.to_string(), MAX_SUBJECT)), brief(message, MAX_MESSAGE));
    }

    /// A file that is not valid, and what that leads to; or one that podsecd does not read.
    fn add_broken<'b>(&mut self, files: impl IntoIterator<Item = &'b Broken>, effect: &str) {
        for broken in files {
            let id = if broken.is_unread { FILE_UNREAD } else { FILE_INVALID };
            self.add(id, &broken.file.display(), broken.so(effect));
        }
    }
}

/// Users choose how long scopes and paths are: so many characters are told.
const MAX_SUBJECT: usize = 1024;
const MAX_MESSAGE: usize = 4096;

/// What comes of a file that is not valid.
const NO_PULL: &str = "every pull fails";
const NO_SIGNATURE: &str = "no signature is found";
const NO_TOOL: &str = "the container tools refuse to run";

/// Names in a sentence, each once, not too many of them; `None` if there are none.
pub(in crate::checks) fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> Option<String> {
    let names: BTreeSet<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    let shown: Vec<_> = names.iter().take(MAX_LISTED).map(String::as_str).collect();
    list_first(&shown, names.len() - shown.len())
}

/// The first names in a sentence, and how many more there are; `None` if there are none.
pub(in crate::checks) fn list_first(shown: &[&str], more: usize) -> Option<String> {
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!shown.is_empty()).then(|| shown.join(", ") + &more)
}

/// So many names make a sentence that can be read.
pub(in crate::checks) const MAX_LISTED: usize = 8;

/// What holds for whoever has nothing of his own.
fn judge_system(system: &System, settings: &Settings, now: SystemTime) -> Conditions {
    let mut found = Gathered::default();
    found.add_broken(&system.broken, "podsecd cannot judge what it says");
    match &system.policy {
        Some(Ok(policy)) => policy::judge(&mut found, policy, &policy::Trusted::new(system, settings, None), now),
        Some(Err(broken)) => found.add_broken([broken], NO_PULL),
        None if system.is_configured => {
            found.add_broken([&Broken::new(Path::new(SYSTEM).join("policy.json"), &&"it is not there")], NO_PULL);
        }
        None => {}
    }
    found.add_broken(system.lookaside.iter().filter_map(|lookaside| lookaside.as_ref().err()), NO_SIGNATURE);
    found.add_broken(system.storage.iter().filter_map(|storage| storage.as_ref().err()), NO_TOOL);
    found.add_broken(system.registries.broken.iter().chain(&system.drop_ins.broken), NO_TOOL);
    for (file, overlaps) in &system.overlaps {
        for Overlap { one, other, first } in overlaps {
            let message =
                format!("{one} and {other} can become the same in their namespaces: {first} of {file} is both's");
            found.add(SUBID_OVERLAP, &format_args!("{file}: {one}, {other}"), message);
        }
    }
    found.0
}
