//! What helpers say, whether they are there, and what podsecd sees by itself of what one of them looks after.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime};

use super::{Guardian, event};
use crate::checks::controlplane::seen::Role;
use crate::checks::controlplane::settings::RoleSetting;
use crate::checks::forwards::declared::{MAX_FORWARDS, declare};
use crate::checks::forwards::exposure::{self, Users};
use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::tables::Sockets;
use crate::checks::kubeapi::assess::parse_time;
use crate::checks::{controlplane, forwards, own};
use crate::finding::{Finding, Kind};
use crate::helper::{Helper, MAIL, MAX_PENDING, Refusal, Reported, Taken, U7S, What};
use crate::report::status::MailStatus;
use crate::score::condition;

/// It says something of a digest within this time: one try can take a quarter of an hour.
const NEW_DIGEST: Duration = Duration::from_secs(20 * 60);
/// And of one that it knows within this: it tries at least once an hour.
const OLD_DIGEST: Duration = Duration::from_secs(80 * 60);
/// Subject of what is not seen of check `forwards`.
const FORWARDS: &str = "forwards";
/// Likewise, of what the node is.
const CONTROL_PLANE: &str = "controlplane";
/// podsecd-u7s is heard of at least this often.
const U7S_SILENCE: Duration = Duration::from_secs(60);

impl Guardian {
    /// Takes in what a helper says; what becomes of it.
    ///
    /// # Errors
    /// Too many of its conditions are open already, or too many findings wait to be reported.
    pub fn hear(&mut self, Reported { by, what }: Reported, now: SystemTime) -> Result<Taken, Refusal> {
        self.heard.insert(by.name, now);
        // A report that is stuck keeps helpers from filling the memory, too.
        let waiting = self.pending.len();
        if waiting >= MAX_PENDING {
            return Err(Refusal::Pending);
        }
        match what {
            What::Finding(finding) if finding.kind == Kind::Raised => self.raise_of(by, finding, now)?,
            What::Finding(finding) => self.find(finding, false, now),
            What::Conditions(open, true) => {
                let open = open.into_iter().map(|open| ((open.id, open.subject.into()), open.message.into()));
                self.settle(by.may, open.collect(), now);
            }
            // One after the other: so many may be open, and no more.
            What::Conditions(open, false) => {
                for finding in open {
                    self.raise_of(by, finding, now)?;
                }
            }
        }
        Ok(Taken { cycle: self.next_cycle(), findings: self.pending.len() - waiting })
    }

    /// Takes in a condition of a helper, of which so many may be open.
    fn raise_of(&mut self, by: Helper, finding: Finding<'static>, now: SystemTime) -> Result<(), Refusal> {
        let open = || self.open.iter().filter(|(id, _)| by.may_report(*id));
        let is_open = || open().any(|(id, open)| id == finding.id && open.subject == finding.subject);
        if open().count() >= by.conditions && !is_open() {
            return Err(Refusal::Conditions(by.conditions));
        }
        self.find(finding, false, now);
        Ok(())
    }

    /// Takes in how digests are. Where podsecd-mail is `expected` and says nothing of one that waits, that is a condition.
    pub fn note_mail(&mut self, mail: Option<MailStatus>, expected: bool, now: SystemTime) {
        let oldest = mail.as_ref().filter(|_| expected).and_then(|mail| parse_time(mail.waiting_since.as_deref()?));
        let is_long = |since: SystemTime, most: Duration| now.duration_since(since).is_ok_and(|age| age > most);
        let silent = oldest.is_some_and(|oldest| {
            // Who was not heard of yet has had time since the start.
            let heard = self.heard.get(MAIL).copied().unwrap_or(self.started);
            let never = heard < oldest && is_long(heard, NEW_DIGEST);
            is_long(oldest, NEW_DIGEST) && (never || is_long(heard, OLD_DIGEST))
        });
        let (kind, message) = if silent {
            (Kind::Raised, "a digest waits, and podsecd-mail says nothing of it")
        } else {
            (Kind::Cleared, "no digest waits of which podsecd-mail says nothing")
        };
        self.find(condition(own::ids::HELPER_SILENT, kind, MAIL, message.to_owned(), now), false, now);
        self.mail = mail;
    }

