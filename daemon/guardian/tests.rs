use std::time::Duration;

use super::*;
use crate::checks::controlplane;
use crate::checks::forwards::exposure::Users;
use crate::checks::forwards::forward::Transport;
use crate::checks::forwards::ids::UNDECLARED;
use crate::checks::forwards::tables::{Socket, Sockets};
use crate::checks::own::ids::{HELPER_SILENT, MAIL_FAILING, MAIL_UNCONFIGURED, OF_MAIL, PART_FAILED};
use crate::config;
use crate::helper::{Helper, MAX_PENDING, Refusal, Reported, What};

const START: Duration = Duration::from_secs(1_790_000_000);

fn minute(minutes: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + START + Duration::from_secs(60 * minutes)
}

fn guardian() -> Guardian {
    Guardian::new(Config::default(), State::default(), false, minute(0))
}

const MAX_CONDITIONS: usize = 64;

fn by_mail(what: What) -> Reported {
    Reported { by: Helper { name: MAIL, uid: 1, may: &[OF_MAIL], conditions: MAX_CONDITIONS }, what }
}

fn raised(id: Id) -> Finding<'static> {
    condition(id, Kind::Raised, "mail", "away".into(), minute(0))
}

/// What was found since the last call: id and kind.
fn found(guardian: &mut Guardian) -> Vec<(Id, Kind)> {
    let cycle = guardian.cycle();
    cycle.findings.iter().map(|found| (found.scored.finding.id, found.scored.finding.kind)).collect()
}

#[test]
fn conditions_that_a_helper_does_not_name_any_more_are_cleared_and_those_of_others_stay() {
    let mut guardian = guardian();
    guardian.find(condition(PART_FAILED, Kind::Raised, "mail", "x".into(), minute(0)), false, minute(0));
    found(&mut guardian);
    for (open, expected) in [
        (vec![MAIL_FAILING], vec![(MAIL_FAILING, Kind::Raised)]),
        (vec![MAIL_FAILING], vec![]),
        (vec![MAIL_UNCONFIGURED], vec![(MAIL_FAILING, Kind::Cleared), (MAIL_UNCONFIGURED, Kind::Raised)]),
        (vec![], vec![(MAIL_UNCONFIGURED, Kind::Cleared)]),
    ] {
        let open = open.into_iter().map(raised).collect();
        guardian.hear(by_mail(What::Conditions(open, true)), minute(1)).expect("taken");
        assert_eq!(found(&mut guardian), expected);
    }
    assert!(guardian.state().is_open(PART_FAILED));
}

#[test]
fn a_helper_cannot_open_conditions_without_end() {
    let mut guardian = guardian();
    let mut raise = |number: usize, kind| {
        let finding = condition(MAIL_FAILING, kind, &number.to_string(), "x".into(), minute(0));
        guardian.hear(by_mail(What::Finding(finding)), minute(0)).map(drop)
    };
    (0..MAX_CONDITIONS).for_each(|number| raise(number, Kind::Raised).expect("taken"));
    assert_eq!(raise(MAX_CONDITIONS, Kind::Raised), Err(Refusal::Conditions(MAX_CONDITIONS)));
    raise(1, Kind::Raised).expect("it is open already");
    raise(0, Kind::Cleared).expect("taken");
    raise(MAX_CONDITIONS, Kind::Raised).expect("there is room again");
}

#[test]
fn a_helper_cannot_open_conditions_without_end_by_sets_either() {
    let mut guardian = guardian();
    let refused = (0..10).find_map(|set| {
        let subject = |number: usize| format!("{set}/{number}");
        let open = |number| condition(MAIL_FAILING, Kind::Raised, &subject(number), "x".into(), minute(0));
        let open = (0..MAX_CONDITIONS / 2).map(open).collect();
        guardian.hear(by_mail(What::Conditions(open, false)), minute(0)).err()
    });
    assert_eq!(refused, Some(Refusal::Conditions(MAX_CONDITIONS)));
    assert_eq!(guardian.state().open.len(), MAX_CONDITIONS);
}

