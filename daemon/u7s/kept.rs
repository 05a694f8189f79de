//! What podsecd-u7s keeps over restarts, in its own state directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::checks::forwards::forward::Forward;
use crate::watch::open::open_regular;

/// The state directory.
pub(super) const DIRECTORY: &str = "/var/lib/podsecd-u7s";
/// The file in it.
const FILE: &str = "forwards.json";
/// Larger ones are none of ours, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The forwards that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forwards {
    /// Those that the administrator added.
    pub administrator: BTreeSet<Forward>,
    /// Those of Services, when the Kubernetes API was last there.
    pub services: BTreeSet<Forward>,
    /// Those that were ours, and that rootlesskit may still have.
    pub withdrawn: BTreeSet<Forward>,
}

/// The file with the forwards that are kept.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    forwards: Forwards,
}

impl Kept {
    /// Reads it. A damaged one is set aside, which is said: what else is to stand must stand.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub(super) fn load(directory: &Path) -> io::Result<Kept> {
        let path = directory.join(FILE);
        let mut text = String::new();
        match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Kept { path, forwards: Forwards::default() });
            }
            opened => drop(opened?.take(MAX_FILE).read_to_string(&mut text)?),
        }
        let forwards = serde_json::from_str(&text).unwrap_or_else(|error| {
            let seconds = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
            let aside = path.with_extension(format!("damaged-{seconds}"));
            let set = fs::rename(&path, &aside);
            let now_at = if set.is_ok() { aside.display() } else { path.display() };
            tracing::error!(
                "{now_at} is damaged ({error}): forwards that were added with podsecctl are not known any more; add them again"
            );
            Forwards::default()
        });
        Ok(Kept { path, forwards })
    }

    /// What is kept.
    pub(super) fn forwards(&self) -> &Forwards {
        &self.forwards
    }

    /// Keeps others in their place; on the disk before this returns.
    ///
    /// # Errors
    /// Those of open(2), write(2), fsync(2) and rename(2): then the former are kept.
    pub(super) fn keep(&mut self, forwards: Forwards) -> io::Result<()> {
        if forwards == self.forwards {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&forwards)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()?;
        self.forwards = forwards;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut kept = Kept::load(dir.path()).expect("nothing yet");
        let forward = "0.0.0.0:31000:31000/tcp".parse().expect("a forward");
        let forwards = Forwards { administrator: [forward].into(), ..Forwards::default() };
        kept.keep(forwards.clone()).expect("kept");
        assert_eq!(Kept::load(dir.path()).expect("read").forwards(), &forwards);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_nothing_is_lost_of_it() {
        for text in ["", "{\"administrator\":[\"x\"]}", "[]", "\0\0\0"] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), text).expect("written");
            assert_eq!(Kept::load(dir.path()).expect("goes on").forwards(), &Forwards::default());
            let aside = fs::read_dir(dir.path()).expect("listed").next().expect("one file").expect("read").path();
            assert!(aside.display().to_string().contains("forwards.damaged-"), "{aside:?}");
            assert_eq!(fs::read_to_string(aside).expect("aside"), text);
        }
    }
}
