//! Keeps the declared forwards standing: looks when something happens, does what is to be done, and says what it saw.
//!
//! What wakes it: a change of rootlesskit's state directory (inotify(7)), its end (pidfd_open(2)), another declaration, the
//! turn of the probe, and, while something is missing, ever longer pauses. Nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::api::{self, Api, Driver};
use super::assess::{Found, Observation, State, Trouble};
use super::declared::Declared;
use super::forward::{End, Family, Forward, Transport};
use super::instance::{Instance, holders};
use super::plan::{Own, Plan, Seen, plan};
use super::tables::{Socket, Sockets};
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
/// What seems to be dead is looked at once more after this: the tables are not read in one instant.
const DOUBT: Duration = Duration::from_millis(50);
/// After this what is not done yet is left to the next look.
const BUDGET: Duration = Duration::from_secs(10);
/// How long a connection to a forward may take, and how long it must hold: what finds nobody inside is closed at once.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
const CONNECT_HOLDS: Duration = Duration::from_millis(300);
/// So many strangers are named at once.
const MAX_NAMED: usize = 32;

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

/// Starts it; it ends when nobody receives any more. `turn` is the probe's.
pub fn spawn(
    state_directory: PathBuf,
    wanted: watch::Receiver<Wanted>,
    turn: Arc<Notify>,
    sender: mpsc::Sender<Box<Observation>>,
) {
    let source = Source {
        api: Api::of(&state_directory),
        state_directory,
        wanted,
        turn,
        ended: None,
        answers: BTreeMap::new(),
        names: BTreeMap::new(),
    };
    tokio::spawn(async move {
        let closed = sender.clone();
        tokio::select! {
            () = source.run(&sender) => {}
            () = closed.closed() => {}
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
    /// Whether forwards answered to which a connection was made.
    answers: BTreeMap<Forward, bool>,
    /// Who holds sockets, by their inodes.
    names: BTreeMap<u64, String>,
}

impl Source {
    async fn run(mut self, sender: &mpsc::Sender<Box<Observation>>) {
        let (mut wake, mut looks, mut retry, mut is_turn) = (None, 0, RETRY, true);
        loop {
            // Watch first, then look.
            let unwatched = self.watch(&mut wake);
            let instance = Instance::find(&self.state_directory);
            let wanted = self.wanted.borrow_and_update().clone();
            let Some(is_whole) = self.look(&wanted, instance.as_ref(), is_turn, unwatched, sender).await else {
                return;
            };
            retry = if is_whole { RETRY } else { (2 * retry).min(MAX_RETRY) };
            let looked = Instant::now();
            is_turn = false;
            tokio::select! {
                // What went wrong shows when it is watched again.
                _ = changed(&mut wake) => retry = RETRY,
                () = ended(instance.as_ref()) => (self.ended, retry) = (Some(Instant::now()), RETRY),
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = self.turn.notified() => is_turn = true,
                () = sleep(retry), if !is_whole => {}
            }
            // Whoever changes the directory all the time gets no more than this.
            looks = if looked.elapsed() > QUIET { 0 } else { looks + 1 };
            sleep(if looks < BURST { PAUSE } else { MAX_PAUSE }.saturating_sub(looked.elapsed())).await;
        }
    }

    /// Watches the state directory; why that cannot be. Without it changes are seen at the next probe.
    fn watch(&self, wake: &mut Option<Wake>) -> Option<String> {
        let watched = (|| {
            let watching = match wake {
                Some(watching) => watching,
                None => wake.insert(Wake::new()?),
            };
            while watching.watch(&self.state_directory, [].into_iter())? {}
            std::io::Result::Ok(())
        })();
        let error = watched.err()?;
        *wake = None;
        Some(format!("{} cannot be watched: {error}", self.state_directory.display()))
    }

    /// Looks once, and mends what is to be mended. Whether all is as declared, so that nothing need be tried again; `None` if
    /// nobody listens any more.
    async fn look(
        &mut self,
        wanted: &Wanted,
        instance: Option<&Instance>,
        is_turn: bool,
        unwatched: Option<String>,
        sender: &mpsc::Sender<Box<Observation>>,
    ) -> Option<bool> {
        let mut observation =
            Observation { wanted: wanted.number, ended: self.ended, ..Observation::new(Instant::now()) };
        observation.instance = instance.map(|instance| instance.identity);
        observation.unwatched = unwatched;
        let mut seen = self.see(instance, &mut observation).await;
        let mut todo = self.plan(wanted, &seen);
        if !todo.zombies.is_empty() {
            sleep(DOUBT).await;
            let former = todo.zombies;
            seen = self.see(instance, &mut observation).await;
            todo = self.plan(wanted, &seen);
            todo.zombies.retain(|zombie| former.contains(zombie) && instance.is_none_or(Instance::runs));
        }
        let mut refused = BTreeMap::new();
        if !todo.is_empty() {
            if self.ended.is_some() || !todo.zombies.is_empty() {
                // What is interrupted is told before it is mended, which may take long.
                self.judge(wanted, &seen, instance, &refused, &mut observation).await;
                observation.zombies = todo.zombies.iter().map(|zombie| zombie.forward).collect();
                sender.send(Box::new(observation.clone())).await.ok()?;
                observation.zombies.clear();
            }
            refused = self.perform(&todo, &mut observation).await;
            seen = self.see(instance, &mut observation).await;
        }
        if is_turn {
            self.answers = connect(wanted).await;
        }
        self.judge(wanted, &seen, instance, &refused, &mut observation).await;
        // Else what went with it is still to be seen.
        if seen.listed.is_some() && seen.host.is_some() {
            self.ended = None;
        }
        let all_stand = observation.forwards.values().all(|found| found.state == State::Stands);
        let is_whole = observation.trouble.is_none() && all_stand && self.plan(wanted, &seen).is_empty();
        sender.send(Box::new(observation)).await.ok()?;
        Some(is_whole || instance.is_none() && seen.listed.is_none())
    }

    fn plan(&self, wanted: &Wanted, seen: &Seen) -> Plan {
        plan(&wanted.declared, &wanted.withdrawn, wanted.remove_undeclared, seen)
    }

    /// What there is now.
    async fn see(&self, instance: Option<&Instance>, observation: &mut Observation) -> Seen {
        observation.trouble = None;
        // First the list: what is in it listened before.
        let listed = match self.api.list().await {
            Ok(listed) => Some(listed),
            // Without rootlesskit nobody is expected to answer.
            Err(api::Error::Away(..)) if instance.is_none() => None,
            Err(error) => {
                let has_none =
                    matches!(error, api::Error::Refused(..)) && self.api.driver().await.ok() == Some(Driver::None);
                let trouble = if has_none { Trouble::NoPortDriver } else { Trouble::Api(error.to_string()) };
                observation.trouble = Some(trouble);
                None
            }
        };
        observation.is_listed = listed.is_some();
        observation.began = Instant::now();
        let host = Sockets::read(Path::new("/proc/self/net"));
        observation.at = Instant::now();
        if let Err(error) = &host {
            observation.trouble = Some(Trouble::Tables(format!("the host's sockets cannot be seen: {error}")));
        }
        // Without the process it may still be there: any socket of this user may be its.
        let own = instance.map_or_else(|| Own::User(nix::unistd::geteuid().as_raw()), Instance::sockets);
        Seen { listed, host: host.ok(), own }
    }

    /// Removes and adds, one at a time; why rootlesskit did not take a forward.
    async fn perform(&self, plan: &Plan, observation: &mut Observation) -> BTreeMap<Forward, String> {
        let end = Instant::now() + BUDGET;
        let mut refused = BTreeMap::new();
        let again = plan.zombies.iter().map(|zombie| zombie.forward);
        let takes_loopback =
            match plan.add.iter().copied().chain(again.clone()).all(|it| it.end.address.is_unspecified()) {
                true => false,
                false => matches!(self.api.driver().await, Ok(Driver::Takes { loopback: true })),
            };
        let mut session = self.api.session();
        for listed in plan.zombies.iter().chain(&plan.remove) {
            match session.remove(listed.id).await {
                Ok(()) => {}
                Err(api::Error::Refused(_, why)) => drop(refused.insert(listed.forward, why)),
                Err(_) => return refused,
            }
            if Instant::now() > end {
                return refused;
            }
        }
        for forward in again.chain(plan.add.iter().copied()) {
            match session.add(&forward, takes_loopback).await {
                Ok(()) => drop(observation.added.insert(forward, Instant::now())),
                Err(api::Error::Refused(_, why)) => drop(refused.insert(forward, why)),
                // It will not answer the next one either.
                Err(_) => break,
            }
            if Instant::now() > end {
                break;
            }
        }
        refused
    }

    /// Says of each declared forward how it is.
    async fn judge(
        &mut self,
        wanted: &Wanted,
        seen: &Seen,
        instance: Option<&Instance>,
        refused: &BTreeMap<Forward, String>,
        observation: &mut Observation,
    ) {
        let strangers: BTreeMap<_, _> =
            refused.keys().filter_map(|forward| Some((*forward, seen.stranger(forward)?))).collect();
        self.name(strangers.values()).await;
        let inside = instance.and_then(|instance| Sockets::read(&instance.tables_inside()).ok());
        let found = |forward: &Forward| {
            let stands = seen.stands(forward).unwrap_or(false) && (seen.listed.is_none() || seen.lists(forward));
            let state = match refused.get(forward) {
                _ if stands => State::Stands,
                _ if seen.host.is_none() => State::Unknown,
                None if seen.lists(forward) => State::Zombie,
                None => State::Down,
                Some(why) => match (seen.rival(forward), strangers.get(forward)) {
                    (Some(rival), _) => State::Held(format!("rootlesskit's forward {rival}")),
                    (None, Some(socket)) => State::Held(self.names.get(&socket.inode).cloned().unwrap_or_default()),
                    (None, None) => State::Refused(why.clone()),
                },
            };
            let table = inside.as_ref().map(|inside| listens_inside(inside, forward));
            Found { state, has_listener: self.answers.get(forward).copied().or(table) }
        };
        observation.forwards = wanted.declared.keys().map(|forward| (*forward, found(forward))).collect();
        let others = seen.listed.iter().flatten().map(|listed| listed.forward);
        observation.undeclared = others.filter(|forward| !wanted.declared.contains_key(forward)).collect();
    }

    /// Finds out who holds these sockets, as far as that is not known.
    async fn name(&mut self, sockets: impl Iterator<Item = &Socket>) {
        let former = std::mem::take(&mut self.names);
        let (mut unknown, mut users) = (BTreeSet::new(), BTreeMap::new());
        for socket in sockets {
            match former.get(&socket.inode) {
                Some(name) => drop(self.names.insert(socket.inode, name.clone())),
                None => drop(users.insert(socket.inode, socket.uid)),
            }
        }
        unknown.extend(users.keys().take(MAX_NAMED));
        let named = if unknown.is_empty() { None } else { spawn_blocking(move || holders(&unknown)).await.ok() };
        let named = named.unwrap_or_default();
        self.names.extend(users.into_iter().map(|(inode, uid)| match named.get(&inode) {
            Some((pid, command)) => (inode, format!("process {pid} ({command}) of user id {uid}")),
            None => (inode, format!("a process of user id {uid}")),
        }));
    }
}

async fn changed(wake: &mut Option<Wake>) -> std::io::Result<()> {
    match wake {
        Some(wake) => wake.changed().await.map(drop),
        None => pending().await,
    }
}

async fn ended(instance: Option<&Instance>) {
    match instance {
        Some(instance) => instance.ended().await,
        None => pending().await,
    }
}

/// Whether something listens inside where a forward leads to.
fn listens_inside(inside: &Sockets, forward: &Forward) -> bool {
    let loopback = || match forward.end.protocol.family {
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let address = forward.child_address.unwrap_or_else(loopback);
    let end = End { address, port: forward.child_port, protocol: forward.end.protocol };
    inside.serving(&end).next().is_some()
}

/// Connects to the forwards for which that is wanted; whether they answer.
async fn connect(wanted: &Wanted) -> BTreeMap<Forward, bool> {
    let is_wanted =
        |forward: &&Forward| forward.end.protocol.transport == Transport::Tcp && wanted.declared.contains_key(*forward);
    let mut tries = JoinSet::new();
    for forward in wanted.connect.iter().filter(is_wanted).copied() {
        tries.spawn(async move { (forward, answers(&forward.end).await) });
    }
    tries.join_all().await.into_iter().collect()
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
