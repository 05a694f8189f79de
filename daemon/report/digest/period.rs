//! The digest period: from the first finding that no digest holds to the digest that does.
//!
//! A digest is frozen when the checkpoint covers just what its spool holds, and nothing is reported before the checkpoint
//! says so. So a restart that finds a frozen digest with the number of the present period knows that the period ended
//! with that checkpoint.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::deadline::Deadline;
use super::mail::{Lines, message};
use super::outbox::{Fate, Outbox};
use super::spool::{self, Carried, Spool, Urgency};
use super::summary::Summary;
use super::{Occasion, summarize};
use crate::config::Config;
use crate::report::Cycle;
use crate::report::checkpoint::State;
use crate::report::status::MailStatus;
use crate::score::rfc3339;

/// So many digests that were refused are named in the status.
const MAX_REFUSED: usize = 100;

/// A digest that is frozen, and what of it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undelivered {
    /// Its number.
    number: u64,
    /// How many bytes had been written to forbidden.log when its period began, and when it was frozen.
    start: u64,
    end: u64,
    /// All of these lines are attached to it.
    whole: bool,
    /// How many digests had been dropped by then, of which it tells.
    told: u64,
    /// What became of it, while one before it waits: its lines can be removed, or not.
    done: Option<bool>,
}

/// What a restart needs to know of digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// How far the spool is written.
    pub spool: spool::Mark,
    /// When the period began, if it has.
    pub began: Option<SystemTime>,
    /// The highest urgency of what was found in it.
    #[serde(default)]
    pub urgency: Urgency,
    /// How many digests were dropped.
    pub dropped: u64,
    /// Numbers of those of them that may still be there.
    #[serde(default)]
    pub dropping: Vec<u64>,
    /// Of how many of those a digest told that was delivered.
    #[serde(default)]
    pub told: u64,
    /// Digests that are frozen, the oldest first.
    pub undelivered: VecDeque<Undelivered>,
    /// What was written to forbidden.log before this number of bytes is delivered.
    pub delivered_end: u64,
    /// What was written from this number of bytes on is partly in no mail, and stays until it is rotated.
    #[serde(default)]
    pub held: Option<u64>,
    /// How many bytes had been written to forbidden.log when the last digest was frozen that does not wait any more.
    #[serde(default)]
    pub covered: u64,
    /// When the last digest was made; before the first one, when podsecd was first started.
    #[serde(default)]
    pub last: Option<SystemTime>,
    /// The last that was delivered, and when that was recorded.
    #[serde(default)]
    pub delivered: Option<(u64, SystemTime)>,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark {
            spool: spool::Mark::at(1),
            began: None,
            urgency: Urgency::default(),
            dropped: 0,
            dropping: Vec::new(),
            told: 0,
            undelivered: VecDeque::new(),
            delivered_end: 0,
            held: None,
            covered: 0,
            last: None,
            delivered: None,
        }
    }
}

impl Mark {
    /// How many digests were dropped of which no digest has told.
    pub fn untold(&self) -> u64 {
        self.dropped.saturating_sub(self.told)
    }
}

/// The present period.
#[derive(Debug)]
pub struct Period {
    directory: PathBuf,
    host: String,
    spool: Spool,
    /// What is left to the next period, while that is being done.
    carried: Option<Carried>,
    outbox: Outbox,
    dropped: u64,
    /// Digests that count as dropped, and are still to be removed.
    dropping: Vec<u64>,
    told: u64,
    deadline: Deadline,
    undelivered: VecDeque<Undelivered>,
    delivered_end: u64,
    held: Option<u64>,
    /// How many bytes had been written to forbidden.log when the last digest was frozen that does not wait any more.
    covered: u64,
    last: SystemTime,
    delivered: Option<(u64, SystemTime)>,
}

