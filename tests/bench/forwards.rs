//! From rootlesskit's API that answers again to two hundred forwards that stand, against a bare loop of the same requests;
//! on the test node, with the real rootlesskit. There also podsecd-u7s's memory and wake-ups, at last with all that it can have:
//! a Kubernetes API (a stand-in) with thousands of Services, and a control plane.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::User;
use podsecd::checks::forwards::forward::Transport;
use podsecd::checks::forwards::tables::Sockets;

use crate::api::{Api, Does, page, service};
use crate::node::Node;
use crate::table::{Bound, Figure, Table, median};

/// The parts that run in the node.
pub(crate) const STAND: &str = "forwards-stand";
pub(crate) const BARE: &str = "forwards-bare";
pub(crate) const SERVICES: &str = "forwards-services";
/// Where rootlesskit's API is, by the environment.
const API: &str = "PODSECD_BENCH_API";
/// How many forwards, from this port on.
const FORWARDS: u16 = 200;
const FIRST: u16 = 20000;
const ROUNDS: usize = 5;
/// How long podsecd-u7s is watched idling: so many of its probes.
const IDLING: Duration = Duration::from_secs(60);
const PROBES: u64 = 2;
/// How many Services there are, of so many bytes each, and how many of them have a NodePort.
const OBJECTS: usize = 5000;
const OBJECT: usize = 8 << 10;
const NODE_PORTS: u16 = 100;
const KUBECONFIG: &str = "/etc/podsecd/kubeconfig";

/// Measures on a node.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    if let Some(why) = Node::missing() {
        return Err(why);
    }
    let node = Node::boot();
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    std::fs::copy(this, node.root().join("usr/local/bin/bench")).map_err(|error| error.to_string())?;
    let mut config = "[forwards]\npodsec = false\ndeclare = [".to_owned();
    for port in FIRST..FIRST + FORWARDS {
        // Writing into a String cannot fail.
        let _ = write!(config, "\"0.0.0.0:{port}:{port}/tcp\", ");
    }
    config.push_str("]\n");
    std::fs::write(node.root().join("etc/podsecd/podsecd.toml"), &config).map_err(|error| error.to_string())?;
    node.shell(include_str!("../node/u7s"));
    let round = |part: &str, unit: &str| {
        let script = format!(
            "systemctl {unit} podsecd-u7s; sleep 2; uid=$(id -u u7s-admin)
             pkill -KILL -u u7s-admin -o -x rootlesskit
             runuser -u u7s-admin -- env {}={part} {API}=/run/user/$uid/usernetes/rootlesskit/api.sock bench",
            crate::world::INSIDE
        );
        node.shell(&script).trim().parse::<f64>().map_err(|error| error.to_string())
    };
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(round(STAND, "start")?);
        bare.push(round(BARE, "stop")?);
    }
    let (ours, bare) = (median(&ours), median(&bare));
    table.add(Figure {
        what: format!("rootlesskit ready again to {FORWARDS} forwards standing vs a bare loop of the same POSTs"),
        ours: format!("{ours:.3} s"),
        peer: format!("{bare:.3} s"),
        ratio: ours / bare,
        bound: Bound::AtMost(1.5),
    });
    table.add(Figure {
        what: format!("the same, in seconds, with {FORWARDS} forwards"),
        ours: format!("{ours:.3} s"),
        peer: "-".into(),
        ratio: ours,
        bound: Bound::AtMost(1.0),
    });
    node.shell("systemctl start podsecd-u7s; systemctl start podsecd");
    sleep(Duration::from_secs(20));
    idle(&node, "", table)?;
    memory(&node, &format!("{FORWARDS} forwards"), 16.0, table)?;
    with_all(&node, &config)?;
    let all = format!("{OBJECTS} Services of {} KiB and a control plane besides", OBJECT >> 10);
    idle(&node, " with all that it can have", table)?;
    memory(&node, &all, 32.0, table)
}

