//! rootlesskit's API: HTTP over a unix socket in its state directory (rootlesskit's pkg/api/openapi.yaml, API 1.0.0 to 1.1.1).
//!
//! Whoever has u7s-admin's user id can put another server there: answers are bounded, in time and in length.

use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::forward::Forward;
use crate::finding::prefix;
use crate::http::{self, Connection, ask};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "api.sock";
/// What a request says that it is for.
const HOST: &str = "rootlesskit";
/// How long an answer may take: to remove a forward takes rootlesskit up to 5 s, and it answers nobody meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: some ten thousand forwards.
const MAX_ANSWER: usize = 2 << 20;
/// Longest reason that is kept of a refusal, in bytes.
const MAX_REASON: usize = 256;

/// A forward that rootlesskit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number; they begin anew when rootlesskit does.
    pub id: i64,
    /// What it is.
    pub forward: Forward,
}

/// Why rootlesskit did not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody takes connections.
    #[error("nobody answers at {0}: {1}")]
    Away(String, #[source] io::Error),
    /// The answer does not come.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    /// What comes is no answer.
    #[error("{0}")]
    NoAnswer(#[from] http::Error),
    /// It is not rootlesskit's.
    #[error("not an answer of rootlesskit: {0}")]
    Alien(String),
    /// It says no.
    #[error("rootlesskit refuses (code {0}): {1}")]
    Refused(u16, String),
}

/// The API of the rootlesskit with a state directory.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// A forward in the API's JSON (`PortSpec`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortSpec {
    proto: String,
    #[serde(default, rename = "parentIP", skip_serializing_if = "String::is_empty")]
    parent_ip: String,
    parent_port: NonZeroU16,
    #[serde(default, rename = "childIP", skip_serializing_if = "String::is_empty")]
    child_ip: String,
    child_port: NonZeroU16,
}

#[derive(Deserialize)]
struct PortStatus {
    id: i64,
    spec: serde_json::Value,
}

/// What rootlesskit says of its port driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// It is of a version that does not say (before API 1.1.0).
    Unknown,
    /// It takes no forwards.
    None,
    /// It takes forwards; to the loopback address inside, too, or not.
    Takes {
        /// The loopback address inside.
        loopback: bool,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    port_driver: Option<PortDriver>,
}

#[derive(Deserialize)]
struct PortDriver {
    #[serde(default, rename = "disallowLoopbackChildIP")]
    disallows_loopback: bool,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Api {
    /// That of a state directory.
    pub fn of(state_directory: &Path) -> Api {
        Api { socket: state_directory.join(SOCKET) }
    }

    /// The forwards that it has. Of those that are none of ours to understand nothing is known but their number.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn list(&self) -> Result<Vec<Listed>, Error> {
        parse_list(&self.ask(Method::GET, "/v1/ports", None, 200).await?)
    }

    /// What it says of its port driver.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn driver(&self) -> Result<Driver, Error> {
        match self.ask(Method::GET, "/v1/info", None, 200).await {
            Ok(answer) => {
                let takes = |driver: PortDriver| Driver::Takes { loopback: !driver.disallows_loopback };
                Ok(parse::<Info>(&answer)?.port_driver.map_or(Driver::None, takes))
            }
            Err(Error::Refused(404, _)) => Ok(Driver::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Several requests, one after the other.
    pub fn session(&self) -> Session<'_> {
        Session { api: self, connection: None }
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        let away = |error| Error::Away(self.socket.display().to_string(), error);
        UnixStream::connect(&self.socket).await.map_err(away)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>, expected: u16) -> Result<Vec<u8>, Error> {
        let exchange = async { Ok(ask(self.connect().await?, method, HOST, path, body, MAX_ANSWER).await?) };
        expect(expected, timeout(PATIENCE, exchange).await)
    }
}

/// Several requests to an API over one connection, or over another one where that was closed.
pub struct Session<'a> {
    api: &'a Api,
    connection: Option<Connection>,
}

