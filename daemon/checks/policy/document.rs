//! The format of policy.json: containers-policy.json(5), as strictly as the container tools read it. What is not quite
//! right makes the whole file invalid, and then every pull fails.

mod raw;
mod scope;
mod strict;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

pub(crate) use self::strict::mend_surrogates;
use super::reference::{Reference, is_prefix};

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// What holds where no scope does.
    pub default: Requirements,
    /// By transport (`docker`), by scope. Scope `""` is the transport's own default.
    #[serde(default)]
    pub transports: BTreeMap<String, BTreeMap<String, Requirements>>,
}

/// All of these must be met; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<Requirement>")]
pub struct Requirements(Box<[Requirement]>);

/// A requirement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum Requirement {
    /// None.
    InsecureAcceptAnything {},
    /// What nothing meets.
    Reject {},
    /// A simple signature, OpenPGP.
    SignedBy(SignedBy),
    /// Not implemented by the tools: nothing meets it.
    #[serde(rename_all = "camelCase")]
    SignedBaseLayer {
        /// Which image the base layer is of.
        base_layer_identity: Identity,
    },
    /// A sigstore signature.
    SigstoreSigned(Box<SigstoreSigned>),
}

/// Requirement `signedBy`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "raw::SignedBy")]
pub struct SignedBy {
    /// Only `GPGKeys` is implemented by the tools; nothing meets the others.
    pub key_type: KeyType,
    /// Whose signatures count: one good one is enough.
    pub keys: Keys,
    /// What a signature must name.
    pub identity: Identity,
}

/// `keyType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the format")]
pub enum KeyType {
    GPGKeys,
    #[serde(rename = "signedByGPGKeys")]
    SignedByGPGKeys,
    X509Certificates,
    #[serde(rename = "signedByX509CAs")]
    SignedByX509CAs,
}

/// Requirement `sigstoreSigned`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "raw::SigstoreSigned")]
pub struct SigstoreSigned {
    /// Who signs.
    pub signer: Signer,
    /// Keys of the transparency log whose promise is needed.
    pub rekor: Option<Keys>,
    /// What a signature must name.
    pub identity: Identity,
}

/// Who makes sigstore signatures that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Whoever has one of these keys.
    Keys(Keys),
    /// Whoever has a certificate of Fulcio for that address.
    Fulcio {
        /// The address.
        email: String,
        /// Who vouches for it.
        issuer: String,
    },
    /// Whoever has a certificate of these roots for that address or host.
    Pki {
        /// The address.
        email: Option<String>,
        /// The host.
        host: Option<String>,
    },
}

/// Keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// In these files.
    Files(Vec<String>),
    /// In the policy itself, each of these.
    Inline(Vec<Vec<u8>>),
}

/// What a signature must name: `signedIdentity`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Identity {
    /// Just the image's name.
    MatchExact {},
    /// The same, or its repository where the image is named by digest. It is so where nothing is said.
    MatchRepoDigestOrExact {},
    /// Its repository, with whatever tag.
    MatchRepository {},
    /// This name, whatever the image's is.
    ExactReference {
        /// The name, with tag or digest.
        #[serde(deserialize_with = "reference")]
        docker_reference: String,
    },
    /// This repository.
    ExactRepository {
        /// The repository.
        #[serde(deserialize_with = "repository")]
        docker_repository: String,
    },
    /// The image's name with another beginning.
    RemapIdentity {
        /// Of the image's name.
        #[serde(deserialize_with = "prefix")]
        prefix: String,
        /// Of the name in the signature.
        #[serde(deserialize_with = "prefix")]
        signed_prefix: String,
    },
}

impl Default for Identity {
    fn default() -> Identity {
        Identity::MatchRepoDigestOrExact {}
    }
}

impl Document {
    /// Reads a policy. What is no Unicode becomes U+FFFD, as for the tools.
    ///
    /// # Errors
    /// Why it is invalid, with line and column where one can be named.
    pub fn parse(bytes: &[u8]) -> Result<Document, serde_json::Error> {
        let text = String::from_utf8_lossy(bytes);
        let text = mend_surrogates(&text);
        let shape: strict::Shape = serde_json::from_str(&text)?;
        shape.check().map_err(serde_json::Error::custom)?;
        let document: Document = serde_json::from_str(&text)?;
        let scopes =
            document.transports.iter().flat_map(|(name, scopes)| scopes.keys().map(move |scope| (name, scope)));
        match scopes.into_iter().find_map(|(transport, scope)| scope::refuse(transport, scope)) {
            Some(why) => Err(serde_json::Error::custom(why)),
            None => Ok(document),
        }
    }
}

