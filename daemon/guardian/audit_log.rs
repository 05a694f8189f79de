//! What the audit log shows: of requests, of what was done to it, and whether it is there.

use std::time::SystemTime;

use super::{Guardian, event};
use crate::checks::controlplane::seen::{Part, Role};
use crate::checks::controlplane::settings::{Expected, RoleSetting};
use crate::checks::kubeapi::observe::{Availability, Batch, Observation};
use crate::checks::{kubeapi, own};
use crate::finding::Kind;
use crate::score::{condition, rfc3339};
use crate::watch::follow::{Change, Notice, Position};

/// Subject of the audit log's own conditions.
const SUBJECT: &str = "audit.log";

impl Guardian {
    /// Where the audit log is to be read on by a source that starts now; `None` if it was never read.
    pub fn position(&self) -> Option<&Position> {
        self.audit_logs.get(self.config.kubeapi.audit_log.as_ref())
    }

    /// Sets where the audit log is to be read on.
    pub fn set_position(&mut self, position: Position) {
        match self.audit_logs.get_mut(self.config.kubeapi.audit_log.as_ref()) {
            Some(former) => *former = position,
            None => drop(self.audit_logs.insert(self.config.kubeapi.audit_log.as_ref().to_path_buf(), position)),
        }
    }

    /// Takes in what the audit log showed.
    pub fn assess(&mut self, batch: Batch, now: SystemTime) {
        for observation in batch.observations {
            match observation {
                Observation::Refused(event) => {
                    if let Some(finding) = self.assessor.assess_source(&event) {
                        self.find(finding, true, now);
                    }
                    if let Some(finding) = self.assessor.assess(*event) {
                        self.last_refusal = self.last_refusal.max(Some(finding.time));
                        self.find(finding, true, now);
                    }
                }
                Observation::Unreadable { file, offset, length } => {
                    self.losses.unreadable_bytes += length;
                    let message = format!("{length} bytes of {file} at offset {offset} are no audit event");
                    self.find(event(own::ids::AUDIT_LINE_UNREADABLE, &file, message, now), true, now);
                }
                Observation::Notice(notice) => self.notice(notice, now),
                Observation::Log(availability) => {
                    self.has_seen_log |= availability == Availability::Available;
                    self.log = Some(availability);
                    self.judge_log(now);
                }
            }
        }
        self.set_position(batch.position);
        self.lag = batch.lag;
        self.moved = true;
    }

    /// Says whether a log is missing that should be there. Both may change, what is there and what should be.
    pub fn judge_log(&mut self, now: SystemTime) {
        let (kind, message) = match &self.log {
            None => return,
            Some(Availability::Available) => (Kind::Cleared, "the audit log can be read".to_owned()),
            Some(Availability::Absent(_)) if !self.expects_log() => {
                (Kind::Cleared, "there is no audit log, and none is expected of this node".to_owned())
            }
            Some(Availability::Absent(why) | Availability::Unreadable(why)) => (Kind::Raised, why.clone()),
        };
        self.find(condition(own::ids::AUDIT_LOG_UNAVAILABLE, kind, SUBJECT, message, now), false, now);
    }

    /// Whether there should be a log: workers have none.
    pub(super) fn expects_log(&self) -> bool {
        let settings = &self.config.controlplane;
        match settings.role {
            _ if !settings.expects(Expected::Part(Part::KubeApiserver)) => false,
            RoleSetting::ControlPlane => true,
            RoleSetting::Worker => false,
            // Whoever takes the manifests away does not take the log with them: what was there once is missed.
            RoleSetting::Auto => self.role != Some(Role::Worker) || self.has_seen_log,
        }
    }

