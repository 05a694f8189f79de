//! Port forwards on a node with the real rootlesskit and slirp4netns, in a user unit of u7s-admin. What listens inside are
//! stand-ins: socat under the names of the control plane, which answers what it is told.

use std::time::Duration;

use crate::kubeapi::podsec_node_with;
use crate::node::{Node, field};

pub(crate) const SOON: Duration = Duration::from_secs(90);
pub(crate) const LATER: Duration = Duration::from_secs(120);
/// Runs a command as u7s-admin with its runtime directory.
pub(crate) const AS_U7S: &str = "runuser -u u7s-admin -- env XDG_RUNTIME_DIR=/run/user/$(id -u u7s-admin)";
/// rootlesskit's API, for its own client.
const API: &str = "/run/user/$(id -u u7s-admin)/usernetes/rootlesskit/api.sock";

/// A node as podsec sets it up, with rootlesskit behind which a control plane listens, and podsecd-u7s.
pub(crate) fn u7s_node() -> Node {
    let node = podsec_node_with(include_str!("u7s"));
    node.shell("systemctl enable --now podsecd-u7s");
    node.wait_until("all forwards stand", SOON, || stand(&node));
    node
}

/// Whether all declared forwards stand.
fn stand(node: &Node) -> bool {
    node.try_shell("podsecctl forwards list").status.success()
}

/// Connects to the apiserver's forward all the time, and keeps the time of each connection that is refused.
fn traffic(node: &Node) {
    node.shell(
        // No process is between the refusal and its time.
        "systemd-run --quiet --unit=traffic --setenv=LC_ALL=C bash -c '
             while sleep 0.01; do
                 { : <>/dev/tcp/127.0.0.1/6443; } 2>/dev/null || echo $EPOCHREALTIME
             done > /run/refused'",
    );
}

/// The times of those that were refused behind the first `known`, in seconds.
fn refusals(node: &Node, known: usize) -> Vec<f64> {
    let times = node.shell(&format!("tail -n +{} /run/refused", known + 1));
    times.lines().map(|time| time.parse().expect("a time")).collect()
}

/// The longest gap that a message tells, in seconds.
fn longest_gap(message: &str) -> f64 {
    let longest = message
        .split("up to ")
        .nth(1)
        .or_else(|| message.split("at most ").nth(1))
        .and_then(|rest| rest.split(' ').next());
    longest.expect("a gap").parse().expect("a number")
}

/// The messages of an id in the journal, in order.
pub(crate) fn told(node: &Node, id: &str) -> Vec<String> {
    let entries = node.journal(&[&format!("PODSEC_FINDING={id}")]);
    entries.iter().map(|entry| field(entry, "MESSAGE").concat()).collect()
}

/// Writes podsecd.toml, and has both units read it.
pub(crate) fn configure(node: &Node, text: &str) {
    std::fs::write(node.root().join("etc/podsecd/podsecd.toml"), text).expect("written");
    node.shell("systemctl reload podsecd podsecd-u7s");
}

pub(crate) fn a_node_as_podsec_sets_it_up_has_metric_0_and_is_idle() {
    let node = u7s_node();
    let switches = || {
        let script =
            "cat /proc/$(systemctl show -P MainPID podsecd-u7s)/task/*/status | sed -n 's/^voluntary.*:\\t//p'";
        node.shell(script).split_whitespace().map(|count| count.parse::<u64>().expect("a number")).sum::<u64>()
    };
    std::thread::sleep(Duration::from_secs(10));
    // Where the machine is busy, a minute may have become longer.
    let is_idle = (0..3).any(|_| {
        let before = switches();
        std::thread::sleep(Duration::from_secs(60));
        let count = switches() - before;
        eprintln!("podsecd-u7s: {count} voluntary context switches in 60 s, of two probes");
        // A probe asks rootlesskit, and tells podsecd that we are here.
        count <= 24
    });
    assert!(is_idle);
    let size = node.shell("sed -n 's/^VmRSS:\\t *//p' /proc/$(systemctl show -P MainPID podsecd-u7s)/status");
    eprintln!("podsecd-u7s: VmRSS {size}");
    // Longer than what may be missing inside is missing before it is said.
    std::thread::sleep(Duration::from_secs(60));
    node.wait_until("the check is known", SOON, || node.shell("podsecctl check forwards || true").contains("metric"));
    let check = node.shell("podsecctl check forwards --json");
    assert!(check.contains("\"metric\":0"), "{check}");
    let exposed = told(&node, "forwards/exposed");
    assert_eq!(exposed.len(), 4, "that podsec offers etcd and the kubelet to all is said all the same: {exposed:?}");
}

