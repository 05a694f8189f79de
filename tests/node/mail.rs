//! Digests on a real node with a real postfix: from the audit log to root's mailbox.

use std::time::Duration;

use crate::kubeapi::{append, event, lines, podsec_node};
use crate::node::Node;

const SOON: Duration = Duration::from_secs(30);
const FORBIDDEN_LOG: &str = "var/lib/podsec/u7s/log/kubeapi/forbidden.log";

/// A node whose digests come every two seconds.
fn quick_node() -> Node {
    let node = podsec_node();
    node.shell(
        "echo '[digest]
         period = \"2s\"' > /etc/podsecd/podsecd.toml
         systemctl restart podsecd",
    );
    node
}

/// The subjects of podsecd's mails in root's mailbox, in order, with the Message-ID of each.
fn mails(node: &Node) -> Vec<(String, String)> {
    let mailbox = node.mailbox("root");
    let header = |mail: &str, name: &str| {
        let line = mail.lines().find(|line| line.to_ascii_lowercase().starts_with(name)).unwrap_or_default();
        line[name.len().min(line.len())..].trim().to_owned()
    };
    let mails = mailbox.split("\nFrom ").map(|mail| (header(mail, "subject:"), header(mail, "message-id:")));
    mails.filter(|(_, id)| id.starts_with("<podsecd.")).collect()
}

pub(crate) fn a_refusal_is_in_roots_mailbox_and_leaves_forbidden_log() {
    let node = quick_node();
    append(&node, &event("mailed", 1));
    node.wait_until("root has the digest", SOON, || !mails(&node).is_empty());
    let mailbox = node.mailbox("root");
    assert!(mails(&node)[0].0.starts_with("[node] podsec CRITICAL: 1 refusal"), "{mailbox}");
    for part in ["alice: list secrets in namespace prod forbidden (403)", "Auto-Submitted: auto-generated"] {
        assert!(mailbox.contains(part), "{part} is not in {mailbox}");
    }
    let attached = node.shell("sed -n '/forbidden.log/,$p' /var/mail/root");
    assert!(attached.contains("filename=\"forbidden.log\""), "{attached}");
    node.wait_until("the line has left forbidden.log, and the digest the outbox", SOON, || {
        lines(&node, FORBIDDEN_LOG) == 0
            && node.shell("find /var/lib/podsecd/outbox /var/lib/podsecd/spool -name '1.*'").is_empty()
    });
    append(&node, &event("later", 2));
    node.wait_until("the next one is mailed", SOON, || mails(&node).len() == 2);
    assert_eq!(
        node.shell("podsecctl digest preview"),
        "nothing was found since the last digest: there will be no mail\n"
    );
    assert!(node.journal(&["PODSEC_FINDING=self/forbidden-log-changed"]).is_empty(), "podsecd itself changed it");
}

pub(crate) fn digests_wait_for_a_mail_system_that_is_down() {
    let node = quick_node();
    append(&node, &event("first", 1));
    node.wait_until("the first digest is there", SOON, || mails(&node).len() == 1);
    node.shell("systemctl stop 'postfix*'");
    for number in 2..6 {
        append(&node, &event(&format!("waits-{number}"), number));
        node.wait_until("a digest waits", SOON, || {
            node.shell("find /var/lib/podsecd/outbox -name '*.eml' | wc -l").trim() == (number - 1).to_string()
        });
    }
    node.wait_until("that is a condition", SOON, || {
        node.shell("cat /run/podsecd/status.json").contains("self/mail-failing")
    });
    node.shell("systemctl kill -s KILL podsecd podsecd-mail; systemctl start postfix");
    let number_of = |id: &str| id.split('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0_u32);
    let delivered = || mails(&node).iter().map(|(_, id)| number_of(id)).collect::<Vec<_>>();
    node.wait_until("all are delivered", 4 * SOON, || delivered().len() >= 5);
    node.wait_until("nothing waits", SOON, || node.shell("find /var/lib/podsecd/outbox -name '*.eml'").is_empty());
    let delivered = delivered();
    assert!(delivered.is_sorted_by(|one, next| one < next), "{delivered:?}");
    node.wait_until("the condition is cleared", SOON, || {
        !node.journal(&["PODSEC_FINDING=self/mail-failing", "PODSEC_KIND=cleared"]).is_empty()
    });
}

pub(crate) fn its_exposure_is_at_most_two() {
    let node = Node::boot();
    node.shell("systemd-analyze verify podsecd-mail.service podsecd-mail.path");
    let how = "--offline=true --threshold=20 /usr/lib/systemd/system/podsecd-mail.service";
    let answer = node.shell(&format!("systemd-analyze security --no-pager {how} | tail -n 1"));
    let exposure = answer.split("podsecd-mail.service: ").nth(1).and_then(|rest| rest.split(' ').next());
    let exposure: f64 = exposure.and_then(|number| number.parse().ok()).expect("a number");
    assert!(exposure <= 2.0, "{answer}");
}
