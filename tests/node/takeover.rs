//! `podsecctl takeover`: the switch from podsec-inotify to podsecd on a node, and back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::kubeapi::{PODSEC, append, event, lines};
use crate::node::{Node, field};

const SOON: Duration = Duration::from_secs(90);
const FORBIDDEN_LOG: &str = "var/lib/podsec/u7s/log/kubeapi/forbidden.log";

/// Stand-ins with the names of podsec-inotify's units, which want each other as those do and start nothing of it; the one that
/// follows the audit log appends to forbidden.log when it starts.
fn install_stand_ins(root: &Path) {
    let put = |unit: &str, text: &str| {
        fs::write(root.join("usr/lib/systemd/system").join(format!("podsec-inotify-check-{unit}")), text)
            .expect("written");
    };
    let line = r#"["2000-01-01T00:00:00.000000Z",null,null]"#;
    let follow = format!("/bin/sh -c 'printf \"%%s\\n\" \\'{line}\\' >> /{FORBIDDEN_LOG}; exec sleep infinity'");
    for (name, start) in [("containers", "/bin/sleep infinity"), ("kubeapi", &follow)] {
        let service = format!("[Service]\nExecStart={start}\nRestart=always\n[Install]\nWantedBy=multi-user.target\n");
        put(&format!("{name}.service"), &service);
    }
    for name in ["images", "policy", "vuln", "kubeapi-mail"] {
        let unit = format!("podsec-inotify-check-{name}");
        let service = format!("[Unit]\nWants={unit}.timer\n[Service]\nType=oneshot\nExecStart=/bin/true\n");
        put(&format!("{name}.service"), &format!("{service}[Install]\nWantedBy=multi-user.target\n"));
        let timer = format!("[Unit]\nRequires={unit}.service\n[Timer]\nUnit={unit}.service\nOnCalendar=hourly\n");
        put(&format!("{name}.timer"), &format!("{timer}[Install]\nWantedBy=timers.target\n"));
    }
}

/// A node as podsec sets it up, with an audit log of ten refusals, of which a backup has the first five.
fn podsec_node() -> Node {
    let node = Node::boot_with(install_stand_ins);
    node.shell(&[
        PODSEC,
        "systemctl enable --now podsec-inotify-check-kubeapi.service podsec-inotify-check-containers.service
         systemctl enable --now podsec-inotify-check-images.timer podsec-inotify-check-policy.timer
         systemctl enable --now podsec-inotify-check-vuln.timer
         systemctl start podsec-inotify-check-kubeapi-mail.timer
         systemctl mask podsec-inotify-check-policy.service 2>/dev/null; systemctl stop podsec-inotify-check-policy.timer
         mkdir -p /var/spool/cron; echo '0 * * * * podsec-inotify-check-kubeapi -m' > /var/spool/cron/root",
    ]
    .concat());
    (0..5).for_each(|number| append(&node, &event(&format!("e-{number}"), number)));
    node.shell(
        "cd /etc/kubernetes/audit; mv audit.log audit-2026-11-22T03-00-00.000.log
         install -o u7s-admin -m 0600 /dev/null audit.log",
    );
    (5..10).for_each(|number| append(&node, &event(&format!("e-{number}"), number)));
    node
}

/// What podsec-inotify writes of an event.
fn told(number: usize) -> String {
    let message = "podsec-inotify-check-vuln[1]: Critical: forged\nline";
    let line = serde_json::json!([format!("2026-11-22T02:58:59.{number:06}Z"), "127.0.0.1", message]);
    format!("{line}\n")
}

