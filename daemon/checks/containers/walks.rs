//! Which walks of a store's layers are under way, and which are to come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use tokio::time::Instant;

use crate::watch::tree::{Moment, Root};

/// So many programs of which a change was told are remembered; of others it may be told again.
const MAX_TOLD: usize = 64 << 10;

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
    /// These seek what the kernel does not tell.
    pub(super) seeking: Range<u64>,
    /// Programs and the like of which a change was told, and when they changed.
    pub(super) told: HashMap<u64, Moment>,
    /// Nobody can choose paths that are taken for each other.
    random: RandomState,
}

impl Walks {
    /// None yet.
    pub(super) fn new() -> Walks {
        Walks {
            number: 0,
            outstanding: BTreeMap::new(),
            lost: false,
            mending: false,
            doubted: BTreeSet::new(),
            vanished: BTreeSet::new(),
            began: None,
            pause: Instant::now(),
            short_pause: Instant::now(),
            retry: None,
            seeking: 0..0,
            told: HashMap::new(),
            random: RandomState::new(),
        }
    }

    /// When the next ones are to begin, if there are any to come and none under way.
    pub(super) fn next(&self) -> Option<Instant> {
        let next = if self.lost || self.mending {
            Some(self.short_pause)
        } else if !self.doubted.is_empty() {
            Some(self.pause)
        } else {
            self.retry.map(|retry| retry.max(self.pause))
        };
        next.filter(|_| self.outstanding.is_empty())
    }

    /// Whether it was not told yet that a file changed at that moment; now it is.
    pub(super) fn is_news(&mut self, file: (Root, &[u8]), changed: Moment) -> bool {
        let (file, has_room) = (self.random.hash_one(file), self.told.len() < MAX_TOLD);
        match self.told.get_mut(&file) {
            Some(told) => changed > std::mem::replace(told, changed),
            None => {
                if has_room {
                    self.told.insert(file, changed);
                }
                true
            }
        }
    }
}
