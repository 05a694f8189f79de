//! What was known of forwards, kept over restarts of podsecd-u7s: what is interrupted while it is away has a gap, too. Of another
//! boot of the node nothing is kept: then nothing stood before.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::checks::forwards::entry::{Past, Since, Stood};
use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::instance::Identity;
use crate::service::credential;
use crate::watch::open::open_regular;

/// The file in the state directory.
const FILE: &str = "past.json";
/// Larger ones are none of ours, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Between two times that it is written: a start of rootlesskit is a dozen looks.
const PAUSE: Duration = Duration::from_secs(1);
/// What the kernel calls this boot (random(4)). `ProcSubset=pid` hides it: then it is a credential of the unit.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// It as it is written: times are nanoseconds of CLOCK_MONOTONIC, which is [`Instant`]'s clock.
#[derive(Serialize, Deserialize)]
struct Written {
    boot: String,
    forwards: BTreeMap<Forward, OfForward>,
}

#[derive(Serialize, Deserialize)]
struct OfForward {
    stood: Option<u64>,
    instance: Option<Identity>,
    down: Option<u64>,
    is_bound: bool,
}

/// The file.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    boot: Option<String>,
    written: Option<Instant>,
    /// What is newer waits until then.
    due: Option<Instant>,
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
        File { path: directory.join(FILE), boot, written: None, due: None, has_failed: false }
    }

    /// What was known before podsecd-u7s started; nothing if that cannot be read.
    pub(super) fn read(&self) -> BTreeMap<Forward, Past> {
        self.try_read().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                let path = self.path.display();
                tracing::warn!("{path}: {error}; interruptions that began while podsecd-u7s was away are not measured");
            }
            BTreeMap::new()
        })
    }

    fn try_read(&self) -> io::Result<BTreeMap<Forward, Past>> {
        let mut bytes = Vec::new();
        open_regular(&self.path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        let Written { boot, forwards } = serde_json::from_slice(&bytes)?;
        if self.boot.as_ref() != Some(&boot) {
            return Ok(BTreeMap::new());
        }
        let (clock, now) = (monotonic(), Instant::now());
        // What is later than now is not true.
        let instant = |time| now.checked_sub(clock.checked_sub(Duration::from_nanos(time))?);
        let past = |OfForward { stood, instance, down, is_bound }| Past {
            stood: stood.and_then(instant).map(|at| Stood { at, instance }),
            down: down.and_then(instant).map(|at| Since { at, is_bound }),
        };
        Ok(forwards.into_iter().map(|(forward, of)| (forward, past(of))).collect())
    }

    /// Writes what is known now, for the next podsecd-u7s of this boot: it need not be on the disk. What came a moment after what
    /// was written last waits, unless it is the last.
    pub(super) fn write(&mut self, past: &BTreeMap<Forward, Past>, is_last: bool) {
        let Some(boot) = self.boot.clone() else { return };
        if let Some(written) = self.written.filter(|written| !is_last && written.elapsed() < PAUSE) {
            self.due = Some(written + PAUSE);
            return;
        }
        (self.written, self.due) = (Some(Instant::now()), None);
        let (clock, now) = (monotonic(), Instant::now());
        let time = |then: Instant| clock.saturating_sub(now.saturating_duration_since(then)).as_nanos() as u64;
        let of = |Past { stood, down }: &Past| OfForward {
            stood: stood.map(|stood| time(stood.at)),
            instance: stood.and_then(|stood| stood.instance),
            down: down.map(|since| time(since.at)),
            is_bound: down.is_some_and(|since| since.is_bound),
        };
        let forwards = past.iter().map(|(forward, past)| (*forward, of(past))).collect();
        let done = self.replace(&Written { boot, forwards });
        // Once for as long as it fails.
        if let Err(error) = &done
            && !self.has_failed
        {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
        self.has_failed = done.is_err();
    }

    /// When it is to be written though nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn replace(&self, written: &Written) -> io::Result<()> {
        let new = self.path.with_extension("new");
        // Whatever is there is none of ours: a pipe would be waited for.
        let _ = fs::remove_file(&new);
        fs::File::create_new(&new)?.write_all(&serde_json::to_vec(written)?)?;
        fs::rename(&new, &self.path)
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
    fn what_was_known_is_known_after_a_restart_and_not_after_a_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = File::new(dir.path());
        assert_eq!(file.read(), BTreeMap::new(), "nothing yet");
        let forward: Forward = "0.0.0.0:6443:6443/tcp".parse().expect("a forward");
        let at = Instant::now().checked_sub(Duration::from_millis(10)).expect("the node runs for longer");
        for past in [
            Past { stood: Some(Stood { at, instance: None }), down: None },
            Past { stood: None, down: Some(Since { at, is_bound: true }) },
        ] {
            file.write(&[(forward, past)].into(), true);
            let read = File::new(dir.path()).read()[&forward];
            let close = |read: Instant| {
                let difference = read.max(at).duration_since(read.min(at));
                assert!(
                    difference < Duration::from_millis(5),
                    "{difference:?}: two clocks are read one after the other"
                );
            };
            assert_eq!((read.stood.is_some(), read.down.is_some()), (past.stood.is_some(), past.down.is_some()));
            read.stood.iter().for_each(|stood| close(stood.at));
            read.down.iter().for_each(|since| close(since.at));
            assert!(read.down.is_none_or(|since| since.is_bound));
        }
        let other = File { boot: Some("another".into()), ..file };
        assert_eq!(other.read(), BTreeMap::new());
    }

    #[test]
    fn what_comes_soon_after_waits_for_the_next_time_or_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let forward: Forward = "0.0.0.0:6443:6443/tcp".parse().expect("a forward");
        let mut file = File::new(dir.path());
        file.write(&BTreeMap::new(), false);
        assert_eq!(file.due(), None);
        for (is_last, expected) in [(false, 0), (true, 1)] {
            file.write(&[(forward, Past::default())].into(), is_last);
            assert_eq!(file.read().len(), expected, "{is_last}");
            assert_eq!(file.due().is_some(), !is_last);
        }
    }

    #[test]
    fn what_is_no_such_file_is_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let boot = File::new(dir.path()).boot.expect("Linux has one");
        for text in ["", "[]", "\0", r#"{"boot":"x"}"#] {
            fs::write(dir.path().join(FILE), text).expect("written");
            assert_eq!(File::new(dir.path()).read(), BTreeMap::new(), "{text}");
        }
        let later = r#"{"stood":18446744073709551615,"instance":null,"down":null,"is_bound":false}"#;
        let text = format!(r#"{{"boot":"{boot}","forwards":{{"0.0.0.0:1:1/tcp":{later}}}}}"#);
        fs::write(dir.path().join(FILE), text).expect("written");
        assert_eq!(File::new(dir.path()).read().into_values().collect::<Vec<_>>(), [Past::default()]);
    }

    #[test]
    fn what_is_in_the_way_is_no_more_than_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        let new = dir.path().join("past.new");
        nix::unistd::mkfifo(&new, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let mut file = File::new(dir.path());
        file.write(&BTreeMap::new(), true);
        assert!(!file.has_failed, "a pipe is not waited for");
        fs::create_dir(&new).expect("made");
        file.write(&BTreeMap::new(), true);
        assert!(file.has_failed);
    }
}
