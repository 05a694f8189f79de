//! Reports to podsecd: all conditions whenever they change and at every probe, and events in their order. While podsecd is
//! down, events wait; if too many do, the oldest go, and how many is said.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::checks::own::ids::FINDINGS_DROPPED;
use crate::finding::{Finding, Id, Kind, prefix};
use crate::helper::{Answer, Condition, Opening, Report, U7S};

/// How long podsecd may take to answer; it may be waiting for a disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach it, at first; twice as long each time.
const RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_secs(15);
/// So many events wait.
const MAX_EVENTS: usize = 1024;
/// So many conditions are named to podsecd, which takes no more, and so long are their sentences, in bytes: all of them must
/// fit into one line.
const MAX_CONDITIONS: usize = 200;
const MAX_SENTENCE: usize = 200;
const MAX_MESSAGE: usize = 4096;
const MAX_ANSWER: u64 = 16 << 10;

/// All conditions that hold, with their subjects and sentences.
pub(super) type Conditions = BTreeMap<(Id, String), String>;

/// What is to be reported.
#[derive(Debug)]
pub(super) enum News {
    /// These conditions hold, and no others.
    Conditions(Conditions),
    /// This happened.
    Event(Finding<'static>),
}

/// Starts to report what comes; not before the first conditions are known.
pub(super) fn spawn(socket: PathBuf, news: mpsc::UnboundedReceiver<News>) {
    let reporter = Reporter { socket, news, conditions: None, events: VecDeque::new(), dropped: 0, is_new: false };
    tokio::spawn(reporter.run());
}

struct Reporter {
    socket: PathBuf,
    news: mpsc::UnboundedReceiver<News>,
    conditions: Option<Conditions>,
    /// The conditions are not reported yet.
    is_new: bool,
    events: VecDeque<Report>,
    dropped: u64,
}

impl Reporter {
    async fn run(mut self) {
        let mut connection = None;
        let (mut due, mut pause) = (Instant::now(), RETRY);
        loop {
            let waits = self.conditions.is_some() && (self.is_new || !self.events.is_empty() || self.dropped > 0);
            tokio::select! {
                biased;
                news = self.news.recv() => match news {
                    Some(news) => self.take(news),
                    None => return,
                },
                () = sleep_until(due), if waits => match self.report(&mut connection).await {
                    Ok(()) => pause = RETRY,
                    Err(error) => {
                        tracing::debug!(%error, "cannot report to podsecd");
                        connection = None;
                        // Whoever comes next is told all of them first.
                        self.is_new = true;
                        due = Instant::now() + pause;
                        pause = (2 * pause).min(MAX_RETRY);
                    }
                },
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Conditions(conditions) => (self.conditions, self.is_new) = (Some(conditions), true),
            News::Event(finding) => {
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                    self.dropped += 1;
                }
                self.events.push_back(report(&finding));
            }
        }
    }

    /// Reports one thing.
    async fn report(&mut self, connection: &mut Option<Connection>) -> io::Result<()> {
        let Some(open) = connection.as_mut().filter(|_| !self.is_new) else {
            let conditions = self.conditions.as_ref().map(named).unwrap_or_default();
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open(&self.socket).await?,
            };
            open.say(&Opening { conditions }).await?;
            (*connection, self.is_new) = (Some(open), false);
            return Ok(());
        };
        if self.dropped > 0 {
            open.say(&dropped(self.dropped)).await?;
            self.dropped = 0;
        } else if let Some(event) = self.events.front() {
            open.say(event).await?;
            self.events.pop_front();
        }
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

fn dropped(count: u64) -> Report {
    Report {
        id: FINDINGS_DROPPED.0.into(),
        kind: Kind::Event.as_str().into(),
        subject: U7S.into(),
        message: format!(
            "{count} findings of podsecd-u7s were dropped while podsecd took nothing: no more than {MAX_EVENTS} wait"
        ),
        fields: Default::default(),
    }
}

/// The conditions as they are told; if there are too many, that some are left out is one of them.
fn named(conditions: &Conditions) -> Vec<Condition> {
    let condition = |((id, subject), message): (&(Id, String), &String)| Condition {
        id: id.0.into(),
        subject: prefix(subject, MAX_SENTENCE).to_owned(),
        message: prefix(message, MAX_SENTENCE).to_owned(),
    };
    let mut named: Vec<_> = conditions.iter().take(MAX_CONDITIONS).map(condition).collect();
    if conditions.len() > MAX_CONDITIONS {
        named.push(Condition {
            id: FINDINGS_DROPPED.0.into(),
            subject: U7S.into(),
            message: format!(
                "{} conditions of podsecd-u7s are not named: no more than {MAX_CONDITIONS} are",
                conditions.len() - MAX_CONDITIONS
            ),
        });
    }
    named
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    async fn open(socket: &std::path::Path) -> io::Result<Connection> {
        let stream = timeout(PATIENCE, UnixStream::connect(socket)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Connection(BufReader::new(stream)))
    }

    /// Says a line, and waits until it is taken. What is refused for good is said in our own log, and not again.
    async fn say(&mut self, line: &impl Serialize) -> io::Result<()> {
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
        match serde_json::from_slice(&answer)? {
            Answer::Taken => Ok(()),
            Answer::Later(why) => Err(io::Error::other(why)),
            Answer::Refused(why) => {
                tracing::warn!("podsecd does not take what podsecd-u7s reports: {why}");
                Ok(())
            }
        }
    }
}
