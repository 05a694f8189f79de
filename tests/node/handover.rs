//! What happens while no podsecd runs waits for the next one, with systemd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::kubeapi::{append, event, lines};
use crate::node::{Node, field};
use crate::podsec::{entries_since, now};

const SOON: Duration = Duration::from_secs(90);
const FORBIDDEN_LOG: &str = "var/lib/podsecd/forbidden.log";
/// The files of the container.
pub(crate) const FILES: &str = "/home/alice/.local/share/containers/storage/overlay/2222222222222222222222222222222222222222222222222222222222222222/diff";

/// A store of alice's with a container, as podman has it. What the container does is done by hand, which is quick enough for
/// the gap; `/home/alice/beside` is on the same file system, and nobody watches it.
pub(crate) const STORE: &str = r#"
useradd -m alice
store=/home/alice/.local/share/containers/storage
mkdir -p $store/overlay-layers $store/overlay-images $store/overlay-containers
layer=$(printf '2%.0s' $(seq 64)); container=$(printf 'c%.0s' $(seq 64))
echo "[{\"id\":\"$layer\"}]" >$store/overlay-layers/layers.json
echo '[]' >$store/overlay-images/images.json
echo "[{\"id\":\"$container\",\"names\":[\"web\"],\"layer\":\"$layer\",\"metadata\":\"{\\\"name\\\":\\\"web\\\"}\"}]" \
    >$store/overlay-containers/containers.json
for number in $(seq 0 3); do mkdir -p $store/overlay/$layer/diff/opt/$number; done
mkdir -p $store/overlay/$layer/diff/srv/old /home/alice/beside
echo x >$store/overlay/$layer/diff/srv/old/file
chown -R alice: /home/alice
install -d /etc/kubernetes/audit; install -m 0644 /dev/null /etc/kubernetes/audit/audit.log
echo '[watch]
gather = "1s"' >/etc/podsecd/podsecd.toml
"#;

/// Has podsecd start, and waits until it watches the container.
pub(crate) fn start(node: &Node) {
    node.shell("systemctl enable --now podsecd");
    let mut number = 0;
    node.wait_until("the container is watched", SOON, || {
        number += 1;
        node.shell(&format!("echo x >{FILES}/srv/probe{number}"));
        std::thread::sleep(Duration::from_millis(200));
        !node.journal(&["PODSEC_CHECK=containers"]).is_empty()
    });
    // All of these are told.
    std::thread::sleep(Duration::from_secs(3));
}

/// How often something was told of a path of the container since then: what, in the order in which it was told.
pub(crate) fn told(node: &Node, then: u64, path: &str) -> Vec<String> {
    let entries = entries_since(node, then, &["PODSEC_CHECK=containers", &format!("PODSEC_PATH={path}")]);
    entries.iter().map(|(_, entry)| field(entry, "PODSEC_CHANGE").concat()).collect()
}

/// Waits until nobody runs and the next one is still waiting to start.
pub(crate) fn wait_for_gap(node: &Node) {
    node.wait_until("nobody runs", SOON, || {
        node.shell("systemctl show --value -p SubState podsecd").trim() == "start-pre"
    });
}

/// From now on there is a gap between one podsecd and the next, until `end_gap`.
pub(crate) fn make_gap(node: &Node) {
    node.shell(
        r#"mkdir /etc/systemd/system/podsecd.service.d
        echo '[Service]
ExecStartPre=/bin/sh -c "until [ -e /run/gap-is-over ]; do sleep 0.1; done"' >/etc/systemd/system/podsecd.service.d/gap.conf
        systemctl daemon-reload"#,
    );
}

/// Nobody was started in the gap; now the next one is.
pub(crate) fn end_gap(node: &Node) {
    assert_eq!(node.shell("systemctl is-active podsecd || true"), "activating\n");
    node.shell(
        "touch /run/gap-is-over; until systemctl is-active --quiet podsecd; do sleep 0.1; done; rm /run/gap-is-over",
    );
}

fn node_with_gap() -> Node {
    let node = Node::boot();
    node.shell(STORE);
    start(&node);
    make_gap(&node);
    append(&node, &event("before", 0));
    node.wait_until("it reads", SOON, || lines(&node, FORBIDDEN_LOG) == 1);
    node
}

/// What a container and kube-apiserver do in the gap: what is no more when podsecd starts again nobody could find.
fn act(node: &Node, round: usize) {
    append(node, &event(&format!("rotated-{round}"), round));
    node.shell(&format!(
        "cd {FILES}
         echo x >opt/came{round}; rm opt/came{round}
         echo x >opt/stays{round}
         mkdir -p srv/old; echo x >srv/old/in{round}; rm -r srv/old
         cd /etc/kubernetes/audit
         mv audit.log audit-2026-11-22T03-05-0{round}.001.log; install -m 0644 /dev/null audit.log
         rm audit-2026-11-22T03-05-0{round}.001.log"
    ));
    append(node, &event(&format!("live-{round}"), 10 + round));
}

