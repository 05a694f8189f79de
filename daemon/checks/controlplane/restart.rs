//! When to start again what is down. Pure.
//!
//! systemd starts again by itself what failed, but not what it stopped itself: when rootlesskit dies, the kubelet, which is
//! bound to it, stops and stays so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::seen::{Unit, UnitState};
use super::settings::Restart;

/// The tries of so long count.
const HOUR: Duration = Duration::from_secs(3600);
/// A unit is down for so long before anything is done: whoever restarts it by hand stops it first.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries grows no further.
const MAX_PAUSE: Duration = HOUR;

/// What was done, and what is to be done.
#[derive(Clone, Debug)]
pub struct Restarts {
    settings: Vec<Restart>,
    /// Since when units are seen to be down.
    down: BTreeMap<Unit, Instant>,
    /// When units were started; not more than the limit of each.
    tries: BTreeMap<Unit, VecDeque<Instant>>,
}

/// A unit that is to be started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Which.
    pub unit: Unit,
    /// The how manieth time within an hour, from 1 on.
    pub attempt: u32,
    /// How many times it may be.
    pub limit: u32,
}

impl Restarts {
    /// Nothing was done yet.
    pub fn new(settings: Vec<Restart>) -> Restarts {
        Restarts { settings, down: BTreeMap::new(), tries: BTreeMap::new() }
    }

    /// What is to be started, now that units are in these states; it counts as done. Second: the units that are down and were
    /// started as often as they may.
    pub fn due(&mut self, units: &BTreeMap<Unit, UnitState>, now: Instant) -> (Vec<Try>, BTreeSet<Unit>) {
        let (mut due, mut given_up) = (Vec::new(), BTreeSet::new());
        for Restart { unit, pause, limit } in &self.settings {
            let (unit, limit) = (unit.unit(), *limit);
            if !is_wanted(unit, units) {
                self.down.remove(&unit);
                continue;
            }
            let since = *self.down.entry(unit).or_insert(now);
            let tries = self.tries.entry(unit).or_default();
            tries.retain(|time| now.saturating_duration_since(*time) < HOUR);
            let done = tries.len() as u32;
            if done >= limit {
                given_up.insert(unit);
                continue;
            }
            let doubled = pause.checked_mul(1 << done.saturating_sub(1).min(16)).unwrap_or(MAX_PAUSE).min(MAX_PAUSE);
            let is_early = tries.back().is_some_and(|last| now.saturating_duration_since(*last) < doubled);
            if now.saturating_duration_since(since) >= PATIENCE && !is_early {
                tries.push_back(now);
                due.push(Try { unit, attempt: done + 1, limit });
            }
        }
        (due, given_up)
    }
}

/// Whether a unit is down that should not be. What an administrator stopped stays so: all, by stopping u7s.service; one, by
/// masking it. What needs rootlesskit waits for it.
fn is_wanted(unit: Unit, units: &BTreeMap<Unit, UnitState>) -> bool {
    let is_stopped = units.get(&Unit::U7s).is_some_and(|u7s| u7s.load == "loaded" && !u7s.is_up());
    let lacks_rootlesskit =
        unit == Unit::Kubelet && units.get(&Unit::Rootlesskit).is_some_and(|state| state.active != "active");
    let is_down = units.get(&unit).is_some_and(|state| state.load == "loaded" && state.is_down());
    is_down && !is_stopped && !lacks_rootlesskit
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::settings::RestartUnit;
    use super::*;

    fn states(states: &[(Unit, &str)]) -> BTreeMap<Unit, UnitState> {
        let state = |active: &str| UnitState { load: "loaded".into(), active: active.into(), ..UnitState::default() };
        states.iter().map(|(unit, active)| (*unit, state(active))).collect()
    }

    fn at(seconds: u64) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    fn restarts(unit: RestartUnit, limit: u32) -> Restarts {
        Restarts::new(vec![Restart { unit, pause: Duration::from_secs(30), limit }])
    }

    #[test]
    fn tries_grow_apart_until_the_limit_and_an_hour_later_there_are_more() {
        let mut restarts = restarts(RestartUnit::Rootlesskit, 4);
        let down = states(&[(Unit::U7s, "active"), (Unit::Rootlesskit, "failed")]);
        let mut tries = Vec::new();
        let mut given_up = Vec::new();
        for seconds in (0..4000).step_by(10) {
            let (due, given) = restarts.due(&down, at(seconds));
            tries.extend(due.iter().map(|due| (seconds, due.attempt, due.limit)));
            given_up.extend(given.iter().map(|_| seconds));
        }
        let expected = [(10, 1), (40, 2), (100, 3), (220, 4), (3610, 4), (3700, 3), (3820, 3), (3940, 4)];
        assert_eq!(tries, expected.map(|(seconds, attempt)| (seconds, attempt, 4)));
        assert_eq!((given_up.first(), given_up.last()), (Some(&230), Some(&3990)));
    }

    #[test]
    fn only_what_nobody_stopped_is_started() {
        for (unit, units, expected) in [
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "inactive")][..], true),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "inactive"), (Unit::Rootlesskit, "active")], true),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "failed"), (Unit::Rootlesskit, "failed")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "failed"), (Unit::Rootlesskit, "activating")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "failed"), (Unit::U7s, "inactive")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "failed"), (Unit::U7s, "deactivating")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "activating")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "deactivating")], false),
            (RestartUnit::Kubelet, &[(Unit::Kubelet, "active")], false),
            (RestartUnit::Kubelet, &[], false),
            (RestartUnit::Rootlesskit, &[(Unit::Kubelet, "failed")], false),
        ] {
            let mut restarts = restarts(unit, 5);
            let units = states(units);
            assert_eq!(restarts.due(&units, at(0)).0, [], "a moment passes first");
            assert_eq!(!restarts.due(&units, at(5)).0.is_empty(), expected, "{unit:?} with {units:?}");
        }
        let mut restarts = restarts(RestartUnit::Kubelet, 5);
        for load in ["masked", "not-found"] {
            let state = UnitState { load: load.into(), active: "inactive".into(), ..UnitState::default() };
            let units = [(Unit::Kubelet, state)].into();
            restarts.due(&units, at(0));
            assert_eq!(restarts.due(&units, at(60)), (Vec::new(), BTreeSet::new()), "{load}");
        }
        let none = Restarts::new(Vec::new()).due(&states(&[(Unit::Kubelet, "failed")]), at(9));
        assert_eq!(none, (Vec::new(), BTreeSet::new()), "nothing is done unless it is set");
    }
}
