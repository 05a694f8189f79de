//! `podsecctl test-alert`: whether alerts arrive.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::checks::own::ids::{MAIL_FAILING, MAIL_REFUSED, MAIL_UNCONFIGURED, TEST_ALERT};
use crate::config::Root;
use crate::control::{Answer, Request, Sent};
use crate::report::text::one_line;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use super::digest::{ask, send};
use super::status;

/// How long journald and the status file may take.
const SOON: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct TestAlert {
    /// How long to wait for the delivery of the mail, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Print one JSON object: subject, and for each leg whether it arrived and what is known of it
    #[arg(long)]
    json: bool,
    /// Of the podsecd that runs with --root DIR; its findings are on its terminal, not in a journal
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Whether it arrived, and what is known of it.
type Leg = (&'static str, bool, String);

impl TestAlert {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let root = Root::new(self.root);
        let subject = match ask(&root, &Request::TestAlert)? {
            Answer::TestAlert(subject) => subject,
            other => bail!("podsecd answers {other:?}"),
        };
        let journal = if root.is_elsewhere() {
            ("journal", true, "podsecd has it on its terminal".to_owned())
        } else {
            in_journal(&subject)
        };
        let legs = [journal, in_status(&root), in_mail(&root, Duration::from_secs(self.wait))];
        let mut out = io::stdout().lock();
        if self.json {
            let leg = |(name, arrived, known): &Leg| json!({ "leg": name, "arrived": arrived, "known": known });
            writeln!(out, "{}", json!({ "subject": subject, "legs": legs.iter().map(leg).collect::<Vec<_>>() }))?;
        } else {
            writeln!(out, "{subject}: {TEST_ALERT}")?;
            for (name, arrived, known) in &legs {
                let arrived = if *arrived { "arrived" } else { "NOT ARRIVED" };
                writeln!(out, "{name:<8} {arrived:<12} {}", one_line(known))?;
            }
        }
        let all = legs.iter().all(|(_, arrived, _)| *arrived);
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Looks until something is there; `None` if it is not in time.
fn wait<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        let found = look();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        sleep(LOOK);
    }
}

fn in_journal(subject: &str) -> Leg {
    let matches = [format!("PODSEC_FINDING={TEST_ALERT}"), format!("PODSEC_SUBJECT={subject}")];
    let query = format!("journalctl '{}' '{}'", matches[0], matches[1]);
    let look =
        || match Command::new("journalctl").args(["--quiet", "--no-pager", "--output=cat"]).args(&matches).output() {
            Err(error) => Some(Err(format!("journald has taken it; journalctl cannot be run: {error}"))),
            Ok(output) => (!output.stdout.is_empty()).then_some(Ok(())),
        };
    match wait(SOON, look) {
        Some(Ok(())) => ("journal", true, query),
        Some(Err(why)) => ("journal", false, why),
        None => ("journal", false, format!("journald has taken it, and {query} does not show it")),
    }
}

fn in_status(root: &Root) -> Leg {
    let look = || {
        let (status, age) = status::read(root).ok()?;
        let counts = status.checks.get("self")?.findings.iter().any(|finding| finding.id == TEST_ALERT.0);
        (counts && status.is_fresh(age)).then_some(status.checks["self"].metric)
    };
    match wait(SOON, look) {
        Some(metric) => ("status", true, format!("podsecctl status; check self has the metric {metric}")),
        None => ("status", false, "status.json does not count it".to_owned()),
    }
}

fn in_mail(root: &Root, time: Duration) -> Leg {
    let number = match send(root) {
        Ok(Sent { number: Some(number), .. }) => number,
        Ok(Sent { why: Some(why), .. }) => return ("mail", false, why),
        Ok(_) => return ("mail", false, "its digest was made already; see podsecctl status".to_owned()),
        Err(error) => return ("mail", false, format!("{error:#}")),
    };
    // Later ones may be delivered while this one is refused.
    let fate = wait(time, || {
        let mail = status::read(root).ok()?.0.mail?;
        let refused = mail.refused.contains(&number);
        (refused || mail.delivered.is_some_and(|delivered| delivered >= number)).then_some(refused)
    });
    match fate {
        Some(false) => return ("mail", true, format!("digest {number} was delivered")),
        Some(true) => {
            let query = format!("journalctl PODSEC_FINDING={MAIL_REFUSED}");
            return ("mail", false, format!("digest {number} was refused and is kept aside; {query} says why"));
        }
        None => {}
    }
    let conditions = status::read(root).map(|(status, _)| status.conditions).unwrap_or_default();
    let why = conditions.into_iter().find(|open| [MAIL_UNCONFIGURED.0, MAIL_FAILING.0].contains(&open.id.as_str()));
    let known = why.map_or_else(
        || "see journalctl -u podsecd-mail".to_owned(),
        |open| format!("{}; {}", open.message, open.remedy),
    );
    ("mail", false, format!("digest {number} waits in the outbox: {known}"))
}
