//! What systemd's managers say of units, over D-Bus (org.freedesktop.systemd1(5)).
//!
//! A manager is asked when podsecd begins to listen to it and after it signalled a change; in between, once a turn, whether
//! it is there. The user's bus is in the hands of whoever has u7s-admin's uid: words are cut, calls have a time-out, and a
//! signal is nothing but a reason to ask.

#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zbus::message::Type;
use zbus::wire::Type as BodyType;
use zbus::{Connection, MatchRule, MessageStream, OwnedVariant, connection};

use super::seen::{Bus, Unit, UnitState};
use crate::finding::prefix;

/// systemd's name on a bus.
const MANAGER: &str = "org.freedesktop.systemd1";
/// Its object, and its interface.
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// All that is asked at a time is answered within that time.
const TIME: Duration = Duration::from_secs(5);
/// Longest word that a manager says, in bytes.
const MAX_WORD: usize = 64;
/// Longest reason that is told.
const MAX_WHY: usize = 200;
/// So many signals wait.
const QUEUE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// Listens to the manager of one bus.
pub struct Manager {
    bus: Bus,
    socket: PathBuf,
    /// Told when something changed.
    wake: Arc<Notify>,
    live: Option<Live>,
}

/// While it is connected.
struct Live {
    connection: Connection,
    /// Something changed since the units were asked for.
    changed: Arc<AtomicBool>,
    units: BTreeMap<Unit, UnitState>,
    /// They end with it.
    _listeners: JoinSet<()>,
}

impl Manager {
    /// Of the bus at that socket; `wake` is told when it is to be asked.
    pub fn new(bus: Bus, socket: PathBuf, wake: Arc<Notify>) -> Manager {
        Manager { bus, socket, wake, live: None }
    }

    /// Which bus it is on.
    pub fn bus(&self) -> Bus {
        self.bus
    }

    /// The states of its units. Connects if it is not connected, and may: at a turn, lest a bus that closes again and again
    /// keeps us busy.
    ///
    /// # Errors
    /// Why it does not answer.
    pub async fn units(&mut self, may_connect: bool) -> Result<&BTreeMap<Unit, UnitState>, String> {
        if !may_connect && self.live.as_ref().is_none_or(|live| live.connection.is_closed()) {
            self.live = None;
            return Err(format!("the connection to {} has ended", self.socket.display()));
        }
        match timeout(TIME, self.ask()).await {
            Ok(Ok(live)) => Ok(&self.live.insert(live).units),
            Ok(Err(error)) => Err(self.told(&error)),
            Err(_) => Err(format!("no answer within {} s on {}", TIME.as_secs(), self.socket.display())),
        }
    }

    /// Asks what is to be asked. Whatever goes wrong, or takes too long, ends the connection.
    async fn ask(&mut self) -> zbus::Result<Live> {
        let known = self.live.take().filter(|live| !live.connection.is_closed());
        let mut live = match known {
            Some(live) => live,
            None => self.connect().await?,
        };
        if live.changed.swap(false, Ordering::AcqRel) {
            // Whoever took the place of a manager knows nothing of who listens.
            call(&live.connection, OBJECT, INTERFACE, "Subscribe", &()).await.map(drop).or_else(already)?;
            for unit in Unit::ALL.into_iter().filter(|unit| unit.bus() == self.bus) {
                live.units.insert(unit, state(&live.connection, unit).await?);
            }
        } else {
            call(&live.connection, OBJECT, "org.freedesktop.DBus.Peer", "Ping", &()).await?;
        }
        Ok(live)
    }

    async fn connect(&self) -> zbus::Result<Live> {
        let stream = UnixStream::connect(&self.socket).await?;
        let connection = connection::Builder::unix_stream(stream.into_std()?).method_timeout(TIME).build().await?;
        let changed = Arc::new(AtomicBool::new(true));
        let mut listeners = JoinSet::new();
        for rule in rules(self.bus)? {
            let signals = MessageStream::for_match_rule(rule, &connection, Some(QUEUE)).await?;
            listeners.spawn(listen(signals, Arc::clone(&changed), Arc::clone(&self.wake)));
        }
        Ok(Live { connection, changed, units: BTreeMap::new(), _listeners: listeners })
    }

