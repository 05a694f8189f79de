//! The line of the audit log: audit.k8s.io `Event`
//! (<https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/>), as far as podsecd judges it.
//!
//! A line is bytes. Only the fields below are decoded; the rest, request bodies above all, is passed over.

use std::borrow::Cow;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::json::Json;
use crate::finding::prefix;

/// How kube-apiserver begins every event. It marks the place where a whole event stands behind a torn one.
pub const START: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/"#;

static FIND_START: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(START));
static FIND_CODE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""code":"#));

/// Longest text that leaves the thread that reads the log, in bytes. An apiserver takes headers of 1 MiB at most, so it
/// is all of a URI or a message; it bounds the memory that a line made by hand can cause.
pub const MAX_TEXT: usize = 1 << 20;

/// The same of a text in a list, of which there are many: names of groups, addresses.
const MAX_LISTED: usize = 4 << 10;

/// How much is parsed of a damaged line, in lengths of the line. Bounds the work that a line full of false starts can
/// cause.
const MAX_WORK: usize = 16;

/// Stage of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the handlers; no answer yet.
    RequestReceived,
    /// The header of the answer is out, its body is not. Only of long-running requests, and the only one of a 401.
    ResponseStarted,
    /// The answer is out.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

impl Stage {
    /// The name that audit.k8s.io gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }

    fn parse(name: &str) -> Option<Stage> {
        [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic]
            .into_iter()
            .find(|stage| stage.as_str() == name)
    }
}

/// An audit event. What the line does not have is empty. All text is the client's, the user's or the server's: hostile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields have audit.k8s.io's names and meanings")]
pub struct Event<'a> {
    pub audit_id: Cow<'a, str>,
    pub stage: Stage,
    pub request_uri: Cow<'a, str>,
    pub verb: Cow<'a, str>,
    pub user: User<'a>,
    pub impersonated_user: Cow<'a, str>,
    pub source_ips: Vec<Cow<'a, str>>,
    pub user_agent: Cow<'a, str>,
    pub object: ObjectRef<'a>,
    pub response: ResponseStatus<'a>,
    pub request_received: Cow<'a, str>,
    pub stage_timestamp: Cow<'a, str>,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields have audit.k8s.io's names and meanings")]
pub struct User<'a> {
    pub username: Cow<'a, str>,
    pub groups: Vec<Cow<'a, str>>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields have audit.k8s.io's names and meanings")]
pub struct ObjectRef<'a> {
    pub api_group: Cow<'a, str>,
    pub resource: Cow<'a, str>,
    pub subresource: Cow<'a, str>,
    pub namespace: Cow<'a, str>,
    pub name: Cow<'a, str>,
}

/// How the apiserver answered; code 0 if it has not yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields have metav1.Status' names and meanings")]
pub struct ResponseStatus<'a> {
    pub code: u64,
    pub reason: Cow<'a, str>,
    pub message: Cow<'a, str>,
}

impl Event<'_> {
    /// The same without borrowed text; of each text at most [`MAX_TEXT`] bytes.
    pub fn into_owned(self) -> Event<'static> {
        let brief = |text: Cow<'_, str>| Cow::Owned(prefix(&text, MAX_LISTED).to_owned());
        let all = |texts: Vec<Cow<'_, str>>| texts.into_iter().map(brief).collect();
        let (object, response) = (self.object, self.response);
        Event {
            audit_id: own(self.audit_id),
            stage: self.stage,
            request_uri: own(self.request_uri),
            verb: own(self.verb),
            user: User { username: own(self.user.username), groups: all(self.user.groups) },
            impersonated_user: own(self.impersonated_user),
            source_ips: all(self.source_ips),
            user_agent: own(self.user_agent),
            object: ObjectRef {
                api_group: own(object.api_group),
                resource: own(object.resource),
                subresource: own(object.subresource),
                namespace: own(object.namespace),
                name: own(object.name),
            },
            response: ResponseStatus {
                code: response.code,
                reason: own(response.reason),
                message: own(response.message),
            },
            request_received: own(self.request_received),
            stage_timestamp: own(self.stage_timestamp),
        }
    }
}

