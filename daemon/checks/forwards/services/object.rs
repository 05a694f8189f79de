//! What the Kubernetes API says of services, and which ports of the node they ask for.
//!
//! Formats: the API conventions of Kubernetes (lists, watches, `Status`), and `Service` of core/v1. Of all that only the
//! fields that are needed are read; nothing else is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{LeftOut, NodePort, Transport};

/// So many ports are told at most. By default the API has 2768 to give away.
pub const MAX_PORTS: usize = 2000;
/// So many are kept at most: what is told may be withdrawn, and then others take its place.
const MAX_KEPT: usize = 4 * MAX_PORTS;
/// Longer versions are none: the API's are numbers of 64 bits, though nobody may rely on that.
const MAX_VERSION: usize = 128;
/// RFC 1123: the name of a namespace is a label, …
const MAX_LABEL: usize = 63;
/// … and no name of an object is longer than a name of a host.
const MAX_NAME: usize = 253;

/// The code of HTTP (RFC 9110) and of `Status` for what is too long ago.
pub(super) const GONE: u16 = 410;
const NO_LIST: &str = "answers with what is no list of services";

/// One page of a list of services.
#[derive(Deserialize)]
pub(super) struct Page {
    kind: String,
    metadata: ListMetadata,
    items: Option<Vec<Service>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl Page {
    /// Reads it; its version and what to ask for the next page with, if there is one.
    ///
    /// # Errors
    /// It is no list of services. What is no list says nothing of services, least of all that there are none.
    pub(super) fn parse(text: &[u8], found: &mut Found) -> Result<(String, Option<String>), String> {
        let page: Page = serde_json::from_slice(text).map_err(|_| NO_LIST)?;
        if page.kind != "ServiceList" {
            return Err(NO_LIST.into());
        }
        check_version(&page.metadata.resource_version)?;
        page.items.into_iter().flatten().for_each(|service| found.put(service, true));
        Ok((page.metadata.resource_version, page.metadata.next.filter(|next| !next.is_empty())))
    }
}

/// What a watch says.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

/// A service, a bookmark, or the status (`Status` of meta/v1) that says why a watch ends.
#[derive(Deserialize)]
struct Object {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    code: Option<u16>,
    message: Option<String>,
}

/// `Status` of meta/v1: why a request was refused.
#[derive(Default, Deserialize)]
pub(super) struct Status {
    /// For people.
    #[serde(default)]
    pub(super) message: String,
}

/// What one line of a watch means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// What is known is up to this version now.
    Version(String),
    /// What was asked for is too long ago: all is to be listed again.
    Gone,
    /// The watch ends, and why.
    Failed(String),
}

impl Line {
    /// Takes in a line of a watch.
    pub(super) fn take(text: &[u8], found: &mut Found) -> Line {
        Line::parse(text, found).unwrap_or_else(Line::Failed)
    }

    fn parse(text: &[u8], found: &mut Found) -> Result<Line, String> {
        let event: Event = serde_json::from_slice(text).map_err(|_| "answers with what is no event")?;
        let Object { metadata, spec, code, message } = event.object;
        let metadata = metadata.unwrap_or_default();
        let version = metadata.resource_version.clone().unwrap_or_default();
        match event.kind.as_str() {
            "ADDED" => found.put(Service { metadata, spec }, true),
            "MODIFIED" => found.put(Service { metadata, spec }, false),
            "DELETED" => found.remove(metadata, spec.as_ref()),
            "BOOKMARK" => {}
            "ERROR" if code == Some(GONE) => return Ok(Line::Gone),
            "ERROR" => {
                let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
                return Err(format!("ends the watch: {code} {message}"));
            }
            _ => return Err("answers with an event of a kind that there is not".into()),
        }
        check_version(&version)?;
        Ok(Line::Version(version))
    }
}

fn check_version(version: &str) -> Result<(), String> {
    let fits =
        !version.is_empty() && version.len() <= MAX_VERSION && version.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(()) } else { Err("answers with a version that is none".into()) }
}

/// `Service` of core/v1.
#[derive(Deserialize)]
pub(super) struct Service {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Spec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    ports: Option<Vec<Port>>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    protocol: Option<String>,
    node_port: Option<i64>,
}

/// The ports that one service asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ports {
    ports: BTreeSet<(Transport, u16)>,
    /// How many of them cannot be.
    unfit: usize,
}

