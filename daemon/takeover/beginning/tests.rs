//! Where podsecd begins, against a simple model: it reads what stands behind the first event of forbidden.log's last line.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::report::checkpoint::Checkpoint;
use crate::watch::follow::{Follower, Observed, Position, Step};

const LOG: &str = "/etc/kubernetes/audit/audit.log";

/// A tree with these files of the audit log, which end with .gz if they are to be compressed, and with that forbidden.log.
fn tree(logs: &BTreeMap<String, Vec<u8>>, forbidden_log: Option<&[u8]>) -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    let root = Root::new(Some(tree.path().into()));
    let put = |path: &str, bytes: &[u8]| {
        let path = root.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        if path.extension().is_some_and(|extension| extension == "gz") {
            let mut encoder = GzEncoder::new(File::create(path).expect("made"), Compression::fast());
            encoder.write_all(bytes).expect("written");
            encoder.finish().expect("written");
        } else {
            fs::write(path, bytes).expect("written");
        }
    };
    logs.iter().for_each(|(name, bytes)| put(&format!("/etc/kubernetes/audit/{name}"), bytes));
    forbidden_log.into_iter().for_each(|bytes| put(forbidden_log::PODSEC, bytes));
    tree
}

fn find(tree: &tempfile::TempDir) -> Beginning {
    Beginning::find(&Config::default(), &Root::new(Some(tree.path().into())), false).expect("found")
}

/// What podsecd reads from there on: the ids and stages of refused requests, and nothing else.
fn read_on(tree: &tempfile::TempDir, position: Position) -> Vec<String> {
    let files = LogFiles::new(&Root::new(Some(tree.path().into())).path(LOG));
    let (mut follower, mut read) = (Follower::new(files, position), Vec::new());
    let mut sink = |observed: Observed<'_>| match observed {
        Observed::Notice(notice) => panic!("{notice:?}"),
        Observed::Piece(_, piece) => look_at(piece, |seen| {
            if let Seen::Refused(event) = seen {
                read.push(format!("{} {}", event.audit_id, event.stage.as_str()));
            }
        }),
    };
    while follower.step(&mut sink).expect("read") == Step::Read {}
    read
}

/// podsec's filter, read independently: the line that it writes of an event, and which event that is.
fn told(line: &[u8]) -> Option<(String, String)> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let status = &event["responseStatus"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = serde_json::json!([event["requestReceivedTimestamp"], event["sourceIPs"][0], status["message"]]);
    (status["code"].as_u64()? >= 400)
        .then(|| (told.to_string(), format!("{} {}", text(&event["auditID"]), text(&event["stage"]))))
}

/// podsecd begins behind the first event of that line, and reads all behind it; for each of these lines.
fn assert_begins_behind(logs: &BTreeMap<String, Vec<u8>>, told: &[(String, String)], lines: &[usize]) {
    for line in lines.iter().map(|line| &told[*line].0) {
        let first = told.iter().position(|(other, _)| other == line).expect("it is one of them");
        let tree = tree(logs, Some(format!("[\"earlier\",null,null]\n{line}\n[\"torn").as_bytes()));
        let Beginning::Behind(_, place) = find(&tree) else { panic!("{line} is not found") };
        let rest: Vec<_> = told[first + 1..].iter().map(|(_, event)| event.clone()).collect();
        assert_eq!(read_on(&tree, place.position), rest, "{line}");
    }
}

#[test]
fn in_recorded_logs_reading_begins_behind_the_last_line_of_forbidden_log() {
    let (mut logs, mut all) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir("tests/data/audit/rotated").expect("recorded") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            logs.insert(name, fs::read(&path).expect("read"));
        }
    }
    // The live one sorts last.
    for (name, bytes) in &logs {
        assert!(name.starts_with("audit-") || Some(name) == logs.keys().last(), "{name}");
        all.extend(bytes.split(|byte| *byte == b'\n').filter_map(told));
    }
    assert_eq!(all.len(), 343, "as its README says");
    let compressed =
        |(at, (name, bytes)): (usize, (String, Vec<u8>))| (if at < 2 { format!("{name}.gz") } else { name }, bytes);
    let logs = logs.into_iter().enumerate().map(compressed).collect();
    let lines: Vec<_> = (0..all.len()).step_by(23).chain([all.len() - 1]).collect();
    assert_begins_behind(&logs, &all, &lines);
}

