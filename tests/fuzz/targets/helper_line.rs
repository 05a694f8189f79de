//! Any bytes as a line of a helper: nothing panics, and what is taken is one of its own findings, within the bounds.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use podsecd::checks::own::ids::OF_MAIL;
use podsecd::helper::{Helper, What, parse};

const MAIL: Helper = Helper { name: "podsecd-mail", uid: 1, may: &[OF_MAIL], conditions: 8 };

fuzz_target!(|line: &[u8]| {
    let Ok(reported) = parse(line, MAIL, SystemTime::UNIX_EPOCH) else { return };
    let findings = match reported.what {
        What::Conditions(findings, _) => findings,
        What::Finding(finding) => vec![finding],
    };
    assert!(findings.len() <= MAIL.conditions);
    for finding in findings {
        assert!(OF_MAIL.contains(&finding.id));
        assert!(finding.subject.len() <= 256 && finding.message.len() <= 4096);
    }
});
