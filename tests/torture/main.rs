//! Torture: the real podsecd is killed again and again, while the audit log, its disks and forbidden.log are mistreated.
//!
//! Every refused request must stand exactly once and in order in forbidden.log, and at least once in the journal.
//! `PODSECD_TORTURE_KILLS` says how often it is killed (200), `PODSECD_TORTURE_SEED` repeats what was written and done
//! (not the instants), `PODSECD_TORTURE_KEEP=1` keeps the files of a failure. Without root the trials are skipped.

mod disturb;
mod events;
mod injected;
mod mailed;
mod meddled;
mod model;
mod podsecd;
mod rng;
#[path = "../smtp.rs"]
mod smtp;
mod torture;
mod world;
mod writer;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use world::World;

/// Name, trial, and which part of the kills it takes.
type Row = (&'static str, fn(&mut World, u64, u32) -> Result<()>, u32);

const TRIALS: &[Row] = &[
    ("nothing_is_lost_or_doubled_by_kills", torture::run, 1),
    ("each_finding_is_in_one_digest_whatever_is_killed", mailed::run, 2),
    ("what_others_do_to_forbidden_log_is_told_and_survived", meddled::run, 5),
];

const KILLS: &str = "PODSECD_TORTURE_KILLS";
const SEED: &str = "PODSECD_TORTURE_SEED";

/// In one world at most so many kills: its journal grows.
const KILLS_OF_A_WORLD: u32 = 500;

fn main() {
    if let Some(name) = std::env::var_os(world::INSIDE) {
        let code = match inside(&name.to_string_lossy()) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error:#}");
                1
            }
        };
        std::process::exit(code);
    }
    let arguments = Arguments::from_args();
    let missing = world::missing();
    // Not on standard output: nextest reads our list there.
    if let Some(reason) = &missing {
        eprintln!("the torture is skipped: {reason}");
    }
    let trial = |&(name, _, part): &Row| {
        let run = move || outside(name, part).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TRIALS.iter().map(trial).collect()).exit();
}

/// Runs a trial in one world after the other.
fn outside(name: &str, part: u32) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = number(SEED)?.unwrap_or(now.as_secs());
    let mut kills = (number(KILLS)?.unwrap_or(200) as u32).div_ceil(part);
    while kills > 0 {
        let here = kills.min(KILLS_OF_A_WORLD);
        world::enter(name, &[(SEED, seed.to_string()), (KILLS, here.to_string())])?;
        kills -= here;
        seed += 1;
    }
    Ok(())
}

/// Runs a trial in this world.
fn inside(name: &str) -> Result<()> {
    let Some((_, trial, _)) = TRIALS.iter().find(|(known, ..)| *known == name) else { bail!("no trial `{name}`") };
    let (Some(seed), Some(kills)) = (number(SEED)?, number(KILLS)?) else { bail!("no seed") };
    let start = Instant::now();
    let mut world = World::new(8 << 20)?;
    let result = trial(&mut world, seed, kills as u32);
    eprintln!("{name}: {SEED}={seed} {KILLS}={kills}, {:.1} s", start.elapsed().as_secs_f32());
    if result.is_err() {
        world.keep(&format!("{name}-{seed}"));
    }
    result
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Some(value) = std::env::var_os(variable) else { return Ok(None) };
    let number = value.to_str().and_then(|value| value.parse().ok());
    number.map(Some).with_context(|| format!("{variable} is no number"))
}
