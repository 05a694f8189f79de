//! Mail: podsecd and podsecd-mail are killed at each step of a digest (render, freeze, deliver, record, remove), while the
//! server accepts, refuses, hangs, and closes.
//!
//! What must hold: the digests, each Message-ID counted once, and what the server refused and is set aside, hold every
//! refused request exactly once and in order, together with what is left in forbidden.log; and every test alert once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use podsecd::control::{self, Answer, Request};

use crate::events::Generator;
use crate::model::Key;
use crate::podsecd::{Checkpoint, Injection, Podsecd, forbidden_log, has_caught_up, key, keys, live};
use crate::rng::Rng;
use crate::smtp::{Does, Script, Smtp, Stage};
use crate::world::{CONFIG, World, wait_until};
use crate::writer::Writer;

const OUTBOX: &str = "/var/lib/podsecd/outbox";
const NEW: &str = "/var/lib/podsecd/outbox/new";
const REST: &str = "/var/lib/podsecd/forbidden.log.new";

/// Where podsecd is cut off.
const OF_PODSECD: [(&str, Option<&str>); 9] = [
    ("openat", Some(OUTBOX)),
    ("write", Some(NEW)),
    ("fsync", Some(NEW)),
    ("rename", None),
    ("fsync", None),
    ("unlink", None),
    ("fsync", Some(REST)),
    ("rename", Some(REST)),
    ("getdents64", Some(OUTBOX)),
];
/// Where podsecd-mail is, or the process that makes one try.
const OF_MAIL: [(&str, Option<&str>); 6] =
    [("connect", None), ("sendto", None), ("recvfrom", None), ("rename", None), ("fsync", None), ("wait4", None)];

/// How long a process that is to be killed at a system call may take until there; if so many in a row do not reach theirs, the
/// machine is slow, and they may take twice that.
const REACH: Duration = Duration::from_millis(600);
const MOST_REACH: Duration = Duration::from_secs(5);
const MISSES: u32 = 8;
/// How long everything may take to be delivered when nothing is killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Kills between two verdicts.
const KILLS_BETWEEN_VERDICTS: u32 = 12;

/// One of so many digests is refused, with its attachment and without.
const REFUSED: u64 = 7;

/// Kills both that many times.
///
/// # Errors
/// What podsecd lost or doubled.
pub(crate) fn run(_: &mut World, seed: u64, kills: u32) -> Result<()> {
    let (calm, server) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(seed));
    let smtp = {
        let calm = Arc::clone(&calm);
        Smtp::start(move |message| behave(message, calm.load(Ordering::Relaxed), &server))
    };
    fs::write(
        CONFIG,
        format!(
            "[kubeapi]\naudit-log = \"{}\"\n[forbidden-log]\nmax-size = \"64MiB\"\n\
             [digest]\nperiod = \"100ms\"\n[mail]\nserver = \"{}\"\n",
            live().display(),
            smtp.address
        ),
    )?;
    let mut mailed = Mailed {
        rng: Rng::new(seed),
        generator: Generator::new(),
        writer: Writer::new()?,
        smtp,
        calm,
        podsecd: None,
        mail: None,
        alerts: Vec::new(),
        set_aside: BTreeMap::new(),
        sweep: [(0, 0); 2],
        reach: REACH,
        misses: 0,
        injected: 0,
        reached: BTreeMap::new(),
    };
    for kill in 0..kills {
        mailed.kill(kill % 2 == 0).with_context(|| format!("kill {kill}"))?;
        if kill % KILLS_BETWEEN_VERDICTS == KILLS_BETWEEN_VERDICTS - 1 {
            mailed.judge().with_context(|| format!("after kill {kill}"))?;
        }
    }
    mailed.judge()?;
    let taken = mailed.smtp.taken().len();
    let digests = mailed.digests()?.len();
    eprintln!("{digests} digests, {} of them set aside; {taken} messages taken", mailed.set_aside.len());
    eprintln!("{} of {kills} kills at system calls: {:#?}", mailed.injected, mailed.reached);
    ensure!(taken > 0 && digests >= taken / 2, "the server was hardly used");
    if kills >= 100 {
        ensure!(4 * mailed.injected >= kills, "only {} of {kills} kills were at system calls", mailed.injected);
        ensure!(!mailed.set_aside.is_empty() && !mailed.alerts.is_empty(), "nothing was refused, or nobody tested");
    }
    Ok(())
}

