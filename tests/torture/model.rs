//! What must stand in forbidden.log, and whether it does.

use std::collections::HashSet;
use std::fmt;

/// A request: clients choose auditIDs, so one alone says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// auditID.
    pub(crate) id: String,
    /// requestReceivedTimestamp.
    pub(crate) received: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.received, self.id)
    }
}

/// A refused request that was logged.
#[derive(Clone, Debug)]
struct Expected {
    key: Key,
    /// It may be missing: the log was cut before it was read for sure.
    may_be_lost: bool,
}

/// All refused requests in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Model {
    expected: Vec<Expected>,
    /// So many of them are known to be reported.
    settled: usize,
}

impl Model {
    /// A request was logged.
    pub(crate) fn expect(&mut self, key: Key) {
        self.expected.push(Expected { key, may_be_lost: false });
    }

    /// podsecd reported all there was.
    pub(crate) fn settle(&mut self) {
        self.settled = self.expected.len();
    }

    /// How many requests were logged since then.
    pub(crate) fn unsettled(&self) -> usize {
        self.expected.len() - self.settled
    }

    /// The log is cut: what is not known to be reported may never be.
    pub(crate) fn lose_unsettled(&mut self) {
        self.expected[self.settled..].iter_mut().for_each(|expected| expected.may_be_lost = true);
    }

    /// How many requests there were, and how many of them may be missing.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.expected.len(), self.expected.iter().filter(|expected| expected.may_be_lost).count())
    }

    /// Whether these are the requests, each once and in order.
    ///
    /// # Errors
    /// The first difference and what stands around it.
    pub(crate) fn compare(&self, found: &[Key]) -> Result<(), String> {
        let mut next = 0;
        for (at, key) in found.iter().enumerate() {
            while self.expected.get(next).is_some_and(|expected| expected.may_be_lost && expected.key != *key) {
                next += 1;
            }
            if self.expected.get(next).is_none_or(|expected| expected.key != *key) {
                let what = if found[..at].contains(key) {
                    "is there twice"
                } else if self.expected.iter().any(|expected| expected.key == *key) {
                    "comes too early: one before it is missing"
                } else {
                    "was never logged"
                };
                return Err(self.difference(&format!("`{key}` {what}"), next, found, at));
            }
            next += 1;
        }
        match self.expected[next..].iter().position(|expected| !expected.may_be_lost) {
            None => Ok(()),
            Some(missing) => {
                let key = &self.expected[next + missing].key;
                Err(self.difference(&format!("`{key}` is missing"), next + missing, found, found.len()))
            }
        }
    }

    /// Whether each request is among these.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn contained_in(&self, found: &HashSet<Key>) -> Result<(), String> {
        let lacks = |expected: &&Expected| !expected.may_be_lost && !found.contains(&expected.key);
        let missing: Vec<_> = self.expected.iter().filter(lacks).collect();
        match missing.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} requests are missing, the first is `{}`", missing.len(), first.key)),
        }
    }

    fn difference(&self, what: &str, next: usize, found: &[Key], at: usize) -> String {
        let around = |at: usize, length: usize| at.saturating_sub(3)..(at + 4).min(length);
        let mut text = format!("{what}\n  expected ({} requests, {} settled):\n", self.expected.len(), self.settled);
        for number in around(next, self.expected.len()) {
            let mark = if number == next { ">" } else { " " };
            let lost = if self.expected[number].may_be_lost { " (may be lost)" } else { "" };
            text += &format!("  {mark} {number:6} {}{lost}\n", self.expected[number].key);
        }
        text += &format!("  found ({} lines):\n", found.len());
        for number in around(at, found.len()) {
            let mark = if number == at { ">" } else { " " };
            let former = found[..number].iter().position(|key| *key == found[number]);
            let former = former.map_or_else(String::new, |former| format!(" (also line {former})"));
            text += &format!("  {mark} {number:6} {}{former}\n", found[number]);
        }
        text
    }
}
