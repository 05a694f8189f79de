//! The order in which a cycle becomes final: append to forbidden.log and spool, fdatasync, journal accepted, checkpoint.
//! Behind a checkpoint the digest period may end.
//!
//! The journal gets a cycle at the same time, not after the disk: an entry does not wait for fdatasync. After a crash the
//! cycle comes again, forbidden.log skips what it has, and the journal has its entries twice, as guarantee 1 allows.
//! Cycles that come soon one after the other share a checkpoint.
//!
//! A journal that takes nothing for longer holds back the checkpoint, not the mail: digests then tell what a restart would
//! keep, which is what podsecd says of itself, and the log's findings follow when the journal is back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::checkpoint::{Checkpoint, State};
use super::digest::period::Period;
use super::forbidden_log::{ForbiddenLog, Mark};
use super::status::MailStatus;
use super::{Cycle, Trouble};
use crate::checks::own::ids::{DIGEST_FAILED, FORBIDDEN_LOG_CHANGED, STATE_UNWRITABLE};
use crate::config::Config;
use crate::control::Sent;
use crate::finding::Kind;
use crate::watch::wake::Wake;

/// How long a cycle may wait for others to share its checkpoint. A restart yields again what had none.
const GATHER: Duration = Duration::from_millis(100);
/// How many bytes of forbidden.log may wait for one. A restart reads again what had none, and so much is little.
const MAX_GATHERED: usize = 4 << 20;
/// How long the journal may take before digests are made without what it has not taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many cycles are appended beyond that, which is as many as can wait for the journal. What no checkpoint has stays
/// little, also where the journal is only slow.
const MAX_UNACCEPTED: u64 = 40;
/// How long to wait before the disk is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Makes cycles final, on a thread of its own, because disks block.
#[derive(Debug)]
pub struct Ledger {
    /// forbidden.log.
    pub log: ForbiddenLog,
    /// The digest period.
    pub period: Period,
    /// The configuration, which a reload may change.
    pub config: watch::Receiver<Arc<Config>>,
    /// What the next checkpoint will hold.
    pub state: State,
    /// What the last one holds, of state and forbidden.log.
    pub saved: (State, Option<Mark>),
    /// The first cycle that was appended and that the journal may not have taken, and the last.
    pub unaccepted: Option<(u64, u64)>,
    /// Nothing was made final since the start: forbidden.log and outbox may have changed meanwhile, and that is not told.
    pub starting: bool,
    /// The checkpoint's path.
    pub checkpoint: PathBuf,
    /// Where troubles are told.
    pub troubles: mpsc::Sender<Trouble>,
    /// The disk does not take what is written: said already.
    pub stuck: bool,
    /// A digest could not be made: said already.
    pub unfrozen: bool,
    /// Who wants the digest now, and takes what became of it.
    pub wanted: mpsc::Receiver<oneshot::Sender<Sent>>,
    /// What is known of digests, for the status.
    pub mail: watch::Sender<Option<MailStatus>>,
    /// Number of the last cycle that is in forbidden.log and spool.
    pub kept: watch::Sender<u64>,
    /// Says when something in the outbox changes.
    pub outbox: Changes,
}

/// What the ledger waits for.
enum Next {
    Cycle(Option<Box<(Arc<Cycle>, State)>>),
    PeriodOver,
    Configured,
    Wanted(oneshot::Sender<Sent>),
    Outbox,
    /// The journal has taken what was appended; false: it never will.
    Accepted(bool),
}

/// Changes of a directory. Where it cannot be watched nothing is said.
#[derive(Debug)]
pub struct Changes(Option<Wake>);

impl Changes {
    /// Those of this directory; to be called within a runtime.
    pub fn of(directory: &Path) -> Changes {
        let wake = Wake::new().and_then(|mut wake| wake.watch(directory, std::iter::empty()).map(|_| wake));
        Changes(wake.inspect_err(|error| tracing::warn!(%error, "cannot watch the outbox")).ok())
    }