/// What the server does to a message, or at a connection.
fn behave(message: Option<&[u8]>, calm: bool, random: &AtomicU64) -> Script {
    if let Some(message) = message
        && Rng::new(number_of(message).unwrap_or(1)).next().is_multiple_of(REFUSED)
    {
        return Some((Stage::Dot, Does::Says("554 5.7.1 not that one\r\n")));
    }
    if calm {
        return None;
    }
    let mut rng = Rng::new(random.fetch_add(1, Ordering::Relaxed));
    let hangs = || Does::Hangs(Duration::from_millis(40));
    let (stage, does) = match (message, rng.within(0..100)) {
        (None, 0..6) => (Stage::Greeting, Does::Says("421 4.3.2 not now\r\n")),
        (None, 6..12) => (Stage::Recipient, Does::Says("451 4.7.1 greylisted\r\n")),
        (None, 12..16) => (Stage::Greeting, hangs()),
        (None, 16..20) => (Stage::Data, Does::Closes),
        (None, 20..22) => (Stage::Hello, Does::Floods(b"250-and so on\r\n")),
        (Some(_), 0..10) => (Stage::Dot, Does::TakesAndCloses),
        (Some(_), 10..16) => (Stage::Dot, Does::Says("452 4.3.1 disk full\r\n")),
        (Some(_), 16..22) => (Stage::Dot, hangs()),
        _ => return None,
    };
    Some((stage, does))
}

/// The number of the digest.
fn number_of(message: &[u8]) -> Option<u64> {
    id_of(message)?.split('.').nth(1)?.parse().ok()
}

fn id_of(message: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(message);
    text.lines().find_map(|line| line.strip_prefix("Message-ID: ")).map(str::to_owned)
}

struct Mailed {
    rng: Rng,
    generator: Generator,
    writer: Writer,
    smtp: Smtp,
    /// The server is as it should be.
    calm: Arc<AtomicBool>,
    podsecd: Option<Podsecd>,
    mail: Option<Podsecd>,
    /// Test alerts that podsecd has confirmed.
    alerts: Vec<String>,
    /// What was refused and set aside, by number; its files were taken away.
    set_aside: BTreeMap<u64, Vec<u8>>,
    /// For each of both: the target, and the last k.
    sweep: [(usize, u32); 2],
    reach: Duration,
    misses: u32,
    injected: u32,
    reached: BTreeMap<String, u32>,
}

impl Mailed {
    /// Kills one of both, at a random instant or at a system call.
    fn kill(&mut self, podsecd: bool) -> Result<()> {
        self.stir()?;
        let injection = self.rng.percent(60).then(|| self.next_injection(podsecd));
        if injection.is_some() || self.podsecd.is_none() {
            self.stop(podsecd)?;
            self.start(podsecd, injection)?;
        }
        self.start_missing()?;
        if self.rng.percent(25) {
            self.test_alert();
        }
        let died = match injection {
            Some(_) => self.wait_for_death(podsecd)?,
            None => {
                let most = *self.rng.pick(&[2_000, 50_000, 150_000]);
                sleep(Duration::from_micros(self.rng.within(0..most)));
                false
            }
        };
        if let Some(Injection { call, path, .. }) = injection {
            self.note_injection(podsecd, died, &format!("{call} {}", path.unwrap_or_default()));
        }
        self.stop(podsecd)
    }

    fn stir(&mut self) -> Result<()> {
        for _ in 0..self.rng.within(1..8) {
            let event = self.generator.alike(&mut self.rng);
            self.writer.append(event)?;
        }
        if self.rng.percent(5) {
            self.writer.rotate()?;
        }
        Ok(())
    }

    fn next_injection(&self, podsecd: bool) -> Injection {
        let (target, k) = self.sweep[usize::from(podsecd)];
        let targets: &[_] = if podsecd { &OF_PODSECD } else { &OF_MAIL };
        let (call, path) = targets[target % targets.len()];
        Injection { call, path, k: k + 1 }
    }

    /// The next k, or the next target where there was no such call.
    fn note_injection(&mut self, podsecd: bool, died: bool, name: &str) {
        let (target, k) = &mut self.sweep[usize::from(podsecd)];
        if died && *k < 24 {
            *k += 1;
        } else {
            (*target, *k) = (*target + 1, 0);
        }
        self.misses = if died { 0 } else { self.misses + 1 };
        if self.misses == MISSES {
            (self.reach, self.misses) = ((2 * self.reach).min(MOST_REACH), 0);
        }
        if died {
            self.injected += 1;
            *self.reached.entry(name.to_owned()).or_default() += 1;
        }
    }

    fn start(&mut self, podsecd: bool, injection: Option<Injection>) -> Result<()> {
        if podsecd {
            self.podsecd = Some(Podsecd::start(injection)?);
        } else {
            self.mail = Some(Podsecd::start_as(&["mail"], injection)?);
        }
        Ok(())
    }

    /// Starts what does not run, as systemd would: podsecd-mail when a digest waits.
    fn start_missing(&mut self) -> Result<()> {
        if self.podsecd.is_none() {
            self.start(true, None)?;
        }
        // It ends by itself when nothing waits.
        let ended = self.mail.as_mut().is_none_or(|mail| !matches!(mail.is_dead(), Ok(false)));
        if ended && outbox(".eml")?.next().is_some() {
            self.start(false, None)?;
        }
        Ok(())
    }

    fn stop(&mut self, podsecd: bool) -> Result<()> {
        if podsecd {
            return self.podsecd.take().map_or(Ok(()), Podsecd::kill);
        }
        // It may have ended by itself.
        self.mail.take();
        Ok(())
    }

