//! `podsecctl takeover`: what of podsec-inotify this node still starts. It changes nothing.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Root;
use crate::report::text::{one_line, shown_json};
use crate::takeover::{crontab, units};
use anyhow::Result;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub(crate) struct Takeover {
    /// Print one JSON object: enabled, vulnerabilities (units), crontab (lines), unread (files)
    #[arg(long)]
    json: bool,
    /// Take every path below DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Takeover {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let root = Root::new(self.root);
        let enabled = units::enabled(&root, units::REPLACED);
        let vulnerabilities = units::enabled(&root, units::VULNERABILITIES);
        let (lines, unread) = crontab::find(&root);
        let mut out = io::stdout().lock();
        if self.json {
            let crontab = lines
                .iter()
                .map(|line| json!({ "file": line.file.to_string_lossy(), "line": line.number, "text": line.text }));
            let unread =
                unread.iter().map(|(file, why)| json!({ "file": file.to_string_lossy(), "error": why.to_string() }));
            let answer = json!({ "enabled": enabled, "vulnerabilities": vulnerabilities,
                "crontab": crontab.collect::<Vec<_>>(), "unread": unread.collect::<Vec<_>>() });
            writeln!(out, "{}", shown_json(&answer.to_string()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if enabled.is_empty() {
            writeln!(out, "no unit of podsec-inotify is enabled whose work podsecd does")?;
        } else {
            writeln!(out, "enabled, and podsecd does their work: systemctl disable --now {}", enabled.join(" "))?;
        }
        if !vulnerabilities.is_empty() {
            let names = vulnerabilities.join(" ");
            writeln!(out, "enabled, and to be kept, as podsecd looks for no known vulnerabilities: {names}")?;
        }
        for line in &lines {
            let place = format!("{}:{}: {}", line.file.display(), line.number, line.text);
            writeln!(out, "{}", one_line(&place))?;
        }
        if !lines.is_empty() {
            writeln!(out, "these lines start podsec-inotify, too: take them out (root's with crontab -e)")?;
        }
        for (file, why) in &unread {
            writeln!(out, "{}", one_line(&format!("cannot read {}: {why}", file.display())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