impl Document {
    /// How many scopes and requirements it has.
    pub fn size(&self) -> usize {
        let scopes = self.transports.values().flat_map(BTreeMap::values);
        scopes.map(|requirements| 1 + requirements.0.len()).sum::<usize>() + self.default.0.len()
    }
}

impl fmt::Display for Requirement {
    /// In the words of the format, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Requirement::InsecureAcceptAnything {} => f.write_str("insecureAcceptAnything"),
            Requirement::Reject {} => f.write_str("reject"),
            Requirement::SignedBaseLayer { base_layer_identity } => {
                write!(f, "signedBaseLayer of {base_layer_identity}")
            }
            Requirement::SignedBy(signed) => {
                let SignedBy { key_type, keys, identity } = signed;
                write!(f, "signedBy {keys} ({key_type:?}), for {identity}")
            }
            Requirement::SigstoreSigned(signed) => {
                match &signed.signer {
                    Signer::Keys(keys) => write!(f, "sigstoreSigned by {keys}")?,
                    Signer::Fulcio { email, issuer } => write!(f, "sigstoreSigned by {email} of {issuer} (fulcio)")?,
                    Signer::Pki { email, host } => {
                        let names: Vec<_> = [email, host].into_iter().flatten().map(String::as_str).collect();
                        write!(f, "sigstoreSigned by {} (pki)", names.join(" and "))?;
                    }
                }
                if let Some(rekor) = &signed.rekor {
                    write!(f, ", in the log of {rekor}")?;
                }
                write!(f, ", for {}", signed.identity)
            }
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::Files(files) if files.is_empty() => f.write_str("no key at all"),
            Keys::Files(files) => f.write_str(&files.join(" or ")),
            Keys::Inline(keys) => write!(f, "{} in the policy itself", if keys.len() == 1 { "a key" } else { "keys" }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::MatchExact {} => f.write_str("just this name"),
            Identity::MatchRepoDigestOrExact {} => f.write_str("just this name, by digest its repository"),
            Identity::MatchRepository {} => f.write_str("its repository, whatever the tag"),
            Identity::ExactReference { docker_reference } => write!(f, "{docker_reference}, whatever the name"),
            Identity::ExactRepository { docker_repository } => write!(f, "{docker_repository}, whatever the name"),
            Identity::RemapIdentity { prefix, signed_prefix } => {
                write!(f, "the name with {signed_prefix} in place of {prefix}")
            }
        }
    }
}

impl Keys {
    /// Whether there is none: then nothing is signed by one.
    pub fn is_none(&self) -> bool {
        match self {
            Keys::Files(files) => files.is_empty(),
            Keys::Inline(keys) => keys.iter().all(Vec::is_empty),
        }
    }

    /// The files.
    pub fn files(&self) -> &[String] {
        match self {
            Keys::Files(files) => files,
            Keys::Inline(_) => &[],
        }
    }
}

impl Requirements {
    /// The requirements.
    pub fn iter(&self) -> std::slice::Iter<'_, Requirement> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Requirement>> for Requirements {
    type Error = &'static str;

    fn try_from(list: Vec<Requirement>) -> Result<Requirements, &'static str> {
        if list.is_empty() { Err("a list of requirements is empty") } else { Ok(Requirements(list.into())) }
    }
}

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    check: impl FnOnce(&str) -> Result<(), String>,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    check(&text).map_err(D::Error::custom)?;
    Ok(text)
}

fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| match Reference::parse(text) {
        Ok(reference) if reference.is_name_only() => Err(format!("`{text}` has neither tag nor digest")),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
}

fn repository<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| Reference::parse(text).map(drop).map_err(|error| error.to_string()))
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| if is_prefix(text) { Ok(()) } else { Err(format!("`{text}` is no prefix of a name")) })
}
