//! Entries of the journal, and their way to journald.
//!
//! The protocol is that of <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. It is spoken here and not by a crate because
//! the socket must not block: a stalled journald stops the reading of the log, not conditions, status and watchdog.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use memchr::memchr;
use nix::libc::EMSGSIZE;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::text::{one_line, shorten};
use super::{Cycle, Reported, Trouble};
use crate::checks;
use crate::checks::own::ids::JOURNAL_UNAVAILABLE;
use crate::finding::{Id, Kind, Value};
use crate::score::Scored;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Namespace of our message ids: UUIDv5 of it and a finding's id is the MESSAGE_ID. Fixed for ever.
const NAMESPACE: Uuid = Uuid::from_u128(0x8f0d_6c6e_2a52_4c51_9d1c_70d5_ecd0_0001);

/// Longest value of a field, in bytes, and most bytes of values in an entry: it must fit into one datagram, whose limit
/// is net.core.wmem_default (208 KiB).
const MAX_VALUE: usize = 8 << 10;
const MAX_ENTRY: usize = 96 << 10;
/// Where that limit is lower, entries become shorter, but not shorter than this.
const MIN_ENTRY: usize = 4 << 10;

/// Most values of one list. journald drops an entry with more than 1,024 fields without an answer.
const MAX_LIST: usize = 64;

/// How long journald may take before that is a condition.
const PATIENCE: Duration = Duration::from_secs(5);

/// Those of all ids, as journald writes them.
static MESSAGE_IDS: LazyLock<BTreeMap<Id, String>> = LazyLock::new(|| {
    let message_id = |id: Id| Uuid::new_v5(&NAMESPACE, id.0.as_bytes()).simple().to_string();
    checks::ids().into_iter().map(|id| (id, message_id(id))).collect()
});

/// MESSAGE_ID of a finding's id.
pub fn message_id(id: Id) -> &'static str {
    MESSAGE_IDS.get(&id).map_or("", String::as_str)
}

/// The message: `<Level>: <text>` on one line, which podsec's filters read.
pub fn message(scored: &Scored<'_>) -> String {
    let finding = &scored.finding;
    let kind = match finding.kind {
        Kind::Event => "",
        Kind::Raised => "raised: ",
        Kind::Cleared => "cleared: ",
    };
    [scored.level.as_str(), ": ", kind, &one_line(&shorten(&finding.message, MAX_VALUE))].concat()
}

/// The entry of a finding in journald's native protocol.
pub fn entry(scored: &Scored<'_>, metric: u32, identifier_prefix: &str) -> Vec<u8> {
    shortened_entry(scored, metric, identifier_prefix, MAX_ENTRY)
}

/// The same with at most `most` bytes of values.
fn shortened_entry(scored: &Scored<'_>, metric: u32, identifier_prefix: &str, most: usize) -> Vec<u8> {
    let finding = &scored.finding;
    let check = finding.id.check();
    let mut entry = Vec::with_capacity(2048);
    let put = |entry: &mut Vec<u8>, name: &str, value: &str| put(entry, name, value, most);
    put(&mut entry, "MESSAGE", &message(scored));
    put(&mut entry, "PRIORITY", &scored.level.priority().to_string());
    put(&mut entry, "SYSLOG_IDENTIFIER", &format!("{identifier_prefix}{check}"));
    put(&mut entry, "MESSAGE_ID", message_id(finding.id));
    put(&mut entry, "PODSEC_CHECK", check);
    put(&mut entry, "PODSEC_FINDING", finding.id.0);
    put(&mut entry, "PODSEC_KIND", finding.kind.as_str());
    put(&mut entry, "PODSEC_LEVEL", scored.level.as_str());
    put(&mut entry, "PODSEC_WEIGHT", &scored.weight.to_string());
    put(&mut entry, "PODSEC_METRIC", &metric.to_string());
    put(&mut entry, "PODSEC_SUBJECT", &finding.subject);
    if let Some(level) = scored.former_level {
        put(&mut entry, "PODSEC_FORMER_LEVEL", level.as_str());
    }
    for (name, value) in &finding.fields.0 {
        match value {
            Value::Text(text) => put(&mut entry, name.journal, text),
            Value::Number(number) => put(&mut entry, name.journal, &number.to_string()),
            Value::List(_) => {}
        }
    }
    // Lists last: a client chooses how long X-Forwarded-For is, and must not push out what is known about it.
    for (name, value) in &finding.fields.0 {
        if let Value::List(list) = value {
            list.iter().take(MAX_LIST).for_each(|text| put(&mut entry, name.journal, text));
            if let Some(more) = list.len().checked_sub(MAX_LIST).filter(|more| *more > 0) {
                put(&mut entry, name.journal, &format!("… and {more} more"));
            }
        }
    }
    entry
}

