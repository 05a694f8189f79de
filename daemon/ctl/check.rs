//! `podsecctl check`: a check's metric as a Nagios plugin answers
//! (<https://nagios-plugins.org/doc/guidelines.html>).

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use crate::checks::NAMES;
use crate::checks::kubeapi::observe::{Batch, collect};
use crate::checks::own::ids::AUDIT_LOG_UNAVAILABLE;
use crate::checks::policy::source::look_once;
use crate::config::{self, Root};
use crate::guardian::Guardian;
use crate::report::checkpoint::State;
use crate::report::status::{self, CheckStatus, Condition, Counted, Status};
use crate::report::text::one_line;
use crate::score::{Level, Levels, Range};
use crate::watch::follow::{Follower, LogFiles, Position, Step};
use anyhow::Result;
use clap::Args;
use nix::unistd::Uid;
use serde::Serialize;

#[derive(Args)]
pub(crate) struct Check {
    /// Name of the check: kubeapi, policy, images, containers, forwards, controlplane or self
    name: String,
    /// Evaluate now, without the daemon's status, as policy and images are for root where no daemon runs (kubeapi: the last
    /// window of the audit log)
    #[arg(long)]
    now: bool,
    /// Take every path below DIR, and evaluate now
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Show the findings that count, and what holds of whom; twice, also what they mean
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    ranges: Ranges,
}

/// Ranges in place of the configured ones, for the level of the metric.
#[derive(Args)]
#[group(multiple = true)]
struct Ranges {
    /// Nagios range: outside of it the metric is Crash
    #[arg(long, value_name = "RANGE")]
    crash: Option<Range>,
    /// … Fatal
    #[arg(long, value_name = "RANGE")]
    fatal: Option<Range>,
    /// … Critical
    #[arg(long, value_name = "RANGE")]
    critical: Option<Range>,
    /// … High
    #[arg(long, value_name = "RANGE")]
    high: Option<Range>,
    /// … Middle
    #[arg(long, value_name = "RANGE")]
    middle: Option<Range>,
    /// … Warning
    #[arg(long, value_name = "RANGE")]
    warning: Option<Range>,
    /// … Low
    #[arg(long, value_name = "RANGE")]
    low: Option<Range>,
    /// … Debug
    #[arg(long, value_name = "RANGE")]
    debug: Option<Range>,
}

/// `check NAME --json`.
#[derive(Serialize)]
struct Answer<'a> {
    check: &'a str,
    metric: u32,
    level: Level,
    findings: &'a [Counted],
}

/// How a check is, and what holds.
struct Found {
    status: CheckStatus,
    conditions: Vec<Condition>,
}

