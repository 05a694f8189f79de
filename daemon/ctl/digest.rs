//! `podsecctl digest`: the mail that sums up a period.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use podsecd::config::{self, Root};
use podsecd::control::{self, Answer, Request};
use podsecd::report::checkpoint::{self, Checkpoint};
use podsecd::report::digest::mail::message;
use podsecd::report::digest::period::host;
use podsecd::report::digest::{Occasion, SPOOL, spool, summarize, text};

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
    /// Print one JSON object: number
    #[arg(long)]
    json: bool,
    /// Of the podsecd that runs with --root DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Send {
    fn run(self) -> Result<ExitCode> {
        let number = send(&Root::new(self.root))?;
        let mut out = io::stdout().lock();
        match number {
            _ if self.json => {
                writeln!(out, "{}", serde_json::json!({ "number": number }))?;
            }
            Some(number) => {
                writeln!(out, "digest {number} is on its way: podsecctl status, journalctl -u podsecd-mail")?;
            }
            None => {
                writeln!(out, "nothing was found since the last digest: there is no mail to send")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Has podsecd close the period; the number of the digest, if there is something to say.
pub(crate) fn send(root: &Root) -> Result<Option<u64>> {
    match ask(root, Request::SendDigest)? {
        Answer::Digest(number) => Ok(number),
        other => bail!("podsecd answers {other:?}"),
    }
}

/// Asks podsecd.
pub(crate) fn ask(root: &Root, request: Request) -> Result<Answer> {
    let socket = root.path(control::SOCKET);
    let answer = control::ask(&socket, request).with_context(|| {
        let who = "is podsecd running, and are you root or in the group podsecd?";
        format!("cannot ask podsecd through {}; {who}", socket.display())
    })?;
    match answer {
        Answer::Refused(why) => bail!("podsecd refuses: {why}"),
        answer => Ok(answer),
    }
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
