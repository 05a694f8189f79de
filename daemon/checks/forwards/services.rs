//! The source of NodePorts: the services of the cluster, as the Kubernetes API tells them.
//!
//! It lists all services, in pages, and then watches what changes, from the version of the list on. When a watch ends it goes
//! on with the next one where the former ended; only when the API says that this is too long ago it lists again. What was found
//! stands until the API says something else: that it is away says nothing of services.
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>)

mod client;
mod kubeconfig;
mod object;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};

use client::{Client, Failure, Lines};
use object::{Found, Line};

pub use object::MAX_PORTS;

use super::forward::Transport;

/// A port of every node at which a service is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePort {
    /// The service's namespace: a label of RFC 1123, at most 63 bytes.
    pub namespace: String,
    /// The service's name: labels of RFC 1123 with dots between them, at most 253 bytes.
    pub service: String,
    /// Its protocol.
    pub transport: Transport,
    /// Its number, which is not 0. Whether it lies in the range of NodePorts is not looked at.
    pub port: u16,
}

/// What is not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// So many ports and services have numbers, protocols or names that cannot be.
    pub unfit: usize,
    /// So many ports are more than [`MAX_PORTS`], at least.
    pub beyond: usize,
}

/// What the source sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// All ports that services ask for, at most [`MAX_PORTS`], the first ones in their order. Sent after the first list, even if
    /// there are none, and whenever it is another set.
    Services(BTreeSet<NodePort>),
    /// What is not among them. Sent before them, whenever it is something else; at first nothing is left out.
    LeftOut(LeftOut),
    /// The API cannot be asked, and why, in at most some hundred bytes. Sent when that begins, and when there is another reason.
    /// What was told before still holds.
    Away(String),
    /// The API is there again.
    Back,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The pause after the first failure; after each further one it is twice as long, …
    pub first_pause: Duration,
    /// … up to this.
    pub most_pause: Duration,
    /// So long the API has to answer.
    pub request: Duration,
    /// So long it has to list all services.
    pub list: Duration,
    /// So long one watch lasts; whole seconds, less than 295.
    pub watch: Duration,
    /// A watch that lasts so long stands: then the API is there.
    pub settle: Duration,
    /// So long changes are gathered.
    pub gather: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            first_pause: Duration::from_secs(1),
            most_pause: Duration::from_secs(60),
            request: Duration::from_secs(30),
            list: Duration::from_secs(120),
            watch: Duration::from_secs(290),
            settle: Duration::from_secs(10),
            gather: Duration::from_millis(100),
        }
    }
}

/// Starts to look for services, as a task of the runtime that this is called in. It ends when it is aborted, and when
/// nobody receives any more.
pub fn spawn(kubeconfig: PathBuf, times: Times, sender: mpsc::Sender<Message>) -> AbortHandle {
    let watched = tokio::spawn(async move {
        let closed = sender.clone();
        let mut source = Source::new(kubeconfig, times, sender);
        tokio::select! {
            Closed = source.run() => {}
            () = closed.closed() => {}
        }
    });
    watched.abort_handle()
}

/// Nobody receives any more.
struct Closed;

struct Source {
    kubeconfig: PathBuf,
    times: Times,
    sender: mpsc::Sender<Message>,
    found: Found,
    /// Up to which version that is; `None`: all has to be listed.
    version: Option<String>,
    told: Option<BTreeSet<NodePort>>,
    left_out: LeftOut,
    /// Why the API is away, as it was told.
    away: Option<String>,
    /// Whether the watch stands, or stood.
    stood: bool,
    /// How often it failed since a watch stood, up to [`MAX_FAILURES`].
    failures: u32,
}

/// How a watch ended: as it was to end, or not.
type Ended = Result<(), Failure>;

/// From then on the pause does not grow.
const MAX_FAILURES: u32 = 16;

impl Source {
    fn new(kubeconfig: PathBuf, times: Times, sender: mpsc::Sender<Message>) -> Source {
        let (found, left_out) = (Found::default(), LeftOut::default());
        let (version, told, away) = (None, None, None);
        Source { kubeconfig, times, sender, found, version, told, left_out, away, stood: false, failures: 0 }
    }

    async fn run(&mut self) -> Closed {
        loop {
            let ended = match self.watch().await {
                Ok(ended) => ended,
                Err(closed) => return closed,
            };
            if let Err(closed) = self.pause(ended).await {
                return closed;
            }
        }
    }

