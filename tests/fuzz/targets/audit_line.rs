//! Any bytes as a line of the audit log: nothing panics, every byte is accounted for, and what serde_json reads of an
//! event, podsecd reads alike.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use podsecd::checks::kubeapi::assess::Assessor;
use podsecd::checks::kubeapi::event::{Piece, is_plainly_no_refusal, parse, read_line};
use podsecd::report::{forbidden_log, journal, text::one_line};
use podsecd::score::{Levels, Weights, judge, write_finding};
use serde::Deserialize;

#[derive(Deserialize)]
struct Peer {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: Stage,
    #[serde(rename = "responseStatus")]
    response_status: Status,
    #[serde(flatten)]
    _more: HashMap<String, serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

fuzz_target!(|line: &[u8]| {
    if line.contains(&b'\n') {
        return;
    }
    let mut length = 0;
    let mut assessor = Assessor::default();
    read_line(line, |piece| match piece {
        Piece::Unreadable { length: unreadable, .. } => length += unreadable,
        Piece::Event(event) => {
            let Some(finding) = assessor.assess(*event) else { return };
            assert_eq!(forbidden_log::line(&finding).expect("a refusal").iter().filter(|byte| **byte == b'\n').count(), 1);
            let scored = judge(finding, &Weights::shipped(), &Levels::default());
            assert!(journal::entry(&scored, 0, "podsec-inotify-check-").len() < 128 << 10);
            let message = journal::message(&scored);
            assert!(!message.contains("]:") && !message.contains(char::is_control) && one_line(&message) == message);
            let mut json = Vec::new();
            write_finding(&mut json, &scored);
            serde_json::from_slice::<serde_json::Value>(&json).expect("JSON");
        }
    });
    assert!(length <= line.len());
    let ours = parse(line).filter(|(_, length)| line[*length..].trim_ascii().is_empty());
    if let Ok(peer) = serde_json::from_slice::<Peer>(line) {
        let (event, _) = ours.expect("serde_json reads an event");
        assert_eq!((event.audit_id.as_ref(), event.response.code), (peer.audit_id.as_str(), u64::from(peer.response_status.code)));
        let stage = match peer.stage {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        };
        assert_eq!(event.stage.as_str(), stage);
        // Sound for compact JSON, which kube-apiserver writes.
        let compact = !line.windows(2).any(|pair| matches!(pair, [b' ' | b'\t' | b'\r', _] | [_, b' ' | b'\t' | b'\r' | b'\\']));
        assert!(!compact || event.response.code < 400 || !is_plainly_no_refusal(line));
    }
});
