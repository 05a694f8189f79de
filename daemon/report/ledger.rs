//! The order in which a cycle becomes final: append to forbidden.log, fdatasync, journal accepted, checkpoint.
//!
//! The journal gets a cycle at the same time, not after the disk: an entry does not wait for fdatasync. After a crash the
//! cycle comes again, forbidden.log skips what it has, and the journal has its entries twice, as guarantee 1 allows.
//! Cycles that come soon one after the other share a checkpoint.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::checkpoint::{Checkpoint, State};
use super::forbidden_log::{self, ForbiddenLog};
use super::{Cycle, Trouble};
use crate::checks::own::ids::STATE_UNWRITABLE;
use crate::config::ForbiddenLog as Limits;
use crate::finding::Kind;

/// How long a cycle may wait for others to share its checkpoint. A restart yields again what had none.
const GATHER: Duration = Duration::from_millis(100);
/// How many bytes of forbidden.log may wait for one. A restart reads again what had none, and so much is little.
const MAX_GATHERED: usize = 4 << 20;
/// How long to wait before the disk is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Makes cycles final, on a thread of its own, because disks block.
#[derive(Debug)]
pub struct Ledger {
    /// forbidden.log.
    pub log: ForbiddenLog,
    /// Its limits, which a reload may change.
    pub limits: watch::Receiver<Limits>,
    /// The checkpoint's path.
    pub checkpoint: PathBuf,
    /// Where troubles are told.
    pub troubles: mpsc::Sender<Trouble>,
    /// The disk does not take what is written: said already.
    pub stuck: bool,
}

impl Ledger {
    /// Runs until no cycle will come any more. `accepted` is the number of the last cycle that the journal took, `final_`
    /// the number of the last that is final.
    pub fn run(
        mut self,
        mut cycles: mpsc::Receiver<(Arc<Cycle>, State)>,
        mut accepted: watch::Receiver<u64>,
        final_: &watch::Sender<u64>,
    ) {
        let runtime = Handle::current();
        while let Some(first) = cycles.blocking_recv() {
            let due = Instant::now() + GATHER;
            let (mut number, mut state, mut gathered) = self.append(first, &mut cycles);
            while Instant::now() < due
                && gathered < MAX_GATHERED
                && let Ok(Some(next)) = runtime.block_on(async { timeout_at(due, cycles.recv()).await })
            {
                let more;
                (number, state, more) = self.append(next, &mut cycles);
                gathered += more;
            }
            if runtime.block_on(accepted.wait_for(|accepted| *accepted >= number)).is_err() {
                // Nobody reports any more: podsecd is ending, and these cycles will come again.
                return;
            }
            self.insist("write the checkpoint", |ledger| ledger.save(&state));
            let mut rotated = false;
            self.insist("rotate forbidden.log", |ledger| {
                rotated |= ledger.log.rotate()?;
                if rotated { ledger.save(&state) } else { Ok(()) }
            });
            final_.send_replace(number);
        }
    }

    /// Appends to forbidden.log what this cycle and those that wait found; answers number and state of the last, and how
    /// many bytes were appended.
    fn append(
        &mut self,
        first: (Arc<Cycle>, State),
        cycles: &mut mpsc::Receiver<(Arc<Cycle>, State)>,
    ) -> (u64, State, usize) {
        let (cycle, mut state) = first;
        let mut batch = vec![cycle];
        while let Ok((cycle, later)) = cycles.try_recv() {
            batch.push(cycle);
            state = later;
        }
        self.log.set_limits(self.limits.borrow_and_update().clone());
        let findings = batch.iter().flat_map(|cycle| &cycle.findings);
        let lines = findings.filter_map(|(scored, _)| forbidden_log::line(&scored.finding)).collect();
        let lines = self.log.missing(lines);
        self.insist("append to forbidden.log", |ledger| ledger.log.append(&lines));
        (batch.last().map_or(0, |cycle| cycle.number), state, lines.iter().map(Vec::len).sum())
    }

    fn save(&mut self, state: &State) -> io::Result<()> {
        Checkpoint::new(state.clone(), Some(self.log.mark()?)).save(&self.checkpoint)
    }

    /// Writes the first checkpoint, so that there is a mark before there is a line.
    pub fn begin(&mut self, state: &State) {
        self.insist("write the checkpoint", |ledger| ledger.save(state));
    }

    /// Tries until it succeeds. A full disk is waited out: whatever is behind it waits, nothing is lost.
    fn insist(&mut self, what: &str, mut attempt: impl FnMut(&mut Ledger) -> io::Result<()>) {
        loop {
            let result = attempt(self);
            self.tell();
            match result {
                Ok(()) => {
                    if std::mem::take(&mut self.stuck) {
                        self.say(Kind::Cleared, "podsecd can write its state again".into());
                    }
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.stuck, true) {
                        self.say(Kind::Raised, format!("cannot {what}: {error}; podsecd waits and will catch up"));
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn tell(&mut self) {
        for trouble in std::mem::take(&mut self.log.troubles) {
            self.send(trouble);
        }
    }

    fn say(&self, kind: Kind, message: String) {
        self.send(Trouble { id: STATE_UNWRITABLE, kind, subject: "/var/lib/podsecd", message });
    }

    fn send(&self, trouble: Trouble) {
        // Whoever takes it never waits for us, so this ends; without a taker podsecd is ending.
        let _ = self.troubles.blocking_send(trouble);
    }
}
