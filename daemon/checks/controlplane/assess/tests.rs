//! What is judged how, by tables.

use std::sync::LazyLock;

use super::super::seen::Child;
use super::super::settings::{Restart, RestartUnit};
use super::*;

fn at(seconds: u64) -> Clocks {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let passed = Duration::from_secs(seconds);
    // The clock of the findings is set all the time; no period is by it.
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000).saturating_sub(passed * 1_000_000);
    Clocks { at: *START + passed, time }
}

fn state(active: &str) -> UnitState {
    let (sub, result) = if active == "active" { ("running", "success") } else { ("dead", "exit-code") };
    UnitState {
        load: "loaded".into(),
        active: active.into(),
        sub: sub.into(),
        result: result.into(),
        ..UnitState::default()
    }
}

fn process(part: Part, digit: char) -> Process {
    let container = part.is_container().then(|| digit.to_string().repeat(64));
    Process { pid: 100, container, place: Place::Inside }
}

/// A control plane on which all is well.
fn well() -> Observation {
    let absent = UnitState { load: "not-found".into(), active: "inactive".into(), ..UnitState::default() };
    let mut units: BTreeMap<_, _> = Unit::EXPECTED.map(|unit| (unit, state("active"))).into();
    units.extend([(Unit::SystemKubelet, state("inactive")), (Unit::SystemCrio, absent)]);
    let parts = Part::ALL.into_iter().filter(|part| *part != Part::Coredns);
    let child = Some(Child { pid: 21, age: Some(Duration::from_secs(3600)) });
    let parts = parts.map(|part| (part, vec![process(part, 'a')])).collect();
    let targets = [Target::Apiserver, Target::Kubelet, Target::Etcd, Target::LoadBalancer];
    Observation {
        role: Role::ControlPlane,
        managers: [(Bus::System, Ok(())), (Bus::User, Ok(()))].into(),
        units,
        processes: Some(Processes { child, parts, pods: Some(12), ..Processes::default() }),
        health: Some(targets.map(|target| (target, Ok("it answers 200".into()))).into()),
        facts: Some(Facts {
            kernel: Some("6.12.8-6.12-alt1".into()),
            controllers: Some(["cpuset", "cpu", "io", "memory", "pids"].map(Into::into).into()),
            lingers: Some(true),
            watches: Some(1 << 20),
            instances: Some(1024),
        }),
        ..Observation::default()
    }
}

/// The same, changed.
fn with(change: impl FnOnce(&mut Observation)) -> Observation {
    let mut observation = well();
    change(&mut observation);
    observation
}

fn processes(observation: &mut Observation) -> &mut Processes {
    observation.processes.as_mut().expect("seen")
}

/// The ids and subjects that hold after this was seen for so many seconds, every 30 of them.
fn after(seconds: u64, settings: Settings, observation: &Observation) -> Vec<(&'static str, String)> {
    let mut assessor = Assessor::new(settings);
    for second in (0..=seconds).step_by(30) {
        assessor.assess(observation.clone(), at(second));
    }
    assessor.conditions().into_keys().map(|(id, subject)| (id.0.trim_start_matches("controlplane/"), subject)).collect()
}

fn holds(observation: &Observation) -> Vec<(&'static str, String)> {
    after(60, Settings::default(), observation)
}

fn pair(id: &'static str, subject: &str) -> (&'static str, String) {
    (id, subject.to_owned())
}

#[test]
fn a_node_on_which_all_is_well_has_no_condition_and_no_event() {
    let mut assessor = Assessor::new(Settings::default());
    for second in (0..3600).step_by(30) {
        assert_eq!(assessor.assess(well(), at(second)), []);
        assert_eq!(assessor.conditions(), Conditions::new());
    }
    let worker = with(|observation| {
        observation.role = Role::Worker;
        processes(observation).parts.retain(|part, _| !part.is_static());
        observation.health = Some([(Target::Kubelet, Ok("it answers 401".into()))].into());
    });
    assert_eq!(holds(&worker), []);
}

