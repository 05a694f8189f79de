//! One tortured podsecd: a writer that writes on, kills, and the verdict whenever podsecd had time to catch up.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::disturb::CUT_UNREAD;
use crate::events::Generator;
use crate::injected::{Sweep, TARGETS, name};

use crate::model::Key;
use crate::podsecd::{Checkpoint, Podsecd, configure, deliver, forbidden_log, keys, rotated, unmailed};
use crate::rng::Rng;
use crate::world::World;
use crate::writer::Writer;

/// podsecd catches up and is judged after so many kills at most.
const KILLS_BETWEEN_VERDICTS: u32 = 8;
/// And after so many refusals, which still fit into the rotated forbidden.logs that are kept.
const REFUSALS_BETWEEN_VERDICTS: usize = 1500;

/// What happened, for the summary.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// kill -9 at random instants, or after it had caught up.
    pub(crate) random: u32,
    /// Kills at a system call.
    pub(crate) injected: u32,
    /// How many at which.
    pub(crate) reached: BTreeMap<String, u32>,
    /// Kills that left lines in forbidden.log which the checkpoint did not know.
    pub(crate) unfinished: u32,
    /// forbidden.log's end was torn.
    pub(crate) torn: u32,
    /// What was done to the files, by name.
    pub(crate) done: BTreeMap<&'static str, u32>,
    /// What podsecd said of itself and of the log, by id.
    pub(crate) own: BTreeMap<String, u32>,
}

impl Tally {
    /// A kill, by strace or not.
    pub(crate) fn count(&mut self, injected: bool) {
        *(if injected { &mut self.injected } else { &mut self.random }) += 1;
    }

    /// Whether the kills were where they were meant to be; a few of them need not be.
    ///
    /// # Errors
    /// What was missed.
    fn is_torture(&self, kills: u32) -> Result<()> {
        ensure!(!self.own.contains_key("self/part-failed"), "a part of podsecd failed");
        if kills >= 200 {
            ensure!(5 * self.injected >= 2 * kills, "only {} of {kills} kills were at system calls", self.injected);
        }
        if kills >= 1000 {
            let missed = TARGETS.map(name).into_iter().find(|name| !self.reached.contains_key(name));
            ensure!(missed.is_none(), "no kill at {}", missed.unwrap_or_default());
        }
        Ok(())
    }
}

/// The tortured.
#[derive(Debug)]
pub(crate) struct Torture {
    pub(crate) rng: Rng,
    pub(crate) writer: Writer,
    pub(crate) tally: Tally,
    pub(crate) generator: Generator,
    /// Requests of the rotated forbidden.logs that were taken away.
    archived: Vec<Key>,
    /// Requests of the digests that were delivered.
    delivered: Vec<Key>,
    kills_since_verdict: u32,
    pub(crate) disturbances: u32,
    /// The log was cut before it was read for sure, and podsecd has not caught up since.
    pub(crate) cut_unread: bool,
}

/// Kills podsecd that many times, half of them at random instants, half at system calls.
///
/// # Errors
/// What podsecd lost, doubled or did wrong in another way.
pub(crate) fn run(world: &mut World, seed: u64, kills: u32) -> Result<()> {
    configure("128KiB", 12)?;
    let (generator, writer) = (Generator::new(), Writer::new()?);
    let rng = Rng::new(seed);
    let mut torture = Torture {
        rng,
        writer,
        tally: Tally::default(),
        generator,
        archived: Vec::new(),
        delivered: Vec::new(),
        kills_since_verdict: 0,
        disturbances: seed as u32 % 9,
        cut_unread: false,
    };
    let result = torture.kill_often(kills).and_then(|()| torture.judge_journal(world));
    let result = result.and_then(|()| torture.tally.is_torture(kills));
    result.with_context(|| format!("so far: {:?}", torture.tally))?;
    let (requests, lost) = torture.writer.model.counts();
    eprintln!("{requests} requests exactly once, but for {lost} that were cut away unread, if at all");
    eprintln!("{:#?}", torture.tally);
    Ok(())
}

impl Torture {
    fn kill_often(&mut self, kills: u32) -> Result<()> {
        let mut sweep = Sweep::default();
        while self.tally.random + self.tally.injected < kills {
            if self.tally.injected < self.tally.random {
                sweep.kill(self)?;
            } else {
                self.kill_at_random()?;
            }
            self.autopsy()?;
            self.kills_since_verdict += 1;
            let much = self.writer.model.unsettled() > REFUSALS_BETWEEN_VERDICTS;
            if much || self.kills_since_verdict >= KILLS_BETWEEN_VERDICTS {
                self.judge()?;
                self.disturb()?;
            }
        }
        self.judge()
    }

    fn kill_at_random(&mut self) -> Result<()> {
        self.stir()?;
        let podsecd = Podsecd::start(None)?;
        for _ in 0..self.rng.within(0..4) {
            self.pause();
            self.stir()?;
        }
        self.pause();
        self.tally.random += 1;
        podsecd.kill()
    }

