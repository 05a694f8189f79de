//! A manager on a bus of the tests' own: a real dbus-daemon, and somebody on it who answers as systemd does.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::Instant;

use zbus::wire::Variant;
use zbus::{Message, ObjectPath};

use super::*;

/// Until something that is on its way has come.
const SOON: Duration = Duration::from_secs(10);

/// A dbus-daemon on a socket. It is killed when it is dropped.
pub(in super::super) struct Daemon(Child);

impl Daemon {
    /// `None`, and a word on it, if the tool is not there.
    pub(in super::super) async fn start(directory: &Path) -> Option<Daemon> {
        let (socket, configuration) = (directory.join("bus"), directory.join("bus.conf"));
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&configuration, text).expect("written");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", configuration.display())).args(["--nofork", "--nopidfile"]);
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("not tested: there is no dbus-daemon; apt-get install dbus");
                None
            }
            child => {
                let daemon = Daemon(child.expect("dbus-daemon starts"));
                until("the bus is there", async || UnixStream::connect(&socket).await.is_ok()).await;
                Some(daemon)
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the stand-in for systemd says of its units, and what it was asked to do.
#[derive(Clone, Default)]
pub(in super::super) struct Said {
    /// ActiveState and NRestarts, by the units' objects.
    units: Arc<Mutex<HashMap<String, (String, u32)>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Said {
    pub(in super::super) fn set(&self, unit: Unit, active: &str, restarts: u32) {
        self.units.lock().expect("whole").insert(path(unit), (active.to_owned(), restarts));
    }

    pub(in super::super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("whole"))
    }

    /// Answers on a bus, until that is gone.
    pub(in super::super) async fn serve(self, socket: PathBuf) -> Connection {
        let stream = UnixStream::connect(socket).await.and_then(UnixStream::into_std).expect("connected");
        let connection = connection::Builder::unix_stream(stream).build().await.expect("on the bus");
        let mut calls = MessageStream::from(&connection);
        connection.request_name(MANAGER).await.expect("the name is free");
        let on = connection.clone();
        tokio::spawn(async move {
            let next = async |calls: &mut MessageStream| {
                std::future::poll_fn(|context| futures_core::Stream::poll_next(Pin::new(&mut *calls), context)).await
            };
            while let Some(Ok(message)) = next(&mut calls).await {
                if message.message_type() == Type::MethodCall {
                    self.answer(&on, &message).await;
                }
            }
        });
        connection
    }

    async fn answer(&self, on: &Connection, call: &Message) {
        let header = call.header();
        let member = header.member().expect("named").to_string();
        if member == "Get" {
            let (_, name): (String, String) = call.body().deserialize().expect("two words");
            let path = header.path().expect("of an object").to_string();
            let known = self.units.lock().expect("whole").get(&path).cloned();
            let load = if known.is_some() { "loaded" } else { "not-found" };
            if known.is_none() {
                // systemd loads what is asked for, tells everybody, and forgets it.
                for member in ["UnitNew", "UnitRemoved"] {
                    let unit = ("rootlesskit.service", ObjectPath::try_from(path.clone()).expect("a path"));
                    on.emit_signal(None::<&str>, OBJECT, INTERFACE, member, &unit).await.expect("sent");
                }
            }
            let (active, restarts) = known.unwrap_or(("inactive".to_owned(), 0));
            let value = match &*name {
                "LoadState" => Variant::from(load),
                "ActiveState" => Variant::from(active),
                "NRestarts" => Variant::from(restarts),
                "MainPID" => Variant::from(7_u32),
                _ => Variant::from(name.to_lowercase()),
            };
            on.reply(&header, &value).await.expect("replied");
            return;
        }
        let arguments: String = match &*member {
            "RestartUnit" => {
                call.body().deserialize::<(String, String)>().map(|(unit, mode)| format!(" {unit} {mode}"))
            }
            "ResetFailedUnit" => call.body().deserialize::<String>().map(|unit| format!(" {unit}")),
            _ => Ok(String::new()),
        }
        .expect("words");
        self.calls.lock().expect("whole").push(format!("{member}{arguments}"));
        match &*member {
            "ResetFailedUnit" => on.reply_error(&header, "org.freedesktop.systemd1.NoSuchUnit", &"no such unit").await,
            _ => on.reply(&header, &()).await,
        }
        .expect("replied");
    }
}

/// Tells, as systemd does, that a unit changed.
pub(in super::super) async fn signal(on: &Connection, unit: Unit) {
    let body = (UNIT, HashMap::<String, Variant<'_>>::new(), Vec::<String>::new());
    on.emit_signal(None::<&str>, path(unit), PROPERTIES, "PropertiesChanged", &body).await.expect("sent");
}

fn manager(directory: &Path) -> (Manager, Arc<Notify>) {
    let wake = Arc::new(Notify::new());
    (Manager::new(Bus::User, directory.join("bus"), Arc::clone(&wake)), wake)
}

async fn active(manager: &mut Manager, unit: Unit) -> String {
    manager.units(true).await.expect("it answers")[&unit].active.clone()
}

#[tokio::test]
async fn units_are_asked_for_at_first_and_after_a_signal_and_not_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(_daemon) = Daemon::start(directory.path()).await else { return };
    let said = Said::default();
    said.set(Unit::Kubelet, "active", 3);
    let systemd = said.clone().serve(directory.path().join("bus")).await;
    let (mut manager, wake) = manager(directory.path());
    let units = manager.units(true).await.expect("it answers").clone();
    let kubelet = UnitState {
        load: "loaded".into(),
        active: "active".into(),
        sub: "substate".into(),
        result: "result".into(),
        restarts: 3,
        main_pid: 7,
    };
    assert_eq!(units.keys().copied().collect::<Vec<_>>(), [Unit::Rootlesskit, Unit::Kubelet]);
    assert_eq!((&units[&Unit::Kubelet], &*units[&Unit::Rootlesskit].load), (&kubelet, "not-found"));
    assert_eq!(said.take_calls(), ["Subscribe"]);
    said.set(Unit::Kubelet, "failed", 3);
    assert_eq!(active(&mut manager, Unit::Kubelet).await, "active", "no signal, no question");
    assert_eq!(said.take_calls(), ["Ping"], "but whether it is there");
    signal(&systemd, Unit::Kubelet).await;
    timeout(SOON, wake.notified()).await.expect("woken");
    assert_eq!(active(&mut manager, Unit::Kubelet).await, "failed");
    // A job on a unit that was not loaded is all that is told of its start.
    let job = ObjectPath::try_from(format!("{OBJECT}/job/1")).expect("a path");
    let done = (1_u32, job, Unit::Rootlesskit.name(), "done");
    systemd.emit_signal(None::<&str>, OBJECT, INTERFACE, "JobRemoved", &done).await.expect("sent");
    timeout(SOON, wake.notified()).await.expect("woken");
    manager.units(true).await.expect("it answers");
    // What is of other units, or comes of asking, wakes nobody.
    signal(&systemd, Unit::SystemCrio).await;
    assert!(timeout(Duration::from_millis(300), wake.notified()).await.is_err());
}

#[tokio::test]
async fn a_bus_that_goes_away_is_an_error_until_it_is_there_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut manager, wake) = manager(directory.path());
    let why = manager.units(true).await.expect_err("there is none");
    assert!(why.contains("No such file") && why.contains("/bus"), "{why}");
    let Some(daemon) = Daemon::start(directory.path()).await else { return };
    let why = manager.units(true).await.expect_err("nobody is on it");
    assert!(why.contains("systemd1"), "{why}");
    let said = Said::default();
    said.set(Unit::Kubelet, "active", 0);
    let _systemd = said.clone().serve(directory.path().join("bus")).await;
    assert_eq!(active(&mut manager, Unit::Kubelet).await, "active");
    drop(daemon);
    timeout(SOON, wake.notified()).await.expect("woken");
    let why = manager.units(false).await.expect_err("it is gone");
    assert!(why.ends_with("has ended"), "{why}");
    assert!(manager.units(true).await.is_err());
    let Some(_daemon) = Daemon::start(directory.path()).await else { return };
    said.set(Unit::Kubelet, "activating", 1);
    let systemd = said.clone().serve(directory.path().join("bus")).await;
    assert!(manager.units(false).await.is_err(), "a turn is to come first");
    assert_eq!(active(&mut manager, Unit::Kubelet).await, "activating");
    // Another manager on the same bus is told that we listen.
    said.take_calls();
    systemd.close().await.expect("closed");
    let _other = said.clone().serve(directory.path().join("bus")).await;
    timeout(SOON, wake.notified()).await.expect("woken");
    until("it listens to the other one", async || {
        let _ = manager.units(true).await;
        said.take_calls().contains(&"Subscribe".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_bus_that_hangs_or_is_none_is_an_error_in_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = tokio::net::UnixListener::bind(directory.path().join("bus")).expect("bound");
    let (mut manager, _) = manager(directory.path());
    let before = Instant::now();
    assert!(manager.units(true).await.is_err_and(|why| why.contains("no answer within 5 s")));
    assert!(before.elapsed() < SOON);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.try_write(&[b'x'; 65536]);
        }
    });
    assert!(manager.units(true).await.is_err());
}

