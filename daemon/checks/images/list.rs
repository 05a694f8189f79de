//! The list of a store's images, `images.json` of containers/storage
//! (<https://github.com/containers/storage/blob/main/images.go>).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::brief;
use crate::checks::policy::document::mend_surrogates;

/// Longest list, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// Most images in a list.
pub const MAX_IMAGES: usize = 10_000;
/// Most names of one image, and most blobs.
pub const MAX_NAMES: usize = 256;
/// Most names and blobs of all images together: what a list costs in memory is bounded by these, not by its length.
const MAX_NAMES_OF_ALL: usize = 200_000;
/// Longest digests and names of all images together, in bytes: they are remembered.
const MAX_TEXTS: usize = 4 << 20;
/// Longest id, in bytes. The tools make 64 hexadecimal digits.
const MAX_ID: usize = 128;

/// An image of a store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// Also the name of its directory: letters, digits, `-`, `_` and `.`, not at the beginning.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// Digest of its manifest, if known: `sha256:…`.
    #[serde(default)]
    pub digest: Option<String>,
    /// What it is called, as the user has written or the tools have expanded it.
    #[serde(default, deserialize_with = "names")]
    pub names: Vec<String>,
    /// What it was called before; the last ones, the last one first.
    #[serde(default, rename = "names-history", deserialize_with = "former_names")]
    pub former_names: Vec<String>,
    /// Id of its uppermost layer; none has an image without layers.
    #[serde(default)]
    pub layer: Option<String>,
    /// When it was made, as its maker says: RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// How its signatures are cut, or why that is not known.
    #[serde(default = "no_signatures", rename = "metadata", deserialize_with = "metadata")]
    pub signatures: Result<SignatureSizes, String>,
    /// Its blobs: `manifest`, `signatures`, … ([`file_name`] says where they lie).
    #[serde(default, rename = "big-data-names", deserialize_with = "names")]
    pub blobs: Vec<String>,
    /// Digests of blobs, by their names.
    #[serde(default, rename = "big-data-digests", deserialize_with = "nullable")]
    pub blob_digests: BTreeMap<String, String>,
}

/// How many bytes the signatures of an image have, one after the other. Cut with [`super::signature::cut`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SignatureSizes {
    /// In blob `signatures`: those of blob `manifest`.
    #[serde(default, rename = "signature-sizes", deserialize_with = "nullable")]
    pub own: Vec<u64>,
    /// In blobs `signature-HEX`: those of the manifest with this digest, if a list of manifests is stored.
    #[serde(default, rename = "signatures-sizes", deserialize_with = "nullable")]
    pub instances: BTreeMap<String, Vec<u64>>,
}

/// Why a list cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Longer than [`MAX_BYTES`].
    #[error("longer than {} MiB", MAX_BYTES >> 20)]
    Long,
    /// It is not in the format, or holds too much.
    #[error("{}", brief(.0))]
    Malformed(#[from] serde_json::Error),
}

/// Reads a list of images. Members that it does not know are passed over.
///
/// # Errors
/// [`ListError`]: it is no such list, or one of its bounds is passed.
pub fn parse(bytes: &[u8]) -> Result<Vec<Image>, ListError> {
    if bytes.len() > MAX_BYTES {
        return Err(ListError::Long);
    }
    // What is no Unicode becomes U+FFFD, as for the tools.
    let text = String::from_utf8_lossy(bytes);
    let Images(images) = serde_json::from_str(&mend_surrogates(&text))?;
    Ok(images)
}

/// The file of a blob in the directory of its image: makeBigDataBaseName of containers/storage, but never a path.
pub fn file_name(blob: &str) -> String {
    let is_plain = |byte: u8| matches!(byte, b'.' | b'0'..=b'9' | b'a'..=b'z');
    if blob.bytes().all(is_plain) && !matches!(blob, "" | "." | "..") {
        blob.to_owned()
    } else {
        format!("={}", BASE64_STANDARD.encode(blob))
    }
}

/// A list of images within its bounds.
struct Images(Vec<Image>);

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Images, D::Error> {
        let (mut names, mut bytes) = (0, 0);
        let count = |image: &Image| {
            names += image.names.len() + image.blobs.len() + image.blob_digests.len();
            bytes += image.digest.iter().chain(&image.names).map(String::len).sum::<usize>();
            names <= MAX_NAMES_OF_ALL && bytes <= MAX_TEXTS
        };
        let bounded = Bounded { most: MAX_IMAGES, of: "images", take: count, item: PhantomData };
        // An empty store may be written as null.
        deserializer.deserialize_any(bounded).map(Images)
    }
}

/// A list, or null, of at most so many items, each of which is taken.
pub(in crate::checks) struct Bounded<T, F> {
    pub(in crate::checks) most: usize,
    pub(in crate::checks) of: &'static str,
    pub(in crate::checks) take: F,
    pub(in crate::checks) item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(&T) -> bool> Visitor<'de> for Bounded<T, F> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.of)
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == self.most {
                return Err(A::Error::custom(format!("more than {} {}", self.most, self.of)));
            }
            if !(self.take)(&item) {
                return Err(A::Error::custom(format!(
                    "more than {MAX_NAMES_OF_ALL} names and blobs, or names of {MAX_TEXTS} bytes"
                )));
            }
            items.push(item);
        }
        Ok(items)
    }
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let bounded = Bounded { most: MAX_NAMES, of: "names of one image", take: |_: &String| true, item: PhantomData };
    deserializer.deserialize_any(bounded)
}

/// So many are enough.
const MAX_FORMER_NAMES: usize = 16;

fn former_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut names: Vec<String> = nullable(deserializer)?;
    names.truncate(MAX_FORMER_NAMES);
    names.shrink_to_fit();
    Ok(names)
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // It is going to be a part of a path.
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(is_plain) {
        return Err(D::Error::custom(format!("`{}` is no id of an image", id.escape_debug())));
    }
    Ok(id)
}

fn no_signatures() -> Result<SignatureSizes, String> {
    Ok(SignatureSizes::default())
}

/// JSON in a text. What is wrong with it is wrong with this image only.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Result<SignatureSizes, String>, D::Error> {
    let text: String = nullable(deserializer)?;
    if text.is_empty() {
        return Ok(no_signatures());
    }
    Ok(serde_json::from_str(&text).map_err(|error| format!("its metadata is invalid: {}", brief(&error))))
}

#[cfg(test)]
mod tests;
