//! `podsecctl probe`: whether something answers, asked now and from here; no daemon is needed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::checks::controlplane::health::{Prober, is_local};
use crate::checks::controlplane::settings::{Endpoint, Health, Settings};
use crate::config::{self, Root};
use crate::report::text::{one_line, shown_json};
use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Probe {
    /// Whether clients of this node reach an apiserver, for keepalived's vrrp_script: exit code 0 if so, 1 if not. Asks the
    /// load balancer of the configuration, else this node's apiserver; and the virtual address, if this node holds it
    Apiserver(Apiserver),
}

impl Probe {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Probe::Apiserver(apiserver) => apiserver.run(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Apiserver {
    /// Configuration file, instead of /etc/podsecd/podsecd.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object: well, and for each endpoint that was asked whether it is well and what came back
    #[arg(long)]
    json: bool,
}

impl Apiserver {
    fn run(self) -> Result<ExitCode> {
        let settings = config::load(self.config.as_deref(), &Root::default())?.controlplane;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot begin")?;
        let asked = runtime.block_on(ask(&settings));
        // A name service that hangs must not keep us.
        runtime.shutdown_background();
        let asked = asked?;
        let is_well = asked.iter().all(|(_, answer)| answer.is_ok());
        let text = |answer: &Result<String, String>| answer.as_ref().unwrap_or_else(|why| why).clone();
        let mut out = io::stdout().lock();
        if self.json {
            let asked = asked.iter().map(|(endpoint, answer)| {
                json!({ "endpoint": endpoint.to_string(), "well": answer.is_ok(), "answer": text(answer) })
            });
            let answer = json!({ "well": is_well, "asked": asked.collect::<Vec<_>>() });
            writeln!(out, "{}", shown_json(&answer.to_string()))?;
        } else {
            let answers: Vec<_> = asked.iter().map(|(_, answer)| text(answer)).collect();
            let word = if is_well { "OK" } else { "FAILED" };
            writeln!(out, "apiserver {word}: {}", one_line(&answers.join("; ")))?;
        }
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Asks who is to be asked, at the same time.
async fn ask(settings: &Settings) -> Result<Vec<(Endpoint, Result<String, String>)>> {
    let prober = Prober::new().map_err(|why| anyhow!(why))?;
    // keepalived asks every few seconds: each request that is refused would be a line in the audit log.
    let how = if settings.health == Health::Request { Health::Request } else { Health::Handshake };
    let own = settings.load_balancer.0.as_ref().unwrap_or(&settings.apiserver).clone();
    let holds = |address: &std::net::IpAddr| is_local(Path::new("/proc"), *address);
    let held = settings.virtual_address.0.filter(holds).and_then(|_| settings.at_virtual_address());
    let at_held = async {
        match &held {
            Some(endpoint) => Some(prober.ask(endpoint, how).await.answer),
            None => None,
        }
    };
    let (told, at_held) = tokio::join!(prober.ask(&own, how), at_held);
    Ok([(own, told.answer)].into_iter().chain(held.clone().zip(at_held)).collect())
}
