//! Asks the Kubernetes API for services, and takes no more of its answers than there is room for.
//!
//! kube's own client would take a line or a list however long it is, write what it cannot read to the log, and try again
//! by itself. Here it connects, encrypts and says who we are; what it answers is read below.

use std::error::Error;
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{Body, ConfigExt};
use kube::core::Request as Query;
use kube::core::params::{ListParams, WatchParams};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

use super::Times;
use super::object::{Found, GONE, Page, Status};
use crate::finding::prefix;

/// Where the services of all namespaces are.
const PATH: &str = "/api/v1/services";
/// So many services are asked for at a time.
const PAGE: u32 = 500;
/// Longer pages and lines are not taken. etcd keeps no object of more than 1.5 MiB; pages are made shorter then.
const MAX_BODY: usize = 4 << 20;
/// So much of the reason of a refusal is read, …
const MAX_STATUS: usize = 16 << 10;
/// … and so much of a reason is told.
const MAX_REASON: usize = 300;
/// A dead connection is found out about by the kernel, for which nothing wakes here.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A longer one than this is given back when it was needed.
const USUAL_BUFFER: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// What was asked for is too long ago.
    Gone,
    /// The answer is longer than [`MAX_BODY`].
    TooLong,
    /// The connection ended in the middle of an answer.
    Dropped(String),
    /// The API says no, or says what it should not. Then it is better asked for everything.
    Refused(String),
    /// It cannot be asked.
    Away(String),
}

/// What asks the API.
pub(super) struct Client {
    client: kube::Client,
    times: Times,
}

impl Client {
    /// Connects when it is asked for something.
    ///
    /// # Errors
    /// The certificates, keys or tokens are none.
    pub(super) fn new(config: &Config, times: Times) -> Result<Client, String> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_keepalive(Some(KEEPALIVE));
        let refuse = |error: kube::Error| format!("the kubeconfig's credentials: {}", reason(&error));
        let connector = config.rustls_https_connector_with_connector(http).map_err(refuse)?;
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(refuse)?)
            .map_err(BoxError::from)
            .service(Connections::builder(TokioExecutor::new()).build(connector));
        Ok(Client { client: kube::Client::new(service, ""), times })
    }

    /// All services, and the version up to which that is.
    pub(super) async fn list(&self) -> Result<(Found, String), Failure> {
        let listed = timeout(self.times.list, self.list_pages()).await;
        listed.unwrap_or_else(|_| Err(Failure::Away(format!("has not listed all services in {:?}", self.times.list))))
    }

    async fn list_pages(&self) -> Result<(Found, String), Failure> {
        let (mut found, mut first, mut params) = (Found::default(), None, ListParams::default().limit(PAGE));
        loop {
            let page = match self.page(&params).await {
                Err(Failure::TooLong) if params.limit > Some(1) => {
                    params.limit = params.limit.map(|limit| (limit / 5).max(1));
                    continue;
                }
                other => other?,
            };
            let (version, next) = Page::parse(&page, &mut found).map_err(Failure::Refused)?;
            // What changes meanwhile is told again by a watch from the first page's version on.
            let version = first.get_or_insert(version);
            match next {
                None => return Ok((found, std::mem::take(version))),
                Some(next) if params.continue_token.as_ref() == Some(&next) => {
                    return Err(Failure::Refused("answers the same page of a list again and again".into()));
                }
                next => params.continue_token = next,
            }
        }
    }

    async fn page(&self, params: &ListParams) -> Result<Vec<u8>, Failure> {
        let request = Query::new(PATH).list(params).map_err(|error| Failure::Refused(error.to_string()))?;
        let page = timeout(self.times.request, async { collect(self.ask(request).await?, MAX_BODY).await });
        page.await.unwrap_or_else(|_| Err(self.is_late()))
    }

    /// What happens to services after a version.
    pub(super) async fn watch(&self, version: &str) -> Result<Lines, Failure> {
        let seconds = u32::try_from(self.times.watch.as_secs()).unwrap_or(u32::MAX);
        let request = Query::new(PATH).watch(&WatchParams::default().timeout(seconds), version);
        let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
        let answer = timeout(self.times.request, self.ask(request)).await;
        Ok(Lines { body: answer.unwrap_or_else(|_| Err(self.is_late()))?, buffer: Vec::new(), start: 0 })
    }

    fn is_late(&self) -> Failure {
        Failure::Away(format!("does not answer in {:?}", self.times.request))
    }

    /// The body of the answer, if it is one.
    async fn ask(&self, request: Request<Vec<u8>>) -> Result<Body, Failure> {
        let mut request = request.map(Body::from);
        // kube-apiserver's audit log shows it.
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("podsecd-u7s"));
        let answer = self.client.send(request).await.map_err(|error| Failure::Away(reason(&error)))?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status if status.as_u16() == GONE => Err(Failure::Gone),
            status => {
                // What is longer, or breaks off, says nothing.
                let text = collect(answer.into_body(), MAX_STATUS).await.unwrap_or_default();
                let Status { message } = serde_json::from_slice(&text).unwrap_or_default();
                Err(Failure::Refused(refusal(status, &message)))
            }
        }
    }
}

/// Why the API refused, and what to do.
fn refusal(status: StatusCode, message: &str) -> String {
    let what = format!("answers {}", status.as_u16());
    let what = if message.is_empty() { what } else { format!("{what}: {}", prefix(message, MAX_REASON)) };
    match status {
        StatusCode::UNAUTHORIZED => {
            format!("{what}; the kubeconfig's token or certificate is not valid, make a new one")
        }
        StatusCode::FORBIDDEN => format!("{what}; run `kubectl apply -f podsecd-u7s-rbac.yaml`"),
        _ => what,
    }
}

/// An error with what it comes from, which often says more.
fn reason(error: &kube::Error) -> String {
    let error: &dyn Error = match error {
        kube::Error::Service(error) => error.as_ref(),
        other => other,
    };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source.filter(|_| text.len() < MAX_REASON) {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    prefix(&text, MAX_REASON).to_owned()
}

/// A whole body.
async fn collect(mut body: Body, most: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Dropped(reason(&error)))?;
        let data = frame.into_data().unwrap_or_default();
        if bytes.len() + data.len() > most {
            return Err(Failure::TooLong);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The lines of a watch, as they come.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins.
    start: usize,
}

impl Lines {
    /// The next line, without its end; `None` at the end of the watch. It may be given up while it waits.
    ///
    /// # Errors
    /// The connection ended, also within a line; a line is longer than [`MAX_BODY`].
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        let mut searched = self.start;
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let start = std::mem::replace(&mut self.start, searched + length + 1);
                return Ok(Some(&self.buffer[start..searched + length]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.len() > MAX_BODY {
                return Err(Failure::Refused(format!("tells of one service with more than {} MiB", MAX_BODY >> 20)));
            }
            if self.buffer.is_empty() {
                self.buffer.shrink_to(USUAL_BUFFER);
            }
            searched = self.buffer.len();
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Failure::Dropped("the connection ended within a line".into())),
                Some(Err(error)) => return Err(Failure::Dropped(reason(&error))),
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    }

    /// Whether a line has begun that has not ended.
    pub(super) fn is_within_one(&self) -> bool {
        self.start < self.buffer.len()
    }
}
