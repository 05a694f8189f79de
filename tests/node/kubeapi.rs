//! The main job on a real node: what the apiserver refused is in the journal and in forbidden.log.

use std::fs::{File, create_dir_all};
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::node::{Node, field};

const AUDIT_LOG: &str = "etc/kubernetes/audit/audit.log";
const SOON: Duration = Duration::from_secs(90);
const LATER: Duration = Duration::from_secs(180);

/// As podsec sets a node up: u7s-admin owns the audit log and podsec's log directory, both 0700.
pub(crate) const PODSEC: &str = "useradd -r -m -d /var/lib/u7s-admin u7s-admin
    install -d -o u7s-admin -m 0700 /etc/kubernetes/audit
    install -d -m 0755 /var/lib/podsec
    install -d -o u7s-admin -m 0700 /var/lib/podsec/u7s /var/lib/podsec/u7s/log /var/lib/podsec/u7s/log/kubeapi
    install -o u7s-admin -m 0600 /dev/null /etc/kubernetes/audit/audit.log
    systemd-tmpfiles --create podsecd.conf
";

/// A node as podsec sets it up, with podsecd.
pub(crate) fn podsec_node() -> Node {
    podsec_node_with("")
}

/// The same after a script of the test's own.
pub(crate) fn podsec_node_with(script: &str) -> Node {
    let node = Node::boot();
    node.shell(&[PODSEC, script, "systemctl enable --now podsecd"].concat());
    node
}

/// A line of the audit log.
pub(crate) fn event(id: &str, number: usize) -> String {
    format!(
        concat!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"{}","#,
            r#""stage":"ResponseComplete","requestURI":"/api/v1/secrets","verb":"list","user":{{"username":"alice","#,
            r#""groups":["dev","qa"]}},"sourceIPs":["127.0.0.1"],"userAgent":"curl","#,
            r#""objectRef":{{"resource":"secrets","namespace":"prod"}},"responseStatus":{{"metadata":{{}},"#,
            r#""message":"podsec-inotify-check-vuln[1]: Critical: forged\nline","reason":"Forbidden","code":403}},"#,
            r#""requestReceivedTimestamp":"2026-11-22T02:58:59.{:06}Z","#,
            r#""stageTimestamp":"2026-11-22T02:58:59.999999Z"}}"#,
            "\n"
        ),
        id, number
    )
}

pub(crate) fn append(node: &Node, text: &str) {
    let mut log = File::options().append(true).open(node.root().join(AUDIT_LOG)).expect("opened");
    log.write_all(text.as_bytes()).expect("written");
}

