//! HTTP/1.1 requests and their answers (RFC 9112), one after the other, over any stream: a unix socket, TCP, TLS.
//!
//! Whoever answers may be anybody: what is taken of the answer is bounded. How long it may take is the caller's business: a
//! call that is dropped drops the stream, and nothing of it goes on.

use std::error::Error as _;
use std::pin::{Pin, pin};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest head of an answer, in bytes: its status line and all header fields.
const MAX_HEAD: usize = 16 << 10;
/// Most header fields of an answer.
const MAX_FIELDS: usize = 64;
/// Who asks: the other side's log shows it.
const AGENT: &str = concat!("podsecd/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Host, path or body make no request.
    #[error("no HTTP request can be made of it: {0}")]
    Request(#[from] hyper::http::Error),
    /// The stream failed or ended, or what came is no HTTP/1.1.
    #[error("no HTTP answer: {}", told(.0))]
    Answer(#[from] hyper::Error),
    /// The body of the answer has more bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// What hyper says is only half of it: the reason is its source.
fn told(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Sends a request and reads the answer: its status code (100 to 999) and its body, of at most `limit` bytes. `path` begins
/// with `/`; `body` is JSON. The connection ends with it.
///
/// # Errors
/// As [`Error`] says. An answer of any status code is none.
pub async fn ask<S>(
    stream: S,
    method: Method,
    host: &str,
    path: &str,
    body: Option<Vec<u8>>,
    limit: usize,
) -> Result<(u16, Vec<u8>), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = request(method, host, path, body)?;
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Connection::over(stream).await?.exchange(request, limit).await
}

fn request(method: Method, host: &str, path: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>, Error> {
    let request = Request::builder().method(method).uri(path).header(HOST, host).header(USER_AGENT, AGENT);
    let request = if body.is_some() { request.header(CONTENT_TYPE, "application/json") } else { request };
    Ok(request.body(Full::new(Bytes::from(body.unwrap_or_default())))?)
}

/// A stream over which one request after the other is sent.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes while it is polled, and ends when the stream does.
    stream: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Connection {
    /// Takes the stream, on which nothing was sent yet.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub async fn over<S>(stream: S) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
        let (sender, stream) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, stream: Some(Box::pin(async { drop(stream.await) })) })
    }

    /// Like [`ask`], but the other side need not close the stream.
    ///
    /// # Errors
    /// As [`Error`] says. After one the connection is of no more use, nor after a call that was dropped: its answer may still come.
    pub async fn ask(
        &mut self,
        method: Method,
        host: &str,
        path: &str,
        body: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<(u16, Vec<u8>), Error> {
        self.exchange(request(method, host, path, body)?, limit).await
    }

    /// Whether it takes another request: the other side may have closed it with its answer.
    pub async fn is_open(&mut self) -> bool {
        let Connection { sender, stream: Some(stream) } = self else { return false };
        tokio::select! {
            biased;
            () = stream => {}
            ready = sender.ready() => return ready.is_ok(),
        }
        self.stream = None;
        false
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>, limit: usize) -> Result<(u16, Vec<u8>), Error> {
        let Connection { sender, stream } = self;
        let mut exchange = pin!(exchange(sender, request, limit));
        if let Some(open) = stream {
            tokio::select! {
                biased;
                answer = &mut exchange => return answer,
                () = open => {}
            }
            // It is dropped when it ends: then the exchange ends, too.
            *stream = None;
        }
        exchange.await
    }
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(u16, Vec<u8>), Error> {
    let answer = sender.send_request(request).await?;
    let code = answer.status().as_u16();
    Ok((code, read(answer.into_body(), limit).await?))
}

async fn read(mut body: Incoming, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing here.
        let Ok(data) = frame?.into_data() else { continue };
        if data.len() > limit - bytes.len() {
            return Err(Error::TooLong(limit));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    /// Asks somebody who answers so, and then closes or stays; the answer, and what was asked.
    async fn answered(answer: &[u8], closes: bool, body: Option<&str>) -> (Result<(u16, Vec<u8>), Error>, String) {
        let (ours, theirs) = duplex(1 << 20);
        let answer = answer.to_vec();
        let server = tokio::spawn(serve(theirs, answer, closes));
        let body = body.map(|body| body.as_bytes().to_vec());
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let asked = ask(ours, method, "rootlesskit", "/v1/ports", body, 16);
        let answer = timeout(Duration::from_secs(5), asked).await.expect("in time");
        (answer, server.await.expect("no panic"))
    }

    async fn serve(mut stream: DuplexStream, answer: Vec<u8>, closes: bool) -> String {
        let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
        while !asked.windows(4).any(|end| end == b"\r\n\r\n") || asked.starts_with(b"POST") && !asked.ends_with(b"}") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => asked.extend_from_slice(&buffer[..count]),
            }
        }
        let _ = stream.write_all(&answer).await;
        if !closes {
            let _ = stream.read(&mut buffer).await;
        }
        String::from_utf8(asked).expect("text")
    }

    #[tokio::test]
    async fn an_answer_is_its_code_and_its_body_however_its_length_is_told() {
        for (answer, closes, expected) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull"[..], false, (200, "null")),
            (
                b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                false,
                (201, "abc"),
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n{\"message\":1}",
                true,
                (400, "{\"message\":1}"),
            ),
            (b"HTTP/1.0 401 Unauthorized\r\n\r\n", true, (401, "")),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", false, (204, "")),
        ] {
            let (answer, _) = answered(answer, closes, None).await;
            let (code, body) = answer.expect("an answer");
            assert_eq!((code, std::str::from_utf8(&body).expect("text")), expected);
        }
    }

    #[tokio::test]
    async fn a_request_names_its_host_and_carries_its_body() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (_, asked) = answered(answer, true, Some("{\"a\":1}")).await;
        let asked = asked.to_lowercase();
        for part in
            ["post /v1/ports http/1.1\r\n", "host: rootlesskit\r\n", "content-length: 7\r\n", "json\r\n", "{\"a\":1}"]
        {
            assert!(asked.contains(part), "{asked} should contain {part}");
        }
        let (_, asked) = answered(answer, true, None).await;
        assert!(asked.starts_with("GET /v1/ports HTTP/1.1\r\n") && !asked.contains("json"), "{asked}");
    }

    #[tokio::test]
    async fn what_is_no_answer_or_too_much_of_one_is_an_error() {
        let endless = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'x'; 512 << 10]].concat();
        let fields = [&b"HTTP/1.1 200 OK\r\n"[..], &b"x: y\r\n".repeat(1000), b"\r\n"].concat();
        for (answer, closes, expected) in [
            (&b""[..], true, "no HTTP answer"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", false, "no HTTP answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Le", true, "no HTTP answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnu", true, "no HTTP answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n01234567890123456", false, "longer than 16 bytes"),
            (b"HTTP/1.1 200 OK\r\n\r\n01234567890123456", true, "longer than 16 bytes"),
            (&endless, false, "no HTTP answer"),
            (&fields, false, "no HTTP answer"),
        ] {
            let (answer, _) = answered(answer, closes, None).await;
            let error = answer.expect_err(expected).to_string();
            assert!(error.starts_with(expected) || error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn what_makes_no_request_is_said_so() {
        for (host, path) in [("a\r\nb", "/"), ("a", "/ \r\n"), ("a", "")] {
            let (ours, _theirs) = duplex(64);
            let refused = ask(ours, Method::GET, host, path, None, 1).await.expect_err("refused");
            assert!(matches!(refused, Error::Request(_)), "{refused}");
        }
    }
}
