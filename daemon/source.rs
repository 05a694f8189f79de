//! A source as the main task sees it: what it sends, and when it is started again after it failed.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// A source that failed is started again after this, and after twice as long each time that it fails at once.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(64);

/// What a source's channel has to say.
pub(crate) enum Said<M> {
    /// The source sent this.
    Message(M),
    /// It ended without a word: it panicked.
    Panicked,
    /// It is to be started again.
    Due,
}

/// A source.
pub(crate) struct Source<M> {
    receiver: Option<mpsc::Receiver<M>>,
    /// When it is to be started again.
    due: Option<Instant>,
    pause: Duration,
}

impl<M> Source<M> {
    /// One that is not started yet.
    pub(crate) fn new() -> Source<M> {
        Source { receiver: None, due: None, pause: RESTART_PAUSE }
    }

    /// It is started, and sends into this channel from now on; one that ran before ends.
    pub(crate) fn start(&mut self) -> mpsc::Sender<M> {
        let (sender, receiver) = mpsc::channel(4);
        (self.receiver, self.due) = (Some(receiver), None);
        sender
    }

    /// Waits for what it says.
    pub(crate) async fn said(&mut self) -> Said<M> {
        match (&mut self.receiver, self.due) {
            (Some(receiver), _) => receiver.recv().await.map_or(Said::Panicked, Said::Message),
            (None, Some(due)) => {
                sleep_until(due).await;
                self.due = None;
                Said::Due
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// Whether it was started, and did not fail.
    pub(crate) fn is_running(&self) -> bool {
        self.receiver.is_some()
    }

    /// It does its work.
    pub(crate) fn works(&mut self) {
        self.pause = RESTART_PAUSE;
    }

    /// It failed, and is to be started again later.
    pub(crate) fn failed(&mut self) {
        self.receiver = None;
        self.due = Some(Instant::now() + self.pause);
        self.pause = (2 * self.pause).min(MAX_RESTART_PAUSE);
    }

    /// It is to end.
    pub(crate) fn stop(&mut self) {
        (self.receiver, self.due) = (None, None);
    }
}
