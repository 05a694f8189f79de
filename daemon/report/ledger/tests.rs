//! What the ledger does when the journal or a disk takes nothing.

use std::thread::JoinHandle;
use std::time::SystemTime;

use super::*;
use crate::checks::kubeapi::ids::FORBIDDEN;
use crate::checks::own::ids::JOURNAL_UNAVAILABLE;
use crate::finding::Id;
use crate::report::Reported;
use crate::score::{Levels, Weights, condition, judge};

/// The files, and what the ledger is told and tells.
struct World {
    directory: tempfile::TempDir,
    runtime: Handle,
}

struct Running {
    cycles: mpsc::Sender<(Arc<Cycle>, State)>,
    accepted: watch::Sender<u64>,
    troubles: mpsc::Receiver<Trouble>,
    thread: JoinHandle<()>,
    wanted: mpsc::Sender<oneshot::Sender<Sent>>,
    _config: watch::Sender<Arc<Config>>,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        // As podsecd's main thread does, it drives the timers until the process ends.
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        World { directory: tempfile::tempdir().expect("a directory"), runtime: handle }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A ledger that goes on at the checkpoint.
    fn start(&self) -> Running {
        self.start_with(&[])
    }

    /// The same, for which these cycles wait.
    fn start_with(&self, waiting: &[(u64, (Id, Kind, bool))]) -> Running {
        let former = Checkpoint::load(&self.path("checkpoint.json")).expect("readable");
        let (state, mark, digests) =
            former.map_or_else(Default::default, |former| (former.state, former.forbidden_log, former.digests));
        let mut config = Config::default();
        config.digest.period = "300ms".to_owned().try_into().expect("a time");
        let (to_config, config_in) = watch::channel(Arc::new(config.clone()));
        let (wanted, wanted_in) = mpsc::channel(1);
        let (troubles_out, troubles) = mpsc::channel(64);
        let (accepted, accepted_in) = watch::channel(0);
        let (cycles, cycles_in) = mpsc::channel(12);
        waiting.iter().for_each(|(number, finding)| cycles.try_send(cycle(*number, &[*finding])).expect("room"));
        let _runtime = self.runtime.enter();
        let places = vec![PathBuf::from("/nowhere/else"), self.path("forbidden.log")];
        let log = ForbiddenLog::new(places, config.forbidden_log.clone(), mark.as_ref()).expect("readable");
        let period = Period::open(&self.path("spool"), &self.path("outbox"), digests, 0, &config).expect("opened");
        let mut ledger = Ledger {
            log,
            period,
            config: config_in,
            state: state.clone(),
            saved: (state, mark),
            unaccepted: None,
            starting: true,
            checkpoint: self.path("checkpoint.json"),
            troubles: troubles_out,
            stuck: false,
            unfrozen: false,
            wanted: wanted_in,
            mail: watch::channel(None).0,
            kept: watch::channel(0).0,
            outbox: Changes::of(&self.path("outbox")),
        };
        let handle = self.runtime.clone();
        let thread = std::thread::spawn(move || {
            let _runtime = handle.enter();
            ledger.begin();
            ledger.run(cycles_in, accepted_in, &watch::channel(0).0);
        });
        Running { cycles, accepted, troubles, thread, wanted, _config: to_config }
    }

    fn digest(&self, number: u64) -> Option<String> {
        std::fs::read_to_string(self.path(&format!("outbox/{number}.eml"))).ok()
    }

