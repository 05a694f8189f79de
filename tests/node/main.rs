//! Tests on a real node, with systemd as PID 1 (see `node.rs`). Without root they are skipped and say why.

mod basics;
mod node;

use libtest_mimic::{Arguments, Trial};

macro_rules! trials {
    ($($trial:path,)*) => { &[$((stringify!($trial), $trial as fn())),*] };
}

/// One line for each trial. The compiler's warning of dead code tells of one that is missing here.
const TRIALS: &[(&str, fn())] = trials! {
    basics::boots_with_no_failed_unit,
    basics::delivers_mail_to_root,
    basics::reads_its_journal,
};

fn main() {
    let arguments = Arguments::from_args();
    let missing = node::Node::missing();
    // Not on standard output: nextest reads our list there.
    if let Some(reason) = &missing {
        eprintln!("tests on the node are skipped: {reason}");
    }
    let trial = |&(name, run): &(&str, fn())| {
        let run = move || {
            run();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, TRIALS.iter().map(trial).collect()).exit();
}