impl Period {
    /// The period as it was at the mark; `written` is how many bytes had then been written to forbidden.log.
    ///
    /// # Errors
    /// Those of the spool and the outbox; may be tried again.
    pub fn open(directory: &Path, outbox: &Path, mark: Mark, written: u64, config: &Config) -> io::Result<Period> {
        let outbox = Outbox::open(outbox)?;
        let frozen = outbox.holds(mark.spool.number)?;
        let spool = if frozen { spool::Mark::at(mark.spool.number + 1) } else { mark.spool };
        let spool = Spool::open(directory, spool)?;
        let (urgency, began) = if frozen { Default::default() } else { (mark.urgency, mark.began) };
        let last = mark.last.filter(|_| spool.mark().number > 1);
        let mut deadline = Deadline::new(urgency, began, last);
        deadline.note(spool.kept);
        if began.is_some() {
            // An earlier version did not say how urgent it was.
            deadline.note(Urgency::Period);
        }
        let mut period = Period {
            directory: directory.to_path_buf(),
            host: host(),
            spool,
            carried: None,
            outbox,
            dropped: mark.dropped,
            dropping: mark.dropping,
            told: mark.told,
            deadline,
            undelivered: mark.undelivered,
            delivered_end: mark.delivered_end,
            held: mark.held,
            covered: mark.covered,
            last: mark.last.unwrap_or_else(SystemTime::now),
            delivered: mark.delivered,
        };
        if frozen {
            // It was frozen with just this checkpoint.
            let attached = summarize(&spool::path(directory, mark.spool.number));
            let whole = attached.is_ok_and(|(summary, lines)| is_whole(&summary, &lines, mark.spool.left_out));
            period.note_frozen(mark.spool.number, written, whole);
        }
        period.remove_dropped()?;
        period.begin(config);
        Ok(period)
    }

    /// What a restart needs to know.
    pub fn mark(&self) -> Mark {
        let (urgency, began) = self.deadline.mark();
        Mark {
            spool: self.spool.mark(),
            began,
            urgency,
            dropped: self.dropped,
            dropping: self.dropping.clone(),
            told: self.told,
            undelivered: self.undelivered.clone(),
            delivered_end: self.delivered_end,
            held: self.held,
            covered: self.covered,
            last: Some(self.last),
            delivered: self.delivered,
        }
    }

    /// When it is to end, if there is something to say. History that is still being read is not waited for: whoever keeps
    /// podsecd from reading on must not keep it from mailing.
    pub fn due(&self) -> Option<Instant> {
        self.deadline.due().map(|(due, _)| due)
    }

    /// Whether there is something to say.
    pub fn has_something(&self) -> bool {
        self.spool.mark().length > 0 || self.spool.mark().left_out > 0
    }

    /// For the status.
    ///
    /// # Errors
    /// Those of readdir(3).
    pub fn status(&self) -> io::Result<MailStatus> {
        let frozen = self.outbox.frozen()?;
        let due = self.deadline.due().filter(|_| self.has_something());
        Ok(MailStatus {
            next: self.spool.mark().number,
            due: due.map(|(_, time)| rfc3339(time).into_owned()),
            waiting: frozen.len() as u64,
            waiting_since: frozen.first().map(|frozen| rfc3339(frozen.time).into_owned()),
            delivered: self.delivered.map(|(number, _)| number),
            delivered_at: self.delivered.map(|(_, time)| rfc3339(time).into_owned()),
            dropped: self.mark().untold(),
            refused: {
                let mut refused = self.outbox.refused()?;
                refused.split_off(refused.len().saturating_sub(MAX_REFUSED))
            },
            left_out: self.spool.mark().left_out,
        })
    }

