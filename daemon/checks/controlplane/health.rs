//! Whether endpoints are well: over TLS, and by the sockets of rootlesskit's network namespace.
//!
//! Certificates are not verified: it is asked whether somebody answers, no secret is sent, and of what comes back nothing is
//! believed but that. (The certificate of the kubelet's port is its own, that of the apiserver names no `localhost` that a
//! load balancer could be sure of.)
//!
//! A request has no credentials. An apiserver that lets nobody in without any answers 401, and writes that into the audit
//! log, where it is a finding: so who refused once is asked by a handshake only. etcd would log whoever speaks to it without a
//! certificate: it is looked whether it listens; whether it is well the apiserver's `/readyz` says.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::seen::Answer;
use super::settings::{Endpoint, Health};
use crate::checks::forwards::tables::Sockets;
use crate::finding::prefix;
use crate::http;

/// An answer comes within that time, or there is none.
const TIME: Duration = Duration::from_secs(3);
/// Longest body of an answer, in bytes: `/readyz?verbose` has some three thousand.
const MAX_BODY: usize = 64 << 10;
/// So much of a body is told, in bytes.
const MAX_TOLD: usize = 200;
/// The kubelet's, through its forward (kubernetes pkg/kubelet/server).
const KUBELET_PORT: u16 = 10250;
/// etcd's for clients.
pub const ETCD_PORT: u16 = 2379;
/// More bytes of a table of addresses are not read.
const MAX_TABLE: u64 = 4 << 20;

/// Asks endpoints.
pub struct Prober(TlsConnector);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether it is well.
    pub answer: Answer,
    /// It lets nobody in without credentials: a further request would be another refusal in its audit log.
    pub is_refused: bool,
}

impl Prober {
    /// Nobody was asked yet.
    ///
    /// # Errors
    /// No TLS client can be made.
    pub fn new() -> Result<Prober, String> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Anybody(Arc::clone(&provider)));
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| format!("no TLS client can be made: {error}"))?;
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Prober(TlsConnector::from(Arc::new(config))))
    }

    /// Asks an endpoint, for a few seconds at most; [`Health::Off`] is no way to ask.
    pub async fn ask(&self, endpoint: &Endpoint, how: Health) -> Told {
        let asked = async {
            if how == Health::Request { self.request(endpoint).await } else { self.handshake(endpoint).await }
        };
        let told = timeout(TIME, asked).await;
        let told = told.unwrap_or_else(|_| Err(format!("{endpoint} gives no answer within {} s", TIME.as_secs())));
        told.unwrap_or_else(|why| Told { answer: Err(why), is_refused: false })
    }

    async fn request(&self, endpoint: &Endpoint) -> Result<Told, String> {
        let stream = self.connect(endpoint).await?;
        let (host, path) = (endpoint.authority(), &endpoint.path);
        let answer = http::ask(stream, Method::GET, &host, path, None, MAX_BODY).await;
        let (code, body) = answer.map_err(|error| format!("{endpoint}: {error}"))?;
        let is_refused = matches!(code, 401 | 403);
        let answer = if code < 500 {
            Ok(format!("{endpoint} answers {code}"))
        } else {
            Err(format!("{endpoint} answers {code}{}", reason(&body)))
        };
        Ok(Told { answer, is_refused })
    }

    async fn handshake(&self, endpoint: &Endpoint) -> Result<Told, String> {
        let mut stream = self.connect(endpoint).await?;
        // Whoever is hung up on without a word logs that; and whether it hears it is of no interest.
        let _ = stream.shutdown().await;
        Ok(Told { answer: Ok(format!("https://{} speaks TLS", endpoint.authority())), is_refused: false })
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, String> {
        let Endpoint { host, port, .. } = endpoint;
        let told = |error: std::io::Error| format!("https://{}: {error}", endpoint.authority());
        let name = ServerName::try_from(host.clone()).map_err(|_| format!("`{host}` is no name of a host"))?;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(told)?;
        self.0.connect(name, stream).await.map_err(told)
    }
}

/// Where the kubelet is asked.
pub fn kubelet() -> Endpoint {
    Endpoint { path: "/healthz".to_owned(), ..Endpoint::at([127, 0, 0, 1].into(), KUBELET_PORT) }
}

