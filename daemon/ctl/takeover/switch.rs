//! `podsecctl takeover --yes` and `--undo`.
//!
//! The order of a takeover: what follows the audit log goes off first, then forbidden.log has its last line and the place
//! behind it is found; the log keeps what comes meanwhile, and podsecd reads it when it starts. Containers, images and
//! policies, which nobody could look at later, stay watched by podsec-inotify until podsecd watches them: what changes in
//! that second may be told twice. Going back, podsecd goes off when podsec-inotify watches containers again, and before it
//! follows the audit log again: both write forbidden.log.

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use super::Crontab;
use crate::config::{self, Config, Root};
use crate::report::text::one_line;
use crate::start::U7S_USER;
use crate::takeover::beginning::Beginning;
use crate::takeover::list;
use crate::takeover::record::{self, Record};
use crate::takeover::state;
use crate::takeover::units::{OF_AUDIT_LOG, OF_CONTAINERS, PODSECD, U7S, Unit, VULNERABILITIES, ask, systemctl};
use anyhow::{Context, Error, Result, anyhow, bail};

/// What to do when a step failed.
const REPEAT: &str = "put that right and repeat podsecctl takeover --yes, or go back with --undo";
const REPEAT_UNDO: &str = "put that right and repeat podsecctl takeover --undo";

/// Switches to podsecd.
pub(super) fn take(vuln: bool) -> Result<()> {
    require_root("--yes")?;
    let config = config::load(None, &Root::default())?;
    let audit_log = ask(OF_AUDIT_LOG)?;
    let vulnerabilities = ask(VULNERABILITIES)?;
    let mut others = ask(OF_CONTAINERS)?;
    if vuln {
        others.extend(vulnerabilities.iter().cloned());
    }
    let podsecd = podsecd()?;
    let all = [&audit_log[..], &others].concat();
    if podsecd.is_enabled() && podsecd.runs() && !all.iter().any(Unit::is_on) {
        tell("podsecd is enabled and runs, and nothing of podsec-inotify is on whose work it does");
    } else {
        // What cannot be found then is known before anything is turned off.
        Beginning::find(&config, &Root::default(), podsecd.runs())?;
        keep_record(all.iter().filter(|unit| unit.is_on()).chain([&podsecd]))?;
        turn_off(&audit_log).or_else(advise(REPEAT))?;
        begin(&config, podsecd.runs()).or_else(advise(REPEAT))?;
        list::set_aside().or_else(advise(REPEAT))?;
        tell_systemctl(&["enable", "--now"], &[PODSECD], "enabled and started").or_else(advise(REPEAT))?;
        turn_off(&others).or_else(advise(REPEAT))?;
        see_them_off(&all).or_else(advise(REPEAT))?;
    }
    tell_what_is_left(vuln, &vulnerabilities)
}

/// Goes back to how the node was before the takeover.
pub(super) fn undo() -> Result<()> {
    require_root("--undo")?;
    let Some(record) = Record::load(Path::new(record::PATH))? else {
        bail!("there is nothing to undo: no takeover left its record, {}", record::PATH);
    };
    turn_on(&record, &[OF_CONTAINERS, VULNERABILITIES].concat()).or_else(advise(REPEAT_UNDO))?;
    let podsecd = ask(&[PODSECD])?.pop().filter(|podsecd| podsecd.is_installed);
    if let (Some(podsecd), Some(was)) = (podsecd, record.units.get(PODSECD)) {
        let only_if = |is_wanted: bool| if is_wanted { &[PODSECD][..] } else { &[] };
        tell_systemctl(&["disable"], only_if(podsecd.is_enabled() && !was.enabled), "disabled")
            .and_then(|()| tell_systemctl(&["stop"], only_if(podsecd.is_active() && !was.active), "stopped"))
            .or_else(advise(REPEAT_UNDO))?;
        if !was.active {
            list::put_back().or_else(advise(REPEAT_UNDO))?;
        }
    }
    turn_on(&record, OF_AUDIT_LOG).or_else(advise(REPEAT_UNDO))?;
    Record::remove(Path::new(record::PATH))?;
    tell(&format!("the takeover is undone; what podsecd knows stays in {}", state::DIRECTORY));
    Ok(())
}

/// Says with the error of a step what to do.
fn advise<T>(remedy: &str) -> impl FnOnce(Error) -> Result<T> {
    move |error| Err(anyhow!("{error:#}; {remedy}"))
}

fn require_root(option: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("takeover {option} turns units off and on: run it as root");
    }
    Ok(())
}

