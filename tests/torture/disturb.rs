//! What is done to the files between the kills, beyond what kube-apiserver does itself: cuts, full disks, giant lines.

use std::fs;

use anyhow::{Result, ensure};

use crate::events::{Event, LONGEST};
use crate::injected;
use crate::podsecd::{Podsecd, live};
use crate::torture::Torture;
use crate::world::{STATE, fill};

/// What was written of it and not checkpointed will not come again, so that podsecd must take it for somebody else's.
pub(crate) const CUT_UNREAD: &str = "cut before it was read";

impl Torture {
    /// Does something to the files that kube-apiserver does not do. Everything is reported, podsecd is down.
    pub(crate) fn disturb(&mut self) -> Result<()> {
        self.disturbances += 1;
        // A log that is cut to nothing and begins with the same line again is the log that was cut behind that line.
        self.generator.forget_last();
        let done = match self.disturbances % 9 {
            0 => {
                self.writer.cut(0)?;
                "cut while down"
            }
            1 => {
                self.writer.begin_anew()?;
                "begun anew, same inode"
            }
            2 => self.cut_while_running(true)?,
            3 => self.cut_while_running(false)?,
            4 => self.fill_state()?,
            5 => {
                let events: Vec<Event> = (0..30).map(|_| self.generator.refusal(&mut self.rng)).collect();
                self.writer.fill_up(events)?;
                "log's disk full"
            }
            6 => self.cut_unread()?,
            7 => {
                injected::kill_over_a_backlog(self)?;
                "killed over a backlog"
            }
            _ => {
                let event = self.generator.large(LONGEST, &mut self.rng);
                self.writer.append(event)?;
                "line of 16 MiB"
            }
        };
        *self.tally.done.entry(done).or_default() += 1;
        Ok(())
    }

    fn cut_while_running(&mut self, whole: bool) -> Result<&'static str> {
        self.append_end()?;
        let mut podsecd = Podsecd::start(None)?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        self.writer.model.settle();
        let size = fs::metadata(live())?.len();
        // podsecd knows the file's last lines, and where they stand.
        let length = if whole { 0 } else { self.rng.within(size.saturating_sub(64 << 10)..size) };
        self.writer.cut(length)?;
        self.append(5)?;
        if !whole {
            // Where it was cut nobody knows who was not there.
            self.append_end()?;
            ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        }
        self.pause();
        podsecd.kill()?;
        self.tally.random += 1;
        self.autopsy()?;
        Ok(if whole { "cut while running" } else { "cut in part while running" })
    }

    /// podsecd's disk is full for a while.
    fn fill_state(&mut self) -> Result<&'static str> {
        let running = if self.rng.percent(50) { Some(Podsecd::start(None)?) } else { None };
        self.pause();
        let filler = fill(STATE)?;
        self.append(20)?;
        let mut podsecd = running.map_or_else(|| Podsecd::start(None), Ok)?;
        self.pause();
        self.stir()?;
        if self.rng.percent(50) {
            podsecd.kill()?;
            self.tally.random += 1;
            self.autopsy()?;
            podsecd = Podsecd::start(None)?;
            self.pause();
        }
        fs::remove_file(filler)?;
        self.append_end()?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        podsecd.kill()?;
        self.tally.random += 1;
        self.autopsy()?;
        Ok("podsecd's disk full")
    }

    /// The log is cut before it was read for sure; what was in it may be lost.
    fn cut_unread(&mut self) -> Result<&'static str> {
        let podsecd = Podsecd::start(None)?;
        self.append(50)?;
        self.append_end()?;
        self.pause();
        self.writer.model.lose_unsettled();
        self.generator.forget_last();
        self.cut_unread = true;
        self.writer.cut(0)?;
        podsecd.kill()?;
        self.tally.random += 1;
        self.autopsy()?;
        Ok(CUT_UNREAD)
    }
}
