//! A Kubernetes API (services only) that does what it is told: a stand-in for apiservers that restart, refuse and misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    /// Path and query.
    pub(crate) target: String,
    /// Its lines, in small letters.
    pub(crate) headers: Vec<String>,
}

impl Asked {
    pub(crate) fn is_watch(&self) -> bool {
        self.target.contains("watch=true")
    }
}

/// What the API does with a request, one after the other.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Answers with a whole list or status.
    Answers(u16, Value),
    /// Begins a watch.
    Begins,
    /// Tells this line of the watch.
    Tells(String),
    /// Sends this as a part of the watch, which need not be a line.
    Sends(&'static str),
    /// Sends these bytes without end.
    Floods(&'static [u8]),
    /// Does nothing, for so long.
    Waits(Duration),
    /// Ends the watch in order.
    Ends,
    /// Closes the connection.
    Closes,
    /// Does nothing until the client is gone.
    Stays,
}

/// The API; it lives as long as the process.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Script = dyn Fn(&Asked, usize) -> Vec<Does> + Send + Sync;

impl Api {
    /// Starts it. `script` says what it does with a request, of which there were so many before.
    pub(crate) fn start(script: impl Fn(&Asked, usize) -> Vec<Does> + Send + Sync + 'static) -> Api {
        Api::start_with(None, script)
    }

    /// The same, encrypted.
    pub(crate) fn start_tls(
        tls: ServerConfig,
        script: impl Fn(&Asked, usize) -> Vec<Does> + Send + Sync + 'static,
    ) -> Api {
        Api::start_with(Some(Arc::new(tls)), script)
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&Asked, usize) -> Vec<Does> + Send + Sync + 'static,
    ) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let api = Api { address: listener.local_addr().expect("bound"), asked: Arc::default() };
        let (server, script): (_, Arc<Script>) = (api.clone(), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_nodelay(true).expect("set");
                let (server, script, tls) = (server.clone(), Arc::clone(&script), tls.clone());
                // An error is that of a peer that is gone.
                thread::spawn(move || match tls {
                    None => server.serve(stream, &*script),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).expect("a configuration");
                        server.serve(StreamOwned::new(connection, stream), &*script)
                    }
                });
            }
        });
        api
    }

    /// What it was asked for until now.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("whole").clone()
    }

    fn serve(&self, stream: impl Read + Write, script: &Script) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
                match line.trim_end() {
                    "" => break,
                    line => lines.push(line.to_owned()),
                }
            }
            let target = lines.first()?.split(' ').nth(1)?.to_owned();
            let headers = lines[1..].iter().map(|line| line.to_ascii_lowercase()).collect();
            let asked = Asked { at: Instant::now(), target, headers };
            let before = {
                let mut all = self.asked.lock().expect("whole");
                all.push(asked.clone());
                all.len() - 1
            };
            for does in script(&asked, before) {
                answer(&mut stream, does)?;
            }
        }
    }
}

fn answer(stream: &mut BufReader<impl Read + Write>, does: Does) -> Option<()> {
    let mut chunk = |part: &str| {
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        stream.get_mut().write_all(chunk.as_bytes()).and_then(|()| stream.get_mut().flush()).ok()
    };
    match does {
        Does::Tells(line) => chunk(&format!("{line}\n"))?,
        Does::Sends(part) => chunk(part)?,
        Does::Ends => {
            stream.get_mut().write_all(b"0\r\n\r\n").ok()?;
            stream.get_mut().flush().ok()?;
        }
        Does::Answers(status, body) => {
            let body = body.to_string();
            let head =
                format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
            write!(stream.get_mut(), "{head}\r\n\r\n{body}").ok()?;
            stream.get_mut().flush().ok()?;
        }
        Does::Begins => {
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").ok()?;
            stream.get_mut().flush().ok()?;
        }
        Does::Floods(bytes) => loop {
            let head = format!("{:x}\r\n", bytes.len());
            let whole = [head.as_bytes(), bytes, b"\r\n"].concat();
            stream.get_mut().write_all(&whole).ok()?;
        },
        Does::Waits(time) => thread::sleep(time),
        Does::Closes => return None,
        Does::Stays => {
            let _ = stream.read(&mut [0]);
            return None;
        }
    }
    Some(())
}

/// A service of type NodePort with this port for TCP.
pub(crate) fn service(name: &str, version: u32, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "labels": {"a": "b"}},
        "spec": {"type": "NodePort", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": port}]},
        "status": {"loadBalancer": {}},
    })
}

/// A page of a list, with what to ask for the next one with.
pub(crate) fn page(version: u32, services: &[Value], next: &str) -> Does {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    let list = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": services});
    Does::Answers(200, list)
}

/// A whole list.
pub(crate) fn list(version: u32, services: &[Value]) -> Does {
    page(version, services, "")
}

pub(crate) fn event(kind: &str, object: &Value) -> Does {
    Does::Tells(json!({"type": kind, "object": object}).to_string())
}

pub(crate) fn bookmark(version: u32) -> Does {
    let metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
    event("BOOKMARK", &json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {}}))
}

/// `Status` of meta/v1.
pub(crate) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code})
}
