//! Reports to podsecd: all conditions whenever they change and at every probe, and events in their order. While podsecd is
//! down, events wait; if too many do, the next ones go, and how many is said.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::checks::own::ids::FINDINGS_DROPPED;
use crate::finding::{Finding, Id, Kind, prefix};
use crate::helper::{Answer, Condition, MAX_LINE, MAX_MESSAGE, Opening, Report, U7S};
use crate::report::text::one_line;

/// How long podsecd may take to answer; it may be waiting for a disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach it, at first; twice as long each time.
const RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_secs(15);
/// So many events wait.
const MAX_EVENTS: usize = 1024;
/// So many conditions of one id are named to podsecd, so long are their sentences, and so long is the line with all of them, in
/// bytes.
const MAX_OF_ID: usize = 40;
const MAX_SENTENCE: usize = 200;
const MAX_LENGTH: usize = MAX_LINE - 1024;
const MAX_ANSWER: u64 = 16 << 10;
/// How long to wait at the end for what is being reported.
const FAREWELL: Duration = Duration::from_secs(2);

/// All conditions that hold, with their subjects and sentences.
pub(super) type Conditions = BTreeMap<(Id, String), String>;

/// What podsecd is told at once: which conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// They are all that there are; else there may be others, of which nothing is known yet.
    pub all: bool,
    /// With their subjects and sentences.
    pub conditions: Conditions,
}

/// The way to podsecd.
#[derive(Debug)]
pub(super) struct Reporter {
    holding: watch::Sender<Holding>,
    events: mpsc::Sender<Report>,
    dropped: Arc<AtomicU64>,
    /// How many events wait, or are on their way.
    waiting: Arc<AtomicU64>,
    /// Nothing waits any more.
    told: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Starts to report; nothing is said before the first conditions are.
    pub(super) fn start(socket: PathBuf) -> Reporter {
        let (holding, holding_in) = watch::channel(Holding::default());
        let (events, events_in) = mpsc::channel(MAX_EVENTS);
        let (dropped, waiting) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let told = Arc::new(Notify::new());
        let courier = Courier {
            socket,
            holding: holding_in,
            events: events_in,
            event: None,
            dropped: dropped.clone(),
            waiting: waiting.clone(),
            told: told.clone(),
            said: BTreeMap::new(),
        };
        Reporter { holding, events, dropped, waiting, told, task: tokio::spawn(courier.run()) }
    }

    /// These conditions hold. Said again, it says that we are here.
    pub(super) fn hold(&self, holding: Holding) {
        self.holding.send_replace(holding);
    }

    /// This happened. If too much waits already, that it is dropped is said.
    pub(super) fn tell(&self, finding: &Finding<'_>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.events.try_send(report(finding)).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until podsecd has taken all that happened.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Whether podsecd took all that happened.
    pub(super) fn has_told_all(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Reports what waits, if podsecd takes it soon; whether it did.
    pub(super) async fn end(self) -> bool {
        let Reporter { holding, events, waiting, task, .. } = self;
        drop((holding, events));
        // If nothing waits, only the farewell of conditions is not heard.
        let is_late = timeout(FAREWELL, task).await.is_err();
        let waiting = waiting.load(Ordering::Relaxed);
        if is_late {
            tracing::warn!("podsecd takes nothing: {waiting} findings of what happened last are in this log only");
        }
        waiting == 0
    }
}

/// What carries it there.
struct Courier {
    socket: PathBuf,
    holding: watch::Receiver<Holding>,
    events: mpsc::Receiver<Report>,
    /// The next one.
    event: Option<Report>,
    dropped: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
    told: Arc<Notify>,
    /// The conditions that podsecd was told of, by ids and subjects, and their sentences.
    said: BTreeMap<(String, String), String>,
}

impl Courier {
    async fn run(mut self) {
        // Nothing is known before the first conditions are.
        if self.holding.changed().await.is_err() {
            return;
        }
        let (mut connection, mut pause) = (None, RETRY);
        loop {
            match self.report(&mut connection).await {
                Ok(()) => pause = RETRY,
                Err(error) => {
                    tracing::debug!(%error, "cannot report to podsecd");
                    connection = None;
                    sleep(pause).await;
                    pause = (2 * pause).min(MAX_RETRY);
                    continue;
                }
            }
            if self.event.is_none() {
                tokio::select! {
                    biased;
                    event = self.events.recv() => match event {
                        Some(event) => self.event = Some(event),
                        // Nobody has anything to say any more.
                        None => return,
                    },
                    changed = self.holding.changed() => if changed.is_ok() {
                        self.holding.mark_changed();
                    } else {
                        // Events may still come.
                        self.event = self.events.recv().await;
                        if self.event.is_none() {
                            return;
                        }
                    },
                }
            }
        }
    }

    /// Reports what waits: on a new connection all conditions, then what happened, then what else changed.
    async fn report(&mut self, connection: &mut Option<Connection>) -> io::Result<()> {
        let open = match connection {
            Some(open) => open,
            None => {
                let mut open = Connection::open(&self.socket).await?;
                self.say_holding(&mut open).await?;
                connection.insert(open)
            }
        };
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            open.say(&dropped_report(dropped)).await?;
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        }
        if let Some(event) = &self.event {
            open.say_event(event).await?;
            if event.kind == Kind::Raised.as_str() {
                // Whether it holds still is said next.
                self.said.insert((event.id.clone(), event.subject.clone()), event.message.clone());
                self.holding.mark_changed();
            }
            self.event = None;
            if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.told.notify_one();
            }
        } else if self.holding.has_changed().unwrap_or(false) {
            self.say_holding(open).await?;
        }
        Ok(())
    }