impl Ports {
    fn of(spec: &Spec) -> Ports {
        let mut found = Ports::default();
        if !matches!(spec.kind.as_deref(), Some("NodePort" | "LoadBalancer")) {
            return found;
        }
        for port in spec.ports.iter().flatten() {
            let protocol = match port.protocol.as_deref() {
                None | Some("TCP") => Some(Transport::Tcp),
                Some("UDP") => Some(Transport::Udp),
                Some("SCTP") => Some(Transport::Sctp),
                Some(_) => None,
            };
            found.add(protocol, port.node_port);
        }
        // What balances the load asks there whether this node has a pod of the service.
        if spec.external_traffic_policy.as_deref() == Some("Local") {
            found.add(Some(Transport::Tcp), spec.health_check_node_port);
        }
        found
    }

    fn add(&mut self, protocol: Option<Transport>, port: Option<i64>) {
        match (protocol, port.map(u16::try_from)) {
            // There is none: a load balancer may do without, and headless services have none yet.
            (_, None | Some(Ok(0))) => {}
            (Some(protocol), Some(Ok(port))) => {
                self.ports.insert((protocol, port));
            }
            _ => self.unfit += 1,
        }
    }

    fn weight(&self) -> usize {
        self.ports.len() + usize::from(self.unfit > 0)
    }
}

/// The services that ask for ports of the node.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By namespace and name.
    services: BTreeMap<(String, String), Ports>,
    /// How many ports are kept.
    kept: usize,
    /// How many services have names that cannot be.
    nameless: usize,
    /// How many ports are not kept, at least.
    beyond: usize,
}

impl Found {
    /// A service that is new, or changed.
    fn put(&mut self, Service { metadata, spec }: Service, is_new: bool) {
        let ports = spec.as_ref().map(Ports::of).unwrap_or_default();
        let Some(key) = key(metadata) else {
            self.nameless += usize::from(is_new && ports.weight() > 0);
            return;
        };
        self.forget(&key);
        if ports.weight() == 0 {
            return;
        }
        if self.kept + ports.weight() > MAX_KEPT {
            self.beyond += ports.ports.len();
            return;
        }
        self.kept += ports.weight();
        self.services.insert(key, ports);
    }

    /// A service that is gone.
    fn remove(&mut self, metadata: Metadata, spec: Option<&Spec>) {
        match key(metadata) {
            Some(key) => self.forget(&key),
            None if spec.is_some_and(|spec| Ports::of(spec).weight() > 0) => {
                self.nameless = self.nameless.saturating_sub(1);
            }
            None => {}
        }
    }

    fn forget(&mut self, key: &(String, String)) {
        self.kept -= self.services.remove(key).map_or(0, |former| former.weight());
    }

    /// Whether there are ports that are not kept: only a new list says which they are.
    pub(super) fn is_incomplete(&self) -> bool {
        self.beyond > 0
    }

    /// The ports to tell.
    pub(super) fn ports(&self) -> BTreeSet<NodePort> {
        let all = self.services.iter().flat_map(|((namespace, service), found)| {
            found.ports.iter().map(|(protocol, port)| NodePort {
                namespace: namespace.clone(),
                service: service.clone(),
                transport: *protocol,
                port: *port,
            })
        });
        all.take(MAX_PORTS).collect()
    }

    /// What is not among them.
    pub(super) fn left_out(&self) -> LeftOut {
        let ports: usize = self.services.values().map(|found| found.ports.len()).sum();
        let unfit: usize = self.services.values().map(|found| found.unfit).sum();
        LeftOut { unfit: unfit + self.nameless, beyond: ports.saturating_sub(MAX_PORTS) + self.beyond }
    }
}

/// Namespace and name, if they can be.
fn key(metadata: Metadata) -> Option<(String, String)> {
    let (namespace, name) = (metadata.namespace?, metadata.name?);
    let fits = is_label(&namespace) && name.len() <= MAX_NAME && name.split('.').all(is_label);
    fits.then_some((namespace, name))
}

