//! Finds the policy that holds for an account. Everything in a home is written by its owner.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::document::Document;
use crate::watch::open::{open_beneath, open_regular};

/// The system's policy.
const SYSTEM: &str = "/etc/containers/policy.json";
/// A user's own, in place of it.
const OWN: &str = ".config/containers/policy.json";
/// Configuration of the CRI-O that podsec sets up for u7s-admin.
const CRIO: &str = ".config/usernetes/crio/crio.conf";
/// Larger files are none of these.
const MAX_FILE: u64 = 1 << 20;

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its home.
    pub home: PathBuf,
}

/// Why a file is the one that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It is the account's own, and takes the place of the system's.
    Own,
    /// The account has none of its own.
    System,
    /// The account's CRI-O is told so by `signature_policy`.
    Crio,
}

/// Why a policy is not known.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// It is no policy: every pull fails.
    #[error("{0} is invalid, so every pull fails: {1}")]
    Invalid(PathBuf, serde_json::Error),
    /// crio.conf is none.
    #[error("{0}: {1}")]
    Crio(PathBuf, String),
}

/// The account of that name in passwd(5); `None` if there is none. Lines that are no accounts are passed over.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn account(passwd: &Path, name: &str) -> io::Result<Option<Account>> {
    let mut text = Vec::new();
    open_regular(passwd)?.read_to_end(&mut text)?;
    let account = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let [found, _, uid, _, _, home, ..] = fields[..] else { return None };
        (found == name).then_some(())?;
        Some(Account { name: name.to_owned(), uid: uid.parse().ok()?, home: home.into() })
    };
    Ok(String::from_utf8_lossy(&text).lines().find_map(account))
}

/// The policy that holds for an account, its file and why it is that one; `path` says where a path of the tree is.
///
/// # Errors
/// [`PolicyError`].
pub fn policy(account: &Account, path: impl Fn(&Path) -> PathBuf) -> Result<(Document, PathBuf, Why), PolicyError> {
    let (file, bytes, why) = match crio_policy(account, &path)? {
        Some(file) => (file.clone(), read_system(&path(&file), &file)?, Why::Crio),
        None => match read_own(account, OWN, &path)? {
            Some(bytes) => (account.home.join(OWN), bytes, Why::Own),
            None => (SYSTEM.into(), read_system(&path(Path::new(SYSTEM)), Path::new(SYSTEM))?, Why::System),
        },
    };
    let document = Document::parse(&bytes).map_err(|error| PolicyError::Invalid(file.clone(), error))?;
    Ok((document, file, why))
}

/// What `signature_policy` of the account's crio.conf says, if there is one.
fn crio_policy(account: &Account, path: &impl Fn(&Path) -> PathBuf) -> Result<Option<PathBuf>, PolicyError> {
    let Some(bytes) = read_own(account, CRIO, path)? else { return Ok(None) };
    let refuse = |why: String| PolicyError::Crio(account.home.join(CRIO), why);
    let text = std::str::from_utf8(&bytes).map_err(|error| refuse(error.to_string()))?;
    let table: toml::Table = toml::from_str(text).map_err(|error| refuse(error.message().to_owned()))?;
    let policy = table.get("crio").and_then(|crio| crio.get("image")?.get("signature_policy"));
    match policy {
        None => Ok(None),
        Some(toml::Value::String(policy)) if policy.is_empty() => Ok(None),
        Some(toml::Value::String(policy)) => Ok(Some(policy.into())),
        Some(_) => Err(refuse("signature_policy of [crio.image] is no text".into())),
    }
}

