//! The keys with which a policy wants images to be signed: OpenPGP (RFC 9580), as `keyPath` of signedBy names them.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::time::{Duration, SystemTime};

use pgp::composed::{PublicOrSecret, SignedPublicKey};
use pgp::packet::Signature;
use pgp::types::KeyDetails;

use super::rights::Writer;

/// A file of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// It is not there, or holds no key, and why.
    Unusable(String),
    /// podsecd does not read it, though the container tools may, and why.
    Unread(String),
    /// It holds keys.
    Found {
        /// Who may change it, but for root.
        writers: Writers,
        /// Who may put another in its place: in its directory and those above.
        replacers: Writers,
        /// When the last of its keys expires, if all do.
        expires: Option<SystemTime>,
        /// SHA-256 of the file.
        digest: [u8; 32],
    },
}

/// Those who may write, each once; if they are many, everybody: whoever owns files says how many there are.
pub type Writers = BTreeSet<Writer>;

/// More of them are everybody.
const MAX_WRITERS: usize = 32;

/// All of these.
pub fn writers(all: impl IntoIterator<Item = Writer>) -> Writers {
    let mut writers = Writers::new();
    for writer in all {
        writers.insert(writer);
        if writers.len() > MAX_WRITERS {
            return Writers::from([Writer::Everybody]);
        }
    }
    writers
}

/// The keys of a file, with or without armor.
///
/// # Errors
/// Why it holds none.
pub fn parse(bytes: &[u8]) -> Result<Vec<SignedPublicKey>, String> {
    let (keys, _) =
        PublicOrSecret::from_reader_many_buf(Cursor::new(bytes)).map_err(|error| format!("no OpenPGP key: {error}"))?;
    // A keyring may hold what this library does not know; the others count.
    let keys: Vec<_> = keys
        .filter_map(Result::ok)
        .filter_map(|key| match key {
            PublicOrSecret::Public(key) => Some(key),
            PublicOrSecret::Secret(_) => None,
        })
        .collect();
    if keys.is_empty() { Err("no OpenPGP public key in it".into()) } else { Ok(keys) }
}

/// When the last of these keys expires; `None` if one never does.
pub fn last_expiry(keys: &[SignedPublicKey]) -> Option<SystemTime> {
    keys.iter().map(expiry).try_fold(SystemTime::UNIX_EPOCH, |last, expiry| Some(last.max(expiry?)))
}

/// When a key expires, if ever: so its owner's newest signature over it says.
pub fn expiry(key: &SignedPublicKey) -> Option<SystemTime> {
    let (id, fingerprint) = (key.primary_key.legacy_key_id(), key.primary_key.fingerprint());
    let is_own = |signature: &&Signature| {
        signature.issuer_key_id().contains(&&id) || signature.issuer_fingerprint().contains(&&fingerprint)
    };
    let details = &key.details;
    let signatures = details.users.iter().flat_map(|user| &user.signatures).chain(&details.direct_signatures);
    let newest = signatures.filter(is_own).max_by_key(|signature| signature.created())?;
    let lifetime = newest.key_expiration_time()?.as_secs();
    let created = u64::from(key.primary_key.created_at().as_secs());
    // A lifetime of 0 is none.
    (lifetime > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(created + u64::from(lifetime)))
}
