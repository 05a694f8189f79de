//! Opens what others may have put there.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a regular file for reading: never blocks (a FIFO would), and follows a link in the last component only where
/// root owns both the link and its directory.
///
/// # Errors
/// Those of open(2); `InvalidInput` if it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let open = |flags: OFlag| OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = match open(flags | OFlag::O_NOFOLLOW) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) && is_roots_link(path) => open(flags)?,
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Opens a regular file below a directory for reading, as [`open_regular`] does, but follows every link that stays below
/// the directory, and none that leaves it (openat2(2), Linux 5.6).
///
/// # Errors
/// Those of openat2(2), `EXDEV` for what leaves it; `InvalidInput` if it is not a regular file.
pub fn open_beneath(directory: &Path, name: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
    let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(directory, name, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// What [`open_regular`] would open.
///
/// # Errors
/// Those of stat(2).
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_symlink() && is_roots_link(path) { path.metadata() } else { Ok(metadata) }
}

fn is_roots_link(path: &Path) -> bool {
    let owned = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.uid() == 0);
    owned(path) && path.parent().is_some_and(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").expect("written");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(open_regular(&path("file")).is_ok());
        for name in ["fifo", ".", "absent"] {
            assert!(open_regular(&path(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_link_is_followed_only_where_root_owns_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        std::fs::write(dir.path().join("file"), "x").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(open_regular(&link).is_ok(), root);
        if root {
            let nobody = nix::unistd::Uid::from_raw(65534);
            nix::unistd::chown(dir.path(), Some(nobody), None).expect("given away");
            assert!(open_regular(&link).is_err());
        }
    }
}