    fn wait_for_death(&mut self, podsecd: bool) -> Result<bool> {
        let mut dead = Ok(false);
        wait_until(self.reach, || {
            let victim = if podsecd { &mut self.podsecd } else { &mut self.mail };
            dead = victim.as_mut().map_or(Ok(false), Podsecd::is_dead);
            !matches!(dead, Ok(false))
        });
        // podsecd-mail ends by itself, too.
        if podsecd { dead } else { Ok(matches!(dead, Ok(true))) }
    }

    fn test_alert(&mut self) {
        // It may be killed before it answers.
        let asked = control::ask(Path::new(control::SOCKET), &Request::TestAlert);
        if let Ok(Ok(Answer::TestAlert(subject))) = asked {
            self.alerts.push(subject);
        }
    }

    /// Lets both do their work, and looks at what the server took.
    fn judge(&mut self) -> Result<()> {
        self.calm.store(true, Ordering::Relaxed);
        let last = self.generator.alike(&mut self.rng);
        self.writer.append(last)?;
        self.stop(true)?;
        self.stop(false)?;
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            self.start_missing()?;
            let dead = self.podsecd.as_mut().map_or(Ok(false), Podsecd::is_dead)?;
            ensure!(!dead, "somebody else killed podsecd");
            let waiting = outbox(".eml")?.chain(outbox(".sent")?).count();
            if has_caught_up() && waiting == 0 && !Checkpoint::read().has_undelivered {
                break;
            }
            if std::time::Instant::now() > end {
                bail!("not delivered: {waiting} wait, caught up: {}, {:?}", has_caught_up(), Checkpoint::read());
            }
            sleep(Duration::from_millis(5));
        }
        self.stop(true)?;
        self.stop(false)?;
        self.calm.store(false, Ordering::Relaxed);
        for path in outbox(".refused")? {
            let message = fs::read(&path)?;
            self.set_aside.insert(number_of(&message).context("no number")?, message);
            fs::remove_file(path)?;
        }
        self.compare()
    }

    /// All digests by number.
    fn digests(&self) -> Result<BTreeMap<u64, Vec<u8>>> {
        let mut digests = self.set_aside.clone();
        for message in self.smtp.taken() {
            let number = number_of(&message).context("a message without a number")?;
            if let Some(former) = digests.insert(number, message.clone()) {
                ensure!(
                    former == message,
                    "digest {number} came with other bytes the second time, or was refused, too"
                );
            }
        }
        Ok(digests)
    }

    fn compare(&self) -> Result<()> {
        let (mut found, mut alerts) = (Vec::new(), Vec::new());
        let digests = self.digests()?;
        for (number, message) in &digests {
            let (lines, text) = read(message).with_context(|| format!("digest {number}"))?;
            found.extend(lines);
            alerts.extend(subjects(&text));
        }
        let missing = (1..=digests.len() as u64).find(|number| !digests.contains_key(number));
        ensure!(missing.is_none(), "digest {missing:?} of {} is not there", digests.len());
        found.extend(keys(&forbidden_log(), false)?);
        self.writer
            .model
            .compare(&found)
            .map_err(|difference| anyhow::anyhow!("the digests are wrong: {difference}"))?;
        for alert in &self.alerts {
            let count = alerts.iter().filter(|found| found == &alert).count();
            ensure!(count == 1, "`{alert}` is in {count} digests");
        }
        Ok(())
    }
}

/// What is in the outbox with that ending.
fn outbox(ending: &'static str) -> Result<impl Iterator<Item = PathBuf>> {
    let entries = match fs::read_dir(OUTBOX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    Ok(paths.filter(move |path| path.to_string_lossy().ends_with(ending)))
}

/// The requests that are attached to a digest, and its text; read by another parser than ours.
///
/// # Errors
/// It is no message, or what is attached are no lines of forbidden.log.
pub(crate) fn read(message: &[u8]) -> Result<(Vec<Key>, String)> {
    let mail = mailparse::parse_mail(message)?;
    let Some([text, attached]) = mail.subparts.first_chunk() else { return Ok((Vec::new(), mail.get_body()?)) };
    let mut lines = attached.get_body_raw()?;
    if attached.ctype.mimetype == "application/gzip" {
        let mut plain = Vec::new();
        GzDecoder::new(lines.as_slice()).read_to_end(&mut plain)?;
        lines = plain;
    }
    // Mail ends lines in its own way.
    let lines: Vec<u8> = lines.into_iter().filter(|byte| *byte != b'\r').collect();
    let keys = lines.split_inclusive(|byte| *byte == b'\n').map(key).collect::<Result<_>>()?;
    Ok((keys, text.get_body()?))
}

/// The test alerts that a text tells of.
fn subjects(text: &str) -> Vec<String> {
    let words: Vec<_> = text.split_whitespace().filter(|word| *word != "|").collect();
    let alert =
        |pair: &[&str]| (pair[0] == "test").then(|| pair[1].strip_suffix(':')).flatten().map(|it| format!("test {it}"));
    words.windows(2).filter_map(alert).collect()
}