    /// Has the manager start a unit again, also one that it has given up.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn restart(&self, unit: Unit) -> Result<(), String> {
        let Some(live) = &self.live else { return Err(format!("{} does not answer", self.bus.name())) };
        let restart = async {
            // A unit that failed too often is started only after that was forgotten; of another there is nothing to forget.
            let _ = call(&live.connection, OBJECT, INTERFACE, "ResetFailedUnit", &(unit.name(),)).await;
            call(&live.connection, OBJECT, INTERFACE, "RestartUnit", &(unit.name(), "replace")).await
        };
        match timeout(TIME, restart).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.told(&error)),
            Err(_) => Err(format!("no answer within {} s", TIME.as_secs())),
        }
    }

    fn told(&self, error: &zbus::Error) -> String {
        format!("{} on {}", prefix(&error.to_string(), MAX_WHY), self.socket.display())
    }
}

/// The signals that are a reason to ask: of a unit, that it changed, or that something was done with it; and that another
/// manager is there. UnitNew and UnitRemoved are none: systemd loads a unit that does not run when it is asked for it, and
/// tells everybody.
fn rules(bus: Bus) -> zbus::Result<Vec<MatchRule<'static>>> {
    let signal = || MatchRule::builder().msg_type(Type::Signal);
    let owner = signal().sender("org.freedesktop.DBus").interface("org.freedesktop.DBus").member("NameOwnerChanged");
    let mut rules = vec![owner.add_arg(MANAGER).build()?];
    for unit in Unit::ALL.into_iter().filter(|unit| unit.bus() == bus) {
        rules.push(signal().sender(MANAGER).interface(PROPERTIES).path(path(unit)).build()?);
        rules.push(signal().sender(MANAGER).interface(INTERFACE).member("JobRemoved").arg(2, unit.name()).build()?);
    }
    Ok(rules)
}

/// Tells that there was a signal, or that there are no more.
async fn listen(mut signals: MessageStream, changed: Arc<AtomicBool>, wake: Arc<Notify>) {
    loop {
        let signal =
            std::future::poll_fn(|context| futures_core::Stream::poll_next(Pin::new(&mut signals), context)).await;
        changed.store(true, Ordering::Release);
        wake.notify_one();
        if !matches!(signal, Some(Ok(_))) {
            return;
        }
    }
}

/// The object of a unit: what is no letter or digit is `_` and two hexadecimal digits (sd_bus_path_encode(3)).
fn path(unit: Unit) -> String {
    let escaped = unit.name().bytes().map(|byte| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("_{byte:02x}"),
    });
    format!("{OBJECT}/unit/{}", escaped.collect::<String>())
}

/// What the manager says of a unit. It has an object for any, also for one that it does not find.
async fn state(connection: &Connection, unit: Unit) -> zbus::Result<UnitState> {
    let path = path(unit);
    let get = async |interface: &'static str, name: &'static str| {
        let answer = call(connection, &path, PROPERTIES, "Get", &(interface, name)).await?;
        answer.body().deserialize::<OwnedVariant>()
    };
    let word = |value: OwnedVariant| -> zbus::Result<String> {
        let word: &str = (&value).try_into()?;
        Ok(prefix(word, MAX_WORD).to_owned())
    };
    let number = |value: OwnedVariant| u32::try_from(&value);
    Ok(UnitState {
        load: word(get(UNIT, "LoadState").await?)?,
        active: word(get(UNIT, "ActiveState").await?)?,
        sub: word(get(UNIT, "SubState").await?)?,
        result: word(get(SERVICE, "Result").await?)?,
        restarts: number(get(SERVICE, "NRestarts").await?)?,
        main_pid: number(get(SERVICE, "MainPID").await?)?,
    })
}

async fn call<B>(
    connection: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + BodyType,
{
    connection.call_method(Some(MANAGER), path, Some(interface), method, body).await
}

/// Whoever listens already may not begin to.
fn already(error: zbus::Error) -> zbus::Result<()> {
    match error {
        zbus::Error::MethodError(name, ..) if name.as_str().ends_with(".AlreadySubscribed") => Ok(()),
        error => Err(error),
    }
}
