//! `podsecctl digest`: the mail that sums up a period.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use podsecd::config::{self, Root};
use podsecd::report::checkpoint::{self, Checkpoint};
use podsecd::report::digest::mail::message;
use podsecd::report::digest::period::host;
use podsecd::report::digest::{Occasion, SPOOL, spool, summarize, text};

#[derive(Subcommand)]
pub(crate) enum Digest {
    /// The digest that would be made now; nothing changes by looking
    Preview(Preview),
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
            open: &checkpoint.state.open,
            weights: &config.weights,
            dropped: checkpoint.digests.dropped,
            left_out: checkpoint.digests.spool.left_out,
        };
        let mut out = io::stdout().lock();
        if self.eml {
            out.write_all(&message(&occasion, config.digest.to.get(), &summary, lines)?)?;
        } else if summary.is_empty() {
            writeln!(out, "nothing was found since the last digest: there will be no mail")?;
        } else {
            let subject = text::subject(&host, &summary);
            write!(out, "Subject: {subject}\n\n{}", text::body(&occasion, &summary, lines.unattached))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
