//! What a service of systemd needs while it runs: its own log, the turns of its watchdog, and word to systemd (sd_notify(3)).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::doors::Doors;
use crate::handover::Handover;

/// So much of a credential is read, in bytes.
const MAX_CREDENTIAL: u64 = 4096;

/// Writes to podsecd's own log. Not from the main task: journald may take nothing for long.
pub(crate) fn log(write: impl FnOnce() + Send + 'static) {
    // Without a thread there is no message.
    let _ = thread::Builder::new().name("log".into()).spawn(write);
}

/// A timer that wakes once a turn. Tokio's own wakes several times on the way to a distant time.
pub(crate) fn turns(period: Duration) -> Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("cannot make a timer")?;
    timer
        .set(Expiration::Interval(TimeSpec::from_duration(period)), TimerSetTimeFlags::empty())
        .context("cannot set a timer")?;
    #[expect(deprecated, reason = "what takes its place is unsafe; an OwnedFd is owned and does not change")]
    Ok(AsyncFd::with_interest(timer.into(), Interest::READABLE)?)
}

/// Waits for the next turn.
pub(crate) async fn next_turn(timer: &AsyncFd<OwnedFd>) {
    if let Ok(mut guard) = timer.readable().await {
        // Reading takes the expiration; that there is none is no error here.
        let _ = nix::unistd::read(timer, &mut [0; 8]);
        guard.clear_ready();
    }
}

/// A small credential that the unit was given (systemd.exec(5), `LoadCredential=`), if there is one.
pub(crate) fn credential(name: &str) -> Option<String> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let mut text = String::new();
    File::open(Path::new(&directory).join(name)).ok()?.take(MAX_CREDENTIAL).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What systemd passes on (sd_listen_fds(3)): sockets, and what it kept of the process before. To be called once.
pub(crate) fn passed_on() -> (Doors, Handover) {
    let passed = sd_listen_fds::get().unwrap_or_else(|error| {
        log(move || tracing::warn!(%error, "what systemd passes on cannot be taken; it is started anew"));
        Vec::new()
    });
    let passed = passed.into_iter().map(|(name, descriptor)| (name.unwrap_or_default(), descriptor.into_std()));
    // What we start is not to have it.
    let passed = passed.filter(|(_, descriptor)| fcntl_setfd(descriptor, FdFlags::CLOEXEC).is_ok());
    let is_socket = |descriptor: &OwnedFd| {
        fstat(descriptor).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
    };
    let (sockets, kept): (Vec<_>, Vec<_>) = passed.partition(|(_, descriptor)| is_socket(descriptor));
    (Doors::of(sockets.into_iter().map(|(_, socket)| socket)), Handover::of(kept))
}

pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log(move || tracing::debug!(%error, "cannot notify systemd"));
    }
}