/// Exit code of a plugin that could not find out.
const UNKNOWN: u8 = 3;

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut out = io::stdout().lock();
        // What lies on the disk can be judged without a daemon, by whoever may read it.
        let can_evaluate = || matches!(self.name.as_str(), "policy" | "images") && Uid::effective().is_root();
        let found = if self.now || self.root.is_some() {
            self.evaluate()
        } else {
            self.ask().or_else(|why| if can_evaluate() { self.evaluate() } else { Err(why) })
        };
        let Found { mut status, conditions } = match found {
            Ok(found) => found,
            Err(why) => {
                writeln!(out, "{} UNKNOWN: {why}", self.name.to_uppercase())?;
                return Ok(ExitCode::from(UNKNOWN));
            }
        };
        if let Some(levels) = self.ranges.levels() {
            status.level = levels.of(status.metric);
        }
        let (metric, level) = (status.metric, status.level);
        if self.json {
            let answer = Answer { check: &self.name, metric, level, findings: &status.findings };
            writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        } else {
            let word = ["OK", "WARNING", "CRITICAL"][usize::from(level.nagios())];
            let ids: Vec<_> = status.findings.iter().map(|finding| finding.id.as_str()).collect();
            let ids = if ids.is_empty() { "nothing found".to_owned() } else { ids.join(", ") };
            writeln!(
                out,
                "{} {word}: metric {metric} ({level}): {ids} | metric={metric};;;0",
                self.name.to_uppercase()
            )?;
            for finding in status.findings.iter().filter(|_| self.verbose > 0) {
                write!(out, "{:>5} {:<28} {}", finding.weight, finding.id, finding.time)?;
                writeln!(out, "{}", if self.verbose > 1 { format!(" {}", finding.meaning) } else { String::new() })?;
                for condition in conditions.iter().filter(|condition| condition.id == finding.id) {
                    writeln!(out, "      {}", one_line(&condition.message))?;
                }
            }
        }
        Ok(ExitCode::from(level.nagios()))
    }

    /// From the status file.
    fn ask(&self) -> Result<Found, String> {
        let path = std::path::Path::new(status::PATH);
        let (status, age) = Status::read(path)
            .map_err(|error| format!("cannot read {}: {error}; is podsecd running?", path.display()))?;
        if !status.is_fresh(age) {
            return Err(format!("podsecd has not touched {} for {age} s; is it running?", path.display()));
        }
        let unwatched = |condition: &&Condition| condition.id == AUDIT_LOG_UNAVAILABLE.0;
        if self.name == "kubeapi"
            && let Some(condition) = status.conditions.iter().find(unwatched)
        {
            return Err(format!("nothing is watched: {}", one_line(&condition.message)));
        }
        let known: Vec<_> = status.checks.keys().cloned().collect();
        let mut checks = status.checks;
        let check = checks.remove(&self.name).ok_or_else(|| {
            let is_known = NAMES.contains(&self.name.as_str());
            if is_known {
                "podsecd has not looked at it yet".into()
            } else {
                no_such_check(&self.name, &known.join(", "))
            }
        })?;
        Ok(Found { status: check, conditions: status.conditions })
    }

    /// Without a daemon.
    fn evaluate(&self) -> Result<Found, String> {
        if !NAMES.contains(&self.name.as_str()) {
            return Err(no_such_check(&self.name, &NAMES.join(", ")));
        }
        let root = Root::new(self.root.clone());
        let config = config::load(None, &root).map_err(|error| error.to_string())?;
        let now = SystemTime::now();
        let mut guardian = Guardian::new(config, State::default(), false, now);
        match self.name.as_str() {
            "kubeapi" => read_log(&mut guardian, &root, now)?,
            "policy" | "images" => {
                let (settings, images) = (guardian.config().policy.clone(), self.name == "images");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let looked =
                    runtime.and_then(|runtime| runtime.block_on(look_once(root.directory(), settings, images)));
                let cannot = |error| format!("cannot look at {}: {error}", root.path("/").display());
                let observation = looked.map_err(cannot)?;
                guardian.assess_policy(observation, now);
            }
            _ => return Err("only the daemon can tell; ask without --now and --root".into()),
        }
        let conditions = guardian.status(0, now).conditions;
        Ok(Found { status: guardian.check_status(&self.name, now), conditions })
    }
}

/// Takes in the last window of the audit log.
fn read_log(guardian: &mut Guardian, root: &Root, now: SystemTime) -> Result<(), String> {
    let files = LogFiles::new(&root.path(&guardian.config().kubeapi.audit_log));
    let cannot = |error: io::Error| format!("cannot read {}: {error}", files.live().display());
    let mut follower = Follower::new(files.clone(), recent(&files, guardian, now));
    let mut observations = Vec::new();
    loop {
        match follower.step(&mut |observed| collect(observed, &mut observations)).map_err(cannot)? {
            Step::Read => {}
            Step::CaughtUp => return Ok(()),
            Step::Absent => return Err(format!("{} is not there", files.live().display())),
        }
        let (observations, position) = (std::mem::take(&mut observations), Position::default());
        guardian.assess(Batch { observations, position, lag: 0 }, now);
        drop(guardian.cycle());
    }
}

/// The position behind those backups that end before the window.
fn recent(files: &LogFiles, guardian: &Guardian, now: SystemTime) -> Position {
    let since = now.checked_sub(guardian.config().metric_window.get()).unwrap_or(SystemTime::UNIX_EPOCH);
    // A stamp is the time of the rotation, written with dashes: `2026-11-22T03-05-05.122`.
    let since = humantime::format_rfc3339_millis(since).to_string().replace(':', "-");
    let backups = files.backups().unwrap_or_default();
    let read = backups.into_keys().take_while(|stamp| stamp.as_str() < since.trim_end_matches('Z')).collect();
    Position { read: Arc::new(read), ..Position::default() }
}

fn no_such_check(name: &str, known: &str) -> String {
    format!("there is no check `{name}`; there are {known}")
}

impl Ranges {
    /// The levels by these ranges, if there is any.
    fn levels(self) -> Option<Levels> {
        let Ranges { crash, fatal, critical, high, middle, warning, low, debug } = self;
        let any = [crash, fatal, critical, high, middle, warning, low, debug].iter().any(Option::is_some);
        any.then_some(Levels { crash, fatal, critical, high, middle, warning, low, debug })
    }
}
