//! Recorded logs of a real kube-apiserver in, findings out, against their recorded truth.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::support::{PODSECCTL, podsecctl, recorded, stdout};

/// A request: auditID, requestReceivedTimestamp, code.
type Request = (String, String, u64);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    response_status: Status,
    request_received_timestamp: String,
}

#[derive(Deserialize)]
struct Status {
    code: u64,
}

#[derive(Deserialize)]
struct Finding {
    check: String,
    fields: HashMap<String, serde_json::Value>,
}

/// The refused requests of these events, folded.
fn fold(lines: impl Iterator<Item = Line>) -> Vec<Request> {
    let mut open: HashMap<(String, String), Vec<String>> = HashMap::new();
    let mut requests = Vec::new();
    for line in lines {
        let key = (line.audit_id.clone(), line.request_received_timestamp.clone());
        let stages = open.entry(key).or_default();
        // Another stage of a request that is known belongs to it; the same stage is another request.
        if stages.is_empty() || stages.contains(&line.stage) {
            requests.push((line.audit_id, line.request_received_timestamp, line.response_status.code));
            stages.clear();
        }
        stages.push(line.stage);
    }
    requests
}

/// The refused requests of a log, by its truth: the lines that it lists, read by another parser than ours, folded.
fn truth(log: &[u8], name: &str) -> Vec<Request> {
    let table = String::from_utf8(recorded(&format!("{name}.truth.tsv"))).expect("text");
    let lines = table.lines().skip(1).map(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        let (offset, length): (usize, usize) =
            (columns[1].parse().expect("offset"), columns[2].parse().expect("length"));
        let line = log[offset..offset + length].trim_ascii_end();
        let line: Line = serde_json::from_slice(line).expect("an event, as the truth says");
        assert_eq!((columns[3], columns[4]), (line.response_status.code.to_string().as_str(), line.stage.as_str()));
        line
    });
    fold(lines)
}

/// The refused requests of a damaged log: of the events that stand whole in it, wherever they begin.
fn whole(log: &[u8]) -> Vec<Request> {
    const START: &[u8] = b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",";
    let starts = (0..log.len()).filter(|start| log[*start..].starts_with(START));
    let event = |start: usize| {
        let mut events = serde_json::Deserializer::from_slice(&log[start..]).into_iter::<Line>();
        let event = events.next()?.ok()?;
        (log.get(start + events.byte_offset()) == Some(&b'\n')).then_some(event)
    };
    fold(starts.filter_map(event).filter(|event| event.response_status.code >= 400))
}

/// What `podsecctl audit scan --json` finds in a log on its standard input.
fn scan(log: &[u8]) -> (Vec<Request>, usize) {
    let mut command = Command::new(PODSECCTL);
    let command = command.args(["audit", "scan", "--json", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("podsecctl starts");
    let mut input = child.stdin.take().expect("a pipe");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(log).expect("it reads all"));
        child.wait_with_output().expect("it ends")
    });
    assert!(output.status.success());
    let mut others = 0;
    let mut requests = Vec::new();
    for line in stdout(&output).lines() {
        let finding: Finding = serde_json::from_str(line).expect("a JSON finding");
        if finding.check == "kubeapi" {
            let text = |name: &str| finding.fields[name].as_str().expect("text").to_owned();
            let code = finding.fields["code"].as_u64().expect("a code");
            requests.push((text("auditID"), text("requestReceivedTimestamp"), code));
        } else {
            others += 1;
        }
    }
    (requests, others)
}

#[test]
fn every_refused_request_of_a_recorded_log_comes_out_once_and_in_order() {
    for (name, requests) in
        [("audit-small", 222), ("audit-small-full", 224), ("audit-allstages", 7_041), ("audit-large", 82_484)]
    {
        let log = recorded(&format!("{name}.log"));
        let expected = truth(&log, name);
        let (found, others) = scan(&log);
        assert_eq!((found.len(), others), (requests, 0), "{name}");
        assert!(found == expected, "{name}: {:?}", found.iter().zip(&expected).find(|(found, truth)| found != truth));
    }
}

#[test]
fn events_in_damaged_logs_are_read_and_the_damage_is_named() {
    for (name, requests) in [("audit-enospc.log", 325), ("audit-copytruncate-hole.log", 5)] {
        let log = recorded(name);
        let (found, others) = scan(&log);
        assert_eq!((found.len(), others), (requests, 1), "{name}");
        assert_eq!(found, whole(&log), "{name}");
    }
}

#[test]
fn a_rotated_log_is_one_log() {
    let names = ["08.372", "08.847", "09.302", "10.282", "11.516"];
    let mut files: Vec<_> = names.iter().map(|name| format!("rotated/audit-2026-11-22T03-06-{name}")).collect();
    files.push("rotated/audit".into());
    let expected: Vec<Request> = files.iter().flat_map(|file| truth(&recorded(&format!("{file}.log")), file)).collect();
    let paths: Vec<_> = files.iter().map(|file| format!("tests/data/audit/{file}.log")).collect();
    let arguments: Vec<_> = ["audit", "scan", "--json"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let output = podsecctl(&arguments);
    let found: Vec<Request> = stdout(&output)
        .lines()
        .map(|line| {
            let finding: Finding = serde_json::from_str(line).expect("a finding");
            let text = |name: &str| finding.fields[name].as_str().expect("text").to_owned();
            (text("auditID"), text("requestReceivedTimestamp"), finding.fields["code"].as_u64().expect("a code"))
        })
        .collect();
    assert_eq!(found.len(), 321);
    assert_eq!(found, expected);
}

#[test]
fn codes_are_counted_as_recorded() {
    let (found, _) = scan(&recorded("audit-small-full.log"));
    let mut codes = BTreeMap::new();
    found.iter().for_each(|(_, _, code)| *codes.entry(*code).or_insert(0) += 1);
    // Codes with stages that were folded have fewer requests than lines.
    for (code, lines) in [(400, 27), (401, 15), (403, 128), (404, 21), (409, 5), (422, 15), (500, 9), (599, 2)] {
        assert!((1..=lines).contains(&codes[&code]), "{code}: {}", codes[&code]);
    }
}

/// The JSON finding is an interface: `WRITE_GOLDEN=1 cargo nextest run` writes it anew.
#[test]
fn the_sample_nodes_findings_are_as_written_down() {
    let output = podsecctl(&["audit", "scan", "--json", "tests/data/sample-node/etc/kubernetes/audit/audit.log"]);
    let path = "tests/data/sample-node.findings.jsonl";
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        std::fs::write(path, &output.stdout).expect("written");
    }
    assert_eq!(stdout(&output), std::fs::read_to_string(path).expect("the golden file"));
}