impl Session<'_> {
    /// Adds a forward. To a driver that takes `loopback` the loopback address inside is named where another address than all
    /// of them is listened at: since rootlesskit 2.3.2 it would take that one inside, too.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Refused`] if somebody listens there.
    pub async fn add(&mut self, forward: &Forward, loopback: bool) -> Result<(), Error> {
        let mut spec = PortSpec::from(forward);
        if loopback && spec.child_ip.is_empty() && !forward.end.address.is_unspecified() {
            spec.child_ip = if forward.end.address.is_ipv4() { "127.0.0.1" } else { "::1" }.to_owned();
        }
        let spec = serde_json::to_vec(&spec).map_err(|error| Error::Alien(error.to_string()))?;
        self.ask(Method::POST, "/v1/ports", Some(spec), 201).await
    }

    /// Removes a forward by its number, with its connections.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Refused`] if there is none of that number.
    pub async fn remove(&mut self, id: i64) -> Result<(), Error> {
        self.ask(Method::DELETE, &format!("/v1/ports/{id}"), None, 200).await
    }

    async fn ask(&mut self, method: Method, path: &str, body: Option<Vec<u8>>, expected: u16) -> Result<(), Error> {
        let exchange = async {
            if let Some(mut former) = self.connection.take()
                && former.is_open().await
            {
                match former.ask(method.clone(), HOST, path, body.clone(), MAX_ANSWER).await {
                    // It was being closed, as it seems. What was done all the same is refused now, and seen at the next look.
                    Err(http::Error::Answer(_)) => {}
                    answer => {
                        self.connection = answer.is_ok().then_some(former);
                        return Ok(answer?);
                    }
                }
            }
            let mut connection = Connection::over(self.api.connect().await?).await?;
            let answer = connection.ask(method, HOST, path, body, MAX_ANSWER).await?;
            self.connection = Some(connection);
            Ok(answer)
        };
        expect(expected, timeout(PATIENCE, exchange).await).map(drop)
    }
}

/// The body of an answer, if it came in time and has this code.
fn expect(expected: u16, answer: Result<Result<(u16, Vec<u8>), Error>, Elapsed>) -> Result<Vec<u8>, Error> {
    let (code, body) = answer.unwrap_or(Err(Error::Late))?;
    if code == expected {
        return Ok(body);
    }
    // Its type says text/plain, and is wrong. A server before API 1.1.0 answers some paths with plain text.
    let reason = match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(MAX_REASON)]).into_owned(),
    };
    Err(Error::Refused(code, prefix(reason.trim(), MAX_REASON).to_owned()))
}

/// Reads a list of forwards.
///
/// # Errors
/// [`Error::Alien`].
pub fn parse_list(answer: &[u8]) -> Result<Vec<Listed>, Error> {
    // A slice without elements is null in Go.
    let listed: Option<Vec<PortStatus>> = parse(answer)?;
    let forward = |status: PortStatus| {
        let forward = serde_json::from_value::<PortSpec>(status.spec).ok()?.forward()?;
        Some(Listed { id: status.id, forward })
    };
    Ok(listed.unwrap_or_default().into_iter().filter_map(forward).collect())
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| Error::Alien(error.to_string()))
}

impl From<&Forward> for PortSpec {
    fn from(forward: &Forward) -> PortSpec {
        PortSpec {
            proto: forward.end.protocol.to_string(),
            parent_ip: forward.end.address.to_string(),
            parent_port: forward.end.port,
            child_ip: forward.child_address.map(|address| address.to_string()).unwrap_or_default(),
            child_port: forward.child_port,
        }
    }
}

