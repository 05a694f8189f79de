//! `podsecctl explain`: what a finding means and what to do.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{self, Root};
use crate::finding::Id;
use crate::report::journal::message_id;
use crate::score::Weight;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub(crate) struct Explain {
    /// Id of a finding, such as kubeapi/forbidden
    id: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Take every path below DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Explain {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let config = config::load(None, &Root::new(self.root))?;
        let mut out = io::stdout().lock();
        let mut found = false;
        for (id, weight) in config.weights.iter().filter(|(id, _)| self.id.as_ref().is_none_or(|name| id.0 == name)) {
            found = true;
            let level = weight.level.unwrap_or_else(|| config.levels.of(weight.weight));
            if self.json {
                let Weight { weight, meaning, remedy, .. } = weight;
                let message_id = message_id(id);
                let object = json!({"id": id.0, "weight": weight, "level": level.as_str(), "meaning": meaning,
                    "remedy": remedy, "message_id": message_id});
                writeln!(out, "{object}")?;
            } else if self.id.is_some() {
                print(&mut out, id, weight, level.as_str())?;
            } else {
                writeln!(out, "{:<32} {:>4} {:<9} {}", id.0, weight.weight, level.as_str(), weight.meaning)?;
            }
        }
        if let (false, Some(id)) = (found, self.id) {
            bail!("there is no finding `{id}`; `podsecctl explain` lists all");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(out: &mut impl Write, id: Id, weight: &Weight, level: &str) -> Result<()> {
    writeln!(out, "{id}: {}", weight.meaning)?;
    writeln!(out, "  weight {}, level {level}", weight.weight)?;
    writeln!(out, "  what to do: {}", weight.remedy)?;
    writeln!(out, "  in the journal: journalctl PODSEC_FINDING={id}")?;
    Ok(())
}
