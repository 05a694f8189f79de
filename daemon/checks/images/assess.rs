//! Judges what was seen of images: the conditions of their users, and what happened to them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::fields::{DIGEST, HOST_UID, IMAGE, USER};
use super::ids::{
    CHANGED, CREATED, DELETED, LIST_INVALID, MORE_CHANGES, OUTSIDE_POLICY, STORE_UNREAD, TAGGED, UNSIGNED,
    UNSUPPORTED_REGISTRY, UNTAGGED, UNVERIFIABLE,
};
use super::known::{Change, Known, What, diff};
use super::observe::{Images, Judged, Look, Several};
use crate::checks::policy::accounts::Account;
use crate::checks::policy::assess::{Conditions, Gathered, list};
use crate::checks::policy::settings::Settings;
use crate::checks::policy::tree::Broken;
use crate::finding::{Fields, Finding, Id, Kind};

/// What is remembered of the images.
#[derive(Clone, Debug)]
pub struct Assessor {
    settings: Settings,
    accounts: BTreeMap<String, Assessed>,
}

#[derive(Clone, Debug)]
struct Assessed {
    /// The images by store; `None` where they could not be read.
    lists: Lists,
    conditions: Conditions,
    quota: Quota,
}

impl Assessed {
    /// The conditions by a look at unfinished images: of these nothing new is said, and nothing is taken back.
    fn with(&self, look: &Look, settings: &Settings) -> Conditions {
        let mut conditions = judge(look, true, settings);
        let finished = judge(look, false, settings);
        conditions.retain(|key, _| finished.contains_key(key) || self.conditions.contains_key(key));
        conditions
    }
}

/// How many events of one user there were: whoever writes a store writes how much happens to it.
#[derive(Clone, Copy, Debug)]
struct Quota {
    /// Within [`QUOTA_TIME`] from then on.
    since: SystemTime,
    used: usize,
}

/// So many are told in that time.
const QUOTA: usize = 100;
const FIRST_UNTOLD: usize = QUOTA + 1;
const QUOTA_TIME: Duration = Duration::from_secs(60);

impl Quota {
    /// How it is at that time.
    fn at(self, now: SystemTime) -> Quota {
        let is_over = now.duration_since(self.since).is_ok_and(|time| time >= QUOTA_TIME);
        if is_over { Quota { since: now, used: 0 } } else { self }
    }
}

type Lists = BTreeMap<PathBuf, Option<Vec<Known>>>;

impl Assessor {
    /// Nothing was seen yet.
    pub fn new(settings: Settings) -> Assessor {
        Assessor { settings, accounts: BTreeMap::new() }
    }

    /// Takes in what was seen, and who is there no more; answers what happened since.
    pub fn assess(&mut self, looks: Vec<Look>, gone: &[String], now: SystemTime) -> Vec<Finding<'static>> {
        let mut events = Vec::new();
        for name in gone {
            self.accounts.remove(name);
        }
        for look in looks {
            let former = self.accounts.get(&look.account.name);
            let conditions = match former {
                Some(former) if !look.is_settled => former.with(&look, &self.settings),
                _ => judge(&look, true, &self.settings),
            };
            let Look { account, lists, is_settled, .. } = look;
            let known = |(path, images): (PathBuf, Result<Images, Broken>)| {
                let was = former.and_then(|former| former.lists.get(&path)?.as_deref()).unwrap_or_default();
                let images = images.ok().map(|images| if is_settled { images.known } else { hold_back(images, was) });
                (path, images)
            };
            let lists = lists.into_iter().map(known).collect();
            let mut quota = former.map_or(Quota { since: now, used: 0 }, |former| former.quota.at(now));
            for (path, changes) in former.map(|former| changed(&former.lists, &lists)).into_iter().flatten() {
                for change in changes {
                    quota.used += 1;
                    match quota.used {
                        ..=QUOTA => events.push(event(&account, &path, change, now)),
                        FIRST_UNTOLD => events.push(more(&account, now)),
                        _ => {}
                    }
                }
            }
            self.accounts.insert(account.name, Assessed { lists, conditions, quota });
        }
        events
    }

    /// All conditions that hold.
    pub fn conditions(&self) -> Conditions {
        let all = self.accounts.values().flat_map(|assessed| &assessed.conditions);
        all.map(|(key, message)| (key.clone(), message.clone())).collect()
    }
}

/// The images of a store, those that are unfinished as they were before: what happens to an image that is being pulled is
/// told when it has its name.
fn hold_back(images: Images, was: &[Known]) -> Vec<Known> {
    let Images { known, unfinished_ids, .. } = images;
    let before = |image: &Known| was.iter().find(|former| former.id() == image.id()).cloned();
    let held = |image: Known| if unfinished_ids.contains(image.id()) { before(&image) } else { Some(image) };
    known.into_iter().filter_map(held).collect()
}

