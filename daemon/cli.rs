//! The daemon's command line, its own log, and its exit codes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Root};
use crate::mail;
use crate::run::{Options, refused_configuration, run};
use crate::u7s;

/// sysexits(3): the configuration is wrong. The unit does not start again what that cannot cure.
pub const EX_CONFIG: u8 = 78;

/// Guardian of a rootless Kubernetes node.
///
/// Reads the apiserver's audit log and reports refused requests to the journal, to forbidden.log and to
/// /run/podsecd/status.json. Runs in the foreground, as systemd wants it.
#[derive(Parser)]
#[command(version, name = "podsecd")]
struct Arguments {
    /// Configuration file, instead of /etc/podsecd/podsecd.toml; drop-ins are then looked for in FILE.d only
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take every path below DIR; findings are lines on the terminal and never leave DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Check the configuration as at start-up, and exit
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    helper: Option<Helper>,
}

#[derive(Subcommand)]
enum Helper {
    /// Deliver the digests in the outbox, and exit when none is left (podsecd-mail.service)
    Mail {
        /// Try once to deliver this one message, whatever is in the outbox; exit code 0: delivered, 65: refused, 75: not
        /// now, 69: the mail system takes nothing, 74: nothing more since it was offered this
        #[arg(long, value_name = "FILE")]
        deliver: Option<PathBuf>,
        /// Without its attachment
        #[arg(long, requires = "deliver")]
        bare: bool,
    },
    /// Look after rootlesskit's port forwards and the rootless control plane, as u7s-admin (podsecd-u7s.service)
    U7s,
}

/// The command line, for completions, manual pages and what checks them.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Parses the command line and runs podsecd.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = Root::new(arguments.root);
    if arguments.check_config {
        return check_config(arguments.config.as_deref(), &root);
    }
    start_log(root.is_elsewhere());
    let result = match arguments.helper {
        None => start(run(Options { config: arguments.config, root })).map(|()| ExitCode::SUCCESS),
        Some(Helper::U7s) => start(u7s::run(arguments.config, root)).map(|()| ExitCode::SUCCESS),
        Some(Helper::Mail { deliver: None, .. }) => {
            mail::run(arguments.config.as_deref(), &root).map(|()| ExitCode::SUCCESS)
        }
        Some(Helper::Mail { deliver: Some(file), bare }) => {
            mail::deliver(&file, bare, arguments.config.as_deref(), &root)
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let code = refused_configuration(&error).map_or(1, |_| EX_CONFIG);
            tracing::error!("{error:#}");
            ExitCode::from(code)
        }
    }
}

fn start(daemon: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A task of its own, like all that it waits for: the runtime polls its driver before it goes on with a future that
    // is none.
    let result = runtime.block_on(async { tokio::spawn(daemon).await })?;
    // A disk that does not answer, or a terminal, must not keep it from ending.
    runtime.shutdown_background();
    result
}

/// `podsecd --check-config` and `podsecctl config check`.
#[expect(clippy::print_stdout, reason = "the answer")]
pub fn check_config(file: Option<&Path>, root: &Root) -> ExitCode {
    match config::load(file, root) {
        Ok(_) => {
            println!("the configuration is valid");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EX_CONFIG)
        }
    }
}

/// podsecd's own log: the journal, or standard error where that is no journal.
fn start_log(elsewhere: bool) {
    let in_unit = std::env::var_os("JOURNAL_STREAM").is_some() && !elsewhere;
    let journal = in_unit.then(tracing_journald::layer).and_then(Result::ok);
    let journal = journal.map(|layer| layer.with_syslog_identifier("podsecd".into()).with_field_prefix(None));
    let terminal = journal.is_none().then(|| {
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        layer.with_ansi(std::io::stderr().is_terminal())
    });
    tracing_subscriber::registry().with(LevelFilter::INFO).with(journal).with(terminal).init();
}
