//! Whether the key that made a signature is one of those that count, and was good for it: as gpg judges it, through which
//! the container tools verify (`merge_selfsigs` and `check_signature_metadata_validity` in its g10/).

use std::time::{Duration, SystemTime};

use pgp::composed::{SignedPublicKey, SignedPublicSubKey};
use pgp::packet::{Signature, SignatureType, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{KeyDetails, Tag, VerifyingKey};

use super::message::{Signed, refuse};

/// Most keys that one signature is tried with: it may name none, or one of which there are many.
const MAX_TRIED: usize = 100;
/// Most statements of a key about itself that are verified, the newest first.
const MAX_STATEMENTS: usize = 100;

/// Verifies a signed text.
///
/// # Errors
/// Why no key counts for it.
pub(super) fn verify<'k>(
    signed: &Signed,
    keys: impl Iterator<Item = &'k SignedPublicKey>,
    now: SystemTime,
) -> Result<(), String> {
    let candidates = keys.flat_map(|key| {
        let subkeys = key.public_subkeys.iter().map(move |subkey| (key, Some(subkey)));
        std::iter::once((key, None)).chain(subkeys)
    });
    let made_it = |(key, subkey): &(&SignedPublicKey, Option<&SignedPublicSubKey>)| match subkey {
        Some(subkey) => may_be_by(&signed.signature, &subkey.key),
        None => may_be_by(&signed.signature, &key.primary_key),
    };
    let mut reason = None;
    for (key, subkey) in candidates.filter(made_it).take(MAX_TRIED) {
        let text = signed.text.data();
        let verified = match subkey {
            Some(subkey) => signed.signature.verify(&subkey.key, text),
            None => signed.signature.verify(&key.primary_key, text),
        };
        let judged = match verified {
            Ok(()) => judge(key, subkey, signed.signature.created().map(SystemTime::from), now)
                .and_then(|()| judge_age(&signed.signature, now)),
            Err(_) => Err("the signature is not that of its text".to_owned()),
        };
        match judged {
            Ok(()) => return Ok(()),
            Err(why) => reason = Some(why),
        }
    }
    Err(reason.unwrap_or_else(|| format!("it is by a key that does not count{}", issuer(&signed.signature))))
}

fn judge_age(signature: &Signature, now: SystemTime) -> Result<(), String> {
    let created = signature.created().ok_or("the signature has no date")?;
    let lifetime = signature.signature_expiration_time().map(pgp::types::Duration::as_secs);
    match end(created.into(), lifetime) {
        Some(end) if end <= now => Err("the signature has expired".into()),
        _ => Ok(()),
    }
}

/// Whether a key, or its subkey, may sign at that time, and now.
fn judge(
    key: &SignedPublicKey,
    subkey: Option<&SignedPublicSubKey>,
    signed: Option<SystemTime>,
    now: SystemTime,
) -> Result<(), String> {
    let primary = &key.primary_key;
    if key.details.revocation_signatures.iter().take(MAX_STATEMENTS).any(|revocation| {
        revocation.typ() == Some(SignatureType::KeyRevocation) && revocation.verify_key(primary).is_ok()
    }) {
        return Err("its key is revoked".into());
    }
    let own = Statements::of_primary(key, now).ok_or("its key has no valid signature by itself")?;
    let mut made = vec![(primary.created_at().into(), own.lifetime)];
    let may_sign = match subkey {
        None => own.may_sign,
        Some(subkey) => {
            let bound = Statements::of_subkey(key, subkey, now)?;
            made.push((subkey.key.created_at().into(), bound.lifetime));
            bound.may_sign
        }
    };
    for (created, lifetime) in made {
        if created > now || signed.is_none_or(|signed| created > signed) {
            return Err("its key is newer than the signature".into());
        }
        if end(created, lifetime).is_some_and(|end| end <= now) {
            return Err("its key has expired".into());
        }
    }
    if may_sign { Ok(()) } else { Err("its key is not for signing".into()) }
}

/// What a key says of itself.
struct Statements {
    /// In seconds from its making.
    lifetime: Option<u32>,
    may_sign: bool,
}

