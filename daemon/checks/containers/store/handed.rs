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
use crate::checks::containers::source::Message;
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

/// What was known of trees that are taken over: what the roots are, and by when all was told that had been read.
type Known = (BTreeMap<Root, String>, Option<Moment>);

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
) -> io::Result<(Trees, Holding, (Former, Option<Moment>))> {
    let since = complete.map(|complete| complete.changes);
    let (trees, holding, (roots, told)) = take_over(base, interest, &of("layers", store), (handover, since))?;
    let layers =
        roots.into_iter().filter_map(|(root, layer)| Some((root, serde_json::from_str::<Layer>(&layer).ok()?)));
    let former = layers.map(|(root, Layer { id, is_image, owner })| (id, (root, owner, is_image)));
    Ok((trees, holding, (former.collect(), told)))
}

/// The same for what tells of its containers' lives; what was told of these is known to the moment. Answers, too, what was said of
/// them when they were left.
pub(in crate::checks::containers) fn open_lives(
    base: Directory,
    store: &Path,
    (handover, since): (&Handover, Moment),
) -> io::Result<(Trees, Holding, Option<String>)> {
    let (trees, holding, (mut roots, told)) =
        take_over(base, Interest::NONE, &of("lives", store), (handover, Some(since)))?;
    // What was not reported is told again.
    Ok((trees, holding, roots.remove(&0).filter(|_| told.is_some())))
}

fn take_over(
    base: Directory,
    interest: Interest,
    what: &str,
    (handover, since): (&Handover, Option<Moment>),
) -> io::Result<(Trees, Holding, Known)> {
    let past = handover.take_past(what);
    // Of several only the newest was read to the end.
    let mut kept = handover.take(what).into_iter();
    let newest = kept.next();
    kept.for_each(|(_, kept)| kept.give_up());
    let (inherited, watched_by) = match (newest, since) {
        (Some((descriptor, kept)), Some(since)) => {
            let known = past.as_ref().and_then(|(known, _)| Past::parse(known)).unwrap_or_default();
            (Inherited::read(descriptor, since, known)?, Some(kept))
        }
        (newest, _) => (None, newest.map(|(_, kept)| kept)),
    };
    let past = past.map(|(_, past)| past);
    let Some(mut inherited) = inherited else {
        // It is of no use.
        past.into_iter().chain(watched_by).for_each(Kept::give_up);
        let trees = Trees::new(base, interest)?;
        let watched_by = handover.keep(what, trees.descriptor()).ok();
        return Ok((trees, Holding { watched_by, past: None }, Known::default()));
    };
    let known = inherited.past();
    // What was read waits nowhere else any more. From now on more is read, and not told.
    let told = known.told.take();
    let left = handover.bequeath(what, &known.to_bytes());
    known.told = told;
    let known = (known.roots.clone(), told);
    let past = match left {
        Ok(left) => {
            past.into_iter().for_each(Kept::give_up);
            Some(left)
        }
        Err(_) => past,
    };
    let trees = Trees::inherit(base, interest, inherited)?;
    Ok((trees, Holding { watched_by, past }, known))
}

impl Store {
    /// Tells what was read, as the watch ends. What happens from now on waits for whoever watches next, to whom it leaves what is
    /// known.
    pub(super) async fn end(&mut self, handover: &Handover) {
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
        let lives = self.lives.leave(now).map(|past| ("lives", past));
        for (what, past) in [("layers", layers)].into_iter().chain(lives) {
            let left = handover.leave(&of(what, path), &past.to_bytes());
            if let Err(error) = left {
                tracing::warn!(%error, "what is known of {} cannot be left to whoever watches it next", path.display());
            }
        }
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