/// What happened in each store, as far as it could be read before and now.
fn changed(former: &Lists, present: &Lists) -> Vec<(PathBuf, Vec<Change>)> {
    let paths: BTreeSet<_> = former.keys().chain(present.keys()).collect();
    let none = Some(Vec::new());
    let changes = paths.into_iter().filter_map(|path| {
        let of = |lists: &'_ Lists| lists.get(path).unwrap_or(&none).clone();
        let (was, is) = (of(former)?, of(present)?);
        (was != is).then(|| (path.clone(), diff(&was, &is)))
    });
    changes.collect()
}

fn event(account: &Account, store: &Path, change: Change, now: SystemTime) -> Finding<'static> {
    let Change { what, image } = change;
    let known_as = image.names().next().unwrap_or(image.id());
    let name = match &what {
        What::Tagged(tag) | What::Untagged(tag) => tag.clone(),
        What::Created | What::Deleted | What::Changed => known_as.to_owned(),
    };
    let (id, happened): (Id, String) = match &what {
        What::Created => (CREATED, "came".into()),
        What::Deleted => (DELETED, "went".into()),
        What::Changed => (CHANGED, "was changed".into()),
        What::Tagged(tag) => (TAGGED, format!("got the name {tag}")),
        What::Untagged(tag) => (UNTAGGED, format!("lost the name {tag}")),
    };
    let mut fields = Fields::default();
    let digest = image.digest().to_owned();
    let of = if digest.is_empty() { String::new() } else { format!(" ({digest})") };
    let message = format!("{}: image {known_as}{of} {happened} in {}", account.name, store.display());
    fields.text(&IMAGE, name.clone());
    fields.text(&DIGEST, digest);
    fields.text(&USER, account.name.clone());
    fields.number(&HOST_UID, account.uid.into());
    Finding { time: now, id, kind: Kind::Event, subject: name.into(), message: message.into(), fields }
}

/// What is said once of what is not told one by one.
fn more(account: &Account, now: SystemTime) -> Finding<'static> {
    let name = &account.name;
    let message =
        format!("more happens to {name}'s images than {QUOTA} events within {QUOTA_TIME:?}; the rest is not told");
    let mut fields = Fields::default();
    fields.text(&USER, name.clone());
    fields.number(&HOST_UID, account.uid.into());
    Finding {
        time: now,
        id: MORE_CHANGES,
        kind: Kind::Event,
        subject: name.clone().into(),
        message: message.into(),
        fields,
    }
}

/// podsec's three conditions, and what cannot be told; of unfinished images, too, if these count.
fn judge(look: &Look, unfinished: bool, settings: &Settings) -> Conditions {
    let mut found = Gathered::default();
    let name = &look.account.name;
    for list in look.lists.values() {
        if let Err(broken) = list {
            let id = if broken.is_unread { STORE_UNREAD } else { LIST_INVALID };
            found.add(
                id,
                &format_args!("{name}: {}", broken.file.display()),
                format!("{broken}; so {name}'s images are not known"),
            );
        }
    }
    if !look.is_judged || look.account.is_in(&settings.developer_group) {
        return found.conditions();
    }
    let scope = |scope: &String| if scope.is_empty() { "any registry".to_owned() } else { scope.clone() };
    if let Some(list) = list(look.unsigned_scopes.iter().map(scope)) {
        found.add(UNSUPPORTED_REGISTRY, name, format!("{name} may run images that nobody signed: of {list}"));
    }
    let images: Vec<&Images> = look.lists.values().flatten().collect();
    let unfinished = images.iter().filter(|_| unfinished).map(|images| &images.unfinished);
    let judged: Vec<_> = images.iter().map(|images| &images.finished).chain(unfinished).collect();
    let all =
        |of: fn(&Judged) -> &Several| judged.iter().fold(Several::default(), |all, judged| all.and(of(judged))).list();
    if let Some(list) = all(|judged| &judged.unsigned) {
        found.add(UNSIGNED, name, format!("{name} has images that are not signed as the policy asks: {list}"));
    }
    if let Some(list) = all(|judged| &judged.unverifiable) {
        found.add(UNVERIFIABLE, name, format!("{name} has images whose signatures cannot be judged here: {list}"));
    }
    if let Some(list) = all(|judged| &judged.outside) {
        found.add(OUTSIDE_POLICY, name, format!("{name} has images that no registry of the policy covers: {list}"));
    }
    found.conditions()
}