/// An event of these, as kube-apiserver writes it.
fn event(id: usize, time: u8, source: u8, stage: bool, code: u16) -> String {
    let stage = if stage { "ResponseStarted" } else { "ResponseComplete" };
    format!(
        concat!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"e-{}","stage":"{}","sourceIPs":["10.0.0.{}","#,
            r#""127.0.0.1"],"userAgent":"2026-11-22T02:58:59.00000{}Z","responseStatus":{{"metadata":{{}},"#,
            r#""message":"no \"\\\u003c","code":{}}},"requestReceivedTimestamp":"2026-11-22T02:58:59.00000{}Z"}}"#
        ),
        id,
        stage,
        source,
        2 - time,
        code,
        time
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn reading_begins_behind_the_first_event_that_matches(
        events in prop::collection::vec((0_u8..3, 0_u8..2, any::<bool>(), prop::sample::select(&[200_u16, 403, 500][..])), 1..24),
        cuts in prop::collection::vec((0_usize..24, any::<bool>()), 0..3),
        pick in any::<prop::sample::Index>(),
    ) {
        let lines: Vec<_> = events.iter().enumerate().map(|(id, &(time, source, stage, code))| event(id, time, source, stage, code)).collect();
        let all: Vec<_> = lines.iter().filter_map(|line| told(line.as_bytes())).collect();
        prop_assume!(!all.is_empty());
        let mut cuts: Vec<_> = cuts.into_iter().map(|(at, gzip)| (at.min(lines.len()), gzip)).collect();
        cuts.sort_unstable();
        let (mut logs, mut start) = (BTreeMap::new(), 0);
        let text = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
        for (number, (end, gzip)) in cuts.into_iter().enumerate() {
            let name = format!("audit-2026-11-22T03-06-0{number}.000.log{}", if gzip { ".gz" } else { "" });
            logs.insert(name, text(&lines[start..end]));
            start = end;
        }
        logs.insert("audit.log".to_owned(), text(&lines[start..]));
        assert_begins_behind(&logs, &all, &[pick.index(all.len())]);
    }
}

#[test]
fn what_shares_a_line_with_the_event_is_read_again_and_not_lost() {
    let [before, own, behind] = [0, 1, 2].map(|id| event(id, id as u8, 0, false, 403));
    let (line, _) = told(own.as_bytes()).expect("refused");
    let forbidden_log = format!("{line}\n");
    let torn = &behind[..60];
    for (log, read) in [
        (format!("{before}\n{torn}{own}{behind}\n"), vec!["e-1", "e-2"]),
        (format!("{before}\n{own}{torn}\n{behind}\n"), vec!["e-1", "e-2"]),
        (format!("{before}\n{torn}{own}\n{behind}\n"), vec!["e-2"]),
        // Its first event at the very beginning of all there is.
        (format!("{own}{before}\n{behind}\n"), vec!["e-1", "e-0", "e-2"]),
    ] {
        let tree = tree(&[("audit.log".to_owned(), log.clone().into_bytes())].into(), Some(forbidden_log.as_bytes()));
        let Beginning::Behind(_, place) = find(&tree) else { panic!("{log} is not found") };
        let read: Vec<_> = read.iter().map(|id| format!("{id} ResponseComplete")).collect();
        assert_eq!(read_on(&tree, place.position), read, "{log}");
    }
}

#[test]
fn a_line_of_podsecd_is_known_by_its_audit_id() {
    let [one, two] = [0, 1].map(|id| event(id, 0, 0, false, 403));
    let log = format!("{one}\n{two}\n");
    let line = br#"["2026-11-22T02:58:59.000000Z","10.0.0.0","shortened",{"auditID":"e-1","code":403}]
"#;
    let tree = tree(&[("audit.log".to_owned(), log.clone().into_bytes())].into(), Some(line));
    let Beginning::Behind(_, place) = find(&tree) else { panic!("it is not found") };
    assert_eq!(place.offset, log.len() as u64);
}

#[test]
fn without_a_line_that_matches_podsecd_begins_where_its_configuration_says() {
    let other = event(0, 0, 1, false, 403);
    let passed = event(0, 0, 0, false, 200);
    let logs: BTreeMap<_, _> = [("audit.log".to_owned(), format!("{other}\n{passed}\n").into_bytes())].into();
    let line = r#"["2026-11-22T02:58:59.000000Z","10.0.0.0","no \"\\<"]"#;
    let deep = "[".repeat(100_000);
    for (forbidden_log, why) in [
        (None, "no whole line in forbidden.log, and no time"),
        (Some(String::new()), "no whole line"),
        (Some(line.to_owned()), "no whole line"),
        (Some("x".repeat(MAX_LINE + 99) + "\n"), "no whole line"),
        (Some("\n".to_owned()), "none that podsec-inotify writes"),
        (Some(format!("{deep}\n")), "none that podsec-inotify writes"),
        (Some("[\"\",\"10.0.0.0\",\"no\"]\n".to_owned()), "none that podsec-inotify writes"),
        (Some(format!("[\"{}\",null,null]\n", "2".repeat(65))), "none that podsec-inotify writes"),
        (Some("[1,\"10.0.0.0\",\"no\"]\n".to_owned()), "none that podsec-inotify writes"),
        (Some("{\"a\":\"b\"}\n".to_owned()), "none that podsec-inotify writes"),
        (Some(format!("{line}\n")), "no event in the audit log matches what podsec-inotify told last"),
    ] {
        let found = find(&tree(&logs, forbidden_log.as_deref().map(str::as_bytes)));
        let Beginning::Configured(Start::Oldest, told) = &found else { panic!("{found:?}") };
        assert!(told.contains(why), "{told}, not {why}");
        assert!(found.to_string().starts_with("podsecd begins at the oldest backup of the audit log: "), "{found}");
    }
    let without_log = tree(&BTreeMap::new(), Some(format!("{line}\n").as_bytes()));
    assert!(matches!(find(&without_log), Beginning::Configured(..)), "an audit log that is not there has no event");
    let matching = tree(&logs, Some(format!("{}\n", line.replace("10.0.0.0", "10.0.0.1")).as_bytes()));
    assert!(matches!(find(&matching), Beginning::Behind(..)), "the same with the right address is found");
}

#[test]
fn where_the_list_was_mailed_and_emptied_podsecd_begins_behind_the_first_event_of_the_time_that_was_kept() {
    let [zero, one, two] = [(0, 0), (1, 1), (2, 1)].map(|(id, time)| event(id, time, 0, false, 403));
    let log = format!("{zero}\n{one}\n{two}\n");
    let time = "2026-11-22T02:58:59.000001Z";
    for (kept, expected) in [
        (format!("\"{time}\"\n"), Some(&["e-2 ResponseComplete"][..])),
        ("null\n".to_owned(), None),
        (time.to_owned(), None),
        (format!("\"{}\"\n", "2".repeat(65)), None),
        ("\"2026-11-22T02:58:59.000009Z\"".to_owned(), None),
    ] {
        let tree = tree(&[("audit.log".to_owned(), log.clone().into_bytes())].into(), Some(b""));
        fs::write(Root::new(Some(tree.path().into())).path(LAST_TIME), &kept).expect("written");
        let read = match find(&tree) {
            Beginning::Behind(_, place) => Some(read_on(&tree, place.position)),
            _ => None,
        };
        assert_eq!(read.as_deref().map(|read| read.iter().map(String::as_str).collect()), expected.map(<[_]>::to_vec));
    }
}

#[test]
fn what_somebody_else_put_in_the_place_of_the_list_is_not_believed_and_stops_nothing() {
    let line = r#"["2026-11-22T02:58:59.000000Z","10.0.0.0","no \"\\<"]"#;
    let log = format!("{}\n", event(0, 0, 0, false, 403));
    type Put = fn(&Path);
    let put: [(&str, Put); 4] = [
        ("regular", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("made")),
        ("regular", |path| fs::create_dir(path).expect("made")),
        ("one name", |path| {
            fs::write(path.with_extension("other"), "[]\n").expect("written");
            fs::hard_link(path.with_extension("other"), path).expect("linked");
        }),
        ("one name", |path| {
            fs::write(path, "[]\n").expect("written");
            // Without the right to, it is our own.
            if std::os::unix::fs::chown(path, Some(65_533), None).is_err() {
                fs::hard_link(path, path.with_extension("other")).expect("linked");
            }
        }),
    ];
    for (why, put) in put {
        let tree = tree(&[("audit.log".to_owned(), log.clone().into_bytes())].into(), Some(line.as_bytes()));
        let path = Root::new(Some(tree.path().into())).path(forbidden_log::PODSEC);
        fs::remove_file(&path).expect("removed");
        put(&path);
        let Beginning::Configured(_, told) = find(&tree) else { panic!("{why}") };
        assert!(told.starts_with("forbidden.log cannot be used: ") && told.contains(why), "{told}");
    }
}

#[test]
fn a_podsecd_that_has_read_the_log_goes_on_there() {
    let tree = tree(&BTreeMap::new(), None);
    let root = Root::new(Some(tree.path().into()));
    let checkpoint = root.path(checkpoint::PATH);
    fs::create_dir_all(checkpoint.parent().expect("a directory")).expect("made");
    let state = State { audit_logs: [(LOG.into(), Position::default())].into(), ..State::default() };
    for (state, is_known) in [(state, true), (State::default(), false)] {
        Checkpoint::new(state, None, period::Mark::default()).save(&checkpoint).expect("saved");
        assert_eq!(matches!(find(&tree), Beginning::There(_)), is_known);
    }
    fs::write(&checkpoint, "{").expect("written");
    let refused = Beginning::find(&Config::default(), &root, false).expect_err("it is damaged").to_string();
    assert!(refused.contains("checkpoint.json is damaged"), "{refused}");
    let runs = Beginning::find(&Config::default(), &root, true).expect("it is not asked");
    assert_eq!(runs.to_string(), "podsecd goes on where it is in the audit log: it runs already");
}

#[test]
fn the_last_whole_line_is_found_however_long_the_file_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("forbidden.log");
    let long = "y".repeat(LAST as usize);
    for (text, line) in [
        (String::new(), None),
        ("torn".to_owned(), None),
        ("one\n".to_owned(), Some("one")),
        ("one\ntwo\ntorn".to_owned(), Some("two")),
        (format!("{long}\n"), Some(long.as_str())),
        (format!("one\n{long}\n"), Some(long.as_str())),
        (format!("one\n{long}\ntorn"), Some(long.as_str())),
        (format!("{long}\ntwo\n"), Some("two")),
        (format!("two\n{long}"), Some("two")),
    ] {
        fs::write(&path, &text).expect("written");
        let found = last_line(&path).expect("read");
        assert_eq!(found.as_deref(), line.map(str::as_bytes), "of {} bytes", text.len());
    }
}
