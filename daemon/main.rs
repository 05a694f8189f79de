//! podsecd: see the library's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    podsecd::cli::main()
}
