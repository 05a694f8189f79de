//! The requirements with keys as they are written, before it is seen that their fields go together.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::Deserializer;

use super::{Identity, KeyType, Keys, Signer};

/// A field that may be absent, but not null.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SignedBy {
    key_type: KeyType,
    #[serde(default, deserialize_with = "some")]
    key_path: Option<String>,
    #[serde(default, deserialize_with = "some")]
    key_paths: Option<Vec<String>>,
    #[serde(default, deserialize_with = "some")]
    key_data: Option<String>,
    #[serde(default)]
    signed_identity: Identity,
}

impl TryFrom<SignedBy> for super::SignedBy {
    type Error = String;

    fn try_from(raw: SignedBy) -> Result<super::SignedBy, String> {
        let given = [
            raw.key_path.map(|path| file("keyPath", path)),
            // An empty list is taken; then there is no key, and nothing meets it.
            raw.key_paths.map(|paths| Ok(Keys::Files(paths))),
            raw.key_data.map(|data| inline("keyData", vec![data])),
        ];
        let keys = only("keyPath, keyPaths and keyData", given)?;
        let keys = keys.ok_or("one of keyPath, keyPaths and keyData is needed")?;
        Ok(super::SignedBy { key_type: raw.key_type, keys, identity: raw.signed_identity })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SigstoreSigned {
    #[serde(default)]
    key_path: Option<String>,
    #[serde(default)]
    key_paths: Option<Vec<String>>,
    #[serde(default)]
    key_data: Option<String>,
    #[serde(default)]
    key_datas: Option<Vec<String>>,
    #[serde(default)]
    fulcio: Option<Fulcio>,
    #[serde(default)]
    pki: Option<Pki>,
    #[serde(default)]
    rekor_public_key_path: Option<String>,
    #[serde(default)]
    rekor_public_key_paths: Option<Vec<String>>,
    #[serde(default)]
    rekor_public_key_data: Option<String>,
    #[serde(default)]
    rekor_public_key_datas: Option<Vec<String>>,
    #[serde(default)]
    signed_identity: Identity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Fulcio {
    #[serde(default)]
    ca_path: Option<String>,
    #[serde(default)]
    ca_data: Option<String>,
    oidc_issuer: String,
    subject_email: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Pki {
    #[serde(default)]
    ca_roots_path: Option<String>,
    #[serde(default)]
    ca_roots_data: Option<String>,
    #[serde(default)]
    ca_intermediates_path: Option<String>,
    #[serde(default)]
    ca_intermediates_data: Option<String>,
    #[serde(default)]
    subject_email: Option<String>,
    #[serde(default)]
    subject_hostname: Option<String>,
}

impl TryFrom<SigstoreSigned> for super::SigstoreSigned {
    type Error = String;

    fn try_from(raw: SigstoreSigned) -> Result<super::SigstoreSigned, String> {
        let given = [
            named(raw.key_path).map(|path| file("keyPath", path).map(Signer::Keys)),
            raw.key_paths.map(|paths| files("keyPaths", paths).map(Signer::Keys)),
            raw.key_data.map(|data| inline("keyData", vec![data]).map(Signer::Keys)),
            raw.key_datas.map(|datas| inline("keyDatas", datas).map(Signer::Keys)),
            raw.fulcio.map(Signer::try_from),
            raw.pki.map(Signer::try_from),
        ];
        const SIGNERS: &str = "keyPath, keyPaths, keyData, keyDatas, fulcio and pki";
        let signer = only(SIGNERS, given)?.ok_or_else(|| format!("one of {SIGNERS} is needed"))?;
        let given = [
            named(raw.rekor_public_key_path).map(|path| file("rekorPublicKeyPath", path)),
            raw.rekor_public_key_paths.map(|paths| files("rekorPublicKeyPaths", paths)),
            raw.rekor_public_key_data.map(|data| inline("rekorPublicKeyData", vec![data])),
            raw.rekor_public_key_datas.map(|datas| inline("rekorPublicKeyDatas", datas)),
        ];
        let rekor = only("the four of rekorPublicKey…", given)?;
        match signer {
            Signer::Fulcio { .. } if rekor.is_none() => {
                return Err("fulcio needs one of the four of rekorPublicKey…".into());
            }
            Signer::Pki { .. } if rekor.is_some() => {
                return Err("with pki none of the four of rekorPublicKey… may be given".into());
            }
            _ => {}
        }
        Ok(super::SigstoreSigned { signer, rekor, identity: raw.signed_identity })
    }
}

impl TryFrom<Fulcio> for Signer {
    type Error = String;

    fn try_from(raw: Fulcio) -> Result<Signer, String> {
        let given =
            [named(raw.ca_path).map(|path| file("caPath", path)), raw.ca_data.map(|data| inline("caData", vec![data]))];
        only("caPath and caData", given)?.ok_or("one of caPath and caData is needed")?;
        if raw.oidc_issuer.is_empty() || raw.subject_email.is_empty() {
            return Err("oidcIssuer and subjectEmail must not be empty".into());
        }
        Ok(Signer::Fulcio { email: raw.subject_email, issuer: raw.oidc_issuer })
    }
}

impl TryFrom<Pki> for Signer {
    type Error = String;

    fn try_from(raw: Pki) -> Result<Signer, String> {
        let roots = [
            named(raw.ca_roots_path).map(|path| file("caRootsPath", path)),
            raw.ca_roots_data.map(|data| inline("caRootsData", vec![data])),
        ];
        only("caRootsPath and caRootsData", roots)?.ok_or("one of caRootsPath and caRootsData is needed")?;
        let intermediates = [
            named(raw.ca_intermediates_path).map(|path| file("caIntermediatesPath", path)),
            raw.ca_intermediates_data.map(|data| inline("caIntermediatesData", vec![data])),
        ];
        only("caIntermediatesPath and caIntermediatesData", intermediates)?;
        let (email, host) = (raw.subject_email, raw.subject_hostname);
        if [&email, &host].iter().all(|text| text.as_ref().is_none_or(String::is_empty)) {
            return Err("one of subjectEmail and subjectHostname is needed".into());
        }
        Ok(Signer::Pki { email, host })
    }
}

/// A path that is given: an empty one is none, here.
fn named(path: Option<String>) -> Option<String> {
    path.filter(|path| !path.is_empty())
}

/// The one that is given; none if none is.
fn only<T>(which: &str, given: impl IntoIterator<Item = Option<Result<T, String>>>) -> Result<Option<T>, String> {
    let mut given = given.into_iter().flatten();
    let first = given.next();
    if given.next().is_some() {
        return Err(format!("only one of {which} may be given"));
    }
    first.transpose()
}

fn file(which: &str, path: String) -> Result<Keys, String> {
    if path.is_empty() { Err(format!("{which} is empty")) } else { Ok(Keys::Files(vec![path])) }
}

fn files(which: &str, paths: Vec<String>) -> Result<Keys, String> {
    if paths.is_empty() { Err(format!("{which} is empty")) } else { Ok(Keys::Files(paths)) }
}

fn inline(which: &str, datas: Vec<String>) -> Result<Keys, String> {
    if datas.is_empty() {
        return Err(format!("{which} is empty"));
    }
    // The tools pass over line breaks, and over bits behind the last byte.
    let engine = GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
    let decode = |data: String| engine.decode(data.replace(['\r', '\n'], ""));
    let decoded = datas.into_iter().map(decode).collect::<Result<_, _>>();
    decoded.map(Keys::Inline).map_err(|error| format!("{which} is no base64: {error}"))
}
