//! Digests on a real node with a real postfix: from the audit log to root's mailbox.

use std::time::Duration;

use crate::kubeapi::{append, event, lines, podsec_node};
use crate::node::{Node, field};

const SOON: Duration = Duration::from_secs(90);
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
    node.wait_until("the next one is mailed", SOON, || mails(&node).len() >= 2);
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
            let count = node.shell("find /var/lib/podsecd/outbox -name '*.eml' | wc -l");
            // That mail does not arrive may have one of its own.
            count.trim().parse::<usize>().expect("a number") >= number - 1
        });
    }
    node.wait_until("that is a condition", SOON, || {
        node.shell("cat /run/podsecd/status.json").contains("self/mail-failing")
    });
    // postfix delivers one after the other only if it is told to.
    node.shell("postconf -e local_destination_concurrency_limit=1");
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

/// ALT guarantees no mail system at all.
pub(crate) fn without_a_mail_system_that_is_a_condition_with_its_remedy() {
    let node = quick_node();
    node.shell(
        "systemctl disable --now postfix; systemctl stop 'postfix*'; rm -f /usr/sbin/sendmail /usr/lib/sendmail",
    );
    append(&node, &event("unmailed", 1));
    let unconfigured = ["PODSEC_FINDING=self/mail-unconfigured"];
    node.wait_until("it is said", SOON, || !node.journal(&unconfigured).is_empty());
    node.wait_until("the status says so", SOON, || {
        let status = node.shell("podsecctl status");
        ["Low self/mail-unconfigured", "apt-get install postfix", " wait to"].iter().all(|part| status.contains(part))
    });
    assert!(node.journal(&["PODSEC_FINDING=self/mail-failing"]).is_empty());
    let waits = ["PODSEC_FINDING=self/mail-unconfigured", "PODSEC_KIND=raised"];
    append(&node, &event("unmailed-too", 2));
    // That there is no mail system may have a digest of its own.
    node.wait_until("the next digest waits, too", SOON, || {
        node.shell("grep -l 'CRITICAL: 1 refusal' /var/lib/podsecd/outbox/*.eml | wc -l") == "2\n"
    });
    assert_eq!(node.journal(&waits).len(), 1, "once is enough");
    // A maildir is no mail system, and will do.
    node.shell(
        "printf '[mail]\\ntransport = \"maildir\"\\n' >> /etc/podsecd/podsecd.toml
         systemctl restart podsecd-mail",
    );
    node.wait_until("it is cleared", SOON, || {
        let conditions = node.shell("cat /run/podsecd/status.json");
        !conditions.split("\"counts\"").next().unwrap_or_default().contains("self/mail-unconfigured")
    });
    let mails = node.shell("cat /var/lib/podsecd-mail/Maildir/new/*");
    assert!(mails.contains("alice: list secrets"), "{mails}");
}

pub(crate) fn postfixs_sendmail_takes_digests_where_a_drop_in_gives_its_group() {
    let node = quick_node();
    node.shell(
        "mkdir /etc/systemd/system/podsecd-mail.service.d
         sed -n '/^#   /s/^#   //p' /usr/lib/systemd/system/podsecd-mail.service \\
             > /etc/systemd/system/podsecd-mail.service.d/sendmail.conf
         systemctl daemon-reload
         printf '[mail]\\ntransport = \"sendmail\"\\n' >> /etc/podsecd/podsecd.toml",
    );
    append(&node, &event("by-sendmail", 1));
    node.wait_until("root has the digest", SOON, || !mails(&node).is_empty());
    assert!(node.mailbox("root").contains("alice: list secrets"));
}

pub(crate) fn a_test_alert_reaches_journal_status_and_mailbox() {
    let node = podsec_node();
    let said = node.shell("podsecctl test-alert");
    assert_eq!(said.matches(" arrived ").count(), 3, "{said}");
    // postfix has it by then, and delivers it a moment later.
    node.wait_until("root has it", SOON, || node.mailbox("root").contains("user 0 tries whether alerts arrive"));
}

pub(crate) fn only_root_and_the_group_podsecd_reach_the_control_socket() {
    let node = podsec_node();
    node.shell("useradd -m stranger; useradd -m -G podsecd watch");
    let ask = |user: &str| node.try_shell(&format!("runuser -u {user} -- podsecctl digest send"));
    let refused = ask("stranger");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("are you root or in the group podsecd?"), "{words}");
    let asked = ask("watch");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    // It is there again after a kill, and goes with podsecd.
    node.shell("systemctl kill -s KILL podsecd");
    node.wait_until("it is back", SOON, || ask("watch").status.success());
    node.shell("systemctl restart podsecd");
    assert!(ask("watch").status.success());
    node.shell("systemctl stop podsecd");
    assert!(!ask("watch").status.success());
    assert_eq!(node.shell("systemctl is-active podsecd podsecd-control.socket || true"), "inactive\ninactive\n");
}

pub(crate) fn strangers_cannot_report() {
    let node = podsec_node();
    let said = node.shell("runuser -u nobody -- socat -t 30 - /run/podsecd-in/findings.sock </dev/null");
    assert!(said.contains("user 65534 is no helper of podsecd"), "{said}");
}

pub(crate) fn a_refused_digest_is_reported_with_the_servers_reason_and_can_be_tried_again() {
    let node = quick_node();
    node.shell("echo 'to = \"nobody.such\"' >> /etc/podsecd/podsecd.toml; systemctl reload podsecd");
    append(&node, &event("refused", 1));
    let refused = ["PODSEC_FINDING=self/mail-refused"];
    node.wait_until("it is said", SOON, || !node.journal(&refused).is_empty());
    let message = field(&node.journal(&refused)[0], "MESSAGE").concat();
    assert!(message.contains("550") && message.contains("set aside"), "{message}");
    node.shell("sed -i '/nobody/d' /etc/podsecd/podsecd.toml; systemctl reload podsecd");
    append(&node, &event("not-refused", 2));
    node.wait_until("the next one is mailed", SOON, || !mails(&node).is_empty());
    node.shell("podsecctl digest send");
    node.wait_until("so is the refused one", SOON, || node.mailbox("root").contains("\"refused\""));
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