/// Why an apiserver says that it is not well: the checks that failed, else how the body begins.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let failed: Vec<_> = text.lines().filter(|line| line.starts_with("[-]")).collect();
    let told = if failed.is_empty() { text.lines().next().unwrap_or_default().to_owned() } else { failed.join(", ") };
    if told.is_empty() { String::new() } else { format!(": {}", prefix(&told, MAX_TOLD)) }
}

/// Believes any certificate; see above.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether somebody listens at a TCP port in the network namespace of a process; `None`: that cannot be read.
pub fn listens(proc: &Path, pid: u32, port: u16) -> Option<bool> {
    let sockets = Sockets::read_tcp(&proc.join(pid.to_string()).join("net")).ok()?;
    Some(sockets.iter().any(|socket| socket.port == port))
}

/// Whether this node holds an address. The tables of the kernel say so: binding to it proves nothing where
/// `net.ipv4.ip_nonlocal_bind` is set, as it is for load balancers.
pub fn is_local(proc: &Path, address: IpAddr) -> bool {
    let net = proc.join("self/net");
    let read = |name: &str| {
        let mut text = String::new();
        let file = File::open(net.join(name)).ok();
        file.and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text).ok()).map(|_| text).unwrap_or_default()
    };
    match address {
        IpAddr::V4(_) => has_address(&read("fib_trie"), address),
        IpAddr::V6(address) => has_address6(&read("if_inet6"), address),
    }
}

/// Whether `/proc/net/fib_trie` has it among the local ones: below the address its kind stands.
fn has_address(table: &str, address: IpAddr) -> bool {
    let mut is_it = false;
    table.lines().any(|line| {
        if let Some(leaf) = line.trim().strip_prefix("|-- ") {
            is_it = leaf.parse() == Ok(address);
        }
        is_it && line.trim_end().ends_with("/32 host LOCAL")
    })
}