/// A file in an account's home; `None` if it is not there.
fn read_own(account: &Account, name: &str, path: &impl Fn(&Path) -> PathBuf) -> Result<Option<Vec<u8>>, PolicyError> {
    let error = |error| PolicyError::Io(account.home.join(name), error);
    match open_beneath(&path(&account.home), Path::new(name)) {
        Err(absent) if matches!(absent.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        file => read(file.map_err(error)?).map(Some).map_err(error),
    }
}

fn read_system(path: &Path, name: &Path) -> Result<Vec<u8>, PolicyError> {
    open_regular(path).and_then(read).map_err(|error| PolicyError::Io(name.to_path_buf(), error))
}

fn read(file: std::fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE { Err(io::Error::other("larger than 1 MiB")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const REJECT: &str = r#"{"default":[{"type":"reject"}]}"#;

    /// A tree with these files, and the account alice in it.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Account) {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        let passwd = dir.path().join("passwd");
        fs::write(&passwd, "broken\nroot:x:0:0::/root:/bin/sh\nalice:x:1000:1000:A:/home/alice:/bin/sh\n")
            .expect("written");
        let alice = account(&passwd, "alice").expect("readable").expect("there");
        (dir, alice)
    }

    fn found(dir: &tempfile::TempDir, account: &Account) -> Result<(PathBuf, Why), String> {
        let path = |path: &Path| dir.path().join(path.strip_prefix("/").expect("absolute"));
        policy(account, path).map(|(_, file, why)| (file, why)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_accounts_own_file_takes_the_place_of_the_systems_and_crio_is_told_by_its_configuration() {
        let system = ("etc/containers/policy.json", REJECT);
        let own = ("home/alice/.config/containers/policy.json", REJECT);
        let crio =
            ("home/alice/.config/usernetes/crio/crio.conf", "[crio.image]\nsignature_policy = \"/etc/other.json\"\n");
        let silent = ("home/alice/.config/usernetes/crio/crio.conf", "[crio.image]\nsignature_policy = \"\"\n");
        for (files, expected) in [
            (&[system][..], ("/etc/containers/policy.json", Why::System)),
            (&[system, own], ("/home/alice/.config/containers/policy.json", Why::Own)),
            (&[system, own, crio, ("etc/other.json", REJECT)], ("/etc/other.json", Why::Crio)),
            (&[system, silent], ("/etc/containers/policy.json", Why::System)),
        ] {
            let (dir, alice) = tree(files);
            assert_eq!(found(&dir, &alice), Ok((expected.0.into(), expected.1)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let own = "home/alice/.config/containers/policy.json";
        let crio = "home/alice/.config/usernetes/crio/crio.conf";
        let large = " ".repeat(2 << 20);
        for (files, why) in [
            (&[][..], "/etc/containers/policy.json: No such file"),
            (&[(own, "{")], "/home/alice/.config/containers/policy.json is invalid, so every pull fails"),
            (&[(own, large.as_str())], "/home/alice/.config/containers/policy.json: larger than 1 MiB"),
            (&[(crio, "x")], "crio.conf"),
            (&[(crio, "[crio.image]\nsignature_policy = 1\n")], "signature_policy of [crio.image] is no text"),
        ] {
            let (dir, alice) = tree(files);
            let error = found(&dir, &alice).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_home_leads_nowhere_else_and_nothing_in_it_hangs() {
        let (dir, alice) = tree(&[("etc/containers/policy.json", REJECT), ("secret.json", REJECT)]);
        let own = dir.path().join("home/alice/.config/containers/policy.json");
        fs::create_dir_all(own.parent().expect("has one")).expect("made");
        std::os::unix::fs::symlink("../../../../secret.json", &own).expect("linked");
        assert!(found(&dir, &alice).expect_err("it leaves the home").contains("policy.json: "));
        fs::remove_file(&own).expect("removed");
        fs::write(own.with_file_name("real.json"), REJECT).expect("written");
        std::os::unix::fs::symlink("real.json", &own).expect("linked");
        assert_eq!(found(&dir, &alice).map(|(_, why)| why), Ok(Why::Own), "a link that stays");
        fs::remove_file(&own).expect("removed");
        nix::unistd::mkfifo(&own, nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(found(&dir, &alice).expect_err("a FIFO").contains("not a regular file"));
        fs::remove_file(&own).expect("removed");
        std::os::unix::fs::symlink("policy.json", &own).expect("linked");
        assert!(found(&dir, &alice).is_err(), "a loop");
    }
}
