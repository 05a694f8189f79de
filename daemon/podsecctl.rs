//! podsecctl: see `podsecd::ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    podsecd::ctl::main()
}
