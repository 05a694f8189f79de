//! The spool: every finding of the present digest period, until the digest that holds it is delivered.
//!
//! One file a period, named after the number of the digest that it becomes, a line of JSON for each finding. What is in
//! it counts as reported: a restart drops only what the audit log will yield again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::checks::kubeapi::fields;
use crate::checks::own::ids::MAIL_REFUSED;
use crate::finding::FieldName;
use crate::report::Cycle;
use crate::score::{Level, write_finding_with};

/// Fields of which a digest says nothing; the journal has them.
const UNTOLD: [&FieldName; 7] = [
    fields::STAGE,
    fields::GROUPS,
    fields::API_GROUP,
    fields::NAME,
    fields::USER_AGENT,
    fields::REQUEST_URI,
    fields::REASON,
];

/// From this length on the spool takes no more findings of the audit log, whose refusals forbidden.log has, too: an
/// intruder must not fill the disk by being refused. Nor must a helper: of what it and podsecd itself say there is room for as much
/// again.
const MAX_LENGTH: u64 = 256 << 20;

/// How far the spool is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Number of the digest whose period it is; the first is 1.
    pub number: u64,
    /// Length of its file, in bytes.
    pub length: u64,
    /// How many findings the spool had no room for.
    pub left_out: u64,
}

impl Mark {
    /// The beginning of a period.
    pub fn at(number: u64) -> Mark {
        Mark { number, length: 0, left_out: 0 }
    }
}

/// A finding in the spool.
#[derive(Debug, Deserialize)]
pub struct Entry<'a> {
    /// The audit log yields it again after a restart that does not know of it.
    pub again: bool,
    /// The finding.
    #[serde(borrow)]
    pub finding: Spooled<'a>,
}

impl Entry<'_> {
    fn urgency(&self) -> Urgency {
        Urgency::of(&self.finding.id, self.finding.level)
    }
}

/// What a digest says of a finding; the JSON finding of the interface.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the interface")]
pub struct Spooled<'a> {
    #[serde(with = "crate::score::humantime_text")]
    pub time: SystemTime,
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    pub level: Level,
    #[serde(borrow)]
    pub subject: Cow<'a, str>,
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    #[serde(borrow)]
    pub fields: SpooledFields<'a>,
}

/// Of its further fields those of which a digest or forbidden.log says something; empty where they are not there.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of the interface")]
pub struct SpooledFields<'a> {
    #[serde(borrow, rename = "auditID")]
    pub audit_id: Cow<'a, str>,
    #[serde(borrow)]
    pub request_received_timestamp: Cow<'a, str>,
    pub code: u64,
    #[serde(borrow)]
    pub user: Cow<'a, str>,
    #[serde(borrow)]
    pub impersonated_user: Cow<'a, str>,
    #[serde(borrow)]
    pub verb: Cow<'a, str>,
    #[serde(borrow)]
    pub resource: Cow<'a, str>,
    #[serde(borrow)]
    pub subresource: Cow<'a, str>,
    #[serde(borrow)]
    pub namespace: Cow<'a, str>,
    #[serde(borrow, rename = "sourceIP")]
    pub source_ip: Cow<'a, str>,
    #[serde(borrow)]
    pub forwarded_for: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    pub response_message: Cow<'a, str>,
}

/// When a finding wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    /// With the next one that does: a digest that says of another only that it was refused would be refused itself, and so on.
    #[default]
    Waits,
    /// At the end of the period.
    Period,
    /// At once.
    AtOnce,
}

impl Urgency {
    /// That of a finding.
    pub fn of(id: &str, level: Level) -> Urgency {
        match level {
            _ if id == MAIL_REFUSED.0 => Urgency::Waits,
            Level::Crash | Level::Fatal => Urgency::AtOnce,
            _ => Urgency::Period,
        }
    }
}

/// The file of the present period.
#[derive(Debug)]
pub struct Spool {
    file: File,
    mark: Mark,
    /// How far a restart knows of it.
    covered: Mark,
    /// The highest urgency of what was found behind the mark when it was opened.
    pub kept: Urgency,
}

