//! The forwards that are to stand: who wants them, whether they do, and what podsecctl asks of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, oneshot, watch};

use super::control::{Answer, Asked, Request};
use super::kept::{self, Kept};
use super::past;
use super::reporter::Conditions;
use crate::checks::forwards::assess::{Assessor, Observation, Row, START_GRACE};
use crate::checks::forwards::declared::{self, MAX_FORWARDS, Origin};
use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::ids::UNWATCHED;
use crate::checks::forwards::settings::Settings;
use crate::checks::forwards::source::{self, Wanted};
use crate::finding::Finding;
use crate::source::{Said, Source};

/// A look takes less than this, whatever rootlesskit does.
const LONGEST_LOOK: Duration = Duration::from_secs(90);

/// What is known of them.
pub(super) struct Forwards {
    kept: Kept,
    past: past::File,
    /// They were looked at since that was written.
    is_news: bool,
    /// For the source.
    wanted: watch::Sender<Wanted>,
    look: Arc<Notify>,
    source: Source<Box<Observation>>,
    state_directory: PathBuf,
    assessor: Assessor,
    started: Instant,
    /// When they were last looked at, and whether nobody does any more.
    seen: Option<Instant>,
    has_failed: bool,
    waiting: Vec<Waiting>,
}

/// Who waits until a declaration was looked after.
struct Waiting {
    /// Its number; none before it is declared.
    number: Option<u64>,
    forward: Forward,
    answer: oneshot::Sender<Result<Answer, String>>,
}

