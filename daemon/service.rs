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
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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

pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log(move || tracing::debug!(%error, "cannot notify systemd"));
    }
}