pub(crate) fn every_forward_answers_again_after_twenty_kills_of_rootlesskit_under_traffic() {
    let node = u7s_node();
    node.shell("podsecctl forwards add 0.0.0.0:31000:6443/tcp");
    traffic(&node);
    let mut outside = Vec::new();
    for turn in 0..20 {
        let before = refusals(&node, 0).len();
        node.shell("pkill -KILL -u u7s-admin -o -x rootlesskit");
        node.wait_until("it is told that they stand again", SOON, || told(&node, "forwards/interrupted").len() > turn);
        node.wait_until("they stand", SOON, || stand(&node));
        for port in [2379, 2380, 6443, 10250, 31000] {
            let answer = || node.shell(&format!("echo ping | socat -t 2 - TCP:127.0.0.1:{port} || true"));
            node.wait_until("it answers", SOON, || answer() == "ping\n");
        }
        let times = refusals(&node, before);
        outside.push(times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first));
    }
    let gaps = told(&node, "forwards/interrupted");
    assert_eq!(gaps.len(), 20, "one event for each restart: {gaps:?}");
    let mut is_as_expected = Vec::new();
    for (gap, outside) in gaps.iter().zip(outside) {
        assert!(gap.starts_with("Low: 9 forwards stand again"), "{gap}");
        let longest = longest_gap(gap);
        eprintln!("gap: {longest:.3} s; connections were refused for {outside:.3} s");
        // What stood in between is not the forward's gap; and podsecd-u7s sees the end a moment after the first refusal.
        assert!(longest + 3.0 > outside, "refused for {outside} s, told {gap}");
        is_as_expected.push(longest < 5.0 && longest + 0.3 > outside);
    }
    // A busy machine may be late now and then; what is away for five seconds is down.
    assert!(is_as_expected.iter().filter(|is_it| **is_it).count() >= 17, "{is_as_expected:?}: {gaps:#?}");
    let is_down = gaps.iter().any(|gap| longest_gap(gap) >= 5.0);
    assert!(is_down || told(&node, "forwards/down").is_empty());
}

