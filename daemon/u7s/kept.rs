//! What podsecd-u7s keeps over restarts, in its own state directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::checks::forwards::forward::Forward;
use crate::version::{self, Unusable, Version};
use crate::watch::open::open_regular;

/// The state directory.
pub(super) const DIRECTORY: &str = "/var/lib/podsecd-u7s";
/// The file in it.
const FILE: &str = "forwards.json";
/// Larger ones are none of ours, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Version of its format. A newer one is refused; the first ones did not say it.
const VERSION: u32 = 1;

/// The forwards that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forwards {
    #[serde(default)]
    version: Version<VERSION>,
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
    /// Those of open(2) and read(2); `InvalidData` for that of a newer podsecd, which stays as it is.
    pub(super) fn load(directory: &Path) -> io::Result<Kept> {
        let path = directory.join(FILE);
        let mut bytes = Vec::new();
        match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Kept { path, forwards: Forwards::default() });
            }
            opened => drop(opened?.take(MAX_FILE).read_to_end(&mut bytes)?),
        }
        let then = "add again the forwards that were added with podsecctl";
        let forwards = match version::read(&path, &bytes, VERSION, then) {
            Ok(forwards) => forwards,
            Err(Unusable::Damaged { why, .. }) => {
                set_aside(&path, &why);
                Forwards::default()
            }
            Err(refused) => return Err(io::Error::new(io::ErrorKind::InvalidData, refused)),
        };
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
        // Whatever is there is none of ours: a pipe would be waited for.
        let _ = fs::remove_file(&new);
        let mut file = File::create_new(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&forwards)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()?;
        self.forwards = forwards;
        Ok(())
    }
}

fn set_aside(path: &Path, why: &str) {
    let seconds = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let aside = path.with_extension(format!("damaged-{seconds}"));
    let set = fs::rename(path, &aside);
    let now_at = if set.is_ok() { aside.display() } else { path.display() };
    tracing::error!(
        "{now_at} is damaged ({why}): forwards that were added with podsecctl are not known any more; add them again"
    );
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
        for text in ["", "{\"administrator\":[", "\0\0\0"] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), text).expect("written");
            assert_eq!(Kept::load(dir.path()).expect("goes on").forwards(), &Forwards::default());
            let aside = fs::read_dir(dir.path()).expect("listed").next().expect("one file").expect("read").path();
            assert!(aside.display().to_string().contains("forwards.damaged-"), "{aside:?}");
            assert_eq!(fs::read_to_string(aside).expect("aside"), text);
        }
    }

    #[test]
    fn a_file_of_a_newer_podsecd_is_refused_and_stays() {
        let former = r#"{"administrator":["0.0.0.0:31000:31000/tcp"],"services":[],"withdrawn":[]}"#;
        let with = |more: &str| former.replacen('{', &format!("{{{more},"), 1);
        for (text, refused) in [
            (former.to_owned(), None),
            (with("\"version\":1"), None),
            (with("\"version\":2"), Some("forwards.json is of version 2")),
            (with("\"version\":2,\"reserved\":[]"), Some("forwards.json is of version 2")),
            (with("\"reserved\":[]"), Some("unknown field `reserved`")),
            (former.replace("/tcp", "/quic"), Some("forwards.json has what this podsecd does not know")),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), &text).expect("written");
            let told = Kept::load(dir.path()).err().map(|error| error.to_string());
            assert_eq!(told.is_some(), refused.is_some(), "{text}: {told:?}");
            for (told, words) in told.iter().zip(refused) {
                assert!(told.contains(words) && told.contains("install the newer podsecd again"), "{text}: {told}");
            }
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).expect("it stays"), text);
        }
    }
}
