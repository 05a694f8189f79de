//! What whoever watches a store hands over to the next one, of this podsecd or of another: what the layers are watched by, which
//! watch is of which directory, and whose the layers are. What was read of it was told, or is handed over, too.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Store;
use super::events::note;
use super::telling::PATIENCE;
use crate::checks::containers::assess::Complete;
use crate::checks::containers::layer::Watched;
use crate::checks::containers::records::Owner;
use crate::checks::containers::source::{Left, Message};
use crate::handover::{Handover, Kept};
use crate::watch::open::Directory;
use crate::watch::tree::{Event, Inherited, Interest, Moment, Past, Root, Trees};

/// So long the journal, and walks that are under way, are waited for at the end.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What systemd keeps of trees.
pub(in crate::checks::containers) struct Holding {
    /// By what they are watched; `None`: there were no descriptors left.
    watched_by: Option<Kept>,
    /// What was known of them, until what waited is told.
    past: Option<Kept>,
}

impl Holding {
    /// What waited is told: what was known before is not needed any more.
    pub(in crate::checks::containers) fn forget_past(&mut self, trees: &Trees) {
        if self.past.is_some() && !trees.is_behind() {
            self.past.take().into_iter().for_each(Kept::give_up);
        }
    }

    /// They are of nothing that there is.
    pub(in crate::checks::containers) fn give_up(self) {
        self.watched_by.into_iter().chain(self.past).for_each(Kept::give_up);
    }
}

/// A layer, as it is handed over.
#[derive(Debug, Deserialize, Serialize)]
struct Layer {
    id: String,
    is_image: bool,
    owner: Option<Owner>,
}

/// Layers that were watched before: by their ids, under which number, whose they were, and whether they are of an image.
pub(super) type Former = BTreeMap<String, (Root, Option<Owner>, bool)>;

/// What is kept of the layers of a store, and of its containers' lives.
fn of(what: &str, store: &Path) -> String {
    format!("{what}-{}", Uuid::new_v5(&Uuid::NAMESPACE_URL, store.as_os_str().as_encoded_bytes()))
}

/// What is to watch the layers of a store: what the podsecd before had, where it is known what that one told.
pub(super) fn open(
    base: Directory,
    interest: Interest,
    store: &Path,
    (handover, complete): (&Handover, Option<Complete>),
) -> io::Result<(Trees, Holding, Former)> {
    let since = complete.map(|complete| complete.changes);
    let (trees, holding, roots) = take_over(base, interest, &of("layers", store), (handover, since))?;
    let layers =
        roots.into_iter().filter_map(|(root, layer)| Some((root, serde_json::from_str::<Layer>(&layer).ok()?)));
    let former = layers.map(|(root, Layer { id, is_image, owner })| (id, (root, owner, is_image)));
    Ok((trees, holding, former.collect()))
}

/// The same for what tells of its containers' lives; what was told of these is known to the moment. Answers, too, what was said of
/// them when they were left.
pub(in crate::checks::containers) fn open_lives(
    base: Directory,
    store: &Path,
    (handover, since): (&Handover, Moment),
) -> io::Result<(Trees, Holding, Option<String>)> {
    let (trees, holding, mut roots) = take_over(base, Interest::NONE, &of("lives", store), (handover, Some(since)))?;
    Ok((trees, holding, roots.remove(&0)))
}

fn take_over(
    base: Directory,
    interest: Interest,
    what: &str,
    (handover, since): (&Handover, Option<Moment>),
) -> io::Result<(Trees, Holding, BTreeMap<Root, String>)> {
    let past = handover.take_past(what);
    // Of several only the newest was read to the end.
    let mut kept = handover.take(what).into_iter();
    let newest = kept.next();
    kept.for_each(|(_, kept)| kept.give_up());
    if let (Some((descriptor, kept)), Some(since)) = (newest, since) {
        let known = past.as_ref().and_then(|(known, _)| Past::parse(known)).unwrap_or_default();
        let known_to_wait = known.waiting();
        if let Some(inherited) = Inherited::read(descriptor, since, known)? {
            let (known, roots) = (inherited.past(), inherited.past().roots.clone());
            let mut past = past.map(|(_, past)| past);
            // What was read waits nowhere else any more.
            if known.waiting() > known_to_wait
                && let Ok(with_it) = handover.bequeath(what, &known.to_bytes())
            {
                past.replace(with_it).into_iter().for_each(Kept::give_up);
            }
            let trees = Trees::inherit(base, interest, inherited)?;
            return Ok((trees, Holding { watched_by: Some(kept), past }, roots));
        }
        kept.give_up();
    }
    past.into_iter().for_each(|(_, past)| past.give_up());
    let trees = Trees::new(base, interest)?;
    let watched_by = handover.keep(what, trees.descriptor()).ok();
    Ok((trees, Holding { watched_by, past: None }, BTreeMap::new()))
}

impl Store {
    /// Tells what was read, as the watch ends. What happens from now on waits for the next one. Answers what that is to know.
    pub(super) async fn end(&mut self) -> Vec<Left> {
        self.is_ending = true;
        self.finish_reading().await;
        let now = Moment::at(SystemTime::now());
        let overdue = Instant::now().checked_sub(PATIENCE).unwrap_or_else(Instant::now);
        self.layers.values_mut().for_each(|layer| layer.pace.due = overdue);
        self.send_waiting().await;
        self.flush().await;
        self.send_waiting().await;
        let is_all = self.layers.values().all(|layer| layer.gathered.is_none()) && !self.is_seeking();
        let roots = self.layers.iter().filter_map(|(root, layer)| Some((*root, to_json(layer)?))).collect();
        let path = &self.files.place.path;
        let layers = self.trees.leave(roots, is_all.then_some(now));
        let mut left = vec![Left { what: of("layers", path), past: layers }];
        left.extend(self.lives.leave().map(|past| Left { what: of("lives", path), past }));
        left
    }

    /// What was begun is done, if that is soon.
    async fn finish_reading(&mut self) {
        let deadline = Instant::now() + LAST_WORD;
        // Of what stopped just now the journal says the exit code in a moment.
        let told = async {
            while !self.lives.is_answered() {
                self.lives.tell(&mut self.happened).await;
            }
        };
        let _ = timeout_at(deadline, told).await;
        self.lives.finish(&mut self.happened);
        // What came with a directory just now is told with that.
        while !self.trees.is_behind() && self.trees.is_walking() {
            let Store { trees, layers, walks, record, complete, .. } = self;
            let since = (trees.drained(), *complete);
            let mut tell = |event: Event<'_>| note(event, layers, (walks, record), since);
            if !matches!(timeout_at(deadline, trees.tell(&mut tell)).await, Ok(Ok(()))) {
                break;
            }
        }
    }

    async fn send_waiting(&mut self) {
        for observation in std::mem::take(&mut self.waiting) {
            self.progress.note(observation.complete);
            // If nobody wants to know, the next podsecd looks for it.
            let _ = self.sender.send(Message::Observed(observation)).await;
        }
        self.record.flush();
    }

    /// Whether a walk may still find what nothing told.
    fn is_seeking(&self) -> bool {
        let is_walking = !self.trees.is_settled() || !self.walks.outstanding.is_empty();
        is_walking || self.walks.lost || self.walks.mending || !self.walks.doubted.is_empty()
    }
}

/// A layer as it is handed over.
fn to_json(layer: &Watched) -> Option<String> {
    let owner = layer.owner.clone();
    serde_json::to_string(&Layer { id: layer.id.clone(), is_image: layer.is_image, owner }).ok()
}
