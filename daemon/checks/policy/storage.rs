//! Where images are: containers-storage.conf(5).

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::accounts::Account;
use super::tables::parse;

/// So many are enough to tell that they are too many.
const MAX_ADDITIONAL: usize = 64;
/// PATH_MAX: longer paths nobody opens.
const MAX_PATH: usize = 4096;

/// A storage.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// Where images are of whoever reads the file.
    pub graphroot: Option<String>,
    /// Where they are of users, in the system's file.
    pub rootless_storage_path: Option<String>,
    /// Where the images are kept apart from containers, if they are.
    pub imagestore: Option<String>,
    /// Further places from which images are run, read-only.
    pub additional_stores: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    storage: Section,
}

#[derive(Default, Deserialize)]
struct Section {
    graphroot: Option<String>,
    rootless_storage_path: Option<String>,
    imagestore: Option<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Default, Deserialize)]
struct Options {
    #[serde(default)]
    additionalimagestores: Vec<String>,
}

impl Storage {
    /// Reads the file.
    ///
    /// # Errors
    /// It is no TOML, or of a wrong type: line and reason.
    pub fn parse(bytes: &[u8]) -> Result<Storage, String> {
        let File { storage } = parse(bytes)?;
        let Section { graphroot, rootless_storage_path, imagestore, options } = storage;
        let mut additional_stores = options.additionalimagestores;
        additional_stores.truncate(MAX_ADDITIONAL);
        additional_stores.shrink_to_fit();
        let some = |path: Option<String>| path.filter(|path| !path.is_empty());
        Ok(Storage {
            graphroot: some(graphroot),
            rootless_storage_path: some(rootless_storage_path),
            imagestore: some(imagestore),
            additional_stores,
        })
    }
}

/// A path of a storage.conf with `$HOME`, `$USER` and `$UID` in it, also in braces but for the last; `None` for one that is
/// not absolute, too long, leads back (`..`), or has other variables. Names of variables are as long as they can be.
pub fn expand(path: &str, account: &Account) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let uid = account.uid.to_string();
    let value = |variable: &str| match variable {
        "HOME" | "{HOME}" => Some(account.home.as_os_str().as_bytes()),
        "USER" | "{USER}" => Some(account.name.as_bytes()),
        "UID" => Some(uid.as_bytes()),
        _ => None,
    };
    let mut pieces = path.split('$');
    let mut expanded = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let is_part = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
        let end = match piece.strip_prefix('{') {
            Some(braced) => braced.find('}')? + 2,
            None => piece.bytes().position(|byte| !is_part(byte)).unwrap_or(piece.len()),
        };
        let (variable, rest) = piece.split_at(end);
        expanded.extend_from_slice(value(variable)?);
        expanded.extend_from_slice(rest.as_bytes());
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(&expanded)).to_path_buf();
    let leads_back = path.components().any(|part| part == Component::ParentDir);
    (path.is_absolute() && expanded.len() < MAX_PATH && !leads_back).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_conf_says_where_images_are() {
        let text = b"[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\nimagestore = \"\"\nrootless_storage_path = \"$HOME/s\"\n\
            [storage.options]\nadditionalimagestores = [\"/a\"]\n[storage.options.overlay]\nmountopt = \"nodev\"\n";
        let (graphroot, rootless_storage_path) = (Some("/g".into()), Some("$HOME/s".into()));
        let additional_stores = vec!["/a".into()];
        let storage = Storage { graphroot, rootless_storage_path, imagestore: None, additional_stores };
        assert_eq!(Storage::parse(text), Ok(storage));
        assert_eq!(Storage::parse(b""), Ok(Storage::default()));
        assert!(Storage::parse(b"\n[storage]\ngraphroot = 1\n").expect_err("wrong").starts_with("line 3: "));
    }

    #[test]
    fn variables_are_the_accounts() {
        let home = "/home/alice".into();
        let alice =
            Account { name: "alice".into(), uid: 1000, home, groups: Default::default(), gids: Default::default() };
        for (path, expanded) in [
            ("$HOME/s", Some("/home/alice/s")),
            ("/srv/$USER-$UID/ü", Some("/srv/alice-1000/ü")),
            ("relative", None),
            ("${HOME}/$UID", Some("/home/alice/1000")),
            ("/$OTHER", None),
            ("$HOMES/x", None),
            ("/${UID}", None),
            ("/${HOME", None),
            ("/$", None),
            ("/srv/../tmp/x", None),
        ] {
            assert_eq!(expand(path, &alice), expanded.map(PathBuf::from), "{path}");
        }
    }
}
