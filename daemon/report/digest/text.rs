//! The words of a digest: what a tired person reads in a minute.
//!
//! Whatever an attacker may have written stands on lines of its own that begin with a bar, escaped and shortened. So
//! nothing of it can look like a line of ours, and nothing in a plain text hides where a link leads.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use textwrap::{Options, WordSplitter, wrap};

use super::Occasion;
use super::summary::{Group, Summary};
use crate::checks;
use crate::checks::kubeapi::ids::SOURCE_HIDDEN;
use crate::checks::own::ids::JOURNAL_UNAVAILABLE;
use crate::report::text::{one_line, shorten};
use crate::score::{Level, Weights, rfc3339};

/// How many groups of events are shown.
const MAX_GROUPS: usize = 25;
/// How many conditions of each kind.
const MAX_CONDITIONS: usize = 25;
/// Longest message, in bytes.
const MAX_MESSAGE: usize = 300;
/// Longest line, in characters, as far as words allow it.
const WIDTH: usize = 76;

/// `[host] podsec CRITICAL: 12 refusals, 1 condition raised`.
pub fn subject(occasion: &Occasion<'_>, summary: &Summary) -> String {
    let host = occasion.host;
    let (raised, cleared) = summary.changed();
    let counts = [
        (summary.refusals, "refusal", ""),
        (summary.events, "event", ""),
        (raised as u64, "condition", " raised"),
        (cleared as u64, "condition", " cleared"),
    ];
    let parts: Vec<_> = counts
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, what, how)| format!("{}{how}", plural(*count, what)))
        .collect();
    if parts.is_empty() {
        return match occasion.state.open.len() as u64 {
            0 => format!("[{host}] podsec OK: all is well"),
            open => format!("[{host}] podsec: nothing new, {} still open", plural(open, "condition")),
        };
    }
    let level = summary.worst.unwrap_or(Level::Low).as_str().to_uppercase();
    format!("[{host}] podsec {level}: {}", parts.join(", "))
}

/// The text.
pub fn body(occasion: &Occasion<'_>, summary: &Summary, unattached: u64) -> String {
    let mut text = String::new();
    let host = occasion.host;
    match summary.span {
        Some((first, last)) => {
            let number = occasion.number;
            write_line(
                &mut text,
                0,
                &format!("Digest {number} of {host}: {} to {} (UTC).", day_time(first), day_time(last)),
            );
        }
        None => {
            let (number, since, now) = (occasion.number, day_time(occasion.since), day_time(occasion.now));
            write_line(
                &mut text,
                0,
                &format!("Digest {number} of {host}: nothing happened from {since} to {now} (UTC)."),
            );
        }
    }
    conditions(&mut text, occasion, summary);
    events(&mut text, occasion, summary);
    if summary.is_empty() {
        watched(&mut text, occasion);
    }
    text.push('\n');
    if occasion.dropped > 0 {
        let digests = plural(occasion.dropped, "digest");
        write_line(&mut text, 0, &format!("{digests} before this one had to be dropped: no mail system took them."));
    }
    if summary.damaged > 0 {
        let findings = plural(summary.damaged, "finding");
        write_line(&mut text, 0, &format!("{findings} could not be read from the spool; the journal has them."));
    }
    if occasion.left_out > 0 {
        let findings = plural(occasion.left_out, "finding");
        write_line(&mut text, 0, &format!("{findings} more are too many for a mail; the journal has them."));
    }
    if unattached > 0 {
        write_line(
            &mut text,
            0,
            &format!("{} of forbidden.log are too many to be attached.", plural(unattached, "line")),
        );
    }
    // On lines of their own: they are to be copied.
    let prefix = &occasion.config.journal.identifier_prefix;
    let identifiers: Vec<_> = checks::NAMES.iter().map(|name| format!("-t {prefix}{name}")).collect();
    let _ = write!(
        text,
        "All of it, and how things are now:\n    journalctl {}\n    podsecctl status\n",
        identifiers.join(" ")
    );
    text
}