/// Gives podsecd-u7s a Kubernetes API and a control plane.
fn with_all(node: &Node, config: &str) -> Result<(), String> {
    let write =
        |path: &str, text: &str| std::fs::write(node.root().join(path), text).map_err(|error| error.to_string());
    write("usr/local/bin/kubernetes", include_str!("../node/kubernetes"))?;
    write(
        "etc/podsecd/podsecd.toml",
        &format!("{config}kubeconfig = \"{KUBECONFIG}\"\n[controlplane]\nhealth = \"off\"\n"),
    )?;
    node.shell(&format!(
        "chmod 755 /usr/local/bin/kubernetes; kubernetes
         systemd-run --quiet --unit=services --setenv={}={SERVICES} bench
         while ! [ -s {KUBECONFIG} ]; do sleep 0.1; done; systemctl restart podsecd podsecd-u7s",
        crate::world::INSIDE
    ));
    node.wait_until("the Services' ports are forwarded", Duration::from_secs(60), || {
        let list = node.shell("podsecctl forwards list || true");
        list.lines().filter(|line| line.contains(" service ") && line.contains(" up ")).count()
            == usize::from(NODE_PORTS)
    });
    sleep(Duration::from_secs(20));
    Ok(())
}

/// The sum of the numbers that the script prints, which has podsecd-u7s in `$pid`.
fn number(node: &Node, script: &str) -> Result<u64, String> {
    let numbers = node.shell(&format!("pid=$(systemctl show -P MainPID podsecd-u7s); {script}"));
    numbers.split_whitespace().map(|number| number.parse::<u64>().map_err(|error| error.to_string())).sum()
}

/// Memory of podsecd-u7s.
fn memory(node: &Node, with: &str, most: f64, table: &mut Table) -> Result<(), String> {
    let mebibytes = number(node, "sed -n 's/^VmRSS:\\t *\\([0-9]*\\).*/\\1/p' /proc/$pid/status")? as f64 / 1024.0;
    table.add(Figure {
        what: format!("podsecd-u7s, VmRSS with {with}"),
        ours: format!("{mebibytes:.1} MiB"),
        peer: "-".into(),
        ratio: mebibytes,
        bound: Bound::AtMost(most),
    });
    Ok(())
}

/// Wake-ups of podsecd-u7s when nothing happens.
fn idle(node: &Node, with: &str, table: &mut Table) -> Result<(), String> {
    let switches = || number(node, "sed -n 's/^voluntary.*:\\t//p' /proc/$pid/task/*/status");
    let before = switches()?;
    sleep(IDLING);
    let count = switches()? - before;
    table.add(Figure {
        what: format!("podsecd-u7s idle{with}, voluntary context switches per probe"),
        ours: format!("{count} in {} s", IDLING.as_secs()),
        peer: format!("{PROBES} probes"),
        ratio: count as f64 / PROBES as f64,
        bound: Bound::AtMost(12.0),
    });
    Ok(())
}

/// In the node: how long it takes from the API's first answer until all forwards listen, in seconds.
pub(crate) fn stand() -> Result<Vec<f64>, String> {
    let start = ready()?;
    loop {
        let sockets = Sockets::read(Path::new("/proc/self/net")).map_err(|error| error.to_string())?;
        let ports = sockets.iter().filter(|socket| socket.transport == Transport::Tcp).map(|socket| socket.port);
        let standing: BTreeSet<_> = ports.filter(|port| (FIRST..FIRST + FORWARDS).contains(port)).collect();
        if standing.len() == usize::from(FORWARDS) {
            return Ok(vec![start.elapsed().as_secs_f64()]);
        }
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("after a minute {} of {FORWARDS} forwards stand", standing.len()));
        }
        sleep(Duration::from_millis(1));
    }
}

