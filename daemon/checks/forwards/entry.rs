//! A declared forward over time. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::assess::{Found, GRACE, START_GRACE, State, ZOMBIE_SAYS};
use super::forward::Forward;
use super::ids::{CONFLICT, DOWN, FLAPPING, NO_LISTENER, REFUSED, ZOMBIE};
use super::instance::Identity;
use crate::finding::Id;

/// So many interruptions within this time are a condition, which holds until there were fewer than two.
const FLAPS: usize = 4;
const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// What a look says of all forwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// When it began, and when all was seen.
    pub began: Instant,
    pub at: Instant,
    /// The rootlesskit that ran then.
    pub instance: Option<Identity>,
    /// When the one before ended, if that was seen.
    pub ended: Option<Instant>,
    pub now: SystemTime,
}

/// What of a forward must be known to tell for how long it was interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// When it was last seen standing.
    pub stood: Option<Stood>,
    /// Since when it does not stand.
    pub down: Option<Since>,
}

/// That a forward was seen standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stood {
    /// When.
    pub at: Instant,
    /// By which rootlesskit, if that was seen.
    pub instance: Option<Identity>,
}

/// When something began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// When.
    pub at: Instant,
    /// It may have begun later: nobody saw that.
    pub is_bound: bool,
}

/// For how long a forward was interrupted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    pub length: Duration,
    /// It may have been less.
    pub is_bound: bool,
}

/// A declared forward.
#[derive(Debug)]
pub(super) struct Entry {
    pub state: State,
    pub has_listener: Option<bool>,
    /// Since when it is as it is.
    pub since: SystemTime,
    /// Since when it is looked at by us.
    first: Instant,
    pub past: Past,
    /// Since when nothing listens inside.
    unheard: Option<Instant>,
    /// When interruptions ended.
    interruptions: VecDeque<Instant>,
    pub count: u64,
    pub gap: Option<Duration>,
    pub longest: Option<Duration>,
    is_flapping: bool,
}

impl Entry {
    /// A forward that is looked at from now on, and was before.
    pub(super) fn new(look: &Look, past: Past) -> Entry {
        Entry {
            state: State::Down,
            has_listener: None,
            since: look.now,
            first: look.at,
            past,
            unheard: None,
            interruptions: VecDeque::new(),
            count: 0,
            gap: None,
            longest: None,
            is_flapping: false,
        }
    }

    /// Takes in how it was seen, and when it was added just before; for how long it was interrupted, if that ends now. It is no
    /// interruption that it is declared, and does not stand yet.
    pub(super) fn see(&mut self, found: Found, added: Option<Instant>, look: &Look) -> Option<Gap> {
        if found.state != self.state {
            self.since = look.now;
        }
        (self.state, self.has_listener) = (found.state, found.has_listener);
        let stands = self.state == State::Stands;
        let is_down = !stands && self.state != State::Unknown;
        self.past.down = self.past.down.or_else(|| self.went(is_down || added.is_some(), look));
        if self.state == State::Unknown {
            return None;
        }
        if is_down {
            self.past.down.get_or_insert(Since { at: look.at, is_bound: false });
        }
        self.unheard = match self.has_listener {
            Some(false) if stands => self.unheard.or(Some(look.at)),
            _ => None,
        };
        let is_old = |first: &Instant| look.at.saturating_duration_since(*first) > FLAP_WINDOW;
        while self.interruptions.front().is_some_and(is_old) {
            self.interruptions.pop_front();
        }
        let gap = if stands { self.stand(added, look) } else { None };
        if let Some(Gap { length, .. }) = gap {
            self.count += 1;
            self.gap = Some(length);
            self.longest = self.longest.max(Some(length));
            self.interruptions.push_back(look.at);
            if self.interruptions.len() > FLAPS {
                self.interruptions.pop_front();
            }
        }
        self.is_flapping = self.interruptions.len() >= FLAPS || self.is_flapping && self.interruptions.len() >= 2;
        gap
    }

    /// Since when it does not stand any more that stood: with its rootlesskit all went, whether or not that was seen; and what is
    /// `gone`, or was added again, went at some time since it was last seen standing.
    fn went(&self, gone: bool, look: &Look) -> Option<Since> {
        let stood = self.past.stood?;
        let is_other = stood.instance.is_some_and(|instance| look.instance.is_some_and(|runs| runs != instance));
        match look.ended.filter(|ended| stood.at <= *ended) {
            Some(at) => Some(Since { at, is_bound: false }),
            None if is_other || gone => Some(Since { at: stood.at, is_bound: true }),
            None => None,
        }
    }

    /// It stands; if it did not before, since it was added, or for longer: whoever else did that may have done it some time ago.
    fn stand(&mut self, added: Option<Instant>, look: &Look) -> Option<Gap> {
        let former = self.past.stood.replace(Stood { at: look.began, instance: look.instance });
        let Since { at, is_bound } = self.past.down.take()?;
        let length = added.unwrap_or(look.at).saturating_duration_since(at);
        former.map(|_| Gap { length, is_bound: is_bound || added.is_none() })
    }

    /// Since when it is known not to stand.
    pub(super) fn away(&self) -> Option<Instant> {
        self.past.down.map(|since| since.at.max(self.first))
    }

    /// How long that is no condition.
    pub(super) fn grace(&self) -> Duration {
        if self.past.stood.is_some() { GRACE } else { START_GRACE }
    }

    /// When nothing that listens inside is a condition.
    pub(super) fn unheard_due(&self) -> Option<Instant> {
        self.unheard.map(|since| since + START_GRACE)
    }

    /// The conditions that hold, with their sentences.
    pub(super) fn conditions(&self, forward: &Forward, wants_listener: bool, at: Instant) -> Vec<(Id, String)> {
        let is_long =
            |since: Option<Instant>, grace| since.is_some_and(|since| at.saturating_duration_since(since) >= grace);
        let mut holding = Vec::new();
        match &self.state {
            State::Down if is_long(self.away(), self.grace()) => {
                holding.push((DOWN, format!("{forward} is declared and does not listen on the host")));
            }
            State::Zombie => {
                holding.push((ZOMBIE, format!("{forward}: {ZOMBIE_SAYS}")));
            }
            State::Held(who) => {
                holding.push((CONFLICT, format!("{forward} cannot stand: {who} has its place on the host")));
            }
            State::Refused(why) if is_long(self.away(), GRACE) => {
                holding.push((REFUSED, format!("{forward}: rootlesskit does not take it: {why}")));
            }
            _ => {}
        }
        if wants_listener && is_long(self.unheard, START_GRACE) {
            holding.push((NO_LISTENER, format!("{forward} stands, and nothing listens inside where it leads to")));
        }
        if self.is_flapping {
            let minutes = FLAP_WINDOW.as_secs() / 60;
            holding
                .push((FLAPPING, format!("{forward} was interrupted {FLAPS} times and more within {minutes} minutes")));
        }
        holding
    }
}