fn conditions(text: &mut String, occasion: &Occasion<'_>, summary: &Summary) {
    let is_open =
        |id: &str, subject: &str| occasion.state.open.iter().any(|open| open.id == id && open.subject == subject);
    let raised = summary.changes.iter().filter(|((id, subject), change)| change.raised && is_open(id, subject));
    let raised: Vec<_> = raised
        .map(|((id, subject), change)| (id.as_str(), subject.as_str(), change.time, change.message.as_str()))
        .collect();
    let open = occasion.state.open.iter().filter(|open| {
        !summary.changes.get(&(open.id.clone(), open.subject.clone())).is_some_and(|change| change.raised)
    });
    let open: Vec<_> =
        open.map(|open| (open.id.as_str(), open.subject.as_str(), open.since, open.message.as_str())).collect();
    let cleared = summary.changes.iter().filter(|(_, change)| !change.raised);
    let cleared: Vec<_> = cleared
        .map(|((id, subject), change)| (id.as_str(), subject.as_str(), change.time, change.message.as_str()))
        .collect();
    // It was cleared by what the next digest will tell of, or podsecd ended before it knew.
    let unknown = summary.changes.iter().filter(|((id, subject), change)| change.raised && !is_open(id, subject));
    let unknown: Vec<_> = unknown
        .map(|((id, subject), change)| (id.as_str(), subject.as_str(), change.time, change.message.as_str()))
        .collect();
    for (title, list) in [
        ("Wrong since this period", raised),
        ("Still wrong", open),
        ("Wrong for a while at least", unknown),
        ("No longer wrong", cleared),
    ] {
        if list.is_empty() {
            continue;
        }
        heading(text, title);
        for (id, subject, time, message) in list.iter().take(MAX_CONDITIONS) {
            write_line(text, 2, &format!("{id} ({}), {}", safe(subject), day_time(*time)));
            write_quoted(text, message);
            say_remedy(text, &occasion.config.weights, id);
        }
        if let Some(rest) = list.get(MAX_CONDITIONS..).filter(|rest| !rest.is_empty()) {
            write_line(text, 2, &format!("and {} more; all of their kinds:", rest.len()));
            let first = rest.iter().map(|(_, _, time, _)| *time).min();
            write_query(text, rest.iter().map(|(id, ..)| *id), first, occasion);
        }
    }
    if summary.further_changes > 0 {
        let changes = plural(summary.further_changes, "change");
        write_line(
            text,
            2,
            &format!("and {changes} of further conditions: podsecctl status shows those that are open"),
        );
    }
}

/// For whom nothing happened: what is watched, and what is not.
fn watched(text: &mut String, occasion: &Occasion<'_>) {
    let log = occasion.config.kubeapi.audit_log.as_ref();
    heading(text, "What is watched");
    let position = occasion.state.audit_logs.get(log).and_then(|position| position.file.as_ref());
    let read = position.map_or("nothing of it was read yet".to_owned(), |file| {
        format!("{} is read to byte {}", safe(&file.name), file.offset)
    });
    write_line(text, 2, &format!("requests to the apiserver with a code of 400 or more, in {}: {read}", log.display()));
    write_line(text, 2, "who may run which image: policy.json and what belongs to it, of the system and in homes");
    write_line(text, 2, "podsecd itself: its log, its disk, the journal, the mail");
    heading(text, "Counts");
    let (open, dropped) = (plural(occasion.state.open.len() as u64, "condition"), plural(occasion.dropped, "digest"));
    write_line(text, 2, &format!("0 refusals, 0 other events, {open} open, {dropped} dropped"));
    let recent = occasion.state.recent.iter().max_by_key(|(_, time)| time.as_str());
    if let Some((id, time)) = recent {
        write_line(text, 2, &format!("the last event was {id} at {time}"));
    }
    heading(text, "What cannot be seen");
    for unseen in [
        "requests that the audit policy of kube-apiserver leaves out; podsec's leaves out system:masters, \
         system:nodes and service accounts",
        "what an intruder does whose requests are not refused",
        "events that kube-apiserver itself lost: apiserver_audit_error_total counts them",
    ] {
        write_line(text, 2, unseen);
    }
    if occasion.state.is_open(SOURCE_HIDDEN) {
        write_line(text, 2, "where clients come from: rootlesskit hides their addresses");
    }
}

