//! Whether an image is signed as the requirements of a policy ask, judged from what is stored with it: offline, and as
//! containers/image judges it when it pulls (`signature/policy_eval*.go`). OpenPGP takes its time: not for the task that
//! owns the state.

use std::time::SystemTime;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::brief;
use super::identity;
use super::keys::KeyFiles;
use super::payload::Payload;
use super::signature::{self, Signature, cut};
use super::sigstore::{BUNDLE, CERTIFICATE, Fault, Sigstore};
use crate::checks::policy::choose::{self, Verdict};
use crate::checks::policy::document::{Identity, Requirement, Requirements, SignedBy, Signer, SigstoreSigned};
use crate::checks::policy::reference::Reference;

/// Most reasons that are given for one image.
const MAX_REASONS: usize = 3;

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'e> {
    /// One of its names, with tag or digest ([`Reference::image`]).
    pub name: &'e Reference,
    /// Its manifest.
    pub manifest: &'e [u8],
    /// The digest of its manifest, as the store lists it.
    pub digest: Option<&'e str>,
    /// The list of manifests that the digest in its name is of, if it was pulled by that: blob `manifest-DIGEST`.
    pub index: Option<&'e [u8]>,
    /// Its signatures, one after the other.
    pub signatures: &'e [u8],
    /// Their lengths, in bytes.
    pub sizes: &'e [u64],
}

/// What becomes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every signature that is asked for is there, and good.
    Signed,
    /// One that is asked for is not there, or not good, and why.
    Unsigned(String),
    /// One that is asked for may be good, but that cannot be told offline, and why.
    Unverifiable(String),
    /// None is asked for.
    Anything,
    /// Nothing meets the requirements, and why.
    Rejected(&'static str),
}

/// Judges an image by requirements, all of which it must meet. `keys` are the files that they name, `now` is for what
/// expires.
pub fn verify(requirements: &Requirements, image: &Evidence<'_>, keys: &KeyFiles, now: SystemTime) -> Outcome {
    match choose::judge(requirements) {
        Verdict::Anything => return Outcome::Anything,
        Verdict::Never(why) => return Outcome::Rejected(why),
        Verdict::Signed => {}
    }
    if !image.is_listed_rightly() {
        return Outcome::Unsigned("its manifest is not the one whose digest the store lists".into());
    }
    if !image.is_named_rightly() {
        return Outcome::Unsigned("its manifest is not the one that the digest in its name is of".into());
    }
    let signatures = match cut(image.signatures, image.sizes) {
        Ok(signatures) if signatures.is_empty() => return Outcome::Unsigned("no signature is stored with it".into()),
        Ok(signatures) => signatures,
        Err(why) => return Outcome::Unsigned(brief(&why)),
    };
    let mut outcome = Outcome::Signed;
    for requirement in requirements.iter() {
        let met = match requirement {
            Requirement::SignedBy(wanted) => simple(wanted, image, &signatures, keys, now),
            Requirement::SigstoreSigned(wanted) => sigstore(wanted, image, &signatures, keys),
            // Met by all; the other two are met by none, and that was seen above.
            Requirement::InsecureAcceptAnything {} | Requirement::Reject {} | Requirement::SignedBaseLayer { .. } => {
                Ok(())
            }
        };
        match met {
            Ok(()) => {}
            Err(Fault::Bad(why)) => return Outcome::Unsigned(why),
            Err(Fault::Unknown(why)) => outcome = Outcome::Unverifiable(why),
        }
    }
    outcome
}

