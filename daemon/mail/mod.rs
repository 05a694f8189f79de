//! `podsecd mail`: the way of a digest from the outbox to its reader. A process of its own, with the network and without
//! podsecd's rights; systemd starts it when a digest waits (podsecd-mail.path), and it ends when none is left.
//!
//! `queue` remembers what was tried (pure), `attempt` makes one try in a further process, `deliver` is what that does,
//! `report` tells podsecd.

mod attempt;
mod deliver;
mod maildir;
mod message;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::queue::Queue;
use crate::checks::own::ids::{MAIL_FAILING, MAIL_REFUSED, MAIL_UNCONFIGURED};
use crate::config::{self, Config, Root, Transport};
use crate::finding::Kind;
use crate::helper::{Client, Condition, Report};
use crate::report::digest::OUTBOX;
use crate::report::digest::outbox::Outbox;
use crate::report::text::{one_line, shorten};

/// Between two looks for new digests while others wait.
const LOOK: Duration = Duration::from_secs(60);
/// How long podsecd may take to answer a report; it may be waiting for a disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Subject of the conditions.
const SUBJECT: &str = "mail";

/// What became of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The server took it.
    Taken,
    /// It will never take this message, and why.
    Refused(String),
    /// It may take this message later; and why not now.
    Later(String),
    /// It takes no message now, and why.
    Away(String),
    /// It was there, and takes no message now that it was offered this one; and why. That may be because of this one.
    Left(String),
}

/// Delivers what is in the outbox, the oldest first, and ends when nothing is left. A digest that is not taken does not
/// keep the next from it; a server that is away keeps all, in their order, but for one with which it went away.
///
/// # Errors
/// There is no outbox.
pub fn run(config: Option<&Path>, root: &Root) -> Result<()> {
    let outbox = Outbox::at(&root.path(OUTBOX));
    let (settings, queue) = (Config::default(), Queue::default());
    let unmarked = BTreeMap::new();
    let told = BTreeSet::new();
    let mut courier = Courier { settings, config, root, outbox, queue, unmarked, tried: false, told };
    loop {
        courier.settings = insist_on_configuration(config, root);
        if courier.mark_delivered() {
            courier.tell();
        }
        let waiting = insist(|| courier.outbox.frozen())?;
        if waiting.is_empty() {
            let Some(stranger) = insist(|| courier.outbox.stranger())? else { return Ok(()) };
            // podsecd-mail.path would start us again for it, at once and for ever.
            tracing::error!("{} is no digest and is in the way; move it out of the outbox", stranger.display());
            sleep(LOOK);
            continue;
        }
        let numbers = waiting.iter().map(|frozen| frozen.number).filter(|it| !courier.unmarked.contains_key(it));
        let numbers: Vec<_> = numbers.collect();
        // Before the first try nothing is known of how things are.
        if courier.queue.see(&numbers, Instant::now()) && courier.tried {
            courier.tell();
        }
        match courier.queue.next(Instant::now()) {
            Some(number) => courier.carry(number),
            // What is delivered and cannot be marked is not sent again; so this goes on.
            None if numbers.is_empty() && !courier.unmarked.is_empty() => {
                courier.tell();
                sleep(LOOK);
            }
            None => sleep(courier.queue.pause(Instant::now()).min(LOOK)),
        }
    }
}

/// Waits for an outbox that can be read: ending would forget what was delivered and is not marked as that. One that is not
/// there holds no digest.
fn insist<T>(look: impl Fn() -> io::Result<T>) -> Result<T> {
    loop {
        match look() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!("the outbox cannot be read; no digest is delivered until it can: {error}");
            }
            seen => return seen.context("there is no outbox"),
        }
        sleep(LOOK);
    }
}

/// Waits for a valid configuration: ending would only have systemd start us again for the digests that wait.
fn insist_on_configuration(config: Option<&Path>, root: &Root) -> Config {
    loop {
        match config::load(config, root) {
            Ok(config) => return config,
            Err(error) => {
                tracing::error!("the configuration is refused; no digest is delivered until it is mended: {error}");
            }
        }
        sleep(LOOK);
    }
}

/// `podsecd mail --deliver FILE`: one try, for [`run`]; also tells on standard output what became of it.
#[expect(clippy::print_stdout, reason = "the answer")]
pub fn deliver(file: &Path, bare: bool, config: Option<&Path>, root: &Root) -> Result<ExitCode> {
    attempt::limit();
    // Said as soon as it is so: nothing that the server does afterwards makes it undone.
    let answer = deliver::deliver(file, bare, &config::load(config, root)?, root, || println!("{}", attempt::TAKEN));
    let (code, why) = attempt::code(&answer);
    if answer != Answer::Taken {
        println!("{}", shorten(&one_line(why), attempt::MAX_WORDS));
    }
    Ok(ExitCode::from(code))
}

/// What delivers.
struct Courier<'a> {
    settings: Config,
    config: Option<&'a Path>,
    root: &'a Root,
    outbox: Outbox,
    queue: Queue,
    /// Digests that were delivered, and whether without attachment, of which the outbox could not be told.
    unmarked: BTreeMap<u64, bool>,
    /// A try has come to its end.
    tried: bool,
    /// Digests of which podsecd knows that they were refused, and that could not be set aside.
    told: BTreeSet<u64>,
}

