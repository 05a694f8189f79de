//! What an account's home says, and what holds for it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::policy::{Trusted, scope_name};
use super::{Conditions, Gathered, NO_PULL, NO_SIGNATURE, NO_TOOL, list, policy};
use crate::checks::policy::accounts::Account;
use crate::checks::policy::choose::{self, DOCKER, Place, Verdict, choose_scope, unsigned_scopes};
use crate::checks::policy::document::Document;
use crate::checks::policy::ids::*;
use crate::checks::policy::registries::{Registry, Section};
use crate::checks::policy::seen::{Home, Named, OWN, Policy, Read, System};
use crate::checks::policy::settings::Settings;

/// Whether an account may run containers and not make images, so that its configuration is not its own business.
pub(super) fn is_podman_user(account: &Account, settings: &Settings) -> bool {
    account.is_in(&settings.podman_group)
        && !account.is_in(&settings.developer_group)
        && !account.is_root()
        && account.name != settings.crio_user
}

/// All conditions that a home and its account bring.
pub(super) fn judge(home: &Home, system: &System, settings: &Settings, now: SystemTime) -> Conditions {
    let mut found = Gathered::default();
    judge_files(&mut found, home, system, settings, now);
    if home.is_judged(system) {
        judge_account(&mut found, home, system, settings);
    }
    if is_podman_user(&home.account, settings) {
        judge_podman_user(&mut found, home, settings);
    }
    let name = &home.account.name;
    for store in &home.images.foreign {
        let message = format!("{name} runs images from {}, which belongs to somebody else", store.display());
        found.add(FOREIGN_STORE, &format_args!("{name}: {}", store.display()), message);
    }
    found.0
}

/// The files that are the account's own.
fn judge_files(found: &mut Gathered, home: &Home, system: &System, settings: &Settings, now: SystemTime) {
    let mut judge_policy = |read: &Read<Arc<Policy>>, owner| match read {
        Ok(policy) => policy::judge(found, policy, &Trusted::new(system, settings, owner), now),
        Err(broken) => found.add_broken([broken], NO_PULL),
    };
    home.policy.iter().for_each(|read| judge_policy(read, Some(&home.account)));
    for told in home.crio.iter().flatten() {
        if let Named::Other(read) = &told.policy {
            judge_policy(read, None);
        }
        told.namespaces.iter().for_each(|read| judge_policy(read, None));
    }
    found.add_broken(home.crio.iter().filter_map(|read| read.as_ref().err()), "CRI-O does not start");
    found.add_broken(home.lookaside.iter().filter_map(|read| read.as_ref().err()), NO_SIGNATURE);
    found.add_broken(home.storage.iter().filter_map(|read| read.as_ref().err()), NO_TOOL);
    found.add_broken(home.registries.iter().chain([&home.drop_ins]).flat_map(|files| &files.broken), NO_TOOL);
}

/// podsec's conditions 101 to 106, and how registries are reached.
fn judge_account(found: &mut Gathered, home: &Home, system: &System, settings: &Settings) {
    let account = &home.account;
    let name = &account.name;
    if home.images.stores.iter().any(|store| store.has_images)
        && !account.is_root()
        && !account.is_in(&settings.podman_group)
    {
        let message = format!("{name} has images, but is not in group {}", settings.podman_group);
        found.add(USER_OUTSIDE_PODMAN, name, message);
    }
    // Where it cannot be read, that is a condition of its own.
    if let Ok(lookaside) = system.lookaside(home).map(Result::as_ref).transpose() {
        let wanted = &settings.signature_store;
        let url = lookaside.and_then(|lookaside| lookaside.default.as_ref()).and_then(Section::url);
        if url.map(|url| url.trim_end_matches('/')) != Some(wanted.trim_end_matches('/')) {
            let where_else = url.map_or_else(|| "nowhere in particular".to_owned(), |url| format!("in {url}"));
            found.add(FOREIGN_SIGSTORE, name, format!("{name} looks for signatures {where_else}, not in {wanted}"));
        }
    }
    let Some(Ok(policy)) = home.effective(system).1 else { return };
    judge_policy(found, account, name, policy, settings);
    let (document, file) = (&policy.document, policy.file.display());
    let registry = &settings.signed_registry;
    let (place, requirements) = choose_scope(document, registry);
    if place == Place::Default || choose::judge(requirements) != Verdict::Signed {
        let message = format!("{name}: {file} asks for no signature of {registry}'s images");
        found.add(REGISTRY_LOCAL_UNSIGNED, name, message);
    }
    // What single namespaces are let, the account is.
    for policy in home.crio.iter().flatten().flat_map(|told| &told.namespaces).flatten() {
        judge_policy(found, account, &format_args!("{name}: {}", policy.file.display()), policy, settings);
    }
    judge_registries(found, home, system, (document, registry));
}

