//! Keeps the declared forwards standing: looks when something happens, does what is to be done, and says what it saw.
//!
//! What wakes it: a change of rootlesskit's state directory (inotify(7)), its end (pidfd_open(2)), another declaration, the
//! turn of the probe, and, while something is missing, ever longer pauses. Nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::api::{self, Api, Listed};
use super::assess::{Found, Observation, State, Trouble};
use super::declared::Declared;
use super::forward::{End, Family, Forward, Transport};
use super::instance::{Instance, holder};
use super::plan::{Holder, Seen, plan};
use super::tables::Sockets;
use crate::watch::wake::Wake;

/// Between two looks, at least; and after so many that came one after the other. A start of rootlesskit is a dozen.
const PAUSE: Duration = Duration::from_millis(5);
const BURST: u32 = 64;
const MAX_PAUSE: Duration = Duration::from_millis(100);
/// Who leaves it alone for so long may begin anew.
const QUIET: Duration = Duration::from_secs(1);
/// While something is missing it is looked at again after this, and after twice as long each time.
const RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long a connection to a forward may take, and how long it must hold: what finds nobody inside is closed at once.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
const CONNECT_HOLDS: Duration = Duration::from_millis(300);

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its number; it grows.
    pub number: u64,
    /// The forwards that are to stand.
    pub declared: Declared,
    /// Those that were ours, and are to go.
    pub withdrawn: BTreeSet<Forward>,
    /// Whatever else nobody declared is to go, too.
    pub remove_undeclared: bool,
    /// Forwards to connect to.
    pub connect: BTreeSet<Forward>,
}

/// What the source says.
#[derive(Debug)]
pub enum Message {
    /// What it saw.
    Observed(Box<Observation>),
    /// It cannot go on, and why.
    Failed(String),
}

/// Starts it. `turn` is the probe's.
pub fn spawn(
    state_directory: PathBuf,
    wanted: watch::Receiver<Wanted>,
    turn: Arc<Notify>,
    sender: mpsc::Sender<Message>,
) {
    tokio::spawn(async move {
        let source = Source { api: Api::of(&state_directory), state_directory, wanted, turn, ended: None };
        if let Err(error) = source.run(&sender).await {
            // Who started it has gone if this fails.
            let _ = sender.send(Message::Failed(error.to_string())).await;
        }
    });
}

struct Source {
    state_directory: PathBuf,
    api: Api,
    wanted: watch::Receiver<Wanted>,
    turn: Arc<Notify>,
    /// When the last rootlesskit ended.
    ended: Option<Instant>,
}

impl Source {
    async fn run(mut self, sender: &mpsc::Sender<Message>) -> io::Result<()> {
        let mut wake = Wake::new()?;
        let (mut looks, mut retry) = (0, RETRY);
        let mut is_turn = true;
        loop {
            // Watch first, then look.
            while wake.watch(&self.state_directory, [].into_iter())? {}
            let instance = Instance::find(&self.state_directory);
            let wanted = self.wanted.borrow_and_update().clone();
            let is_whole = self.look(&wanted, instance.as_ref(), is_turn, sender).await;
            let Some(is_whole) = is_whole else { return Ok(()) };
            retry = if is_whole { RETRY } else { (2 * retry).min(MAX_RETRY) };
            let looked = Instant::now();
            let again = async { if is_whole { std::future::pending().await } else { sleep(retry).await } };
            let ended = async {
                match &instance {
                    Some(instance) => instance.ended().await,
                    None => std::future::pending().await,
                }
            };
            is_turn = false;
            tokio::select! {
                woken = wake.changed() => {
                    woken?;
                    retry = RETRY;
                }
                () = ended => (self.ended, retry) = (Some(Instant::now()), RETRY),
                changed = self.wanted.changed() => if changed.is_err() { return Ok(()) },
                () = self.turn.notified() => is_turn = true,
                () = again => {}
            }
            // Whoever changes the directory all the time gets no more than this.
            looks = if looked.elapsed() > QUIET { 0 } else { looks + 1 };
            sleep(if looks < BURST { PAUSE } else { MAX_PAUSE }.saturating_sub(looked.elapsed())).await;
        }
    }

    /// Looks once, and mends what is to be mended. Whether all is as declared; `None` if nobody listens any more.
    async fn look(
        &mut self,
        wanted: &Wanted,
        instance: Option<&Instance>,
        is_turn: bool,
        sender: &mpsc::Sender<Message>,
    ) -> Option<bool> {
        let mut observation =
            Observation { wanted: wanted.number, ended: self.ended, ..Observation::new(Instant::now()) };
        let mut seen = self.see(instance, &mut observation).await;
        let plan = plan(&wanted.declared, &wanted.withdrawn, wanted.remove_undeclared, &seen);
        let mut refused = BTreeMap::new();
        if !plan.add.is_empty() || !plan.remove.is_empty() {
            if self.ended.is_some() || !plan.zombies.is_empty() {
                // What is interrupted is told before it is mended, which may take long.
                self.judge(wanted, &seen, instance, &BTreeMap::new(), &mut observation);
                sender.send(Message::Observed(Box::new(observation.clone()))).await.ok()?;
            }
            refused = self.perform(&plan.remove, &plan.add, &mut observation).await;
            seen = self.see(instance, &mut observation).await;
        }
        self.judge(wanted, &seen, instance, &refused, &mut observation);
        if is_turn {
            self.connect(wanted, &mut observation).await;
        }
        if seen.listed.is_some() {
            self.ended = None;
        }
        let is_whole =
            observation.trouble.is_none() && observation.forwards.values().all(|it| it.state == State::Stands);
        sender.send(Message::Observed(Box::new(observation))).await.ok()?;
        Some(is_whole || instance.is_none())
    }

