//! From an event's append to its journal entry, against a bare loop of inotify wake-up, read and send.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::data;
use crate::table::{Bound, Figure, Table, median, percentile};
use crate::world::{self, AUDIT_LOG, Running, SOCKET};

/// The part that is the bare loop.
pub(crate) const BARE: &str = "bare-loop";
/// Its log, and the entry that it sends.
const BARE_LOG: &str = "/run/bench/bare.log";
const BARE_ENTRY: &str = "/run/bench/bare.entry";
/// Each with a verdict of its own, the middle one is printed: others may use the cores.
const ROUNDS: usize = 5;
const BLOCKS: usize = 20;
/// Single events in a block, of each of the two.
const EVENTS: usize = 50;
/// The longest pause between two events, in microseconds.
const PAUSE: u64 = 5000;

/// Measures in namespaces of its own.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    data::needs("unshare")?;
    let [ours, peer, our_median, peer_median, best, worst] = world::enter("latency")?;
    table.add(Figure {
        what: "append to journal socket (a stand-in) vs bare loop, p99".into(),
        ours: format!("{ours:.0} us"),
        peer: format!("{peer:.0} us"),
        ratio: ours / peer,
        bound: Bound::AtMost(2.0),
    });
    table.note(format!(
        "latency: {} single events each, in interleaved blocks of {EVENTS}, pauses of 0 to 5 ms; the receiver is a socket \
         of the benchmark, not journald. Medians: {our_median:.0} us and {peer_median:.0} us. The middle one of {ROUNDS} rounds, \
         whose ratios are {best:.2} to {worst:.2}",
        BLOCKS * EVENTS
    ));
    Ok(())
}

/// Measures, and gives the numbers.
pub(crate) fn inside() -> Result<Vec<f64>, String> {
    world::make()?;
    measure().map_err(|error| error.to_string())
}

fn measure() -> io::Result<Vec<f64>> {
    let socket = UnixDatagram::bind(SOCKET)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let (log, bare_log) = (File::create(AUDIT_LOG)?, File::create(BARE_LOG)?);
    let mut bench = Bench { socket, number: 0, random: 0x9E37_79B9_7F4A_7C15, buffer: vec![0; 256 << 10] };
    let _podsecd = world::podsecd(None).map_err(io::Error::other)?;
    // The first ones find podsecd still starting.
    let mut entry = Vec::new();
    for _ in 0..EVENTS {
        entry = bench.time(&log)?.1;
    }
    fs::write(BARE_ENTRY, entry)?;
    let mut bare = Command::new(std::env::current_exe()?);
    let _bare = Running(bare.env(world::INSIDE, BARE).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    // Its first entry says that it watches.
    bench.receive()?;
    bench.time(&bare_log)?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..BLOCKS {
            for (times, log) in [(&mut ours, &log), (&mut bare, &bare_log)] {
                for _ in 0..EVENTS {
                    times.push(bench.time(log)?.0);
                }
            }
        }
        rounds.push([percentile(&ours, 99), percentile(&bare, 99), median(&ours), median(&bare)]);
    }
    rounds.sort_by(|one, other| (one[0] / one[1]).total_cmp(&(other[0] / other[1])));
    let ratio = |round: &[f64; 4]| round[0] / round[1];
    let (best, worst) = (rounds.first().map_or(0.0, ratio), rounds.last().map_or(0.0, ratio));
    Ok([&rounds[ROUNDS / 2][..], &[best, worst]].concat())
}

struct Bench {
    socket: UnixDatagram,
    /// Events so far.
    number: u64,
    random: u64,
    buffer: Vec<u8>,
}

impl Bench {
    /// After a random pause appends an event and waits for its entry: how long that took, in microseconds, and the entry.
    fn time(&mut self, mut log: &File) -> io::Result<(f64, Vec<u8>)> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        thread::sleep(Duration::from_micros(self.random % PAUSE));
        self.number += 1;
        let line = event(self.number);
        let start = Instant::now();
        log.write_all(line.as_bytes())?;
        let (end, entry) = self.receive()?;
        Ok((end.duration_since(start).as_secs_f64() * 1e6, entry))
    }

    /// Waits for the entry of an event: when it came, and the entry.
    fn receive(&mut self) -> io::Result<(Instant, Vec<u8>)> {
        loop {
            let length = self.socket.recv(&mut self.buffer)?;
            let time = Instant::now();
            let entry = &self.buffer[..length];
            // podsecd may also have something to say about itself.
            if memchr::memmem::find(entry, b"\nAUDIT_ID=").is_some() {
                return Ok((time, entry.to_vec()));
            }
        }
    }
}

/// A refused request.
fn event(number: u64) -> String {
    format!(
        r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"bench-{number:08}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/dev/secrets","verb":"list","user":{{"username":"mallory","groups":["dev","system:authenticated"]}},"sourceIPs":["127.0.0.1"],"userAgent":"kubectl/v1.31.0","objectRef":{{"resource":"secrets","namespace":"dev","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"status":"Failure","message":"secrets is forbidden: User \"mallory\" cannot list resource \"secrets\" in API group \"\" in the namespace \"dev\"","reason":"Forbidden","details":{{"kind":"secrets"}},"code":403}},"requestReceivedTimestamp":"2026-11-22T03:06:08.{number:06}Z","stageTimestamp":"2026-11-22T03:06:08.{number:06}Z","annotations":{{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":""}}}}"#
    ) + "\n"
}

/// The bare loop, a process like podsecd: it waits for a change of its log, reads it and sends the entry.
pub(crate) fn bare() -> Result<Vec<f64>, String> {
    match bare_loop() {
        Ok(never) => match never {},
        Err(error) => Err(format!("the bare loop: {error}")),
    }
}

fn bare_loop() -> io::Result<Infallible> {
    let entry = fs::read(BARE_ENTRY)?;
    let mut log = File::open(BARE_LOG)?;
    let mut inotify = Inotify::init()?;
    inotify.watches().add(BARE_LOG, WatchMask::MODIFY)?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET)?;
    socket.send(&entry)?;
    let (mut events, mut line) = ([0; 4096], vec![0; 64 << 10]);
    loop {
        poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        inotify.read_events(&mut events)?;
        if log.read(&mut line)? > 0 {
            socket.send(&entry)?;
        }
    }
}
