//! Check `containers` on a real node: what a rootless podman's containers do.

use serde_json::Value;

use crate::handover;
use crate::node::{Node, field};
use crate::podsec::{SOON, check, entries_since, now, registry_node};

const RUN: &str = "as alice podman run --quiet -d --name=web --network=none --cgroups=disabled --user=33 \
    registry.local/signed:1 /busybox sleep 1000";

/// What was told of containers from then on with that id, if anything.
fn told(node: &Node, then: u64, id: &str) -> Option<Value> {
    let entries = entries_since(node, then, &["PODSEC_CHECK=containers", &format!("PODSEC_FINDING=containers/{id}")]);
    entries.into_iter().next().map(|(_, entry)| entry)
}

/// Waits for it.
fn wait_for(node: &Node, then: u64, id: &str) -> Value {
    let mut entry = None;
    node.wait_until(&format!("{id} is told"), SOON, || {
        entry = told(node, then, id);
        entry.is_some()
    });
    entry.expect("told")
}

pub(crate) fn what_a_container_does_is_told_with_container_image_user_and_path() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    node.shell(RUN);
    let started = wait_for(&node, then, "started");
    let id = node.shell("as alice podman inspect --format='{{.Id}}' web").trim().to_owned();
    // What the container's user 33 is on the node, as the kernel says.
    let pid = node.shell("as alice podman inspect --format='{{.State.Pid}}' web").trim().to_owned();
    let uid = node.shell(&format!("stat -c %u /proc/{pid}")).trim().to_owned();
    let whose = ["PODSEC_CONTAINER", "PODSEC_CONTAINER_ID", "PODSEC_IMAGE", "PODSEC_USER", "PODSEC_HOST_UID"];
    let of_web = ["web", &id, "registry.local/signed:1", "alice", &uid];
    assert_eq!(whose.map(|name| field(&started, name).concat()), of_web);
    let said = check(&node, "containers");
    assert!(said.starts_with("CONTAINERS OK: metric 0 (Low)"), "what the runtime makes is no alarm: {said}");

    // A file that has become setuid before anybody has seen it is created, not changed in attributes: so one after the other.
    for (command, finding, change, path) in [
        ("/busybox mkdir /opt; /busybox cp /busybox /opt/su", "file-changed", "created", "/opt/su"),
        ("/busybox chmod u+s /opt/su", "setuid-file", "attributes", "/opt/su"),
    ] {
        node.shell(&format!("as alice podman exec --user=0 web /busybox sh -c '{command}'"));
        let is_it = |entry: &Value| {
            field(entry, "PODSEC_PATH").contains(&path.to_owned()) && field(entry, "PODSEC_CHANGE") == [change]
        };
        let matches = ["PODSEC_CHECK=containers".to_owned(), format!("PODSEC_FINDING=containers/{finding}")];
        let mut found = Vec::new();
        node.wait_until(&format!("{path} is told"), SOON, || {
            found = entries_since(&node, then, &matches);
            found.retain(|(_, entry)| is_it(entry));
            !found.is_empty()
        });
        assert_eq!(whose.map(|name| field(&found[0].1, name).concat()), of_web);
        assert_eq!(field(&found[0].1, "PODSEC_LEVEL"), ["Critical"]);
    }

    let before = now(&node);
    node.shell("as alice podman rm -f -t 0 web");
    let stopped = wait_for(&node, before, "stopped");
    assert_eq!(whose[..4].iter().map(|name| field(&stopped, name).concat()).collect::<Vec<_>>(), of_web[..4]);
    assert_eq!(["PODSEC_REASON", "PODSEC_EXIT_CODE"].map(|name| field(&stopped, name).concat()), ["signal", "137"]);
    // What is told last is told a second after the first change of it.
    node.shell("sleep 2");
    assert_eq!(entries_since(&node, before, &["PODSEC_CHECK=containers"]).len(), 1, "its removal is no alarm");
}

pub(crate) fn the_exit_code_of_every_container_is_told() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    let run =
        "as alice podman run --quiet --rm --network=none --cgroups=disabled registry.local/signed:1 /busybox sh -c";
    node.shell(&format!("for code in 0 1 2 3 4 5 6 7 8 9; do {run} \"/busybox sleep 1; exit $code\" || true; done"));
    let mut codes = Vec::new();
    node.wait_until("all are told", SOON, || {
        let entries = entries_since(&node, then, &["PODSEC_FINDING=containers/stopped"]);
        codes = entries.iter().map(|(_, entry)| field(entry, "PODSEC_EXIT_CODE").concat()).collect();
        codes.len() == 10
    });
    // Of one whose exit file was gone, podsecd has asked the journal first.
    codes.sort();
    assert_eq!(codes, (0..10).map(|code| code.to_string()).collect::<Vec<_>>());
    assert_eq!(entries_since(&node, then, &["PODSEC_FINDING=containers/started"]).len(), 10);
}