    /// What there is now.
    async fn see(&self, instance: Option<&Instance>, observation: &mut Observation) -> Seen {
        // First the list: what is in it listened before.
        let listed = match (instance, self.api.list().await) {
            (_, Ok(listed)) => Some(listed),
            // Without rootlesskit nobody is expected to answer.
            (None, Err(api::Error::Away(..))) => None,
            (_, Err(error)) => {
                observation.trouble = Some(Trouble::Api(error.to_string()));
                None
            }
        };
        observation.is_listed = listed.is_some();
        if listed.is_some() {
            observation.trouble = None;
        }
        let host = Sockets::read(Path::new("/proc/self/net")).unwrap_or_else(|error| {
            observation.trouble =
                Some(Trouble::Tables(format!("the host's tables of sockets cannot be read: {error}")));
            Sockets::default()
        });
        Seen { listed, host, own: instance.map(Instance::sockets).unwrap_or_default() }
    }

    /// Removes and adds, one at a time; why rootlesskit did not take a forward.
    async fn perform(
        &self,
        remove: &[Listed],
        add: &[Forward],
        observation: &mut Observation,
    ) -> BTreeMap<Forward, String> {
        let mut refused = BTreeMap::new();
        for listed in remove {
            if let Err(error) = self.api.remove(listed.id).await {
                refused.insert(listed.forward, error.to_string());
                if !matches!(error, api::Error::Refused(..)) {
                    return refused;
                }
            }
        }
        for forward in add {
            match self.api.add(forward).await {
                Ok(()) => drop(observation.added.insert(*forward, Instant::now())),
                Err(api::Error::Refused(_, why)) => drop(refused.insert(*forward, why)),
                // It will not answer the next one either.
                Err(_) => break,
            }
        }
        if !refused.is_empty() && matches!(self.api.has_port_driver().await, Ok(Some(false))) {
            observation.trouble = Some(Trouble::NoPortDriver);
        }
        refused
    }

    /// Says of each declared forward how it is.
    fn judge(
        &self,
        wanted: &Wanted,
        seen: &Seen,
        instance: Option<&Instance>,
        refused: &BTreeMap<Forward, String>,
        observation: &mut Observation,
    ) {
        let rest = plan(&wanted.declared, &wanted.withdrawn, wanted.remove_undeclared, seen);
        let inside = instance.and_then(|instance| Sockets::read(&instance.tables_inside()).ok());
        let found = |forward: &Forward| {
            let state = match rest.held.get(forward) {
                _ if rest.zombies.contains(forward) => State::Zombie,
                Some(holder) => State::Held(name(holder)),
                None if seen.stands(forward) => State::Stands,
                None => match refused.get(forward) {
                    Some(why) => State::Refused(why.clone()),
                    None => State::Down,
                },
            };
            let has_listener = inside.as_ref().map(|inside| listens_inside(inside, forward));
            Found { state, has_listener }
        };
        observation.at = Instant::now();
        observation.forwards = wanted.declared.keys().map(|forward| (*forward, found(forward))).collect();
        // What is to go and could not be removed is there, too.
        let stays = rest.remove.iter().map(|listed| listed.forward);
        observation.undeclared = stays.filter(|forward| !wanted.declared.contains_key(forward)).collect();
        observation.undeclared.extend(rest.undeclared);
    }

    /// Connects to the forwards for which that is wanted.
    async fn connect(&self, wanted: &Wanted, observation: &mut Observation) {
        for forward in wanted.connect.iter().filter(|forward| forward.end.protocol.transport == Transport::Tcp) {
            if let Some(found) = observation.forwards.get_mut(forward)
                && found.state == State::Stands
            {
                found.has_listener = Some(answers(&forward.end).await);
            }
        }
    }
}

/// Who has a place, in words.
fn name(holder: &Holder) -> String {
    match holder {
        Holder::Forward(forward) => format!("rootlesskit's forward {forward}, which is not declared"),
        Holder::Socket(socket) => match self::holder(socket.inode) {
            Some((pid, command)) => format!("process {pid} ({command}) of user id {}", socket.uid),
            None => format!("a process of user id {}", socket.uid),
        },
    }
}

/// Whether something listens inside where a forward leads to. Where the driver chooses the address, any will do that is
/// reached there: the loopback address, or all of them.
fn listens_inside(inside: &Sockets, forward: &Forward) -> bool {
    let loopback = || match forward.end.protocol.family {
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let address = forward.child_address.unwrap_or_else(loopback);
    let end = End { address, port: forward.child_port, protocol: forward.end.protocol };
    inside.serving(&end).next().is_some()
}

/// Whether a connection to this end holds.
async fn answers(end: &End) -> bool {
    let address = match end.address {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    };
    let connected = timeout(CONNECT_PATIENCE, TcpStream::connect(SocketAddr::new(address, end.port.get()))).await;
    let Ok(Ok(mut stream)) = connected else { return false };
    // Silence is well: it waits for us to begin.
    !matches!(timeout(CONNECT_HOLDS, stream.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
}
