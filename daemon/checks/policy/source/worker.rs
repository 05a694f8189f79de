//! The thread that looks: what it reads may take as long as it likes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use crate::checks::images::observe as images;
use crate::checks::policy::accounts::Account;
use crate::checks::policy::observe::Observer;
use crate::checks::policy::seen::{Former, Home, Strangers, System};
use crate::watch::names::{Added, Adder};

/// How to look.
#[derive(Clone)]
pub(super) struct Task {
    /// What adds watches for what is looked at, if that is wanted.
    pub(super) adder: Option<Adder>,
    /// At images, too.
    pub(super) images: bool,
}

/// A thread that looks.
pub(super) struct Worker {
    pub(super) task: Task,
    jobs: std::sync::mpsc::Sender<Job>,
    answers: mpsc::Receiver<Answer>,
}

pub(super) enum Job {
    System,
    /// Who has a home that passwd does not know.
    Strangers(Arc<System>),
    /// With what held when it was looked at last.
    Home(Account, Arc<System>, Former),
    /// Only at the immutable flags.
    Flags(Account),
}

pub(super) struct Answer {
    pub(super) seen: Seen,
    pub(super) added: Added,
    pub(super) took: Duration,
}

pub(super) enum Seen {
    System(Box<System>),
    Strangers(Strangers),
    /// As it was at first, if that was different; as it is, with its images and its immutable flags.
    Home(Option<Box<Home>>, Box<Home>, Option<Box<images::Look>>, u16),
    /// It is there, but cannot be read, and why.
    Unreadable(String),
    Flags(u16),
}

impl Worker {
    pub(super) fn start(observer: &Arc<Observer>, task: Task) -> io::Result<Worker> {
        let (jobs, jobs_in) = std::sync::mpsc::channel();
        let (answers_in, answers) = mpsc::channel(1);
        let (observer, how) = (Arc::clone(observer), task.clone());
        std::thread::Builder::new().name("policy".into()).spawn(move || {
            while let Ok(job) = jobs_in.recv() {
                let beginning = Instant::now();
                let (seen, added) = do_job(&observer, &how, job);
                if answers_in.blocking_send(Answer { seen, added, took: beginning.elapsed() }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Worker { task, jobs, answers })
    }

    /// Gives it something to do.
    ///
    /// # Errors
    /// It has failed.
    pub(super) async fn ask(&mut self, job: Job) -> io::Result<Answer> {
        self.jobs.send(job).map_err(|_| failed())?;
        self.answer().await
    }

    /// Waits for the answer to what it was asked.
    pub(super) async fn answer(&mut self) -> io::Result<Answer> {
        self.answers.recv().await.ok_or_else(failed)
    }
}

fn failed() -> io::Error {
    io::Error::other("the thread that looks at homes failed")
}

fn do_job(observer: &Observer, task: &Task, job: Job) -> (Seen, Added) {
    let adder = task.adder.as_ref();
    match job {
        Job::System => {
            let (system, added) = observer.watch_system(adder);
            (Seen::System(Box::new(system)), added)
        }
        Job::Strangers(system) => {
            let (strangers, added) = observer.watch_strangers(adder, &system.accounts);
            (Seen::Strangers(strangers), added)
        }
        Job::Home(account, system, former) => {
            // Flags that change in between are looked at once more.
            let flags = adder.map_or(0, |_| observer.flags(&account));
            let (mut seen, added) = observer.watch_home(adder, &account, &system, &former);
            let seen = match seen.pop() {
                Some(Ok(home)) => {
                    let first = seen.pop().and_then(Result::ok).filter(|first| *first != home);
                    let images =
                        task.images.then(|| images::look(observer, (&home, &former), &system, SystemTime::now()));
                    Seen::Home(first.map(Box::new), Box::new(home), images.map(Box::new), flags)
                }
                Some(Err(error)) => Seen::Unreadable(error.to_string()),
                None => Seen::Unreadable("nobody looked".to_owned()),
            };
            (seen, added)
        }
        Job::Flags(account) => (Seen::Flags(observer.flags(&account)), Added::default()),
    }
}