pub(crate) fn what_is_interrupted_while_nobody_looks_after_it_has_a_gap_too() {
    let node = u7s_node();
    configure(&node, "[u7s]\nprobe = \"2s\"\n");
    traffic(&node);
    let is_back =
        format!("sleep 1; until {AS_U7S} rootlessctl --socket={API} list-ports >/dev/null 2>&1; do sleep 0.1; done");
    for (turn, (interrupt, expected)) in [
        // Killed at once, and both are started again.
        ("systemctl kill -s KILL podsecd-u7s; pkill -KILL -u u7s-admin -o -x rootlesskit", "8 forwards stand"),
        // It ends, as for an upgrade, and is started when rootlesskit has been there again for long.
        (
            "systemctl stop podsecd-u7s; pkill -KILL -u u7s-admin -o -x rootlesskit; sleep 3; systemctl start podsecd-u7s",
            "8 forwards stand",
        ),
        // Somebody else adds a forward again before it is there.
        (
            &format!(
                "systemctl stop podsecd-u7s; pkill -KILL -u u7s-admin -o -x rootlesskit; {is_back}
                 {AS_U7S} rootlessctl --socket={API} add-ports 0.0.0.0:6443:6443/tcp; systemctl start podsecd-u7s"
            ),
            "8 forwards stand",
        ),
        // The same rootlesskit, but not the forward.
        (
            &format!(
                "systemctl stop podsecd-u7s
                 id=$({AS_U7S} rootlessctl --socket={API} list-ports | awk '/ 6443 /{{ print $1 }}')
                 {AS_U7S} rootlessctl --socket={API} remove-ports $id; sleep 1; systemctl start podsecd-u7s"
            ),
            "0.0.0.0:6443:6443/tcp stands",
        ),
        // podsecd-u7s goes when it has just begun to see to it.
        (
            &format!(
                "pkill -KILL -u u7s-admin -o -x rootlesskit; sleep 0.15; systemctl stop podsecd-u7s; {is_back}
                 {AS_U7S} rootlessctl --socket={API} add-ports 0.0.0.0:6443:6443/tcp ||
                     {AS_U7S} rootlessctl --socket={API} list-ports | grep -q ' 6443 '
                 systemctl start podsecd-u7s"
            ),
            "8 forwards stand",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        node.wait_until("they stand", SOON, || stand(&node));
        // A probe has seen that.
        std::thread::sleep(Duration::from_secs(3));
        let before = refusals(&node, 0).len();
        node.shell(interrupt);
        node.wait_until("it is told", SOON, || told(&node, "forwards/interrupted").len() > turn);
        let gap = told(&node, "forwards/interrupted").remove(turn);
        assert!(gap.contains(expected), "{gap}");
        let outside = refusals(&node, before);
        let outside = outside.last().zip(outside.first()).map_or(0.0, |(last, first)| last - first);
        let longest = longest_gap(&gap);
        eprintln!("gap: {longest:.3} s at most; connections were refused for {outside:.3} s");
        assert!(
            outside > 0.0 && longest + 1.0 > outside && longest < outside + 15.0,
            "refused for {outside} s, told {gap}"
        );
    }
    // A restart of podsecd-u7s alone interrupts nothing.
    node.shell("systemctl restart podsecd-u7s; systemctl kill -s KILL podsecd-u7s");
    node.wait_until("they stand", SOON, || stand(&node));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(told(&node, "forwards/interrupted").len(), 5);
}

pub(crate) fn a_strangers_port_is_told_with_who_has_it_and_never_taken_from_him() {
    let node = u7s_node();
    node.shell(&format!(
        "systemd-run --quiet --unit=stranger --uid=nobody socat TCP-LISTEN:31000,fork,reuseaddr EXEC:cat
         systemd-run --quiet --unit=kin --uid=u7s-admin socat TCP-LISTEN:31001,fork,reuseaddr EXEC:cat
         {AS_U7S} rootlessctl --socket {API} add-ports 0.0.0.0:31002:80/tcp"
    ));
    node.wait_until("they listen", SOON, || {
        node.shell("ss -Hltn 'sport >= 31000 and sport <= 31002' | wc -l") == "3\n"
    });
    for port in [31000, 31001, 31002] {
        let added = node.try_shell(&format!("podsecctl forwards add 0.0.0.0:{port}:6443/tcp"));
        let said = String::from_utf8_lossy(&added.stdout).into_owned();
        assert!(!added.status.success() && said.contains("is kept, and does not stand yet (conflict"), "{said}");
    }
    let conflicts =
        || told(&node, "forwards/conflict").into_iter().filter(|it| it.contains("raised")).collect::<Vec<_>>();
    node.wait_until("all are told", SOON, || conflicts().len() == 3);
    let kin = node.shell("systemctl show -P MainPID kin").trim().to_owned();
    for part in ["a process of user id 65534", &format!("process {kin} (socat)"), "forward 0.0.0.0:31002:80/tcp"] {
        assert!(conflicts().iter().any(|conflict| conflict.contains(part)), "{part}: {:?}", conflicts());
    }
    assert_eq!(node.shell("ss -Hltn 'sport >= 31000 and sport <= 31002' | wc -l"), "3\n", "nothing was taken");
    // Whoever is told to remove the other forward does so; when the strangers go, ours are there.
    node.shell("systemctl stop stranger kin; podsecctl forwards remove 0.0.0.0:31002:80/tcp");
    node.wait_until("all stand", LATER, || stand(&node));
    assert_eq!(node.shell("echo ping | socat -t 2 - TCP:127.0.0.1:31002"), "ping\n");
    node.wait_until("it is cleared", SOON, || told(&node, "forwards/conflict").len() == 6);
}

/// rootlesskit gives up a forward when it has no descriptor left, and lists it still.
pub(crate) fn a_zombie_is_removed_and_added_again() {
    let node = u7s_node();
    configure(&node, "[u7s]\nprobe = \"2s\"\n");
    node.shell(
        "pid=$(pgrep -o -u u7s-admin -x rootlesskit)
         runuser -u u7s-admin -- prlimit --pid $pid --nofile=$(($(ls /proc/$pid/fd | wc -l) + 1)):$(ulimit -Hn)
         for i in 1 2 3 4; do (sleep 1 | socat - TCP:127.0.0.1:6443 2>/dev/null || true) & done; wait
         runuser -u u7s-admin -- prlimit --pid $pid --nofile=$(ulimit -Hn)",
    );
    let zombie = || told(&node, "forwards/zombie");
    node.wait_until("it is told and mended", SOON, || zombie().len() == 2);
    assert!(zombie()[0].starts_with("Critical: raised: 0.0.0.0:6443:6443/tcp: rootlesskit lists it"), "{:?}", zombie());
    assert!(zombie()[1].starts_with("Low: cleared: "), "{:?}", zombie());
    assert_eq!(node.shell("echo ping | socat -t 2 - TCP:127.0.0.1:6443"), "ping\n");
}

pub(crate) fn forwards_of_udp_and_ipv6_are_like_others() {
    let node = u7s_node();
    node.shell(
        "child=$(cat /run/user/$(id -u u7s-admin)/usernetes/rootlesskit/child_pid)
         systemd-run --quiet --unit=inside nsenter --net -t $child socat UDP-LISTEN:5300,fork EXEC:cat",
    );
    let declare = "declare = [\"0.0.0.0:31053:5300/udp\", \"0.0.0.0:31054:5301/udp\", \"[::1]:31006:6443/tcp6\"]";
    configure(&node, &format!("[u7s]\nprobe = \"2s\"\n[forwards]\n{declare}\n"));
    node.wait_until("a datagram comes back", SOON, || {
        node.shell("echo ping | socat -t 1 - UDP:127.0.0.1:31053 || true") == "ping\n"
    });
    node.wait_until("all stand", SOON, || {
        let list = node.shell("podsecctl forwards list || true");
        ["31053", "31054", "31006"]
            .iter()
            .all(|port| list.lines().any(|line| line.contains(port) && line.contains(" up")))
    });
    node.shell("ss -Hln6t 'sport = 31006' | grep -F '[::1]:31006'");
    let missed =
        || told(&node, "forwards/no-listener").into_iter().filter(|told| told.contains(":3105")).collect::<Vec<_>>();
    node.wait_until("that nobody listens inside is told", LATER, || !missed().is_empty());
    assert!(missed().iter().all(|told| told.contains("31054")), "{:?}", missed());
    // Somebody takes the port while rootlesskit is away.
    node.shell(&format!(
        "{AS_U7S} systemctl --user stop rootlesskit
         systemd-run --quiet --unit=stranger --uid=nobody socat UDP-LISTEN:31053,fork EXEC:cat
         {AS_U7S} systemctl --user start rootlesskit"
    ));
    let conflict = || told(&node, "forwards/conflict");
    node.wait_until("who has it is told", LATER, || {
        conflict().iter().any(|told| told.contains("31053") && told.contains("65534"))
    });
    node.shell("systemctl stop stranger");
    node.wait_until("it stands when he is gone", LATER, || conflict().len() == 2);
}

pub(crate) fn a_rootlesskit_that_takes_no_forwards_is_one_condition() {
    let node = u7s_node();
    node.shell(&format!(
        "sed -i 's/ --port-driver=builtin/ --port-driver=none/' /var/lib/u7s-admin/.config/systemd/user/rootlesskit.service
         {AS_U7S} systemctl --user daemon-reload; {AS_U7S} systemctl --user restart rootlesskit"
    ));
    node.wait_until("it is told", LATER, || told(&node, "forwards/no-port-driver").len() == 1);
    assert!(told(&node, "forwards/down").is_empty() && told(&node, "forwards/api-unavailable").is_empty());
    node.shell(&format!(
        "sed -i 's/ --port-driver=none/ --port-driver=slirp4netns/' /var/lib/u7s-admin/.config/systemd/user/rootlesskit.service
         {AS_U7S} systemctl --user daemon-reload; {AS_U7S} systemctl --user restart rootlesskit"
    ));
    // It listens in a process of its own.
    node.wait_until("all stand with another driver", LATER, || stand(&node));
    node.wait_until("it is cleared", LATER, || told(&node, "forwards/no-port-driver").len() == 2);
    assert!(told(&node, "forwards/zombie").is_empty(), "{:?}", told(&node, "forwards/zombie"));
}

pub(crate) fn a_second_podsecd_u7s_does_not_start() {
    let node = u7s_node();
    let second = node.try_shell("runuser -u u7s-admin -- podsecd u7s");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another podsecd is running"), "{said}");
    assert!(stand(&node));
}

/// A server in the place of rootlesskit's API, as anybody with u7s-admin's user id can put one there.
pub(crate) fn an_api_that_hangs_lies_or_closes_is_one_condition_and_no_spin() {
    let node = u7s_node();
    configure(&node, "[u7s]\nprobe = \"2s\"\n");
    node.shell(&format!(
        "ln {API} {API}.real
         cat > /usr/local/bin/liar <<'END'
#!/bin/sh
read -r request
printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\n[7]'
sleep 0.1
END
         chmod 755 /usr/local/bin/liar"
    ));
    let time = || node.shell("cut -d' ' -f14,15 /proc/$(systemctl show -P MainPID podsecd-u7s)/stat | tr ' ' +");
    let ticks = || time().trim().split('+').map(|ticks| ticks.parse::<u64>().expect("a number")).sum::<u64>();
    for (at, (server, says)) in [
        ("EXEC:'sleep 1000'", "no answer within 10 s"),
        ("SYSTEM:'head -c 3000 /dev/urandom'", "no HTTP answer"),
        ("EXEC:/usr/local/bin/liar", "not an answer of rootlesskit"),
        ("SYSTEM:true", "no HTTP answer"),
    ]
    .into_iter()
    .enumerate()
    {
        node.shell(&format!(
            "systemd-run --quiet --unit=server{at} --uid=u7s-admin socat UNIX-LISTEN:{API}.other,fork,mode=755 {server}
             while ! [ -S {API}.other ]; do sleep 0.01; done; mv -f {API}.other {API}"
        ));
        let raised = || told(&node, "forwards/api-unavailable").into_iter().filter(|it| it.contains("raised"));
        node.wait_until("it is told", LATER, || raised().count() == at + 1);
        let last = raised().next_back().unwrap_or_default();
        assert!(last.contains(says), "{last}");
        let (before, start) = (ticks(), std::time::Instant::now());
        std::thread::sleep(Duration::from_secs(6));
        let (used, passed) = (ticks() - before, start.elapsed().as_secs());
        eprintln!("{says}: {used} ticks of 10 ms in {passed} s");
        assert!(used < 5 * passed, "a twentieth of a processor is too much: {used} ticks in {passed} s");
        assert!(stand(&node), "they stand, and the kernel says so");
        assert_eq!(raised().count(), at + 1, "once is enough");
        node.shell(&format!("systemctl stop server{at}; ln {API}.real {API}.back; mv -f {API}.back {API}"));
        node.wait_until("it is cleared", LATER, || told(&node, "forwards/api-unavailable").len() == 2 * (at + 1));
    }
}

/// A stand-in for the apiserver: it lists no Service, and tells of those that are written to a file.
pub(crate) fn node_ports_come_and_go_with_their_services_and_stay_while_the_api_is_away() {
    let node = u7s_node();
    node.shell(
        "cat > /usr/local/bin/services-api <<'END'
#!/bin/sh
read -r method path version
case $path in
*watch=*) printf 'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\n\\r\\n'; exec tail -n +1 -f /run/watch ;;
esac
list='{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"7\"},\"items\":[]}'
printf 'HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n%s' ${#list} \"$list\"
END
         chmod 755 /usr/local/bin/services-api; : > /run/watch
         cat > /etc/podsecd/kubeconfig <<'END'
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: 'http://127.0.0.1:8001'}}]
users: [{name: podsecd-u7s, user: {token: t0ken}}]
contexts: [{name: node, context: {cluster: node, user: podsecd-u7s}}]
current-context: node
END
         chown u7s-admin /etc/podsecd/kubeconfig; chmod 600 /etc/podsecd/kubeconfig",
    );
    let serve = "systemd-run --quiet --collect --unit=api socat TCP-LISTEN:8001,fork,reuseaddr EXEC:/usr/local/bin/services-api";
    node.shell(serve);
    configure(&node, "[forwards]\nkubeconfig = \"/etc/podsecd/kubeconfig\"\n");
    let tell = |kind: &str, name: &str, port: u16| {
        let service = serde_json::json!({"type": kind, "object": {"kind": "Service", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": port.to_string()},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}}});
        node.shell(&format!("echo '{service}' >> /run/watch"));
    };
    let listed = |port: u16| {
        let list = node.try_shell("podsecctl forwards list").stdout;
        let list = String::from_utf8_lossy(&list).into_owned();
        list.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().take(3).collect();
            words == [&format!("0.0.0.0:{port}:{port}/tcp"), "service", "up"]
        })
    };
    tell("ADDED", "web", 31000);
    tell("ADDED", "root", 2222);
    node.wait_until("the port of the Service is forwarded", SOON, || listed(31000));
    assert!(!listed(2222), "what is not in the range is not");
    node.shell("systemctl stop api; systemctl restart podsecd-u7s; pkill -KILL -u u7s-admin -o -x rootlesskit");
    node.wait_until("it stands again without the API", SOON, || listed(31000));
    node.wait_until("that the API is away is told", LATER, || !told(&node, "forwards/services-unavailable").is_empty());
    tell("DELETED", "web", 31000);
    node.shell(serve);
    node.wait_until("it goes with the Service", LATER, || node.shell("ss -Hltn 'sport = 31000'").is_empty());
    assert!(told(&node, "forwards/undeclared").is_empty(), "podsecd knows the range");
}

