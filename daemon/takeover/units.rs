//! Units of podsec-inotify: how they are, and turning them off and on again.
//!
//! systemd is asked and told by systemctl(1). It waits until what it was told is done, it is what an administrator would
//! type, and for root it needs no message bus, which some profiles of ALT do not have.

use std::fs;
use std::process::Command;

use crate::config::Root;
use anyhow::{Context, Result, bail};

/// Those that follow the audit log, and send and empty forbidden.log, as podsec 1.1.20 installs them.
pub const OF_AUDIT_LOG: &[&str] = &[
    "podsec-inotify-check-kubeapi.service",
    "podsec-inotify-check-kubeapi-mail.service",
    "podsec-inotify-check-kubeapi-mail.timer",
];
/// The others whose work podsecd does.
pub const OF_CONTAINERS: &[&str] = &[
    "podsec-inotify-check-containers.service",
    "podsec-inotify-check-images.service",
    "podsec-inotify-check-images.timer",
    "podsec-inotify-check-policy.service",
    "podsec-inotify-check-policy.timer",
];
/// Those that look for known vulnerabilities in images, which podsecd does not.
pub const VULNERABILITIES: &[&str] = &["podsec-inotify-check-vuln.service", "podsec-inotify-check-vuln.timer"];
/// podsecd itself.
pub const PODSECD: &str = "podsecd.service";
/// What looks after port forwards and the control plane.
pub const U7S: &str = "podsecd-u7s.service";

/// Where `systemctl enable` makes the links of these units.
const WANTED: &[&str] = &["/etc/systemd/system/multi-user.target.wants", "/etc/systemd/system/timers.target.wants"];
/// What is asked of each unit.
const PROPERTIES: &[&str] = &["LoadState", "UnitFileState", "ActiveState"];

/// How a unit is, in systemd's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: &'static str,
    /// It is there.
    pub is_installed: bool,
    /// Whether the node starts it: systemctl(1), `is-enabled`.
    pub enabled: String,
    /// Whether it runs; `None` if systemd was not asked.
    pub active: Option<String>,
}

impl Unit {
    /// The node starts it.
    pub fn is_enabled(&self) -> bool {
        self.enabled.starts_with("enabled")
    }

    /// It runs, or is about to. What systemd starts again and again may just be ending.
    pub fn is_active(&self) -> bool {
        matches!(self.active.as_deref(), Some("active" | "activating" | "reloading" | "deactivating"))
    }

    /// It runs for sure.
    pub fn runs(&self) -> bool {
        matches!(self.active.as_deref(), Some("active" | "reloading"))
    }

    /// The administrator has seen to it that nothing starts it.
    pub fn is_masked(&self) -> bool {
        self.enabled.starts_with("masked")
    }

    /// It is to be turned off.
    pub fn is_on(&self) -> bool {
        // What is masked may run all the same.
        self.is_active() || self.is_enabled()
    }
}

/// How these units are, in their order, as systemd says.
///
/// # Errors
/// There is no systemd, or it does not answer.
pub fn ask(names: &[&'static str]) -> Result<Vec<Unit>> {
    let property = format!("--property={}", PROPERTIES.join(","));
    let shown = systemctl(["show", &property, "--"].into_iter().chain(names.iter().copied()))?;
    let units = parse(names, &shown);
    units.with_context(|| format!("systemctl show answers something else: {shown}"))
}

/// Reads what `systemctl show` says: one block for each unit, in their order.
fn parse(names: &[&'static str], shown: &str) -> Option<Vec<Unit>> {
    let blocks: Vec<_> = shown.trim_end().split("\n\n").collect();
    let unit = |(name, block): (&&'static str, &&str)| {
        let value = |property: &str| {
            block.lines().find_map(|line| line.strip_prefix(property)?.strip_prefix('=')).map(str::to_owned)
        };
        let [load, enabled, active] = PROPERTIES else { return None };
        let is_installed = value(load)? != "not-found";
        Some(Unit { name, is_installed, enabled: value(enabled)?, active: Some(value(active)?) })
    };
    (blocks.len() == names.len()).then(|| names.iter().zip(&blocks).map(unit).collect())?
}

/// How these units are, in their order, as the links say that `systemctl enable` makes: whether they run is not known by
/// that, nor what is installed and not enabled.
pub fn by_links(root: &Root, names: &[&'static str]) -> Vec<Unit> {
    let is_wanted = |unit: &str| WANTED.iter().any(|wants| fs::symlink_metadata(root.path(wants).join(unit)).is_ok());
    let unit = |name: &&'static str| {
        let is_wanted = is_wanted(name);
        let enabled = if is_wanted { "enabled" } else { "" }.to_owned();
        Unit { name, is_installed: is_wanted, enabled, active: None }
    };
    names.iter().map(unit).collect()
}

/// Has systemd do something; answers what systemctl prints.
///
/// # Errors
/// Why it does not, with what was asked.
pub fn systemctl<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let asked = || format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(&arguments).output().with_context(asked)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", asked(), why.trim().lines().collect::<Vec<_>>().join("; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read_and_anything_else_is_not() {
        let one = "LoadState=loaded\nActiveState=activating\nUnitFileState=enabled-runtime\n";
        let two = "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n";
        let units = parse(&["a.service", "b.timer"], &format!("{one}\n{two}")).expect("read");
        assert_eq!((units[0].name, units[0].is_installed, units[0].is_on()), ("a.service", true, true));
        assert_eq!((units[1].name, units[1].is_installed, units[1].is_on()), ("b.timer", false, false));
        for shown in ["", "nonsense", two, &one.repeat(2), &format!("{one}\n{two}\n{two}")] {
            assert_eq!(parse(&["a.service", "b.timer"], shown), None, "{shown}");
        }
    }

    #[test]
    fn what_is_enabled_or_runs_is_to_be_turned_off() {
        for (enabled, active, is_on) in [
            ("enabled", "inactive", true),
            ("enabled", "failed", true),
            ("disabled", "active", true),
            ("static", "activating", true),
            ("disabled", "inactive", false),
            ("", "inactive", false),
            ("masked", "inactive", false),
            ("masked-runtime", "active", true),
        ] {
            let unit = Unit { name: "x", is_installed: true, enabled: enabled.into(), active: Some(active.into()) };
            assert_eq!(unit.is_on(), is_on, "{enabled} {active}");
        }
    }
}
