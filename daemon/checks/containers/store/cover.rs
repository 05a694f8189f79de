//! Walks what is watched, and says what is not.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use crate::checks::containers::change::{What, class, is_whiteout};
use crate::checks::containers::gather::{Key, Thing};
use crate::checks::containers::layer::{Watched, all};
use crate::checks::containers::records::Owner;
use crate::checks::containers::scarcity::{Cover, Said, is_unfair, most};
use crate::checks::containers::source::Message;
use crate::watch::open::split;
use crate::watch::tree::{Moment, NO_DESCRIPTORS, NO_WATCHES, News, Root, Uncovered, why};

/// To walk all again takes so much of the time at most, as a part.
const SHARE: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// What was lost is sought sooner.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE_OF_LOST: Duration = Duration::from_secs(1);
/// So many layers that are not watched are named.
const MAX_NAMED: usize = 4;
/// What takes longer than this at the start is said.
pub(super) const SLOW: Duration = Duration::from_secs(10);
/// What could not be watched is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

impl Store {
    /// Walks a layer; what of it is news is told, but for what is older than the watch of an image.
    pub(super) fn walk(&mut self, root: Root, news: News) {
        self.walks.number += 1;
        let Some(layer) = self.layers.get_mut(&root).filter(|layer| !layer.is_gone) else { return };
        layer.walked = self.trees.drained();
        let news = match news {
            News::Since(_) if layer.looked.is_some() => {
                News::Since(layer.looked.unwrap_or(layer.walked).max(layer.from))
            }
            News::All if layer.from > Moment::MIN => News::Since(layer.from),
            News::Since(moment) => News::Since(moment.max(layer.from)),
            // Of an image only changes are known.
            News::Kept(moment) if layer.is_image => News::Since(moment.max(layer.from)),
            news => news,
        };
        layer.pending = None;
        match self.trees.walk(root, news, self.walks.number) {
            Ok(()) => {
                self.walks.outstanding.insert(root, self.walks.number);
                self.is_behind = true;
            }
            // One that is just being removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let named = vec![PathBuf::new()];
                layer.uncovered = Some(Uncovered { count: 1, named, why: why(&error) });
            }
        }
    }

    /// Walks all that is watched.
    pub(super) fn walk_all(&mut self, news: News) {
        let roots = self.layers.iter().filter(|(_, layer)| !layer.is_gone && layer.cover != Cover::Nothing);
        let roots: Vec<_> = roots.map(|(root, _)| *root).collect();
        for root in roots {
            self.walk(root, news);
        }
    }

    /// Seeks what the kernel does not tell: a write through mmap(2), one by way of another name of the file.
    pub(super) fn seek(&mut self) {
        if self.record.is_seeking() {
            return;
        }
        let sought = self.record.sought();
        self.record.retain(|layer| self.roots.contains_key(layer));
        self.record.begin(self.trees.drained());
        self.walks.tidying.get_or_insert(false);
        // There may be watches for these again.
        for (root, layer) in self.layers.iter_mut().filter(|(_, layer)| layer.cover != Cover::All && !layer.is_gone) {
            layer.cover = Cover::All;
            let scope = if layer.is_image { all() } else { Arc::clone(&self.scope) };
            self.trees.add(*root, &layer.path(), scope);
        }
        let there = self.layers.iter().filter(|(_, layer)| !layer.is_gone);
        let (short, others): (Vec<_>, Vec<_>) = there.partition(|(_, layer)| layer.looked.is_some());
        let [short, others] =
            [short, others].map(|layers| layers.into_iter().map(|(root, _)| *root).collect::<Vec<_>>());
        // Of these not only what became of programs is told.
        short.into_iter().for_each(|root| self.walk(root, News::Since(sought)));
        let first = self.walks.number + 1;
        others.into_iter().for_each(|root| self.walk(root, News::Kept(sought)));
        self.walks.seeking = first..self.walks.number + 1;
    }

    /// All was looked through: what was not seen is there no more, though nobody said so, or could not be looked at.
    fn finish_seeking(&mut self) {
        let Store { trees, layers, roots, record, scope, complete, .. } = self;
        record.finish(|record, layer, path, known| {
            let root = *roots.get(layer)?;
            let layer = layers.get_mut(&root)?;
            let stat = trees.look_at(root, path);
            let is_told = stat.is_none() && (known.is_whiteout() || record.has_departed(&layer.id, path));
            let is_wanted = layer.is_image || scope.find(path).is_wanted();
            if is_wanted && !is_told && stat.is_none_or(|stat| !known.is_same(&stat)) {
                let what = if stat.is_none_or(|stat| is_whiteout(&stat)) { What::Removed } else { What::Changed };
                let key = Key { what, class: class(path, stat.as_ref()), thing: Thing::File };
                layer.gather(key, split(path), false, *complete);
            }
            stat
        });
    }

    /// What was lost is sought, once the walks before are done.
    pub(super) fn mend(&mut self) {
        let now = Instant::now();
        self.tidy();
        if !self.walks.outstanding.is_empty() {
            self.walks.began.get_or_insert(now);
            return;
        }
        self.finish_seeking();
        if let Some(began) = self.walks.began.take() {
            self.walks.pause = now + (SHARE * (now - began)).min(MAX_PAUSE);
            self.walks.short_pause = now + (now - began).clamp(MIN_PAUSE, MAX_PAUSE_OF_LOST);
        }
        // It is not said each time that it is over while it goes on.
        self.walks.mending &= self.walks.lost || self.walks.short_pause > now;
        if self.walks.lost && self.walks.short_pause > now || !self.walks.lost && self.walks.pause > now {
            return;
        }
        if std::mem::take(&mut self.walks.lost) {
            self.walks.mending = true;
            self.walks.doubted.clear();
            self.walk_all(News::Since(self.complete));
        } else if self.retry() {
            for root in std::mem::take(&mut self.walks.doubted) {
                self.walk(root, News::Since(self.complete));
            }
        }
    }

    /// Tries again to watch what could not be watched, now and then, or if there is something that can give its watches back.
    /// False: other walks are to wait for that.
    pub(super) fn retry(&mut self) -> bool {
        let now = Instant::now();
        let is_short = |layer: &Watched| {
            let why = layer.uncovered.as_ref().map(|uncovered| uncovered.why.as_str());
            [Some(NO_WATCHES), Some(NO_DESCRIPTORS)].contains(&why) && !layer.is_gone && layer.cover == Cover::All
        };
        let short: Vec<_> = self.layers.iter().filter(|(_, layer)| is_short(layer)).map(|(root, _)| *root).collect();
        if short.is_empty() {
            (self.walks.retry, self.walks.has_asked) = (None, false);
            return true;
        }
        if self.trees.is_walking() || self.walks.tidying.is_some() {
            // What it finds may be of use, and nothing can be given back before.
            self.walks.retry = self.walks.retry.map(|retry| retry.max(now + MIN_PAUSE));
            return true;
        }
        let is_due = *self.walks.retry.get_or_insert(now + RETRY) <= now;
        if is_due {
            (self.walks.retry, self.walks.has_asked) = (Some(now + RETRY), false);
            short.into_iter().for_each(|root| self.walk(root, News::Since(self.complete)));
            return false;
        }
        if !std::mem::replace(&mut self.walks.has_asked, true) {
            self.make_room(&short);
        }
        true
    }

    /// Gives watches back, or asks other stores for some, if there is a container among those that need some.
    fn make_room(&mut self, short: &[Root]) {
        let needs_watches = |layer: &Watched| {
            !layer.is_image && layer.uncovered.as_ref().is_some_and(|uncovered| uncovered.why == NO_WATCHES)
        };
        let urgent: Vec<_> =
            short.iter().filter(|root| self.layers.get(root).is_some_and(needs_watches)).copied().collect();
        let counts = if urgent.is_empty() { BTreeMap::new() } else { self.trees.counts() };
        let least = urgent.iter().map(|root| counts.get(root).copied().unwrap_or_default()).min();
        if let Some(least) = least
            && !self.release(least, false)
        {
            self.member.ask(least);
        }
    }

    /// What other stores need, or have given back.
    pub(super) fn share(&mut self, said: Said) {
        match said {
            Said::Wanted(needy) => self.walks.owed = Some(needy),
            Said::Given => self.walks.retry = self.walks.retry.map(|_| Instant::now()),
        }
    }

    /// Gives watches back, in turns.
    fn tidy(&mut self) {
        if self.trees.is_walking() {
            return;
        }
        if let Some(is_for_others) = self.walks.tidying {
            if self.trees.tidy() {
                return;
            }
            self.walks.tidying = None;
            if is_for_others {
                self.member.give();
            } else {
                self.share(Said::Given);
            }
        }
        if let Some(needy) = self.walks.owed.take() {
            self.release(needy, true);
        }
    }

    /// Gives up watches for a container that has so many, of this or of another store: those of an image's layer, else of a
    /// container that has far more. False: there are none.
    fn release(&mut self, needy: usize, is_for_others: bool) -> bool {
        let counts = self.trees.counts();
        let count = |root: &Root| counts.get(root).copied().unwrap_or_default();
        let held = self
            .layers
            .iter()
            .filter(|(root, layer)| !layer.is_gone && layer.cover != Cover::Nothing && count(root) > 0);
        let image = held.clone().rev().find(|(_, layer)| layer.is_image);
        let largest = || held.max_by_key(|(root, _)| count(root)).filter(|(root, _)| is_unfair(count(root), needy));
        let Some(root) = image.or_else(largest).map(|(root, _)| *root) else { return false };
        let Some(layer) = self.layers.get_mut(&root) else { return false };
        layer.looked.get_or_insert(self.complete);
        if !layer.is_image && layer.cover == Cover::All {
            layer.cover = Cover::Most;
            self.trees.set_scope(root, Arc::new(most(&self.scope)));
        } else {
            layer.cover = Cover::Nothing;
            self.walks.outstanding.remove(&root);
            self.trees.remove(root);
        }
        layer.uncovered = layer.cover.lacks();
        self.walks.tidying = Some(is_for_others);
        true
    }

    /// Says what is not covered, if that is news.
    pub(super) async fn tell_uncovered(&mut self) {
        loop {
            let why = self.find_uncovered();
            // It is over as soon as it is said.
            let is_over = std::mem::take(&mut self.walks.untold) > 0;
            if self.said.as_ref() != Some(&why) {
                self.said = Some(why.clone());
                // If nobody wants to know, that is noticed elsewhere.
                let _ = self.sender.send(Message::Uncovered(self.files.place.path.clone(), why)).await;
            }
            if !is_over {
                return;
            }
        }
    }

    /// What is not covered.
    fn find_uncovered(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.walks.lost || self.walks.mending {
            parts.push("so much changed at once that events were lost; all of it is looked through".to_owned());
        }
        if self.is_catching_up && self.opened.elapsed() >= SLOW {
            parts.push("what happened while podsecd did not run is told when all is looked through".to_owned());
        }
        if self.walks.untold > 0 {
            let count = self.walks.untold;
            parts.push(format!(
                "{count} changes are not told: nobody watched when they were made, and the directories are gone"
            ));
        }
        let uncovered: Vec<_> =
            self.layers.values().filter_map(|layer| Some((layer, layer.uncovered.as_ref()?))).collect();
        if let Some((_, Uncovered { why, .. })) = uncovered.first() {
            let count: u64 = uncovered.iter().map(|(_, uncovered)| uncovered.count).sum();
            let alike = uncovered.iter().filter(|(_, uncovered)| uncovered.why == *why).take(MAX_NAMED);
            let named: Vec<_> = alike.map(|(layer, uncovered)| place(layer, uncovered)).collect();
            let named = named.join(", ");
            parts.push(format!("{count} directories, with what is in them, are not watched, as {named}: {why}"));
        }
        parts.extend(self.lives.lacks().map(|why| format!("not all starts and stops are seen: {why}")));
        parts.extend(self.record.failure().map(|why| {
            format!(
                "not all programs that there are can be kept in mind, so that changes may be told again after a restart and \
                 missing ones are not noticed: {why}"
            )
        }));
        if self.unwatched > 0 {
            parts.push(format!("{} layers are too many to be watched", self.unwatched));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// A directory that is not watched, and of whom it is.
fn place(layer: &Watched, uncovered: &Uncovered) -> String {
    let path = uncovered.named.first().map(|path| path.display().to_string()).unwrap_or_default();
    let name = match &layer.owner {
        Some(Owner::Container(container)) => container.name.as_ref().unwrap_or(&container.id),
        Some(Owner::Image(images)) => images.first().unwrap_or(&layer.id),
        _ => &layer.id,
    };
    format!("/{path} of {name}")
}
