//! What a takeover turned off, so that it can be undone. It is written before the first change, and only grows: a takeover
//! that was interrupted, or is done again, forgets nothing of how the node was before.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::state::{self, Former};
use super::units::{OF_AUDIT_LOG, OF_CONTAINERS, PODSECD, Unit, VULNERABILITIES};
use crate::version::{self, Version};
use crate::watch::open::{directory_of, open_regular};
use anyhow::{Context, Result, bail};

/// Where it lies: in no directory of podsecd's, which may less than root.
pub const PATH: &str = "/var/lib/podsecd-takeover.json";
/// Version of the format. A newer one is refused.
const VERSION: u32 = 1;
/// It is never larger.
const MAX_SIZE: u64 = 64 << 10;

/// How the units were before the takeover, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: Version<VERSION>,
    /// Those of podsec-inotify, and podsecd's own.
    pub units: BTreeMap<String, Was>,
}

/// How a unit was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Was {
    /// The node started it.
    pub enabled: bool,
    /// It ran.
    pub active: bool,
}

impl Record {
    /// Reads the record; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not a record of root's: what it names is turned on.
    pub fn load(path: &Path) -> Result<Option<Record>> {
        let mut bytes = Vec::new();
        match open_regular(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => drop(other.with_context(|| format!("cannot read {}", path.display()))?),
        }
        let record: Record = version::read(path, &bytes, VERSION, "turn on with systemctl what you want")?;
        let known = [OF_AUDIT_LOG, OF_CONTAINERS, VULNERABILITIES, &[PODSECD]];
        let is_known = |unit: &str| known.iter().any(|units| units.contains(&unit));
        if let Some(unit) = record.units.keys().find(|unit| !is_known(unit)) {
            bail!("{} names {unit}, which no takeover turns off; remove it", path.display());
        }
        Ok(Some(record))
    }

    /// Takes in how a unit is before it is changed. What was on once is on in the record. podsecd is what the takeover turns
    /// on: what holds for it is how it was first.
    pub fn note(&mut self, unit: &Unit) {
        let now = Was { enabled: unit.is_enabled(), active: unit.is_active() };
        let was = self.units.entry(unit.name.to_owned()).or_insert(now);
        if unit.name != PODSECD {
            *was = Was { enabled: was.enabled || now.enabled, active: was.active || now.active };
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of [`state::write`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self)?;
        state::write(path, &bytes, Former::Replace).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes it.
    ///
    /// # Errors
    /// Those of unlink(2) and fsync(2).
    pub fn remove(path: &Path) -> Result<()> {
        let removed = fs::remove_file(path).and_then(|()| File::open(directory_of(path))?.sync_all());
        removed.with_context(|| format!("cannot remove {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &'static str, enabled: &str, active: &str) -> Unit {
        Unit { name, is_installed: true, enabled: enabled.into(), active: Some(active.into()) }
    }

    #[test]
    fn a_takeover_that_is_done_again_forgets_nothing() {
        let [service, .., timer] = OF_AUDIT_LOG else { panic!("there are some") };
        let mut record = Record::default();
        record.note(&unit(service, "enabled", "active"));
        record.note(&unit(timer, "disabled", "active"));
        record.note(&unit(PODSECD, "disabled", "inactive"));
        let first = record.clone();
        for (name, active) in [(service, "inactive"), (timer, "inactive"), (&PODSECD, "active")] {
            record.note(&unit(name, "disabled", active));
        }
        assert_eq!(record, first, "what it turned off, and on, itself is not how the node was");
        record.note(&unit(timer, "enabled", "inactive"));
        assert_eq!(record.units[*timer], Was { enabled: true, active: true });
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_turns_on_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("takeover.json");
        assert_eq!(Record::load(&path).expect("none"), None);
        let mut record = Record::default();
        record.note(&unit(PODSECD, "enabled", "active"));
        record.save(&path).expect("saved");
        assert_eq!(Record::load(&path).expect("read"), Some(record));
        for (text, words) in [
            ("", "is damaged"),
            (r#"{"version":1}"#, "has what this podsecd does not know"),
            (r#"{"version":2,"units":{}}"#, "is of version 2, which this podsecd does not know"),
            (r#"{"version":1,"units":{"sshd.service":{"enabled":true,"active":true}}}"#, "sshd.service"),
        ] {
            fs::write(&path, text).expect("written");
            let refused = Record::load(&path).expect_err(text).to_string();
            assert!(refused.contains(words), "{refused}");
        }
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("linked");
        assert!(Record::load(&path).is_err(), "it is no regular file");
        Record::remove(&path).expect("removed");
        assert!(!path.is_symlink());
    }
}
