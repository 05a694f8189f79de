//! Ends podsecd, or a part of it: what was found is told, and what is known is left to whoever goes on.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Daemon;
use crate::service::{log, notify};
use crate::source::Said;
use crate::watch::tree::Past;

/// How long to wait for what is still to be told.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long to wait for what is being reported: journald may be restarted just now. systemd waits for longer.
const PATIENCE: Duration = Duration::from_secs(4);

impl Daemon {
    /// Ends in order: what was found is reported, if the reports take it soon.
    pub(super) async fn stop(mut self) {
        notify(&[NotifyState::Stopping]);
        self.audit_log.stop();
        self.policy.stop();
        self.end_containers().await;
        let is_reported = timeout(PATIENCE, self.report_all()).await.is_ok_and(|is_reported| is_reported);
        if !is_reported {
            log(|| {
                tracing::warn!(
                    "not everything could be reported in time; what is still there will be at the next start"
                );
            });
        }
        for (what, known) in self.handover.take_left() {
            let Some(mut past) = Past::parse(&known) else { continue };
            past.told = past.told.filter(|_| is_reported);
            if let Err(error) = self.handover.bequeath(&what, &past.to_bytes()) {
                log(move || tracing::warn!(%error, what, "what is known cannot be left to the next podsecd"));
            }
        }
        self.write_status();
    }

    /// Has all that was taken in reported. False: a report ended.
    async fn report_all(&mut self) -> bool {
        if self.guardian.has_moved() {
            self.reports.room_for(1).await;
            self.send_cycle().await;
        }
        let sent = self.reports.sent;
        self.reports.settled.wait_for(|number| *number >= sent).await.is_ok()
    }

    /// Watches containers as the configuration says by now; of what happens meanwhile nothing is lost.
    pub(super) async fn go_on_with_containers(&mut self) {
        self.end_containers().await;
        self.start_containers();
    }

    /// Takes in what the source of check `containers` has still to say; it leaves what it knows.
    async fn end_containers(&mut self) {
        let stores = self.stores.borrow().clone();
        self.stores = watch::channel(stores).0;
        let listen = async {
            while self.containers.is_running() {
                let said @ Said::Message(_) = self.containers.said().await else { break };
                self.observe_containers(said);
            }
        };
        // It may wait for a file system that does not answer.
        let _ = timeout(FAREWELL, listen).await;
        self.containers.stop();
    }
}
