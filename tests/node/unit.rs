//! podsecd.service under systemd.

use std::time::Duration;

use crate::kubeapi::{append, event, podsec_node_with};
use crate::node::{Node, field};

const SOON: Duration = Duration::from_secs(90);

pub(crate) fn its_exposure_is_at_most_one() {
    let node = Node::boot();
    node.shell("systemd-analyze verify podsecd.service && systemctl enable --now podsecd");
    for how in ["", "--offline=true --threshold=10 /usr/lib/systemd/system/"] {
        let answer = node.shell(&format!("systemd-analyze security --no-pager {how}podsecd.service | tail -n 1"));
        let exposure = answer.split("podsecd.service: ").nth(1).and_then(|rest| rest.split(' ').next());
        let exposure: f64 = exposure.and_then(|number| number.parse().ok()).expect("a number");
        assert!(exposure <= 1.0, "{answer}");
    }
}

pub(crate) fn it_starts_reloads_restarts_and_stops() {
    let node = Node::boot();
    let shown = |property: &str| node.shell(&format!("systemctl show --value -p {property} podsecd")).trim().to_owned();
    node.shell("systemctl enable --now podsecd");
    assert_eq!((shown("ActiveState").as_str(), shown("User").as_str()), ("active", "_podsecd"));
    let process = shown("MainPID");
    node.shell("echo 'nonsense = 1' > /etc/podsecd/podsecd.toml; systemctl reload podsecd");
    node.wait_until("the new configuration is refused", SOON, || {
        !node.journal(&["PODSEC_FINDING=self/config-refused", "PODSEC_KIND=raised"]).is_empty()
    });
    assert_eq!(shown("MainPID"), process, "the former configuration stays in force");
    node.shell("echo 'metric-window = \"5min\"' > /etc/podsecd/podsecd.toml; systemctl reload podsecd");
    node.wait_until("the new configuration is taken", SOON, || {
        let cleared = node.journal(&["PODSEC_FINDING=self/config-refused", "PODSEC_KIND=cleared"]);
        cleared.iter().any(|entry| field(entry, "PODSEC_LEVEL") == ["Low"])
    });
    node.shell("systemctl restart podsecd; systemctl is-active podsecd; systemctl stop podsecd");
    assert_eq!((shown("ActiveState").as_str(), shown("Result").as_str()), ("inactive", "success"));
}

pub(crate) fn a_wrong_configuration_is_not_tried_again() {
    let node = Node::boot();
    node.shell("echo 'nonsense = 1' > /etc/podsecd/podsecd.toml");
    assert!(!node.try_shell("systemctl start podsecd").status.success());
    assert_eq!(node.shell("systemctl show --value -p ExecMainStatus -p NRestarts podsecd").trim(), "0\n78");
    let entries = node.journal(&["SYSLOG_IDENTIFIER=podsecd"]);
    assert!(
        entries.iter().any(|entry| field(entry, "MESSAGE")[0].contains("/etc/podsecd/podsecd.toml:1")),
        "{entries:?}"
    );
}

pub(crate) fn what_the_readme_says_of_the_first_five_minutes_works() {
    let backup = event("before", 0);
    let node = podsec_node_with(&format!(
        "cat >/etc/kubernetes/audit/audit-2026-11-22T03-05-05.001.log <<'END'\n{backup}END\n"
    ));
    let (_, section) = include_str!("../../README.md").split_once("\n## The first five minutes\n").expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let commands: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(commands.len(), 5, "{commands:?}");
    for command in commands {
        let answer = node.shell(command);
        assert!(answer.lines().count() > 0, "{command}");
        eprintln!("$ {command}\n{answer}");
    }
    let history = node.journal(&["PODSEC_HISTORY=1"]);
    assert_eq!(history.iter().flat_map(|entry| field(entry, "AUDIT_ID")).collect::<Vec<_>>(), ["before"]);
    let time = node.shell("date -u +%Y-%m-%dT%H:%M:%S");
    append(&node, &event("now", 1).replace("2026-11-22T02:58:59", time.trim()));
    node.wait_until("a moment later it is told", SOON, || {
        let last = node.shell("journalctl -t podsec-inotify-check-kubeapi -n 1 -o json");
        last.contains("\"AUDIT_ID\":\"now\"") && !last.contains("PODSEC_HISTORY")
    });
}

pub(crate) fn a_worker_misses_no_audit_log() {
    let node = Node::boot();
    node.shell("systemctl enable --now podsecd");
    node.wait_until("it says that there is none", SOON, || {
        node.shell("podsecctl status").contains("\naudit log: none, and none is expected of this node\n")
    });
    assert_eq!(node.journal(&["PODSEC_FINDING=self/audit-log-unavailable"]).len(), 0);
    assert!(node.shell("podsecctl check kubeapi").starts_with("KUBEAPI OK: "));
    // It becomes one of the control plane: podsecd looks in its next turn.
    node.shell("mkdir -p /etc/kubernetes/manifests; touch /etc/kubernetes/manifests/kube-apiserver.yaml");
    node.wait_until("it is missed", 2 * SOON, || {
        !node.journal(&["PODSEC_FINDING=self/audit-log-unavailable", "PODSEC_KIND=raised"]).is_empty()
    });
    // Monitoring does not have to wait until something else happens.
    node.wait_until("it can be asked for", Duration::from_secs(10), || {
        let said = node.try_shell("podsecctl check kubeapi").stdout;
        said.starts_with(b"KUBEAPI UNKNOWN: nothing is watched: ")
    });
}

pub(crate) fn it_comes_back_when_it_is_killed() {
    let node = Node::boot();
    node.shell("systemctl enable --now podsecd; systemctl kill -s KILL podsecd");
    node.wait_until("it runs again", SOON, || {
        node.shell("systemctl show --value -p NRestarts podsecd; systemctl is-active podsecd || true") == "1\nactive\n"
    });
}

pub(crate) fn it_waits_for_room_on_a_full_disk() {
    let node = Node::boot();
    node.shell(
        "mkdir -p /etc/kubernetes/audit; install -d -o _podsecd /var/lib/podsecd
         mount -t tmpfs -o size=1m,uid=$(id -u _podsecd) tmpfs /var/lib/podsecd
         systemctl enable --now podsecd
         head -c 2M /dev/zero > /var/lib/podsecd/filler || true
         for i in $(seq 300); do
           printf '{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"auditID\":\"full-%d\",\"stage\":\"ResponseComplete\",\"user\":{\"username\":\"a\"},\"responseStatus\":{\"code\":403},\"requestReceivedTimestamp\":\"2026-11-22T02:58:59Z\"}\\n' $i
         done >> /etc/kubernetes/audit/audit.log",
    );
    node.wait_until("the status says that there is no room", SOON, || {
        node.shell("cat /run/podsecd/status.json").contains("self/state-unwritable")
    });
    node.shell("rm /var/lib/podsecd/filler");
    node.wait_until("forbidden.log has all", SOON, || {
        node.shell("wc -l < /var/lib/podsecd/forbidden.log").trim() == "300"
    });
    node.wait_until("the condition is cleared", SOON, || node.shell("podsecctl status").contains("no open conditions"));
}
