//! Judges audit events: which request was refused, and of what class. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::{Event, ResponseStatus, Stage};
use super::{fields, ids};
use crate::finding::{Fields, Finding, HISTORY, Id, Kind, prefix};

/// How many requests are remembered whose other stage may still come. Beyond it the oldest is forgotten; it would have
/// to stay open while this many others are refused in the middle of their answer.
const MAX_STARTED: usize = 8192;

/// Subject of [`ids::SOURCE_HIDDEN`].
const SOURCE_SUBJECT: &str = "kube-apiserver";

/// What this check remembers from one event to the next.
#[derive(Debug, Default)]
pub struct Assessor {
    started: Started,
    /// The apiserver is reached through rootlesskit.
    rootlesskit: bool,
    /// Events before this time are history: they were there before podsecd was.
    pub history_until: Option<SystemTime>,
    /// What was said last: whether peers are hidden.
    peers_hidden: Option<bool>,
}

impl Assessor {
    /// An assessor that remembers these requests.
    pub fn new(started: Started) -> Assessor {
        Assessor { started, ..Assessor::default() }
    }

    /// Says whether the apiserver is reached through rootlesskit; what was seen of peers before counts no longer if that
    /// changes.
    pub fn set_rootlesskit(&mut self, rootlesskit: bool) {
        if std::mem::replace(&mut self.rootlesskit, rootlesskit) != rootlesskit {
            self.peers_hidden = None;
        }
    }

    /// The requests whose other stage may still come.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// The finding of an event, if it is the first stage of a refused request.
    pub fn assess<'a>(&mut self, event: Event<'a>) -> Option<Finding<'a>> {
        let id = classify(&event)?;
        if self.started.folds(&event) {
            return None;
        }
        Some(self.finding(id, event))
    }

    /// The condition that no peer is visible, when an event shows that it holds or no longer holds: once a peer was seen
    /// that is not this node, nothing hides them.
    pub fn assess_source(&mut self, event: &Event<'_>) -> Option<Finding<'static>> {
        let hidden = self.rootlesskit && is_this_node(peer(event)?);
        if self.peers_hidden.is_some_and(|said| said == hidden || !said) {
            return None;
        }
        self.peers_hidden = Some(hidden);
        Some(Finding {
            time: time(event),
            id: ids::SOURCE_HIDDEN,
            kind: if hidden { Kind::Raised } else { Kind::Cleared },
            subject: Cow::Borrowed(SOURCE_SUBJECT),
            message: Cow::Borrowed(if hidden {
                "every client of the apiserver looks like this node, because rootlesskit's builtin port driver hides it"
            } else {
                "the addresses of the apiserver's clients are visible"
            }),
            fields: Fields::default(),
        })
    }

    fn finding<'a>(&self, id: Id, mut event: Event<'a>) -> Finding<'a> {
        let time = time(&event);
        let message = message(&event, self.rootlesskit);
        let mut list = Fields(Vec::with_capacity(20));
        list.text(fields::AUDIT_ID, event.audit_id);
        list.text(fields::REQUEST_RECEIVED, event.request_received);
        list.text(fields::STAGE, event.stage.as_str());
        list.number(fields::CODE, event.response.code);
        let subject =
            if event.user.username.is_empty() { "unauthenticated".into() } else { event.user.username.clone() };
        list.text(fields::USER, event.user.username);
        list.list(fields::GROUPS, event.user.groups);
        list.text(fields::IMPERSONATED, event.impersonated_user);
        list.text(fields::VERB, event.verb);
        list.text(fields::API_GROUP, event.object.api_group);
        list.text(fields::RESOURCE, event.object.resource);
        list.text(fields::SUBRESOURCE, event.object.subresource);
        list.text(fields::NAMESPACE, event.object.namespace);
        list.text(fields::NAME, event.object.name);
        if let Some(peer) = event.source_ips.pop() {
            list.text(fields::SOURCE_IP, peer);
        }
        list.list(fields::FORWARDED_FOR, event.source_ips);
        list.text(fields::USER_AGENT, event.user_agent);
        list.text(fields::REQUEST_URI, event.request_uri);
        list.text(fields::REASON, event.response.reason);
        list.text(fields::RESPONSE_MESSAGE, event.response.message);
        if self.history_until.is_some_and(|until| time < until) {
            list.number(&HISTORY, 1);
        }
        Finding { time, id, kind: Kind::Event, subject, message: Cow::Owned(message), fields: list }
    }
}