    fn notice(&mut self, notice: Notice, now: SystemTime) {
        // A backup stays as it is, and shows again where it is torn. What somebody did to the files shows once.
        let again = matches!(notice, Notice::Torn { .. });
        let (id, file, message) = match notice {
            Notice::Tampered { file, change, offset, size } => {
                self.losses.tampered += 1;
                let what = match change {
                    Change::Cut => format!("cut or written over: {offset} bytes had been read, it has {size} now"),
                    Change::Removed => format!("removed after {offset} bytes had been read"),
                    Change::Moved => format!("moved away after {offset} bytes had been read"),
                    Change::Replaced => {
                        format!("replaced after {offset} bytes had been read, by a file of {size} bytes")
                    }
                };
                let message = format!("the audit log {file} was {what}; kube-apiserver does not do that");
                (kubeapi::ids::AUDIT_TRUNCATED, file, message)
            }
            Notice::Lost { file, offset, next } => {
                self.losses.lost_files += 1;
                let since =
                    self.last_refusal.map_or_else(String::new, |time| format!(", last refusal {}", rfc3339(time)));
                let message = format!(
                    "events are lost, or may be: from offset {offset} of what was {file}{since}, to the beginning of {next}"
                );
                (own::ids::AUDIT_LOST, file, message)
            }
            Notice::Unseen { file, offset } => {
                self.losses.lost_files += 1;
                let message = format!(
                    "events may be lost: {file} was cut and had grown again when that was seen; what was written to it \
                     before offset {offset} was not read"
                );
                (own::ids::AUDIT_LOST, file, message)
            }
            Notice::Torn { file, offset } => {
                let message = format!("{file} is damaged behind byte {offset} and cannot be read further");
                (own::ids::AUDIT_LINE_UNREADABLE, file, message)
            }
        };
        self.find(event(id, &file, message, now), again, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::controlplane::settings::Settings;
    use crate::config::Config;
    use crate::report::checkpoint::State;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn batch(observation: Observation, position: Position) -> Batch {
        Batch { observations: vec![observation], position, lag: 0 }
    }

    #[test]
    fn only_what_stands_in_the_log_shows_again_after_a_restart() {
        let file = || "audit.log".to_owned();
        let shows_again = |observation| {
            let mut guardian = Guardian::new(Config::default(), State::default(), false, NOW);
            guardian.assess(batch(observation, Position::default()), NOW);
            let cycle = guardian.cycle();
            assert_eq!(cycle.findings.len(), 1);
            cycle.findings[0].again
        };
        for notice in [
            Notice::Tampered { file: file(), change: Change::Cut, offset: 7, size: 0 },
            Notice::Lost { file: file(), offset: 7, next: file() },
            Notice::Unseen { file: file(), offset: 7 },
        ] {
            assert!(!shows_again(Observation::Notice(notice.clone())), "{notice:?}");
        }
        assert!(!shows_again(Observation::Log(Availability::Absent("it is not there".into()))));
        assert!(shows_again(Observation::Unreadable { file: file(), offset: 7, length: 1 }));
        assert!(shows_again(Observation::Notice(Notice::Torn { file: file(), offset: 7 })));
    }

    #[test]
    fn a_log_that_is_absent_is_missed_where_there_should_be_one() {
        use RoleSetting::{Auto, ControlPlane, Worker};
        let absent = || Availability::Absent("it is not there".into());
        let unreadable = || Availability::Unreadable("it cannot be read".into());
        // What is set, and whether the node does without kube-apiserver; what is seen of the manifests, whether a log was there
        // before podsecd was started again, what it is now; whether it is missed.
        for (set, is_without, seen, was_there, log, expected) in [
            (Auto, false, Some(Role::ControlPlane), false, absent(), true),
            (Auto, true, Some(Role::ControlPlane), true, absent(), false),
            (Auto, false, Some(Role::Worker), false, absent(), false),
            (Auto, false, None, false, absent(), true),
            // The manifests went, too: by an administrator, who says so, or by whoever covers tracks.
            (Auto, false, Some(Role::Worker), true, absent(), true),
            (Worker, false, Some(Role::Worker), true, absent(), false),
            (ControlPlane, false, Some(Role::ControlPlane), false, absent(), true),
            (Auto, false, Some(Role::Worker), false, unreadable(), true),
            (Auto, false, Some(Role::ControlPlane), true, Availability::Available, false),
        ] {
            let without = if is_without { vec![Expected::Part(Part::KubeApiserver)] } else { Vec::new() };
            let controlplane = Settings { role: set, without, ..Settings::default() };
            let config = Config { controlplane, ..Config::default() };
            let case = format!("{set:?} {is_without} {seen:?} {was_there} {log:?}");
            let mut former = Guardian::new(config.clone(), State::default(), false, NOW);
            if was_there {
                // It may be empty.
                former.assess(batch(Observation::Log(Availability::Available), Position::default()), NOW);
            }
            let mut guardian = Guardian::new(config, former.state(), false, NOW);
            guardian.assess(batch(Observation::Log(log), Position::default()), NOW);
            guardian.note_role(seen.ok_or_else(|| std::io::ErrorKind::PermissionDenied.into()), NOW);
            assert_eq!(guardian.state().is_open(own::ids::AUDIT_LOG_UNAVAILABLE), expected, "{case}");
        }
    }

    #[test]
    fn another_configuration_changes_whether_it_is_missed() {
        let config = |role| Config { controlplane: Settings { role, ..Settings::default() }, ..Config::default() };
        let unseen = || Err(std::io::ErrorKind::PermissionDenied.into());
        let mut guardian = Guardian::new(config(RoleSetting::Worker), State::default(), false, NOW);
        guardian.note_role(Ok(Role::Worker), NOW);
        guardian
            .assess(batch(Observation::Log(Availability::Absent("it is not there".into())), Position::default()), NOW);
        assert!(!guardian.state().is_open(own::ids::AUDIT_LOG_UNAVAILABLE));
        guardian.configure(config(RoleSetting::Auto), false);
        guardian.note_role(unseen(), NOW);
        assert!(guardian.state().is_open(own::ids::AUDIT_LOG_UNAVAILABLE), "what the node is cannot be seen");
        guardian.configure(config(RoleSetting::Worker), false);
        guardian.judge_log(NOW);
        assert!(!guardian.state().is_open(own::ids::AUDIT_LOG_UNAVAILABLE));
    }

    #[test]
    fn a_worker_that_becomes_a_control_plane_misses_its_log_from_then_on() {
        let mut guardian = Guardian::new(Config::default(), State::default(), false, NOW);
        let is_missed = |guardian: &Guardian| {
            (guardian.state().is_open(own::ids::AUDIT_LOG_UNAVAILABLE), guardian.status(0, NOW).audit_log.expected)
        };
        guardian.note_role(Ok(Role::Worker), NOW);
        assert_eq!(is_missed(&guardian), (false, true), "nobody said yet whether it is there");
        let absent = Observation::Log(Availability::Absent("it is not there".into()));
        guardian.assess(batch(absent, Position::default()), NOW);
        assert_eq!(is_missed(&guardian), (false, false));
        guardian.note_role(Ok(Role::ControlPlane), NOW);
        assert_eq!(is_missed(&guardian), (true, true));
    }
}