impl Statements {
    /// What holds for a primary key: what is said of it directly, and where nothing is, what is said with its newest
    /// name.
    fn of_primary(key: &SignedPublicKey, now: SystemTime) -> Option<Statements> {
        let primary = &key.primary_key;
        // Others' signatures, of which a known key may have thousands, say nothing here.
        let own = |signature: &&Signature| is_by(signature, primary);
        let direct = newest(key.details.direct_signatures.iter().filter(own), now, |signature| {
            signature.typ() == Some(SignatureType::Key) && signature.verify_key(primary).is_ok()
        });
        let named = key.details.users.iter().take(MAX_STATEMENTS).filter_map(|user| {
            newest(user.signatures.iter().filter(own), now, |signature| {
                let is = signature.is_certification() || signature.typ() == Some(SignatureType::CertRevocation);
                is && signature.verify_certification(primary, Tag::UserId, &user.id).is_ok()
            })
        });
        let named = named.filter(|signature| signature.typ() != Some(SignatureType::CertRevocation));
        let named = named.max_by_key(|signature| signature.created());
        let said = || [direct, named].into_iter().flatten();
        said().next()?;
        Some(Statements {
            lifetime: said().find_map(lifetime),
            // Who says nothing means everything.
            may_sign: said().find_map(flags_sign).unwrap_or(true),
        })
    }

    fn of_subkey(key: &SignedPublicKey, subkey: &SignedPublicSubKey, now: SystemTime) -> Result<Statements, String> {
        let primary = &key.primary_key;
        let is_bound = |signature: &Signature, how| {
            signature.typ() == Some(how) && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
        };
        let mut all = subkey.signatures.iter().take(MAX_STATEMENTS);
        if all.any(|signature| is_bound(signature, SignatureType::SubkeyRevocation)) {
            return Err("its subkey is revoked".into());
        }
        let binding =
            newest(subkey.signatures.iter(), now, |signature| is_bound(signature, SignatureType::SubkeyBinding))
                .ok_or("its subkey is not bound to its key")?;
        // Else anyone could claim the signatures of another's subkey.
        let confirms = |back: &Signature| back.verify_primary_key_binding(&subkey.key, primary).is_ok();
        if !binding.embedded_signature().is_some_and(confirms) {
            return Err("its subkey does not confirm that it belongs to its key".into());
        }
        Ok(Statements { lifetime: lifetime(binding), may_sign: flags_sign(binding).unwrap_or(true) })
    }
}

/// The newest that is valid.
fn newest<'s>(
    signatures: impl Iterator<Item = &'s Signature>,
    now: SystemTime,
    is_valid: impl Fn(&Signature) -> bool,
) -> Option<&'s Signature> {
    let mut signatures: Vec<_> = signatures.filter(|signature| signature.created().is_some()).collect();
    signatures.sort_by_key(|signature| std::cmp::Reverse(signature.created()));
    signatures
        .into_iter()
        .take(MAX_STATEMENTS)
        .find(|signature| judge_age(signature, now).is_ok() && refuse(signature).is_none() && is_valid(signature))
}

fn lifetime(signature: &Signature) -> Option<u32> {
    signature.key_expiration_time().map(pgp::types::Duration::as_secs)
}

/// Whether the key may sign; `None` if nothing is said about its use.
fn flags_sign(signature: &Signature) -> Option<bool> {
    signature.config()?.hashed_subpackets().find_map(|subpacket| match &subpacket.data {
        SubpacketData::KeyFlags(flags) => Some(flags.sign()),
        _ => None,
    })
}

/// When something ends; never with a lifetime of 0.
fn end(begin: SystemTime, lifetime: Option<u32>) -> Option<SystemTime> {
    lifetime.filter(|seconds| *seconds > 0).map(|seconds| begin + Duration::from_secs(seconds.into()))
}

/// Whether a signature says that it is by that key.
fn is_by(signature: &Signature, key: &(impl VerifyingKey + Serialize)) -> bool {
    signature.issuer_key_id().contains(&&key.legacy_key_id())
        || signature.issuer_fingerprint().contains(&&key.fingerprint())
}

/// The same, or it does not say whose it is.
fn may_be_by(signature: &Signature, key: &(impl VerifyingKey + Serialize)) -> bool {
    is_by(signature, key) || (signature.issuer_key_id().is_empty() && signature.issuer_fingerprint().is_empty())
}

fn issuer(signature: &Signature) -> String {
    match (signature.issuer_fingerprint().first(), signature.issuer_key_id().first()) {
        (Some(fingerprint), _) => format!(": {fingerprint}"),
        (None, Some(id)) => format!(": {id}"),
        (None, None) => String::new(),
    }
}
