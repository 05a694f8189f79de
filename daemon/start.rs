//! What podsecd needs before it runs: its lock, its signals, the ways in for others, and where to begin to read.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::checks::own::ids::OF_MAIL;
use crate::config::{Config, Root, Rootlesskit};
use crate::control::{self, Asked};
use crate::doors::Doors;
use crate::helper::{self, Delivery, Helper};
use crate::run::log;
use crate::watch::follow::{self, LogFiles, Position, Start};

/// The user as whom podsecd-mail runs.
const MAIL_USER: &str = "_podsecd-mail";
/// Lets in helpers and podsecctl: through systemd's sockets, which outlive us, or through our own.
pub(crate) fn open_doors(
    root: &Root,
    kept: watch::Receiver<u64>,
) -> Result<(mpsc::Receiver<Delivery>, mpsc::Receiver<Asked>)> {
    let mut doors = Doors::of_systemd();
    let (deliveries, deliveries_in) = mpsc::channel(4);
    let (asked, asked_in) = mpsc::channel(4);
    // In another tree there is no other user.
    let mail = match nix::unistd::User::from_name(MAIL_USER) {
        Ok(Some(user)) if !root.is_elsewhere() => user.uid,
        _ => nix::unistd::geteuid(),
    };
    let helpers = vec![Helper { uid: mail.as_raw(), may: OF_MAIL }];
    tokio::spawn(helper::accept(doors.open(root, helper::SOCKET)?, helpers, deliveries, kept));
    tokio::spawn(control::accept(doors.open(root, control::SOCKET)?, asked));
    Ok((deliveries_in, asked_in))
}

/// Takes the signals from now on.
pub(crate) fn receive_signals(inputs: mpsc::Sender<Input>) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let input = tokio::select! {
                _ = terminate.recv() => Input::Stop,
                _ = interrupt.recv() => Input::Stop,
                _ = hangup.recv() => Input::Reload,
            };
            if inputs.send(input).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The lock that keeps a second podsecd out of the same state.
pub(crate) fn lock(directory: &Path) -> Result<std::fs::File> {
    let path = directory.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another podsecd is running with {}; stop it first (systemctl stop podsecd)", directory.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Where to begin to read a log that was never read.
pub(crate) fn beginning(config: &Config, root: &Root) -> Position {
    if config.kubeapi.start == Start::Oldest {
        return Position::default();
    }
    let files = LogFiles::new(&root.path(&config.kubeapi.audit_log));
    follow::end(&files).unwrap_or_else(|error| {
        let path = files.live().to_path_buf();
        log(move || {
            tracing::warn!("cannot find the end of {}, which is read from its beginning: {error}", path.display());
        });
        Position::default()
    })
}

/// Whether clients reach the apiserver through rootlesskit.
pub(crate) fn is_behind_rootlesskit(config: &Config, root: &Root) -> bool {
    let has_user = || {
        let passwd = std::fs::read_to_string(root.path("/etc/passwd")).unwrap_or_default();
        passwd.lines().any(|line| line.starts_with("u7s-admin:"))
    };
    match config.kubeapi.rootlesskit {
        Rootlesskit::Auto => has_user(),
        Rootlesskit::Yes => true,
        Rootlesskit::No => false,
    }
}

/// What reaches the main task now and then.
pub(crate) enum Input {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// A part ended that never ends by itself.
    Ended(&'static str),
}
