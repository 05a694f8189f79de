//! Others meddle with forbidden.log: they cut it, write into it, remove it or put something else in its place.
//!
//! What must hold: what they took away is gone by their hand, and what they wrote stays. Every request that is logged
//! afterwards stands exactly once and in order behind it, or in a new file where theirs is not a regular file with one
//! name. No link is followed: what it names stays as it is. An entry `self/forbidden-log-changed` of the journal tells.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::events::Generator;
use crate::model::Model;
use crate::podsecd::{Podsecd, configure, deliver, forbidden_log, keys, rotated};
use crate::rng::Rng;
use crate::world::{STATE, World};
use crate::writer::Writer;

/// What somebody does.
#[derive(Clone, Copy, Debug)]
enum Meddling {
    Empty,
    CutAtALine,
    CutInALine,
    AppendLines,
    AppendHalfALine,
    WriteOver,
    Remove,
    MoveAway,
    Copy,
    Symlink,
    DanglingSymlink,
    HardLink,
    Fifo,
    Directory,
}

const ALL: [Meddling; 14] = [
    Meddling::Empty,
    Meddling::CutAtALine,
    Meddling::CutInALine,
    Meddling::AppendLines,
    Meddling::AppendHalfALine,
    Meddling::WriteOver,
    Meddling::Remove,
    Meddling::MoveAway,
    Meddling::Copy,
    Meddling::Symlink,
    Meddling::DanglingSymlink,
    Meddling::HardLink,
    Meddling::Fifo,
    Meddling::Directory,
];

/// A line such as podsecd never writes.
const STRANGE: &[u8] = b"[\"somebody else's\"]\n";
/// What a link names.
const TARGET: &str = "/var/lib/target";

/// Meddles in all ways, while podsecd runs and while it was killed, again and again: with so many kills.
///
/// # Errors
/// What must hold does not.
pub(crate) fn run(world: &mut World, seed: u64, kills: u32) -> Result<()> {
    configure("1MiB", 3)?;
    let mut meddled = Meddled { rng: Rng::new(seed), generator: Generator::new(), writer: Writer::new()? };
    let mut told = 0;
    for round in 0..kills.div_ceil(2 * ALL.len() as u32) {
        for meddling in ALL {
            for running in [false, true] {
                let during = || {
                    format!("round {round}: {meddling:?} while podsecd {}", if running { "ran" } else { "was dead" })
                };
                meddled.once(meddling, running).with_context(during)?;
                let entries = world.journal()?;
                let tells =
                    |entry: &&crate::world::Entry| entry.finding.as_deref() == Some("self/forbidden-log-changed");
                let now = entries.iter().filter(tells).count();
                ensure!(now > told, "{}: the journal does not tell of it", during());
                told = now;
            }
        }
    }
    Ok(())
}

struct Meddled {
    rng: Rng,
    generator: Generator,
    writer: Writer,
}

impl Meddled {
    /// Meddles once and judges what comes of it.
    fn once(&mut self, meddling: Meddling, running: bool) -> Result<()> {
        self.begin()?;
        let mut podsecd = Some(self.caught_up()?);
        if !running {
            podsecd.take().map_or(Ok(()), Podsecd::kill)?;
        }
        let keep = self.meddle(meddling)?;
        self.writer.model = Model::default();
        // A line just like one before would be taken for that one, where the file is another one now.
        self.generator.forget_last();
        self.log()?;
        let mut podsecd = podsecd.map_or_else(|| Podsecd::start(None), Ok)?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        // The entry that tells of it is a cycle of its own.
        self.log()?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        podsecd.kill()?;
        self.judge(keep)
    }

