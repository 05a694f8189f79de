//! Which walks of a store's layers are under way, and which are to come.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::watch::tree::Root;

/// What is given back is given back in turns.
const TURN: Duration = Duration::from_millis(5);

/// The walks that are to be done.
#[derive(Debug)]
pub(super) struct Walks {
    pub(super) number: u64,
    /// Of which the last one is not done yet.
    pub(super) outstanding: BTreeMap<Root, u64>,
    /// Events were lost since the last one of all began.
    pub(super) lost: bool,
    /// Events were lost, and all is walked because of that.
    pub(super) mending: bool,
    /// So many changes are not told, because nobody knows where they were.
    pub(super) untold: usize,
    /// To be walked again.
    pub(super) doubted: BTreeSet<Root>,
    /// Roots that went though they are still listed.
    pub(super) vanished: BTreeSet<Root>,
    /// When those that are under way were seen first.
    pub(super) began: Option<Instant>,
    /// No others begin before this.
    pub(super) pause: Instant,
    /// Nor do those that seek what was lost before this.
    pub(super) short_pause: Instant,
    /// When what could not be watched is tried again.
    pub(super) retry: Option<Instant>,
    /// Watches are given back; whether others wait for them.
    pub(super) tidying: Option<bool>,
    /// Others need watches for a layer with so many directories.
    pub(super) owed: Option<usize>,
    /// Others were asked for watches since then.
    pub(super) has_asked: bool,
    /// These seek what the kernel does not tell.
    pub(super) seeking: Range<u64>,
}

impl Walks {
    /// None yet.
    pub(super) fn new() -> Walks {
        Walks {
            number: 0,
            outstanding: BTreeMap::new(),
            lost: false,
            mending: false,
            untold: 0,
            doubted: BTreeSet::new(),
            vanished: BTreeSet::new(),
            began: None,
            pause: Instant::now(),
            short_pause: Instant::now(),
            retry: None,
            has_asked: false,
            tidying: None,
            owed: None,
            seeking: 0..0,
        }
    }

    /// When the next ones are to begin, if there are any to come and none under way.
    pub(super) fn next(&self) -> Option<Instant> {
        if (self.tidying.is_some() || self.owed.is_some()) && self.outstanding.is_empty() {
            return Some(Instant::now() + TURN);
        }
        let next = if self.lost || self.mending {
            Some(self.short_pause)
        } else if !self.doubted.is_empty() {
            Some(self.pause)
        } else {
            self.retry.map(|retry| retry.max(self.pause))
        };
        next.filter(|_| self.outstanding.is_empty())
    }
}
