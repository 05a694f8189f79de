//! `podsecctl probe`, as keepalived calls it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{podsecctl, stderr, stdout, wait_until};

/// A TLS server that answers anything with a page, as `openssl s_server -www` does. It is killed when it is dropped.
struct Server(Child, u16);

impl Server {
    fn start(directory: &Path) -> Server {
        let port = free_port();
        let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        make.args(["-subj", "/CN=nobody", "-days", "1"]).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        assert!(make.stderr(Stdio::null()).status().expect("openssl is installed").success());
        let mut serve = Command::new("openssl");
        serve.args(["s_server", "-quiet", "-www", "-accept", &format!("127.0.0.1:{port}")]);
        serve.arg("-key").arg(&key).arg("-cert").arg(&certificate).stdin(Stdio::null()).stdout(Stdio::null());
        let server = Server(serve.stderr(Stdio::null()).spawn().expect("openssl starts"), port);
        wait_until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("bound").port()
}

/// The probe with this `[controlplane]`.
fn probe(directory: &Path, settings: &str, arguments: &[&str]) -> Output {
    let config = directory.join("podsecd.toml");
    fs::write(&config, format!("[controlplane]\n{settings}\n")).expect("written");
    podsecctl(&[&["probe", "apiserver", "--config", &config.display().to_string()], arguments].concat())
}

#[test]
fn a_load_balancer_that_answers_is_exit_code_0_and_one_that_does_not_is_1() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let there = format!("https://localhost:{}/", server.1);
    let output = probe(directory.path(), &format!("load-balancer = \"{there}\""), &[]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(stdout(&output), format!("apiserver OK: {there}readyz answers 200\n"));
    let output = probe(directory.path(), &format!("health = \"handshake\"\napiserver = \"{there}\""), &[]);
    assert_eq!(stdout(&output), format!("apiserver OK: {} speaks TLS\n", there.trim_end_matches('/')));
    let gone = format!("https://127.0.0.1:{}/", free_port());
    let output = probe(directory.path(), &format!("load-balancer = \"{gone}\"\napiserver = \"{there}\""), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).starts_with(&format!("apiserver FAILED: {}: ", gone.trim_end_matches('/'))),
        "{}",
        stdout(&output)
    );
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn the_virtual_address_is_asked_only_by_the_node_that_holds_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path());
    let there = format!("load-balancer = \"https://localhost:{}/\"", server.1);
    for (address, asked, code) in [("127.0.0.1", 2, 0), ("192.0.2.1", 1, 0), ("::1", 2, 1)] {
        let output = probe(directory.path(), &format!("{there}\nvirtual-address = \"{address}\""), &["--json"]);
        let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("json");
        assert_eq!(answer["asked"].as_array().map(Vec::len), Some(asked), "{answer}");
        // Nobody listens at ::1.
        assert_eq!((output.status.code(), answer["well"].as_bool()), (Some(code), Some(code == 0)), "{answer}");
    }
}

#[test]
fn what_is_no_apiserver_is_exit_code_1_in_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let garbage = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"\x1b[2Jnot TLS\r\n");
        // The next one waits in vain.
        listener
    });
    let settings = format!("load-balancer = \"https://127.0.0.1:{port}/\"");
    let output = probe(directory.path(), &settings, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!stdout(&output).contains('\x1b'), "{}", stdout(&output));
    let _listener = garbage.join().expect("no panic");
    let before = std::time::Instant::now();
    let output = probe(directory.path(), &settings, &[]);
    assert!(stdout(&output).contains("no answer within 3 s"), "{}", stdout(&output));
    assert!(before.elapsed().as_secs() < 10);
}

#[test]
fn a_wrong_configuration_is_told_and_is_no_success() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = probe(directory.path(), "load-balancer = \"localhost:8443\"", &[]);
    assert_eq!(output.status.code(), Some(1));
    for part in ["podsecd.toml:2", "`controlplane.load-balancer`", "write for example `https://localhost:8443/`"] {
        assert!(stderr(&output).contains(part), "{} should name {part}", stderr(&output));
    }
}