/// One copy of this for all fields: an event that comes after a pause finds the code not in the core's cache.
#[inline(never)]
fn own(text: Cow<'_, str>) -> Cow<'static, str> {
    Cow::Owned(match text {
        Cow::Owned(text) if text.len() <= MAX_TEXT => text,
        text => prefix(&text, MAX_TEXT).to_owned(),
    })
}

/// Whether a line can be passed over unread: it looks whole, and no code in it is 400 or more.
///
/// Sound for what kube-apiserver writes (compact JSON): a refusal has its code in it, and a quote inside of a text is
/// escaped, so `"code":` is always a key. Nothing is concluded from a code of 400 or more: it may stand in a request
/// body. Nor is anything from a line without any code: it may be a refusal that was torn before it.
pub fn is_plainly_no_refusal(line: &[u8]) -> bool {
    let mut codes = FIND_CODE.find_iter(line);
    let is_low = |at: usize| is_low_code(&line[at + 7..]);
    line.starts_with(START)
        && line.ends_with(b"}")
        && codes.next().is_some_and(is_low)
        && codes.all(is_low)
        && FIND_START.find(&line[START.len()..]).is_none()
}

fn is_low_code(value: &[u8]) -> bool {
    matches!(value, [b'1'..=b'3', b'0'..=b'9', b'0'..=b'9', b'}', ..])
}

/// What a line turned out to hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole event.
    Event(Box<Event<'a>>),
    /// Bytes that are no event: where they start in the line, and how many they are.
    Unreadable {
        /// Offset within the line.
        at: usize,
        /// Bytes.
        length: usize,
    },
}

/// Reads a line: one event, as a rule; after a full disk, torn pieces and whole events on one line.
pub fn read_line<'a>(line: &'a [u8], mut piece: impl FnMut(Piece<'a>)) {
    let unicode = str::from_utf8(line).ok();
    let (mut at, mut unread, mut work) = (0, 0, 0);
    while at < line.len() && work <= MAX_WORK * line.len() {
        let (event, end) = read_at(line, unicode, at);
        work += end - at;
        let is_last = line[end..].trim_ascii().is_empty();
        // What looks like an event and goes on in any other way stands in the request body of one that was torn.
        if let Some(event) = event
            && (is_last || line[end..].starts_with(START))
        {
            if unread < at {
                piece(Piece::Unreadable { at: unread, length: at - unread });
            }
            piece(Piece::Event(Box::new(event)));
            at = if is_last { line.len() } else { end };
            unread = at;
        } else {
            let next = line.get(at + 1..).and_then(|rest| FIND_START.find(rest));
            at = next.map_or(line.len(), |next| at + 1 + next);
        }
    }
    if let Some((start, event)) = if at < line.len() { read_last(line, unicode, at) } else { None } {
        piece(Piece::Unreadable { at: unread, length: start - unread });
        piece(Piece::Event(Box::new(event)));
        unread = line.len();
    }
    if unread < line.len() {
        piece(Piece::Unreadable { at: unread, length: line.len() - unread });
    }
}

/// What is read at a place of the line, and where that ends.
fn read_at<'a>(line: &'a [u8], unicode: Option<&'a str>, at: usize) -> (Option<Event<'a>>, usize) {
    let mut json = Json::new(&line[at..], unicode.and_then(|text| text.get(at..)));
    let event = read_event(&mut json);
    // An escape at the very end is passed over together with what is not there.
    (event, (at + json.at()).min(line.len()))
}

/// The event with which the line ends, behind `from`, where false starts have used up the work that is given to a line:
/// they stand in the piece that was torn, and the event stands behind it.
fn read_last<'a>(line: &'a [u8], unicode: Option<&'a str>, from: usize) -> Option<(usize, Event<'a>)> {
    let (mut work, mut last) = (0, None);
    for start in memchr::memmem::rfind_iter(line, START).take_while(|start| *start >= from) {
        let (event, end) = read_at(line, unicode, start);
        work += end - start;
        if let Some(event) = event
            && line[end..].trim_ascii().is_empty()
        {
            last = Some((start, event));
        }
        if last.is_some() || work > MAX_WORK * line.len() {
            break;
        }
    }
    last
}