pub(crate) fn what_came_and_went_while_nobody_ran_is_told_once() {
    let node = node_with_gap();
    for (round, how) in ["kill --signal=KILL", "restart --no-block"].into_iter().enumerate() {
        // That what was in a directory went is only told if that was watched before.
        node.shell(&format!("mkdir -p {FILES}/srv/old; sleep 3"));
        let then = now(&node);
        node.shell(&format!("systemctl {how} podsecd"));
        wait_for_gap(&node);
        act(&node, round);
        end_gap(&node);
        let all = [
            (format!("/opt/came{round}"), vec!["created", "removed"]),
            (format!("/opt/stays{round}"), vec!["created"]),
            (format!("/srv/old/in{round}"), vec!["created", "removed"]),
        ];
        node.wait_until("all is told", SOON, || all.iter().all(|(path, _)| !told(&node, then, path).is_empty()));
        std::thread::sleep(Duration::from_secs(3));
        for (path, changes) in all {
            let mut told = told(&node, then, &path);
            told.sort();
            assert_eq!(told, changes, "{path}, after {how}");
        }
        node.wait_until("what was in the deleted log is there", SOON, || lines(&node, FORBIDDEN_LOG) == 3 + 2 * round);
        for (id, count) in [(format!("rotated-{round}"), 1), (format!("live-{round}"), 1)] {
            assert_eq!(node.journal(&[&format!("AUDIT_ID={id}")]).len(), count, "{id}, after {how}");
        }
    }
}

/// Files that come to a container, five in a second, and as many that are gone at once. They are in four directories, which
/// are told one by one however long it goes on. Of each of these eight are named of what is told together, and all counted.
pub(crate) struct Files(usize);

/// Begins to write so many.
pub(crate) fn write(node: &Node, count: usize) -> Files {
    // Each comes in one go, so that it is one change.
    node.shell(&format!(
        "rm -f {FILES}/opt/*/*; sleep 3
         systemd-run --quiet --collect --unit=writer sh -c 'cd /home/alice/beside
         for i in $(seq {count}); do
             to={FILES}/opt/$((i % 4))
             echo x >$i; mv $i $to
             echo x >went$i; mv went$i $to; rm $to/went$i
             sleep 0.2
         done'"
    ));
    Files(count)
}

impl Files {
    /// Waits until all are written and told.
    pub(crate) fn are_told_once(&self, node: &Node, then: u64) {
        node.wait_until("all are written", 3 * SOON, || !node.try_shell("systemctl is-active writer").status.success());
        let mut expected = Counts::new();
        let mut names = BTreeSet::new();
        for number in 1..=self.0 {
            let directory = format!("/opt/{}", number % 4);
            for (change, name) in [("replaced", ""), ("replaced", "went"), ("removed", "went")] {
                *expected.entry((directory.clone(), change.to_owned())).or_default() += 1;
                names.insert((format!("{directory}/{name}{number}"), change.to_owned()));
            }
        }
        let deadline = Instant::now() + SOON;
        let total = |counts: &Counts| counts.values().sum::<u64>();
        while total(&counted(node, then).0) < total(&expected) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
        // What of it nobody sees is sought, and would be told then.
        std::thread::sleep(Duration::from_secs(3));
        let (counts, named) = counted(node, then);
        assert_eq!(counts, expected, "what was told, of {}, by name: {named:?}", self.0);
        for name in &named {
            assert!(names.remove(name), "{name:?} is told twice, or was not done: {named:?}");
        }
    }
}

/// How often something was done with what is in a directory.
type Counts = BTreeMap<(String, String), u64>;

/// How much was told since then (exactly, as long as it is not thousands) of each directory in `/opt`, and what of it by name: what was done with which path.
fn counted(node: &Node, then: u64) -> (Counts, Vec<(String, String)>) {
    let (mut counts, mut named) = (Counts::new(), Vec::new());
    for (_, entry) in entries_since(node, then, &["PODSEC_CHECK=containers"]) {
        let (change, paths) = (field(&entry, "PODSEC_CHANGE").concat(), field(&entry, "PODSEC_PATH"));
        let Some((directory, _)) = paths.first().and_then(|path| path.rsplit_once('/')) else { continue };
        if directory.starts_with("/opt/") {
            let count: u64 = field(&entry, "PODSEC_COUNT").concat().parse().expect("a number");
            *counts.entry((directory.to_owned(), change.clone())).or_default() += count;
            named.extend(paths.into_iter().map(|path| (path, change.clone())));
        }
    }
    (counts, named)
}