impl Forwards {
    /// With what was kept in `directory`; none is looked after yet.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub(super) fn load(directory: &Path) -> io::Result<Forwards> {
        let past = past::File::new(directory);
        let assessor = Assessor::new(past.read());
        Ok(Forwards {
            kept: Kept::load(directory)?,
            past,
            is_news: false,
            wanted: watch::channel(Wanted::default()).0,
            look: Arc::new(Notify::new()),
            source: Source::new(),
            state_directory: PathBuf::new(),
            assessor,
            started: Instant::now(),
            seen: None,
            has_failed: false,
            waiting: Vec::new(),
        })
    }

    /// Looks after those of the rootlesskit with this state directory; whoever did before ends.
    pub(super) fn start(&mut self, state_directory: PathBuf) {
        self.state_directory = state_directory;
        let (wanted, look) = (self.wanted.subscribe(), Arc::clone(&self.look));
        source::spawn(self.state_directory.clone(), wanted, look, self.source.start());
    }

    /// All that happened was told: what is known now is to be known when podsecd-u7s is started again. What was not told is told
    /// then.
    pub(super) fn settle(&mut self, is_end: bool) {
        if self.is_news {
            self.past.write(&self.assessor.past(), is_end);
            self.is_news = self.past.due().is_some();
        }
    }

    /// When that is due which came too soon after what was written last.
    pub(super) fn settle_due(&self) -> Option<Instant> {
        self.past.due()
    }

    /// It is the probe's turn.
    pub(super) fn turn(&self) {
        self.look.notify_one();
    }

    /// Those of Services when they were last known.
    pub(super) fn services(&self) -> &BTreeSet<Forward> {
        &self.kept.forwards().services
    }

    /// These are those of Services now.
    pub(super) fn set_services(&mut self, services: BTreeSet<Forward>) {
        let mut forwards = self.kept.forwards().clone();
        let gone: Vec<_> = forwards.services.difference(&services).copied().collect();
        forwards.withdrawn.extend(gone);
        forwards.withdrawn.retain(|forward| !services.contains(forward));
        forwards.services = services;
        self.keep(forwards);
    }

    /// Says which forwards are to stand, if they are others than before.
    pub(super) fn declare(&mut self, settings: &Settings, is_control_plane: bool) {
        let kept = self.kept.forwards();
        let declared = declared::declare(settings, is_control_plane, &kept.administrator, &kept.services);
        let mut withdrawn = declared::unwanted(settings, &declared);
        withdrawn.extend(kept.withdrawn.iter().filter(|forward| !declared.contains_key(forward)));
        let (remove_undeclared, connect) = (settings.remove_undeclared, settings.connect.clone());
        self.wanted.send_if_modified(|wanted| {
            let next = Wanted { number: wanted.number, declared, withdrawn, remove_undeclared, connect };
            let is_news = *wanted != next;
            if is_news {
                *wanted = Wanted { number: wanted.number + 1, ..next };
            }
            is_news
        });
        let number = self.wanted.borrow().number;
        for waiting in &mut self.waiting {
            waiting.number.get_or_insert(number);
        }
    }

    /// Waits for what the source says.
    pub(super) async fn said(&mut self) -> Said<Box<Observation>> {
        self.source.said().await
    }

    /// Takes that in; what happened.
    pub(super) fn observe(&mut self, said: Said<Box<Observation>>) -> Vec<Finding<'static>> {
        match said {
            Said::Message(observation) => {
                self.source.works();
                (self.seen, self.has_failed) = (Some(Instant::now()), false);
                return self.see(*observation);
            }
            Said::Panicked => {
                tracing::error!("the looking after the forwards panicked and is started again");
                self.has_failed = true;
                self.source.failed();
            }
            Said::Due => self.start(self.state_directory.clone()),
        }
        Vec::new()
    }

    fn see(&mut self, observation: Observation) -> Vec<Finding<'static>> {
        let (number, is_listed) = (observation.wanted, observation.is_listed);
        if is_listed && number == self.wanted.borrow().number {
            let mut forwards = self.kept.forwards().clone();
            // What rootlesskit has no more need not be taken from it.
            forwards.withdrawn.retain(|forward| observation.undeclared.contains(forward));
            self.keep(forwards);
        }
        let events = self.assessor.assess(observation, SystemTime::now());
        self.is_news = true;
        if self.waiting.is_empty() {
            return events;
        }
        let rows = self.rows();
        for Waiting { forward, answer, .. } in
            self.waiting.extract_if(.., |waiting| waiting.number.is_some_and(|its| its <= number))
        {
            let row = rows.get(&forward).cloned();
            // Who asked may have gone.
            let _ = answer.send(row.map_or(Ok(Answer::Removed(is_listed)), |row| match row.origin {
                Some(_) => Ok(Answer::Added(row)),
                None => Ok(Answer::Removed(false)),
            }));
        }
        events
    }

    fn rows(&self) -> BTreeMap<Forward, Row> {
        self.assessor.rows(&self.wanted.borrow().declared).into_iter().map(|row| (row.forward, row)).collect()
    }

    fn keep(&mut self, forwards: kept::Forwards) -> bool {
        let kept = self.kept.keep(forwards);
        if let Err(error) = &kept {
            tracing::error!("cannot keep the forwards in {}: {error}", kept::DIRECTORY);
        }
        kept.is_ok()
    }

    /// Does what podsecctl asks for, but for declaring what follows from it; the answer comes when that was looked after.
    pub(super) fn answer(&mut self, Asked { request, uid, answer }: Asked) {
        let mut forwards = self.kept.forwards().clone();
        let (forward, verb, refused) = match request {
            Request::List => {
                let _ = answer.send(Ok(Answer::Forwards(self.rows().into_values().collect())));
                return;
            }
            Request::Add(forward) => {
                forwards.withdrawn.remove(&forward);
                forwards.administrator.insert(forward);
                let too_many = forwards.administrator.len() > MAX_FORWARDS;
                let too_many = too_many.then(|| format!("there are {MAX_FORWARDS} of them already; remove some"));
                (forward, "add", too_many.or_else(|| self.other_holder(&forward)))
            }
            Request::Remove(forward) => {
                forwards.administrator.remove(&forward);
                forwards.withdrawn.insert(forward);
                (forward, "remove", self.other_origin(&forward))
            }
        };
        let refused = refused.or_else(|| {
            let is_kept = self.keep(forwards);
            (!is_kept).then(|| format!("it cannot be kept in {}; see journalctl -u podsecd-u7s", kept::DIRECTORY))
        });
        if let Some(why) = refused {
            let _ = answer.send(Err(why));
            return;
        }
        tracing::info!(uid, "user id {uid} asks to {verb} the forward {forward}");
        self.waiting.push(Waiting { number: None, forward, answer });
        self.turn();
    }

    /// Why the administrator cannot add a forward: what is declared already has its place. A Service gives way.
    fn other_holder(&self, forward: &Forward) -> Option<String> {
        let wanted = self.wanted.borrow();
        let (held, declaration) = declared::holder(&wanted.declared, forward)?;
        let is_taken = held != forward && declaration.origin != Origin::Service;
        is_taken.then(|| format!("{held}, which is declared by {}, has its place", declaration.origin))
    }

    /// Why the administrator cannot remove a forward: somebody else wants it.
    fn other_origin(&self, forward: &Forward) -> Option<String> {
        let origin = self.wanted.borrow().declared.get(forward)?.origin;
        let remedy = match origin {
            Origin::Administrator => return None,
            Origin::Podsec => "set `podsec = false` of [forwards], and `declare` those of its list that are to stand",
            Origin::Configuration => "take it out of `declare` of [forwards]",
            Origin::Service => "remove the Service, or narrow `node-ports` of [forwards]",
        };
        Some(format!("{forward} is declared by {origin}: {remedy}"))
    }

    /// All conditions that hold, where they are looked at every `probe`.
    pub(super) fn conditions(&self, probe: Duration) -> Conditions {
        let mut holding = self.assessor.conditions(&self.wanted.borrow().declared, Instant::now());
        let is_late = self.seen.unwrap_or(self.started).elapsed() > 2 * probe + LONGEST_LOOK;
        if self.has_failed || is_late {
            let message = "nobody looks after the forwards: what did panicked, or has said nothing for long";
            holding.insert((UNWATCHED, "podsecd-u7s".into()), message.to_owned());
        }
        holding
    }

    /// When they may be others though nothing happens.
    pub(super) fn next_change(&self) -> Option<Instant> {
        self.assessor.next_change(Instant::now())
    }

    /// Whether what was open before a restart and is no condition now would be one by now.
    pub(super) fn is_settled(&self) -> bool {
        self.seen.is_some() && self.started.elapsed() > START_GRACE + Duration::from_secs(10)
    }
}