/// Reads an event from the beginning of `bytes`; also says how long it is. `None` if there is no whole event.
pub fn parse(bytes: &[u8]) -> Option<(Event<'_>, usize)> {
    let mut json = Json::new(bytes, str::from_utf8(bytes).ok());
    let event = read_event(&mut json)?;
    Some((event, json.at()))
}

fn read_event<'a>(json: &mut Json<'a>) -> Option<Event<'a>> {
    let mut stage = None;
    let mut event = Event {
        audit_id: Cow::Borrowed(""),
        stage: Stage::RequestReceived,
        request_uri: Cow::Borrowed(""),
        verb: Cow::Borrowed(""),
        user: User::default(),
        impersonated_user: Cow::Borrowed(""),
        source_ips: Vec::new(),
        user_agent: Cow::Borrowed(""),
        object: ObjectRef::default(),
        response: ResponseStatus::default(),
        request_received: Cow::Borrowed(""),
        stage_timestamp: Cow::Borrowed(""),
    };
    if !json.is_object() {
        return None;
    }
    json.object(|json, key| {
        match key {
            b"auditID" => event.audit_id = json.text()?,
            b"stage" => stage = Stage::parse(&json.text()?),
            b"requestURI" => event.request_uri = json.text()?,
            b"verb" => event.verb = json.text()?,
            b"user" => event.user = user(json)?,
            b"impersonatedUser" => event.impersonated_user = user(json)?.username,
            b"sourceIPs" => event.source_ips = json.texts()?,
            b"userAgent" => event.user_agent = json.text()?,
            b"objectRef" => event.object = object_ref(json)?,
            b"responseStatus" => event.response = response_status(json)?,
            b"requestReceivedTimestamp" => event.request_received = json.text()?,
            b"stageTimestamp" => event.stage_timestamp = json.text()?,
            _ => json.skip()?,
        }
        Some(())
    })?;
    event.stage = stage?;
    Some(event)
}

fn user<'a>(json: &mut Json<'a>) -> Option<User<'a>> {
    let mut user = User::default();
    json.object(|json, key| {
        match key {
            b"username" => user.username = json.text()?,
            b"groups" => user.groups = json.texts()?,
            _ => json.skip()?,
        }
        Some(())
    })?;
    Some(user)
}

fn object_ref<'a>(json: &mut Json<'a>) -> Option<ObjectRef<'a>> {
    let mut object = ObjectRef::default();
    json.object(|json, key| {
        match key {
            b"apiGroup" => object.api_group = json.text()?,
            b"resource" => object.resource = json.text()?,
            b"subresource" => object.subresource = json.text()?,
            b"namespace" => object.namespace = json.text()?,
            b"name" => object.name = json.text()?,
            _ => json.skip()?,
        }
        Some(())
    })?;
    Some(object)
}