    /// Lists if need be, and watches until that ends.
    async fn watch(&mut self) -> Result<Ended, Closed> {
        let client = match self.open().await {
            Ok(client) => client,
            Err(why) => return Ok(Err(Failure::Away(why))),
        };
        if self.found.is_incomplete() {
            self.version = None;
        }
        let version = match self.version.clone() {
            Some(version) => version,
            None => match client.list().await {
                Ok((found, version)) => {
                    self.found = found;
                    self.tell().await?;
                    self.version.insert(version).clone()
                }
                Err(failure) => return Ok(Err(failure)),
            },
        };
        let end = Instant::now() + self.times.watch + self.times.request;
        match client.watch(&version).await {
            Ok(mut lines) => {
                let ended = self.follow(&mut lines, end).await;
                self.tell().await?;
                ended
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// The kubeconfig is read each time, so that new tokens and certificates are taken.
    async fn open(&self) -> Result<Client, String> {
        let (kubeconfig, times) = (self.kubeconfig.clone(), self.times);
        let opened = spawn_blocking(move || Client::new(&kubeconfig::load(&kubeconfig)?, times)).await;
        opened.map_err(|_| "reading the kubeconfig failed".to_owned())?
    }

    /// Takes in what a watch tells, until it ends, at the latest then.
    async fn follow(&mut self, lines: &mut Lines, end: Instant) -> Result<Ended, Closed> {
        let mut stands = Some(Instant::now() + self.times.settle);
        let mut changed: Option<Instant> = None;
        loop {
            tokio::select! {
                line = lines.next() => {
                    match line.map(|line| line.map(|line| Line::take(line, &mut self.found))) {
                        Ok(Some(Line::Version(version))) => self.version = Some(version),
                        Ok(Some(Line::Gone)) => return Ok(Err(Failure::Gone)),
                        Ok(Some(Line::Failed(why))) => return Ok(Err(Failure::Refused(why))),
                        Ok(None) => return Ok(Ok(())),
                        Err(failure) => return Ok(Err(failure)),
                    }
                    changed.get_or_insert_with(|| Instant::now() + self.times.gather);
                }
                () = at(changed) => {
                    changed = None;
                    self.tell().await?;
                }
                // Within a line nothing is told yet.
                () = at(stands) => if lines.is_within_one() {
                    stands = Some(Instant::now() + self.times.settle);
                } else {
                    stands = None;
                    self.stand().await?;
                },
                () = sleep_until(end) => return Ok(Ok(())),
            }
        }
    }

    /// Tells what is found, if that is something else than was told.
    async fn tell(&mut self) -> Result<(), Closed> {
        let left_out = self.found.left_out();
        if self.left_out != left_out {
            self.left_out = left_out;
            self.send(Message::LeftOut(left_out)).await?;
        }
        let ports = self.found.ports();
        if self.told.as_ref() != Some(&ports) {
            self.told = Some(ports.clone());
            self.send(Message::Services(ports)).await?;
        }
        Ok(())
    }

    /// A watch stands.
    async fn stand(&mut self) -> Result<(), Closed> {
        (self.stood, self.failures) = (true, 0);
        if self.away.take().is_some() {
            self.send(Message::Back).await?;
        }
        Ok(())
    }

    /// A watch ended, or there is none. Tells it if that is more than what happens now and then, and waits.
    async fn pause(&mut self, ended: Ended) -> Result<(), Closed> {
        let stood = std::mem::take(&mut self.stood);
        if let Err(Failure::Gone | Failure::TooLong | Failure::Refused(_)) = ended {
            self.version = None;
        }
        let (why, is_usual) = match ended {
            Ok(()) if stood => return Ok(()),
            Ok(()) => ("ends each watch at once".to_owned(), true),
            Err(Failure::Gone) => ("answers 410 Gone again and again".to_owned(), true),
            Err(Failure::Dropped(why)) => (why, true),
            Err(Failure::TooLong) => ("tells of one service with more than there is room for".to_owned(), false),
            Err(Failure::Refused(why) | Failure::Away(why)) => (why, false),
        };
        let pause = self.times.first_pause * 2u32.saturating_pow(self.failures);
        self.failures = (self.failures + 1).min(MAX_FAILURES);
        if !(is_usual && self.failures == 1) && self.away.as_ref() != Some(&why) {
            self.away = Some(why.clone());
            self.send(Message::Away(why)).await?;
        }
        sleep(pause.min(self.times.most_pause)).await;
        Ok(())
    }

    async fn send(&self, message: Message) -> Result<(), Closed> {
        self.sender.send(message).await.map_err(|_| Closed)
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
