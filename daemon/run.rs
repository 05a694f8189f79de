//! Composes the daemon, in the order in which the data flows: source, checks, score, reports.
//!
//! ```text
//! audit-log task ----Batch--> Guardian --Cycle--+--> journal task ----accepted--+
//! (follow, parse)   queue     (this task: all   |                               v
//!                   of 4      state, no locks)  +--> ledger thread: append, fdatasync, accepted, checkpoint
//!                                               +--> status file                |
//!                                  ^------------------- Trouble ----------------+
//! ```
//!
//! A full queue stops whoever fills it, back to the log file, which waits. Nothing here blocks: the watchdog is fed
//! while journald, the disk or both take nothing.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::checks::kubeapi::observe::{self, Message};
use crate::checks::own::ids::{CONFIG_REFUSED, PART_FAILED};
use crate::config::{self, Config, ConfigError, Root, Rootlesskit};
use crate::finding::Kind;
use crate::guardian::Guardian;
use crate::report::checkpoint::{Checkpoint, State};
use crate::report::forbidden_log::{self, ForbiddenLog};
use crate::report::ledger::Ledger;
use crate::report::{Cycle, Trouble, journal, status, terminal};
use crate::score::rfc3339;
use crate::watch::follow::{self, LogFiles, Position, Start};

/// The state directory.
const STATE: &str = "/var/lib/podsecd";
/// Between two turns without a watchdog.
const TURN: Duration = Duration::from_secs(15);
/// The status file is written at most this often.
const STATUS_PAUSE: Duration = Duration::from_millis(200);
/// How long to wait at the end for what is being reported.
const FAREWELL: Duration = Duration::from_secs(2);
/// A source that failed is started again after this.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Another configuration file than the default.
    pub config: Option<PathBuf>,
    /// The tree to look at.
    pub root: Root,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`ConfigError`] for the configuration; anything else that keeps it from starting, or a report that failed.
pub async fn run(options: Options) -> Result<()> {
    let config = config::load(options.config.as_deref(), &options.root)?;
    let state_directory = options.root.path(STATE);
    std::fs::create_dir_all(&state_directory).with_context(|| format!("cannot make {}", state_directory.display()))?;
    let _lock = lock(&state_directory)?;
    let checkpoint = state_directory.join("checkpoint.json");
    let former = Checkpoint::load(&checkpoint)?;
    let now = SystemTime::now();
    let history = || State { history_until: Some(rfc3339(now).into_owned()), ..State::default() };
    let (state, mark) = former.map_or_else(|| (history(), None), |former| (former.state, former.forbidden_log));
    let rootlesskit = is_behind_rootlesskit(&config, &options.root);
    let mut guardian = Guardian::new(config, state, rootlesskit, now);
    if guardian.position().is_none() {
        guardian.set_position(beginning(guardian.config(), &options.root));
    }

    let (troubles, troubles_in) = mpsc::channel(64);
    let config = guardian.config();
    let (prefix, prefix_in) = watch::channel(config.journal.identifier_prefix.clone());
    let (limits, limits_in) = watch::channel(config.forbidden_log.clone());
    let (to_journal, cycles) = mpsc::channel(8);
    let (accepted, accepted_in) = watch::channel(0);
    let journal = if options.root.is_elsewhere() {
        tokio::spawn(terminal::run(cycles, accepted))
    } else {
        tokio::spawn(journal::run(cycles, accepted, troubles.clone(), prefix_in))
    };
    let (to_ledger, cycles) = mpsc::channel(8);
    let (settled, settled_in) = watch::channel(0);
    let places = [forbidden_log::PODSEC, forbidden_log::OWN].map(|path| options.root.path(path)).to_vec();
    let first = mark.is_none();
    let limits_now = limits_in.borrow().clone();
    let (handle, state) = (tokio::runtime::Handle::current(), guardian.state());
    thread::Builder::new().name("ledger".into()).spawn(move || {
        let _runtime = handle.enter();
        let log = ForbiddenLog::new(places, limits_now, mark.as_ref());
        let mut ledger = Ledger { log, limits: limits_in, checkpoint, troubles, stuck: false };
        if first {
            ledger.begin(&state);
        }
        ledger.run(cycles, accepted_in, &settled);
    })?;

    let turn = sd_notify::watchdog_enabled().map_or(TURN, |period| period / 2);
    let status = options.root.path(status::PATH);
    if let Some(directory) = status.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut daemon = Daemon { options, guardian, prefix, limits, to_journal, to_ledger, status, turn, source: None };
    daemon.start_source();
    daemon.serve(troubles_in, settled_in, journal).await
}

