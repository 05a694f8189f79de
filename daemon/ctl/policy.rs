//! `podsecctl policy`: who may run what.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::checks::policy::choose::{Place, Verdict, choose, judge};
use crate::checks::policy::observe::Observer;
use crate::checks::policy::reference::Reference;
use crate::checks::policy::seen::{Former, Why};
use crate::config::{self, Root};
use crate::report::text::{one_line, shown_json};
use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;

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
    /// Name of the image with its registry: registry.local/k8s/pause:3.9. Without one it is taken as docker.io's, whatever
    /// registries.conf says of short names
    image: String,
    /// Account that would run it
    #[arg(long, default_value = "root")]
    user: String,
    /// Print one JSON object: image, user, policy, why, scope, requirements, verdict, reason
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
        let image = Reference::parse(text).map(Reference::image);
        let image = image.with_context(|| format!("`{text}` is no name of an image"))?;
        let config = config::load(None, &root)?;
        let cannot_look = || format!("cannot look at {}", root.path("/").display());
        let observer = Observer::new(root.directory(), config.policy).with_context(cannot_look)?;
        let system = observer.system();
        let owners = observer.owners(&system.accounts);
        let account = owners.iter().find(|account| account.name == self.user);
        if let (None, Some(why)) = (account, system.broken.first()) {
            bail!("{why}");
        }
        let account = account.with_context(|| format!("there is no account `{}` in /etc/passwd", self.user))?;
        let home = observer.home(account, &system, &Former::default());
        let home = home.with_context(|| format!("cannot look at {}", account.home.display()))?;
        if let Some(Err(why)) = &home.crio {
            bail!("{}", why.so("CRI-O does not start"));
        }
        let (why, policy) = home.effective(&system);
        let policy =
            policy.context("there is no policy, so every pull fails: /etc/containers/policy.json is not there")?;
        let policy = policy.as_ref().map_err(|why| anyhow!("{}", why.so("every pull fails")))?;
        let (document, file) = (&policy.document, &policy.file);
        let (place, requirements) = choose(document, &image);
        let verdict = judge(requirements);
        let requirements: Vec<_> = requirements.iter().map(ToString::to_string).collect();
        let mut out = io::stdout().lock();
        if self.json {
            let scope = match &place {
                Place::Scope(scope) => json!({ "transport": "docker", "scope": scope }),
                Place::Transport => json!({ "transport": "docker", "scope": "" }),
                Place::Default => json!("default"),
            };
            let (verdict, reason) = match verdict {
                Verdict::Anything => ("anything", None),
                Verdict::Signed => ("signed", None),
                Verdict::Never(reason) => ("never", Some(reason)),
            };
            let (image, file) = (image.to_string(), file.display().to_string());
            let answer = json!({
                "image": image, "user": self.user, "policy": file, "why": why, "scope": scope,
                "requirements": requirements, "verdict": verdict, "reason": reason,
            });
            writeln!(out, "{}", shown_json(&answer.to_string()))?;
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
            Why::Crio => "CRI-O's, which crio.conf of the account tells so",
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
        for namespace in home.crio.iter().flatten().flat_map(|told| &told.namespaces).flatten() {
            let file = namespace.file.to_string_lossy();
            writeln!(out, "but       {} holds in the namespace of its name", one_line(&file))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
