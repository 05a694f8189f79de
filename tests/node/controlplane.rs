//! The rootless control plane on a node with the real rootlesskit and real user units; what CRI-O would run are stand-ins (see
//! `kubernetes`).

use std::time::Duration;

use crate::forwards::{AS_U7S, LATER, SOON, configure, told, u7s_node};
use crate::node::Node;

/// A node with all that podsec starts, and podsecd-u7s that looks often.
fn control_plane(settings: &str) -> Node {
    let node = u7s_node();
    std::fs::write(node.root().join("usr/local/bin/kubernetes"), include_str!("kubernetes")).expect("written");
    node.shell("chmod 755 /usr/local/bin/kubernetes; kubernetes");
    configure(&node, &format!("[u7s]\nprobe = \"2s\"\n[controlplane]\nhealth = \"off\"\n{settings}"));
    node.shell("systemctl restart podsecd-u7s");
    node
}

pub(crate) fn a_control_plane_that_runs_has_metric_0_and_each_part_that_goes_is_missed() {
    let node = control_plane("");
    // Longer than a node may take to start.
    std::thread::sleep(Duration::from_secs(190));
    let check = node.shell("podsecctl check controlplane --json || true");
    // Hosts of tests have no controllers of version 2 to delegate.
    let check: serde_json::Value = serde_json::from_str(&check).expect("JSON");
    let counts =
        |finding: &&serde_json::Value| finding["weight"] != 0 && finding["id"] != "controlplane/cgroup-not-delegated";
    let counting: Vec<_> = check["findings"].as_array().expect("a list").iter().filter(counts).collect();
    assert!(counting.is_empty(), "{counting:?}");
    // One that is named like it, in a pod of somebody's, is none.
    node.shell("pkill -KILL -o -x kube-scheduler");
    node.wait_until("it is missed", LATER, || {
        told(&node, "controlplane/component-missing").iter().any(|told| told.contains("kube-scheduler"))
    });
    node.shell("kubernetes again 256");
    node.wait_until("it is there again", LATER, || told(&node, "controlplane/component-missing").len() == 2);
    // Who moves the manifests away has nothing missed any more; that is told, though nobody was there to see it.
    node.shell(
        "systemctl stop podsecd podsecd-u7s; mkdir /root/manifests; mv /etc/kubernetes/manifests/*.yaml /root/manifests
         systemctl start podsecd podsecd-u7s",
    );
    node.wait_until("it is told", LATER, || told(&node, "controlplane/role-changed").len() == 1);
}

pub(crate) fn units_that_end_are_told_and_started_again_only_if_that_is_wanted() {
    let node = control_plane("");
    let kill = || node.shell(&format!("pid=$({AS_U7S} systemctl --user show -P MainPID kubelet); kill -KILL $pid"));
    for turn in 1..=3 {
        kill();
        node.wait_until("each start is told", LATER, || told(&node, "controlplane/restarted").len() >= turn);
        node.wait_until("it runs", SOON, || {
            node.shell(&format!("{AS_U7S} systemctl --user is-active kubelet || true")) == "active\n"
        });
    }
    node.wait_until("that it is often is a condition", LATER, || !told(&node, "controlplane/restarting").is_empty());
    // systemd stops the kubelet with rootlesskit, and starts only rootlesskit again.
    node.shell("pkill -KILL -u u7s-admin -o -x rootlesskit");
    let down = || told(&node, "controlplane/unit-down").into_iter().filter(|told| told.contains("kubelet.service"));
    node.wait_until("it is told", LATER, || down().count() == 1);
    configure(
        &node,
        "[u7s]\nprobe = \"2s\"\n[controlplane]\nhealth = \"off\"\nrestart = [{ unit = \"kubelet.service\" }]\n",
    );
    node.wait_until("the try is told", LATER, || !told(&node, "controlplane/restart-tried").is_empty());
    node.wait_until("it is up", LATER, || down().count() == 2);
}

pub(crate) fn who_runs_as_real_root_is_told() {
    let node = control_plane("");
    node.shell(
        "printf '[Service]\\nExecStart=/usr/local/lib/u7s/kubelet infinity\\n' > /etc/systemd/system/kubelet.service
         systemctl daemon-reload; systemctl start kubelet",
    );
    node.wait_until("it is told", LATER, || !told(&node, "controlplane/real-root").is_empty());
    node.shell("systemctl stop kubelet; systemctl reset-failed kubelet || true");
    node.wait_until("it is cleared", LATER, || {
        told(&node, "controlplane/real-root").iter().any(|told| told.contains("cleared"))
    });
    // In no unit of that name.
    node.shell("systemd-run --quiet --unit=other /usr/local/lib/u7s/kube-apiserver infinity");
    node.wait_until("it is told, too", LATER, || {
        told(&node, "controlplane/real-root").iter().any(|told| told.contains("kube-apiserver"))
    });
}
