//! The stores of one account: where their containers start and stop is told in one place for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// By store: whose it is, and the ids of its containers.
type Stores = BTreeMap<PathBuf, (u32, BTreeSet<String>)>;

/// All stores that are watched.
#[derive(Clone, Debug, Default)]
pub(super) struct Neighbours(Arc<Mutex<Stores>>);

impl Neighbours {
    /// A store among them, from when on it says what containers it has, and as long as it is watched.
    pub(super) fn join(&self, store: &Path, uid: u32) -> Neighbour {
        Neighbour { all: self.clone(), store: store.to_owned(), uid }
    }
}

/// A store among others.
#[derive(Debug)]
pub(super) struct Neighbour {
    all: Neighbours,
    store: PathBuf,
    uid: u32,
}

impl Neighbour {
    /// It has these containers.
    pub(super) fn note(&self, containers: BTreeSet<String>) {
        let mut stores = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        stores.insert(self.store.clone(), (self.uid, containers));
    }

    /// Whether another store tells of a container that this one does not have: the one that has it, else the first one of the
    /// account.
    pub(super) fn leaves(&self, container: &str) -> bool {
        let stores = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = stores.iter().filter(|(path, (uid, _))| *uid == self.uid && **path != self.store);
        others.any(|(path, (_, containers))| *path < self.store || containers.contains(container))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_store_has_is_told_by_the_first_one_of_the_account_and_what_one_has_by_that() {
        let all = Neighbours::default();
        let [other, first, second] =
            [("/a", 1), ("/b", 7), ("/c", 7)].map(|(path, uid)| all.join(Path::new(path), uid));
        [&other, &first].into_iter().for_each(|store| store.note(BTreeSet::new()));
        second.note(["c".to_owned()].into());
        assert_eq!([&first, &second, &other].map(|store| store.leaves("x")), [false, true, false]);
        assert!(first.leaves("c"));
        drop(second);
        assert!(!first.leaves("c"));
    }
}