    /// Takes in whether podsecd-u7s should be there, which says something at every probe, and for how long it was silent.
    pub fn note_u7s(&mut self, is_expected: bool, silence: Duration, now: SystemTime) {
        let is_silent = is_expected && silence > U7S_SILENCE.max(2 * self.config.u7s.probe.get());
        let (kind, message) = match is_silent {
            true => (Kind::Raised, "podsecd-u7s says nothing: nobody looks after the forwards and the control plane"),
            false => (Kind::Cleared, "podsecd-u7s is there, or is not to be"),
        };
        self.find(condition(own::ids::HELPER_SILENT, kind, U7S, message.to_owned(), now), false, now);
    }

    /// Takes in what the node is, or why that cannot be seen: then it is what it was. Whoever moves the manifests of the control
    /// plane away has nothing missed of it any more but its audit log.
    pub fn note_role(&mut self, role: io::Result<Role>, now: SystemTime) {
        let (role, kind, message) = match role {
            Ok(role) => (Some(role), Kind::Cleared, "what the node is can be seen".to_owned()),
            Err(why) => {
                (None, Kind::Raised, format!("whether the node is one of the control plane cannot be seen: {why}"))
            }
        };
        self.find(condition(own::ids::WATCH_INCOMPLETE, kind, CONTROL_PLANE, message, now), false, now);
        let Some(role) = role else { return self.judge_log(now) };
        let former = self.role.replace(role);
        self.moved |= former.is_none();
        self.judge_log(now);
        // What an operator set says nothing of the node.
        if let Some(former) =
            former.filter(|former| *former != role && self.config.controlplane.role == RoleSetting::Auto)
        {
            let name = |role| if role == Role::ControlPlane { "of the control plane" } else { "a worker" };
            let (former, role) = (name(former), name(role));
            let message = format!("this node was {former} and is {role} now: what must run on it is judged by that");
            self.find(event(controlplane::ids::ROLE_CHANGED, "node", message, now), false, now);
        }
    }

    /// Takes in what listens on the host, or why that cannot be seen.
    pub fn assess_exposure(&mut self, sockets: io::Result<Sockets>, users: &Users, now: SystemTime) {
        let (kind, message) = match &sockets {
            Ok(_) => (Kind::Cleared, "the host's sockets can be seen".to_owned()),
            Err(why) => (Kind::Raised, format!("who listens on the host cannot be seen: {why}")),
        };
        self.find(condition(own::ids::WATCH_INCOMPLETE, kind, FORWARDS, message, now), false, now);
        let Ok(sockets) = sockets else { return };
        let settings = &self.config.forwards;
        let declared = declare(settings, self.role == Some(Role::ControlPlane), &self.forwards, &BTreeSet::new());
        let holding = exposure::assess(&sockets, users, &declared, settings);
        self.settle(&[forwards::ids::OF_HOST], holding, now);
        self.has_seen_host = true;
    }

    /// The administrator wants a forward, or no longer does; user id `uid` says so. Whether that is news.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn declare(&mut self, forward: Forward, is_wanted: bool, uid: u32, now: SystemTime) -> Result<bool, String> {
        if is_wanted && self.forwards.len() >= MAX_FORWARDS && !self.forwards.contains(&forward) {
            return Err(format!(
                "{MAX_FORWARDS} forwards are declared already; remove some (podsecctl forwards remove)"
            ));
        }
        let is_news = if is_wanted { self.forwards.insert(forward) } else { self.forwards.remove(&forward) };
        if is_news {
            let (id, what) = match is_wanted {
                true => (forwards::ids::DECLARED, "declares"),
                false => (forwards::ids::WITHDRAWN, "withdraws"),
            };
            let message = format!("user id {uid} {what} the forward {forward}");
            self.find(event(id, &forward.to_string(), message, now), false, now);
        }
        Ok(is_news)
    }
}