#[test]
fn a_helper_cannot_fill_the_memory_while_nothing_is_reported() {
    let mut guardian = guardian();
    let conditions = |count: usize| {
        let open = (0..count).map(|it| condition(MAIL_FAILING, Kind::Raised, &it.to_string(), "x".into(), minute(0)));
        by_mail(What::Conditions(open.collect(), true))
    };
    let refusal = (0..MAX_PENDING).find_map(|turn| {
        let count = if turn % 2 == 0 { MAX_CONDITIONS } else { 0 };
        guardian.hear(conditions(count), minute(0)).err()
    });
    assert_eq!(refusal, Some(Refusal::Pending));
    let event = || by_mail(What::Finding(condition(MAIL_FAILING, Kind::Event, "x", "x".into(), minute(0))));
    assert_eq!(guardian.hear(event(), minute(0)), Err(Refusal::Pending));
    let waiting = found(&mut guardian).len();
    assert!((MAX_PENDING..MAX_PENDING + MAX_CONDITIONS).contains(&waiting), "{waiting}");
    guardian.hear(event(), minute(0)).expect("it goes on when the reports do");
}

#[test]
fn podsecd_mail_is_missed_when_a_digest_waits_of_which_it_says_nothing() {
    let waiting = |since: Option<u64>| {
        let since = since.map(|since| rfc3339(minute(since)).into_owned());
        Some(MailStatus {
            next: 2,
            due: None,
            waiting: since.iter().count() as u64,
            waiting_since: since,
            delivered: None,
            delivered_at: None,
            dropped: 0,
            refused: Vec::new(),
            left_out: 0,
        })
    };
    let mut guardian = guardian();
    let mut silent = |mail: Option<MailStatus>, now: u64, heard: bool| {
        if heard {
            guardian.hear(by_mail(What::Conditions(vec![], true)), minute(now)).expect("taken");
        }
        guardian.note_mail(mail, true, minute(now));
        guardian.state().is_open(HELPER_SILENT)
    };
    for (since, now, heard, expected) in [
        (None, 1000, false, false),
        (Some(1000), 1019, false, false),
        (Some(1000), 1021, false, true),
        (Some(1000), 1022, true, false),
        (Some(1000), 1101, false, false),
        (Some(1000), 1103, false, true),
        (None, 1104, false, false),
    ] {
        assert_eq!(silent(waiting(since), now, heard), expected, "at minute {now}");
    }
}

#[test]
fn podsecd_u7s_is_missed_after_a_minute_or_two_probes_where_it_should_be_there() {
    for (is_expected, probe, silence, expected) in [
        (true, 30, 60, false),
        (true, 30, 61, true),
        (true, 90, 180, false),
        (true, 90, 181, true),
        (false, 30, 3600, false),
    ] {
        let probe = config::Period::try_from(format!("{probe}s")).expect("a period");
        let config = Config { u7s: config::U7s { probe }, ..Config::default() };
        let mut guardian = Guardian::new(config, State::default(), false, minute(0));
        guardian.note_u7s(is_expected, Duration::from_secs(silence), minute(1));
        assert_eq!(guardian.state().is_open(HELPER_SILENT), expected, "{is_expected} {probe:?} {silence}");
    }
}

#[test]
fn what_an_administrator_declares_is_no_alarm_and_is_known_after_a_restart() {
    let forward: Forward = "0.0.0.0:31000:31000/tcp".parse().expect("a forward");
    let users = Users(vec![997..=997]);
    let socket = Socket {
        transport: Transport::Tcp,
        address: forward.end.address,
        port: forward.end.port.get(),
        uid: 997,
        inode: 1,
    };
    let mut guardian = guardian();
    let see = |guardian: &mut Guardian| {
        guardian.assess_exposure(Ok(Sockets::new(vec![socket])), &users, minute(1));
        guardian.state().is_open(UNDECLARED)
    };
    assert!(see(&mut guardian));
    assert_eq!(guardian.declare(forward, true, 0, minute(2)), Ok(true));
    assert_eq!(guardian.declare(forward, true, 0, minute(2)), Ok(false), "it is no news");
    assert!(!see(&mut guardian));
    let mut restarted = Guardian::new(Config::default(), guardian.state(), false, minute(3));
    assert!(!see(&mut restarted));
    assert_eq!(restarted.declare(forward, false, 0, minute(4)), Ok(true));
    assert!(see(&mut restarted));
}