fn events(text: &mut String, occasion: &Occasion<'_>, summary: &Summary) {
    let groups = summary.groups();
    if groups.is_empty() {
        return;
    }
    heading(text, "What happened");
    let mut said: Vec<&str> = Vec::new();
    for group in groups.iter().take(MAX_GROUPS) {
        write_line(text, 2, &format!("{} {}: {}", group.level, group.id, times(group, summary)));
        if group.various {
            write_line(text, 4, "of many kinds, see below");
        } else {
            write_quoted(text, &group.message);
        }
        if group.others > 0 && !group.various {
            write_line(text, 4, &format!("the first of them; {} more have another path, name or answer", group.others));
        }
        if !said.contains(&group.id.as_str()) {
            said.push(&group.id);
            say_remedy(text, &occasion.config.weights, &group.id);
        }
    }
    let rest = groups.get(MAX_GROUPS..).unwrap_or_default();
    if let Some(worst) = rest.first() {
        let count: u64 = rest.iter().map(|group| group.count).sum();
        write_line(
            text,
            2,
            &format!("and {count} more in {} groups, {} at worst; all of their kinds:", rest.len(), worst.level),
        );
        let first = rest.iter().map(|group| group.first).min();
        write_query(text, rest.iter().map(|group| group.id.as_str()), first, occasion);
    }
}

/// How often and when; without the day where the digest has only one, which its first line names.
fn times(group: &Group, summary: &Summary) -> String {
    let is_one_day = summary.span.is_some_and(|(first, last)| day_time(first)[..10] == day_time(last)[..10]);
    let time = |time: SystemTime| day_time(time)[if is_one_day { 11 } else { 0 }..].to_owned();
    let (count, first, last) = (group.count, time(group.first), time(group.last));
    match count {
        1 => first,
        _ if first == last => format!("{count} times at {first}"),
        _ => format!("{count} times, {first} to {last}"),
    }
}

/// The journal query that shows the findings of these ids since the first of them, those that are told above included. On
/// one line whatever its length: it is to be copied.
fn write_query<'i>(
    text: &mut String,
    ids: impl Iterator<Item = &'i str>,
    first: Option<SystemTime>,
    occasion: &Occasion<'_>,
) {
    let ids: BTreeSet<_> = ids.map(|id| format!("PODSEC_FINDING={id}")).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let since = day_time(first.unwrap_or(occasion.now));
    // Whenever they happened, they were written before this digest, if the journal takes them; seconds are cut off.
    let until = match occasion.state.is_open(JOURNAL_UNAVAILABLE) {
        true => String::new(),
        false => format!(" -U '{} UTC'", day_time(occasion.now + Duration::from_secs(1))),
    };
    let _ = writeln!(text, "    journalctl -S '{since} UTC'{until} {}", ids.join(" "));
}

fn say_remedy(text: &mut String, weights: &Weights, id: &str) {
    if let Some((_, weight)) = weights.find(id) {
        write_line(text, 4, &format!("-> {}", weight.remedy));
    }
}

fn heading(text: &mut String, title: &str) {
    let _ = write!(text, "\n{title}\n");
}

/// A line that begins with so many spaces, wrapped between words; what follows it is indented further.
fn write_line(text: &mut String, indent: usize, line: &str) {
    wrap_line(text, &" ".repeat(indent), &" ".repeat(indent + 2), line);
}

/// What others may have written.
fn write_quoted(text: &mut String, words: &str) {
    wrap_line(text, "    | ", "    | ", &safe(words));
}

fn wrap_line(text: &mut String, initial: &str, subsequent: &str, line: &str) {
    let options = Options::new(WIDTH)
        .initial_indent(initial)
        .subsequent_indent(subsequent)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation);
    for line in wrap(line, options) {
        text.push_str(&line);
        text.push('\n');
    }
}

fn safe(text: &str) -> String {
    one_line(&shorten(text, MAX_MESSAGE)).into_owned()
}

/// `2026-11-22 03:05:07`, in UTC.
fn day_time(time: SystemTime) -> String {
    rfc3339(time)[..19].replace('T', " ")
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
