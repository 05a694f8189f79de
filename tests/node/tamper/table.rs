//! What came of the rows, and the table of it.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::containers::{Container, IMAGE};
use super::{Row, Step, Told, events_since, is_like, is_of, paths, watchers};
use crate::node::{Node, field};
use crate::podsec::now;

pub(super) struct Outcome {
    row: &'static Row,
    container: Container,
    /// When the row began and ended: microseconds.
    pub(super) begin: u64,
    end: u64,
    done: Instant,
    inotifywait_saw_it: bool,
    /// What podsecd told of the container since then.
    events: Vec<(u64, Value)>,
}

impl Outcome {
    /// Does what the row says. What podsecd has to say of it is waited for later.
    pub(super) fn of(node: &Node, row: &'static Row, container: Container) -> Outcome {
        watchers::start_inotifywait(node);
        let begin = now(node);
        for step in row.steps {
            match step {
                Step::In(script) => container.inside(node, script),
                Step::Out(script) => container.outside(node, script),
                Step::Meet(fate) => watchers::meet(node, *fate),
            }
        }
        let end = now(node);
        Outcome { row, container, begin, end, done: Instant::now(), inotifywait_saw_it: false, events: Vec::new() }
    }

    /// Takes the container away, so that the next row begins as the first did.
    pub(super) fn clean_up(&self, node: &Node) {
        node.shell(&format!("as alice podman rm --force --ignore --time=0 {}", self.container.name));
    }

    /// Ends inotifywait, and looks at what it saw; it had a moment for it, too.
    pub(super) fn look_at_inotifywait(&mut self, node: &Node) {
        sleep(Duration::from_millis(500).saturating_sub(self.done.elapsed()));
        let seen = watchers::stop_inotifywait(node);
        let saw = |told: &Told| seen.iter().any(|path| is_like(told.path, path));
        self.inotifywait_saw_it = self.row.told.iter().all(saw);
    }

    /// Waits until all is told that must be, or the time is over.
    pub(super) fn wait(&mut self, node: &Node, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let events = events_since(node, self.begin);
            self.events = events.into_iter().filter(|(_, entry)| self.is_about(entry)).collect();
            if self.untold().next().is_none() || Instant::now() > deadline {
                return;
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Whether an event is of this row's container, or of the image that it changes.
    fn is_about(&self, entry: &Value) -> bool {
        let of_an_image = |told: &Told| told.id == "image-layer-changed";
        is_of(entry, &self.container) || (is_image_layer(entry) && self.row.told.iter().any(of_an_image))
    }

    fn untold(&self) -> impl Iterator<Item = &'static Told> {
        self.row.told.iter().filter(|told| self.when(told).is_none())
    }

    /// When something was told.
    fn when(&self, told: &Told) -> Option<u64> {
        let is_it = |(_, entry): &&(u64, Value)| {
            let change = field(entry, "PODSEC_CHANGE").concat();
            field(entry, "PODSEC_FINDING") == [format!("containers/{}", told.id)]
                && told.changes.contains(&change.as_str())
                && paths(entry).iter().any(|path| is_like(told.path, path))
        };
        self.events.iter().find(is_it).map(|(time, _)| *time)
    }

    /// How long after the row's end all was told.
    fn lateness(&self) -> Option<Duration> {
        let times: Option<Vec<_>> = self.row.told.iter().map(|told| self.when(told)).collect();
        times?.into_iter().max().map(|last| Duration::from_micros(last.saturating_sub(self.end)))
    }

    /// Whether an event may be there because of this row.
    pub(super) fn explains(&self, time: u64, entry: &Value) -> bool {
        time >= self.begin && self.is_about(entry) && paths(entry).iter().all(|path| self.row.may_be_told(path))
    }

    /// What is missing, and what is wrong in what was told.
    pub(super) fn faults(&self) -> Vec<String> {
        let name = self.row.name;
        let untold =
            self.untold().map(|Told { id, changes, path }| format!("{name}: not told: {id} {changes:?} {path}"));
        let wrong = self.events.iter().flat_map(|(_, entry)| self.wrong(entry));
        let again = self.removed_again();
        let again = again.iter().map(|path| format!("{name}: told twice that it was removed: {path}"));
        untold.chain(wrong.map(|wrong| format!("{name}: {wrong}"))).chain(again).collect()
    }

    /// What was told to be removed once more later; no row removes anything twice. (An overlay does one thing in several steps.)
    fn removed_again(&self) -> Vec<String> {
        const LATER: u64 = 5_000_000;
        let removed = self.events.iter().filter(|(_, entry)| field(entry, "PODSEC_CHANGE") == ["removed"]);
        let paths_of =
            |(time, entry): &(u64, Value)| paths(entry).into_iter().map(|path| (path, *time)).collect::<Vec<_>>();
        let mut removed: Vec<_> = removed.flat_map(paths_of).collect();
        removed.sort();
        let is_twice = |pair: &&[(String, u64)]| pair[0].0 == pair[1].0 && pair[0].1 + LATER < pair[1].1;
        removed.windows(2).filter(is_twice).map(|pair| pair[0].0.clone()).collect()
    }

    fn wrong(&self, entry: &Value) -> Vec<String> {
        let id = field(entry, "PODSEC_FINDING").concat();
        let level = match id.as_str() {
            "containers/settings-changed" => Some("Warning"),
            "containers/file-changed" | "containers/binary-changed" => Some("Critical"),
            _ => None,
        };
        let expected = [
            ("PODSEC_LEVEL", level),
            ("PODSEC_USER", Some("alice")),
            ("PODSEC_IMAGE", (!is_image_layer(entry)).then_some(IMAGE)),
            ("PODSEC_CONTAINER_ID", self.container.id.as_deref().filter(|_| !is_image_layer(entry))),
        ];
        let differs = |(name, value): &(&str, Option<&str>)| value.is_some_and(|value| field(entry, name) != [value]);
        let different = expected.iter().filter(|&expected| differs(expected));
        let mut wrong: Vec<_> = different.map(|(name, value)| format!("{name} is not {value:?}: {entry}")).collect();
        if field(entry, "PODSEC_HOST_UID").concat().parse::<u32>().is_err() {
            wrong.push(format!("no host uid: {entry}"));
        }
        wrong
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = self.lateness().map_or("MISSED".to_owned(), |late| format!("{:.1} s", late.as_secs_f64()));
        let seen = if self.inotifywait_saw_it { "seen" } else { "missed" };
        formatter.write_str(&line([self.row.name, &late, seen]))
    }
}

fn is_image_layer(entry: &Value) -> bool {
    field(entry, "PODSEC_FINDING") == ["containers/image-layer-changed"]
}

const HEAD: [&str; 3] = ["tampering", "podsecd", "inotifywait"];

/// A line of the table for people.
fn line([what, podsecd, inotifywait]: [&str; 3]) -> String {
    format!("{what:<95} {podsecd:>9} {inotifywait:>12}")
}

/// The table, and both recalls.
pub(super) fn print(outcomes: &[Outcome]) -> String {
    let all = outcomes.len();
    let told = outcomes.iter().filter(|outcome| outcome.lateness().is_some()).count();
    let seen = outcomes.iter().filter(|outcome| outcome.inotifywait_saw_it).count();
    let recalls = line(["recall", &format!("{told}/{all}"), &format!("{seen}/{all}")]);
    let lines = [line(HEAD)].into_iter().chain(outcomes.iter().map(ToString::to_string)).chain([recalls]);
    lines.collect::<Vec<_>>().join("\n")
}
