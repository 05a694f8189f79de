//! When there are not enough watches: who gives some back, and what of a layer is watched then. Watches are one pool for all
//! stores, so the stores ask each other.

use std::path::PathBuf;

use tokio::sync::watch;

use super::class::Class;
use crate::watch::tree::{NO_WATCHES, Scope, Uncovered};

/// A container with no more directories gives nothing back; nor does one that has no more than twice those of who needs some.
/// Images give what they have.
const FAIR: usize = 1024;

/// How much of a layer is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// All that is to be.
    All,
    /// Of a container's: programs, libraries and configuration.
    Most,
    /// Nothing: it is looked through only now and then.
    Nothing,
}

impl Cover {
    /// What of it is not watched for want of watches.
    pub(super) fn lacks(self) -> Option<Uncovered> {
        (self != Cover::All).then(|| Uncovered { count: 1, named: vec![PathBuf::new()], why: NO_WATCHES.into() })
    }
}

/// What is watched of a container's layer that gave watches back.
pub(super) fn most(scope: &Scope) -> Scope {
    const TOPS: [&str; 9] = ["bin", "sbin", "usr", "lib", "lib32", "lib64", "etc", "root", "home"];
    debug_assert!(TOPS.iter().all(|top| Class::of(top.as_bytes()) != Class::Other));
    scope.only(TOPS)
}

/// Whether a layer with so many directories gives some back to one with so few.
pub(super) fn is_unfair(count: usize, needy: usize) -> bool {
    count > FAIR.max(needy.saturating_mul(2))
}

/// How the stores ask each other.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// How many directories the layer has that needs watches.
    wanted: watch::Sender<usize>,
    given: watch::Sender<()>,
}

impl Pool {
    pub(super) fn new() -> Pool {
        Pool { wanted: watch::Sender::new(0), given: watch::Sender::new(()) }
    }

    /// A store's part in it.
    pub(super) fn member(&self) -> Member {
        Member { pool: self.clone(), wanted: self.wanted.subscribe(), given: self.given.subscribe() }
    }
}

/// A store's part in the pool.
#[derive(Debug)]
pub(super) struct Member {
    pool: Pool,
    wanted: watch::Receiver<usize>,
    given: watch::Receiver<()>,
}

/// What others say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A layer with so many directories needs watches.
    Wanted(usize),
    /// Somebody gave some back.
    Given,
}

impl Member {
    /// Asks the others.
    pub(super) fn ask(&mut self, count: usize) {
        self.pool.wanted.send_replace(count);
        self.wanted.mark_unchanged();
    }

    /// Tells the others that there are some.
    pub(super) fn give(&mut self) {
        self.pool.given.send_replace(());
        self.given.mark_unchanged();
    }

    /// Waits until another one says something.
    pub(super) async fn said(&mut self) -> Said {
        // It does not end: there is a sender in here.
        tokio::select! {
            _ = self.wanted.changed() => Said::Wanted(*self.wanted.borrow_and_update()),
            _ = self.given.changed() => Said::Given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_and_who_gives_does_not_hear_himself() {
        let pool = Pool::new();
        let (mut needy, mut rich) = (pool.member(), pool.member());
        needy.ask(7);
        assert_eq!(rich.said().await, Said::Wanted(7));
        rich.give();
        assert_eq!(needy.said().await, Said::Given);
        let quiet = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(quiet, needy.said()).await.is_err());
        assert!(tokio::time::timeout(quiet, rich.said()).await.is_err());
    }

    #[test]
    fn who_has_little_or_not_much_more_gives_nothing() {
        for (count, needy, gives) in [(1000, 0, false), (2000, 10, true), (2000, 1000, false), (2001, 1000, true)] {
            assert_eq!(is_unfair(count, needy), gives, "{count} {needy}");
        }
    }
}
