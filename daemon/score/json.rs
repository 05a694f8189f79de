//! The JSON finding of the interface, one object:
//! `{"time","check","id","kind","level","weight","subject","message","fields":{…}}`.
//!
//! Written here and not by serde_json, which looks at every byte of a text by itself: this is half of the time that
//! `podsecctl audit scan` takes.

use std::io::Write;

use super::{Scored, rfc3339};
use crate::bytes::{LANE, find_escaped};
use crate::finding::{FieldName, Fields, Value};

/// Appends the finding, without a newline. `time` is RFC 3339 (UTC, microseconds).
pub fn write_finding(out: &mut Vec<u8>, scored: &Scored<'_>) {
    write_finding_with(out, scored, |_| true);
}

/// The same with only those of its further fields that are wanted.
#[inline]
pub fn write_finding_with(out: &mut Vec<u8>, scored: &Scored<'_>, wanted: impl Fn(&FieldName) -> bool) {
    let finding = &scored.finding;
    for (key, text) in [
        ("{\"time\":", rfc3339(finding.time).as_ref()),
        (",\"check\":", finding.id.check()),
        (",\"id\":", finding.id.0),
        (",\"kind\":", finding.kind.as_str()),
        (",\"level\":", scored.level.as_str()),
    ] {
        out.extend_from_slice(key.as_bytes());
        write_text(out, text);
    }
    out.extend_from_slice(b",\"weight\":");
    write_number(out, u64::from(scored.weight));
    for (key, text) in [(",\"subject\":", &finding.subject), (",\"message\":", &finding.message)] {
        out.extend_from_slice(key.as_bytes());
        write_text(out, text);
    }
    out.extend_from_slice(b",\"fields\":");
    write_fields(out, &finding.fields, wanted);
    out.push(b'}');
}

#[inline]
fn write_fields(out: &mut Vec<u8>, fields: &Fields<'_>, wanted: impl Fn(&FieldName) -> bool) {
    out.push(b'{');
    for (at, (name, value)) in fields.0.iter().filter(|(name, _)| wanted(name)).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.json.as_bytes());
        match value {
            Value::Text(text) => write_text(out, text),
            Value::Number(number) => write_number(out, *number),
            Value::List(list) => {
                for (at, text) in list.iter().enumerate() {
                    out.push(if at == 0 { b'[' } else { b',' });
                    write_text(out, text);
                }
                out.extend_from_slice(if list.is_empty() { b"[]" } else { b"]" });
            }
        }
    }
    out.push(b'}');
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

/// A text with its quotes; RFC 8259, section 7.
fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let (lanes, rest) = text.as_bytes().as_chunks::<LANE>();
    for lane in lanes {
        write_lane(out, lane, LANE);
    }
    let mut lane = [b' '; LANE];
    lane[..rest.len()].copy_from_slice(rest);
    write_lane(out, &lane, rest.len());
    out.push(b'"');
}

/// The first `length` bytes of the lane; behind them it has nothing that needs an escape.
#[inline]
fn write_lane(out: &mut Vec<u8>, lane: &[u8; LANE], length: usize) {
    let mut escaped = find_escaped(lane);
    let mut start = out.len();
    // All of it is written, whatever is wanted of it: that costs less than a call for a few bytes.
    out.extend_from_slice(lane);
    let mut from = 0;
    while escaped != 0 {
        let at = escaped.trailing_zeros() as usize;
        out.truncate(start + at - from);
        write_escape(out, lane[at]);
        from = at + 1;
        start = out.len();
        out.extend_from_slice(&lane[from..]);
        escaped &= escaped - 1;
    }
    out.truncate(start + length - from);
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => drop(write!(out, "\\u{byte:04x}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checks::kubeapi::{fields, ids};
    use crate::finding::{Finding, Kind};
    use crate::score::{Levels, Weights, judge};

    proptest! {
        #[test]
        fn serde_json_reads_what_is_written(subject: String, message: String, list: Vec<String>, number: u64) {
            let mut more = Fields::default();
            more.text(fields::USER, message.clone());
            more.number(fields::CODE, number);
            more.list(fields::GROUPS, list.iter().cloned().map(Into::into).collect());
            let finding = Finding {
                time: std::time::SystemTime::UNIX_EPOCH,
                id: ids::FORBIDDEN,
                kind: Kind::Event,
                subject: subject.clone().into(),
                message: message.clone().into(),
                fields: more,
            };
            let mut json = Vec::new();
            write_finding(&mut json, &judge(finding, &Weights::shipped(), &Levels::default()));
            let mut fields = serde_json::json!({"code": number});
            if !message.is_empty() {
                fields["user"] = message.clone().into();
            }
            if !list.is_empty() {
                fields["groups"] = list.into();
            }
            let read: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
            prop_assert_eq!(read, serde_json::json!({
                "time": "1970-01-01T00:00:00.000000Z", "check": "kubeapi", "id": "kubeapi/forbidden", "kind": "event",
                "level": "Critical", "weight": 101, "subject": subject, "message": message, "fields": fields,
            }));
        }
    }
}