#[tokio::test]
async fn a_unit_is_started_again_also_one_that_was_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut manager, _) = manager(directory.path());
    let why = manager.restart(Unit::Kubelet).await.expect_err("nobody was asked yet");
    assert!(why.contains("does not answer"), "{why}");
    let Some(_daemon) = Daemon::start(directory.path()).await else { return };
    let said = Said::default();
    let _systemd = said.clone().serve(directory.path().join("bus")).await;
    manager.units(true).await.expect("it answers");
    said.take_calls();
    assert_eq!(manager.restart(Unit::Kubelet).await, Ok(()));
    assert_eq!(said.take_calls(), ["ResetFailedUnit kubelet.service", "RestartUnit kubelet.service replace"]);
}

#[tokio::test]
async fn what_a_manager_says_is_cut() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(_daemon) = Daemon::start(directory.path()).await else { return };
    let said = Said::default();
    said.set(Unit::Kubelet, &"x".repeat(1 << 20), 0);
    let _systemd = said.clone().serve(directory.path().join("bus")).await;
    let (mut manager, _) = manager(directory.path());
    assert_eq!(active(&mut manager, Unit::Kubelet).await.len(), MAX_WORD);
}

#[test]
fn the_object_of_a_unit_has_its_name_escaped() {
    assert_eq!(path(Unit::U7s), "/org/freedesktop/systemd1/unit/u7s_2eservice");
}