/// What the log would yield again after a restart.
#[derive(Debug, Default)]
pub struct Carried {
    lines: Vec<u8>,
    left_out: u64,
    /// The highest urgency of it, if there is anything.
    pub urgency: Option<Urgency>,
}

impl Spool {
    /// The spool as it was at the mark. What stands behind it is kept, but for what the log will yield again, and for a
    /// torn line.
    ///
    /// # Errors
    /// Those of open(2), read(2), write(2) and rename(2); nothing of the spool is lost.
    pub fn open(directory: &Path, mark: Mark) -> io::Result<Spool> {
        std::fs::create_dir_all(directory)?;
        let path = path(directory, mark.number);
        let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open()?;
        let length = file.metadata()?.len().min(mark.length);
        let mut behind = Vec::new();
        file.seek(SeekFrom::Start(length))?;
        file.read_to_end(&mut behind)?;
        let (kept, urgency) = kept(&behind);
        if behind.starts_with(&kept) {
            file.set_len(length + kept.len() as u64)?;
        } else {
            let temporary = path.with_extension("new");
            let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.seek(SeekFrom::Start(0))?;
            io::copy(&mut file.take(length), &mut new)?;
            new.write_all(&kept)?;
            new.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            file = open()?;
        }
        File::open(directory)?.sync_all()?;
        let mark = Mark { length: length + kept.len() as u64, ..mark };
        Ok(Spool { file, mark, covered: mark, kept: urgency })
    }

    /// How far it is written.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Appends what the cycles found and sees it safely on the disk; all of it, or nothing.
    ///
    /// # Errors
    /// Those of write(2) and fdatasync(2); try again later.
    pub fn append<'c>(&mut self, cycles: impl IntoIterator<Item = &'c Cycle>) -> io::Result<()> {
        let (mut lines, mut left_out) = (Vec::new(), 0);
        for reported in cycles.into_iter().flat_map(|cycle| &cycle.findings) {
            let room = if reported.again { MAX_LENGTH } else { 2 * MAX_LENGTH };
            if self.mark.length + lines.len() as u64 >= room {
                left_out += 1;
                continue;
            }
            lines.extend_from_slice(if reported.again {
                b"{\"again\":true,\"finding\":"
            } else {
                b"{\"again\":false,\"finding\":"
            });
            write_finding_with(&mut lines, &reported.scored, |name| !UNTOLD.contains(&name));
            lines.extend_from_slice(b"}\n");
        }
        self.write(&lines, left_out)
    }

    fn write(&mut self, lines: &[u8], left_out: u64) -> io::Result<()> {
        if !lines.is_empty()
            && let Err(error) = self.file.write_all(lines).and_then(|()| self.file.sync_data())
        {
            self.file.set_len(self.mark.length)?;
            return Err(error);
        }
        self.mark.length += lines.len() as u64;
        self.mark.left_out += left_out;
        Ok(())
    }

    /// The checkpoint knows of all of it.
    pub fn cover(&mut self) {
        self.covered = self.mark;
    }

    /// What a restart would drop, because the log yields it again. [`Spool::drop_carried`] drops it.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn carried(&self) -> io::Result<Carried> {
        let mut behind = vec![0; (self.mark.length - self.covered.length) as usize];
        self.file.read_exact_at(&mut behind, self.covered.length)?;
        let left_out = self.mark.left_out - self.covered.left_out;
        let mut carried =
            Carried { left_out, urgency: (left_out > 0).then_some(Urgency::Period), ..Carried::default() };
        for (line, entry) in entries(&behind).filter(|(_, entry)| entry.again) {
            carried.lines.extend_from_slice(line);
            carried.urgency = carried.urgency.max(Some(entry.urgency()));
        }
        Ok(carried)
    }

    /// Makes the file what a restart would make of it.
    ///
    /// # Errors
    /// As [`Spool::open`]; may be tried again.
    pub fn drop_carried(&mut self, directory: &Path) -> io::Result<()> {
        *self = Spool::open(directory, self.covered)?;
        Ok(())
    }

    /// Takes in what was carried over from an earlier period.
    ///
    /// # Errors
    /// As [`Spool::append`].
    pub fn take_carried(&mut self, carried: &Carried) -> io::Result<()> {
        self.write(&carried.lines, carried.left_out)
    }
}

