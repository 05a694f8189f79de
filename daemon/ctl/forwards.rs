//! `podsecctl forwards`: which port forwards are to stand, and whether they do.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::checks::forwards::assess::Row;
use crate::checks::forwards::forward::Forward;
use crate::config::Root;
use crate::control;
use crate::report::text::one_line;
use crate::u7s::control::{Answer, Request, SOCKET};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Forwards {
    /// All of them: who wants them, how they are, and since when; exit code 1 if one that is declared does not stand
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Have one stand, from now on and after every restart of rootlesskit
    Add(Change),
    /// Have one removed that was added, or that nobody declared
    Remove(Change),
}

#[derive(Args)]
pub(crate) struct Change {
    /// ADDRESS:PORT[:ADDRESS-INSIDE]:PORT-INSIDE/PROTOCOL, for example 0.0.0.0:31000:31000/tcp
    #[arg(value_name = "SPEC")]
    forward: Forward,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub(crate) struct Place {
    /// Of the podsecd-u7s that runs with --root DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What is said of an answer to something else.
const ALIEN: &str = "podsecd-u7s answers something else";

impl Forwards {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Forwards::List { json, place } => list(json, &Root::new(place.root)),
            Forwards::Add(Change { forward, place }) => add(forward, &Root::new(place.root)),
            Forwards::Remove(Change { forward, place }) => remove(forward, &Root::new(place.root)),
        }
    }
}

fn list(json: bool, root: &Root) -> Result<ExitCode> {
    let Ok(Answer::Forwards(rows)) = ask(root, &Request::List)? else { bail!(ALIEN) };
    let mut out = io::stdout().lock();
    if json {
        for row in &rows {
            writeln!(out, "{}", serde_json::to_string(row)?)?;
        }
    } else {
        print(&mut out, &rows)?;
    }
    let all_stand = rows.iter().filter(|row| row.origin.is_some()).all(|row| row.state == "up");
    Ok(if all_stand { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let width = rows.iter().map(|row| row.forward.to_string().len()).max().unwrap_or(0).max(7);
    writeln!(
        out,
        "{:width$}  {:<13}  {:<8}  {:<8}  {:<20}  GAPS",
        "FORWARD", "WANTED BY", "ON HOST", "INSIDE", "SINCE"
    )?;
    for row in rows {
        let inside = match row.has_listener {
            Some(true) => "listens",
            Some(false) => "nobody",
            None => "-",
        };
        let origin = row.origin.map_or("nobody", crate::checks::forwards::declared::Origin::as_str);
        let gaps = match (row.interruptions, row.last_gap_ms, row.longest_gap_ms) {
            (0, ..) | (_, None, _) | (_, _, None) => "-".to_owned(),
            (count, Some(last), Some(longest)) => {
                format!("{count}, last {:.3} s, longest {:.3} s", last as f64 / 1e3, longest as f64 / 1e3)
            }
        };
        let since = one_line(row.since.as_deref().unwrap_or("-"));
        let forward = row.forward.to_string();
        writeln!(out, "{forward:width$}  {origin:<13}  {:<8}  {inside:<8}  {since:<20}  {gaps}", one_line(&row.state))?;
        if let Some(why) = &row.why {
            writeln!(out, "{:width$}  {}", "", one_line(why))?;
        }
    }
    Ok(())
}

/// podsecd is told first: it knows then that what will listen there is wanted.
fn add(forward: Forward, root: &Root) -> Result<ExitCode> {
    let known = declare(root, control::Request::Declare(forward));
    let withdraw = || {
        if let Ok(true) = known {
            let _ = declare(root, control::Request::Withdraw(forward));
        }
    };
    let answer = match ask(root, &Request::Add(forward)) {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => {
            withdraw();
            bail!("podsecd-u7s refuses: {why}");
        }
        // Who took it and has not answered yet may still do it.
        Err(error) if is_late(&error) => {
            return Err(error.context(format!("{forward} may be added still: see forwards list")));
        }
        Err(error) => {
            withdraw();
            return Err(error);
        }
    };
    let Answer::Added(row) = answer else { bail!(ALIEN) };
    let mut out = io::stdout().lock();
    let code = match (row.state.as_str(), &row.why) {
        ("up", _) => {
            writeln!(out, "{forward} stands")?;
            ExitCode::SUCCESS
        }
        (state, why) => {
            let state = one_line(state);
            let why = why.as_deref().map_or_else(String::new, |why| format!(": {}", one_line(why)));
            writeln!(out, "{forward} is kept, and does not stand yet ({state}{why})")?;
            ExitCode::FAILURE
        }
    };
    warn(&known, "reports it as forwards/undeclared", "add");
    Ok(code)
}

fn remove(forward: Forward, root: &Root) -> Result<ExitCode> {
    let is_gone = match ask(root, &Request::Remove(forward))? {
        Ok(Answer::Removed(is_gone)) => is_gone,
        Ok(_) => bail!(ALIEN),
        Err(why) => bail!("podsecd-u7s refuses: {why}"),
    };
    let known = declare(root, control::Request::Withdraw(forward));
    let mut out = io::stdout().lock();
    if is_gone {
        writeln!(out, "{forward} is not there any more")?;
    } else {
        writeln!(
            out,
            "{forward} is forgotten, and rootlesskit has it still; it is removed as soon as rootlesskit answers"
        )?;
    }
    warn(&known, "takes what listens there for declared", "remove");
    Ok(if is_gone { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says that podsecd does not know of it.
fn warn(known: &Result<bool>, what: &str, verb: &str) {
    if let Err(error) = known {
        let error = one_line(&format!("{error:#}")).into_owned();
        eprintln!(
            "podsecctl: podsecd does not know of it and {what}; say it again (podsecctl forwards {verb}) when it runs: {error}"
        );
    }
}

/// Tells podsecd; whether that is news to it.
fn declare(root: &Root, request: control::Request) -> Result<bool> {
    match super::digest::ask(root, &request)? {
        control::Answer::Declared(is_news) => Ok(is_news),
        other => bail!("podsecd answers {other:?}"),
    }
}

fn is_late(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
}

/// Asks podsecd-u7s; the inner error is its refusal.
fn ask(root: &Root, request: &Request) -> Result<Result<Answer, String>> {
    let socket = root.path(SOCKET);
    control::ask(&socket, request).with_context(|| {
        let who = "is it running (systemctl enable --now podsecd-u7s), and are you root or in the group podsecd?";
        format!("cannot ask podsecd-u7s through {}; {who}", socket.display())
    })
}
