//! One try to deliver, in a further process: whatever a server does to it, the queue goes on.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::Answer;
use crate::cli::EX_CONFIG;
use crate::config::Root;
use crate::report::text::shorten;

/// How long a try may take in all: ten minutes for the answer after the final dot, and what goes before.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// How much memory and time of a core it may take.
const MAX_MEMORY: u64 = 160 << 20;
const MAX_CPU: Duration = Duration::from_secs(15);
/// How much it says of a server's answer, in bytes: it must fit into what is reported.
pub(super) const MAX_WORDS: usize = 1000;

/// sysexits(3): exit codes of `podsecd mail --deliver`.
const EX_DATAERR: u8 = 65;
const EX_UNAVAILABLE: u8 = 69;
const EX_IOERR: u8 = 74;
const EX_TEMPFAIL: u8 = 75;

/// What is said of a message that was taken, and of no other: what a server says has something before it.
pub(super) const TAKEN: &str = "delivered";

/// The exit code that says what became of a try, and why.
pub(super) fn code(answer: &Answer) -> (u8, &str) {
    match answer {
        Answer::Taken => (0, TAKEN),
        Answer::Refused(why) => (EX_DATAERR, why),
        Answer::Later(why) => (EX_TEMPFAIL, why),
        Answer::Away(why) => (EX_UNAVAILABLE, why),
        Answer::Left(why) => (EX_IOERR, why),
    }
}

/// Bounds what this process may take, so that an endless answer ends it; and it ends with whoever started it. Where it may
/// not bound itself, podsecd-mail.service has done so.
pub(super) fn limit() {
    let bound =
        |resource, most| rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    let _ = bound(Resource::Data, MAX_MEMORY);
    let _ = bound(Resource::Cpu, MAX_CPU.as_secs());
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
}

/// Tries to deliver the message in `file`; `bare`: without its attachment.
pub(super) fn attempt(file: &Path, bare: bool, config: Option<&Path>, root: &Root) -> Answer {
    let mut command = Command::new("/proc/self/exe");
    command.args(config.iter().flat_map(|config| [Path::new("--config"), config]));
    command.args(root.directory().iter().flat_map(|directory| [Path::new("--root"), directory]));
    command.arg("mail").arg("--deliver").arg(file).args(bare.then_some("--bare"));
    // It leads a group, so that what it started ends with it.
    command.process_group(0);
    match command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => wait(child, DEADLINE),
        Err(error) => Answer::Away(format!("cannot start a delivery: {error}")),
    }
}

/// What the process says and how it ends. After the deadline it is killed. What it has said by then counts.
fn wait(mut child: Child, deadline: Duration) -> Answer {
    let stdout = child.stdout.take();
    let (words_of, words) = mpsc::channel();
    let reader = thread::spawn(move || {
        let Some(mut stdout) = stdout else { return };
        let mut block = [0; MAX_WORDS];
        let mut left = 4 * MAX_WORDS;
        // It ends when the process does.
        while let Ok(count @ 1..) = stdout.read(&mut block) {
            if left > 0 {
                let _ = words_of.send(block[..count].to_vec());
            }
            left = left.saturating_sub(count);
        }
    });
    let (end, mut said) = (Instant::now() + deadline, Vec::new());
    let hangs = loop {
        match words.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => said.extend(more),
            Err(error) => break error == RecvTimeoutError::Timeout,
        }
    };
    if hangs {
        // It is our child until it is waited for. In its group is the sendmail that it may have started.
        if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = child.kill();
    }
    let status = child.wait();
    let _ = reader.join();
    let why = String::from_utf8_lossy(&said).trim().to_owned();
    let why = shorten(&why, MAX_WORDS).into_owned();
    match status.ok().and_then(|status| status.code()) {
        _ if why == TAKEN => Answer::Taken,
        // It may be what is in this message that a server cannot bear; others need not wait for it.
        _ if hangs => Answer::Later(format!("the server did not come to an end within {} s", deadline.as_secs())),
        Some(code) if code == i32::from(EX_DATAERR) => Answer::Refused(why),
        Some(code) if code == i32::from(EX_TEMPFAIL) => Answer::Later(why),
        Some(code) if code == i32::from(EX_UNAVAILABLE) => Answer::Away(why),
        Some(code) if code == i32::from(EX_IOERR) => Answer::Left(why),
        Some(code) if code == i32::from(EX_CONFIG) => Answer::Away("the configuration is refused".into()),
        _ => Answer::Later("the delivery failed at what the server sent (it exceeded its memory or time)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, deadline: Duration) -> Answer {
        let mut command = Command::new("sh");
        let child = command.args(["-c", script]).process_group(0).stdout(Stdio::piped()).spawn().expect("sh runs");
        wait(child, deadline)
    }

    #[test]
    fn the_exit_code_says_what_became_of_it() {
        let why = || "why".to_owned();
        let answers = [Answer::Refused, Answer::Later, Answer::Away, Answer::Left].map(|answer| answer(why()));
        for answer in [Answer::Taken].into_iter().chain(answers) {
            let (code, words) = code(&answer);
            assert_eq!(run(&format!("echo {words}; exit {code}"), DEADLINE), answer);
        }
        for (script, later) in [("kill -9 $$", true), ("exit 1", true), ("exit 0", true), ("exit 78", false)] {
            assert_eq!(matches!(run(script, DEADLINE), Answer::Later(_)), later, "{script}");
        }
    }

    #[test]
    fn what_was_taken_stays_taken_however_the_farewell_goes() {
        for (script, deadline) in
            [("kill -9 $$", DEADLINE), ("exit 1", DEADLINE), ("sleep 1000", Duration::from_secs(5))]
        {
            assert_eq!(run(&format!("echo delivered; {script}"), deadline), Answer::Taken, "{script}");
        }
    }

    #[test]
    fn one_that_hangs_is_killed() {
        // What it started has its output, too, and ends with it: else this would wait for it.
        for script in ["exec sleep 1000", "sleep 1000 & sleep 1000"] {
            let answer = run(script, Duration::from_millis(50));
            assert!(matches!(&answer, Answer::Later(why) if why.contains("did not come to an end")), "{answer:?}");
        }
    }

    #[test]
    fn one_that_says_too_much_is_not_kept_for_ever() {
        let Answer::Later(why) = run("yes | head -c 100000; exit 75", DEADLINE) else { panic!("not later") };
        assert!(why.len() <= MAX_WORDS + "…".len(), "{}", why.len());
    }
}
