//! Asks the journal how a container of podman ended: podman writes there what it did, with the exit code
//! (libpod/events/journal_linux.go), and journald who wrote it. That is the user itself, who may write anything of its own
//! containers, as into the file that was missed.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::life::{Happened, Life};
use crate::watch::tree::Moment;

/// Where it is on ALT and elsewhere.
const PROGRAMS: [&str; 2] = ["/usr/bin/journalctl", "/bin/journalctl"];
/// So long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// podman writes when it has cleaned up, which may be a moment later; and journald may be behind. After the last of these
/// pauses, some five seconds, nobody will say it.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_millis(600), Duration::from_millis(1200), Duration::from_millis(2400)];
/// Whoever makes ends without end does not keep the node busy with that.
const PAUSE: Duration = Duration::from_millis(200);
/// More do not wait.
const MAX_WAITING: usize = 64;
/// More bytes is no answer.
const MAX_ANSWER: usize = 4096;

/// The journal of a user's podman.
pub(super) struct Journal {
    uid: u32,
    /// Those of which it is to be asked.
    waiting: Vec<Waiting>,
    /// Of which of them it is asked.
    asking: Option<(usize, JoinHandle<Option<i32>>)>,
    /// It is not asked anything sooner.
    due: Instant,
}

/// What the journal is to be asked of.
struct Waiting {
    happened: Happened,
    /// When it was started at the earliest.
    since: Moment,
    /// How often that was asked.
    tries: usize,
    due: Instant,
}

impl Journal {
    pub(super) fn new(uid: u32) -> Journal {
        Journal { uid, waiting: Vec::new(), asking: None, due: Instant::now() }
    }

    /// Asks for the exit code of a container that was started at that moment or later. Gives it back if too many wait.
    pub(super) fn ask(&mut self, happened: Happened, since: Moment) -> Option<Happened> {
        if self.waiting.len() >= MAX_WAITING {
            return Some(happened);
        }
        self.waiting.push(Waiting { happened, since, tries: 0, due: Instant::now() });
        None
    }

    /// Whether nothing is asked for.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Those that are asked for: nobody waits for an answer any more.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = Happened> {
        self.asking.take().iter().for_each(|(_, asking)| asking.abort());
        self.waiting.drain(..).map(|waiting| waiting.happened)
    }

    /// Waits for an answer, if something was asked. Nothing gets lost if it is not waited for.
    pub(super) async fn answer(&mut self) -> Happened {
        loop {
            if self.asking.is_none() {
                let first = self.waiting.iter().enumerate().min_by_key(|(_, waiting)| waiting.due);
                let Some((index, waiting)) = first else { return std::future::pending().await };
                sleep_until(waiting.due.max(self.due)).await;
                let (uid, container, since) = (self.uid, waiting.happened.container.clone(), waiting.since);
                self.asking = Some((index, tokio::spawn(async move { ask(uid, &container, since).await })));
            }
            let Some((index, asking)) = &mut self.asking else { continue };
            let (index, found) = (*index, asking.await.ok().flatten());
            (self.asking, self.due) = (None, Instant::now() + PAUSE);
            let waiting = &mut self.waiting[index];
            match RETRIES.get(waiting.tries).filter(|_| found.is_none()) {
                Some(pause) => (waiting.tries, waiting.due) = (waiting.tries + 1, Instant::now() + *pause),
                None => {
                    let mut happened = self.waiting.remove(index).happened;
                    if let Life::Stopped { code, .. } = &mut happened.life {
                        *code = found;
                    }
                    return happened;
                }
            }
        }
    }
}

/// What the journal says; `None`: nothing, or there is no journal.
async fn ask(uid: u32, container: &str, since: Moment) -> Option<i32> {
    let matches = [format!("_UID={uid}"), "PODMAN_EVENT=died".to_owned(), format!("PODMAN_ID={container}")];
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.args(["--quiet", "--no-pager", "--output=json", "--output-fields=PODMAN_EXIT_CODE", "--lines=1"]);
        command.arg("--since=-1min").args(&matches).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            spawned => spawned.ok()?,
        };
        let stdout = child.stdout.take()?;
        let read = async {
            let mut answer = Vec::new();
            stdout.take(MAX_ANSWER as u64).read_to_end(&mut answer).await?;
            child.wait().await.map(|_| answer)
        };
        return parse(&timeout(PATIENCE, read).await.ok()?.ok()?, since);
    }
    None
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "PODMAN_EXIT_CODE")]
    code: String,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: String,
}

/// The exit code in what `journalctl --output=json` said, unless it is of a time before that.
fn parse(answer: &[u8], since: Moment) -> Option<i32> {
    let line = answer.split(|byte| *byte == b'\n').find(|line| !line.is_empty())?;
    let Record { code, time } = serde_json::from_slice(line).ok()?;
    let microseconds: i64 = time.parse().ok()?;
    let is_before = Moment::from_nanoseconds(microseconds.saturating_mul(1000)) < since;
    if is_before { None } else { code.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_says_how_a_container_ended_since_it_was_started() {
        let at = |seconds: i64| Moment::from_nanoseconds(seconds * 1_000_000_000);
        let answer = br#"{"__REALTIME_TIMESTAMP":"1700000000000000","__CURSOR":"s=1;i=2","PODMAN_EXIT_CODE":"137","_BOOT_ID":"b"}
"#;
        assert_eq!(parse(answer, at(1_700_000_000)), Some(137));
        assert_eq!(parse(answer, Moment::MIN), Some(137));
        assert_eq!(parse(answer, at(1_700_000_001)), None, "that was the time before");
        for answer in [
            &b""[..],
            b"\n",
            b"{}",
            b"-- No entries --",
            br#"{"__REALTIME_TIMESTAMP":"1","PODMAN_EXIT_CODE":["1","2"]}"#,
            br#"{"__REALTIME_TIMESTAMP":"1","PODMAN_EXIT_CODE":"99999999999"}"#,
            br#"{"__REALTIME_TIMESTAMP":"x","PODMAN_EXIT_CODE":"1"}"#,
            br#"{"__REALTIME_TIMESTAMP":"99999999999999999999","PODMAN_EXIT_CODE":"1"}"#,
            br#"{"__REALTIME_TIMESTAMP":"9223372036854775807","PODMAN_EXIT_CODE":"#,
        ] {
            assert_eq!(parse(answer, Moment::MIN), None, "{}", String::from_utf8_lossy(answer));
        }
    }
}
