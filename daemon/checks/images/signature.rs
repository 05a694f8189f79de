//! The signatures that are stored with an image, one after the other, and simple signing, the older of their two kinds:
//! an OpenPGP message, containers-signature(5).

use std::time::SystemTime;

use pgp::composed::SignedPublicKey;

use super::message::Signed;
use super::payload::{Kind, Payload};
use super::signer;
use super::sigstore::Sigstore;

/// Most signatures of an image, as the tools take from a signature store.
pub const MAX_SIGNATURES: usize = 128;
/// Longest signature, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// A stored signature; nothing is known of it but its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature<'b> {
    /// An OpenPGP message.
    Simple(&'b [u8]),
    /// One of sigstore.
    Sigstore(Sigstore),
}

/// Cuts a blob of signatures into pieces of these lengths, in bytes (containers/image's `storage/storage_src.go`).
///
/// # Errors
/// They do not fit, or a piece is no signature. For the tools the image then has none at all.
pub fn cut<'b>(mut blob: &'b [u8], sizes: &[u64]) -> Result<Vec<Signature<'b>>, String> {
    if sizes.len() > MAX_SIGNATURES {
        return Err(format!("there are more than {MAX_SIGNATURES} signatures"));
    }
    if sizes.is_empty() {
        // Then the tools do not look at the blob.
        return Ok(Vec::new());
    }
    let mut signatures = Vec::with_capacity(sizes.len());
    for size in sizes {
        let piece = usize::try_from(*size).ok().and_then(|size| blob.split_at_checked(size));
        let (piece, rest) = piece.ok_or("the stored signatures are shorter than the image's metadata says")?;
        signatures.push(Signature::parse(piece)?);
        blob = rest;
    }
    if blob.is_empty() {
        Ok(signatures)
    } else {
        Err("the stored signatures are longer than the image's metadata says".into())
    }
}

impl<'b> Signature<'b> {
    /// Tells of which kind a signature is by its beginning (containers/image's `internal/signature/signature.go`).
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(piece: &'b [u8]) -> Result<Signature<'b>, String> {
        if piece.len() > MAX_BYTES {
            return Err(format!("a signature is longer than {MAX_BYTES} bytes"));
        }
        match piece {
            // The first packet of a message: packed data, a signature announced, or a signature. 0x3d is the tools' mistake.
            [0xA0..=0xA3 | 0xC8 | 0x90..=0x92 | 0x3D | 0xC4 | 0x88..=0x8B | 0xC2, ..] => Ok(Signature::Simple(piece)),
            [0, rest @ ..] => {
                let end = memchr::memchr(b'\n', rest).ok_or("a signature does not name its format")?;
                match (&rest[..end], &rest[end + 1..]) {
                    (b"simple-signing", message) => Ok(Signature::Simple(message)),
                    (b"sigstore-json", json) => Sigstore::parse(json).map(Signature::Sigstore),
                    _ => Err("a signature of an unknown format".into()),
                }
            }
            _ => Err("what is stored as a signature is none".into()),
        }
    }
}

/// What a simple signature says, once it is verified.
///
/// # Errors
/// Why it does not count.
pub(super) fn verify<'k>(
    message: &[u8],
    keys: impl Iterator<Item = &'k SignedPublicKey>,
    now: SystemTime,
) -> Result<Payload, String> {
    let signed = Signed::parse(message)?;
    signer::verify(&signed, keys, now)?;
    Payload::parse(signed.text.data(), Kind::Simple)
}
