//! The rootless control plane: its source, and what is judged of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::reporter::Conditions;
use crate::checks::controlplane::assess::{Assessor, Clocks};
use crate::checks::controlplane::ids::UNSEEN;
use crate::checks::controlplane::settings::Settings;
use crate::checks::controlplane::source::{self, Message, Task};
use crate::config::Root;
use crate::finding::Finding;
use crate::source::{Said, Source};

/// Longer than its parts may take to start.
const SETTLED: Duration = Duration::from_secs(240);

/// What is known of it.
pub(super) struct ControlPlane {
    task: Task,
    assessor: Assessor,
    source: Source<Message>,
    look: Arc<Notify>,
    /// Why it is not seen.
    failed: Option<String>,
    started: Instant,
}

impl ControlPlane {
    /// Starts to observe.
    pub(super) fn start(settings: Settings, state_directory: PathBuf, root: &Root) -> ControlPlane {
        let uid = nix::unistd::geteuid().as_raw();
        let assessor = Assessor::new(settings.clone());
        let task = Task { settings, uid, state_directory, root: root.directory().map(ToOwned::to_owned) };
        let look = Arc::new(Notify::new());
        let mut control_plane =
            ControlPlane { task, assessor, source: Source::new(), look, failed: None, started: Instant::now() };
        control_plane.spawn();
        control_plane
    }

    /// Observes with other settings, or another rootlesskit, from now on. What is known stands.
    pub(super) fn configure(&mut self, settings: Settings, state_directory: PathBuf) {
        self.assessor.configure(settings.clone());
        self.task = Task { settings, state_directory, ..self.task.clone() };
        self.spawn();
    }

    /// Whether what was open before a restart and is no condition now would be one by now.
    pub(super) fn is_settled(&self) -> bool {
        self.started.elapsed() > SETTLED
    }

    fn spawn(&mut self) {
        source::spawn(self.task.clone(), Arc::clone(&self.look), self.source.start());
    }

    /// It is the probe's turn.
    pub(super) fn turn(&self) {
        self.look.notify_one();
    }

    /// Waits for what the source says.
    pub(super) async fn said(&mut self) -> Said<Message> {
        self.source.said().await
    }

    /// Takes that in; what happened.
    pub(super) fn observe(&mut self, said: Said<Message>) -> Vec<Finding<'static>> {
        let why = match said {
            Said::Message(Message::Observed(observation)) => {
                self.source.works();
                self.failed = None;
                return self.assessor.assess(*observation, Clocks { at: Instant::now(), time: SystemTime::now() });
            }
            Said::Message(Message::Failed(why)) => why,
            Said::Panicked => "it panicked".to_owned(),
            Said::Due => {
                self.spawn();
                return Vec::new();
            }
        };
        tracing::error!("the watch of the control plane failed and is started again: {why}");
        self.failed = Some(format!("the watch of the control plane failed and is started again: {why}"));
        self.source.failed();
        Vec::new()
    }

    /// All conditions that hold.
    pub(super) fn conditions(&self) -> Conditions {
        let mut holding = self.assessor.conditions();
        holding.extend(self.failed.iter().map(|why| ((UNSEEN, "podsecd-u7s".to_owned()), why.clone())));
        holding
    }
}
