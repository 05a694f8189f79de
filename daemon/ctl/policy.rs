//! `podsecctl policy`: who may run what.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use podsecd::checks::policy::choose::{Place, Verdict, choose, judge};
use podsecd::checks::policy::observe::{Why, account, policy};
use podsecd::checks::policy::reference::Reference;
use podsecd::config::Root;
use podsecd::report::text::one_line;
use serde_json::json;

/// Where accounts are.
const PASSWD: &str = "/etc/passwd";

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Whether an account may run an image, and why: the policy that holds, its scope, what it requires
    Explain(Explain),
}

impl Policy {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Policy::Explain(explain) => explain.run(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Explain {
    /// Name of the image in its registry, as podman takes it: busybox, registry.local/k8s/pause:3.9
    image: String,
    /// Account that would run it
    #[arg(long, default_value = "root")]
    user: String,
    /// Print one JSON object: image, user, policy, why, scope, requirements, verdict
    #[arg(long)]
    json: bool,
    /// Take every path below DIR
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Explain {
    fn run(self) -> Result<ExitCode> {
        let root = Root::new(self.root);
        let text = self.image.strip_prefix("docker://").unwrap_or(&self.image);
        let image = Reference::parse(text).and_then(Reference::image);
        let image = image.with_context(|| format!("`{text}` is no name of an image"))?;
        let passwd = root.path(PASSWD);
        let found = account(&passwd, &self.user).with_context(|| format!("cannot read {}", passwd.display()))?;
        let account = found.with_context(|| format!("there is no account `{}` in {}", self.user, passwd.display()))?;
        let (document, file, why) = policy(&account, |path: &Path| root.path(path))?;
        let (place, requirements) = choose(&document, &image);
        let verdict = judge(requirements);
        let requirements: Vec<_> = requirements.iter().map(ToString::to_string).collect();
        let mut out = io::stdout().lock();
        if self.json {
            let scope = match &place {
                Place::Scope(scope) => json!({ "transport": "docker", "scope": scope }),
                Place::Transport => json!({ "transport": "docker", "scope": "" }),
                Place::Default => json!("default"),
            };
            let verdict = match verdict {
                Verdict::Anything => "anything",
                Verdict::Signed => "signed",
                Verdict::Never(_) => "never",
            };
            let (image, file) = (image.to_string(), file.display().to_string());
            let answer = json!({
                "image": image, "user": self.user, "policy": file, "why": why, "scope": scope,
                "requirements": requirements, "verdict": verdict,
            });
            writeln!(out, "{answer}")?;
            return Ok(ExitCode::SUCCESS);
        }
        let user = one_line(&self.user);
        let verdict = match verdict {
            Verdict::Anything => "may run it, whoever made it: no signature is asked for".to_owned(),
            Verdict::Signed => "may run it if it is signed as required".to_owned(),
            Verdict::Never(why) => format!("may not run it: {why}"),
        };
        writeln!(out, "{user} {verdict}")?;
        let why = match why {
            Why::Own => "the account's own, in place of the system's",
            Why::System => "the system's; the account has none of its own",
            Why::Crio => "signature_policy of the account's crio.conf",
        };
        let place = match &place {
            Place::Scope(scope) => format!("{} of transport docker", one_line(scope)),
            Place::Transport => "\"\" of transport docker, its default".to_owned(),
            Place::Default => "default: no scope of transport docker is of this image".to_owned(),
        };
        writeln!(out, "image     {image}")?;
        writeln!(out, "policy    {}: {why}", one_line(&file.to_string_lossy()))?;
        writeln!(out, "scope     {place}")?;
        for requirement in requirements {
            writeln!(out, "requires  {}", one_line(&requirement))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
