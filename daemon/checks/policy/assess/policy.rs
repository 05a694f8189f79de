//! What is wrong with a policy, whoever it holds for.

use std::time::SystemTime;

use super::account::is_podman_user;
use super::{Gathered, list};
use crate::checks::policy::accounts::{Account, Accounts};
use crate::checks::policy::choose::{self, DOCKER, Verdict, surrounding, unsigned_scopes};
use crate::checks::policy::document::{Document, Identity, Requirement, Requirements};
use crate::checks::policy::ids::{
    ACCEPTS_ANYTHING, FILE_UNREAD, IDENTITY_LOOSENED, KEY_EXPIRED, KEY_MISSING, KEY_REPLACEABLE, KEY_WRITABLE,
    WEAKER_SCOPE,
};
use crate::checks::policy::keys::{KeyFile, Writers};
use crate::checks::policy::rights::Writer;
use crate::checks::policy::seen::{Policy, System};
use crate::checks::policy::settings::Settings;

/// The scopes of transport docker.
fn scopes(document: &Document) -> impl Iterator<Item = (&str, &Requirements)> {
    let scopes = document.transports.get(DOCKER).into_iter().flatten();
    scopes.map(|(scope, requirements)| (scope.as_str(), requirements))
}

/// A scope in a sentence.
pub(in super::super) fn scope_name(scope: &str) -> &str {
    if scope.is_empty() { "any registry" } else { scope }
}

/// Who may change the keys of a policy.
pub(super) struct Trusted<'a> {
    accounts: &'a Accounts,
    settings: &'a Settings,
    /// Whose own the policy is.
    owner: Option<&'a Account>,
}

impl<'a> Trusted<'a> {
    pub(super) fn new(system: &'a System, settings: &'a Settings, owner: Option<&'a Account>) -> Trusted<'a> {
        Trusted { accounts: &system.accounts, settings, owner }
    }

    /// Root, those who make images, and whoever keeps a policy of his own where that is his own business.
    fn is_one(&self, writer: &Writer) -> bool {
        let makes_images = |account: &Account| account.is_in(&self.settings.developer_group);
        match *writer {
            Writer::User(0) => true,
            Writer::User(uid) => {
                let is_own = |owner: &Account| owner.uid == uid && !is_podman_user(owner, self.settings);
                self.owner.is_some_and(is_own) || self.accounts.of_uid(uid).is_some_and(makes_images)
            }
            Writer::Group(0) => true,
            Writer::Group(gid) => self.accounts.gid(&self.settings.developer_group) == Some(gid),
            Writer::Everybody => false,
        }
    }

    /// The group of all who may run containers.
    fn is_podman_group(&self, writer: &Writer) -> bool {
        matches!(*writer, Writer::Group(gid) if self.accounts.gid(&self.settings.podman_group) == Some(gid))
    }

    fn name(&self, writer: &Writer) -> String {
        match *writer {
            Writer::User(uid) => {
                self.accounts.of_uid(uid).map_or_else(|| format!("user {uid}"), |account| account.name.clone())
            }
            Writer::Group(gid) => match self.accounts.group_name(gid) {
                Some(name) => format!("group {name}"),
                None => format!("group {gid}"),
            },
            Writer::Everybody => "everybody".to_owned(),
        }
    }
}

pub(super) fn judge(found: &mut Gathered, policy: &Policy, trusted: &Trusted<'_>, now: SystemTime) {
    let Policy { file, document, keys } = policy;
    let file = file.display();
    let takes_anything = |requirements: &Requirements| choose::judge(requirements) == Verdict::Anything;
    let unsigned: Vec<&str> = unsigned_scopes(document).collect();
    let wide = unsigned.iter().filter(|scope| scope.is_empty() || scope.starts_with("*."));
    if let Some(list) = list(wide.map(|scope| scope_name(scope))) {
        found.add(ACCEPTS_ANYTHING, &file, format!("{file} lets in unsigned images of {list}"));
    }
    let is_weaker = |scope: &&&str| surrounding(document, scope).is_some_and(|around| !takes_anything(around));
    if let Some(list) = list(unsigned.iter().filter(is_weaker)) {
        let message = format!("{file} lets in unsigned images of {list}, though not of what is around it");
        found.add(WEAKER_SCOPE, &file, message);
    }
    let named = scopes(document).map(|(scope, requirements)| (scope_name(scope), requirements));
    let loosened =
        named.chain([("any other image", &document.default)]).filter(|(_, list)| list.iter().any(is_loosened));
    if let Some(list) = list(loosened.map(|(scope, _)| scope)) {
        let message = format!("{file} takes the signature of another name or tag for {list}");
        found.add(IDENTITY_LOOSENED, &file, message);
    }
    for (path, key) in keys {
        let subject = format!("{file}: {path}");
        match key {
            KeyFile::Unusable(reason) => {
                let message = format!("the key {path}, which {file} names, cannot be used: {reason}");
                found.add(KEY_MISSING, &subject, message);
            }
            KeyFile::Unread(reason) => {
                let message = format!("podsecd does not read the key {path}, which {file} names: {reason}");
                found.add(FILE_UNREAD, &subject, message);
            }
            KeyFile::Found { writers, replacers, expires, .. } => {
                if expires.is_some_and(|expires| expires <= now) {
                    found.add(KEY_EXPIRED, &subject, format!("the key {path}, which {file} names, has expired"));
                }
                judge_key(found, path, &subject, (writers, replacers), trusted);
            }
        }
    }
}

/// Whether a requirement takes the signature of something else than the image: of its repository for a sigstore signature
/// not, which names no tag.
fn is_loosened(requirement: &Requirement) -> bool {
    match requirement {
        Requirement::SignedBy(signed) => {
            !matches!(signed.identity, Identity::MatchExact {} | Identity::MatchRepoDigestOrExact {})
        }
        Requirement::SigstoreSigned(signed) => {
            matches!(signed.identity, Identity::RemapIdentity { .. } | Identity::ExactReference { .. })
        }
        _ => false,
    }
}

/// Who may change a key, or put another in its place, that should not. podsec's own directory of keys is open to group
/// podman on nodes that do not sign.
fn judge_key(
    found: &mut Gathered,
    path: &str,
    subject: &str,
    (writers, replacers): (&Writers, &Writers),
    trusted: &Trusted<'_>,
) {
    let replacing: Vec<_> = replacers.iter().filter(|writer| !trusted.is_one(writer)).collect();
    let changing = writers.iter().filter(|writer| !trusted.is_one(writer));
    let changing = changing.chain(replacing.iter().copied().filter(|writer| !trusted.is_podman_group(writer)));
    if let Some(list) = list(changing.map(|writer| trusted.name(writer))) {
        found.add(KEY_WRITABLE, &subject, format!("the key {path} can be changed by {list}"));
    } else if !replacing.is_empty() {
        let group = &trusted.settings.podman_group;
        found.add(KEY_REPLACEABLE, &subject, format!("group {group} can put another key in the place of {path}"));
    }
}