fn response_status<'a>(json: &mut Json<'a>) -> Option<ResponseStatus<'a>> {
    let mut status = ResponseStatus::default();
    json.object(|json, key| {
        match key {
            b"code" => status.code = json.number()?,
            b"reason" => status.reason = json.text()?,
            b"message" => status.message = json.text()?,
            _ => json.skip()?,
        }
        Some(())
    })?;
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = concat!(
        r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"a-1","stage":"ResponseComplete","#,
        r#""requestURI":"/api","verb":"get","user":{"username":"alice","groups":["dev"]},"sourceIPs":["10.0.0.7"],"#,
        r#""responseStatus":{"metadata":{},"message":"no","reason":"Forbidden","code":403},"#,
        r#""requestReceivedTimestamp":"2026-11-22T02:58:59.072009Z","stageTimestamp":"2026-11-22T02:58:59.072529Z"}"#
    );

    fn pieces(line: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        read_line(line.as_bytes(), |piece| {
            pieces.push(match piece {
                Piece::Event(event) => format!("event {}", event.audit_id),
                Piece::Unreadable { at, length } => format!("unreadable {at}+{length}"),
            });
        });
        pieces
    }

    #[test]
    fn an_event_behind_torn_pieces_is_read() {
        let torn = &WHOLE[..WHOLE.len() / 2];
        let second = WHOLE.replace("a-1", "a-2");
        for (line, expected) in [
            (WHOLE.to_owned(), vec!["event a-1".to_owned()]),
            (format!("{torn}{WHOLE}"), vec![format!("unreadable 0+{}", torn.len()), "event a-1".into()]),
            (format!("{torn}{torn}{WHOLE}"), vec![format!("unreadable 0+{}", 2 * torn.len()), "event a-1".into()]),
            (format!("{WHOLE}{second}"), vec!["event a-1".into(), "event a-2".into()]),
            (
                format!("{WHOLE}{torn}{second}"),
                vec!["event a-1".into(), format!("unreadable {}+{}", WHOLE.len(), torn.len()), "event a-2".into()],
            ),
            (torn.to_owned(), vec![format!("unreadable 0+{}", torn.len())]),
            ("garbage".into(), vec!["unreadable 0+7".into()]),
            ("{}".into(), vec!["unreadable 0+2".into()]),
            (String::new(), vec![]),
        ] {
            assert_eq!(pieces(&line), expected, "{line}");
        }
    }

    #[test]
    fn an_event_is_read_behind_a_piece_torn_at_any_byte() {
        let second = WHOLE.replace("a-1", "a-2");
        for cut in 1..WHOLE.len() {
            let line = format!("{}{second}", &WHOLE[..cut]);
            assert_eq!(pieces(&line), [format!("unreadable 0+{cut}"), "event a-2".into()], "cut at {cut}");
        }
    }

    #[test]
    fn an_event_in_the_request_body_of_a_torn_one_is_no_event() {
        let fake = WHOLE.replace("a-1", "fake");
        let torn = format!(r#"{},"requestObject":[{fake},{fake},"#, &WHOLE[..WHOLE.len() - 1]);
        let many = format!("{torn}{}", "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\"},".repeat(1000));
        let nested = format!("{torn}{}", "{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"x\":".repeat(1000));
        for torn in [torn, many, nested] {
            assert_eq!(pieces(&torn), [format!("unreadable 0+{}", torn.len())]);
            let line = format!("{torn}{WHOLE}");
            assert_eq!(pieces(&line), [format!("unreadable 0+{}", torn.len()), "event a-1".into()]);
        }
    }

    #[test]
    fn only_a_whole_line_without_a_high_code_is_passed_over() {
        let success = WHOLE.replace("403", "200");
        let body = |code: &str| {
            success.replace(r#""requestReceived"#, &format!(r#""requestObject":{{"code":{code}}},"requestReceived"#))
        };
        for (line, passed) in [
            (success.clone(), true),
            (body("200"), true),
            (success.replace(r#","code":200"#, ""), false),
            (WHOLE.to_owned(), false),
            (body("403"), false),
            (body("2000"), false),
            (success.replace("200", "999"), false),
            (success.replace(r#""code":200"#, r#""code": 403"#), false),
            (format!("{}{success}", &success[..99]), false),
            (success[..200].to_owned(), false),
            (format!(" {success}"), false),
            (String::new(), false),
        ] {
            assert_eq!(is_plainly_no_refusal(line.as_bytes()), passed, "{line}");
        }
    }

    #[test]
    fn a_code_in_a_request_body_changes_nothing() {
        let line = WHOLE.replace("403", "201").replace(
            r#""requestReceived"#,
            r#""requestObject":{"responseStatus":{"code":500},"code":403,"stage":"Panic"},"requestReceived"#,
        );
        let (event, length) = parse(line.as_bytes()).expect("an event");
        assert_eq!((event.response.code, event.stage, length), (201, Stage::ResponseComplete, line.len()));
    }
}