    async fn changed(&mut self) {
        let failed = match &mut self.0 {
            Some(wake) => wake.changed().await.is_err(),
            None => true,
        };
        if failed {
            self.0 = None;
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for a number; false if it will never come.
async fn until(numbers: &mut watch::Receiver<u64>, number: u64) -> bool {
    numbers.wait_for(|reached| *reached >= number).await.is_ok()
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Opens what the ledger needs, however long that takes; also says whether its trouble was told, as it may have been before
/// a restart.
pub fn insist_to_start<T>(
    troubles: &mpsc::Sender<Trouble>,
    mut stuck: bool,
    open: impl Fn() -> io::Result<T>,
) -> (T, bool) {
    loop {
        match open() {
            Ok(opened) => return (opened, stuck),
            Err(error) => {
                if !std::mem::replace(&mut stuck, true) {
                    let message = format!("cannot open forbidden.log, spool or outbox: {error}; podsecd waits");
                    // Without a taker podsecd is ending.
                    let _ = troubles.blocking_send(unwritable(Kind::Raised, message));
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

fn unwritable(kind: Kind, message: String) -> Trouble {
    Trouble { id: STATE_UNWRITABLE, kind, subject: "/var/lib/podsecd", message }
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
        loop {
            let due = self.period.due();
            self.mail.send_if_modified(|mail| {
                let former = std::mem::replace(mail, self.period.status().ok());
                *mail != former
            });
            if due.is_some_and(|due| due <= Instant::now()) {
                // Also where there is always a further cycle: whoever floods the log must not hold back the mail.
                // Where it fails that is said.
                if self.end_period() != Ok(true) {
                    self.period.postpone();
                }
                continue;
            }
            let last = self.unaccepted.map_or(0, |(_, last)| last);
            let (waits, takes_more) =
                self.unaccepted.map_or((false, true), |(first, last)| (true, last - first < MAX_UNACCEPTED));
            let starting = self.starting;
            let (outbox, cycles_in, wanted) = (&mut self.outbox, &mut cycles, &mut self.wanted);
            let (config, accepted_in) = (&mut self.config, &mut accepted);
            let next = runtime.block_on(async {
                tokio::select! {
                    is_open = until(accepted_in, last), if waits => Next::Accepted(is_open),
                    cycle = cycles_in.recv(), if takes_more => Next::Cycle(cycle.map(Box::new)),
                    () = at(due) => Next::PeriodOver,
                    Ok(()) = config.changed() => Next::Configured,
                    Some(answer) = wanted.recv() => Next::Wanted(answer),
                    // What is delivered can be removed when all of forbidden.log is in the checkpoint.
                    () = outbox.changed(), if !waits && !starting => Next::Outbox,
                }
            });
            match next {
                Next::Cycle(None) | Next::Accepted(false) => return,
                Next::Cycle(Some(first)) => {
                    let number = self.gather(*first, &mut cycles, &runtime);
                    self.kept.send_replace(number);
                    if let Some((first, _)) = self.unaccepted {
                        self.unaccepted = Some((first, number));
                        continue;
                    }
                    self.unaccepted = Some((number, number));
                    // Not for ever: a journal that takes nothing is no reason to mail nothing.
                    match runtime.block_on(async { timeout(PATIENCE, until(&mut accepted, number)).await }) {
                        Ok(true) => self.settle(number, final_),
                        // Nobody reports any more: podsecd is ending, and these cycles will come again.
                        Ok(false) => return,
                        Err(_) => {}
                    }
                }
                Next::Accepted(true) => self.settle(last, final_),
                // It is ended above.
                Next::PeriodOver => {}
                Next::Configured => {
                    let config = self.config.borrow_and_update().clone();
                    self.period.configure(&config);
                }
                Next::Wanted(answer) => {
                    // Whoever asked may be gone.
                    let _ = answer.send(self.send_now());
                }
                Next::Outbox => self.settle_delivered(),
            }
        }
    }

    /// Appends a cycle, and those that come soon after it; answers the number of the last.
    fn gather(
        &mut self,
        first: (Arc<Cycle>, State),
        cycles: &mut mpsc::Receiver<(Arc<Cycle>, State)>,
        runtime: &Handle,
    ) -> u64 {
        let due = Instant::now() + GATHER;
        let (mut number, mut gathered) = self.append(first, cycles);
        while Instant::now() < due
            && gathered < MAX_GATHERED
            && let Ok(Some(next)) = runtime.block_on(async { timeout_at(due, cycles.recv()).await })
        {
            let more;
            (number, more) = self.append(next, cycles);
            gathered += more;
        }
        number
    }

    /// Makes final what was appended, up to the cycle of that number.
    fn settle(&mut self, number: u64, final_: &watch::Sender<u64>) {
        self.unaccepted = None;
        let starting = std::mem::take(&mut self.starting);
        self.insist("write the checkpoint", Ledger::save);
        let mut rotated = false;
        self.insist("rotate forbidden.log", |ledger| {
            rotated |= ledger.log.rotate()?;
            if rotated { ledger.save() } else { Ok(()) }
        });
        final_.send_replace(number);
        if starting {
            self.settle_delivered();
        }
    }

    /// Ends the period because somebody wants it, and has those digests tried again that were refused.
    fn send_now(&mut self) -> Sent {
        let mut sent = Sent::default();
        match self.period.retry_refused() {
            Ok(count) => sent.retried = count as u64,
            Err(error) => sent.why = Some(format!("refused digests cannot be tried again: {error}")),
        }
        let number = self.period.mark().spool.number;
        if self.period.has_something() {
            match self.end_period() {
                Ok(true) => sent.number = Some(number),
                Ok(false) => sent.why = Some("journald has not taken yet what was found".to_owned()),
                Err(why) => sent.why = Some(why),
            }
        }
        sent
    }

    /// Freezes the digest of the period; false if there is nothing yet that it could tell of.
    ///
    /// # Errors
    /// Why it cannot be made; its findings are kept, and it will be tried again.
    fn end_period(&mut self) -> Result<bool, String> {
        let config = self.config.borrow_and_update().clone();
        if self.unaccepted.is_none() {
            return self.freeze(&config).map(|()| true);
        }
        // What the journal has not taken is in no checkpoint. What of it comes again after a restart is left to the next
        // digest: it would be in both.
        self.insist("divide the spool", |ledger| ledger.period.set_apart());
        let frozen = if self.period.has_something() { self.freeze(&config).map(|()| true) } else { Ok(false) };
        self.insist("append to the spool", |ledger| ledger.period.take_back(&config));
        frozen
    }

    /// Freezes the digest of what is in the spool, all of which a restart would keep.
    fn freeze(&mut self, config: &Config) -> Result<(), String> {
        // What stands behind the checkpoint's mark comes again, for the next digest.
        let written = self.saved.1.as_ref().map_or(0, |mark| mark.written);
        let frozen = self.period.freeze(&self.state, written, config);
        let frozen = frozen.map_err(|error| format!("cannot make the mail digest: {error:#}; its findings are kept"));
        if self.unfrozen != frozen.is_err() {
            self.unfrozen = frozen.is_err();
            let (kind, message) = match &frozen {
                Ok(()) => (Kind::Cleared, "digests can be made again".to_owned()),
                Err(why) => (Kind::Raised, why.clone()),
            };
            self.send(Trouble { id: DIGEST_FAILED, kind, subject: "digest", message });
        }
        frozen?;
        self.insist("begin a digest period", |ledger| ledger.period.begin_next(config));
        self.insist("write the checkpoint", Ledger::save);
        self.insist("tidy the outbox", |ledger| {
            if ledger.period.drop_superfluous(config)? {
                ledger.save()?;
                ledger.period.remove_dropped()?;
            }
            Ok(())
        });
        Ok(())
    }

    /// Records which digests were delivered, and removes what they hold from forbidden.log and the spool.
    fn settle_delivered(&mut self) {
        let mut any = false;
        self.insist("look at the outbox", |ledger| {
            any = ledger.period.collect()?;
            Ok(())
        });
        if !any {
            return;
        }
        self.insist("write the checkpoint", Ledger::save);
        // Saved, forbidden.log is open, and is looked at as it is.
        if self.period.release(self.log.first()) {
            self.insist("write the checkpoint", Ledger::save);
        }
        if !self.config.borrow_and_update().forbidden_log.keep_delivered {
            let end = self.period.delivered_end();
            // Whoever owns the directory can keep us from it, but not from going on. What stays goes with a later digest.
            if let Err(error) = self.log.remove_before(end) {
                let (kind, subject) = (Kind::Event, "forbidden.log");
                let message = format!("lines of forbidden.log that are delivered cannot be removed: {error}");
                self.send(Trouble { id: FORBIDDEN_LOG_CHANGED, kind, subject, message });
            }
            self.insist("write the checkpoint", Ledger::save);
        }
        self.insist("remove a delivered digest", |ledger| ledger.period.forget_delivered());
    }

    /// Appends to forbidden.log and spool what this cycle and those that wait found; answers the number of the last, and
    /// how many bytes were appended to forbidden.log.
    fn append(&mut self, first: (Arc<Cycle>, State), cycles: &mut mpsc::Receiver<(Arc<Cycle>, State)>) -> (u64, usize) {
        let (cycle, state) = first;
        self.state = state;
        let mut lines = cycle.lines();
        let mut batch = vec![cycle];
        let mut gathered: usize = lines.iter().map(Vec::len).sum();
        while gathered < MAX_GATHERED
            && let Ok((cycle, later)) = cycles.try_recv()
        {
            let more = cycle.lines();
            gathered += more.iter().map(Vec::len).sum::<usize>();
            lines.extend(more);
            batch.push(cycle);
            self.state = later;
        }
        let config = self.config.borrow_and_update().clone();
        self.log.set_limits(config.forbidden_log.clone());
        let lines = self.log.missing(lines);
        self.insist("append to forbidden.log", |ledger| ledger.log.append(&lines));
        self.insist("append to the spool", |ledger| ledger.period.append(batch.iter().map(Arc::as_ref), &config));
        (batch.last().map_or(0, |cycle| cycle.number), lines.iter().map(Vec::len).sum())
    }

    /// Writes the checkpoint. While the journal has not taken what was appended, and before anything was, only the digests
    /// go forward.
    fn save(&mut self) -> io::Result<()> {
        if self.unaccepted.is_none() && !self.starting {
            self.saved = (self.state.clone(), Some(self.log.mark()?));
        }
        self.save_digests()
    }

    /// Writes the checkpoint with what it held and with the digests as they are.
    fn save_digests(&mut self) -> io::Result<()> {
        let (state, mark) = self.saved.clone();
        Checkpoint::new(state, mark, self.period.mark()).save(&self.checkpoint)?;
        self.period.cover();
        Ok(())
    }

    /// Writes the first checkpoint: so that there is a mark before there is a line, and that a digest which was frozen and
    /// is not in the last one is in this. What podsecd noticed at its start is not reported yet, so all else stays as it was.
    pub fn begin(&mut self) {
        self.insist("write the checkpoint", |ledger| {
            if ledger.saved.1.is_none() {
                ledger.saved.1 = Some(ledger.log.mark()?);
            }
            ledger.save_digests()
        });
    }

    /// Tries until it succeeds. A full disk is waited out: whatever is behind it waits, nothing is lost.
    fn insist<T>(&mut self, what: &str, mut attempt: impl FnMut(&mut Ledger) -> io::Result<T>) -> T {
        loop {
            let result = attempt(self);
            self.tell();
            match result {
                Ok(done) => {
                    if std::mem::take(&mut self.stuck) {
                        self.say(Kind::Cleared, "podsecd can write its state again".into());
                    }
                    return done;
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
        self.send(unwritable(kind, message));
    }

    fn send(&self, trouble: Trouble) {
        // Whoever takes it never waits for us, so this ends; without a taker podsecd is ending.
        let _ = self.troubles.blocking_send(trouble);
    }
}

#[cfg(test)]
mod tests;
