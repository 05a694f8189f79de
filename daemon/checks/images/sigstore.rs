//! Signatures of sigstore, as cosign and podman make them with a key: how they are stored with an image
//! (containers/image's `internal/signature/sigstore.go`), and verified (`signature/internal/sigstore_payload.go`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use webpki::{Error, RawPublicKeyEntity, ring};

use super::payload::{Kind, Payload};

const MIME_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The promise of rekor to have it in its log.
pub(super) const BUNDLE: &str = "dev.sigstore.cosign/bundle";
/// The certificate of its key.
pub(super) const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";

/// A stored signature of sigstore.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sigstore {
    #[serde(default)]
    mime_type: String,
    /// In base64.
    #[serde(default)]
    payload: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A public key.
#[derive(Clone, Debug)]
pub struct PublicKey(SubjectPublicKeyInfoDer<'static>);

/// Why a signature is not known to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not good.
    Bad(String),
    /// It may be, but that is more than can be told here.
    Unknown(String),
}

impl Sigstore {
    /// Reads the JSON behind the name of the format.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(json: &[u8]) -> Result<Sigstore, String> {
        serde_json::from_slice(json).map_err(|error| format!("a sigstore signature is malformed: {error}"))
    }

    /// Whether it is one of an image, and not of some other statement about it.
    pub(super) fn is_of_image(&self) -> bool {
        self.mime_type == MIME_TYPE
    }

    /// What it says, once it is verified with one of the keys.
    pub(super) fn verify(&self, keys: &[PublicKey]) -> Result<Payload, Fault> {
        let signature = decode(self.annotation(SIGNATURE)?).map_err(Fault::Bad)?;
        let payload = decode(&self.payload).map_err(Fault::Bad)?;
        let mut fault = Fault::Bad("a sigstore signature is by none of the keys that count, or not of its text".into());
        for key in keys {
            match key.verify(&payload, &signature) {
                Ok(()) => return Payload::parse(&payload, Kind::Cosign).map_err(Fault::Bad),
                Err(unknown @ Fault::Unknown(_)) => fault = unknown,
                Err(Fault::Bad(_)) => {}
            }
        }
        Err(fault)
    }

    /// What is written beside it under that name.
    pub(super) fn annotation(&self, name: &str) -> Result<&str, Fault> {
        let value = self.annotations.get(name).map(String::as_str);
        value.ok_or_else(|| Fault::Bad(format!("a sigstore signature has no {name}")))
    }

    /// What it says, but nobody knows whether that is true.
    pub(super) fn claim(&self) -> Result<Payload, String> {
        Payload::parse(&decode(&self.payload)?, Kind::Cosign)
    }
}

/// Base64 as the tools read it: line breaks are passed over.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD
        .decode(text.replace(['\r', '\n'], ""))
        .map_err(|error| format!("a part of a sigstore signature is no base64: {error}"))
}

impl PublicKey {
    /// Reads a key in PEM: `BEGIN PUBLIC KEY`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(pem: &[u8]) -> Result<PublicKey, String> {
        let key =
            SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|error| format!("no PEM public key: {error}"))?;
        RawPublicKeyEntity::try_from(&key).map_err(|error| format!("no public key: {error}"))?;
        Ok(PublicKey(key))
    }

    /// Verifies a signature: ECDSA or RSA (PKCS #1 v1.5) with SHA-256, or Ed25519, as the key is.
    fn verify(&self, text: &[u8], signature: &[u8]) -> Result<(), Fault> {
        let key = RawPublicKeyEntity::try_from(&self.0).map_err(|error| Fault::Bad(error.to_string()))?;
        for algorithm in
            [ring::ECDSA_P256_SHA256, ring::ECDSA_P384_SHA256, ring::ED25519, ring::RSA_PKCS1_2048_8192_SHA256]
        {
            match key.verify_signature(algorithm, text, signature) {
                Ok(()) => return Ok(()),
                Err(Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(error) => return Err(Fault::Bad(error.to_string())),
            }
        }
        Err(Fault::Unknown("a key is neither P-256, P-384, Ed25519 nor RSA".into()))
    }
}
