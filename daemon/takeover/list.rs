//! forbidden.log, which podsec-inotify and podsecd write under the same name: each has a file of its own, and finds it as it left
//! it. The directory is u7s-admin's; what lies there is only renamed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::state::USER;
use crate::config::ForbiddenLog;
use crate::report::forbidden_log::{PODSEC, shift};
use anyhow::{Context, Result};

/// Where the list of podsec-inotify lies while podsecd writes its own.
pub fn aside() -> PathBuf {
    PathBuf::from(format!("{PODSEC}.podsec-inotify"))
}

/// Puts the list of podsec-inotify aside; podsecd's own stays. One that lies there already is not replaced.
///
/// # Errors
/// Those of lstat(2) and rename(2).
pub fn set_aside() -> Result<()> {
    let is_podsecs = fs::symlink_metadata(PODSEC).is_ok() && !is_podsecds()?;
    if is_podsecs && fs::symlink_metadata(aside()).is_err() {
        fs::rename(PODSEC, aside()).with_context(|| format!("cannot rename {PODSEC}"))?;
    }
    Ok(())
}

/// Puts it back. podsecd, which is off, finds its own as one that was rotated.
///
/// # Errors
/// Those of lstat(2) and rename(2).
pub fn put_back() -> Result<()> {
    let path = Path::new(PODSEC);
    if is_podsecds()? {
        shift(path, ForbiddenLog::default().keep.max(1)).with_context(|| format!("cannot rename {PODSEC}"))?;
    }
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    match fs::rename(aside(), path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(format!("cannot make {PODSEC}")),
        _ => Ok(()),
    }
}

/// Whether it is podsecd's that lies there.
fn is_podsecds() -> Result<bool> {
    let metadata = match fs::symlink_metadata(PODSEC) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata.with_context(|| format!("cannot look at {PODSEC}"))?,
    };
    let podsecd = nix::unistd::User::from_name(USER)?.map(|user| user.uid.as_raw());
    Ok(metadata.is_file() && Some(metadata.uid()) == podsecd)
}
