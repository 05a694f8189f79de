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
use crate::checks::containers::records::Owner;
use crate::checks::containers::source::Message;
use crate::checks::containers::walks::Walks;
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
    /// Leaves what is known of them to whoever takes them over.
    fn leave(&self, handover: &Handover, known: &Past) -> io::Result<()> {
        let Some(watched_by) = &self.watched_by else { return Ok(()) };
        handover.leave(watched_by.name(), &known.to_bytes())
    }

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

/// What whoever watched before knew of the layers.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Former {
    /// Those that were watched: by their ids, under which number, whose they were, and whether they are of an image.
    pub(super) layers: BTreeMap<String, (Root, Option<Owner>, bool)>,
    /// Those of images that were said to be unfinished after they were watched, and until when they were.
    pub(super) unfinished: BTreeMap<String, Moment>,
}

/// What was known of trees that are taken over: what was said of them, and by when all was told that had been read.
type Known = (String, Option<Moment>);

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
    let (trees, holding, (note, told)) = take_over(base, interest, &of("layers", store), (handover, since))?;
    Ok((trees, holding, (serde_json::from_str(&note).unwrap_or_default(), told)))
}

/// The same for what tells of its containers' lives; what was told of these is known to the moment. Answers, too, what was said of
/// them when they were left.
pub(in crate::checks::containers) fn open_lives(
    base: Directory,
    store: &Path,
    (handover, since): (&Handover, Moment),
) -> io::Result<(Trees, Holding, String)> {
    let (trees, holding, (runs, told)) = take_over(base, Interest::NONE, &of("lives", store), (handover, Some(since)))?;
    // What was not reported is told again.
    Ok((trees, holding, if told.is_some() { runs } else { String::new() }))
}

/// Both are to be taken over, if not now.
pub(super) fn claim(store: &Path, handover: &Handover) {
    ["layers", "lives"].into_iter().for_each(|what| handover.claim(&of(what, store)));
}

fn take_over(
    base: Directory,
    interest: Interest,
    what: &str,
    (handover, since): (&Handover, Option<Moment>),
) -> io::Result<(Trees, Holding, Known)> {
    // Of several only the newest was read to the end.
    let mut kept = handover.take(what).into_iter();
    let newest = kept.next();
    kept.for_each(|(_, kept)| kept.give_up());
    let Some((descriptor, watched_by)) = newest else { return begin(base, interest, what, handover) };
    let (known, mut past) = handover.take_past(watched_by.name()).unzip();
    let mut known = known.and_then(|known| Past::parse(&known)).unwrap_or_default();
    let mut keep_untold = |known: &mut Past| {
        let told = known.told.take();
        if let Ok(untold) = handover.bequeath(watched_by.name(), &known.to_bytes()) {
            past.replace(untold).into_iter().for_each(Kept::give_up);
        }
        known.told = told;
    };
    // From now on more is read, and not told.
    let waiting = known.waiting();
    if known.told.is_some() {
        keep_untold(&mut known);
    }
    let inherited = match since {
        Some(since) => Inherited::read(descriptor, since, known)?,
        None => None,
    };
    let Some(mut inherited) = inherited else {
        // It is of no use.
        past.into_iter().chain([watched_by]).for_each(Kept::give_up);
        return begin(base, interest, what, handover);
    };
    // What was read waits nowhere else any more.
    if inherited.past().waiting() > waiting {
        keep_untold(inherited.past());
    }
    let known = (inherited.past().note.clone(), inherited.past().told);
    let trees = Trees::inherit(base, interest, inherited)?;
    Ok((trees, Holding { watched_by: Some(watched_by), past }, known))
}

/// Nobody watched before.
fn begin(base: Directory, interest: Interest, what: &str, handover: &Handover) -> io::Result<(Trees, Holding, Known)> {
    let trees = Trees::new(base, interest)?;
    let watched_by = handover.keep(what, trees.descriptor()).ok();
    Ok((trees, Holding { watched_by, past: None }, Known::default()))
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
        let mut is_sent = self.send_waiting().await;
        self.flush().await;
        if self.waiting.is_empty() && (!self.may_find() || self.progress.complete().is_none()) {
            // Up to when all is told.
            self.tell(Vec::new(), Vec::new());
        }
        is_sent &= self.send_waiting().await;
        let is_all = self.layers.values().all(|layer| layer.gathered.is_none()) && !self.may_find();
        let watched = self.layers.iter().filter(|(_, layer)| !layer.is_gone);
        let watched = watched.map(|(root, layer)| (layer.id.clone(), (*root, layer.owner.clone(), layer.is_image)));
        self.handed.layers.extend(watched);
        self.handed.unfinished.extend(std::mem::take(&mut self.unfinished));
        let note = serde_json::to_string(&self.handed).unwrap_or_default();
        let layers = (self.trees.leave(note, is_all.then_some(now)), &self.holding);
        for (mut past, holding) in [layers].into_iter().chain(self.lives.leave(now)) {
            past.told = past.told.filter(|_| is_sent);
            if let Err(error) = holding.leave(handover, &past) {
                let path = self.files.place.path.display();
                tracing::warn!(%error, "what is known of {path} cannot be left to whoever watches it next");
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
        while !self.trees.is_behind() && self.trees.is_walking() && self.may_find() {
            let Store { trees, layers, walks, record, complete, .. } = self;
            let since = (trees.drained(), *complete);
            let mut tell = |event: Event<'_>| note(event, layers, (walks, record), since);
            if !matches!(timeout_at(deadline, trees.tell(&mut tell)).await, Ok(Ok(()))) {
                break;
            }
        }
    }

    /// False: nobody wants to know any more. Whoever watches next looks for it.
    async fn send_waiting(&mut self) -> bool {
        for observation in std::mem::take(&mut self.waiting) {
            let complete = observation.complete;
            if self.sender.send(Message::Observed(observation)).await.is_err() {
                return false;
            }
            self.progress.note(complete);
        }
        self.record.flush();
        true
    }

    /// Whether a walk may still find what nothing told. One that seeks what the kernel does not tell begins anew at the next start.
    fn may_find(&self) -> bool {
        let Walks { outstanding, seeking, .. } = &self.walks;
        let is_other = |number: &u64| !seeking.contains(number);
        let is_walking = outstanding.values().any(is_other) || !self.trees.is_settled_but_for(outstanding.len());
        is_walking || self.walks.lost || self.walks.mending || !self.walks.doubted.is_empty()
    }
}