    /// Puts what the cycles found into the spool; all of it, or nothing.
    ///
    /// # Errors
    /// Those of [`Spool::append`].
    pub fn append<'c>(&mut self, cycles: impl Iterator<Item = &'c Cycle> + Clone, config: &Config) -> io::Result<()> {
        self.spool.append(cycles.clone())?;
        let found = cycles.flat_map(|cycle| &cycle.findings).map(|reported| &reported.scored);
        found.for_each(|scored| self.deadline.note(Urgency::of(scored.finding.id.0, scored.level)));
        self.begin(config);
        Ok(())
    }

    /// Begins the period if there is something to say and it has not begun. If there is nothing, it ends when that is to
    /// be said.
    pub fn begin(&mut self, config: &Config) {
        self.deadline.set(&config.digest, self.last);
    }

    /// Another configuration is in force: a period that is shorter now ends earlier.
    pub fn configure(&mut self, config: &Config) {
        self.deadline.set_again(&config.digest, self.last);
    }

    /// Ends later: it cannot be frozen now.
    pub fn postpone(&mut self) {
        self.deadline.postpone();
    }

    /// The checkpoint knows of all that was found.
    pub fn cover(&mut self) {
        self.spool.cover();
    }

    /// Takes out what is in no checkpoint and would come again after a restart, so that the period can end without it.
    ///
    /// # Errors
    /// As [`Spool::open`]; may be tried again.
    pub fn set_apart(&mut self) -> io::Result<()> {
        if self.carried.is_none() {
            self.carried = Some(self.spool.carried()?);
        }
        self.spool.drop_carried(&self.directory)
    }

    /// Takes in what was set apart: into the next period, or into this one if it did not end. True if there is something.
    ///
    /// # Errors
    /// As [`Spool::append`]; may be tried again.
    pub fn take_back(&mut self, config: &Config) -> io::Result<bool> {
        let any = self.carried.as_ref().is_some_and(|carried| carried.urgency.is_some());
        if let Some(carried) = &self.carried {
            self.spool.take_carried(carried)?;
            self.deadline.note(carried.urgency.unwrap_or_default());
            self.begin(config);
        }
        self.carried = None;
        Ok(any)
    }

    /// Renders and freezes the digest. To be called when the checkpoint covers just what the spool holds; `end` is how
    /// many bytes were written to forbidden.log.
    ///
    /// # Errors
    /// What keeps it from being rendered or written; then it is not frozen.
    pub fn freeze(&mut self, state: &State, end: u64, config: &Config) -> anyhow::Result<()> {
        let (now, number) = (SystemTime::now(), self.spool.mark().number);
        let occasion = Occasion {
            number,
            host: &self.host,
            now,
            since: self.last,
            state,
            config,
            dropped: self.mark().untold(),
            left_out: self.spool.mark().left_out,
        };
        let (summary, lines) = summarize(&spool::path(&self.directory, number)).context("cannot read the spool")?;
        let whole = is_whole(&summary, &lines, occasion.left_out);
        let message = message(&occasion, &summary, lines)?;
        self.outbox.freeze(number, &message)?;
        self.last = now;
        self.note_frozen(number, end, whole);
        Ok(())
    }

    fn note_frozen(&mut self, number: u64, end: u64, whole: bool) {
        let start = self.undelivered.back().map_or(self.covered, |last| last.end);
        self.undelivered.push_back(Undelivered { number, start, end, whole, told: self.dropped, done: None });
    }

    /// Goes on to the next period, after the digest was frozen. May be tried again.
    ///
    /// # Errors
    /// Those of fsync(2), open(2).
    pub fn begin_next(&mut self, config: &Config) -> io::Result<()> {
        self.outbox.sync()?;
        self.spool = Spool::open(&self.directory, spool::Mark::at(self.spool.mark().number + 1))?;
        self.deadline.end();
        self.begin(config);
        Ok(())
    }

    /// Makes room where too much waits: first goes what digests were made of, which only tells more than they do, then
    /// digests, those that nobody took for too long before; of all the oldest. Answers whether digests are dropped: when
    /// that is recorded, [`Period::remove_dropped`] removes them.
    ///
    /// # Errors
    /// Those of readdir(3) and unlink(2); may be tried again.
    pub fn drop_superfluous(&mut self, config: &Config) -> io::Result<bool> {
        let digests: u64 = self.outbox.size()?;
        let mut spools = spool::before(&self.directory, self.spool.mark().number)?;
        let mut size = digests + spools.values().sum::<u64>();
        while size > config.digest.outbox_size.get()
            && let Some((number, length)) = spools.pop_first()
        {
            spool::remove(&self.directory, number)?;
            size -= length;
        }
        for frozen in self.outbox.superfluous(&config.digest, SystemTime::now())? {
            if !self.dropping.contains(&frozen.number) {
                self.dropping.push(frozen.number);
                self.dropped += 1;
            }
        }
        Ok(!self.dropping.is_empty())
    }

    /// Removes the digests that were dropped, and what they were made of. To be called when that is recorded; a start does
    /// it again.
    ///
    /// # Errors
    /// Those of unlink(2); may be tried again.
    pub fn remove_dropped(&mut self) -> io::Result<()> {
        for number in &self.dropping {
            spool::remove(&self.directory, *number)?;
            self.outbox.remove(*number)?;
        }
        self.dropping.clear();
        Ok(())
    }

    /// Takes in which digests were delivered or set aside; answers whether there is anything to record.
    ///
    /// # Errors
    /// Those of readdir(3) and lstat(2); nothing is taken in then.
    pub fn collect(&mut self) -> io::Result<bool> {
        let mut any = !self.outbox.sent()?.is_empty();
        let fates = self.undelivered.iter().map(|known| self.outbox.fate(known.number));
        let fates = fates.collect::<io::Result<Vec<_>>>()?;
        for (known, fate) in self.undelivered.iter_mut().zip(fates).filter(|(known, _)| known.done.is_none()) {
            known.done = match fate {
                Fate::Waits => continue,
                Fate::Sent => Some(known.whole),
                // What was refused is kept aside with its lines.
                Fate::Refused => Some(true),
                Fate::SentBare | Fate::Gone => Some(false),
            };
            any = true;
            if matches!(fate, Fate::Sent | Fate::SentBare) {
                self.told = self.told.max(known.told);
                self.delivered = Some((known.number, SystemTime::now()));
            }
        }
        while let Some(first) = self.undelivered.front().copied()
            && let Some(removable) = first.done
        {
            self.undelivered.pop_front();
            self.covered = first.end;
            if !removable && first.start < first.end {
                self.held.get_or_insert(first.start);
            }
            let end = self.held.map_or(first.end, |held| held.min(first.end));
            self.delivered_end = self.delivered_end.max(end);
        }
        Ok(any)
    }

    /// Says how many bytes had been written before the first that still stands in forbidden.log: what was rotated away
    /// need not be held. True if something was.
    pub fn release(&mut self, first: u64) -> bool {
        let released = self.held.is_some_and(|held| held < first);
        if released {
            self.held = None;
            self.delivered_end = self.delivered_end.max(first.min(self.covered));
        }
        released
    }

    /// What was written to forbidden.log before this number of bytes is delivered.
    pub fn delivered_end(&self) -> u64 {
        self.delivered_end
    }

    /// Removes what was delivered, and what it was made of. To be called when that is recorded.
    ///
    /// # Errors
    /// Those of readdir(3) and unlink(2); may be tried again.
    pub fn forget_delivered(&mut self) -> io::Result<()> {
        // One that was delivered only after they were collected is recorded, and goes, the next time.
        let uncollected = |number| self.undelivered.iter().any(|known| known.number == number && known.done.is_none());
        for number in self.outbox.sent()?.into_iter().filter(|number| !uncollected(*number)) {
            // Whatever others call their files: a period that has not ended is in no digest.
            if number < self.spool.mark().number {
                spool::remove(&self.directory, number)?;
            }
            self.outbox.forget(number)?;
        }
        Ok(())
    }

    /// Has the digests tried again that were refused; answers how many they are.
    ///
    /// # Errors
    /// Those of readdir(3) and rename(2).
    pub fn retry_refused(&self) -> io::Result<usize> {
        self.outbox.retry_refused()
    }
}

/// Whether a digest has all the lines of its period.
fn is_whole(summary: &Summary, lines: &Lines, left_out: u64) -> bool {
    lines.unattached == 0 && summary.damaged == 0 && left_out == 0
}

/// The node's name, as it can stand in a mail address.
pub fn host() -> String {
    let name = nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned());
    let is_usable = |name: &String| lettre::Address::new("root", name).is_ok();
    name.ok().filter(is_usable).unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests;