impl Courier<'_> {
    /// Tries to deliver a digest.
    fn carry(&mut self, number: u64) {
        let bare = self.queue.is_bare(number);
        let mut answer = attempt::attempt(&self.outbox.path(number), bare, self.config, self.root);
        self.tried = true;
        if let Answer::Refused(why) = &answer
            && bare
            && let Err(error) = self.set_aside(number, why)
        {
            answer = Answer::Later(error);
        }
        match &answer {
            Answer::Taken => {
                self.unmarked.insert(number, bare);
                let _ = self.mark_delivered();
                tracing::info!(number, "digest {number} was delivered");
            }
            Answer::Refused(why) if bare => {
                tracing::error!(number, "digest {number} is refused for good and set aside: {}", one_line(why));
            }
            Answer::Refused(why) => {
                let why = one_line(why);
                tracing::warn!(number, "digest {number} is refused; it is tried once more without attachment: {why}");
            }
            Answer::Later(why) => {
                tracing::warn!(number, "digest {number} is not taken now and is tried again: {}", one_line(why));
            }
            Answer::Away(why) | Answer::Left(why) => {
                tracing::warn!("no digest can be delivered now; that is tried again: {}", one_line(why));
            }
        }
        self.queue.note(number, &answer, Instant::now());
        self.tell();
    }

    /// Tells the outbox what was delivered; true if that could not be told before, and all of it can now.
    fn mark_delivered(&mut self) -> bool {
        let outbox = &self.outbox;
        let waited = !self.unmarked.is_empty();
        self.unmarked.retain(|number, bare| match outbox.mark_sent(*number, *bare) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(number, "digest {number} was delivered, and cannot be marked as that: {error}");
                true
            }
            // One that is not there was dropped meanwhile.
            _ => false,
        });
        waited && self.unmarked.is_empty()
    }

    /// Sets a refused digest aside. First podsecd has it for sure: after that nothing tries this digest any more.
    fn set_aside(&mut self, number: u64, why: &str) -> Result<(), String> {
        if !self.told.contains(&number) && !self.tell_refused(number, why) {
            return Err("it is refused, and podsecd does not answer".into());
        }
        self.told.insert(number);
        match self.outbox.set_aside(number) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("it cannot be set aside: {error}")),
            _ => {
                // It may be tried again, and refused again.
                self.told.remove(&number);
                Ok(())
            }
        }
    }

    /// Tells podsecd how things are.
    fn tell(&self) {
        self.report(&[]);
    }

    fn tell_refused(&self, number: u64, why: &str) -> bool {
        self.report(&[Report {
            id: MAIL_REFUSED.0.into(),
            kind: Kind::Event.as_str().into(),
            subject: format!("digest {number}"),
            message: format!("digest {number} was refused also without its attachment, and is set aside: {why}"),
            fields: Default::default(),
        }])
    }

    /// Whether podsecd has taken it in.
    fn report(&self, events: &[Report]) -> bool {
        let told = Client::connect(&self.root.path(crate::helper::SOCKET), PATIENCE, &self.conditions())
            .and_then(|mut client| events.iter().try_for_each(|event| client.report(event)));
        let warn = |error: &_| tracing::warn!("cannot tell podsecd, which is told with the next report: {error}");
        told.inspect_err(warn).is_ok()
    }

    fn conditions(&self) -> Vec<Condition> {
        if let Some(number) = self.unmarked.keys().next() {
            let message = format!("digest {number} was delivered, and cannot be marked as that in the outbox");
            return vec![Condition { id: MAIL_FAILING.0.into(), subject: SUBJECT.into(), message }];
        }
        let Some(why) = self.queue.trouble() else { return Vec::new() };
        let failing = self.queue.failing(&self.outbox.refused().unwrap_or_default());
        let (id, message) = if self.is_unconfigured() {
            (MAIL_UNCONFIGURED, format!("there is no mail system on this node that takes digests: {why}"))
        } else if failing >= 2 {
            (MAIL_FAILING, format!("{failing} digests in a row are not delivered: {why}"))
        } else if self.queue.fails_long(Instant::now()) {
            (MAIL_FAILING, format!("for an hour and more the digest is not delivered: {why}"))
        } else {
            return Vec::new();
        };
        vec![Condition { id: id.0.into(), subject: SUBJECT.into(), message }]
    }

    /// Whether nothing was set up: the default server is not there, and nothing that could be it is installed.
    fn is_unconfigured(&self) -> bool {
        let mail = &self.settings.mail;
        let has_sendmail = [mail.sendmail.as_ref(), Path::new("/usr/lib/sendmail")].iter().any(|path| path.exists());
        let wants_local = match mail.transport {
            Transport::Smtp => mail.server.is_local(),
            Transport::Sendmail => true,
            Transport::Maildir => false,
        };
        wants_local && !has_sendmail && self.queue.is_away()
    }
}