/// How podsecd is, if it can be started.
fn podsecd() -> Result<Unit> {
    let podsecd = ask(&[PODSECD])?.pop().context("systemd says nothing")?;
    if !podsecd.is_installed {
        bail!("{PODSECD} is not there: install podsecd's package");
    }
    if podsecd.is_masked() {
        bail!("{PODSECD} is masked: systemctl unmask podsecd");
    }
    Ok(podsecd)
}

/// Keeps how the units are that will be changed, beside what an earlier takeover kept.
fn keep_record<'u>(units: impl Iterator<Item = &'u Unit>) -> Result<()> {
    state::make()?;
    let path = Path::new(record::PATH);
    let mut record = Record::load(path)?.unwrap_or_default();
    units.for_each(|unit| record.note(unit));
    record.save(path)
}

/// Sees that podsecd will begin where podsec-inotify ended.
fn begin(config: &Config, podsecd_runs: bool) -> Result<()> {
    let beginning = Beginning::find(config, &Root::default(), podsecd_runs)?;
    beginning.keep(config, SystemTime::now())?;
    tell(&beginning.to_string());
    Ok(())
}

/// Turns these units off, if one of them is on: all of them, because the timers and services start each other.
fn turn_off(units: &[Unit]) -> Result<()> {
    let on = names(units.iter().filter(|unit| unit.is_on()));
    if on.is_empty() {
        return Ok(());
    }
    let enabled = names(units.iter().filter(|unit| unit.is_enabled()));
    if !enabled.is_empty() {
        systemctl(["disable"].into_iter().chain(enabled))?;
    }
    let there = names(units.iter().filter(|unit| unit.is_active() || unit.is_installed && !unit.is_masked()));
    systemctl(["stop"].into_iter().chain(there))?;
    tell(&format!("turned off: {}", on.join(" ")));
    Ok(())
}

/// Turns on of podsec-inotify what a takeover turned off.
fn turn_on(record: &Record, units: &[&'static str]) -> Result<()> {
    let units = ask(units)?;
    let recorded = units.iter().filter_map(|unit| Some((unit, record.units.get(unit.name)?)));
    let (usable, rest): (Vec<_>, Vec<_>) = recorded.partition(|(unit, _)| unit.is_installed && !unit.is_masked());
    for (unit, _) in rest {
        let why = if unit.is_masked() { "masked" } else { "not installed any more" };
        tell(&format!("left as it is, because it is {why}: {}", unit.name));
    }
    let enabled = usable.iter().filter(|(unit, was)| was.enabled && !unit.is_enabled());
    tell_systemctl(&["enable"], &names(enabled.map(|(unit, _)| *unit)), "enabled again")?;
    let active = usable.iter().filter(|(unit, was)| was.active && !unit.is_active());
    tell_systemctl(&["start"], &names(active.map(|(unit, _)| *unit)), "started again")
}

/// Whatever systemctl said: none of them may be on any more.
fn see_them_off(units: &[Unit]) -> Result<()> {
    let still = ask(&names(units.iter()))?;
    let on = names(still.iter().filter(|unit| unit.is_on()));
    if !on.is_empty() {
        bail!("still enabled or running: {}; see systemctl status", on.join(" "));
    }
    Ok(())
}

/// Tells what the takeover does not do, and who has to.
fn tell_what_is_left(vuln: bool, vulnerabilities: &[Unit]) -> Result<()> {
    let kept = names(vulnerabilities.iter().filter(|unit| unit.is_on()));
    if vuln {
        tell("nobody looks for known vulnerabilities in images now: podsecd does not");
    } else if !kept.is_empty() {
        tell(&format!("kept, as podsecd looks for no known vulnerabilities: {}", kept.join(" ")));
    }
    let u7s = ask(&[U7S])?.pop().filter(|unit| unit.is_installed && !unit.is_on());
    if u7s.is_some() && nix::unistd::User::from_name(U7S_USER)?.is_some() {
        tell(
            "left to you, as podsec-inotify has nothing like it: podsecd-u7s, for port forwards and the control plane \
             (systemctl enable --now podsecd-u7s)",
        );
    }
    Crontab::find(&Root::default()).text().lines().for_each(tell);
    Ok(())
}

/// Has systemctl do something with these units, if there are any, and tells it.
fn tell_systemctl(verb: &[&str], units: &[&str], done: &str) -> Result<()> {
    if !units.is_empty() {
        systemctl(verb.iter().chain(units).copied())?;
        tell(&format!("{done}: {}", units.join(" ")));
    }
    Ok(())
}

fn names<'u>(units: impl Iterator<Item = &'u Unit>) -> Vec<&'static str> {
    units.map(|unit| unit.name).collect()
}

/// Tells it. A reader who has seen enough does not end a switch half-way.
fn tell(line: &str) {
    let _ = writeln!(io::stdout(), "{}", one_line(line));
}
