//! The files of keys that policies name, read once for all images that are judged with them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pgp::composed::SignedPublicKey;

use super::sigstore::PublicKey;
use crate::checks::policy::document::Keys;
use crate::checks::policy::keys as openpgp;

/// Files of keys, by the paths that policies name.
#[derive(Clone, Debug, Default)]
pub struct KeyFiles(BTreeMap<String, Result<Content, String>>);

/// The keys of a file. Which kind is meant only the requirement says.
#[derive(Clone, Debug)]
struct Content {
    openpgp: Result<Vec<SignedPublicKey>, String>,
    sigstore: Result<PublicKey, String>,
}

impl Content {
    fn parse(bytes: &[u8]) -> Content {
        Content { openpgp: openpgp::parse(bytes), sigstore: PublicKey::parse(bytes) }
    }
}

impl KeyFiles {
    /// Takes what was read at a path, or why it cannot be read.
    pub fn insert(&mut self, path: &str, bytes: Result<&[u8], String>) {
        self.0.insert(path.to_owned(), bytes.map(Content::parse));
    }

    /// The OpenPGP keys that a requirement names. As for the tools, a file that cannot be read spoils them all, and one
    /// without keys does not.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn openpgp(&self, keys: &Keys) -> Result<Vec<Cow<'_, [SignedPublicKey]>>, String> {
        let found: Vec<_> = match keys {
            Keys::Files(paths) => paths
                .iter()
                .map(|path| {
                    Ok(self.file(path)?.openpgp.as_deref().map(Cow::from).map_err(|why| format!("{path}: {why}")))
                })
                .collect::<Result<_, String>>()?,
            Keys::Inline(keys) => keys
                .iter()
                .map(|key| openpgp::parse(key).map(Cow::from).map_err(|why| format!("keyData: {why}")))
                .collect(),
        };
        let (keys, wrong): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
        match wrong.into_iter().find_map(Result::err) {
            Some(why) if keys.is_empty() => Err(why),
            None if keys.is_empty() => Err("no key is named".into()),
            _ => Ok(keys.into_iter().flatten().collect()),
        }
    }

    /// The sigstore keys that a requirement names. As for the tools, each must be good.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(super) fn sigstore(&self, keys: &Keys) -> Result<Vec<PublicKey>, String> {
        let keys: Vec<_> = match keys {
            Keys::Files(paths) => paths
                .iter()
                .map(|path| self.file(path)?.sigstore.clone().map_err(|why| format!("{path}: {why}")))
                .collect::<Result<_, String>>()?,
            Keys::Inline(keys) => keys
                .iter()
                .map(|key| PublicKey::parse(key).map_err(|why| format!("keyData: {why}")))
                .collect::<Result<_, String>>()?,
        };
        if keys.is_empty() { Err("no key is named".into()) } else { Ok(keys) }
    }

    fn file(&self, path: &str) -> Result<&Content, String> {
        match self.0.get(path) {
            Some(Ok(content)) => Ok(content),
            Some(Err(why)) => Err(format!("{path}: {why}")),
            None => Err(format!("{path} was not read")),
        }
    }
}
