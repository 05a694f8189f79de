//! podsecctl: asks podsecd, and does without it what needs no daemon.

mod check;
mod digest;
mod explain;
mod forwards;
mod policy;
mod probe;
mod scan;
mod status;
mod takeover;
mod test_alert;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Root;
use crate::report::text::one_line;
use clap::{CommandFactory, Parser, Subcommand};

/// Asks podsecd, and does without it what needs no daemon
#[derive(Parser)]
#[command(version, name = "podsecctl", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Audit logs, without a daemon
    #[command(subcommand)]
    Audit(Audit),
    /// A check's metric as a Nagios plugin answers: one line and exit code 0, 1, 2 or 3
    Check(check::Check),
    /// What podsecd knows: checks, metrics, open conditions, lag, losses
    Status(status::StatusCommand),
    /// The mail that sums up a period
    #[command(subcommand)]
    Digest(digest::Digest),
    /// A harmless finding through journal, status and mail; says which of them it reached, exit code 1 if not all
    TestAlert(test_alert::TestAlert),
    /// Port forwards of rootlesskit, by podsecd-u7s
    #[command(subcommand)]
    Forwards(forwards::Forwards),
    /// Policies of container images
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Whether something answers, asked now and without a daemon
    #[command(subcommand)]
    Probe(probe::Probe),
    /// The switch from podsec-inotify: shows what it would do, and does or undoes it
    Takeover(takeover::Takeover),
    /// What a finding means and what to do; without an id, all of them
    Explain(explain::Explain),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum Audit {
    /// All findings of audit logs: plain, .gz, or - for standard input; with the shipped weights and levels
    Scan(scan::Scan),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// The same validation as at start-up; exit code 78 if it is refused
    Check {
        /// Configuration file, instead of /etc/podsecd/podsecd.toml
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Take every path below DIR
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
}

/// The command line, for completions, manual pages and what checks them.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Audit(Audit::Scan(scan)) => scan.run(),
        Command::Check(check) => check.run(),
        Command::Status(status) => status.run(),
        Command::Digest(digest) => digest.run(),
        Command::TestAlert(test) => test.run(),
        Command::Forwards(forwards) => forwards.run(),
        Command::Policy(policy) => policy.run(),
        Command::Probe(probe) => probe.run(),
        Command::Takeover(takeover) => takeover.run(),
        Command::Explain(explain) => explain.run(),
        Command::Config(ConfigCommand::Check { config, root }) => {
            return crate::cli::check_config(config.as_deref(), &Root::new(root));
        }
    };
    match result {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Names of files may be an attacker's.
            eprintln!("podsecctl: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads our output has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}