#[test]
fn that_nobody_sees_who_listens_is_a_condition_and_what_was_seen_stands() {
    let users = Users(vec![997..=997]);
    let mut guardian = guardian();
    let mut see = |sockets| {
        guardian.assess_exposure(sockets, &users, minute(1));
        let state = guardian.state();
        (state.is_open(own::ids::WATCH_INCOMPLETE), state.is_open(UNDECLARED))
    };
    let address = std::net::Ipv4Addr::UNSPECIFIED.into();
    let socket = Socket { transport: Transport::Tcp, address, port: 4444, uid: 997, inode: 1 };
    assert_eq!(see(Ok(Sockets::new(vec![socket]))), (false, true));
    assert_eq!(see(Err(std::io::ErrorKind::NotFound.into())), (true, true));
    assert_eq!(see(Ok(Sockets::default())), (false, false));
}

#[test]
fn that_the_node_has_become_another_is_told_even_if_podsecd_was_away_and_not_if_it_was_set() {
    use RoleSetting::{Auto, Worker as SetWorker};
    let config = |role| {
        let controlplane = crate::checks::controlplane::settings::Settings { role, ..Default::default() };
        Config { controlplane, ..Config::default() }
    };
    let unseen = || Err(std::io::ErrorKind::PermissionDenied.into());
    let mut state = State::default();
    // What is set, what is seen in a row; what is told of that. podsecd starts anew with each row.
    for (row, (set, seen, expected)) in [
        (Auto, vec![Ok(Role::ControlPlane), Ok(Role::ControlPlane)], &[][..]),
        (Auto, vec![unseen(), Ok(Role::ControlPlane)], &[]),
        (Auto, vec![Ok(Role::Worker), Ok(Role::Worker)], &["was of the control plane and is a worker now"]),
        (Auto, vec![Ok(Role::ControlPlane)], &["was a worker and is of the control plane now"]),
        (SetWorker, vec![Ok(Role::Worker)], &[]),
        (Auto, vec![Ok(Role::ControlPlane)], &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut guardian = Guardian::new(config(set), state, false, minute(0));
        seen.into_iter().for_each(|role| guardian.note_role(role, minute(1)));
        let cycle = guardian.cycle();
        let told = cycle.findings.iter().map(|found| &found.scored.finding);
        let told: Vec<_> = told.filter(|finding| finding.id == controlplane::ids::ROLE_CHANGED).collect();
        assert_eq!(told.len(), expected.len(), "row {row}: {told:?}");
        assert!(told.iter().zip(expected).all(|(told, expected)| told.message.contains(expected)), "{told:?}");
        state = guardian.state();
        assert!(!state.is_open(own::ids::WATCH_INCOMPLETE), "row {row}");
    }
    let mut guardian = Guardian::new(config(Auto), state, false, minute(0));
    guardian.note_role(unseen(), minute(1));
    assert!(guardian.state().is_open(own::ids::WATCH_INCOMPLETE));
    assert_eq!(guardian.state().role, Some(Role::ControlPlane), "it is what it was");
    // With a configuration that is read again, too.
    for set in [SetWorker, Auto] {
        guardian.configure(config(set), false);
        guardian.note_role(Ok(if set == Auto { Role::ControlPlane } else { Role::Worker }), minute(2));
    }
    assert!(found(&mut guardian).iter().all(|(id, _)| *id != controlplane::ids::ROLE_CHANGED));
}
