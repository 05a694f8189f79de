//! Makes audit events: lines that a real kube-apiserver wrote, each time as another request.

use std::collections::VecDeque;

use crate::model::Key;
use crate::rng::Rng;

/// Lines of a real log, each with its code before it; lines of one request follow each other.
const RECORDED: &[u8] = include_bytes!("events.txt");

/// Longest line that podsecd keeps whole, without its newline.
pub(crate) const LONGEST: usize = 16 << 20;

/// A line to be written, and the request that becomes known by it, if one does.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The line with its newline.
    pub(crate) line: Vec<u8>,
    /// Its key, if the line is the first that shows it as refused.
    pub(crate) key: Option<Key>,
}

/// The lines of one recorded request with their codes.
type Request = Vec<(u32, Vec<u8>)>;

/// Makes requests.
#[derive(Debug)]
pub(crate) struct Generator {
    recorded: Vec<Request>,
    made: u64,
    /// auditID of the last request; clients choose them, so they come again.
    last_id: String,
    /// The last refusal of one line.
    last: Option<Event>,
    /// Second stages that are still to come.
    later: VecDeque<Event>,
}

impl Generator {
    /// Of the recorded lines.
    pub(crate) fn new() -> Generator {
        let mut recorded = Vec::<Request>::new();
        let mut former = None;
        for row in RECORDED.split_inclusive(|byte| *byte == b'\n') {
            let tab = row.iter().position(|byte| *byte == b'\t').expect("a tab");
            let code = std::str::from_utf8(&row[..tab]).ok().and_then(|code| code.parse().ok()).expect("a code");
            let line = row[tab + 1..].to_vec();
            let id = Some(line[value(&line, "auditID")].to_vec());
            match recorded.last_mut() {
                Some(request) if id == former => request.push((code, line)),
                _ => recorded.push(vec![(code, line)]),
            }
            former = id;
        }
        Generator { recorded, made: 0, last_id: String::new(), last: None, later: VecDeque::new() }
    }

    /// The next lines: of a request, of an earlier one, or of both.
    pub(crate) fn next(&mut self, rng: &mut Rng) -> Vec<Event> {
        let mut events = Vec::new();
        if rng.percent(40) {
            events.extend(self.later.pop_front());
        }
        if rng.percent(3) {
            // The same stage of the same key once more is one more request.
            events.extend(self.last.clone());
            return events;
        }
        let request = rng.pick(&self.recorded).clone();
        let mut made = self.make(&request, rng);
        if made.len() > 1 && rng.percent(50) {
            self.later.extend(made.pop());
        } else if let [only] = &made[..]
            && only.key.is_some()
        {
            self.last = Some(only.clone());
        }
        events.extend(made);
        events
    }

    /// What is still to come of requests that have begun.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        self.later.drain(..).collect()
    }

    /// The last refusal will not come once more: where one may be lost, nobody could tell which of the two it was.
    pub(crate) fn forget_last(&mut self) {
        self.last = None;
    }

    /// A refusal of one line.
    pub(crate) fn refusal(&mut self, rng: &mut Rng) -> Event {
        let single: Vec<_> = self.recorded.iter().filter(|request| request.len() == 1 && request[0].0 >= 400).collect();
        let request = (*rng.pick(&single)).clone();
        self.make(&request, rng).remove(0)
    }

    /// A refusal of which all that podsecd groups by is the same each time.
    pub(crate) fn alike(&mut self, rng: &mut Rng) -> Event {
        let single = self.recorded.iter().find(|request| request.len() == 1 && request[0].0 == 403);
        let request = single.expect("one is recorded").clone();
        self.make(&request, rng).remove(0)
    }

    /// A refusal whose line has that length without its newline, because of what the client sent.
    pub(crate) fn large(&mut self, length: usize, rng: &mut Rng) -> Event {
        let mut event = self.refusal(rng);
        let body = br#","requestObject":{"data":""}"#;
        let at = value(&event.line, "requestReceivedTimestamp").start - r#","requestReceivedTimestamp":""#.len();
        let fill = length.saturating_sub(event.line.len() - 1 + body.len());
        let body = [&body[..body.len() - 2], &vec![b'x'; fill], b"\"}"].concat();
        event.line.splice(at..at, body);
        event
    }

    fn make(&mut self, request: &Request, rng: &mut Rng) -> Vec<Event> {
        self.made += 1;
        if self.last_id.is_empty() || !rng.percent(10) {
            self.last_id = format!("{:08x}-0000-4000-8000-{:012x}", rng.next() as u32, self.made);
        }
        let id = self.last_id.clone();
        let (seconds, micros) = (self.made / 1000, self.made % 1000 * 977);
        let (hours, minutes, seconds) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let received = format!("2026-11-22T{hours:02}:{minutes:02}:{seconds:02}.{micros:06}Z");
        let mut refused = false;
        let one = |(code, line): &(u32, Vec<u8>)| {
            let mut line = line.clone();
            // The last first: the places before it stay where they are.
            line.splice(value(&line, "requestReceivedTimestamp"), received.bytes());
            line.splice(value(&line, "auditID"), id.bytes());
            let news = *code >= 400 && !refused;
            refused |= news;
            Event { line, key: news.then(|| Key { id: id.clone(), received: received.clone() }) }
        };
        request.iter().map(one).collect()
    }
}

/// Where the text of an event's own field stands: auditID comes before all that clients wrote, the timestamp after it.
fn value(line: &[u8], name: &str) -> std::ops::Range<usize> {
    let name = format!("\"{name}\":\"");
    let mut places = line.windows(name.len());
    let found = if name.starts_with("\"auditID") {
        places.position(|place| place == name.as_bytes())
    } else {
        places.rposition(|place| place == name.as_bytes())
    };
    let start = found.expect("the field") + name.len();
    let end = line[start..].iter().position(|byte| *byte == b'"').expect("its end");
    start..start + end
}