/// In the node: how long a bare loop takes to add all forwards, over one connection, in seconds.
pub(crate) fn bare() -> Result<Vec<f64>, String> {
    let start = ready()?;
    let mut stream = BufReader::new(connect().map_err(|error| error.to_string())?);
    for port in FIRST..FIRST + FORWARDS {
        let spec = format!(r#"{{"proto":"tcp","parentIP":"0.0.0.0","parentPort":{port},"childPort":{port}}}"#);
        let head = format!("POST /v1/ports HTTP/1.1\r\nHost: rootlesskit\r\nContent-Length: {}\r\n\r\n", spec.len());
        let code = ask(&mut stream, &(head + &spec)).map_err(|error| error.to_string())?;
        if code != 201 {
            return Err(format!("port {port}: code {code}"));
        }
    }
    Ok(vec![start.elapsed().as_secs_f64()])
}

/// In the node: serves the Services until it is killed, to whoever has the kubeconfig.
pub(crate) fn services() -> Result<Vec<f64>, String> {
    let api = Api::start(|asked, _| {
        if asked.is_watch() {
            return vec![Does::Begins, Does::Stays];
        }
        let number = |name: &str| asked.target.split(name).nth(1)?.split('&').next()?.parse().ok();
        let first: usize = number("continue=").unwrap_or_default();
        let end = OBJECTS.min(first + number("limit=").unwrap_or(OBJECTS));
        let services: Vec<_> = (first..end).map(object).collect();
        let next = if end < OBJECTS { end.to_string() } else { String::new() };
        vec![page(7, &services, &next)]
    });
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "node",
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "podsecd-u7s"}}],
        "clusters": [{"name": "node", "cluster": {"server": format!("http://{}", api.address)}}],
        "users": [{"name": "podsecd-u7s", "user": {"token": "secret"}}],
    });
    let user = User::from_name("u7s-admin").ok().flatten().ok_or("no u7s-admin")?;
    let written = std::fs::write(KUBECONFIG, kubeconfig.to_string())
        .and_then(|()| std::os::unix::fs::chown(KUBECONFIG, Some(user.uid.as_raw()), None))
        .and_then(|()| std::fs::set_permissions(KUBECONFIG, PermissionsExt::from_mode(0o600)));
    written.map_err(|error| format!("{KUBECONFIG}: {error}"))?;
    loop {
        std::thread::park();
    }
}

/// A Service; the first ones have a NodePort.
fn object(number: usize) -> serde_json::Value {
    let port = u16::try_from(number).ok().filter(|number| *number < NODE_PORTS);
    let mut service = service(&format!("s{number}"), 7, 31000 + port.unwrap_or_default());
    if port.is_none() {
        service["spec"] = serde_json::json!({"type": "ClusterIP", "ports": [{"port": 80}]});
    }
    service["metadata"]["annotations"] = serde_json::json!({"of": "x".repeat(OBJECT)});
    service
}

fn connect() -> io::Result<UnixStream> {
    UnixStream::connect(std::env::var(API).map_err(io::Error::other)?)
}

/// Waits until the API answers; when it did.
fn ready() -> Result<Instant, String> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let list = "GET /v1/ports HTTP/1.1\r\nHost: rootlesskit\r\n\r\n";
        if connect().and_then(|stream| ask(&mut BufReader::new(stream), list)).is_ok() {
            return Ok(Instant::now());
        }
        sleep(Duration::from_micros(500));
    }
    Err("rootlesskit's API does not answer".into())
}

/// Sends a request and reads the answer's code, and all of its body, which tells its length.
fn ask(stream: &mut BufReader<UnixStream>, request: &str) -> io::Result<u16> {
    stream.get_mut().write_all(request.as_bytes())?;
    let (mut line, mut code, mut length) = (String::new(), 0, 0);
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(status) = line.strip_prefix("HTTP/1.1 ") {
            code = status.get(..3).and_then(|code| code.parse().ok()).unwrap_or_default();
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or_default();
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    Ok(code)
}