    /// A while in which podsecd starts, or works, or has nothing left to do.
    pub(crate) fn pause(&mut self) {
        let most = *self.rng.pick(&[500, 5_000, 20_000, 60_000]);
        sleep(Duration::from_micros(self.rng.within(0..most)));
    }

    /// Does something to the log that kube-apiserver does, too.
    pub(crate) fn stir(&mut self) -> Result<()> {
        match self.rng.within(0..100) {
            0..60 => {
                let count = self.rng.within(1..12);
                self.append(count)?;
            }
            60..65 => {
                let count = self.rng.within(300..800);
                self.append(count)?;
            }
            65..75 => {
                let event = self.generator.refusal(&mut self.rng);
                let at = self.rng.within(1..event.line.len() as u64) as usize;
                self.writer.append_half(event, at)?;
            }
            75..81 => {
                let event = self.generator.refusal(&mut self.rng);
                let at = self.rng.within(1..event.line.len() as u64) as usize;
                self.writer.tear(&event, at)?;
            }
            81..90 => {
                for _ in 0..self.rng.within(1..4) {
                    self.writer.rotate()?;
                    let count = self.rng.within(0..5);
                    self.append(count)?;
                }
            }
            90..94 => self.writer.compress()?,
            94..97 => self.writer.delete_read()?,
            _ => {
                let event = self.generator.large(1 << 20, &mut self.rng);
                self.writer.append(event)?;
            }
        }
        Ok(())
    }

    /// Writes so many requests.
    pub(crate) fn append(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            for event in self.generator.next(&mut self.rng) {
                self.writer.append(event)?;
            }
        }
        Ok(())
    }

    /// Writes what is still to come of requests, and a refusal at the end: what was read is checkpointed with it.
    pub(crate) fn append_end(&mut self) -> Result<()> {
        for event in self.generator.rest() {
            self.writer.append(event)?;
        }
        let last = self.generator.refusal(&mut self.rng);
        self.writer.append(last)?;
        Ok(())
    }

    /// After a death: tears forbidden.log's end, as a crash of the machine may, and takes old rotated ones away.
    pub(crate) fn autopsy(&mut self) -> Result<()> {
        let file = fs::metadata(forbidden_log()).ok();
        if let (Some(file), Some((inode, length))) = (file, Checkpoint::read().mark)
            && file.ino() == inode
            && file.len() > length
        {
            self.tally.unfinished += 1;
            if self.rng.percent(40) {
                self.tear_forbidden_log(length, file.len())?;
            }
        }
        for (number, path) in rotated()? {
            if number > 1 {
                self.archived.extend(keys(&path, false)?);
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Tears forbidden.log between what is checkpointed and its end.
    pub(crate) fn tear_forbidden_log(&mut self, from: u64, to: u64) -> Result<()> {
        if self.cut_unread {
            // The torn line would not come again.
            return Ok(());
        }
        self.tally.torn += 1;
        let length = self.rng.within(from..to);
        Ok(File::options().write(true).open(forbidden_log())?.set_len(length)?)
    }

    /// Lets podsecd catch up, kills it, and looks at forbidden.log.
    pub(crate) fn judge(&mut self) -> Result<()> {
        self.kills_since_verdict = 0;
        self.append_end()?;
        let mut podsecd = Podsecd::start(None)?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        self.writer.model.settle();
        self.cut_unread = false;
        podsecd.kill()?;
        self.autopsy()?;
        let mut found = self.archived.clone();
        found.extend(keys(&forbidden_log().with_extension("log.1"), false)?);
        found.extend(keys(&forbidden_log(), false)?);
        if let Err(difference) = self.writer.model.compare(&found) {
            bail!("forbidden.log is wrong ({} lines archived): {difference}", self.archived.len());
        }
        let mailed = self.writer.model.compare(&[self.delivered.clone(), unmailed()?].concat());
        self.delivered.extend(deliver()?);
        mailed.map_err(|difference| anyhow::anyhow!("digests and spool are wrong: {difference}"))
    }

    fn judge_journal(&mut self, world: &mut World) -> Result<()> {
        let (mut found, mut own) = (HashSet::new(), BTreeMap::<String, u32>::new());
        for entry in world.journal()? {
            match (entry.audit_id, entry.received) {
                (Some(id), Some(received)) => drop(found.insert(Key { id, received })),
                _ => *own.entry(entry.finding.unwrap_or_default()).or_default() += 1,
            }
        }
        let alarm = own.contains_key("self/forbidden-log-changed") && !self.tally.done.contains_key(CUT_UNREAD);
        self.tally.own = own;
        ensure!(!alarm, "nobody touched forbidden.log, and podsecd says that somebody did");
        self.writer.model.contained_in(&found).map_err(|missing| anyhow::anyhow!("in the journal, {missing}"))
    }
}
