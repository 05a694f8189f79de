//! What is to be looked at next.

use std::collections::BTreeSet;

use super::worker::Answer;

/// Nobody's names. Who the strangers are is asked as a home is.
pub(super) const STRANGERS: &str = "";
/// What holds for all.
pub(super) const SYSTEM: &str = "/etc";
/// All homes, whose images are judged by what holds for all.
pub(super) const HOMES: &str = "/home";
/// All of it, when nobody knows what changed.
pub(super) const EVERYTHING: &str = "/";

/// What is to be looked at, or taken in.
#[derive(Default)]
pub(super) struct Due {
    pub(super) system: bool,
    pub(super) strangers: bool,
    pub(super) all_homes: bool,
    pub(super) homes: BTreeSet<String>,
    /// Those that are looked at only since all are: that is not on their own account.
    pub(super) unasked: BTreeSet<String>,
    /// Those whose immutable flags may be others.
    pub(super) released: BTreeSet<String>,
    /// Answers that came late.
    pub(super) answers: Vec<(String, Answer)>,
}

impl Due {
    pub(super) fn everything() -> Due {
        Due { system: true, all_homes: true, ..Due::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        let Due { system, strangers, all_homes, homes, unasked: _, released, answers } = self;
        !system && !strangers && !all_homes && homes.is_empty() && released.is_empty() && answers.is_empty()
    }

    /// Adds a home, or more than one.
    pub(super) fn add(&mut self, name: String) {
        match name.as_str() {
            EVERYTHING => (self.system, self.all_homes) = (true, true),
            HOMES => self.all_homes = true,
            SYSTEM => self.system = true,
            STRANGERS => self.strangers = true,
            _ => drop(self.homes.insert(name)),
        }
    }
}