/// The class of a refused request; `None` if it was not refused. Detections beyond codes will stand beside these.
fn classify(event: &Event<'_>) -> Option<Id> {
    match event.response.code {
        0..=399 => None,
        401 => Some(ids::UNAUTHENTICATED),
        403 if event.user.username == "system:anonymous" => Some(ids::FORBIDDEN_ANONYMOUS),
        403 => Some(ids::FORBIDDEN),
        400..=499 => Some(ids::CLIENT_ERROR),
        _ => Some(ids::SERVER_ERROR),
    }
}

/// When the apiserver answered; 1970 if the line does not say so.
fn time(event: &Event<'_>) -> SystemTime {
    parse_time(&event.stage_timestamp).or_else(|| parse_time(&event.request_received)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// RFC 3339 in UTC, as kube-apiserver writes it; `None` for anything else.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// The real peer: what stands before it in sourceIPs is the client's own claim.
fn peer<'e>(event: &'e Event<'_>) -> Option<&'e str> {
    event.source_ips.last().map(AsRef::as_ref)
}

fn is_this_node(peer: &str) -> bool {
    peer.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `alice: list secrets in namespace prod forbidden (403), from 127.0.0.1 via rootlesskit: <the apiserver's words>`
fn message(event: &Event<'_>, rootlesskit: bool) -> String {
    let ObjectRef { resource, subresource, namespace, name } = object(event);
    let user: &str = if event.user.username.is_empty() { "unauthenticated" } else { &event.user.username };
    let mut text = String::with_capacity(160 + event.response.message.len().min(MAX_WORDS));
    let mut say = |parts: &[&str]| parts.iter().for_each(|part| text.push_str(part));
    say(&[user]);
    if !event.impersonated_user.is_empty() {
        say(&[" as ", &event.impersonated_user]);
    }
    say(&[": ", &event.verb, " "]);
    if resource.is_empty() {
        say(&[prefix(&event.request_uri, MAX_URI)]);
    } else {
        say(&[resource]);
        if !subresource.is_empty() {
            say(&["/", subresource]);
        }
        if !name.is_empty() {
            say(&[" ", name]);
        }
        if !namespace.is_empty() {
            say(&[" in namespace ", namespace]);
        }
    }
    let code = event.response.code;
    let word = match code {
        401 => "not authenticated",
        403 => "forbidden",
        _ => "failed",
    };
    say(&[" ", word, " (", &code.to_string(), ")"]);
    if let Some(peer) = peer(event) {
        say(&[", from ", peer, if rootlesskit && is_this_node(peer) { " via rootlesskit" } else { "" }]);
    }
    if !says_nothing_new(&event.response) {
        say(&[": ", prefix(&event.response.message, MAX_WORDS)]);
    }
    text
}

/// Whether the apiserver's words only repeat user, verb and object, as those of its authorizer do.
fn says_nothing_new(response: &ResponseStatus<'_>) -> bool {
    let words = &response.message;
    words.is_empty() || words == "Unauthorized" || (response.code == 403 && words.contains("forbidden: User \""))
}

/// Longest URI in a message, in bytes; the field has all of it.
const MAX_URI: usize = 512;
/// Most of the apiserver's words in a message, in bytes; the field has all of them.
const MAX_WORDS: usize = 1024;

struct ObjectRef<'e> {
    resource: &'e str,
    subresource: &'e str,
    namespace: &'e str,
    name: &'e str,
}

fn object<'e>(event: &'e Event<'_>) -> ObjectRef<'e> {
    let object = &event.object;
    ObjectRef {
        resource: &object.resource,
        subresource: &object.subresource,
        namespace: &object.namespace,
        name: &object.name,
    }
}

/// Refused requests whose first stage has been seen and whose last may still come. A request is (auditID,
/// requestReceivedTimestamp): clients choose auditIDs. The same stage twice is two requests, so they are counted.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<String>", try_from = "Vec<String>")]
pub struct Started {
    order: VecDeque<Key>,
    count: HashMap<Key, u32>,
}

/// Hash of a request's key: an auditID may be long, and a client may choose it to collide with another.
type Key = [u8; 16];

impl Started {
    /// Whether the event is a further stage of a request that was counted already. Remembers it if its other stage may
    /// still come.
    fn folds(&mut self, event: &Event<'_>) -> bool {
        match event.stage {
            Stage::RequestReceived => false,
            Stage::ResponseStarted => {
                // Without a user the request failed before or at authentication (401, a bad ?timeout=): the apiserver
                // writes no other line for it.
                if event.response.code != 401 && !event.user.username.is_empty() {
                    self.remember(key(event));
                }
                false
            }
            Stage::ResponseComplete | Stage::Panic => !self.order.is_empty() && self.forget(&key(event)),
        }
    }

    fn remember(&mut self, key: Key) {
        if self.order.len() == MAX_STARTED
            && let Some(oldest) = self.order.front().copied()
        {
            self.forget(&oldest);
        }
        self.order.push_back(key);
        *self.count.entry(key).or_default() += 1;
    }

    fn forget(&mut self, key: &Key) -> bool {
        let Some(count) = self.count.get_mut(key) else { return false };
        *count -= 1;
        if *count == 0 {
            self.count.remove(key);
        }
        if let Some(at) = self.order.iter().rposition(|have| have == key) {
            self.order.remove(at);
        }
        true
    }
}

fn key(event: &Event<'_>) -> Key {
    let mut hash = Sha256::new();
    // Its stages agree in more than the key. With one auditID and in one microsecond a client could make two requests of
    // which one takes the place of the other.
    for text in [&event.audit_id, &event.request_received, &event.user.username, &event.verb, &event.request_uri] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    let mut key = Key::default();
    key.copy_from_slice(&hash.finalize()[..16]);
    key
}

impl From<Started> for Vec<String> {
    fn from(started: Started) -> Vec<String> {
        started.order.iter().map(|key| format!("{:032x}", u128::from_be_bytes(*key))).collect()
    }
}

impl TryFrom<Vec<String>> for Started {
    type Error = String;

    fn try_from(keys: Vec<String>) -> Result<Started, String> {
        let mut started = Started::default();
        for key in keys {
            let key = u128::from_str_radix(&key, 16).map_err(|_| format!("`{key}` is no key of a request"))?;
            started.remember(key.to_be_bytes());
        }
        Ok(started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kubeapi::event::parse;
    use crate::finding::Value;

    fn line(id: &str, received: u32, stage: &str, code: u32) -> String {
        let user = if code == 401 { "{}" } else { r#"{"username":"alice"}"# };
        format!(
            r#"{{"auditID":"{id}","stage":"{stage}","verb":"get","user":{user},"sourceIPs":["192.0.2.1","10.0.0.7"],"responseStatus":{{"code":{code}}},"requestReceivedTimestamp":"2026-11-22T02:58:59.{received:06}Z","stageTimestamp":"2026-11-22T02:59:00Z"}}"#
        )
    }

    /// Ids of the findings of a log.
    fn found(assessor: &mut Assessor, log: &[(&str, u32, &str, u32)]) -> Vec<&'static str> {
        let lines: Vec<_> = log.iter().map(|(id, received, stage, code)| line(id, *received, stage, *code)).collect();
        lines.iter().filter_map(|line| Some(assessor.assess(parse(line.as_bytes())?.0)?.id.0)).collect()
    }

    const STARTED: &str = "ResponseStarted";
    const COMPLETE: &str = "ResponseComplete";

    #[test]
    fn codes_are_classed() {
        for (code, id) in [
            (400, "kubeapi/client-error"),
            (401, "kubeapi/unauthenticated"),
            (403, "kubeapi/forbidden"),
            (404, "kubeapi/client-error"),
            (499, "kubeapi/client-error"),
            (500, "kubeapi/server-error"),
            (999, "kubeapi/server-error"),
        ] {
            assert_eq!(found(&mut Assessor::default(), &[("a", 1, COMPLETE, code)]), [id], "{code}");
        }
        assert!(found(&mut Assessor::default(), &[("a", 1, COMPLETE, 200), ("b", 1, COMPLETE, 399)]).is_empty());
    }

    #[test]
    fn stages_of_one_request_are_one_finding() {
        type Log = &'static [(&'static str, u32, &'static str, u32)];
        let cases: [(&str, Log, usize); 9] = [
            ("denied watch: two lines", &[("a", 1, STARTED, 403), ("a", 1, COMPLETE, 403)], 1),
            ("401: only its start", &[("a", 1, STARTED, 401)], 1),
            ("401 twice with one auditID", &[("a", 1, STARTED, 401), ("a", 1, STARTED, 401)], 2),
            ("broken watch", &[("a", 1, STARTED, 200), ("a", 1, "Panic", 500)], 1),
            ("refused, then panic", &[("a", 1, STARTED, 503), ("a", 1, "Panic", 500)], 1),
            ("same auditID, other time", &[("a", 1, COMPLETE, 403), ("a", 2, COMPLETE, 403)], 2),
            ("same key and stage twice", &[("a", 1, COMPLETE, 403), ("a", 1, COMPLETE, 403)], 2),
            (
                "two requests of one key, interleaved",
                &[("a", 1, STARTED, 403), ("a", 1, STARTED, 403), ("a", 1, COMPLETE, 403), ("a", 1, COMPLETE, 403)],
                2,
            ),
            (
                "a third completes with their key",
                &[("a", 1, STARTED, 403), ("a", 1, COMPLETE, 403), ("a", 1, COMPLETE, 403)],
                2,
            ),
        ];
        for (name, log, count) in cases {
            assert_eq!(found(&mut Assessor::default(), log).len(), count, "{name}");
        }
    }

    #[test]
    fn a_request_does_not_take_the_place_of_another_of_its_key() {
        let line = |verb: &str, stage| line("a", 1, stage, 403).replace(r#""get""#, &format!("{verb:?}"));
        let log = [line("watch", STARTED), line("delete", COMPLETE), line("watch", COMPLETE)];
        let mut assessor = Assessor::default();
        let findings = log.iter().filter_map(|line| assessor.assess(parse(line.as_bytes()).expect("event").0));
        let verbs: Vec<_> = findings.map(|finding| finding.fields.get(fields::VERB).cloned()).collect();
        assert_eq!(verbs, ["watch", "delete"].map(|verb| Some(Value::Text(verb.into()))));
    }

    #[test]
    fn stages_are_folded_over_a_restart() {
        let mut before = Assessor::default();
        assert_eq!(found(&mut before, &[("a", 1, STARTED, 403), ("b", 1, STARTED, 404)]).len(), 2);
        let saved = serde_json::to_string(before.started()).expect("json");
        let mut after = Assessor::new(serde_json::from_str(&saved).expect("the same"));
        assert_eq!(after.started(), before.started());
        assert!(found(&mut after, &[("b", 1, COMPLETE, 404), ("a", 1, COMPLETE, 403)]).is_empty());
        assert_eq!(after.started(), &Started::default());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut assessor = Assessor::default();
        for received in 0..MAX_STARTED as u32 + 10 {
            found(&mut assessor, &[("a", received, STARTED, 403)]);
        }
        assert_eq!((assessor.started.order.len(), assessor.started.count.len()), (MAX_STARTED, MAX_STARTED));
    }

    #[test]
    fn the_real_peer_is_the_last_and_the_rest_is_the_clients_claim() {
        let line = line("a", 1, COMPLETE, 403);
        let finding = Assessor::default().assess(parse(line.as_bytes()).expect("event").0).expect("finding");
        assert_eq!(finding.fields.get(fields::SOURCE_IP), Some(&Value::Text("10.0.0.7".into())));
        assert_eq!(finding.fields.get(fields::FORWARDED_FOR), Some(&Value::List(vec!["192.0.2.1".into()])));
    }

    #[test]
    fn a_hidden_source_is_said_until_a_peer_is_seen() {
        let hidden = line("a", 1, COMPLETE, 403).replace("10.0.0.7", "127.0.0.1");
        let visible = line("b", 1, COMPLETE, 403);
        let said = |assessor: &mut Assessor, line: &str| {
            assessor.assess_source(&parse(line.as_bytes()).expect("event").0).map(|finding| finding.kind)
        };
        let mut behind = Assessor { rootlesskit: true, ..Assessor::default() };
        assert_eq!(said(&mut behind, &hidden), Some(Kind::Raised));
        assert_eq!(said(&mut behind, &visible), Some(Kind::Cleared));
        assert_eq!(said(&mut behind, &hidden), None, "a local client hides nothing");
        let finding = behind.assess(parse(hidden.as_bytes()).expect("event").0).expect("finding");
        assert!(finding.message.contains("from 127.0.0.1 via rootlesskit"), "{}", finding.message);
        let mut direct = Assessor::default();
        assert_eq!(said(&mut direct, &hidden), Some(Kind::Cleared), "no rootlesskit, nothing hidden");
        direct.set_rootlesskit(true);
        assert_eq!(said(&mut direct, &hidden), Some(Kind::Raised), "now it is");
    }

    #[test]
    fn events_from_before_the_first_start_are_history() {
        let line = line("a", 1, COMPLETE, 403);
        for (until, history) in [("2026-11-22T02:58:59Z", false), ("2026-11-22T03:00:00Z", true)] {
            let mut assessor = Assessor { history_until: parse_time(until), ..Assessor::default() };
            let finding = assessor.assess(parse(line.as_bytes()).expect("event").0).expect("finding");
            assert_eq!(finding.fields.get(&HISTORY).is_some(), history, "{until}");
        }
    }
}
