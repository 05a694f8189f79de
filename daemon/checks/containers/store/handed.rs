//! What one podsecd hands over to the next: what the layers are watched by, and nothing that was read of it and not told.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::Store;
use super::telling::PATIENCE;
use crate::checks::containers::assess::Complete;
use crate::checks::containers::source::Message;
use crate::handover::{Handover, Kept};
use crate::watch::open::Directory;
use crate::watch::tree::{Inherited, Interest, Moment, Trees};

/// So long the journal is waited for when podsecd ends.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What systemd keeps of a store: by what it is watched.
pub(crate) fn name(store: &Path) -> String {
    of("layers", store)
}

fn of(what: &str, store: &Path) -> String {
    format!("{what}-{}", Uuid::new_v5(&Uuid::NAMESPACE_URL, store.as_os_str().as_encoded_bytes()))
}

/// What is to watch the layers of a store: what the podsecd before had, where it is known what that one told.
pub(super) fn open(
    base: Directory,
    interest: Interest,
    store: &Path,
    (handover, complete): (&Handover, Option<Complete>),
) -> io::Result<(Trees, Kept)> {
    take_over(base, interest, &name(store), (handover, complete.map(|complete| complete.changes)))
}

/// The same for what tells of its containers' lives; what was told of these is known to the moment.
pub(in crate::checks::containers) fn open_lives(
    base: Directory,
    store: &Path,
    (handover, since): (&Handover, Moment),
) -> io::Result<(Trees, Kept)> {
    take_over(base, Interest::NONE, &of("lives", store), (handover, Some(since)))
}

fn take_over(
    base: Directory,
    interest: Interest,
    what: &str,
    (handover, since): (&Handover, Option<Moment>),
) -> io::Result<(Trees, Kept)> {
    let told = handover.ended(what).map(Moment::at);
    let mut inherited = None;
    // Of several only the newest was read to the end. The others are given back.
    for (descriptor, kept) in handover.take(what) {
        if let (None, Some(since)) = (&inherited, since) {
            inherited = Inherited::read(descriptor, since, told)?.map(|inherited| (inherited, kept));
        }
    }
    if let Some((inherited, kept)) = inherited {
        return Ok((Trees::inherit(base, interest, inherited)?, kept));
    }
    let trees = Trees::new(base, interest)?;
    let kept = handover.keep(what, trees.descriptor());
    Ok((trees, kept))
}

impl Store {
    /// Tells what was read, as podsecd ends. What happens from now on waits for the next one.
    pub(super) async fn end(&mut self) {
        let overdue = Instant::now().checked_sub(PATIENCE).unwrap_or_else(Instant::now);
        self.layers.values_mut().for_each(|layer| layer.pace.due = overdue);
        self.is_ending = true;
        // Of what stopped just now the journal says the exit code in a moment.
        let Store { lives, happened, .. } = self;
        let told = async {
            while !lives.is_settled() {
                lives.tell(happened).await;
            }
        };
        let _ = timeout(LAST_WORD, told).await;
        self.send_waiting().await;
        self.flush().await;
        self.send_waiting().await;
        // What walks were about to find, the next one looks for.
        let is_all = self.layers.values().all(|layer| layer.gathered.is_none()) && self.happened.is_empty();
        if is_all && self.lives.is_settled() && !self.is_seeking() {
            let _ = self.sender.send(Message::Ended(self.files.place.path.clone())).await;
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