/// How all units of podsec-inotify are, and podsecd.
fn states(node: &Node) -> String {
    // What was started last may still be on its way.
    node.shell(
        "for try in $(seq 100); do
             [ -n \"$(systemctl list-jobs --no-legend; systemctl list-units --no-legend --state=activating)\" ] || break
             sleep 0.1
         done
         for unit in $(cd /usr/lib/systemd/system; ls podsec-inotify-check-*) podsecd.service; do
             echo $unit $(systemctl show --value -p UnitFileState $unit) $(systemctl show --value -p ActiveState $unit)
         done",
    )
}

fn takeover(node: &Node, options: &str) -> Output {
    node.try_shell(&format!("podsecctl takeover {options}"))
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().escape_ascii().to_string().replace("\\n", "\n")
}

/// Takes over, which has to succeed and to say this.
fn take(node: &Node, options: &str, words: &[&str]) {
    let output = takeover(node, options);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    words.iter().for_each(|words| assert!(said.contains(words), "{words} is missing in {said}"));
}

/// Is refused, and told this.
fn refused(node: &Node, options: &str, words: &[&str]) {
    let output = takeover(node, options);
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    words.iter().for_each(|words| assert!(said.contains(words), "{words} is missing in {said}"));
}

/// The events that podsecd has told in the journal.
fn told_in_journal(node: &Node) -> BTreeSet<String> {
    let entries = node.journal(&["PODSEC_FINDING=kubeapi/forbidden"]);
    let ids: Vec<_> = entries.iter().flat_map(|entry| field(entry, "AUDIT_ID")).collect();
    let told: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(told.len(), ids.len(), "none is told twice: {ids:?}");
    told
}

/// Nobody is said to have changed forbidden.log.
fn assert_no_alarm(node: &Node) {
    let alarms = node.journal(&["PODSEC_FINDING=self/forbidden-log-changed"]);
    assert!(alarms.is_empty(), "{alarms:?}");
}

fn events(numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|number| format!("e-{number}")).collect()
}

pub(crate) fn it_switches_tells_what_podsec_inotify_did_not_and_goes_back() {
    let node = podsec_node();
    let forbidden_log: String = (0..7).map(told).collect();
    fs::write(node.root().join(FORBIDDEN_LOG), forbidden_log + &told(7)[..20]).expect("written");
    let before = states(&node);
    for unit in
        ["kubeapi.service enabled active", "kubeapi-mail.timer disabled active", "podsecd.service disabled inactive"]
    {
        assert!(before.contains(unit), "{before}");
    }

    let shown: Value = serde_json::from_slice(&takeover(&node, "--json").stdout).expect("JSON");
    assert_eq!(shown["asked"], "systemd");
    assert_eq!((&shown["begins"]["at"], &shown["begins"]["file"]), (&"event".into(), &"audit.log".into()), "{shown}");
    assert_eq!(shown["begins"]["received"], "2026-11-22T02:58:59.000006Z");
    let mail = serde_json::json!(
        { "unit": "podsec-inotify-check-kubeapi-mail.timer", "enabled": "disabled", "active": "active" });
    assert!(shown["units"].as_array().expect("a list").contains(&mail), "{shown}");
    let nobody = "setpriv --reuid=nobody --clear-groups podsecctl takeover";
    assert!(said(&node.try_shell(&format!("{nobody} --yes"))).contains("run it as root"));
    assert!(said(&node.try_shell(nobody)).contains("where podsecd begins cannot be said"));
    assert_eq!(states(&node), before, "showing changes nothing");

    take(
        &node,
        "--yes",
        &[
            "turned off: podsec-inotify-check-kubeapi.service podsec-inotify-check-kubeapi-mail.timer\n",
            "behind the event that podsec-inotify told last, of 2026-11-22T02:58:59.000006Z: audit.log from byte",
            "enabled and started: podsecd.service",
            "turned off: podsec-inotify-check-containers.service podsec-inotify-check-images.timer podsec-inotify-check-policy.timer\n",
            "kept, as podsecd looks for no known vulnerabilities: podsec-inotify-check-vuln.timer\n",
            "systemctl enable --now podsecd-u7s",
            "/var/spool/cron/root:1: 0 * * * * podsec-inotify-check-kubeapi -m\n",
        ],
    );
    let off = states(&node);
    let on: Vec<_> = off.lines().filter(|line| line.contains(" enabled") || line.ends_with(" active")).collect();
    assert_eq!(on, ["podsec-inotify-check-vuln.timer enabled active", "podsecd.service enabled active"], "{off}");
    assert!(off.contains("policy.service masked inactive"), "{off}");
    append(&node, &event("e-10", 10));
    node.wait_until("it has read all", SOON, || lines(&node, FORBIDDEN_LOG) == 4);
    assert_eq!(told_in_journal(&node), events(7..11), "what podsec-inotify told is not told again");
    assert_eq!(node.shell(&format!("wc -l < /{FORBIDDEN_LOG}.podsec-inotify")), "7\n", "podsec-inotify's list is kept");
    assert_no_alarm(&node);

    take(&node, "--yes", &["podsecd is enabled and runs, and nothing of podsec-inotify is on"]);
    take(&node, "--yes --vuln", &["turned off: podsec-inotify-check-vuln.timer\n", "nobody looks for known"]);
    node.shell("systemctl is-active podsecd; test $(stat -c %U /var/lib/podsecd/checkpoint.json) = _podsecd");

    take(&node, "--undo", &["disabled: podsecd.service", "stopped: podsecd.service", "the takeover is undone"]);
    assert_eq!(states(&node), before);
    let whose = format!("stat -c %U /{FORBIDDEN_LOG} /{FORBIDDEN_LOG}.1");
    assert_eq!(node.shell(&whose), "root\n_podsecd\n", "each has its own list again");
    refused(&node, "--undo", &["there is nothing to undo"]);
    append(&node, &event("e-11", 11));
    take(&node, "--yes", &["podsecd goes on where it is in the audit log: it has read it before"]);
    node.wait_until("it has read all", SOON, || {
        node.shell(&whose).starts_with("_podsecd") && lines(&node, FORBIDDEN_LOG) == 1
    });
    assert_eq!(told_in_journal(&node), events(7..12));
    assert_no_alarm(&node);
}

