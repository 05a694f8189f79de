//! What was read of the system and of homes: who may run which image, as far as files say it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::accounts::{Account, Accounts, Overlap};
use super::crio::Crio;
use super::document::Document;
use super::keys::KeyFile;
use super::registries::{Lookaside, Registry};
use super::storage::Storage;
use super::store::Found;
use super::tree::Broken;

/// Configuration of the container tools, of the system and of a user.
pub const SYSTEM: &str = "/etc/containers";
/// Likewise, below a home.
pub const OWN: &str = ".config/containers";
/// Configuration of the CRI-O that podsec sets up, below its account's home.
pub const CRIO: &str = ".config/usernetes/crio/crio.conf";
/// Its drop-ins.
pub const CRIO_DROP_INS: &str = "/etc/crio/crio.conf.d";

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its file.
    pub file: PathBuf,
    /// What it says.
    pub document: Document,
    /// The keys that it names, with their paths.
    pub keys: Vec<(String, KeyFile)>,
}

/// A file that is read whole: what it says, or what is wrong.
pub type Read<T> = Result<T, Broken>;

/// Registries of several files, and which of the files are broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    /// Each with its file.
    pub list: Vec<(PathBuf, Registry)>,
    /// Files that are no registries.conf.
    pub broken: Vec<Broken>,
}

/// What holds for all accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// passwd and group.
    pub accounts: Accounts,
    /// Whether the container tools are configured here at all.
    pub is_configured: bool,
    /// The policy, if there is one; without any nothing can be pulled.
    pub policy: Option<Read<Arc<Policy>>>,
    /// Where signatures are, if anything says so.
    pub lookaside: Option<Read<Lookaside>>,
    /// How registries are reached.
    pub registries: Registries,
    /// The drop-ins of registries.conf; they hold for users with a registries.conf of their own, too.
    pub drop_ins: Registries,
    /// Where images are.
    pub storage: Option<Read<Storage>>,
    /// Owners whose ranges overlap, by file.
    pub overlaps: BTreeMap<&'static str, BTreeSet<Overlap>>,
    /// What else cannot be read.
    pub broken: Vec<Broken>,
}

/// What an account's home says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Whose it is.
    pub account: Account,
    /// Its own policy, which takes the place of the system's.
    pub policy: Option<Read<Arc<Policy>>>,
    /// Whether the account is the one that runs CRI-O.
    pub runs_crio: bool,
    /// What CRI-O is told.
    pub crio: Option<Read<Told>>,
    /// Its own registries.d, which takes the place of the system's.
    pub lookaside: Option<Read<Lookaside>>,
    /// Its own registries.conf, which takes the place of the system's.
    pub registries: Option<Registries>,
    /// Drop-ins beside it.
    pub drop_ins: Registries,
    /// Its own storage.conf.
    pub storage: Option<Read<Storage>>,
    /// Its image stores.
    pub images: Found,
    /// Those that it had before, where what says where they are is broken now.
    pub former_stores: BTreeSet<PathBuf>,
    /// Where links in its configuration lead, below the home.
    pub targets: Vec<PathBuf>,
    /// What of its configuration it may change itself.
    pub changeable: Option<PathBuf>,
    /// Whether it may put another directory in the place of its configuration.
    pub replaceable: bool,
}

/// What held for an account when its home was looked at last and could be read. While it cannot be, what is there already
/// is judged by it: to break a file makes no image go away.
#[derive(Clone, Debug, Default)]
pub struct Former {
    /// The policy.
    pub policy: Option<Arc<Policy>>,
    /// Where images were.
    pub stores: BTreeSet<PathBuf>,
}

/// What CRI-O is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What its configuration says.
    pub crio: Crio,
    /// The policy that this names.
    pub policy: Named,
    /// Those of single namespaces.
    pub namespaces: Vec<Read<Arc<Policy>>>,
}

/// The policy that a crio.conf names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// None: CRI-O looks for one as the other tools do.
    None,
    /// The system's.
    System,
    /// Another.
    Other(Read<Arc<Policy>>),
}

/// Why a policy is the one that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It is the account's own, and takes the place of the system's.
    Own,
    /// The account has none of its own.
    System,
    /// The account runs CRI-O, whose crio.conf names it.
    Crio,
}

impl Home {
    /// The policy that holds for the account, if there is any, and why it is that one. Of the account that runs CRI-O it is
    /// CRI-O's.
    pub fn effective<'a>(&'a self, system: &'a System) -> (Why, Option<&'a Read<Arc<Policy>>>) {
        let named = self.crio.iter().flatten().next().map(|told| &told.policy);
        match (named, &self.policy) {
            (Some(Named::Other(policy)), _) => (Why::Crio, Some(policy)),
            (Some(Named::System), _) => (Why::Crio, system.policy.as_ref()),
            (_, Some(own)) => (Why::Own, Some(own)),
            (_, None) => (Why::System, system.policy.as_ref()),
        }
    }

    /// Whether the policy that holds for the account is judged: root's where containers are set up, and that of whoever has
    /// an image store or configures the container tools.
    pub fn is_judged(&self, system: &System) -> bool {
        !self.images.stores.is_empty()
            || !self.images.unread.is_empty()
            || self.account.is_root() && system.is_configured
            || self.is_configured()
    }

    /// Whether it configures the container tools.
    pub(super) fn is_configured(&self) -> bool {
        let Home { policy, crio, lookaside, registries, drop_ins, storage, .. } = self;
        policy.is_some()
            || crio.is_some()
            || lookaside.is_some()
            || registries.is_some()
            || storage.is_some()
            || *drop_ins != Registries::default()
    }

    /// Whether what says where its images are is broken.
    pub(super) fn hides_stores(&self) -> bool {
        matches!(self.storage, Some(Err(_))) || matches!(self.crio, Some(Err(_)))
    }

    /// What is to be remembered of it.
    pub fn remembered(&self, system: &System, former: &Former) -> Former {
        let stores = if self.hides_stores() {
            former.stores.clone()
        } else {
            self.images.stores.iter().map(|store| store.path.clone()).collect()
        };
        Former { policy: self.policy_of_images(system, former).cloned(), stores }
    }

    /// The policy by which images are judged: the one that holds; if it cannot be read, the last one that could, or else
    /// the system's.
    pub fn policy_of_images<'a>(&'a self, system: &'a System, former: &'a Former) -> Option<&'a Arc<Policy>> {
        match self.effective(system).1? {
            Ok(policy) => Some(policy),
            Err(_) => former.policy.as_ref().or_else(|| system.policy.as_ref()?.as_ref().ok()),
        }
    }
}

impl System {
    /// Where signatures are for an account, if anything says so.
    pub fn lookaside<'a>(&'a self, home: &'a Home) -> Option<&'a Read<Lookaside>> {
        home.lookaside.as_ref().or(self.lookaside.as_ref())
    }
}

/// Who has a home that passwd does not know.
#[derive(Clone, Debug, Default)]
pub struct Strangers {
    /// Their owners.
    pub accounts: Vec<Account>,
    /// Homes whose owners podsecd cannot tell now.
    pub unknown: BTreeSet<PathBuf>,
}
