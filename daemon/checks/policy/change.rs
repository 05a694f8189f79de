//! What the change of a policy means: which images became allowed or denied, and for whom. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::accounts::Account;
use super::choose::{DOCKER, Verdict, choose_scope, judge};
use super::crio::Crio;
use super::document::{Document, Requirements};
use super::ids::CHANGED;
use super::keys::KeyFile;
use super::seen::{CRIO, Policy};
use crate::finding::{Fields, Finding, Kind};

/// Changes that were seen together.
#[derive(Default)]
pub(super) struct Changes {
    /// By the former and the present policy, with those for whom they held and hold.
    policies: Vec<(Arc<Policy>, Arc<Policy>, BTreeSet<String>)>,
    /// What else: file and sentence.
    others: Vec<(PathBuf, String)>,
}

/// So many of each kind are told.
const MAX_TOLD: usize = 12;

impl Changes {
    /// For an account another policy holds now, or the same.
    pub(super) fn note(&mut self, account: &str, former: &Arc<Policy>, present: &Arc<Policy>) {
        if Arc::ptr_eq(former, present) {
            return;
        }
        let same = self.policies.iter_mut().find(|(was, is, _)| **was == **former && **is == **present);
        match same {
            Some((_, _, accounts)) => drop(accounts.insert(account.to_owned())),
            None if former.document == present.document && other_keys(former, present).is_empty() => {}
            None => {
                let accounts = BTreeSet::from([account.to_owned()]);
                self.policies.push((Arc::clone(former), Arc::clone(present), accounts));
            }
        }
    }

    /// An account's CRI-O is told this now, and was told something else, or the same.
    pub(super) fn note_crio(&mut self, account: &Account, was: &Crio, is: &Crio) {
        let mut told = Vec::new();
        let text = |path: &Option<PathBuf>| path.as_ref().map_or("nothing".into(), |path| path.display().to_string());
        for (name, was, is) in [
            ("signature_policy", &was.signature_policy, &is.signature_policy),
            ("signature_policy_dir", &was.signature_policy_dir, &is.signature_policy_dir),
            ("root", &was.root, &is.root),
        ] {
            if was != is {
                told.push(format!("{name} is {}, was {}", text(is), text(was)));
            }
        }
        let (was, is) = (&was.insecure_registries, &is.insecure_registries);
        told.extend(
            is.difference(was).take(MAX_TOLD).map(|registry| format!("{registry} is an insecure registry now")),
        );
        told.extend(
            was.difference(is).take(MAX_TOLD).map(|registry| format!("{registry} is no insecure registry now")),
        );
        if !told.is_empty() {
            let file = account.home.join(CRIO);
            let message = format!("CRI-O of {} is told otherwise: {}", account.name, told.join("; "));
            self.others.push((file, message));
        }
    }

    pub(super) fn into_findings(self, now: SystemTime) -> Vec<Finding<'static>> {
        let policies = self.policies.into_iter().map(|(former, present, accounts)| {
            let accounts = super::assess::list(&accounts).unwrap_or_default();
            let file = present.file.clone();
            let place = if former.file == file {
                format!("{} was changed", file.display())
            } else {
                format!("{} holds now, in place of {}", file.display(), former.file.display())
            };
            let keys = other_keys(&former, &present);
            let keys = super::assess::list(keys).map_or_else(String::new, |keys| format!("; other keys are in {keys}"));
            (file, format!("{place}; for {accounts}: {}{keys}", describe(&former.document, &present.document)))
        });
        let all = policies.chain(self.others);
        let finding = |(file, message): (PathBuf, String)| Finding {
            time: now,
            id: CHANGED,
            kind: Kind::Event,
            subject: file.to_string_lossy().into_owned().into(),
            message: message.into(),
            fields: Fields::default(),
        };
        all.map(finding).collect()
    }
}

/// Files of keys that both policies name and that have other contents now. What cannot be used is a condition.
fn other_keys<'p>(former: &'p Policy, present: &'p Policy) -> Vec<&'p str> {
    let digest = |key: &KeyFile| match key {
        KeyFile::Found { digest, .. } => Some(*digest),
        KeyFile::Unusable(_) | KeyFile::Unread(_) => None,
    };
    let is_other = |(path, key): &&(String, KeyFile)| {
        let was = former.keys.iter().find(|(other, _)| other == path);
        was.and_then(|(_, was)| digest(was)).zip(digest(key)).is_some_and(|(was, is)| was != is)
    };
    present.keys.iter().filter(is_other).map(|(path, _)| path.as_str()).collect()
}

/// What became of images, in words.
pub(super) fn describe(former: &Document, present: &Document) -> String {
    let scopes =
        [former, present].into_iter().flat_map(|policy| policy.transports.get(DOCKER)).flat_map(BTreeMap::keys);
    let scopes: BTreeSet<&String> = scopes.collect();
    let of_scope = |policy, scope: &str| choose_scope(policy, scope).1;
    let mut told = Vec::new();
    for scope in scopes {
        told.extend(tell(super::assess::scope_name(scope), of_scope(former, scope), of_scope(present, scope)));
    }
    told.extend(tell("images that no scope covers", &former.default, &present.default));
    let transports = |policy: &Document| policy.transports.keys().cloned().collect::<BTreeSet<_>>();
    for transport in transports(former).union(&transports(present)).filter(|transport| *transport != DOCKER) {
        match (former.transports.get(transport), present.transports.get(transport)) {
            (None, Some(_)) => told.push(format!("transport {transport} has scopes now")),
            (Some(_), None) => told.push(format!("transport {transport} has no scopes any more")),
            (was, is) if was != is => told.push(format!("the scopes of transport {transport} are others")),
            _ => {}
        }
    }
    let more = told.len().saturating_sub(MAX_TOLD);
    told.truncate(MAX_TOLD);
    match (told.is_empty(), more) {
        (true, _) => "it means the same as before".to_owned(),
        (false, 0) => told.join("; "),
        (false, more) => format!("{}; and {more} more", told.join("; ")),
    }
}

fn tell(what: &str, former: &Requirements, present: &Requirements) -> Option<String> {
    let word = |verdict: &Verdict| match verdict {
        Verdict::Anything => "allowed unsigned",
        Verdict::Signed => "allowed if signed",
        Verdict::Never(_) => "denied",
    };
    let (was, is) = (judge(former), judge(present));
    let (was, is) = (word(&was), word(&is));
    if was != is {
        return Some(format!("{what}: {is}, was {was}"));
    }
    (former != present && is == word(&Verdict::Signed)).then(|| format!("{what}: other signatures are asked for"))
}