#[test]
fn what_cannot_be_seen_is_no_condition_but_that_it_is_not_seen() {
    assert_eq!(holds(&Observation::default()), []);
    let blind = Observation {
        managers: [(Bus::System, Ok(())), (Bus::User, Err("no such file".into()))].into(),
        unseen: Some("/proc: permission denied".into()),
        facts: Some(Facts::default()),
        ..Observation::default()
    };
    assert_eq!(holds(&blind), [pair("manager-unavailable", "u7s-admin's systemd"), pair("unseen", "node")]);
    assert_eq!(after(30, Settings::default(), &blind), [], "for a moment it may be");
    let settings = toml::from_str("without = [\"rootlesskit.service\", \"kubelet.service\"]").expect("valid");
    assert_eq!(after(60, settings, &blind), [pair("unseen", "node")], "nothing is expected of that manager");
    let unknown = with(|observation| {
        let processes = processes(observation);
        processes.parts.retain(|part, _| !part.is_container());
        processes.unknown = Part::ALL.into_iter().filter(|part| part.is_container()).collect();
        processes.pods = None;
    });
    assert_eq!(holds(&unknown), []);
}

#[test]
fn what_was_seen_stands_while_nobody_answers() {
    let mut assessor = Assessor::new(Settings::default());
    let bad = with(|observation| {
        observation.units.insert(Unit::U7s, state("failed"));
        processes(observation).parts.get_mut(&Part::Kubelet).expect("there")[0].place = Place::Outside;
        observation.facts = Some(Facts { kernel: Some("5.10.1".into()), ..Facts::default() });
        observation.health = Some([(Target::LoadBalancer, Err("refused".into()))].into());
    });
    assessor.assess(bad, at(0));
    assessor.assess(Observation { role: Role::ControlPlane, ..Observation::default() }, at(60));
    let ids: Vec<_> = assessor.conditions().into_keys().map(|(id, _)| id).collect();
    assert_eq!(ids, [KERNEL_OLD, OUTSIDE_NAMESPACE, UNHEALTHY, UNIT_DOWN]);
    assessor.assess(well(), at(90));
    assert_eq!(assessor.conditions(), Conditions::new());
}

#[test]
fn a_unit_that_failed_is_down_at_once_and_one_that_does_not_run_after_a_while() {
    for (unit, state, seconds, expected) in [
        (Unit::U7s, state("failed"), 0, Some("system u7s.service")),
        (Unit::Kubelet, state("failed"), 0, Some("user kubelet.service")),
        (Unit::Rootlesskit, state("inactive"), 30, None),
        (Unit::Rootlesskit, state("inactive"), 60, Some("user rootlesskit.service")),
        (Unit::Kubelet, UnitState { load: "masked".into(), ..state("inactive") }, 60, Some("user kubelet.service")),
        (Unit::U7s, UnitState { load: "not-found".into(), ..state("inactive") }, 60, Some("system u7s.service")),
        (Unit::Kubelet, state("activating"), 600, None),
        (Unit::Kubelet, state("deactivating"), 600, None),
        (Unit::Kubelet, state("reloading"), 600, None),
        (Unit::SystemKubelet, state("failed"), 600, None),
    ] {
        let observation = with(|observation| drop(observation.units.insert(unit, state.clone())));
        let expected: Vec<_> = expected.map(|subject| pair("unit-down", subject)).into_iter().collect();
        assert_eq!(after(seconds, Settings::default(), &observation), expected, "{unit:?} {state:?} {seconds}");
    }
    let mut assessor = Assessor::new(Settings::default());
    assessor.assess(with(|observation| drop(observation.units.insert(Unit::Kubelet, state("failed")))), at(0));
    let (_, message) = assessor.conditions().pop_first().expect("a condition");
    assert_eq!(message, "kubelet.service of u7s-admin's systemd is failed (dead, exit-code)");
}

#[test]
fn a_part_is_missing_after_a_while_if_the_node_should_have_it() {
    for part in Part::ALL.into_iter().filter(|part| *part != Part::Coredns) {
        let observation = with(|observation| drop(processes(observation).parts.remove(&part)));
        assert_eq!(holds(&observation), [pair("component-missing", part.name())]);
        assert_eq!(after(30, Settings::default(), &observation), [], "{part:?}");
        let settings = toml::from_str(&format!("without = [\"{}\"]", part.name())).expect("valid");
        assert_eq!(after(60, settings, &observation), [], "{part:?}");
        let worker = Observation { role: Role::Worker, ..observation };
        assert_eq!(holds(&worker).is_empty(), part.is_static(), "{part:?}");
    }
}

