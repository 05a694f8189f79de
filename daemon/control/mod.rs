//! The ways in for podsecctl: one line of JSON each way. The socket's mode lets in root and the group `podsecd`; who it was is
//! known from SO_PEERCRED (unix(7)), and said. podsecd's is [`SOCKET`], podsecd-u7s has its own ([`crate::u7s::control`]).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::checks::forwards::forward::Forward;

/// Where podsecctl connects to podsecd.
pub const SOCKET: &str = "/run/podsecd/control.sock";

/// Longest request, and longest answer, in bytes.
const MAX_REQUEST: usize = 64 << 10;
const MAX_ANSWER: u64 = 4 << 20;
/// How long a peer may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long podsecctl waits for an answer: podsecd may wait for a disk.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of podsecd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// End the digest period now.
    SendDigest,
    /// Report a harmless finding.
    TestAlert,
    /// The administrator wants this forward.
    Declare(Forward),
    /// And this one no more.
    Withdraw(Forward),
}

/// podsecd's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What became of the digest that was wanted.
    Digest(Sent),
    /// The test alert is in the journal, and on the disk for the mail; its subject tells it from others.
    TestAlert(String),
    /// It is known whether the administrator wants the forward; whether that is news.
    Declared(bool),
}

/// What became of a digest that somebody wants now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Number of the digest that was made; without one there was nothing to say, or it could not be made.
    pub number: Option<u64>,
    /// Why it could not be made.
    pub why: Option<String>,
    /// How many digests that had been refused are tried again.
    pub retried: u64,
}

/// A request on its way to the task that owns the state.
#[derive(Debug)]
pub struct Asked<R, A> {
    /// What is asked for.
    pub request: R,
    /// By which user id.
    pub uid: u32,
    /// Takes the answer, or why it is not done.
    pub answer: oneshot::Sender<Result<A, String>>,
}

/// Accepts connections until nobody takes what they ask.
pub async fn accept<R, A>(listener: UnixListener, asked: mpsc::Sender<Asked<R, A>>)
where
    R: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
{
    while !asked.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, asked.clone()))),
            // Too many descriptors, or a peer that is gone already.
            Err(error) => {
                tracing::debug!(%error, "cannot accept podsecctl");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve<R, A>(mut stream: UnixStream, asked: mpsc::Sender<Asked<R, A>>) -> io::Result<()>
where
    R: DeserializeOwned,
    A: Serialize,
{
    let uid = stream.peer_cred()?.uid();
    let mut line = Vec::new();
    let read = async {
        while !line.ends_with(b"\n") && line.len() < MAX_REQUEST && stream.read_buf(&mut line).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(PATIENCE, read).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let answer = match serde_json::from_slice(&line) {
        Err(error) => Err(format!("not a request of this version: {error}")),
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let sent = asked.send(Asked { request, uid, answer }).await;
            let answered = answered.await.ok().filter(|_| sent.is_ok());
            answered.unwrap_or_else(|| Err("it is ending".into()))
        }
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Asks whoever listens at a socket; for podsecctl. The inner error is its refusal.
///
/// # Errors
/// Those of connect(2); there is no answer in time.
pub fn ask<R: Serialize, A: DeserializeOwned>(socket: &Path, request: &R) -> io::Result<Result<A, String>> {
    let mut stream = Blocking::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_until(b'\n', &mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
