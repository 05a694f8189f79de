//! Tells what was gathered, with whose it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{BURST, MAX_WAITING, Store};
use crate::checks::containers::assess::{Changed, Complete, Layer, Lived, Observation};
use crate::checks::containers::files::Runtime;
use crate::checks::containers::layer::{Watched, own};
use crate::checks::containers::life::Happened;
use crate::checks::containers::records::{Container, Owner};
use crate::watch::tree::{Moment, Root};

/// Whoever writes lists all the time does not put off what is to be told for longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

impl Store {
    /// Tells what is due.
    pub(super) async fn flush(&mut self) {
        let now = Instant::now();
        self.is_behind |= self.lives.noted() > self.noted && self.lives.is_settled();
        // What walks find until then would be told once more if the watch ended before.
        let is_behind = self.trees.is_behind();
        let is_due = |layer: &Watched| layer.gathered.is_some() && layer.pace.due <= now && !is_behind;
        let due: Vec<_> = self.layers.iter().filter(|(_, layer)| is_due(layer)).map(|(root, _)| *root).collect();
        // Whose they are, and whether they are being removed, is told by lists that are still to be read.
        let is_late = |root: &Root| self.layers.get(root).is_some_and(|layer| layer.pace.due + PATIENCE <= now);
        let is_read = || self.lists_due.is_none_or(|due| due > now + BURST) && !self.names.has_changed();
        let is_listed = self.is_ending || is_read() || due.iter().any(is_late);
        let has_happened = is_listed && !self.happened.is_empty();
        if (is_listed && !due.is_empty() || has_happened) && self.waiting.len() < MAX_WAITING {
            let mut lived = Vec::new();
            let happened = if has_happened { std::mem::take(&mut self.happened) } else { Vec::new() };
            for happened in happened {
                let (container, life) = (happened.container.clone(), happened.life.clone());
                // Some are gone before the lists could be read; and whoever keeps the store may write any id there.
                let is_known = self.containers.contains_key(&container);
                if !is_known && (happened.is_of_group || self.neighbour.leaves(&container)) {
                    continue;
                }
                let counted = if is_known { &container } else { "unknown" };
                if let Some(life) = self.counts.note(counted, life, now) {
                    lived.push(self.lived(Happened { life, ..happened }).await);
                }
            }
            let mut changes = Vec::new();
            for root in due {
                changes.extend(self.take(root).await);
            }
            self.is_behind = true;
            self.tell(changes, lived);
        } else if self.is_behind && self.waiting.is_empty() && self.is_settled() {
            self.tell(Vec::new(), Vec::new());
        }
        self.layers.retain(|_, layer| !layer.is_gone || layer.gathered.is_some());
    }

    /// Whether all that was seen is told.
    pub(super) fn is_settled(&self) -> bool {
        let is_told = self.layers.values().all(|layer| layer.gathered.is_none()) && self.happened.is_empty();
        is_told && self.walks.outstanding.is_empty() && !self.walks.lost && !self.trees.is_walking()
    }

    /// Tells this, and up to when it is all.
    pub(super) fn tell(&mut self, changes: Vec<Changed>, lived: Vec<Lived>) {
        if self.walks.outstanding.is_empty() && !self.walks.lost {
            let gathered = self.layers.values().filter_map(|layer| layer.gathered.as_ref());
            self.complete = gathered.map(|gathered| gathered.since).min().unwrap_or(self.trees.drained());
        }
        self.is_behind &= !self.is_settled();
        if self.happened.is_empty() && self.lives.is_settled() {
            self.noted = self.lives.noted();
            // The clock may have been set back.
            self.lived = self.noted.min(Moment::at(SystemTime::now()));
        }
        let store = self.files.place.path.clone();
        // Images are looked through since what was sought.
        let containers = self.layers.values().filter(|layer| !layer.is_gone && !layer.is_image);
        let looked = containers.filter_map(|layer| layer.looked).min();
        let told = looked.map_or(self.complete, |looked| looked.min(self.complete));
        let complete = Complete { changes: told, lives: self.lived };
        self.waiting.push(Observation { store, changes, lived, complete });
    }

    /// Of which container it is told, and who runs it.
    pub(super) async fn lived(&mut self, Happened { time, container, life, runtime, .. }: Happened) -> Lived {
        let known = self.containers.get(&container).cloned();
        if let Some(runtime) = runtime.as_ref().filter(|_| known.is_some()) {
            if let Some(started) = runtime.started {
                self.first_starts.entry(container.clone()).or_insert(started);
            }
            self.runtimes.insert(container.clone(), runtime.clone());
        }
        let now = self.runtime(&container).await;
        let runtime = runtime.filter(|_| now.spec.is_none()).unwrap_or(now);
        let account = &self.files.place.account;
        let known = known.unwrap_or_else(|| Container { id: container, ..Container::default() });
        let (user, uid, host_uid) = (account.name.clone(), account.uid, runtime.host_uid);
        let layer = Layer { id: known.layer.clone(), owner: Some(Owner::Container(known)), user, uid, host_uid };
        Lived { time, layer, life }
    }

    /// How a container runs, or ran when it was started.
    pub(super) async fn runtime(&mut self, container: &str) -> Runtime {
        let (files, id) = (Arc::clone(&self.files), container.to_owned());
        let now = spawn_blocking(move || files.runtime(&id)).await.unwrap_or_default();
        match self.runtimes.get(container) {
            Some(former) if now.spec.is_none() => former.clone(),
            _ => now,
        }
    }

    /// What changed in a layer.
    pub(super) async fn take(&mut self, root: Root) -> Vec<Changed> {
        let Some(layer) = self.layers.get_mut(&root) else { return Vec::new() };
        let Some(gathered) = layer.gathered.take() else { return Vec::new() };
        layer.pace.note_told(Instant::now(), self.times.gather);
        let made = std::mem::take(&mut layer.made);
        let (time, is_gone, owner, id) = (layer.since, layer.is_gone, layer.owner.clone(), layer.id.clone());
        let runtime = match &owner {
            Some(Owner::Container(container)) => self.runtime(&container.id.clone()).await,
            _ => Runtime::default(),
        };
        let first_start = match &owner {
            Some(Owner::Container(container)) => {
                let first = self.first_starts.get(&container.id).copied().or(runtime.started);
                first.map(|first| *self.first_starts.entry(container.id.clone()).or_insert(first))
            }
            _ => None,
        };
        if let Some(layer) = self.layers.get_mut(&root).filter(|layer| first_start.is_some() || layer.is_image) {
            layer.pace.note_start();
        }
        let account = &self.files.place.account;
        let layer = Layer { id, owner, user: account.name.clone(), uid: account.uid, host_uid: runtime.host_uid };
        let told = gathered.told().into_iter().filter_map(|told| own(told, &runtime, first_start, &made, is_gone));
        told.map(|told| Changed { time, layer: layer.clone(), told }).collect()
    }
}