/// The lock that keeps a second podsecd out of the same state.
fn lock(directory: &std::path::Path) -> Result<std::fs::File> {
    let path = directory.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another podsecd is running with {}; stop it first (systemctl stop podsecd)", directory.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Where to begin to read a log that was never read.
fn beginning(config: &Config, root: &Root) -> Position {
    if config.kubeapi.start == Start::Oldest {
        return Position::default();
    }
    let files = LogFiles::new(&root.path(&config.kubeapi.audit_log));
    follow::end(&files).unwrap_or_else(|error| {
        let path = files.live().to_path_buf();
        log(move || tracing::warn!(path = %path.display(), %error, "cannot find the log's end; it is read from its beginning"));
        Position::default()
    })
}

/// Whether clients reach the apiserver through rootlesskit.
fn is_behind_rootlesskit(config: &Config, root: &Root) -> bool {
    let has_user = || {
        let passwd = std::fs::read_to_string(root.path("/etc/passwd")).unwrap_or_default();
        passwd.lines().any(|line| line.starts_with("u7s-admin:"))
    };
    match config.kubeapi.rootlesskit {
        Rootlesskit::Auto => has_user(),
        Rootlesskit::Yes => true,
        Rootlesskit::No => false,
    }
}

struct Daemon {
    options: Options,
    guardian: Guardian,
    prefix: watch::Sender<String>,
    limits: watch::Sender<config::ForbiddenLog>,
    to_journal: mpsc::Sender<Arc<Cycle>>,
    to_ledger: mpsc::Sender<Arc<Cycle>>,
    status: PathBuf,
    turn: Duration,
    source: Option<mpsc::Receiver<Message>>,
}

impl Daemon {
    /// Starts to follow the audit log; a source that does so already ends.
    fn start_source(&mut self) {
        let (sender, receiver) = mpsc::channel(4);
        let log = self.options.root.path(&self.guardian.config().kubeapi.audit_log);
        observe::spawn(LogFiles::new(&log), self.guardian.position().cloned().unwrap_or_default(), sender);
        self.source = Some(receiver);
    }

    async fn serve(
        mut self,
        mut troubles: mpsc::Receiver<Trouble>,
        mut settled: watch::Receiver<u64>,
        mut journal: tokio::task::JoinHandle<()>,
    ) -> Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let turn = turns(self.turn)?;
        let mut status_due = Some(Instant::now());
        let mut source_due = None;
        let mut sent = 0;
        notify(&[NotifyState::Ready]);
        log(|| tracing::info!(version = env!("CARGO_PKG_VERSION"), "podsecd watches"));
        loop {
            let queues_have_room = self.queues_have_room();
            let source = async {
                match &mut self.source {
                    Some(receiver) if queues_have_room => receiver.recv().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.reload(),
                () = next_turn(&turn) => {
                    self.turn().await;
                    continue;
                }
                Some(trouble) = troubles.recv() => self.guardian.note(trouble, SystemTime::now()),
                message = source => match message {
                    Some(Message::Batch(batch)) => self.guardian.assess(batch, SystemTime::now()),
                    failed => {
                        self.source = None;
                        source_due = Some(Instant::now() + RESTART_PAUSE);
                        let why = if let Some(Message::Failed(why)) = failed { why } else { "it ended".into() };
                        let message = format!("the reading of the audit log failed ({why}) and is started again");
                        let (id, kind) = (PART_FAILED, Kind::Event);
                        self.guardian.note(Trouble { id, kind, subject: "audit-log", message }, SystemTime::now());
                    }
                },
                () = room(&self.to_journal, &self.to_ledger), if !queues_have_room => {}
                () = at(source_due) => {
                    source_due = None;
                    self.start_source();
                    continue;
                }
                () = at(status_due) => {
                    status_due = self.write_status();
                    continue;
                }
                ended = settled.changed() => {
                    if ended.is_err() {
                        bail!("the writing of forbidden.log and checkpoint failed");
                    }
                    continue;
                }
                ended = &mut journal => return Err(ended.err().map_or_else(|| anyhow!("the journal report ended"), Into::into)),
            }
            if self.guardian.has_findings() && self.queues_have_room() {
                sent = self.send_cycle().await;
            }
            let soon = Instant::now() + STATUS_PAUSE;
            status_due = Some(status_due.map_or(soon, |due: Instant| due.min(soon)));
        }
        self.stop(sent, settled).await;
        Ok(())
    }

    fn queues_have_room(&self) -> bool {
        self.to_journal.capacity() > 0 && self.to_ledger.capacity() > 0
    }

    /// Hands a cycle to the reports; there is room for it.
    async fn send_cycle(&mut self) -> u64 {
        let cycle = Arc::new(self.guardian.cycle());
        // They only fail when the report has ended, which the loop notices.
        let _ = self.to_journal.try_send(Arc::clone(&cycle));
        // The journal, which is a task of this thread, goes first: waking the ledger's thread takes as long as sending.
        tokio::task::yield_now().await;
        let _ = self.to_ledger.try_send(Arc::clone(&cycle));
        cycle.number
    }

    /// The watchdog's turn: the only thing that happens when nothing happens.
    async fn turn(&mut self) {
        notify(&[NotifyState::Watchdog]);
        // Progress that found nothing reaches the checkpoint here.
        if self.guardian.has_moved() && self.queues_have_room() {
            self.send_cycle().await;
        }
        if status::touch(&self.status).is_err() {
            self.write_status();
        }
    }

    /// Writes the status file; answers when it has to be written again although nothing happens.
    fn write_status(&mut self) -> Option<Instant> {
        let now = SystemTime::now();
        if let Err(error) = self.guardian.status(self.turn.as_secs(), now).write(&self.status) {
            let path = self.status.clone();
            log(move || tracing::warn!(path = %path.display(), %error, "cannot write the status file"));
        }
        let change = self.guardian.next_change(now)?;
        Some(Instant::now() + change.duration_since(now).unwrap_or_default() + Duration::from_millis(1))
    }

    /// SIGHUP: reads the configuration again. A bad one leaves the former in force and is a condition.
    fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        let loaded = config::load(self.options.config.as_deref(), &self.options.root);
        let (kind, message) = match &loaded {
            Ok(_) => (Kind::Cleared, "the configuration is valid and in force".to_owned()),
            Err(error) => {
                (Kind::Raised, format!("the new configuration is refused, the former stays in force: {error}"))
            }
        };
        self.guardian.note(Trouble { id: CONFIG_REFUSED, kind, subject: "podsecd.toml", message }, SystemTime::now());
        match loaded {
            Ok(config) => self.configure(config),
            Err(error) => {
                log(move || tracing::error!(%error, "the new configuration is refused, the former stays in force"));
            }
        }
        notify(&[NotifyState::Ready]);
    }

    fn configure(&mut self, config: Config) {
        let other_log = config.kubeapi.audit_log != self.guardian.config().kubeapi.audit_log;
        self.prefix.send_replace(config.journal.identifier_prefix.clone());
        self.limits.send_replace(config.forbidden_log.clone());
        let rootlesskit = is_behind_rootlesskit(&config, &self.options.root);
        self.guardian.configure(config, rootlesskit);
        if other_log {
            if self.guardian.position().is_none() {
                self.guardian.set_position(beginning(self.guardian.config(), &self.options.root));
            }
            self.start_source();
        }
        log(|| tracing::info!("the configuration was read again"));
    }

    /// Ends in order: what was found is reported, if the reports take it soon.
    async fn stop(mut self, sent: u64, mut settled: watch::Receiver<u64>) {
        notify(&[NotifyState::Stopping]);
        self.source = None;
        let mut last = sent;
        if self.guardian.has_moved() && self.queues_have_room() {
            last = self.send_cycle().await;
        }
        if timeout(FAREWELL, settled.wait_for(|number| *number >= last)).await.is_err() {
            log(|| tracing::warn!("not everything could be reported in time; it will be at the next start"));
        }
        self.write_status();
    }
}

