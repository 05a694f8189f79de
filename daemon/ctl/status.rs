//! `podsecctl status`: what podsecd knows.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Root;
use crate::report::status::{MailStatus, PATH, Status};
use crate::report::text::one_line;
use anyhow::{Context, Result};
use clap::Args;

#[derive(Args)]
pub(crate) struct StatusCommand {
    /// The status file as it is
    #[arg(long)]
    json: bool,
    /// Of the podsecd that runs with --root DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl StatusCommand {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let (status, age) = read(&Root::new(self.root))?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
        } else {
            print(&mut out, &status, age)?;
        }
        Ok(if status.is_fresh(age) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The status, and how many seconds ago it was touched.
pub(crate) fn read(root: &Root) -> Result<(Status, u64)> {
    let path = root.path(PATH);
    Status::read(&path)
        .with_context(|| format!("cannot read {}; is podsecd running? (systemctl status podsecd)", path.display()))
}

fn print(out: &mut impl Write, status: &Status, age: u64) -> Result<()> {
    let alive = if status.is_fresh(age) { "alive" } else { "NOT ALIVE" };
    let Status { version, pid, started, .. } = status;
    writeln!(out, "podsecd {version}, process {pid}, started {started}, {alive} {age} s ago")?;
    writeln!(out)?;
    for (name, check) in &status.checks {
        writeln!(out, "check {name}: metric {} ({})", check.metric, check.level)?;
        for finding in &check.findings {
            writeln!(out, "{:>7} {:<28} {} {}", finding.weight, finding.id, &finding.time[..19], finding.meaning)?;
        }
    }
    writeln!(out)?;
    if status.conditions.is_empty() {
        writeln!(out, "no open conditions")?;
    }
    for condition in &status.conditions {
        let (subject, message) = (one_line(&condition.subject), one_line(&condition.message));
        writeln!(out, "open since {}: {} {} of {subject}", condition.since, condition.level, condition.id)?;
        writeln!(out, "        {message}")?;
        writeln!(out, "        remedy: {}", condition.remedy)?;
    }
    let log = &status.audit_log;
    let lag = if log.lag > 0 { format!("{} bytes behind", log.lag) } else { "nothing unread".to_owned() };
    match &log.file {
        _ if !log.expected => writeln!(out, "audit log: none, and none is expected of this node")?,
        Some(file) => writeln!(out, "audit log: {} read to byte {}, {lag}", one_line(file), log.offset)?,
        None => writeln!(out, "audit log: nothing read of the present file yet, {lag}")?,
    }
    if let Some(mail) = &status.mail {
        print_mail(out, mail)?;
    }
    for (name, helper) in &status.helpers {
        match &helper.heard {
            Some(heard) => writeln!(out, "{name}: reported at {heard}")?,
            None => writeln!(out, "{name}: nothing to report since the start")?,
        }
    }
    let total: u64 = status.counts.values().sum();
    writeln!(out, "findings since the start: {total}")?;
    for (id, count) in &status.counts {
        writeln!(out, "{count:>7} {id}")?;
    }
    let losses = &status.losses;
    if *losses != Default::default() {
        writeln!(
            out,
            "LOSSES: {} unreadable bytes, {} lost files, log changed by others {} times",
            losses.unreadable_bytes, losses.lost_files, losses.tampered
        )?;
    }
    Ok(())
}

fn print_mail(out: &mut impl Write, mail: &MailStatus) -> Result<()> {
    match &mail.due {
        Some(due) => write!(out, "mail: digest {} at {due}", mail.next)?,
        None => write!(out, "mail: nothing to say yet in digest {}", mail.next)?,
    }
    if let (Some(number), Some(time)) = (mail.delivered, &mail.delivered_at) {
        write!(out, ", digest {number} delivered at {time}")?;
    }
    if let Some(since) = &mail.waiting_since {
        write!(out, "; {} wait to be delivered, the oldest since {since}", mail.waiting)?;
    }
    if let Some(last) = mail.refused.last() {
        write!(out, "; {} REFUSED and kept aside, the last is {last} (podsecctl digest send)", mail.refused.len())?;
    }
    if mail.dropped > 0 {
        write!(out, "; {} DROPPED", mail.dropped)?;
    }
    if mail.left_out > 0 {
        write!(out, "; {} findings too many for the next digest, the journal has them", mail.left_out)?;
    }
    Ok(writeln!(out)?)
}
