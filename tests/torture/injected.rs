//! Kills at the k-th system call of one cycle, for each k.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::Result;

use crate::podsecd::{Checkpoint, Injection, Podsecd, configure, forbidden_log};
use crate::torture::Torture;
use crate::world::{STATE, fill, wait_until};

const FORBIDDEN_LOG: &str = "/var/lib/podsecd/forbidden.log";
const CHECKPOINT: &str = "/var/lib/podsecd/checkpoint.new";

/// Where a cycle is cut off. Without a path each thread counts for itself: the main thread writes status and journal
/// entries (which are sent with write(2)), the ledger forbidden.log and checkpoint.
pub(crate) const TARGETS: [(&str, Option<&str>); 8] = [
    ("write", Some(FORBIDDEN_LOG)),
    ("fdatasync", Some(FORBIDDEN_LOG)),
    ("write", Some(CHECKPOINT)),
    ("fsync", None),
    ("rename", None),
    ("ftruncate", None),
    ("write", None),
    ("openat", Some(STATE)),
];

/// From this k on not each is tried: an entry of the journal is like the one before.
const EACH: u32 = 16;

/// The name of a target, for the summary.
pub(crate) fn name((call, path): (&str, Option<&str>)) -> String {
    format!("{call} {}", path.unwrap_or_default())
}

/// What a cycle does after its checkpoint takes less.
const END_OF_CYCLE: Duration = Duration::from_millis(50);

/// Goes through all targets, again and again.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    target: usize,
    former_k: u32,
}

impl Sweep {
    /// The next kill.
    ///
    /// # Errors
    /// podsecd ended by itself, or does not catch up.
    pub(crate) fn kill(&mut self, torture: &mut Torture) -> Result<()> {
        let (call, path) = TARGETS[self.target];
        let k = self.former_k + 1 + self.former_k / EACH;
        let full = call == "ftruncate" && self.prepare_cut(torture)?;
        if torture.rng.percent(50) {
            torture.stir()?;
        }
        let count = torture.rng.within(2..8);
        torture.append(count)?;
        torture.append_end()?;
        // So that the renames of a rotation are among those of the cycle.
        let rotates = call == "rename" && torture.writer.model.unsettled() < 300;
        if rotates {
            configure("4KiB", 6)?;
        }
        let died = run(Injection { call, path, k }, full)?;
        configure("128KiB", 12)?;
        torture.tally.count(died);
        if died {
            *torture.tally.reached.entry(name((call, path))).or_default() += 1;
            self.former_k = k;
        } else {
            (self.target, self.former_k) = ((self.target + 1) % TARGETS.len(), 0);
        }
        Ok(())
    }

    /// A cut is made where an end was torn, and where the disk is full: true if it is to be.
    fn prepare_cut(&self, torture: &mut Torture) -> Result<bool> {
        if torture.rng.percent(50) {
            return Ok(true);
        }
        torture.append_end()?;
        let died = run(Injection { call: "fdatasync", path: Some(FORBIDDEN_LOG), k: 1 }, false)?;
        torture.tally.count(died);
        let length = fs::metadata(forbidden_log())?.len();
        match Checkpoint::read().mark {
            Some((inode, mark)) if inode == fs::metadata(forbidden_log())?.ino() && mark < length => {
                torture.tear_forbidden_log(mark, length)?;
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Kills podsecd again and again while it works on a backlog of several cycles, which are cut otherwise at each start:
/// what forbidden.log has already is then yielded again in pieces.
///
/// # Errors
/// podsecd ended by itself, or does not catch up.
pub(crate) fn kill_over_a_backlog(torture: &mut Torture) -> Result<()> {
    torture.append(1200)?;
    torture.append_end()?;
    for kill in 0..8 {
        // First lines that no checkpoint knows, then a checkpoint in the midst of them.
        let renames = ("rename", Some(CHECKPOINT));
        let ((call, path), k) = if kill % 2 == 0 {
            (*torture.rng.pick(&[TARGETS[1], TARGETS[2], TARGETS[3], renames]), torture.rng.within(1..4) as u32)
        } else {
            (renames, 2)
        };
        let died = run(Injection { call, path, k }, false)?;
        torture.tally.count(died);
        torture.autopsy()?;
    }
    Ok(())
}

/// Runs podsecd until it dies or has caught up; true if it died by the injection.
fn run(injection: Injection, full: bool) -> Result<bool> {
    let filler = if full { Some(fill(STATE)?) } else { None };
    let mut podsecd = Podsecd::start(Some(injection))?;
    if let Some(filler) = filler {
        let mut dead = Ok(false);
        wait_until(Duration::from_millis(300), || {
            dead = podsecd.is_dead();
            !matches!(dead, Ok(false))
        });
        fs::remove_file(filler)?;
        dead?;
    }
    let mut died = podsecd.wait_caught_up();
    // A rotation comes after the checkpoint.
    wait_until(END_OF_CYCLE, || {
        if matches!(died, Ok(false)) {
            died = podsecd.is_dead();
        }
        !matches!(died, Ok(false))
    });
    podsecd.kill()?;
    died
}