/// Writes to podsecd's own log. Not from the main task: journald may take nothing for long.
fn log(write: impl FnOnce() + Send + 'static) {
    // Without a thread there is no message.
    let _ = thread::Builder::new().name("log".into()).spawn(write);
}

/// A timer that wakes once a turn. Tokio's own wakes several times on the way to a distant time.
fn turns(period: Duration) -> Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("cannot make a timer")?;
    timer
        .set(Expiration::Interval(TimeSpec::from_duration(period)), TimerSetTimeFlags::empty())
        .context("cannot set a timer")?;
    #[expect(deprecated, reason = "what takes its place is unsafe; an OwnedFd is owned and does not change")]
    Ok(AsyncFd::with_interest(timer.into(), Interest::READABLE)?)
}

/// Waits for the next turn.
async fn next_turn(timer: &AsyncFd<OwnedFd>) {
    if let Ok(mut guard) = timer.readable().await {
        // Reading takes the expiration; that there is none is no error here.
        let _ = nix::unistd::read(timer, &mut [0; 8]);
        guard.clear_ready();
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Waits until both queues have room.
async fn room(journal: &mpsc::Sender<Arc<Cycle>>, ledger: &mpsc::Sender<Arc<Cycle>>) {
    // An error is the end of a report, which the loop notices.
    let _ = journal.reserve().await;
    let _ = ledger.reserve().await;
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log(move || tracing::debug!(%error, "cannot notify systemd"));
    }
}

/// The error of a refused configuration, if that is what it is.
pub fn refused_configuration(error: &anyhow::Error) -> Option<&ConfigError> {
    error.downcast_ref()
}
