//! When the present period ends. The clock's time comes in; Instants are taken here, because a clock may be set.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::spool::Urgency;
use crate::config;

/// Two digests are never closer than this.
pub(super) const MIN_PERIOD: Duration = Duration::from_secs(60);

/// When the period ends.
#[derive(Debug)]
pub(super) struct Deadline {
    /// The highest urgency of what was found in it.
    urgency: Urgency,
    /// When the first finding was spooled that does not wait for others.
    began: Option<SystemTime>,
    /// When it is to end, and the same for people.
    due: Option<(Instant, SystemTime)>,
    /// When the last one ended, or should have.
    ended: Option<Instant>,
}

impl Deadline {
    /// That of a period that began then; `last` is when the last one ended, if one did.
    pub(super) fn new(urgency: Urgency, began: Option<SystemTime>, last: Option<SystemTime>) -> Deadline {
        let ended = last.and_then(|last| Instant::now().checked_sub(passed(last)));
        Deadline { urgency, began, due: None, ended }
    }

    /// For the checkpoint.
    pub(super) fn mark(&self) -> (Urgency, Option<SystemTime>) {
        (self.urgency, self.began)
    }

    /// When the period is to end, and the same for people.
    pub(super) fn due(&self) -> Option<(Instant, SystemTime)> {
        self.due
    }

    /// Takes in how urgent a finding is.
    pub(super) fn note(&mut self, urgency: Urgency) {
        self.urgency = self.urgency.max(urgency);
    }

    /// Sets when the period ends, if that is not set. One without anything to tell of ends when that is to be said; `last`
    /// is when a digest said something last.
    pub(super) fn set(&mut self, digest: &config::Digest, last: SystemTime) {
        if self.urgency == Urgency::Waits {
            self.due = None;
            if let Some(interval) = digest.all_is_well.get() {
                self.end_in(interval.saturating_sub(passed(last)).max(self.pause()));
            }
            return;
        }
        if self.began.is_none() || self.due.is_none() {
            let began = *self.began.get_or_insert_with(SystemTime::now);
            self.end_in(digest.period.get().saturating_sub(passed(began)));
        }
        if self.urgency == Urgency::AtOnce {
            let pause = self.pause();
            if self.due.is_some_and(|(due, _)| due > Instant::now() + pause) {
                self.end_in(pause);
            }
        }
    }

    /// Sets it again for another configuration: never later than it was.
    pub(super) fn set_again(&mut self, digest: &config::Digest, last: SystemTime) {
        let former = self.due.take();
        self.set(digest, last);
        if let Some(former) = former.filter(|_| self.urgency > Urgency::Waits)
            && self.due.is_none_or(|(due, _)| due > former.0)
        {
            self.due = Some(former);
        }
    }

    /// The period has ended.
    pub(super) fn end(&mut self) {
        *self = Deadline { urgency: Urgency::Waits, began: None, due: None, ended: Some(Instant::now()) };
    }

    /// The period cannot end now.
    pub(super) fn postpone(&mut self) {
        self.ended = Some(Instant::now());
        self.end_in(MIN_PERIOD);
    }

    /// How long no digest may be made yet.
    fn pause(&self) -> Duration {
        self.ended.map_or(Duration::ZERO, |ended| (ended + MIN_PERIOD).saturating_duration_since(Instant::now()))
    }

    fn end_in(&mut self, time: Duration) {
        self.due = Some((Instant::now() + time, SystemTime::now() + time));
    }
}

/// A clock that was set back makes nothing longer.
fn passed(since: SystemTime) -> Duration {
    SystemTime::now().duration_since(since).unwrap_or_default()
}
