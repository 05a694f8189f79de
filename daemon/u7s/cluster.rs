//! The Services of the cluster that want a forward, if they are followed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::reporter::Conditions;
use crate::checks::forwards::declared::of_services;
use crate::checks::forwards::forward::Forward;
use crate::checks::forwards::ids::SERVICES_UNAVAILABLE;
use crate::checks::forwards::services::{self, LeftOut, MAX_PORTS, Message, Times};
use crate::checks::forwards::settings::Settings;
use crate::config::Root;
use crate::source::{Said, Source};

/// The apiserver starts later than we do, and may be away for a moment.
const AWAY_GRACE: Duration = Duration::from_secs(60);
/// So long changes are gathered: each is kept on the disk.
const GATHER: Duration = Duration::from_secs(1);

/// What is known of them.
pub(super) struct Cluster {
    root: Root,
    settings: Settings,
    source: Source<Message>,
    /// Why they cannot be found, and since when.
    away: Option<(String, Instant)>,
    left_out: LeftOut,
}

impl Cluster {
    /// Starts to follow them, if that is wanted.
    pub(super) fn start(settings: Settings, root: Root) -> Cluster {
        let mut cluster = Cluster { root, settings, source: Source::new(), away: None, left_out: LeftOut::default() };
        cluster.spawn();
        cluster
    }

    fn spawn(&mut self) {
        (self.away, self.left_out) = (None, LeftOut::default());
        if self.settings.follows_services() {
            let kubeconfig = self.root.path(&self.settings.kubeconfig);
            let times = Times { gather: GATHER, ..Times::default() };
            services::spawn(kubeconfig, times, self.source.start());
        }
    }

    /// Of the forwards that Services wanted, those that they may still want.
    pub(super) fn allowed(&self, former: &BTreeSet<Forward>) -> BTreeSet<Forward> {
        let settings = &self.settings;
        let is_allowed = |it: &&Forward| settings.follows_services() && settings.allows_node_port(&it.end);
        former.iter().filter(is_allowed).copied().collect()
    }

    /// Waits for what the source says.
    pub(super) async fn said(&mut self) -> Said<Message> {
        self.source.said().await
    }

    /// Takes that in; the forwards that Services want, if that is what was said.
    pub(super) fn observe(&mut self, said: Said<Message>) -> Option<BTreeSet<Forward>> {
        match said {
            Said::Message(message) => {
                self.source.works();
                match message {
                    Message::Services(ports) => return Some(of_services(&ports, &self.settings)),
                    Message::LeftOut(left_out) => self.left_out = left_out,
                    Message::Away(why) => {
                        let since = self.away.take().map_or_else(Instant::now, |(_, since)| since);
                        self.away = Some((why, since));
                    }
                    Message::Back => self.away = None,
                }
            }
            // It has no other end.
            Said::Panicked => {
                tracing::error!("the watch of Services panicked and is started again");
                self.source.failed();
            }
            Said::Due => self.spawn(),
        }
        None
    }

    /// All conditions that hold.
    pub(super) fn conditions(&self) -> Conditions {
        let mut holding = Conditions::new();
        if let Some((why, since)) = &self.away
            && since.elapsed() >= AWAY_GRACE
        {
            let message = format!("Services cannot be read from the Kubernetes API: {why}");
            holding.insert((SERVICES_UNAVAILABLE, "Services".into()), message);
        }
        let LeftOut { unfit, beyond } = self.left_out;
        if unfit > 0 || beyond > 0 {
            let message = format!(
                "not all NodePorts are forwarded: {beyond} are more than {MAX_PORTS}, {unfit} have numbers or names that cannot be"
            );
            holding.insert((SERVICES_UNAVAILABLE, "NodePorts".into()), message);
        }
        holding
    }
}
