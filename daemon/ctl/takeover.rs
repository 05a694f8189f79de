//! `podsecctl takeover`: the switch from podsec-inotify to podsecd, shown, done or undone.

mod switch;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{self, Root};
use crate::report::text::{one_line, shown_json};
use crate::takeover::beginning::Beginning;
use crate::takeover::crontab::{self, Line};
use crate::takeover::units::{self, OF_AUDIT_LOG, OF_CONTAINERS, PODSECD, U7S, Unit, VULNERABILITIES};
use crate::watch::follow::Start;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

#[derive(Args)]
pub(crate) struct Takeover {
    /// Switch: start podsecd, turn podsec-inotify off whose work it does. Running it again is harmless
    #[arg(long, conflicts_with_all = ["undo", "json", "root"])]
    yes: bool,
    /// Turn podsec-inotify-check-vuln off, too; then nobody looks for known vulnerabilities in images
    #[arg(long, requires = "yes")]
    vuln: bool,
    /// Go back: turn on what --yes turned off, and podsecd off if it was before
    #[arg(long, conflicts_with_all = ["json", "root"])]
    undo: bool,
    /// Print one JSON object: enabled, vulnerabilities, units, asked, begins, crontab (lines), unread (files)
    #[arg(long)]
    json: bool,
    /// Take every path below DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Takeover {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.yes {
            switch::take(self.vuln)?;
        } else if self.undo {
            switch::undo()?;
        } else {
            let seen = Seen::of(&Root::new(self.root));
            let shown = if self.json { shown_json(&seen.json().to_string()).into_owned() + "\n" } else { seen.text() };
            io::stdout().lock().write_all(shown.as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How a node stands between podsec-inotify and podsecd.
struct Seen {
    units: Vec<Unit>,
    /// Why systemd was not asked, if it was not.
    unasked: Option<String>,
    begins: Result<Beginning>,
    crontab: Crontab,
}

/// Lines of crontabs that start podsec-inotify, and what could not be read.
struct Crontab {
    lines: Vec<Line>,
    unread: Vec<(PathBuf, io::Error)>,
}

impl Seen {
    fn of(root: &Root) -> Seen {
        let names = [OF_AUDIT_LOG, OF_CONTAINERS, VULNERABILITIES, &[PODSECD, U7S]].concat();
        let asked = if root.is_elsewhere() {
            Err("this is another tree".to_owned())
        } else {
            units::ask(&names).map_err(|error| format!("{error:#}"))
        };
        let (units, unasked) = match asked {
            Ok(units) => (units, None),
            Err(why) => (units::by_links(root, &names), Some(why)),
        };
        let podsecd_runs = units.iter().any(|unit| unit.name == PODSECD && unit.runs());
        let config = config::load(None, root).map_err(anyhow::Error::from);
        let begins = config.and_then(|config| Beginning::find(&config, root, podsecd_runs));
        Seen { units, unasked, begins, crontab: Crontab::find(root) }
    }

    /// The units of that kind that are, in their order.
    fn units(&self, names: &[&str], are: impl Fn(&Unit) -> bool) -> Vec<&'static str> {
        let of_them = self.units.iter().filter(|unit| names.contains(&unit.name) && are(unit));
        of_them.map(|unit| unit.name).collect()
    }

    fn json(&self) -> Value {
        let replaced = [OF_AUDIT_LOG, OF_CONTAINERS].concat();
        let units = self.units.iter().filter(|unit| unit.is_installed);
        let units = units.map(|unit| json!({ "unit": unit.name, "enabled": unit.enabled, "active": unit.active }));
        let begins = match &self.begins {
            Ok(Beginning::There(why)) => json!({ "at": "known", "why": why }),
            Ok(Beginning::Behind(received, place)) => {
                json!({ "at": "event", "received": received, "file": place.file, "offset": place.offset })
            }
            Ok(Beginning::Configured(Start::Oldest, why)) => json!({ "at": "oldest", "why": why }),
            Ok(Beginning::Configured(Start::End, why)) => json!({ "at": "end", "why": why }),
            Err(error) => json!({ "at": null, "why": format!("{error:#}") }),
        };
        let lines = self.crontab.lines.iter();
        let lines =
            lines.map(|line| json!({ "file": line.file.to_string_lossy(), "line": line.number, "text": line.text }));
        let unread = self.crontab.unread.iter();
        let unread = unread.map(|(file, why)| json!({ "file": file.to_string_lossy(), "error": why.to_string() }));
        json!({
            "enabled": self.units(&replaced, Unit::is_enabled),
            "vulnerabilities": self.units(VULNERABILITIES, Unit::is_enabled),
            "units": units.collect::<Vec<_>>(),
            "asked": if self.unasked.is_none() { "systemd" } else { "links" },
            "begins": begins,
            "crontab": lines.collect::<Vec<_>>(),
            "unread": unread.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let installed: Vec<_> = self.units.iter().filter(|unit| unit.is_installed).collect();
        let width = installed.iter().map(|unit| unit.name.len()).max();
        if let Some(width) = width {
            say(&mut text, &format!("{:width$}  {:<15}  ACTIVE", "UNIT", "ENABLED"));
        }
        for unit in installed {
            let (width, active) = (width.unwrap_or(0), unit.active.as_deref().unwrap_or("unknown"));
            say(&mut text, &format!("{:width$}  {:<15}  {active}", unit.name, unit.enabled));
        }
        if let Some(why) = &self.unasked {
            say(&mut text, &format!("systemd was not asked, only links that enable units were looked at: {why}"));
        }
        let on = self.units(&[OF_AUDIT_LOG, OF_CONTAINERS].concat(), Unit::is_on);
        if on.is_empty() {
            say(&mut text, "no unit of podsec-inotify is enabled or runs whose work podsecd does");
        } else {
            let by_hand = format!("systemctl disable --now {}", on.join(" "));
            say(&mut text, &format!("podsecd does their work; podsecctl takeover --yes switches; by hand: {by_hand}"));
        }
        let kept = self.units(VULNERABILITIES, Unit::is_on);
        if !kept.is_empty() {
            say(&mut text, &format!("to be kept, as podsecd looks for no known vulnerabilities: {}", kept.join(" ")));
        }
        match &self.begins {
            Ok(beginning) => say(&mut text, &beginning.to_string()),
            Err(error) => say(&mut text, &format!("where podsecd begins cannot be said: {error:#}")),
        }
        text + &self.crontab.text()
    }
}

impl Crontab {
    fn find(root: &Root) -> Crontab {
        let (lines, unread) = crontab::find(root);
        Crontab { lines, unread }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            say(&mut text, &format!("{}:{}: {}", line.file.display(), line.number, line.text));
        }
        if !self.lines.is_empty() {
            say(&mut text, "these lines start podsec-inotify, too: take them out (root's with crontab -e)");
        }
        for (file, why) in &self.unread {
            say(&mut text, &format!("cannot read {}: {why}", file.display()));
        }
        text
    }
}

/// Adds a line. What is in it may be an attacker's.
fn say(text: &mut String, line: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{}", one_line(line));
}