pub(crate) fn what_has_no_match_is_read_from_the_oldest_backup_and_a_step_that_fails_is_repeated() {
    let node = podsec_node();
    fs::write(node.root().join(FORBIDDEN_LOG), told(99)).expect("written");
    let before = states(&node);
    node.shell("cp /etc/podsecd/podsecd.toml /root; echo 'nonsense = 1' >> /etc/podsecd/podsecd.toml");
    refused(&node, "--yes", &["podsecd.toml", "nonsense"]);
    assert_eq!(states(&node), before, "what podsecd would not take changes nothing");

    let drop_in = "/etc/systemd/system/podsecd.service.d/fail.conf";
    node.shell(&format!(
        "mv /root/podsecd.toml /etc/podsecd/podsecd.toml; mkdir -p $(dirname {drop_in})
         printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' > {drop_in}; systemctl daemon-reload"
    ));
    refused(&node, "--yes", &["systemctl enable --now podsecd.service failed", "repeat podsecctl takeover --yes"]);
    let half = states(&node);
    for unit in ["kubeapi.service disabled inactive", "containers.service enabled active"] {
        assert!(half.contains(unit), "what watches containers watches until podsecd does: {half}");
    }
    take(&node, "--undo", &["enabled again: podsec-inotify-check-kubeapi.service\n"]);
    // It was stopped between two starts, or as one of them failed.
    node.shell("systemctl reset-failed podsecd || true");
    assert_eq!(states(&node), before, "also half a takeover can be undone");

    refused(&node, "--yes", &["failed"]);
    // systemd starts it again every second: stopped, it reads nothing before the takeover is repeated.
    node.shell(&format!("systemctl stop podsecd; rm {drop_in}; systemctl daemon-reload"));
    take(
        &node,
        "--yes",
        &["at the oldest backup of the audit log: no event in the audit log matches what podsec-inotify told last"],
    );
    node.wait_until("it has read all", SOON, || lines(&node, FORBIDDEN_LOG) == 10);
    assert_eq!(told_in_journal(&node), events(0..10));
    take(&node, "--undo", &["the takeover is undone"]);
    assert_eq!(states(&node), before, "a takeover that was repeated goes back to how it began");

    // A pipe in the place of the list, which u7s-admin can put there, keeps nobody from watching.
    node.shell(&format!("rm -r /var/lib/podsecd/*; rm /{FORBIDDEN_LOG}; mkfifo /{FORBIDDEN_LOG}"));
    take(&node, "--yes", &["at the oldest backup of the audit log: forbidden.log cannot be used"]);
    take(&node, "--undo", &["the takeover is undone"]);
    // Without a takeover, too, the list of podsec-inotify is no change by somebody else.
    node.shell(&format!(
        "systemctl stop 'podsec-inotify-check-*'; rm -r /var/lib/podsecd/*; rm -f /{FORBIDDEN_LOG}*
         echo line > /{FORBIDDEN_LOG}; systemctl start podsecd"
    ));
    node.wait_until("it has read all", SOON, || lines(&node, FORBIDDEN_LOG) == 10);
    assert_no_alarm(&node);
}
