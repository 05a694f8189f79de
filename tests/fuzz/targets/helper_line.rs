//! Any bytes as a line of a helper: nothing panics, and what is taken is one of its own findings, within the bounds.

#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use podsecd::checks::own::ids::OF_MAIL;
use podsecd::helper::{Reported, parse_conditions, parse_report};

fuzz_target!(|line: &[u8]| {
    let now = SystemTime::UNIX_EPOCH;
    for reported in [parse_conditions(line, OF_MAIL, now), parse_report(line, OF_MAIL, now)].into_iter().flatten() {
        let findings = match reported {
            Reported::Conditions(_, findings) => findings,
            Reported::Finding(_, finding) => vec![finding],
        };
        for finding in findings {
            assert!(OF_MAIL.contains(&finding.id));
            assert!(finding.subject.len() <= 256 && finding.message.len() <= 4096);
        }
    }
});
