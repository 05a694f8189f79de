//! Versions of the files that podsecd keeps. What a newer podsecd wrote is refused, and stays as it is: only that one knows
//! what it means. Whatever an older one cannot read makes a new version.

use std::fmt::Display;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// That of a file which begins anew, in its format: the one that this podsecd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version<const KNOWN: u32>(u32);

impl<const KNOWN: u32> Default for Version<KNOWN> {
    fn default() -> Self {
        Version(KNOWN)
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A newer podsecd wrote it.
    #[error("{path} is of version {found}, which this podsecd does not know (it knows {known}); {NEWER}")]
    Newer {
        /// Where it is.
        path: String,
        /// Its version.
        found: u32,
        /// The highest that is known.
        known: u32,
    },
    /// It is whole, and other than this podsecd writes it.
    #[error(
        "{path} has what this podsecd does not know ({why}); {NEWER}, or, if it is damaged, move it away, and {then}"
    )]
    Unknown {
        /// Where it is.
        path: String,
        /// What that is.
        why: String,
        /// What happens without it.
        then: &'static str,
    },
    /// It is not whole.
    #[error("{path} is damaged: {why}; move it away, and {then}")]
    Damaged {
        /// Where it is.
        path: String,
        /// How.
        why: String,
        /// What happens without it.
        then: &'static str,
    },
}

const NEWER: &str = "install the newer podsecd again";

/// Reads a file in JSON with these bytes, of which versions up to `known` are known; where it says none it is 1. `then` is what
/// happens without the file.
///
/// # Errors
/// Why it cannot be used.
pub fn read<T: DeserializeOwned>(path: &Path, bytes: &[u8], known: u32, then: &'static str) -> Result<T, Unusable> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default = "first")]
        version: u32,
    }
    let path = path.display();
    let unusable = |error: serde_json::Error| {
        let (path, why) = (path.to_string(), error.to_string());
        if error.is_data() { Unusable::Unknown { path, why, then } } else { Unusable::Damaged { path, why, then } }
    };
    let Head { version } = serde_json::from_slice(bytes).map_err(unusable)?;
    refuse_newer(&path, version, known)?;
    serde_json::from_slice(bytes).map_err(unusable)
}

fn first() -> u32 {
    1
}

/// Refuses a file of a version that is not known.
///
/// # Errors
/// [`Unusable::Newer`]
pub fn refuse_newer(path: &dyn Display, found: u32, known: u32) -> Result<(), Unusable> {
    if found <= known { Ok(()) } else { Err(Unusable::Newer { path: path.to_string(), found, known }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        version: Version<2>,
        #[serde(default)]
        length: u64,
    }

    #[test]
    fn what_a_newer_podsecd_wrote_is_not_taken_for_damaged() {
        let newer = "install the newer podsecd again";
        for (text, refused) in [
            ("{}", None),
            (r#"{"length":7}"#, None),
            (r#"{"version":1,"length":7}"#, None),
            (r#"{"version":2}"#, None),
            (r#"{"version":3}"#, Some(("/kept is of version 3, which this podsecd does not know (it knows 2)", newer))),
            (r#"{"version":3,"length":"seven"}"#, Some(("of version 3", newer))),
            (
                r#"{"version":"three"}"#,
                Some(("/kept has what this podsecd does not know (invalid type: string", newer)),
            ),
            (r#"{"version":2,"width":7}"#, Some(("unknown field `width`", newer))),
            (r#"{"length":-7}"#, Some(("invalid value", newer))),
            ("7", Some(("invalid type: integer", newer))),
            ("", Some(("/kept is damaged: EOF", "move it away, and all begins anew"))),
            (r#"{"version":2,"#, Some(("/kept is damaged: EOF", "move it away"))),
            ("\0\0\0", Some(("/kept is damaged", "move it away"))),
        ] {
            let read = read::<File>(Path::new("/kept"), text.as_bytes(), 2, "all begins anew");
            let told = read.as_ref().err().map(ToString::to_string);
            assert_eq!(told.is_some(), refused.is_some(), "{text}: {told:?}");
            for (told, (words, remedy)) in told.iter().zip(refused) {
                assert!(told.contains(words) && told.contains(remedy), "{text}: {told}");
            }
        }
        let now = serde_json::to_string(&File::default()).expect("JSON");
        assert_eq!(now, r#"{"version":2,"length":0}"#, "what is written is of the version that is known");
    }
}