/// Whether `/proc/net/if_inet6` has it: a line each, 32 hexadecimal digits first.
fn has_address6(table: &str, address: Ipv6Addr) -> bool {
    let digits = format!("{:032x}", address.to_bits());
    table.lines().any(|line| line.split_ascii_whitespace().next() == Some(&digits))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    /// A server that takes one connection, and answers with that; none: it says nothing.
    async fn server(answer: Option<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            match answer {
                Some(answer) => drop(stream.write_all(answer).await),
                None => std::future::pending().await,
            }
        });
        address
    }

    /// The same over TLS; what it heard, once the connection has ended.
    async fn tls_server(answer: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<(String, bool)>) {
        let certificate = include_bytes!("../../../tests/data/tls/certificate.der").as_slice();
        let key = PrivatePkcs8KeyDer::from(include_bytes!("../../../tests/data/tls/key.der").as_slice());
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let config = builder.with_single_cert(vec![CertificateDer::from(certificate)], key.into()).expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let heard = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accepted");
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.expect("a whole handshake");
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) => return (text, true),
                    Err(_) => return (text, false),
                    Ok(count) => {
                        text += std::str::from_utf8(&buffer[..count]).expect("text");
                        stream.write_all(answer).await.expect("written");
                        stream.flush().await.expect("written");
                    }
                }
            }
        });
        (address, heard)
    }

    #[tokio::test]
    async fn whoever_answers_is_alive_and_who_says_500_is_not_well() {
        for (answer, is_well, is_refused, told) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], true, false, "/readyz answers 200"),
            (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", true, true, "/readyz answers 401"),
            (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", true, true, "/readyz answers 403"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", true, false, "/readyz answers 404"),
            (
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 16\r\n\r\n[-]etcd failed\nx",
                false,
                false,
                "/readyz answers 500: [-]etcd failed",
            ),
            (b"no HTTP\r\n\r\n", false, false, "no HTTP answer"),
        ] {
            let (address, heard) = tls_server(answer).await;
            let Told { answer, is_refused: refused } = asked(address, Health::Request).await;
            assert_eq!((answer.is_ok(), refused), (is_well, is_refused), "{answer:?}");
            let answer = answer.unwrap_or_else(|why| why);
            assert!(answer.starts_with(&format!("https://{address}")) && answer.contains(told), "{answer}");
            let (text, _) = heard.await.expect("no panic");
            assert!(
                text.starts_with("GET /readyz HTTP/1.1\r\n") && !text.to_lowercase().contains("authorization"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_handshake_asks_for_nothing_and_ends_as_it_should() {
        let (address, heard) = tls_server(b"").await;
        let told = asked(address, Health::Handshake).await;
        assert_eq!(told.answer, Ok(format!("https://{address} speaks TLS")));
        assert_eq!(heard.await.expect("no panic"), (String::new(), true), "with a word of goodbye");
    }

    async fn asked(address: SocketAddr, how: Health) -> Told {
        let prober = Prober::new().expect("a client");
        prober.ask(&Endpoint::at(address.ip(), address.port()), how).await
    }

    #[tokio::test]
    async fn who_is_silent_is_not_well_and_waited_for_three_seconds() {
        let before = std::time::Instant::now();
        let told = asked(server(None).await, Health::Handshake).await;
        assert!(told.answer.is_err_and(|why| why.contains("no answer within 3 s")));
        assert!((3..60).contains(&before.elapsed().as_secs()));
    }

    #[tokio::test]
    async fn who_speaks_no_tls_or_is_not_there_is_not_well() {
        let told = asked(server(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await, Health::Request).await;
        assert!(told.answer.is_err_and(|why| why.starts_with("https://127.0.0.1:")));
        let gone = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("bound");
        assert!(asked(gone, Health::Request).await.answer.is_err_and(|why| why.contains("refused")));
    }

    #[test]
    fn an_apiserver_that_is_not_well_says_what_failed() {
        let body = b"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]x failed\nreadyz check failed\n";
        assert_eq!(reason(body), ": [-]etcd failed: reason withheld, [-]x failed");
        assert_eq!(reason(b"<html>503</html>\nx"), ": <html>503</html>");
        assert_eq!((reason(b""), reason(&[b'x'; 9999]).len()), (String::new(), MAX_TOLD + 2));
    }

    #[test]
    fn a_listener_is_found_in_the_tables_of_a_network_namespace() {
        let head = "  sl  local_address rem_address   st tx_queue\n";
        let line = |address: &str, state: &str| {
            format!("   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 7 1\n")
        };
        let tcp = head.to_owned()
            + &line("0100007F:094B", "0A")
            + &line("0100007F:192B", "0A")
            + &line("0100007F:094C", "01");
        let proc = tempfile::tempdir().expect("a directory");
        let path = |name: &str| proc.path().join("21/net").join(name);
        assert_eq!(listens(proc.path(), 21, 2379), None);
        std::fs::create_dir_all(path("")).expect("made");
        std::fs::write(path("tcp"), head).expect("written");
        assert_eq!(listens(proc.path(), 21, 2379), Some(false));
        let all = "00000000000000000000000000000000:094B";
        std::fs::write(path("tcp6"), head.to_owned() + &line(all, "0A")).expect("written");
        assert_eq!(listens(proc.path(), 21, 2379), Some(true));
        std::fs::remove_file(path("tcp6")).expect("removed");
        std::fs::write(path("tcp"), tcp).expect("written");
        for (port, expected) in [(2379, true), (6443, true), (2380, false), (2378, false)] {
            assert_eq!(listens(proc.path(), 21, port), Some(expected), "{port}");
        }
    }

    #[test]
    fn an_address_is_local_if_the_kernels_tables_say_so() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.10\n        /32 host LOCAL\n\
                    |-- 192.0.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n           /32 host LOCAL\n";
        for (address, expected) in
            [("192.0.2.10", true), ("127.0.0.1", true), ("192.0.2.0", false), ("192.0.2.255", false)]
        {
            assert_eq!(has_address(trie, address.parse().expect("an address")), expected, "{address}");
        }
        let table = "20010db8000000000000000000000001 02 40 00 80     eth0\n";
        for (address, expected) in [("2001:db8::1", true), ("2001:db8::2", false)] {
            assert_eq!(has_address6(table, address.parse().expect("an address")), expected, "{address}");
        }
        assert!(is_local(Path::new("/proc"), [127, 0, 0, 1].into()), "of this machine");
        assert!(!is_local(Path::new("/proc"), [192, 0, 2, 1].into()));
    }
}