/// The file of a period.
pub fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}.jsonl"))
}

/// The files of the periods before that number: numbers and lengths, in bytes.
///
/// # Errors
/// Those of readdir(3).
pub fn before(directory: &Path, number: u64) -> io::Result<BTreeMap<u64, u64>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let period = name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok());
        if let Some(period) = period.filter(|period| *period < number) {
            files.insert(period, entry.metadata()?.len());
        }
    }
    Ok(files)
}

/// Removes the file of a period; it is none if it is not there.
///
/// # Errors
/// Those of unlink(2).
pub fn remove(directory: &Path, number: u64) -> io::Result<()> {
    match std::fs::remove_file(path(directory, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Hands out what is in a file of the spool, in the order in which it was found; answers how many lines are damaged and
/// passed over. A torn last line is no entry.
///
/// # Errors
/// Those of read(2) and of `take`.
pub fn read(path: &Path, mut take: impl FnMut(Entry<'_>) -> io::Result<()>) -> io::Result<u64> {
    let mut lines = BufReader::with_capacity(256 << 10, File::open(path)?);
    let (mut line, mut damaged) = (Vec::new(), 0);
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok(damaged);
        }
        match serde_json::from_slice(&line) {
            Ok(entry) => take(entry)?,
            Err(error) => {
                tracing::error!(%error, "a line of {} is no finding", path.display());
                damaged += 1;
            }
        }
    }
}

/// What a restart keeps of what stands behind the mark, and the highest urgency of it.
fn kept(behind: &[u8]) -> (Vec<u8>, Urgency) {
    let (mut kept, mut urgency) = (Vec::new(), Urgency::default());
    for (line, entry) in entries(behind).filter(|(_, entry)| !entry.again) {
        kept.extend_from_slice(line);
        urgency = urgency.max(entry.urgency());
    }
    (kept, urgency)
}

/// The whole lines that are entries.
fn entries(lines: &[u8]) -> impl Iterator<Item = (&[u8], Entry<'_>)> {
    let lines = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.filter_map(|line| Some((line, serde_json::from_slice(line).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kubeapi::ids::FORBIDDEN;
    use crate::checks::own::ids::PART_FAILED;
    use crate::finding::{Id, Kind};
    use crate::report::Reported;
    use crate::score::{Levels, Weights, condition, judge};

    /// A cycle of these findings: id, subject, and whether the log would show it again.
    fn cycle(findings: &[(Id, &str, bool)]) -> Cycle {
        let report = |(id, subject, again): &(Id, &str, bool)| {
            let finding = condition(*id, Kind::Event, subject, "x".into(), SystemTime::UNIX_EPOCH);
            let scored = judge(finding, &Weights::shipped(), &Levels::default());
            Reported { scored, metric: 0, again: *again }
        };
        Cycle { number: 1, findings: findings.iter().map(report).collect() }
    }

    /// The subjects in the spool.
    fn subjects(directory: &Path) -> Vec<String> {
        let mut subjects = Vec::new();
        let take = |entry: Entry<'_>| {
            subjects.push(entry.finding.subject.into_owned());
            Ok(())
        };
        read(&path(directory, 1), take).expect("readable");
        subjects
    }

    #[test]
    fn a_restart_drops_what_the_log_yields_again_and_keeps_the_rest() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut spool = Spool::open(dir.path(), Mark::at(1)).expect("opened");
        spool.append([&cycle(&[(FORBIDDEN, "marked", true)])]).expect("appended");
        let mark = spool.mark();
        let behind = [(FORBIDDEN, "again", true), (PART_FAILED, "once", false), (FORBIDDEN, "again too", true)];
        spool.append([&cycle(&behind)]).expect("appended");
        let mut torn = OpenOptions::new().append(true).open(path(dir.path(), 1)).expect("opened");
        torn.write_all(b"{\"again\":false,\"find").expect("written");
        for _ in 0..2 {
            let spool = Spool::open(dir.path(), mark).expect("opened");
            assert_eq!(subjects(dir.path()), ["marked", "once"]);
            assert_eq!(spool.mark().length, path(dir.path(), 1).metadata().expect("there").len());
        }
    }
}
