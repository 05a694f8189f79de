//! Writes into podsecd's state directory as root. The directory belongs to podsecd, which may less than root: no link in it
//! is followed, and what is written does not depend on what lies there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::Path;

use crate::watch::open::directory_of;
use anyhow::{Context, Result};

/// Where it is.
pub const DIRECTORY: &str = "/var/lib/podsecd";
/// Whom it belongs to.
pub(super) const USER: &str = "_podsecd";

/// Whether there may be a file of that name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// It is replaced.
    Replace,
    /// Then nothing is written.
    Keep,
}

/// Makes the directory if podsecd never ran.
///
/// # Errors
/// podsecd is not installed; those of mkdir(2) and chown(2).
pub fn make() -> Result<()> {
    if Path::new(DIRECTORY).is_dir() {
        return Ok(());
    }
    let user = nix::unistd::User::from_name(USER)?;
    let user = user.with_context(|| format!("there is no user {USER}; install podsecd's package"))?;
    fs::create_dir(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
    fs::set_permissions(DIRECTORY, Permissions::from_mode(0o750))?;
    chown(DIRECTORY, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    Ok(())
}

/// Writes a file of the directory's owner, so that a crash at any instant leaves the former one or the whole new one.
///
/// # Errors
/// `AlreadyExists` if a former one is to be kept; those of open(2), write(2), fsync(2) and rename(2).
pub fn write(path: &Path, bytes: &[u8], former: Former) -> io::Result<()> {
    let (directory, temporary) = (directory_of(path), path.with_extension("root"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let owner = fs::metadata(directory)?;
    fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match former {
        Former::Replace => fs::rename(&temporary, path)?,
        Former::Keep => {
            let linked = fs::hard_link(&temporary, path);
            fs::remove_file(&temporary)?;
            linked?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lie_there_are_replaced_and_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, victim) = (directory.path().join("takeover.json"), directory.path().join("victim"));
        fs::write(&victim, "precious").expect("written");
        for link in [&path, &path.with_extension("root")] {
            std::os::unix::fs::symlink(&victim, link).expect("linked");
        }
        write(&path, b"{}", Former::Replace).expect("written");
        assert_eq!(fs::read(&victim).expect("read"), b"precious");
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        assert_eq!(fs::read(&path).expect("read"), b"{}");
    }

    #[test]
    fn a_former_file_that_is_to_be_kept_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("checkpoint.json");
        write(&path, b"first", Former::Keep).expect("written");
        let refused = write(&path, b"second", Former::Keep).expect_err("it is there");
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1, "nothing is left over");
    }
}