    /// Ten requests are reported, and nothing is left of what was before.
    fn begin(&mut self) -> Result<()> {
        for (_, path) in rotated()? {
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path))?;
        }
        deliver()?;
        fs::write(TARGET, STRANGE)?;
        self.log()
    }

    fn log(&mut self) -> Result<()> {
        for _ in 0..10 {
            for event in self.generator.next(&mut self.rng) {
                self.writer.append(event)?;
            }
        }
        for event in self.generator.rest() {
            self.writer.append(event)?;
        }
        let last = self.generator.refusal(&mut self.rng);
        self.writer.append(last)?;
        Ok(())
    }

    fn caught_up(&mut self) -> Result<Podsecd> {
        let mut podsecd = Podsecd::start(None)?;
        ensure!(!podsecd.wait_caught_up()?, "somebody else killed podsecd");
        Ok(podsecd)
    }

    /// Does it; answers what must then stay at the beginning of the file.
    fn meddle(&mut self, meddling: Meddling) -> Result<Vec<u8>> {
        let (path, there) = (forbidden_log(), fs::read(forbidden_log())?);
        let ends: Vec<_> =
            there.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u64 + 1).collect();
        let file = File::options().append(true).open(&path)?;
        let (middle, inside) = (*self.rng.pick(&ends[..ends.len() - 1]), self.rng.within(3..STRANGE.len() as u64));
        match meddling {
            Meddling::Empty => file.set_len(0)?,
            Meddling::CutAtALine => file.set_len(middle)?,
            // Behind the timestamp: what could be the beginning of the next line, too, may be taken for it.
            Meddling::CutInALine => file.set_len(middle + 32 + inside)?,
            Meddling::AppendLines => (&file).write_all(&STRANGE.repeat(2))?,
            Meddling::AppendHalfALine => (&file).write_all(&STRANGE[..inside as usize])?,
            Meddling::WriteOver => fs::write(&path, STRANGE.repeat(there.len() / STRANGE.len() + 9))?,
            Meddling::Remove => fs::remove_file(&path)?,
            Meddling::MoveAway => fs::rename(&path, "/var/lib/podsecd/moved")?,
            Meddling::Copy => {
                fs::copy(&path, "/var/lib/podsecd/copy")?;
                fs::rename("/var/lib/podsecd/copy", &path)?;
            }
            Meddling::HardLink => {
                fs::remove_file(&path)?;
                fs::write("/var/lib/podsecd/other", STRANGE)?;
                fs::hard_link("/var/lib/podsecd/other", &path)?;
            }
            Meddling::Symlink | Meddling::DanglingSymlink | Meddling::Fifo | Meddling::Directory => {
                fs::remove_file(&path)?;
                put_in_place(meddling, &path)?;
            }
        }
        let regular = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        let one_name = !matches!(meddling, Meddling::HardLink);
        Ok(if regular && one_name { fs::read(&path)? } else { Vec::new() })
    }

    /// Whether what was logged since stands there, behind `keep`.
    fn judge(&self, mut keep: Vec<u8>) -> Result<()> {
        for (name, content) in [(TARGET, STRANGE), ("/var/lib/podsecd/other", STRANGE), ("/var/lib/nowhere", b"")] {
            ensure!(
                fs::read(name).unwrap_or(content.to_vec()) == content,
                "a link was followed: {name} was written to"
            );
        }
        ensure!(!PathBuf::from("/var/lib/nowhere").exists(), "a link was followed: a file was made behind it");
        if !keep.is_empty() && !keep.ends_with(b"\n") {
            keep.push(b'\n');
        }
        let there = fs::read(forbidden_log())?;
        let Some(new) = there.strip_prefix(keep.as_slice()) else {
            bail!("what was there did not stay: {}", String::from_utf8_lossy(&there))
        };
        let only = PathBuf::from(STATE).join("new");
        fs::write(&only, new)?;
        let found = keys(&only, false)?;
        fs::remove_file(only)?;
        self.writer.model.compare(&found).map_err(|difference| anyhow::anyhow!("forbidden.log is wrong: {difference}"))
    }
}

fn put_in_place(meddling: Meddling, path: &PathBuf) -> Result<()> {
    match meddling {
        Meddling::Symlink => symlink(TARGET, path)?,
        Meddling::DanglingSymlink => symlink("/var/lib/nowhere", path)?,
        Meddling::Fifo => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?,
        _ => fs::create_dir(path)?,
    }
    Ok(())
}
