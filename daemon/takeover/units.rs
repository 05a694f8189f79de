//! Units of podsec-inotify that systemd starts with the node: systemctl(1), `enable`.

use std::fs;

use crate::config::Root;

/// Those whose work podsecd does, as podsec 1.1.20 installs them.
pub const REPLACED: &[&str] = &[
    "podsec-inotify-check-containers.service",
    "podsec-inotify-check-images.service",
    "podsec-inotify-check-images.timer",
    "podsec-inotify-check-kubeapi.service",
    "podsec-inotify-check-kubeapi-mail.service",
    "podsec-inotify-check-kubeapi-mail.timer",
    "podsec-inotify-check-policy.service",
    "podsec-inotify-check-policy.timer",
];
/// Those that look for known vulnerabilities in images, which podsecd does not.
pub const VULNERABILITIES: &[&str] = &["podsec-inotify-check-vuln.service", "podsec-inotify-check-vuln.timer"];

/// Where `systemctl enable` makes the links of these units.
const WANTED: &[&str] = &["/etc/systemd/system/multi-user.target.wants", "/etc/systemd/system/timers.target.wants"];

/// Those of these units that are enabled, in their order. Whether they run now is not known by that.
pub fn enabled(root: &Root, units: &[&'static str]) -> Vec<&'static str> {
    let is_wanted = |unit: &&str| WANTED.iter().any(|wants| fs::symlink_metadata(root.path(wants).join(unit)).is_ok());
    units.iter().copied().filter(is_wanted).collect()
}
