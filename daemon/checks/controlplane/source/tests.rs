//! The source on a node in a directory, without any bus.

use std::fs;
use std::time::SystemTime;

use super::super::assess::{Assessor, Clocks};
use super::super::processes::tests::Node;
use super::super::seen::{Part, Unit};
use super::super::units::tests::{Daemon, Said, signal};
use super::*;

/// Until something that is on its way has come.
const SOON: Duration = Duration::from_secs(20);

struct Running {
    turn: Arc<Notify>,
    messages: mpsc::Receiver<Message>,
}

fn start(node: &Node, settings: Settings) -> Running {
    let (turn, (sender, messages)) = (Arc::new(Notify::new()), mpsc::channel(1));
    let state_directory = node.path("run/user/495/usernetes/rootlesskit");
    let root = Some(node.path(""));
    spawn(Task { settings, uid: 495, state_directory, root }, Arc::clone(&turn), sender);
    Running { turn, messages }
}

impl Running {
    async fn observation(&mut self) -> Observation {
        match timeout(SOON, self.messages.recv()).await.expect("in time").expect("it runs") {
            Message::Observed(observation) => *observation,
            Message::Failed(why) => panic!("{why}"),
        }
    }

    async fn is_silent(&mut self) -> bool {
        timeout(SETTLING * 3, self.messages.recv()).await.is_err()
    }
}

#[tokio::test]
async fn it_looks_at_its_start_and_at_each_turn_and_not_else() {
    let node = Node::new();
    node.write("etc/passwd", "u7s-admin:x:495:495::/var/lib/u7s-admin:/bin/bash\n");
    node.write("etc/kubernetes/manifests/kube-apiserver.yaml", "");
    node.write("proc/21/net/tcp", "  sl  local_address\n   0: 00000000:094B 00000000:0000 0A 0:0 00:0 0 0 0 7 1\n");
    let mut running = start(&node, Settings::default());
    let seen = running.observation().await;
    assert_eq!((seen.role, seen.unseen.as_deref()), (Role::ControlPlane, None));
    assert!(seen.managers.values().all(Result::is_err), "there is no bus: {:?}", seen.managers);
    let processes = seen.processes.as_ref().expect("seen");
    assert_eq!((processes.parts.len(), processes.pods), (8, Some(6)));
    let asked: Vec<_> = seen.health.as_ref().expect("a turn").keys().copied().collect();
    assert_eq!(asked, [Target::Etcd], "of another tree nobody is asked over the network");
    assert!(running.is_silent().await);
    fs::remove_dir_all(node.path("proc/31")).expect("removed");
    running.turn.notify_one();
    let seen = running.observation().await;
    assert!(!seen.processes.expect("seen").parts.contains_key(&Part::Kubelet));
    assert!(running.is_silent().await);
}

#[tokio::test]
async fn what_cannot_be_read_is_said_and_the_rest_is_seen() {
    let node = Node::new();
    fs::remove_dir_all(node.path("proc")).expect("removed");
    let settings = toml::from_str("role = \"control-plane\"\nhealth = \"off\"").expect("valid");
    let mut running = start(&node, settings);
    let seen = running.observation().await;
    assert!(seen.unseen.is_some_and(|why| why.contains("proc: No such file")));
    assert_eq!((seen.role, seen.processes, seen.health), (Role::ControlPlane, None, None));
    assert!(seen.units.is_empty() && !seen.units.contains_key(&Unit::U7s));

    // A link to itself, as what cannot be looked at.
    let node = Node::new();
    node.write("etc/passwd", "u7s-admin:x:495:495::/var/lib/u7s-admin:/bin/bash\n");
    node.write("etc/kubernetes/manifests/x", "");
    let manifest = node.path("etc/kubernetes/manifests/etcd.yaml");
    std::os::unix::fs::symlink(&manifest, &manifest).expect("linked");
    let mut running = start(&node, toml::from_str("health = \"off\"").expect("valid"));
    let unseen = running.observation().await.unseen;
    assert!(unseen.as_ref().is_some_and(|why| why.starts_with("/etc/kubernetes/manifests: ")), "{unseen:?}");
}

#[tokio::test]
async fn a_podsec_node_that_is_seen_whole_has_no_condition() {
    let node = Node::new();
    node.write("etc/passwd", "u7s-admin:x:495:495::/var/lib/u7s-admin:/bin/bash\n");
    node.write("etc/kubernetes/manifests/etcd.yaml", "");
    node.write("proc/21/net/tcp", "  sl  local_address\n   0: 00000000:094B 00000000:0000 0A 0:0 00:0 0 0 0 7 1\n");
    let mut running = start(&node, Settings::default());
    let (mut assessor, start) = (Assessor::new(Settings::default()), Instant::now());
    for turn in 0..3 {
        let mut seen = running.observation().await;
        // What is of buses is tested with them.
        seen.managers.clear();
        let now = Clocks { at: start + Duration::from_secs(1000 * turn), time: SystemTime::UNIX_EPOCH };
        assert_eq!(assessor.assess(seen, now), []);
        assert_eq!(assessor.conditions(), BTreeMap::new());
        running.turn.notify_one();
    }
}

#[tokio::test]
async fn it_ends_when_nobody_receives() {
    let node = Node::new();
    let mut running = start(&node, Settings::default());
    running.observation().await;
    let turn = Arc::downgrade(&running.turn);
    drop(running);
    let ended = async {
        while turn.strong_count() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, ended).await.expect("ended");
}

#[tokio::test]
async fn a_signal_has_the_units_looked_at_and_what_is_down_started_if_that_is_wanted() {
    let node = Node::new();
    let directory = node.path("run/user/495");
    let Some(_daemon) = Daemon::start(&directory).await else { return };
    let said = Said::default();
    said.set(Unit::Rootlesskit, "active", 0);
    said.set(Unit::Kubelet, "active", 0);
    let systemd = said.clone().serve(directory.join("bus")).await;
    // Here is no manager of the system, which would know whether all of it was stopped.
    let settings = "without = [\"u7s.service\"]\n[[restart]]\nunit = \"kubelet.service\"";
    let settings = toml::from_str(settings).expect("valid");
    let mut running = start(&node, settings);
    let seen = running.observation().await;
    assert_eq!(seen.managers[&Bus::User], Ok(()));
    assert_eq!(seen.units[&Unit::Kubelet].active, "active");
    said.take_calls();
    said.set(Unit::Kubelet, "failed", 0);
    for _ in 0..50 {
        signal(&systemd, Unit::Kubelet).await;
    }
    let seen = running.observation().await;
    assert_eq!((&*seen.units[&Unit::Kubelet].active, seen.health), ("failed", None), "no endpoint is asked for that");
    assert!(running.is_silent().await, "many signals are one reason");
    sleep(Duration::from_secs(5)).await;
    running.turn.notify_one();
    let seen = running.observation().await;
    assert_eq!(seen.actions, [Action { unit: Unit::Kubelet, attempt: 1, limit: 5, outcome: Ok(()) }]);
    assert!(said.take_calls().contains(&"RestartUnit kubelet.service replace".to_owned()));
    running.turn.notify_one();
    assert_eq!(running.observation().await.actions, [], "the next one comes later");
}
