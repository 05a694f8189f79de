//! The reports, and the ways to them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot, watch};

use crate::checks::own::ids::{DIGEST_FAILED, JOURNAL_UNAVAILABLE, STATE_UNWRITABLE};
use crate::config::{Config, Root};
use crate::control;
use crate::guardian::Guardian;
use crate::report::checkpoint::{Checkpoint, State};
use crate::report::digest::period::Period;
use crate::report::forbidden_log::{self, ForbiddenLog};
use crate::report::ledger::{self, Changes, Ledger};
use crate::report::status::MailStatus;
use crate::report::{Cycle, Trouble, digest, journal, terminal};
use crate::start::Input;

/// Places in the queues of journal and ledger, and how many of them are kept for what podsecd says of itself.
const QUEUE: usize = 40;
const KEPT: usize = 32;

/// The ways to the reports.
pub(crate) struct Reports {
    prefix: watch::Sender<String>,
    config: watch::Sender<Arc<Config>>,
    pub(crate) to_journal: mpsc::Sender<Arc<Cycle>>,
    pub(crate) to_ledger: mpsc::Sender<(Arc<Cycle>, State)>,
    /// To whoever makes digests: one is wanted now.
    pub(crate) wanted: mpsc::Sender<oneshot::Sender<control::Sent>>,
    /// How digests are.
    pub(crate) mail: watch::Receiver<Option<MailStatus>>,
    /// Number of the last cycle that is final.
    pub(crate) settled: watch::Receiver<u64>,
    /// Number of the last that is in forbidden.log and spool.
    pub(crate) kept: watch::Receiver<u64>,
    /// Number of the last cycle that was handed over.
    pub(crate) sent: u64,
}

impl Reports {
    /// Starts journal (or terminal) and ledger, which go on at the former checkpoint.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(crate) fn start(
        guardian: &Guardian,
        former: Option<Checkpoint>,
        checkpoint: PathBuf,
        root: &Root,
        inputs: mpsc::Sender<Input>,
    ) -> io::Result<(Reports, mpsc::Receiver<Trouble>)> {
        let (troubles, troubles_in) = mpsc::channel(64);
        let config = guardian.config();
        let (prefix, prefix_in) = watch::channel(config.journal.identifier_prefix.clone());
        let (to_config, config_in) = watch::channel(Arc::new(config.clone()));
        let (to_journal, cycles) = mpsc::channel(QUEUE);
        let (accepted, accepted_in) = watch::channel(0);
        let journal = if root.is_elsewhere() {
            tokio::task::spawn_blocking(move || terminal::run(cycles, &accepted))
        } else {
            let away = guardian.state().is_open(JOURNAL_UNAVAILABLE);
            tokio::spawn(journal::run(cycles, accepted, troubles.clone(), prefix_in, away))
        };
        let (to_ledger, cycles) = mpsc::channel(QUEUE);
        let (settled, settled_in) = watch::channel(0);
        let (to_kept, kept) = watch::channel(0);
        let (wanted, wanted_in) = mpsc::channel(4);
        let (to_mail, mail) = watch::channel(None);
        let places = [forbidden_log::PODSEC, forbidden_log::OWN].map(|path| root.path(path)).to_vec();
        let config = config_in.borrow().clone();
        let [spool, outbox] = [digest::SPOOL, digest::OUTBOX].map(|path| root.path(path));
        let (runtime, state) = (tokio::runtime::Handle::current(), guardian.state());
        thread::Builder::new().name("ledger".into()).spawn(move || {
            let _runtime = runtime.enter();
            let (former_state, mark, digests) = former
                .map_or_else(Default::default, |former| (Some(former.state), former.forbidden_log, former.digests));
            let open = || {
                let mark = mark.clone().map(|mark| mark.after_removal(digests.delivered_end)).transpose()?;
                let written = mark.as_ref().map_or(0, |mark| mark.written);
                let log = ForbiddenLog::new(places.clone(), config.forbidden_log.clone(), mark.as_ref())?;
                Ok((mark, log, Period::open(&spool, &outbox, digests.clone(), written, &config)?))
            };
            let stuck = state.is_open(STATE_UNWRITABLE);
            let ((mark, log, period), stuck) = ledger::insist_to_start(&troubles, stuck, open);
            let saved = (former_state.unwrap_or_else(|| state.clone()), mark);
            let unfrozen = state.is_open(DIGEST_FAILED);
            let outbox = Changes::of(&outbox);
            let mut ledger = Ledger {
                log,
                period,
                config: config_in,
                state,
                saved,
                unaccepted: None,
                starting: true,
                checkpoint,
                troubles,
                stuck,
                unfrozen,
                wanted: wanted_in,
                mail: to_mail,
                kept: to_kept,
                outbox,
            };
            ledger.begin();
            ledger.run(cycles, accepted_in, &settled);
        })?;
        let mut ledger = settled_in.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                _ = journal => "the journal report",
                _ = ledger.wait_for(|_| false) => "the writing of forbidden.log and checkpoint",
            };
            // Nobody listens when podsecd itself ends.
            let _ = inputs.send(Input::Ended(ended)).await;
        });
        let settled = settled_in;
        Ok((
            Reports { prefix, config: to_config, to_journal, to_ledger, wanted, mail, settled, kept, sent: 0 },
            troubles_in,
        ))
    }

    /// Another configuration is in force.
    pub(crate) fn configure(&self, config: &Config) {
        self.prefix.send_replace(config.journal.identifier_prefix.clone());
        self.config.send_replace(Arc::new(config.clone()));
    }

    /// Whether they have room.
    pub(crate) fn have_room(&self) -> bool {
        self.to_journal.capacity() > 0 && self.to_ledger.capacity() > 0
    }

    /// Whether they have room for what the audit log shows: a few places are kept for what podsecd says of itself, so that
    /// a journal that takes nothing is told by the mail, and a disk that does not by the journal.
    pub(crate) fn have_room_for_more(&self) -> bool {
        self.to_journal.capacity() > KEPT && self.to_ledger.capacity() > KEPT
    }

    /// Waits until they have.
    pub(crate) async fn room_for_more(&self) {
        self.room_for(KEPT + 1).await;
    }

    /// Waits until they have so many places.
    pub(crate) async fn room_for(&self, places: usize) {
        // An error is the end of a report, which is told as such.
        let _ = self.to_journal.reserve_many(places).await;
        let _ = self.to_ledger.reserve_many(places).await;
    }
}