    /// Says which conditions hold. What was said before and holds no longer is cleared by that, or else by itself.
    async fn say_holding(&mut self, open: &mut Connection) -> io::Result<()> {
        let opening = opening(&self.holding.borrow_and_update());
        open.say(&opening).await?;
        let said = opening.conditions.into_iter().map(|open| ((open.id, open.subject), open.message));
        let said: BTreeMap<_, _> = said.collect();
        // What could not be cleared is tried again on the next connection.
        let gone = self.said.iter().filter(|(key, _)| !opening.all && !said.contains_key(*key));
        for ((id, subject), message) in gone {
            let (id, subject) = (id.clone(), subject.clone());
            let (message, kind) = (format!("no longer: {message}"), Kind::Cleared.as_str().into());
            open.say_event(&Report { id, kind, subject, message, fields: Default::default() }).await?;
        }
        self.said = said;
        Ok(())
    }
}

fn report(finding: &Finding<'_>) -> Report {
    Report {
        id: finding.id.0.into(),
        kind: finding.kind.as_str().into(),
        subject: finding.subject.clone().into_owned(),
        message: prefix(&finding.message, MAX_MESSAGE).to_owned(),
        fields: Default::default(),
    }
}

fn dropped_report(count: u64) -> Report {
    Report {
        id: FINDINGS_DROPPED.0.into(),
        kind: Kind::Event.as_str().into(),
        subject: U7S.into(),
        message: format!("{count} findings of podsecd-u7s were dropped: while podsecd takes nothing {MAX_EVENTS} wait"),
        fields: Default::default(),
    }
}

/// The conditions as they are told: so many of each id, and as long as there is room in the line. That some are left out is one
/// of them.
fn opening(holding: &Holding) -> Opening<Vec<Condition>> {
    let (mut named, mut of_id, mut length) = (Vec::new(), BTreeMap::new(), 0);
    for ((id, subject), message) in &holding.conditions {
        let count: &mut usize = of_id.entry(*id).or_default();
        let condition = Condition {
            id: id.0.into(),
            subject: prefix(subject, MAX_SENTENCE).to_owned(),
            message: prefix(message, MAX_SENTENCE).to_owned(),
        };
        let room = serde_json::to_vec(&condition).map_or(MAX_LENGTH, |line| line.len() + 1);
        if *count < MAX_OF_ID && length + room < MAX_LENGTH {
            (*count, length) = (*count + 1, length + room);
            named.push(condition);
        }
    }
    let left_out = holding.conditions.len() - named.len();
    if left_out > 0 {
        let message = format!("{left_out} conditions of podsecd-u7s are not named: they are too many");
        named.push(Condition { id: FINDINGS_DROPPED.0.into(), subject: U7S.into(), message });
    }
    Opening { conditions: named, all: holding.all }
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    async fn open(socket: &std::path::Path) -> io::Result<Connection> {
        let stream = timeout(PATIENCE, UnixStream::connect(socket)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Says a line, and waits until it is taken.
    async fn say(&mut self, line: &impl Serialize) -> io::Result<()> {
        match self.ask(line).await? {
            Answer::Taken => Ok(()),
            Answer::Refused(why) => {
                tracing::warn!("podsecd does not take what podsecd-u7s reports: {}", one_line(&why));
                Err(io::Error::other(why))
            }
            Answer::Later(why) => Err(io::Error::other(why)),
        }
    }

    /// The same; what is refused for good is not said again.
    async fn say_event(&mut self, event: &Report) -> io::Result<()> {
        match self.ask(event).await? {
            Answer::Taken => Ok(()),
            Answer::Refused(why) => {
                tracing::warn!("podsecd does not take {}: {}", event.id, one_line(&why));
                Ok(())
            }
            Answer::Later(why) => Err(io::Error::other(why)),
        }
    }

    async fn ask(&mut self, line: &impl Serialize) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        let exchange = async {
            self.0.write_all(&line).await?;
            let mut answer = Vec::new();
            (&mut self.0).take(MAX_ANSWER).read_until(b'\n', &mut answer).await?;
            io::Result::Ok(answer)
        };
        let answer = timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}