pub(crate) fn podsecd_says_what_u7s_admins_user_id_offers_and_that_its_helper_is_silent() {
    let node = u7s_node();
    node.shell("systemd-run --quiet --unit=escaped --uid=u7s-admin socat TCP-LISTEN:4444,fork,reuseaddr EXEC:cat");
    let undeclared = || told(&node, "forwards/undeclared");
    node.wait_until("it is told", LATER, || !undeclared().is_empty());
    assert!(undeclared()[0].starts_with("Critical: raised: user id ") && undeclared()[0].contains("*:4444/tcp"));
    // Who has its user id can stop podsecd-u7s, too.
    node.shell("runuser -u u7s-admin -- kill -s STOP $(systemctl show -P MainPID podsecd-u7s)");
    node.wait_until("it is missed", LATER, || !told(&node, "self/helper-silent").is_empty());
    node.shell("runuser -u u7s-admin -- kill -s CONT $(systemctl show -P MainPID podsecd-u7s); systemctl stop escaped");
    node.wait_until("both are cleared", LATER, || {
        undeclared().len() == 2 && told(&node, "self/helper-silent").len() == 2
    });
}

pub(crate) fn what_happens_while_podsecd_is_down_is_told_when_it_is_there_again() {
    let node = u7s_node();
    node.shell("systemctl stop podsecd; pkill -KILL -u u7s-admin -o -x rootlesskit");
    node.wait_until("the forwards stand again without it", SOON, || stand(&node));
    node.shell("podsecctl forwards add 0.0.0.0:31000:6443/tcp 2>&1 | grep 'podsecd does not know of it'");
    node.shell("systemctl start podsecd");
    node.wait_until("it is told", SOON, || told(&node, "forwards/interrupted").len() == 1);
    node.wait_until("what it does not know of is undeclared", LATER, || {
        told(&node, "forwards/undeclared").first().is_some_and(|told| told.contains("*:31000/tcp"))
    });
    node.shell("podsecctl forwards add 0.0.0.0:31000:6443/tcp");
    node.wait_until("until it does", LATER, || told(&node, "forwards/undeclared").len() == 2);
    // Over a restart of both.
    node.shell("systemctl restart podsecd podsecd-u7s; pkill -KILL -u u7s-admin -o -x rootlesskit");
    node.wait_until("what was added stands", SOON, || {
        stand(&node) && node.shell("podsecctl forwards list").contains("0.0.0.0:31000:6443/tcp   administrator")
    });
}

pub(crate) fn its_exposure_is_at_most_two() {
    let node = Node::boot();
    node.shell("systemd-analyze verify podsecd-u7s.service podsecd-u7s.socket");
    let how = "--offline=true --threshold=20 /usr/lib/systemd/system/podsecd-u7s.service";
    let answer = node.shell(&format!("systemd-analyze security --no-pager {how} | tail -n 1"));
    eprintln!("{answer}");
    let exposure = answer.split("podsecd-u7s.service: ").nth(1).and_then(|rest| rest.split(' ').next());
    let exposure: f64 = exposure.and_then(|number| number.parse().ok()).expect("a number");
    assert!(exposure <= 2.0, "{answer}");
}
