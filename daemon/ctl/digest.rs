//! `podsecctl digest`: the mail that sums up a period.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use crate::config::{self, Root};
use crate::control::{self, Answer, Request, Sent};
use crate::report::checkpoint::{self, Checkpoint};
use crate::report::digest::mail::message;
use crate::report::digest::period::host;
use crate::report::digest::{Occasion, SPOOL, spool, summarize, text};
use crate::report::text::one_line;
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Digest {
    /// Close the period and send its digest now; those that the mail server refused are tried again, too
    Send(Send),
    /// The digest that would be made now; nothing changes by looking
    Preview(Preview),
}

impl Digest {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Digest::Preview(preview) => preview.run(),
            Digest::Send(send) => send.run(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Send {
    /// Print one JSON object: number, why it could not be made, and how many refused ones are tried again (retried)
    #[arg(long)]
    json: bool,
    /// Of the podsecd that runs with --root DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Send {
    fn run(self) -> Result<ExitCode> {
        let sent = send(&Root::new(self.root))?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&sent)?)?;
        } else {
            print(&mut out, &sent)?;
        }
        Ok(if sent.why.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print(out: &mut impl Write, sent: &Sent) -> io::Result<()> {
    const WHERE: &str = "podsecctl status, journalctl -u podsecd-mail";
    if let Some(number) = sent.number {
        writeln!(out, "digest {number} is on its way: {WHERE}")?;
    }
    match sent.retried {
        0 => {}
        1 => writeln!(out, "1 digest that was refused is tried again: {WHERE}")?,
        retried => writeln!(out, "{retried} digests that were refused are tried again: {WHERE}")?,
    }
    match &sent.why {
        Some(why) => writeln!(out, "{}; it is tried again: podsecctl status", one_line(why)),
        None if sent.number.is_none() && sent.retried == 0 => {
            writeln!(out, "nothing was found since the last digest: there is no mail to send")
        }
        None => Ok(()),
    }
}

/// Has podsecd close the period.
pub(crate) fn send(root: &Root) -> Result<Sent> {
    match ask(root, &Request::SendDigest)? {
        Answer::Digest(sent) => Ok(sent),
        other => bail!("podsecd answers {other:?}"),
    }
}

/// Asks podsecd.
pub(crate) fn ask(root: &Root, request: &Request) -> Result<Answer> {
    let socket = root.path(control::SOCKET);
    let answer = control::ask(&socket, request).with_context(|| {
        let who = "is podsecd running, and are you root or in the group podsecd?";
        format!("cannot ask podsecd through {}; {who}", socket.display())
    })?;
    answer.map_err(|why| anyhow!("podsecd refuses: {why}"))
}

#[derive(Args)]
pub(crate) struct Preview {
    /// The whole message, as it would be sent
    #[arg(long)]
    eml: bool,
    /// Of the podsecd that runs with --root DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Preview {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let root = Root::new(self.root);
        let config = config::load(None, &root)?;
        let path = root.path(checkpoint::PATH);
        let checkpoint = Checkpoint::load(&path)?
            .with_context(|| format!("there is no {}: podsecd has not run here yet", path.display()))?;
        let number = checkpoint.digests.spool.number;
        let spool = spool::path(&root.path(SPOOL), number);
        let (summary, lines) = summarize(&spool).with_context(|| format!("cannot read {}", spool.display()))?;
        let host = host();
        let occasion = Occasion {
            number,
            host: &host,
            now: SystemTime::now(),
            since: checkpoint.digests.last.unwrap_or_else(SystemTime::now),
            state: &checkpoint.state,
            config: &config,
            dropped: checkpoint.digests.untold(),
            left_out: checkpoint.digests.spool.left_out,
        };
        let mut out = io::stdout().lock();
        if self.eml {
            out.write_all(&message(&occasion, &summary, lines)?)?;
        } else if summary.is_empty() {
            writeln!(out, "nothing was found since the last digest: there will be no mail")?;
        } else {
            let subject = text::subject(&occasion, &summary);
            write!(out, "Subject: {subject}\n\n{}", text::body(&occasion, &summary, lines.unattached))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