#[test]
fn nothing_is_missing_while_rootlesskit_or_the_kubelet_is_known_to_be_down_or_has_just_started() {
    let empty = with(|observation| {
        processes(observation).parts.clear();
        observation.units.insert(Unit::Rootlesskit, state("failed"));
        processes(observation).child = None;
        let refused = |target| (target, Err("connection refused".to_owned()));
        observation.health = Some([Target::Apiserver, Target::Kubelet, Target::LoadBalancer].map(refused).into());
    });
    assert_eq!(holds(&empty), [pair("unhealthy", "load balancer"), pair("unit-down", "user rootlesskit.service")]);
    let gone = with(|observation| {
        processes(observation).parts.clear();
        processes(observation).child = None;
    });
    assert_eq!(holds(&gone), [pair("component-missing", "rootlesskit")], "though its unit runs");
    let new = with(|observation| {
        processes(observation).parts.clear();
        processes(observation).child = Some(Child { pid: 21, age: Some(Duration::from_secs(100)) });
        observation.health = Some([(Target::Apiserver, Err("connection refused".into()))].into());
    });
    assert_eq!(holds(&new), []);
    let stopped = with(|observation| {
        processes(observation).parts.remove(&Part::Kubelet);
        observation.units.insert(Unit::Kubelet, state("inactive"));
    });
    assert_eq!(holds(&stopped), [pair("unit-down", "user kubelet.service")]);
}

#[test]
fn real_root_and_who_left_the_namespace_are_told_at_once() {
    fn etcd_is(place: Place, seen: &mut Observation) {
        processes(seen).parts.get_mut(&Part::Etcd).expect("there")[0].place = place;
    }
    type Row = (fn(&mut Observation), Option<(&'static str, &'static str)>);
    let rows: [Row; 6] = [
        (
            |seen| drop(seen.units.insert(Unit::SystemKubelet, state("active"))),
            Some(("real-root", "system kubelet.service")),
        ),
        (
            |seen| drop(seen.units.insert(Unit::SystemCrio, state("activating"))),
            Some(("real-root", "system crio.service")),
        ),
        (|seen| drop(seen.units.insert(Unit::SystemCrio, state("failed"))), None),
        (|seen| processes(seen).real_root.push((Part::Etcd, 7)), Some(("real-root", "etcd"))),
        (|seen| etcd_is(Place::Outside, seen), Some(("outside-namespace", "etcd"))),
        (|seen| etcd_is(Place::Unknown, seen), None),
    ];
    for (change, expected) in rows {
        let observation = with(change);
        let expected: Vec<_> = expected.map(|(id, subject)| pair(id, subject)).into_iter().collect();
        assert_eq!(after(0, Settings::default(), &observation), expected);
    }
}

#[test]
fn an_endpoint_is_unwell_if_it_is_so_for_a_while() {
    for target in [Target::Apiserver, Target::Kubelet, Target::Etcd, Target::LoadBalancer, Target::VirtualAddress] {
        let observation = with(|observation| {
            observation.health.as_mut().expect("asked").insert(target, Err("it answers 500".into()));
        });
        assert_eq!(holds(&observation), [pair("unhealthy", target.name())]);
        assert_eq!(after(30, Settings::default(), &observation), []);
        let mut assessor = Assessor::new(Settings::default());
        for second in [0, 30, 60, 90, 120, 150] {
            let flaps = second % 60 == 0;
            assessor.assess(if flaps { observation.clone() } else { well() }, at(second));
            assert_eq!(assessor.conditions(), Conditions::new(), "once is not for a while");
        }
    }
}

#[test]
fn each_start_is_an_event_and_three_within_ten_minutes_a_condition() {
    let mut assessor = Assessor::new(Settings::default());
    let restarts =
        |count: u32| with(|observation| observation.units.get_mut(&Unit::Kubelet).expect("there").restarts = count);
    let told = |events: Vec<Finding<'_>>| events.iter().map(|event| event.message.to_string()).collect::<Vec<_>>();
    assert_eq!(told(assessor.assess(restarts(7), at(0))), [""; 0], "those before are of before");
    assert_eq!(
        told(assessor.assess(restarts(8), at(30))),
        ["kubelet.service was started again by u7s-admin's systemd"]
    );
    assert_eq!(assessor.conditions(), Conditions::new());
    let twice = "kubelet.service was started again by u7s-admin's systemd 2 times";
    assert_eq!(told(assessor.assess(restarts(10), at(60))), [twice]);
    let key = (RESTARTING, "user kubelet.service".to_owned());
    assert_eq!(assessor.conditions()[&key], "user kubelet.service was started again 3 times in 10 minutes");
    assert_eq!(told(assessor.assess(restarts(0), at(90))), [""; 0], "started by hand");
    assessor.assess(restarts(0), at(630));
    assert_eq!(assessor.conditions(), Conditions::new());
    assessor.assess(restarts(u32::MAX), at(660));
    assert!(assessor.conditions()[&key].contains("at least 16 times"));
}