/// RFC 1123: letters, digits and hyphens, which do not stand at an end. Kubernetes wants the letters small.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: &Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": "7"}, "spec": spec})
    }

    /// What is found in these services, and what is left out.
    fn list(services: &[Value]) -> (Vec<String>, LeftOut) {
        let page = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": services});
        let mut found = Found::default();
        assert_eq!(Page::parse(page.to_string().as_bytes(), &mut found), Ok(("7".to_owned(), None)));
        (shown(&found), found.left_out())
    }

    fn shown(found: &Found) -> Vec<String> {
        let show = |port: NodePort| format!("{}/{} {}/{}", port.namespace, port.service, port.port, port.transport);
        found.ports().into_iter().map(show).collect()
    }

    fn event(kind: &str, object: &Value) -> String {
        json!({"type": kind, "object": object}).to_string()
    }

    #[test]
    fn services_that_the_world_may_reach_have_ports() {
        let ports = json!([{"port": 80, "nodePort": 30080}, {"protocol": "UDP", "nodePort": 30053, "name": "dns"}]);
        for (spec, expected) in [
            (json!({"type": "NodePort", "ports": ports}), &["30080/tcp", "30053/udp"][..]),
            (json!({"type": "LoadBalancer", "ports": ports}), &["30080/tcp", "30053/udp"]),
            (json!({"type": "ClusterIP", "ports": ports}), &[]),
            (json!({"type": "ExternalName", "externalName": "example.org", "ports": ports}), &[]),
            (json!({"ports": ports}), &[]),
            (json!({"type": "NodePort"}), &[]),
            (json!({"type": "NodePort", "ports": null}), &[]),
            (json!({"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 81, "nodePort": 0}]}), &[]),
            (json!({"type": "NodePort", "ports": [{"protocol": "SCTP", "nodePort": 30001}]}), &["30001/sctp"]),
            (
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
                    "ports": [{"protocol": "UDP", "nodePort": 31000}]}),
                &["31000/tcp", "31000/udp"],
            ),
            (json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 31000}), &[]),
        ] {
            let expected: Vec<_> = expected.iter().map(|port| format!("shop/web {port}")).collect();
            assert_eq!(list(&[service("web", &spec)]), (expected, LeftOut::default()), "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_is_left_out_and_counted() {
        let spec = |protocol: &str, port: i64| json!({"type": "NodePort", "ports": [{"protocol": protocol, "nodePort": port}, {"nodePort": 30000}]});
        for spec in [spec("TCP\\n", 1), spec("tcp", 1), spec("TCP", 65536), spec("TCP", -1), spec("", 30001)] {
            let found = list(&[service("web", &spec)]);
            assert_eq!(found, (vec!["shop/web 30000/tcp".to_owned()], LeftOut { unfit: 1, beyond: 0 }), "{spec}");
        }
        let (longest, long) = ("a".repeat(63), "a".repeat(64));
        let names = |label: &str, times: usize| vec![label; times].join(".");
        for (namespace, name, fits) in [
            ("shop", "web-2", true),
            (&longest, &names(&longest, 3), true),
            ("shop", &names(&longest, 4), false),
            (&long, "web", false),
            ("shop", &long, false),
            ("", "web", false),
            ("shop", "", false),
            ("shop", "Web", false),
            ("shop", "-web", false),
            ("shop", "web-", false),
            ("shop", "a..b", false),
            ("shop.x", "web", false),
            ("shop", "w\u{f6}b", false),
            ("shop", "../web", false),
            ("shop", "web\n", false),
        ] {
            let spec = json!({"type": "NodePort", "ports": [{"nodePort": 30000}]});
            let (ports, left_out) = list(&[json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})]);
            assert_eq!((ports.len(), left_out.unfit), (usize::from(fits), usize::from(!fits)), "{namespace}/{name}");
        }
    }

    #[test]
    fn events_change_what_is_found() {
        let web = |port: u16| service("web", &json!({"type": "NodePort", "ports": [{"nodePort": port}]}));
        let mut found = Found::default();
        let mut take = |kind: &str, object: &Value| {
            let line = Line::take(event(kind, object).as_bytes(), &mut found);
            assert_eq!(line, Line::Version("7".into()));
            shown(&found)
        };
        assert_eq!(take("ADDED", &web(30000)), ["shop/web 30000/tcp"]);
        assert_eq!(take("MODIFIED", &web(30001)), ["shop/web 30001/tcp"]);
        assert_eq!(take("BOOKMARK", &json!({"metadata": {"resourceVersion": "7"}})), ["shop/web 30001/tcp"]);
        assert_eq!(take("DELETED", &service("other", &json!({}))), ["shop/web 30001/tcp"]);
        assert_eq!(take("MODIFIED", &service("web", &json!({"type": "ClusterIP"}))), [""; 0]);
        assert_eq!(take("MODIFIED", &web(30001)), ["shop/web 30001/tcp"]);
        assert_eq!(take("DELETED", &web(30001)), [""; 0]);
        let nameless = json!({"metadata": {"namespace": "shop", "name": "/", "resourceVersion": "7"},
            "spec": {"type": "NodePort", "ports": [{"nodePort": 30000}]}});
        take("ADDED", &nameless);
        take("MODIFIED", &nameless);
        take("ADDED", &nameless);
        take("DELETED", &nameless);
        assert_eq!((found.kept, found.left_out()), (0, LeftOut { unfit: 1, beyond: 0 }));
    }

    #[test]
    fn what_is_no_answer_changes_nothing() {
        let mut found = Found::default();
        let web = service("web", &json!({"type": "NodePort", "ports": [{"nodePort": 30000}]}));
        Line::take(event("ADDED", &web).as_bytes(), &mut found);
        let mut other = web.clone();
        other["metadata"]["resourceVersion"] = json!("7".repeat(129));
        for (line, expected) in [
            ("", "no event"),
            ("{}", "no event"),
            (r#"{"type":"DELETED"}"#, "no event"),
            (r#"{"type":"DELETED","object":[]}"#, "no event"),
            (r#"{"type":"DELETED","object":{"metadata":{"name":"web"#, "no event"),
            (&event("REMOVED", &web), "a kind that there is not"),
            (&event("BOOKMARK", &json!({})), "a version that is none"),
            (&event("BOOKMARK", &json!({"metadata": {"resourceVersion": "7 8"}})), "a version that is none"),
            (&event("BOOKMARK", &other), "a version that is none"),
            (&event("ERROR", &json!({"code": 500, "message": "etcd is away"})), "ends the watch: 500 etcd is away"),
        ] {
            let taken = Line::take(line.as_bytes(), &mut found);
            assert!(matches!(&taken, Line::Failed(why) if why.contains(expected)), "{line}: {taken:?}");
        }
        let gone = event("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired"}));
        assert_eq!(Line::take(gone.as_bytes(), &mut found), Line::Gone);
        for page in ["", "{}", "[]", r#"{"kind":"Status","metadata":{}}"#, r#"{"kind":"ServiceList","metadata":{}}"#] {
            assert!(Page::parse(page.as_bytes(), &mut found).is_err(), "{page}");
        }
        assert_eq!(shown(&found), ["shop/web 30000/tcp"]);
    }

    #[test]
    fn more_than_there_is_room_for_is_counted() {
        let many = |number: usize, first: usize, name: &str| {
            let ports: Vec<_> = (first..first + number).map(|port| json!({"nodePort": port})).collect();
            service(name, &json!({"type": "NodePort", "ports": ports}))
        };
        let (ports, left_out) = list(&[many(1990, 1, "b"), many(30, 2000, "c"), many(5, 9000, "a")]);
        assert_eq!((ports.len(), left_out), (MAX_PORTS, LeftOut { unfit: 0, beyond: 25 }));
        assert_eq!((ports[0].as_str(), ports[1999].as_str()), ("shop/a 9000/tcp", "shop/c 2004/tcp"), "in order");

        let page = |services: &[Value]| {
            let mut found = Found::default();
            let page = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": services});
            Page::parse(page.to_string().as_bytes(), &mut found).expect("a list");
            found
        };
        assert!(!page(&[many(MAX_KEPT, 1, "a")]).is_incomplete());
        let found = page(&[many(MAX_KEPT, 1, "a"), many(3, 1, "b")]);
        assert!(found.is_incomplete() && found.left_out().beyond == MAX_KEPT - MAX_PORTS + 3, "what is not kept");
    }

    proptest! {
        #[test]
        fn whatever_happens_what_is_found_is_what_the_last_event_of_each_service_says(
            events in prop::collection::vec((0..4u8, 0..3u8, 0..4u16), 0..40),
        ) {
            let (mut found, mut model) = (Found::default(), BTreeMap::new());
            for (name, kind, port) in events {
                let name = format!("s{name}");
                let object = service(&name, &json!({"type": "NodePort", "ports": [{"nodePort": port}]}));
                let kind = ["ADDED", "MODIFIED", "DELETED"][usize::from(kind)];
                Line::take(event(kind, &object).as_bytes(), &mut found);
                if kind == "DELETED" || port == 0 { model.remove(&name) } else { model.insert(name, port) };
            }
            let expected: Vec<_> = model.iter().map(|(name, port)| format!("shop/{name} {port}/tcp")).collect();
            prop_assert_eq!((found.kept, shown(&found)), (expected.len(), expected));
        }

        #[test]
        fn whatever_bytes_come_nothing_breaks(bytes in prop_oneof![any::<Vec<u8>>(), "[\\[{\":,a-z0-9}\\]]{0,40}".prop_map(String::into_bytes)]) {
            let mut found = Found::default();
            prop_assert!(matches!(Line::take(&bytes, &mut found), Line::Failed(_)));
            prop_assert!(Page::parse(&bytes, &mut found).is_err());
        }
    }
}
