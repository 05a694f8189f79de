//! What podsecd needs before it runs: its lock, its signals, the ways in for others, and where to begin to read.

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::checks::containers::users::Subordinates;
use crate::checks::controlplane::facts::Places;
use crate::checks::controlplane::seen::Role;
use crate::checks::forwards::exposure::Users;
use crate::checks::own::ids::{OF_MAIL, OF_U7S};
use crate::checks::{controlplane, forwards};
use crate::config::{Config, Root, Rootlesskit};
use crate::control;
use crate::doors::Doors;
use crate::finding::Id;
use crate::helper::{self, Delivery, Helper};
use crate::service::log;
use crate::watch::follow::{self, LogFiles, Position, Start};

/// The user as whom podsecd-mail runs.
const MAIL_USER: &str = "_podsecd-mail";
/// The user as whom podsecd-u7s runs, and with it what it looks after.
pub(crate) const U7S_USER: &str = "u7s-admin";
/// What `systemctl enable podsecd-u7s` makes.
const U7S_WANTED: &str = "/etc/systemd/system/multi-user.target.wants/podsecd-u7s.service";
/// The host's tables of sockets: podsecd.service has a network namespace of its own, and mounts /proc/1/net here.
pub(crate) const HOST_TABLES: &str = "/run/podsecd-net";
/// What podsecd-u7s may report on.
const OF_U7S_HELPER: &[&[Id]] = &[forwards::ids::OF_U7S, controlplane::ids::OF_U7S, OF_U7S];

/// What podsecctl asks of podsecd.
pub(crate) type Asked = control::Asked<control::Request, control::Answer>;

/// Lets in helpers and podsecctl: through systemd's sockets, which outlive us, or through our own.
pub(crate) fn open_doors(
    root: &Root,
    mut doors: Doors,
    kept: watch::Receiver<u64>,
) -> Result<(mpsc::Receiver<Delivery>, mpsc::Receiver<Asked>)> {
    let (deliveries, deliveries_in) = mpsc::channel(4);
    let (asked, asked_in) = mpsc::channel(4);
    // In another tree there is no other user.
    let user = |name: &str| match nix::unistd::User::from_name(name) {
        Ok(Some(user)) if !root.is_elsewhere() => Some(user.uid),
        _ => None,
    };
    let uid = user(MAIL_USER).unwrap_or_else(nix::unistd::geteuid).as_raw();
    let mut helpers = vec![Helper { name: helper::MAIL, uid, may: &[OF_MAIL], conditions: 64 }];
    let u7s =
        |uid: nix::unistd::Uid| Helper { name: helper::U7S, uid: uid.as_raw(), may: OF_U7S_HELPER, conditions: 256 };
    helpers.extend(user(U7S_USER).map(u7s));
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

/// The lock that keeps a second podsecd of that unit out of the same state.
pub(crate) fn lock(directory: &Path, unit: &str) -> Result<std::fs::File> {
    let path = directory.join("lock");
    // A pipe that somebody put there must not be waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(&path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another podsecd is running with {}; stop it first (systemctl stop {unit})", directory.display())
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

/// The user id of u7s-admin.
fn u7s_uid() -> Option<u32> {
    nix::unistd::User::from_name(U7S_USER).ok().flatten().map(|user| user.uid.as_raw())
}

/// All user ids of u7s-admin, those that are subordinate to it, too (subuid(5)): in its user namespaces it is all of them.
pub(crate) fn u7s_users() -> Option<Users> {
    let own = u7s_uid()?;
    let subuid = std::fs::read("/etc/subuid").unwrap_or_default();
    Some(Users(Subordinates::of(U7S_USER, own, &subuid).ids().collect()))
}

/// Whether systemd starts podsecd-u7s with the node: then it should be there.
pub(crate) fn u7s_is_enabled() -> bool {
    std::fs::symlink_metadata(U7S_WANTED).is_ok()
}

/// What this node is: by the configuration, or by its manifests, if they can be seen.
pub(crate) fn role(config: &Config, root: &Root) -> io::Result<Role> {
    // Whose it is does not matter for that.
    Places::new(root.directory().map(ToOwned::to_owned), 0).role(config.controlplane.role)
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
