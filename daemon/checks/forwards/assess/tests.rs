use super::*;
use crate::checks::forwards::declared::Declaration;
use crate::checks::forwards::entry::{Since, Stood};

const A: &str = "0.0.0.0:6443:6443/tcp";
const B: &str = "0.0.0.0:10250:10250/tcp";

/// What is seen at a time, and what that makes.
struct World {
    assessor: Assessor,
    declared: Declared,
    start: Instant,
}

impl World {
    fn new(declared: &[&str]) -> World {
        let declaration = Declaration { origin: Origin::Podsec, has_listener: true };
        let declared = declared.iter().map(|text| (text.parse().expect("a forward"), declaration)).collect();
        World { assessor: Assessor::default(), declared, start: Instant::now() }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    /// All forwards are seen so; the messages of events.
    fn see(&mut self, seconds: f64, state: &State, change: impl Fn(&mut Observation)) -> Vec<String> {
        let mut observation = Observation::new(self.at(seconds));
        let found = Found { state: state.clone(), has_listener: Some(true) };
        observation.forwards = self.declared.keys().map(|forward| (*forward, found.clone())).collect();
        change(&mut observation);
        let events = self.assessor.assess(observation, SystemTime::UNIX_EPOCH);
        events.into_iter().map(|event| event.message.into_owned()).collect()
    }

    /// The conditions that hold, without their sentences.
    fn conditions(&self, seconds: f64) -> Vec<(&'static str, String)> {
        let holding = self.assessor.conditions(&self.declared, self.at(seconds));
        holding.into_keys().map(|(id, subject)| (id.0, subject)).collect()
    }
}

#[test]
fn forwards_that_stand_are_no_condition_and_no_news() {
    let mut world = World::new(&[A, B]);
    assert!(world.see(0.0, &State::Down, |_| {}).is_empty(), "they were only just declared");
    assert!(world.see(0.1, &State::Stands, |_| {}).is_empty());
    assert!(world.conditions(100.0).is_empty());
}

#[test]
fn a_restart_of_rootlesskit_is_one_event_with_the_gap_of_each_forward() {
    let mut world = World::new(&[A, B]);
    world.see(0.0, &State::Stands, |_| {});
    let ended = world.at(10.0);
    assert!(world.see(10.1, &State::Down, |seen| seen.ended = Some(ended)).is_empty());
    assert!(world.conditions(12.0).is_empty(), "it may be there again at once");
    let added = world.at(11.5);
    let events = world.see(11.7, &State::Stands, |seen| {
        seen.ended = Some(ended);
        seen.added.insert(A.parse().expect("a forward"), added);
    });
    let expected = format!("2 forwards stand again, after gaps of up to 1.700 s: {B} at most 1.700 s, {A} 1.500 s");
    assert_eq!(events, [expected]);
    assert!(world.see(12.0, &State::Stands, |_| {}).is_empty());
}

#[test]
fn a_restart_that_nobody_saw_has_a_gap_all_the_same() {
    let mut world = World::new(&[A]);
    world.see(0.0, &State::Stands, |_| {});
    let (ended, added) = (world.at(10.0), world.at(10.5));
    let events = world.see(10.6, &State::Stands, |seen| {
        seen.ended = Some(ended);
        seen.added.insert(A.parse().expect("a forward"), added);
    });
    assert_eq!(events, [format!("{A} stands again, after a gap of 0.500 s")]);
}

fn identity(number: u32) -> Option<Identity> {
    Some(serde_json::from_value(serde_json::json!({ "parent": number, "started": 1 })).expect("an identity"))
}

/// A podsecd-u7s that starts at 100 s; at 90 s the one before saw all forwards stand last, by rootlesskit 1.
fn started_again(declared: &[&str]) -> World {
    let mut world = World::new(declared);
    let stood = Some(Stood { at: world.at(90.0), instance: identity(1) });
    let forwards = world.declared.keys().map(|forward| (*forward, Past { stood, down: None })).collect();
    world.assessor = Assessor::new(forwards);
    world
}

#[test]
fn what_was_interrupted_while_nobody_looked_has_a_gap_at_the_longest() {
    let a: Forward = A.parse().expect("a forward");

    let mut world = started_again(&[A]);
    assert!(world.see(100.0, &State::Down, |_| {}).is_empty());
    assert!(world.conditions(104.9).is_empty(), "it may be there again at once");
    let added = world.at(101.0);
    let events = world.see(101.1, &State::Stands, |seen| {
        seen.added.insert(a, added);
    });
    assert_eq!(events, [format!("{A} stands again, after a gap of at most 11.000 s")]);

    let mut world = started_again(&[A]);
    world.see(100.0, &State::Down, |_| {});
    assert_eq!(world.conditions(105.0), [("forwards/down", A.to_owned())]);

    // rootlesskit is another one, and somebody else was faster.
    let mut world = started_again(&[A, B]);
    let events = world.see(100.0, &State::Stands, |seen| seen.instance = identity(2));
    let gaps = format!("{A} at most 10.000 s, {B} at most 10.000 s");
    assert_eq!(events, [format!("2 forwards stand again, after gaps of up to 10.000 s: {gaps}")]);
    assert!(world.see(101.0, &State::Stands, |seen| seen.instance = identity(2)).is_empty(), "once");

    for instance in [identity(1), None] {
        let mut world = started_again(&[A]);
        assert!(world.see(100.0, &State::Stands, |seen| seen.instance = instance).is_empty(), "nothing happened");
        let ended = world.at(110.0);
        let events = world.see(110.5, &State::Stands, |seen| seen.ended = Some(ended));
        assert_eq!(events, [format!("{A} stands again, after a gap of at most 0.500 s")], "its end was not seen");
    }
}

#[test]
fn what_is_down_when_podsecd_u7s_ends_has_been_so_since_then_for_the_next_one() {
    let a: Forward = A.parse().expect("a forward");
    let mut world = World::new(&[A]);
    world.see(0.0, &State::Stands, |seen| seen.instance = identity(1));
    let ended = world.at(10.0);
    world.see(10.1, &State::Down, |seen| (seen.ended, seen.instance) = (Some(ended), identity(2)));
    world.assessor = Assessor::new(world.assessor.past());
    assert_eq!(world.assessor.past()[&a].down, Some(Since { at: ended, is_bound: false }), "nobody looked yet");
    let events = world.see(13.0, &State::Stands, |seen| seen.instance = identity(2));
    assert_eq!(events, [format!("{A} stands again, after a gap of at most 3.000 s")]);
    assert_eq!(world.assessor.past()[&a].down, None);
}

#[test]
fn what_went_while_nothing_could_be_seen_has_a_gap() {
    let mut world = World::new(&[A]);
    world.see(0.0, &State::Stands, |seen| seen.instance = identity(1));
    let ended = world.at(10.0);
    assert!(world.see(10.1, &State::Unknown, |seen| seen.ended = Some(ended)).is_empty());
    let events = world.see(12.0, &State::Stands, |seen| seen.instance = identity(2));
    assert_eq!(events, [format!("{A} stands again, after a gap of at most 2.000 s")]);
}

#[test]
fn a_forward_stood_last_when_a_look_began_that_saw_it() {
    let mut world = World::new(&[A]);
    let began = world.at(0.5);
    world.see(3.0, &State::Stands, |seen| seen.began = began);
    let events = world.see(10.0, &State::Down, |_| {});
    assert!(events.is_empty());
    let events = world.see(11.0, &State::Stands, |_| {});
    assert_eq!(events, [format!("{A} stands again, after a gap of at most 10.500 s")]);
}

#[test]
fn what_stays_down_is_a_condition_until_it_stands() {
    let mut world = World::new(&[A]);
    world.see(0.0, &State::Stands, |_| {});
    world.see(30.0, &State::Down, |_| {});
    // It went at some time since it was last seen standing.
    assert_eq!(world.conditions(30.0), [("forwards/down", A.to_owned())]);
    let events = world.see(90.0, &State::Stands, |_| {});
    assert_eq!(events, [format!("{A} stands again, after a gap of at most 90.000 s")]);
    assert!(world.conditions(90.0).is_empty());
}

#[test]
fn each_state_is_its_own_condition() {
    for (state, seconds, expected) in [
        (State::Down, 119.0, None),
        (State::Down, 120.0, Some("forwards/down")),
        (State::Unknown, 1000.0, None),
        (State::Zombie, 0.0, Some("forwards/zombie")),
        (State::Held("process 7 (nginx)".into()), 0.0, Some("forwards/conflict")),
        (State::Refused("permission denied".into()), 6.0, Some("forwards/refused")),
    ] {
        let mut world = World::new(&[A]);
        world.see(0.0, &state, |_| {});
        let conditions: Vec<_> = world.conditions(seconds).into_iter().map(|(id, _)| id).collect();
        assert_eq!(conditions, expected.into_iter().collect::<Vec<_>>(), "{state:?} after {seconds} s");
    }
}

#[test]
fn nobody_who_listens_inside_is_a_condition_where_somebody_should_and_after_two_minutes() {
    for (wants, expected) in [(true, &[("forwards/no-listener", A.to_owned())][..]), (false, &[])] {
        let mut world = World::new(&[A]);
        world.declared.values_mut().for_each(|declaration| declaration.has_listener = wants);
        let unheard = |seen: &mut Observation| {
            seen.forwards.values_mut().for_each(|found| found.has_listener = Some(false));
        };
        world.see(0.0, &State::Stands, unheard);
        assert!(world.conditions(119.0).is_empty(), "it may still start");
        assert_eq!(world.assessor.next_change(world.at(0.0)), Some(world.at(120.0)));
        world.see(120.0, &State::Stands, unheard);
        assert_eq!(world.conditions(120.0), expected);
        world.see(121.0, &State::Stands, |_| {});
        assert!(world.conditions(121.0).is_empty());
    }
}

#[test]
fn what_is_interrupted_again_and_again_flaps_until_it_has_been_quiet() {
    let mut world = World::new(&[A]);
    world.see(0.0, &State::Stands, |_| {});
    for minute in 1..=4 {
        let at = f64::from(minute) * 60.0;
        assert!(world.conditions(at).is_empty());
        world.see(at, &State::Down, |_| {});
        world.see(at + 1.0, &State::Stands, |_| {});
    }
    assert_eq!(world.conditions(241.0), [("forwards/flapping", A.to_owned())]);
    world.see(720.0, &State::Stands, |_| {});
    assert_eq!(world.conditions(720.0).len(), 1, "two were in these ten minutes");
    world.see(800.0, &State::Stands, |_| {});
    assert!(world.conditions(800.0).is_empty());
    assert_eq!(world.assessor.rows(&world.declared)[0].interruptions, 4);
}

#[test]
fn an_api_that_does_not_answer_is_one_condition_and_the_forwards_that_stand_are_none() {
    let mut world = World::new(&[A, B]);
    for seconds in [0.0, 10.0, 40.0] {
        world.see(seconds, &State::Stands, |seen| seen.trouble = Some(Trouble::Api("no answer within 10 s".into())));
    }
    assert_eq!(world.conditions(40.0), [("forwards/api-unavailable", "rootlesskit".to_owned())]);
    world.see(41.0, &State::Stands, |seen| seen.trouble = Some(Trouble::NoPortDriver));
    assert_eq!(world.conditions(41.0), [("forwards/no-port-driver", "rootlesskit".to_owned())]);
}
