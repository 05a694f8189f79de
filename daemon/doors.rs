//! Listening sockets: those that systemd passes on (sd_listen_fds(3)), or else our own.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as Blocking;

use anyhow::{Context, Result};
use tokio::net::UnixListener;

use crate::config::Root;

/// The sockets of systemd.
#[derive(Debug)]
pub struct Doors(Vec<Blocking>);

impl Doors {
    /// Those that systemd passed on.
    pub fn of(sockets: impl IntoIterator<Item = OwnedFd>) -> Doors {
        Doors(sockets.into_iter().map(Blocking::from).collect())
    }

    /// The socket at that path.
    ///
    /// # Errors
    /// Those of bind(2); somebody else listens there.
    pub fn open(&mut self, root: &Root, path: &str) -> Result<UnixListener> {
        let is_this = |door: &Blocking| {
            door.local_addr().is_ok_and(|address| address.as_pathname().is_some_and(|its| its == root.path(path)))
        };
        let listener = match self.0.iter().position(is_this) {
            Some(at) => self.0.remove(at),
            None => bind(root, path).with_context(|| format!("cannot listen on {}", root.path(path).display()))?,
        };
        listener.set_nonblocking(true)?;
        Ok(UnixListener::from_std(listener)?)
    }
}

/// A socket of our own, for our own user. What is left of a former one is removed.
fn bind(root: &Root, path: &str) -> io::Result<Blocking> {
    let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let path = root.make(directory)?.join(path.rsplit('/').next().unwrap_or_default());
    if path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket()) {
        // The state's lock is ours: whoever listened there is gone.
        fs::remove_file(&path)?;
    }
    let listener = Blocking::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
