//! podsecd's end: a task for each connection, which reads lines, checks who may say what, and answers when it counts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::MAX_LINE;
use super::protocol::{Answer, Helper, Refusal, Reported, What, parse};

/// Connections of one helper at once.
const MAX_CONNECTIONS: usize = 4;
/// How long a connection may be silent before its first line.
const PATIENCE: Duration = Duration::from_secs(10);
/// A helper sends so many lines at once, over all its connections, and then no more than one in this time.
const BURST: u32 = 100;
const PACE: Duration = Duration::from_millis(100);
const OPEN_PER_PACE: usize = 32;

/// What a helper said, on its way to the task that owns the state.
#[derive(Debug)]
pub struct Delivery {
    /// What it said.
    pub reported: Reported,
    /// Takes what becomes of it, or why it is not taken.
    pub taken: oneshot::Sender<Result<Taken, Refusal>>,
}

/// What becomes of what a helper said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The number of the cycle with which it counts as reported.
    pub cycle: u64,
    /// How many findings it makes.
    pub findings: usize,
}

/// How fast one helper may send: each line takes [`PACE`], each finding that it makes as much, and so do so many
/// conditions ([`OPEN_PER_PACE`]), news or not; [`BURST`] of them may be ahead of their time.
#[derive(Debug)]
struct Pace {
    start: Instant,
    /// Nanoseconds after that, when all that was sent would have been sent at that pace.
    due: AtomicU64,
}

impl Pace {
    fn new() -> Pace {
        Pace { start: Instant::now(), due: AtomicU64::new(0) }
    }

    /// When the line after one that takes so many times its pace may be read.
    fn next(&self, steps: usize, now: Instant) -> Instant {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let later = |due: u64| due.max(now).saturating_add(nanoseconds(PACE.saturating_mul(steps)));
        let due =
            later(self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| Some(later(due))).unwrap_or(now));
        self.start + Duration::from_nanos(due).saturating_sub(BURST * PACE)
    }
}

/// Accepts connections until nobody takes what they say. `kept` is the number of the last cycle that is on
/// the disk for the mail.
///
/// # Errors
/// Those of accept(2).
pub async fn accept(
    listener: UnixListener,
    helpers: Vec<Helper>,
    deliveries: mpsc::Sender<Delivery>,
    kept: watch::Receiver<u64>,
) -> io::Result<()> {
    let limits = |_: &Helper| (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Pace::new()));
    let limits: Vec<_> = helpers.iter().map(limits).collect();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Too many descriptors, or a peer that is gone already.
            Err(error) => {
                tracing::debug!(%error, "cannot accept a helper");
                sleep(PACE).await;
                continue;
            }
        };
        if deliveries.is_closed() {
            return Ok(());
        }
        let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else { continue };
        let found = helpers.iter().zip(&limits).find(|(helper, _)| helper.uid == uid);
        let Some((helper, (places, pace))) = found else {
            refuse(&stream, format!("user {uid} is no helper of podsecd"));
            continue;
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            refuse(&stream, format!("user {uid} has {MAX_CONNECTIONS} connections already"));
            continue;
        };
        let (helper, pace, deliveries, kept) = (*helper, pace.clone(), deliveries.clone(), kept.clone());
        tokio::spawn(async move {
            let _place = place;
            // An error is that of a peer that is gone.
            let _ = Connection { stream, buffer: Vec::new() }.serve(helper, &pace, deliveries, kept).await;
        });
    }
}

/// Says why, as far as the peer's buffer takes it.
fn refuse(stream: &UnixStream, why: String) {
    if let Ok(line) = serde_json::to_vec(&Answer::Refused(why)) {
        let _ = stream.try_write(&[&line[..], b"\n"].concat());
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn serve(
        &mut self,
        helper: Helper,
        pace: &Pace,
        deliveries: mpsc::Sender<Delivery>,
        mut kept: watch::Receiver<u64>,
    ) -> io::Result<()> {
        let mut first = true;
        loop {
            let line = match timeout(PATIENCE, self.line()).await {
                Err(_) if first => return Ok(()),
                // Whoever has said which conditions are open may stay as long as it wants.
                Err(_) => self.line().await?,
                Ok(line) => line?,
            };
            let Some(line) = line else { return Ok(()) };
            let now = SystemTime::now();
            let reported = line.and_then(|line| parse(&line, helper, now));
            let mut steps = 1;
            let taken = match reported {
                Ok(Reported { what: What::Finding(_), .. }) if first => Err(Refusal::First),
                Ok(reported) => {
                    if let What::Conditions(open, _) = &reported.what {
                        steps += open.len() / OPEN_PER_PACE;
                    }
                    let (taken, answer) = oneshot::channel();
                    let sent = deliveries.send(Delivery { reported, taken }).await;
                    let (Ok(()), Ok(answer)) = (sent, answer.await) else { return Ok(()) };
                    answer
                }
                Err(refusal) => Err(refusal),
            };
            steps += taken.as_ref().map_or(0, |taken| taken.findings);
            let next = pace.next(steps, Instant::now());
            match taken {
                Ok(Taken { cycle, .. }) => {
                    first = false;
                    tokio::select! {
                        is_kept = kept.wait_for(|kept| *kept >= cycle) => if is_kept.is_err() {
                            return Ok(());
                        },
                        // Whoever has given up must not keep its place.
                        () = self.end() => return Ok(()),
                    }
                    self.answer(&Answer::Taken).await?;
                }
                Err(refusal) => {
                    let why = refusal.to_string();
                    let is_for_now = refusal == Refusal::Pending;
                    self.answer(&if is_for_now { Answer::Later(why) } else { Answer::Refused(why) }).await?;
                    if first || refusal == Refusal::TooLong {
                        // Its place is taken until then.
                        sleep_until(next).await;
                        return Ok(());
                    }
                }
            }
            sleep_until(next).await;
        }
    }

    /// The next line; `None` at the end.
    async fn line(&mut self) -> io::Result<Option<Result<Vec<u8>, Refusal>>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Some(if line.len() > MAX_LINE { Err(Refusal::TooLong) } else { Ok(line) }));
            }
            if self.buffer.len() > MAX_LINE {
                return Ok(Some(Err(Refusal::TooLong)));
            }
            self.buffer.reserve(4096);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits for the end of the connection, as far as that shows before its next line is taken.
    async fn end(&mut self) {
        while self.buffer.len() <= MAX_LINE {
            self.buffer.reserve(4096);
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    async fn answer(&mut self, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_may_send_a_burst_and_then_keeps_to_its_pace_over_all_connections() {
        let (pace, now) = (Pace::new(), Instant::now());
        let waits: Vec<_> = (0..BURST + 10).map(|_| pace.next(1, now).saturating_duration_since(now)).collect();
        assert!(waits[..BURST as usize].iter().all(Duration::is_zero), "{waits:?}");
        let last = waits.last().copied().unwrap_or_default();
        assert!(last > 9 * PACE && last <= 10 * PACE, "{last:?}");
        let later = now + (BURST + 10) * PACE;
        assert!(pace.next(BURST as usize, later) <= later, "who was silent may send a burst again");
        assert!(pace.next(BURST as usize, later) > later, "and not two");
    }
}