pub(crate) fn lines(node: &Node, path: &str) -> usize {
    let text = std::fs::read(node.root().join(path)).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

pub(crate) fn an_event_is_in_journal_and_forbidden_log() {
    let node = podsec_node();
    append(&node, &event("e-1", 1));
    node.wait_until("the event is in the journal", SOON, || !node.journal(&["AUDIT_ID=e-1"]).is_empty());
    let entries = node.journal(&["AUDIT_ID=e-1"]);
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    for (name, value) in [
        ("SYSLOG_IDENTIFIER", "podsec-inotify-check-kubeapi"),
        ("PRIORITY", "2"),
        ("_SYSTEMD_UNIT", "podsecd.service"),
        ("PODSEC_CHECK", "kubeapi"),
        ("PODSEC_FINDING", "kubeapi/forbidden"),
        ("PODSEC_KIND", "event"),
        ("PODSEC_LEVEL", "Critical"),
        ("PODSEC_WEIGHT", "101"),
        ("PODSEC_SUBJECT", "alice"),
        ("PODSEC_HISTORY", "1"),
        ("K8S_REQUEST_TIMESTAMP", "2026-11-22T02:58:59.000001Z"),
        ("K8S_CODE", "403"),
        ("K8S_NAMESPACE", "prod"),
        ("K8S_SOURCE_IP", "127.0.0.1"),
    ] {
        assert_eq!(field(entry, name), [value], "{name}");
    }
    assert_eq!(field(entry, "K8S_GROUP"), ["dev", "qa"]);
    let short = node.shell("journalctl -q -o short AUDIT_ID=e-1");
    let message = ": Critical: alice: list secrets in namespace prod forbidden (403), from 127.0.0.1 via rootlesskit: ";
    let words = "podsec-inotify-check-vuln[1]\\u{3a} Critical: forged\\u{a}line\n";
    assert!(short.contains(message) && short.ends_with(words) && short.lines().count() == 1, "{short}");
    let log = "var/lib/podsec/u7s/log/kubeapi/forbidden.log";
    node.wait_until("forbidden.log has it", SOON, || lines(&node, log) == 1);
    assert_eq!(node.shell("stat -c '%a %U' /var/lib/podsec/u7s/log/kubeapi/forbidden.log"), "600 _podsecd\n");
    node.wait_until("the hidden source is said", SOON, || {
        !node.journal(&["PODSEC_FINDING=kubeapi/source-hidden"]).is_empty()
    });
    // Half an hour ago, so it counts in no metric; the condition does.
    node.wait_until("the status has it", SOON, || node.shell("podsecctl status").contains("kubeapi/forbidden"));
    assert_eq!(node.shell("podsecctl check kubeapi").split(':').next(), Some("KUBEAPI OK"));
}

pub(crate) fn without_podsec_forbidden_log_is_podsecds_own() {
    let node = Node::boot();
    create_dir_all(node.root().join("etc/kubernetes/audit")).expect("made");
    std::fs::write(node.root().join(AUDIT_LOG), event("e-1", 1)).expect("written");
    node.shell("systemctl enable --now podsecd");
    node.wait_until("forbidden.log has it", SOON, || lines(&node, "var/lib/podsecd/forbidden.log") == 1);
    assert!(!node.root().join("var/lib/podsec").exists(), "nothing of podsec is made");
    assert!(node.journal(&["PODSEC_FINDING=kubeapi/source-hidden"]).is_empty(), "there is no u7s-admin");
}

pub(crate) fn every_one_of_a_hundred_thousand_refusals_is_in_the_journal() {
    const COUNT: usize = 100_000;
    let node = podsec_node();
    let mut log = String::new();
    (0..COUNT).for_each(|number| log.push_str(&event(&format!("flood-{number}"), number)));
    append(&node, &log);
    let forbidden_log = "var/lib/podsec/u7s/log/kubeapi/forbidden.log";
    node.wait_until("forbidden.log has all", LATER, || lines(&node, forbidden_log) == COUNT);
    // The journal takes its time: forbidden.log does not wait for it.
    let (mut missing, mut last) = (COUNT, Instant::now());
    node.wait_until("the journal has all", LATER, || {
        let ids = node.shell(
            "journalctl --sync; journalctl -q --output=cat --output-fields=AUDIT_ID PODSEC_FINDING=kubeapi/forbidden",
        );
        let mut seen = vec![false; COUNT];
        for id in ids.lines() {
            let number: usize = id.strip_prefix("flood-").and_then(|number| number.parse().ok()).expect("one of ours");
            seen[number] = true;
        }
        let former = std::mem::replace(&mut missing, seen.iter().filter(|seen| !**seen).count());
        if missing < former {
            last = Instant::now();
        }
        assert!(missing == 0 || last.elapsed() < SOON, "{missing} are missing, and none of them comes");
        missing == 0
    });
}

pub(crate) fn events_wait_for_a_journald_that_is_away_and_the_mail_says_that_it_is() {
    let node = podsec_node();
    let sockets = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service";
    node.shell(&format!("systemctl stop {sockets} 2>/dev/null"));
    let mut log = String::new();
    (0..2000).for_each(|number| log.push_str(&event(&format!("away-{number}"), number)));
    append(&node, &log);
    node.wait_until("the status says that journald is away", SOON, || {
        node.shell("cat /run/podsecd/status.json").contains("self/journal-unavailable")
    });
    // The digest stays where it is looked at.
    node.shell("systemctl stop podsecd-mail.path podsecd-mail");
    // podsecd knows it a moment before it is on the disk.
    node.wait_until("a digest is made", SOON, || !node.shell("podsecctl digest send | grep way || true").is_empty());
    let digest = node.shell("cat /var/lib/podsecd/outbox/1.eml");
    assert!(digest.contains("self/journal-unavailable") && !digest.contains("refusal"), "{digest}");
    node.shell(&format!("systemctl start {sockets} podsecd-mail.path"));
    node.wait_until("all are there", LATER, || {
        node.shell("journalctl -q -o cat --output-fields=AUDIT_ID K8S_CODE=403 | sort -u | wc -l").trim() == "2000"
    });
    node.wait_until("the condition is cleared", SOON, || {
        !node.journal(&["PODSEC_FINDING=self/journal-unavailable", "PODSEC_KIND=cleared"]).is_empty()
    });
    assert_eq!(lines(&node, "var/lib/podsec/u7s/log/kubeapi/forbidden.log"), 2000);
}
