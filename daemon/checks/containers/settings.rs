//! What an operator may set.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::watch::tree::Scope;

/// What of containers is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Paths in containers of which nothing is told, with all that is below them.
    pub exclude: Vec<PathBuf>,
    /// Paths below those of which all is told.
    pub include: Vec<PathBuf>,
    /// Other paths for containers of certain stores.
    pub store: Vec<OfStore>,
}

/// Paths for the containers of one store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OfStore {
    /// Where the store is.
    pub path: PathBuf,
    /// In place of the general ones.
    pub exclude: Option<Vec<PathBuf>>,
    /// Likewise.
    pub include: Option<Vec<PathBuf>>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            exclude: ["/var", "/proc", "/tmp", "/run"].map(PathBuf::from).into(),
            include: Vec::new(),
            store: Vec::new(),
        }
    }
}

impl Settings {
    /// Of which paths is told in the containers of a store.
    pub fn scope(&self, store: &Path) -> Scope {
        let own = self.store.iter().find(|own| own.path == store);
        let exclude = own.and_then(|own| own.exclude.as_ref()).unwrap_or(&self.exclude);
        let include = own.and_then(|own| own.include.as_ref()).unwrap_or(&self.include);
        Scope::new(exclude.iter().map(PathBuf::as_path), include.iter().map(PathBuf::as_path))
    }
}