#[test]
fn another_container_of_a_part_is_a_start_and_one_more_is_none() {
    let mut assessor = Assessor::new(Settings::default());
    let part = |part: Part, digits: &str| {
        with(|observation| {
            let found = digits.chars().map(|digit| process(part, digit)).collect();
            processes(observation).parts.insert(part, found);
        })
    };
    for (second, digits, expected) in [
        (0, "a", 0),
        (30, "b", 1),
        (60, "", 0),
        (90, "c", 1),
        (120, "c", 0),
        (150, "d", 1),
        (180, "de", 0),
        (210, "e", 0),
    ] {
        let events = assessor.assess(part(Part::Etcd, digits), at(second));
        assert_eq!(events.iter().filter(|event| event.id == RESTARTED).count(), expected, "{digits} at {second}");
    }
    assert_eq!(assessor.conditions().into_keys().collect::<Vec<_>>(), [(RESTARTING, "etcd".to_owned())]);
    let other = with(|observation| {
        for (part, found) in &mut processes(observation).parts {
            *found = vec![process(*part, 'f')];
        }
        processes(observation).child = Some(Child { pid: 22, age: None });
    });
    assert_eq!(assessor.assess(other, at(240)), [], "all is new in another rootlesskit");
}

#[test]
fn facts_of_the_node_are_conditions_beyond_their_bounds() {
    let facts = |change: &dyn Fn(&mut Facts)| with(|observation| change(observation.facts.as_mut().expect("seen")));
    let controllers = |names: &'static [&str]| {
        facts(&|facts| facts.controllers = Some(names.iter().map(|name| (*name).to_owned()).collect()))
    };
    let kernel = |release: &'static str| facts(&|facts| facts.kernel = Some(release.into()));
    for (observation, expected) in [
        (kernel("5.14.21-1"), Some("kernel-old")),
        (kernel("4.19"), Some("kernel-old")),
        (kernel("5.15.0"), None),
        (kernel("6.1.0"), None),
        (kernel("unheard-of"), None),
        (controllers(&["memory", "pids"]), Some("cgroup-not-delegated")),
        (controllers(&[]), Some("cgroup-not-delegated")),
        (controllers(&["cpu", "memory", "pids"]), None),
        (facts(&|facts| facts.lingers = Some(false)), Some("no-linger")),
        (facts(&|facts| facts.watches = Some(8192)), Some("watches-low")),
        (facts(&|facts| facts.instances = Some(128)), Some("instances-low")),
        (facts(&|facts| facts.instances = Some(512)), None),
        (facts(&|facts| *facts = Facts::default()), None),
        (with(|observation| processes(observation).pods = Some(110)), None),
        (with(|observation| processes(observation).pods = Some(111)), Some("too-many-pods")),
    ] {
        let expected: Vec<_> = expected.map(|id| pair(id, "node")).into_iter().collect();
        assert_eq!(after(0, Settings::default(), &observation), expected, "{:?}", observation.facts);
    }
}

#[test]
fn what_podsecd_did_is_an_event_and_that_it_does_no_more_a_condition() {
    let restart = vec![Restart { unit: RestartUnit::Kubelet, pause: Duration::from_secs(30), limit: 2 }];
    let mut assessor = Assessor::new(Settings { restart, ..Settings::default() });
    let action = |outcome| Action { unit: Unit::Kubelet, attempt: 1, limit: 2, outcome };
    let actions = vec![action(Ok(())), action(Err("no such unit".into()))];
    let events = assessor.assess(Observation { actions, ..well() }, at(0));
    let told: Vec<_> = events.iter().map(|event| (event.id, event.subject.as_ref(), event.message.as_ref())).collect();
    let done = "kubelet.service was down; podsecd had u7s-admin's systemd start it again (1 of 2 times within an hour)";
    let failed = "kubelet.service is down; podsecd could not have u7s-admin's systemd start it again: no such unit (1 of 2 times within an hour)";
    let subject = "user kubelet.service";
    assert_eq!(told, [(RESTART_TRIED, subject, done), (RESTART_TRIED, subject, failed)]);
    assert_eq!(assessor.conditions(), Conditions::new());
    assessor.assess(Observation { given_up: Some([Unit::Kubelet].into()), ..well() }, at(30));
    assert_eq!(assessor.conditions().into_keys().collect::<Vec<_>>(), [(RESTART_GIVEN_UP, subject.to_owned())]);
}