/// How long nobody watched: from the end of the one to the readiness of the other, as systemd saw it.
pub(crate) fn gap(node: &Node) -> String {
    let shown = |of: &str| node.shell(&format!("systemctl show --value -p {of}TimestampMonotonic podsecd"));
    let micros = |of: &str| shown(of).trim().parse::<u64>().expect("a number");
    let [asked, ended, ready] = ["ActiveExit", "InactiveEnter", "ActiveEnter"].map(micros);
    format!(
        "{} ms from the end of the former podsecd to the readiness of the new one, {} ms from the stop on",
        (ready - ended) / 1000,
        (ready - asked) / 1000
    )
}

pub(crate) fn each_file_that_comes_while_podsecd_is_restarted_is_told_once() {
    let node = Node::boot();
    node.shell(STORE);
    node.shell(&format!("mkdir -p {FILES}/usr/bin; echo 'rescan = \"20s\"' >>/etc/podsecd/podsecd.toml"));
    start(&node);
    let then = now(&node);
    let files = write(&node, 60);
    for number in 0..3 {
        node.shell(&format!(
            "sleep 3; cp /bin/true /home/alice/beside/tool; mv /home/alice/beside/tool {FILES}/usr/bin/tool{number}
             systemctl restart podsecd"
        ));
        eprintln!("{}", gap(&node));
    }
    files.are_told_once(&node, then);
    // Whether programs are as they were is looked at again and again.
    std::thread::sleep(Duration::from_secs(25));
    for number in 0..3 {
        let told = told(&node, then, &format!("/usr/bin/tool{number}"));
        assert_eq!(told.len(), 1, "tool{number}: {told:?}");
    }
}

pub(crate) fn what_changes_while_the_configuration_does_is_told_once() {
    let node = Node::boot();
    node.shell(STORE);
    start(&node);
    let then = now(&node);
    let files = write(&node, 45);
    let stored = || node.shell("systemctl show --value -p NFileDescriptorStore podsecd").trim().to_owned();
    let kept = stored();
    let change = |gather: &str| {
        node.shell(&format!(
            "printf '[watch]\ngather = \"{gather}\"\n' >/etc/podsecd/podsecd.toml; systemctl reload podsecd"
        ));
    };
    for gather in ["2s", "1s", "2s", "1s"] {
        node.shell("sleep 1.2");
        change(gather);
    }
    // An end just then has no more to tell, and no less.
    change("2s");
    node.shell("systemctl restart podsecd");
    change("1s");
    files.are_told_once(&node, then);
    node.wait_until("as many are kept as before", SOON, || stored() == kept);
}

pub(crate) fn whoever_ends_before_all_is_looked_through_loses_nothing() {
    let node = Node::boot();
    node.shell(STORE);
    node.shell(&format!(
        "bash -c 'for i in $(seq 150); do mkdir -p {FILES}/srv/$i; (cd {FILES}/srv/$i; mkdir $(seq 100)); done'
         chown -R alice: {FILES}"
    ));
    start(&node);
    let then = now(&node);
    let files = write(&node, 60);
    // It says that it is ready before it has looked all through.
    for pause in [2.0, 0.0, 0.2, 0.5, 0.1, 1.0, 0.0] {
        node.shell(&format!("sleep {pause}; systemctl restart podsecd"));
    }
    files.are_told_once(&node, then);
}

pub(crate) fn a_journald_that_is_away_at_the_end_costs_nothing() {
    let node = Node::boot();
    node.shell(STORE);
    start(&node);
    let then = now(&node);
    let files = write(&node, 45);
    node.shell(
        "sleep 2; systemctl kill --signal=STOP systemd-journald
         (sleep 2; systemctl kill --signal=CONT systemd-journald) &
         systemctl restart podsecd; wait",
    );
    files.are_told_once(&node, then);
}

pub(crate) fn what_systemd_keeps_is_taken_over_or_given_back() {
    let node = Node::boot();
    node.shell(STORE);
    start(&node);
    let stored = || node.shell("systemctl show --value -p NFileDescriptorStore podsecd").trim().to_owned();
    append(&node, &event("first", 0));
    node.wait_until("it reads", SOON, || lines(&node, FORBIDDEN_LOG) == 1);
    let kept = stored();
    assert!(kept.parse::<u32>().expect("a number") >= 2, "the log and a store: {kept}");
    for how in ["restart", "kill --signal=KILL", "restart"] {
        let former = node.shell("systemctl show --value -p MainPID podsecd");
        node.shell(&format!("systemctl {how} podsecd"));
        node.wait_until("it runs again", SOON, || {
            node.shell("systemctl is-active podsecd || true") == "active\n"
                && node.shell("systemctl show --value -p MainPID podsecd") != former
        });
        node.wait_until(&format!("as many are kept after {how}"), SOON, || stored() == kept);
    }
    node.shell("systemctl stop podsecd");
    assert_eq!(stored(), "0", "whoever stops it wants nothing kept");
}