fn simple(
    wanted: &SignedBy,
    image: &Evidence<'_>,
    signatures: &[Signature<'_>],
    keys: &KeyFiles,
    now: SystemTime,
) -> Result<(), Fault> {
    let keys = keys.openpgp(&wanted.keys).map_err(|why| Fault::Bad(brief(&why)))?;
    let messages = signatures.iter().filter_map(|signature| match signature {
        Signature::Simple(message) => Some(message),
        Signature::Sigstore(_) => None,
    });
    need_one(messages, "no simple signature is stored with it", |message| {
        let payload = signature::verify(message, keys.iter().flat_map(|keys| keys.iter()), now).map_err(Fault::Bad)?;
        image.accept(&payload, &wanted.identity)
    })
}

fn sigstore(
    wanted: &SigstoreSigned,
    image: &Evidence<'_>,
    signatures: &[Signature<'_>],
    keys: &KeyFiles,
) -> Result<(), Fault> {
    let all = signatures.iter().filter_map(|signature| match signature {
        Signature::Sigstore(signature) => Some(signature).filter(|signature| signature.is_of_image()),
        Signature::Simple(_) => None,
    });
    const NONE: &str = "no sigstore signature is stored with it";
    // What the tools would look at first, and what it says: if that is wrong already, no certificate helps.
    let unknown = |signature: &Sigstore, needed: &[&str], why: &str| {
        needed.iter().try_for_each(|name| signature.annotation(name).map(drop))?;
        image.accept(&signature.claim().map_err(Fault::Bad)?, &wanted.identity)?;
        Err(Fault::Unknown(format!("{why} is not verified offline")))
    };
    match &wanted.signer {
        Signer::Keys(named) => {
            let keys = keys.sigstore(named).map_err(|why| Fault::Bad(brief(&why)))?;
            need_one(all, NONE, |signature| {
                image.accept(&signature.verify(&keys)?, &wanted.identity)?;
                match wanted.rekor {
                    None => Ok(()),
                    Some(_) => unknown(signature, &[BUNDLE], "the promise of rekor that it is in its log"),
                }
            })
        }
        Signer::Fulcio { .. } => {
            need_one(all, NONE, |signature| unknown(signature, &[BUNDLE, CERTIFICATE], "a certificate of Fulcio"))
        }
        Signer::Pki { .. } => {
            need_one(all, NONE, |signature| unknown(signature, &[CERTIFICATE], "a certificate (pki)"))
        }
    }
}

/// One good signature is enough; else one that may be good counts for more than a bad one.
fn need_one<T>(
    signatures: impl Iterator<Item = T>,
    none: &str,
    mut judge: impl FnMut(T) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut bad, mut unknown) = (Vec::new(), None);
    for signature in signatures {
        match judge(signature) {
            Ok(()) => return Ok(()),
            Err(Fault::Bad(why)) => {
                let why = brief(&why);
                if bad.len() < MAX_REASONS && !bad.contains(&why) {
                    bad.push(why);
                }
            }
            Err(Fault::Unknown(why)) => unknown = Some(why),
        }
    }
    match unknown {
        Some(why) => Err(Fault::Unknown(why)),
        None if bad.is_empty() => Err(Fault::Bad(none.into())),
        None => Err(Fault::Bad(bad.join("; "))),
    }
}

impl Evidence<'_> {
    /// Whether a verified signature is for this image.
    fn accept(&self, payload: &Payload, wanted: &Identity) -> Result<(), Fault> {
        if !identity::accepts(wanted, self.name, &payload.reference) {
            return Err(Fault::Bad(format!("the signature is for `{}`", payload.reference.escape_debug())));
        }
        if has_digest(self.manifest, &payload.digest) {
            Ok(())
        } else {
            Err(Fault::Bad("the signature is for another digest".into()))
        }
    }

    /// Whether the store lists the digest of its manifest, if any.
    fn is_listed_rightly(&self) -> bool {
        self.digest.is_none_or(|digest| has_digest(self.manifest, digest))
    }

    /// Whether the digest in its name, if there is one, is that of its manifest, or of a list which has that.
    fn is_named_rightly(&self) -> bool {
        let Some(digest) = self.name.digest() else { return true };
        has_digest(self.manifest, digest)
            || self.index.is_some_and(|index| has_digest(index, digest) && lists(index, self.manifest))
    }
}

/// Whether bytes have a digest: `sha256:…`. The tools tell no other of a manifest. One of schema 1, of whose digest parts are
/// left out, has none: nobody signs these any more.
fn has_digest(bytes: &[u8], digest: &str) -> bool {
    digest_of(bytes) == digest
}

fn digest_of(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{hex}")
}

/// Whether a list of manifests has this one.
fn lists(index: &[u8], manifest: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        digest: String,
    }
    let Ok(Index { manifests }) = serde_json::from_slice(index) else { return false };
    let own = digest_of(manifest);
    manifests.iter().any(|entry| entry.digest == own)
}

#[cfg(test)]
mod tests;
