//! When forwards were last seen standing, kept over restarts of podsecd-u7s: what is interrupted while it is away has a gap,
//! too. Of another boot of the node nothing is kept: then nothing stood before.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::instance::Identity;
use crate::service::credential;
use crate::watch::open::open_regular;

/// The file in the state directory.
const FILE: &str = "stood.json";
/// Larger ones are none of ours, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// What the kernel calls this boot (random(4)). `ProcSubset=pid` hides it: then it is a credential of the unit.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// What was seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stood {
    /// The rootlesskit that ran.
    pub instance: Option<Identity>,
    /// When forwards were last seen standing.
    pub forwards: BTreeMap<Forward, Instant>,
}

/// It as it is written: times are nanoseconds of CLOCK_MONOTONIC, which is [`Instant`]'s clock.
#[derive(Serialize, Deserialize)]
struct Written {
    boot: String,
    instance: Option<Identity>,
    forwards: BTreeMap<Forward, u64>,
}

/// The file with what was seen last.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    boot: Option<String>,
    has_failed: bool,
}

impl File {
    /// The one in that directory.
    pub(super) fn new(directory: &Path) -> File {
        let boot = fs::read_to_string(BOOT).ok().or_else(|| credential("boot_id"));
        let boot = boot.map(|boot| boot.trim().to_owned());
        if boot.is_none() {
            tracing::warn!(
                "{BOOT} cannot be read: interruptions that begin while podsecd-u7s is away are not measured"
            );
        }
        File { path: directory.join(FILE), boot, has_failed: false }
    }

    /// What was seen before podsecd-u7s started; nothing if that is not known.
    pub(super) fn read(&self) -> Stood {
        self.try_read().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                let path = self.path.display();
                tracing::warn!("{path}: {error}; interruptions that began while podsecd-u7s was away are not measured");
            }
            Stood::default()
        })
    }

    fn try_read(&self) -> io::Result<Stood> {
        let mut bytes = Vec::new();
        open_regular(&self.path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        let Written { boot, instance, forwards } = serde_json::from_slice(&bytes)?;
        if self.boot.as_ref() != Some(&boot) {
            return Ok(Stood::default());
        }
        let (clock, now) = (monotonic(), Instant::now());
        // What is later than now is not true.
        let then = |time| now.checked_sub(clock.checked_sub(Duration::from_nanos(time))?);
        let forwards = forwards.into_iter().filter_map(|(forward, time)| Some((forward, then(time)?))).collect();
        Ok(Stood { instance, forwards })
    }

    /// Writes what was seen, for the next podsecd-u7s of this boot: it need not be on the disk.
    pub(super) fn write(&mut self, stood: &Stood) {
        let Some(boot) = self.boot.clone() else { return };
        let (clock, now) = (monotonic(), Instant::now());
        let time = |then: &Instant| clock.saturating_sub(now.saturating_duration_since(*then)).as_nanos() as u64;
        let forwards = stood.forwards.iter().map(|(forward, then)| (*forward, time(then))).collect();
        let written = Written { boot, instance: stood.instance, forwards };
        let new = self.path.with_extension("new");
        let done = serde_json::to_vec(&written).map_err(io::Error::from).and_then(|bytes| {
            fs::write(&new, bytes)?;
            fs::rename(&new, &self.path)
        });
        // Once for as long as it fails.
        if let Err(error) = &done
            && !self.has_failed
        {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
        self.has_failed = done.is_err();
    }
}

/// CLOCK_MONOTONIC.
fn monotonic() -> Duration {
    // The kernel's is never negative.
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_is_known_after_a_restart_and_not_after_a_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = File::new(dir.path());
        assert_eq!(file.read(), Stood::default(), "nothing yet");
        let forward: Forward = "0.0.0.0:6443:6443/tcp".parse().expect("a forward");
        let at = Instant::now().checked_sub(Duration::from_millis(10)).expect("the node runs for longer");
        let stood = Stood { instance: None, forwards: [(forward, at)].into() };
        file.write(&stood);
        let read = File::new(dir.path()).read().forwards[&forward];
        let difference = read.max(at).duration_since(read.min(at));
        assert!(difference < Duration::from_millis(5), "{difference:?}: two clocks are read one after the other");
        let other = File { boot: Some("another".into()), ..file };
        assert_eq!(other.read(), Stood::default());
    }

    #[test]
    fn what_is_no_such_file_is_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let boot = File::new(dir.path()).boot.expect("Linux has one");
        let later = format!(r#"{{"boot":"{boot}","instance":null,"forwards":{{"0.0.0.0:1:1/tcp":{}}}}}"#, u64::MAX);
        for text in ["", "[]", "\0", r#"{"boot":"x"}"#, &later] {
            fs::write(dir.path().join(FILE), text).expect("written");
            assert_eq!(File::new(dir.path()).read(), Stood::default(), "{text}");
        }
    }

    #[test]
    fn a_directory_that_takes_nothing_is_no_more_than_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("stood.new")).expect("made");
        let mut file = File::new(dir.path());
        file.write(&Stood::default());
        assert!(file.has_failed);
    }
}
