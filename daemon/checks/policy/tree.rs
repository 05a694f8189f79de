//! The files of a node: those of the system, and those in homes, which their owners write.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, readlinkat, statx};

use crate::watch::open::{Directory, open_regular};

/// The unit has its own of these (PrivateTmp=, PrivateDevices=), or does not see them.
const HIDDEN: [&str; 5] = ["/tmp", "/var/tmp", "/dev", "/var/spool", "/var/mail"];
/// Longer ways nobody goes: the container tools follow 255 links.
const MAX_WAY: usize = 1024;
/// Larger files are no configuration.
const MAX_FILE: u64 = 1 << 20;

/// The node's own tree, or the one below a directory, which nothing in it leaves.
#[derive(Debug)]
pub struct Tree(Option<Directory>);

/// A file that is not what it should be, or that podsecd does not read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// What is wrong, with the line where one can be named.
    pub reason: String,
    /// Whether podsecd has not read it, though others may.
    pub is_unread: bool,
}

impl Broken {
    /// What is in `file` is not what it should be.
    pub fn new(file: impl Into<PathBuf>, reason: &dyn fmt::Display) -> Broken {
        Broken { file: file.into(), reason: reason.to_string(), is_unread: false }
    }

    /// What is wrong, and what that leads to: `effect`, if the container tools find it wrong, too.
    pub fn so(&self, effect: &str) -> String {
        const UNKNOWN: &str = "podsecd does not know what it says; the container tools may";
        format!("{self}; so {}", if self.is_unread { UNKNOWN } else { effect })
    }

    /// `file` is not read, and why.
    pub fn unread(file: impl Into<PathBuf>, error: &io::Error) -> Broken {
        let reason = match error.raw_os_error() {
            Some(nix::libc::EXDEV) => "a link that leaves its home, or on another file system".to_owned(),
            _ => error.to_string(),
        };
        Broken { file: file.into(), reason, is_unread: true }
    }
}

impl Tree {
    /// The node's own tree, or the one below that directory.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn new(root: Option<&Path>) -> io::Result<Tree> {
        root.map(Directory::open_root).transpose().map(Tree)
    }

    /// Whether it is another tree than the node's own.
    pub fn is_elsewhere(&self) -> bool {
        self.0.is_some()
    }

    /// Opens a regular file that nobody but root names.
    ///
    /// # Errors
    /// Those of open(2); `InvalidInput` if it is not a regular file.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        match &self.0 {
            None => open_regular(path),
            Some(root) => root.file(path),
        }
    }

    /// Opens a directory that nobody but root names; it may be a link.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn directory(&self, path: &Path) -> io::Result<Directory> {
        match &self.0 {
            None => Directory::open(path),
            Some(root) => root.directory(path),
        }
    }

    /// Where the links end that a path of the system leads over; `None` if it leads over none, or nowhere.
    pub fn target(&self, path: &Path) -> Option<PathBuf> {
        let target = match &self.0 {
            None => path.canonicalize().ok()?,
            Some(root) => Path::new("/").join(root.target(path.strip_prefix("/").unwrap_or(path))?),
        };
        (target != path).then_some(target)
    }

    /// The directory of which podsecd does not see the node's own, if a path leads there; `/` if nobody can tell.
    pub fn hides(&self, path: &Path) -> Option<&'static str> {
        let Some(way) = self.way(path) else { return Some("/") };
        HIDDEN.into_iter().find(|hidden| way.iter().any(|step| step.starts_with(hidden)))
    }

    /// The way that a path leads, over all links: each step of it, as far as it is there; `None` if it is too long.
    fn way(&self, path: &Path) -> Option<Vec<PathBuf>> {
        let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
        let (mut rest, mut here, mut way) = (parts(path), PathBuf::from("/"), Vec::new());
        while let Some(part) = rest.pop() {
            if way.len() + rest.len() > MAX_WAY {
                return None;
            }
            match part.as_bytes() {
                b"/" => here = PathBuf::from("/"),
                b"." => {}
                b".." => drop(here.pop()),
                _ => {
                    let next = here.join(&part);
                    way.push(next.clone());
                    match self.link(&next) {
                        Ok(target) => rest.extend(parts(&target)),
                        Err(error) if is_absent(&error) => break,
                        Err(_) => here = next,
                    }
                }
            }
        }
        Some(way)
    }

    /// What a link says.
    fn link(&self, path: &Path) -> io::Result<PathBuf> {
        let target = match &self.0 {
            None => readlinkat(CWD, path, Vec::new()),
            Some(root) => readlinkat(root, path.strip_prefix("/").unwrap_or(path), Vec::new()),
        };
        Ok(PathBuf::from(OsString::from_vec(target?.into_bytes())))
    }

    /// Which of these names below a directory are immutable, as bits; without any effect, not even that of opening them.
    pub fn flags(&self, directory: &Path, names: &[&str]) -> u16 {
        let is_immutable = |name: &&str| {
            let path = directory.join(name);
            let wanted = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
            let stat = match &self.0 {
                None => statx(CWD, &path, wanted, StatxFlags::empty()),
                Some(root) => statx(root, path.strip_prefix("/").unwrap_or(&path), wanted, StatxFlags::empty()),
            };
            stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::IMMUTABLE))
        };
        names.iter().enumerate().fold(0, |flags, (at, name)| flags | u16::from(is_immutable(name)) << at)
    }

    /// The text of a file of the system; `None` if it is not there.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Broken> {
        read(self.file(path)).map_err(|error| Broken::unread(path, &error))
    }
}

/// The text of a file; `None` if it is not there. A link to itself is nothing either, for the container tools.
///
/// # Errors
/// Those of open(2) and read(2); one for a file of more than 1 MiB.
pub fn read(file: io::Result<File>) -> io::Result<Option<Vec<u8>>> {
    read_most(file, MAX_FILE)
}

/// The same, of `most` bytes at most.
///
/// # Errors
/// Those of open(2) and read(2); one for a longer file.
pub fn read_most(file: io::Result<File>, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match file {
        Err(error) if is_absent(&error) => return Ok(None),
        other => other?,
    };
    // Most are no longer.
    let mut bytes = Vec::with_capacity(4096);
    file.take(most + 1).read_to_end(&mut bytes)?;
    let is_larger = bytes.len() as u64 > most;
    let size = if most >> 20 > 0 { format!("{} MiB", most >> 20) } else { format!("{most} bytes") };
    if is_larger { Err(io::Error::other(format!("larger than {size}"))) } else { Ok(Some(bytes)) }
}

/// Why something is not read that podsecd does not see, though it may be there.
pub fn unseen() -> io::Error {
    io::Error::other("podsecd does not see what is there")
}

/// Whether an error says that nothing is there.
pub fn is_absent(error: &io::Error) -> bool {
    use nix::libc::{ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
    error.raw_os_error().is_some_and(|code| [ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG].contains(&code))
}