impl PortSpec {
    fn forward(&self) -> Option<Forward> {
        let protocol = self.proto.parse().ok()?;
        Forward::new(protocol, &self.parent_ip, self.parent_port, &self.child_ip, self.child_port).ok()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn a_list_is_read_whatever_else_is_in_it() {
        let spec =
            |rest: &str| format!(r#"[{{"id":3,"spec":{{"proto":"tcp","parentPort":80,"childPort":8080{rest}}}}}]"#);
        for (answer, expected) in [
            ("null".to_owned(), &[][..]),
            ("[]".to_owned(), &[]),
            (spec(""), &["0.0.0.0:80:8080/tcp"]),
            (spec(r#","parentIP":"10.0.0.1","childIP":"127.0.0.1","more":[1]"#), &["10.0.0.1:80:8080/tcp"]),
            (spec(r#","parentIP":"10.0.0.1","childIP":"10.0.2.100""#), &["10.0.0.1:80:10.0.2.100:8080/tcp"]),
            (spec(r#","parentIP":"somewhere""#), &[]),
        ] {
            let listed = parse_list(answer.as_bytes()).expect("a list");
            let listed: Vec<_> = listed.iter().map(|listed| listed.forward.to_string()).collect();
            assert_eq!(listed, expected, "{answer}");
        }
        for answer in ["", "{}", "[7]", "<html>"] {
            assert!(matches!(parse_list(answer.as_bytes()), Err(Error::Alien(_))), "{answer}");
        }
    }

    /// What is asked of a rootlesskit that answers so, and what is made of that.
    async fn asked(answer: &str, ask: impl AsyncFnOnce(Api) -> String) -> (String, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("bound");
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.expect("read");
            stream.write_all(answer.as_bytes()).await.expect("written");
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let made = ask(Api::of(dir.path())).await;
        (server.await.expect("no panic"), made)
    }

    fn answer(code: u16, body: &str) -> String {
        format!("HTTP/1.1 {code} X\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_rootlesskits_words_whatever_its_type_says() {
        let forward: Forward = "10.0.0.1:80:80/tcp".parse().expect("a forward");
        for (body, expected) in [
            (r#"{"message":"conflict with ID 7"}"#, "rootlesskit refuses (code 400): conflict with ID 7"),
            ("no such page\n", "rootlesskit refuses (code 400): no such page"),
        ] {
            let add = async |api: Api| api.session().add(&forward, false).await.expect_err("refused").to_string();
            assert_eq!(asked(&answer(400, body), add).await.1, expected);
        }
    }

    #[tokio::test]
    async fn a_session_is_one_connection_as_long_as_the_other_side_keeps_it() {
        let forward: Forward = "0.0.0.0:80:80/tcp".parse().expect("a forward");
        // What is answered over each connection, whether it is closed then, and how many connections three requests take.
        for (answer, closes, expected) in [
            (answer(201, "{}"), false, 1),
            (answer(400, "no"), false, 1),
            (answer(201, "{}"), true, 3),
            (answer(201, "{}").replacen("\r\n", "\r\nConnection: close\r\n", 1), true, 3),
            ("nonsense".to_owned(), false, 3),
            (answer(201, "{}") + "more", false, 3),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("bound");
            let served = answer.clone();
            let server = tokio::spawn(async move {
                let mut connections = 0;
                for _ in 0..3 {
                    let (mut stream, _) = listener.accept().await.expect("accepted");
                    connections += 1;
                    let mut request = vec![0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                        stream.write_all(served.as_bytes()).await.expect("written");
                        if closes {
                            break;
                        }
                    }
                    if connections == expected {
                        break;
                    }
                }
                connections
            });
            let api = Api::of(dir.path());
            let mut session = api.session();
            for _ in 0..3 {
                let added = session.add(&forward, false).await;
                assert_eq!(added.is_ok(), answer.contains("201"), "{answer}: {added:?}");
            }
            drop(session);
            let connections = timeout(Duration::from_secs(5), server).await.expect("no more than that");
            assert_eq!(connections.expect("no panic"), expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_request_that_was_given_up_is_not_answered_by_the_answer_to_it() {
        let forward: Forward = "0.0.0.0:80:80/tcp".parse().expect("a forward");
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("bound");
        let (refusal, added) = (answer(400, "late"), answer(201, "{}"));
        let server = tokio::spawn(async move {
            let mut request = vec![0; 4096];
            let (mut first, _) = listener.accept().await.expect("accepted");
            for _ in 0..2 {
                let _ = first.read(&mut request).await;
                let _ = first.write_all(added.as_bytes()).await;
            }
            let _ = first.read(&mut request).await;
            let (mut second, _) = listener.accept().await.expect("another connection");
            let _ = first.write_all(refusal.as_bytes()).await;
            let _ = second.read(&mut request).await;
            second.write_all(added.as_bytes()).await.expect("written");
        });
        let api = Api::of(dir.path());
        let mut session = api.session();
        for _ in 0..2 {
            session.add(&forward, false).await.expect("added");
        }
        timeout(Duration::from_millis(50), session.remove(7)).await.expect_err("given up");
        session.add(&forward, false).await.expect("added");
        server.await.expect("no panic");
    }

    #[tokio::test]
    async fn the_loopback_address_inside_is_named_where_the_driver_takes_it() {
        for (text, loopback, expected) in [
            ("10.0.0.1:80:80/tcp", true, r#""childIP":"127.0.0.1""#),
            ("[fd00::1]:80:80/tcp6", true, r#""childIP":"::1""#),
            ("10.0.0.1:80:80/tcp", false, r#""parentPort":80,"childPort":80"#),
            ("0.0.0.0:80:80/tcp", true, r#""parentPort":80,"childPort":80"#),
            ("10.0.0.1:80:10.0.2.100:80/tcp", true, r#""childIP":"10.0.2.100""#),
        ] {
            let forward: Forward = text.parse().expect(text);
            let add = async |api: Api| {
                format!("{:?}", api.session().add(&forward, loopback).await.map_err(|error| error.to_string()))
            };
            let (request, made) = asked(&answer(201, "{}"), add).await;
            assert!(request.contains(expected) && made == "Ok(())", "{text}: {request} {made}");
        }
    }

    #[tokio::test]
    async fn a_port_driver_is_told_apart() {
        for (code, body, expected) in [
            (200, r#"{"portDriver":{"driver":"builtin"}}"#, Driver::Takes { loopback: true }),
            (
                200,
                r#"{"portDriver":{"driver":"slirp4netns","disallowLoopbackChildIP":true}}"#,
                Driver::Takes { loopback: false },
            ),
            (200, r#"{"apiVersion":"1.1.1"}"#, Driver::None),
            (404, "404 page not found\n", Driver::Unknown),
        ] {
            let driver = async |api: Api| format!("{:?}", api.driver().await.expect("an answer"));
            assert_eq!(asked(&answer(code, body), driver).await.1, format!("{expected:?}"), "{body}");
        }
    }
}