    /// The digest of that number, as soon as it is frozen.
    fn wait_for_digest(&self, number: u64) -> String {
        let end = std::time::Instant::now() + Duration::from_secs(120);
        loop {
            match self.digest(number) {
                Some(digest) => return digest,
                None if std::time::Instant::now() > end => panic!("there is no digest {number}"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Running {
    fn send(&self, number: u64, findings: &[(Id, Kind, bool)]) {
        self.cycles.blocking_send(cycle(number, findings)).expect("taken");
    }

    fn stop(self) {
        drop(self.cycles);
        self.thread.join().expect("ended");
    }
}

fn cycle(number: u64, findings: &[(Id, Kind, bool)]) -> (Arc<Cycle>, State) {
    let report = |(id, kind, again): &(Id, Kind, bool)| {
        let finding = condition(*id, *kind, "subject", format!("{id} says"), SystemTime::UNIX_EPOCH);
        let scored = judge(finding, &Weights::shipped(), &Levels::default());
        Reported { scored, metric: 0, again: *again }
    };
    (Arc::new(Cycle { number, findings: findings.iter().map(report).collect() }), State::default())
}

const REFUSAL: (Id, Kind, bool) = (FORBIDDEN, Kind::Event, true);
const AWAY: (Id, Kind, bool) = (JOURNAL_UNAVAILABLE, Kind::Raised, false);

#[test]
fn a_journal_that_takes_nothing_holds_back_the_checkpoint_and_not_the_mail_that_says_so() {
    for ends_meanwhile in [true, false] {
        let world = World::new();
        // Both are there when it begins: a period that has nothing to tell but refusals ends a minute later.
        let mut running = world.start_with(&[(1, REFUSAL), (2, AWAY)]);
        let digest = world.wait_for_digest(1);
        assert!(digest.contains("1 condition raised") && !digest.contains("refusal"), "{digest}");
        let checkpoint = Checkpoint::load(&world.path("checkpoint.json")).expect("readable").expect("there");
        assert_eq!(checkpoint.forbidden_log.expect("a mark").length, 0, "the journal has not taken its line");
        if ends_meanwhile {
            running.stop();
            running = world.start();
            running.send(1, &[REFUSAL]);
        }
        running.accepted.send_replace(2);
        let digest = world.wait_for_digest(2);
        assert!(digest.contains("1 refusal") && !digest.contains("raised"), "{digest}");
        running.stop();
        let lines = std::fs::read_to_string(world.path("forbidden.log")).expect("readable");
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let checkpoint = Checkpoint::load(&world.path("checkpoint.json")).expect("readable").expect("there");
        assert_eq!(checkpoint.forbidden_log.expect("a mark").length, lines.len() as u64);
    }
}

#[test]
fn a_digest_that_cannot_be_made_is_said_and_made_when_it_can_be() {
    let world = World::new();
    let mut running = world.start();
    let new = world.path("outbox/new");
    // Nothing can be written there.
    std::fs::create_dir_all(new.join("x")).expect("made");
    running.send(1, &[AWAY]);
    running.accepted.send_replace(1);
    let trouble = running.troubles.blocking_recv().expect("a trouble");
    assert_eq!((trouble.id, trouble.kind), (DIGEST_FAILED, Kind::Raised), "{}", trouble.message);
    let send = || {
        let (answer, answered) = oneshot::channel();
        running.wanted.blocking_send(answer).expect("asked");
        answered.blocking_recv().expect("answered")
    };
    let sent = send();
    assert!(
        sent.number.is_none() && sent.why.is_some_and(|why| why.contains("cannot make")),
        "and so is who asks for it"
    );
    std::fs::remove_dir_all(&new).expect("removed");
    assert_eq!(send().number, Some(1));
    let trouble = running.troubles.blocking_recv().expect("a trouble");
    assert_eq!((trouble.id, trouble.kind), (DIGEST_FAILED, Kind::Cleared));
    assert!(world.wait_for_digest(1).contains("1 condition raised"));
    running.stop();
}

#[test]
fn what_the_journal_has_not_taken_stays_little() {
    let world = World::new();
    let running = world.start();
    running.send(1, &[REFUSAL]);
    let (mut taken, mut last) = (0, std::time::Instant::now());
    // It takes no more when it took nothing for longer than it waits for the journal.
    while taken < 200 && last.elapsed() < 2 * PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
        if running.cycles.try_send(cycle(2 + taken, &[])).is_ok() {
            (taken, last) = (taken + 1, std::time::Instant::now());
        }
    }
    assert!((MAX_UNACCEPTED..MAX_UNACCEPTED + 60).contains(&taken), "{taken}");
    running.accepted.send_replace(1000);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while running.cycles.capacity() < 12 && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running.cycles.capacity(), 12, "it goes on when the journal does");
    running.stop();
}