/// What a policy lets in that podsec's does not.
fn judge_policy(
    found: &mut Gathered,
    account: &Account,
    subject: &dyn fmt::Display,
    policy: &Policy,
    settings: &Settings,
) {
    let (name, document, file) = (&account.name, &policy.document, policy.file.display());
    let default = choose::judge(&document.default);
    if !matches!(default, Verdict::Never(_)) && !account.is_in(&settings.developer_group) {
        let message = format!("{name} may run images that no scope covers: the default of {file} is not reject");
        found.add(DEFAULT_NOT_REJECT, subject, message);
    }
    if let Some(list) = list(unsigned_scopes(document).map(scope_name)) {
        let message = format!("{name} may run unsigned images of {list} by {file}");
        found.add(UNSIGNED_REGISTRY, subject, message);
    }
    if let Some(list) = list(document.transports.keys().filter(|transport| *transport != DOCKER)) {
        let message = format!("{name} may take images from elsewhere than registries by {file}: {list}");
        found.add(FOREIGN_TRANSPORT, subject, message);
    }
}

/// Whether registries are reached in a way that no signature makes good. podsec reaches the registry whose images must be
/// `signed` insecurely; that they are not is a condition of its own.
fn judge_registries(found: &mut Gathered, home: &Home, system: &System, (document, signed): (&Document, &str)) {
    let name = &home.account.name;
    // What comes of the system's files alone is said once, of root.
    let has_own = home.policy.is_some() || home.registries.is_some() || home.crio.is_some() || home.account.is_root();
    let main = home.registries.as_ref().unwrap_or(&system.registries);
    let files = [main, &system.drop_ins].into_iter().filter(|_| has_own).chain([&home.drop_ins]);
    let all: Vec<_> = files.flat_map(|files| &files.list).map(|(_, registry)| registry).collect();
    let is_insecure = |registry: &Registry| registry.insecure || registry.mirrors.iter().any(|(_, insecure)| *insecure);
    let insecure = all.iter().filter(|registry| is_insecure(registry)).map(|registry| &registry.prefix);
    let told = home.crio.iter().flatten().flat_map(|told| &told.crio.insecure_registries);
    let unsigned_scopes: Vec<_> = unsigned_scopes(document).collect();
    let unsigned = |registry: &&String| {
        let is_below =
            |scope: &&str| scope.strip_prefix(registry.as_str()).is_some_and(|rest| rest.starts_with(['/', ':', '@']));
        let takes_anything = || choose::judge(choose_scope(document, registry).1) == Verdict::Anything;
        *registry != signed && takes_anything() || unsigned_scopes.iter().any(is_below)
    };
    if let Some(list) = list(insecure.chain(told).filter(unsigned)) {
        let message = format!("{name} takes unsigned images of {list} over connections that can be tampered with");
        found.add(INSECURE_REGISTRY, name, message);
    }
    let outside = |mirror: &&String| choose_scope(document, mirror).0 == Place::Default;
    let mirrors = all.iter().flat_map(|registry| &registry.mirrors).map(|(mirror, _)| mirror);
    if let Some(list) = list(mirrors.filter(outside)) {
        let message = format!("{name} takes images from mirrors that no scope of the policy covers: {list}");
        found.add(MIRROR_OUTSIDE, name, message);
    }
}

/// podsec's conditions of those who may run containers only.
fn judge_podman_user(found: &mut Gathered, home: &Home, settings: &Settings) {
    let Account { name, home: directory, .. } = &home.account;
    if home.account.is_in(&settings.admin_group) {
        let message = format!("{name} is in group {} and in group {}", settings.podman_group, settings.admin_group);
        found.add(PODMAN_IN_WHEEL, name, message);
    }
    if home.storage.is_none() {
        found.add(CONFIG_MISSING, name, format!("{name} has no ~/{OWN}/storage.conf"));
    } else if let Some(changeable) = &home.changeable {
        let message = format!("{name} can change {}", directory.join(changeable).display());
        found.add(CONFIG_WRITABLE, name, message);
    } else if home.replaceable {
        let message = format!("{name} can put another directory in the place of {}", directory.join(OWN).display());
        found.add(CONFIG_REPLACEABLE, name, message);
    }
}