/// Appends a field; a value with a newline has its length before it.
fn put(entry: &mut Vec<u8>, name: &str, value: &str, most: usize) {
    let value = shorten(value, MAX_VALUE.min(most / 8));
    if entry.len() + value.len() > most {
        return;
    }
    entry.extend_from_slice(name.as_bytes());
    if memchr(b'\n', value.as_bytes()).is_some() {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Sends cycles to journald as they come, and says up to which one it took them. Waits as long as journald takes none;
/// `away`: that was said before a restart.
pub async fn run(
    mut cycles: mpsc::Receiver<Arc<Cycle>>,
    accepted: watch::Sender<u64>,
    troubles: mpsc::Sender<Trouble>,
    mut prefix: watch::Receiver<String>,
    away: bool,
) {
    let mut journal = Journal { socket: None, troubles, away, most: MAX_ENTRY };
    while let Some(cycle) = cycles.recv().await {
        let prefix = prefix.borrow_and_update().clone();
        for Reported { scored, metric, .. } in &cycle.findings {
            journal.send(|most| shortened_entry(scored, *metric, &prefix, most)).await;
        }
        accepted.send_replace(cycle.number);
    }
}

struct Journal {
    socket: Option<UnixDatagram>,
    troubles: mpsc::Sender<Trouble>,
    /// It was said that journald is away.
    away: bool,
    /// How long an entry may be, in bytes.
    most: usize,
}

impl Journal {
    /// Sends one entry, however long that takes. `entry` makes it, with so many bytes at most.
    async fn send(&mut self, entry: impl Fn(usize) -> Vec<u8>) {
        let mut pause = Duration::from_millis(50);
        loop {
            match timeout(PATIENCE, self.try_send(&entry(self.most))).await {
                Ok(Ok(())) => return self.say(None).await,
                // It takes no more for now. Sending goes on where it waited.
                Err(_) => self.say(Some("it has not taken an entry for 5 s".into())).await,
                Ok(Err(error)) if error.raw_os_error() == Some(EMSGSIZE) && self.most > MIN_ENTRY => self.most /= 2,
                Ok(Err(error)) => {
                    self.socket = None;
                    if pause > Duration::from_secs(1) {
                        self.say(Some(error.to_string())).await;
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PATIENCE);
                }
            }
        }
    }

    async fn try_send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            empty => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(Path::new(SOCKET))?;
                empty.insert(socket)
            }
        };
        socket.send(entry).await.map(drop)
    }

    /// Says that journald is away, or that it is back.
    async fn say(&mut self, why: Option<String>) {
        if self.away != why.is_some() {
            self.away = why.is_some();
            let (kind, message) = match why {
                Some(why) => {
                    (Kind::Raised, format!("journald takes no entries: {why}; podsecd waits and will catch up"))
                }
                None => (Kind::Cleared, "journald takes entries again".to_owned()),
            };
            // Whoever takes it never waits for us.
            let _ = self.troubles.send(Trouble { id: JOURNAL_UNAVAILABLE, kind, subject: "journald", message }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kubeapi::{fields, ids};
    use crate::finding::{Fields, Finding};
    use crate::score::{Levels, Weights, judge};

    fn scored(message: &str, uri: &str) -> Scored<'static> {
        let mut fields = Fields::default();
        fields.text(fields::AUDIT_ID, "a-1".to_owned());
        fields.list(fields::GROUPS, vec!["dev".into(), "qa".into()]);
        fields.text(fields::REQUEST_URI, uri.to_owned());
        let time = std::time::SystemTime::UNIX_EPOCH;
        let (subject, message) = ("alice".into(), message.to_owned().into());
        let finding = Finding { time, id: ids::FORBIDDEN, kind: Kind::Event, subject, message, fields };
        judge(finding, &Weights::shipped(), &Levels::default())
    }

    /// Parses the native protocol.
    fn fields_of(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').expect("a line");
            let (line, rest) = (&entry[..end], &entry[end + 1..]);
            if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
                fields.push((text(&line[..equals]), text(&line[equals + 1..])));
                entry = rest;
            } else {
                let length = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
                fields.push((text(line), text(&rest[8..8 + length])));
                entry = &rest[8 + length + 1..];
            }
        }
        fields
    }

    #[test]
    fn an_entry_has_the_fields_of_the_interface() {
        let fields = fields_of(&entry(&scored("no", "/api\nX=1"), 101, "podsec-inotify-check-"));
        let expected = [
            ("MESSAGE", "Critical: no"),
            ("PRIORITY", "2"),
            ("SYSLOG_IDENTIFIER", "podsec-inotify-check-kubeapi"),
            ("MESSAGE_ID", "4bd7251574a85aa290c1a409f0d5931d"),
            ("PODSEC_CHECK", "kubeapi"),
            ("PODSEC_FINDING", "kubeapi/forbidden"),
            ("PODSEC_KIND", "event"),
            ("PODSEC_LEVEL", "Critical"),
            ("PODSEC_WEIGHT", "101"),
            ("PODSEC_METRIC", "101"),
            ("PODSEC_SUBJECT", "alice"),
            ("AUDIT_ID", "a-1"),
            ("K8S_URI", "/api\nX=1"),
            ("K8S_GROUP", "dev"),
            ("K8S_GROUP", "qa"),
        ];
        for ((name, value), (expected_name, expected_value)) in fields.iter().zip(expected) {
            assert_eq!((name.as_str(), value.as_str()), (expected_name, expected_value));
        }
        assert_eq!(fields.len(), expected.len());
    }

    #[test]
    fn message_ids_never_change() {
        // Operators' filters and the journal catalog know them.
        assert_eq!(message_id(ids::FORBIDDEN), "4bd7251574a85aa290c1a409f0d5931d");
    }

    #[test]
    fn an_entry_of_giant_fields_still_fits_into_a_datagram() {
        let long = "\n€".repeat(1 << 20);
        let mut scored = scored(&long, &long);
        scored.finding.fields.list(fields::FORWARDED_FOR, vec!["x".repeat(500).into(); 5000]);
        let entry = entry(&scored, 1, "p-");
        assert!(entry.len() < 128 << 10, "{}", entry.len());
        assert!(shortened_entry(&scored, 1, "p-", MIN_ENTRY).len() < 2 * MIN_ENTRY);
        let fields = fields_of(&entry);
        assert!(fields.len() < 100 && fields.iter().any(|field| field.1 == "… and 4936 more"));
    }
}