pub(crate) fn an_exit_code_that_was_missed_is_the_one_in_the_users_journal() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    node.shell(&RUN.replace("sleep 1000", "sh -c 'trap \"exit 42\" TERM; while :; do /busybox sleep 0.1; done'"));
    wait_for(&node, then, "started");
    // Whoever forges an entry is another user.
    let id = node.shell("as alice podman inspect --format='{{.Id}}' web").trim().to_owned();
    let forged = format!("PODMAN_EVENT=died\nPODMAN_ID={id}\nPODMAN_EXIT_CODE=0\nMESSAGE=x\n");
    node.shell("systemctl kill --signal=STOP podsecd");
    node.shell("as alice podman stop web");
    node.shell(&format!("printf '{}' | as bob logger --journald", forged.replace('\n', "\\n")));
    node.shell("systemctl kill --signal=CONT podsecd");
    let stopped = wait_for(&node, then, "stopped");
    assert_eq!(["PODSEC_REASON", "PODSEC_EXIT_CODE"].map(|name| field(&stopped, name).concat()), ["exit", "42"]);
}

pub(crate) fn a_stop_while_podsecd_is_restarted_is_told_once_with_its_exit_code() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    node.shell(&RUN.replace("sleep 1000", "sh -c 'trap \"exit 42\" TERM; while :; do /busybox sleep 0.1; done'"));
    wait_for(&node, then, "started");
    handover::make_gap(&node);
    let then = now(&node);
    node.shell("systemctl restart --no-block podsecd");
    handover::wait_for_gap(&node);
    // Whoever cleans up takes the exit code away before podsecd is there again.
    node.shell("as alice podman stop web");
    handover::end_gap(&node);
    let stopped = wait_for(&node, then, "stopped");
    assert_eq!(["PODSEC_REASON", "PODSEC_EXIT_CODE"].map(|name| field(&stopped, name).concat()), ["exit", "42"]);
    node.shell("sleep 3");
    for (finding, count) in [("stopped", 1), ("started", 0)] {
        assert_eq!(
            entries_since(&node, then, &[format!("PODSEC_FINDING=containers/{finding}")]).len(),
            count,
            "{finding}"
        );
    }
}

pub(crate) fn a_stop_just_before_podsecd_ends_is_told_once() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let mut then = now(&node);
    for round in 0..3 {
        node.shell(&RUN.replace("--name=web", &format!("--name=web{round}")));
        wait_for(&node, then, "started");
        then = now(&node);
        // Whoever cleans up may be faster than podsecd, which asks the journal then.
        node.shell(&format!("as alice podman stop -t 0 web{round}; systemctl restart podsecd"));
        let stopped = wait_for(&node, then, "stopped");
        assert_eq!(
            ["PODSEC_CONTAINER", "PODSEC_USER"].map(|name| field(&stopped, name).concat()),
            [format!("web{round}"), "alice".to_owned()]
        );
        node.shell("sleep 3");
        let stops = entries_since(&node, then, &["PODSEC_FINDING=containers/stopped"]);
        assert_eq!(stops.len(), 1, "{stops:#?}");
        then = now(&node);
    }
}

pub(crate) fn what_a_container_did_that_is_gone_by_the_restart_is_told_with_whose_it_was() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    node.shell(RUN);
    wait_for(&node, then, "started");
    node.shell("as alice podman exec --user=0 web /busybox mkdir /opt");
    wait_for(&node, then, "file-changed");
    handover::make_gap(&node);
    let then = now(&node);
    node.shell("systemctl restart --no-block podsecd");
    handover::wait_for_gap(&node);
    node.shell("as alice podman exec --user=0 web /busybox sh -c 'echo x >/opt/late'; as alice podman rm -f -t 0 web");
    handover::end_gap(&node);
    for (id, path) in [("file-changed", "/opt/late"), ("stopped", "")] {
        let told = wait_for(&node, then, id);
        let whose = ["PODSEC_CONTAINER", "PODSEC_IMAGE", "PODSEC_USER", "PODSEC_PATH"];
        assert_eq!(whose.map(|name| field(&told, name).concat()), ["web", "registry.local/signed:1", "alice", path]);
    }
    node.shell("sleep 3");
    assert_eq!(entries_since(&node, then, &["PODSEC_CHECK=containers"]).len(), 2, "its removal is no alarm");
}

pub(crate) fn an_end_that_conmon_cannot_tell_is_told_by_the_containers_control_group() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    // Where the host has no controllers, it cannot have a limit.
    node.shell(&RUN.replace("--cgroups=disabled", "--pids-limit=0"));
    wait_for(&node, then, "started");
    let [conmon, pid] = ["ConmonPidFile", "State.Pid"]
        .map(|of| node.shell(&format!("as alice podman inspect --format='{{{{.{of}}}}}' web")).trim().to_owned());
    node.shell(&format!("kill -9 $(cat {conmon}); kill -9 {pid}"));
    let stopped = wait_for(&node, then, "stopped");
    assert_eq!(field(&stopped, "PODSEC_CONTAINER"), ["web"]);
    assert_eq!(field(&stopped, "PODSEC_REASON"), ["unknown"]);
    assert_eq!(field(&stopped, "PODSEC_EXIT_CODE"), Vec::<String>::new());
    assert_eq!(entries_since(&node, then, &["PODSEC_FINDING=containers/stopped"]).len(), 1);
}
