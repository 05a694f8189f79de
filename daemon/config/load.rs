//! Reads the configuration: one file, its drop-ins, and the weights.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{Config, Root};
use crate::score::WeightChanges;
use crate::watch::open::{directory_of, is_trusted, open_regular, remedy_of_trust};

/// The main file.
const FILE: &str = "/etc/podsecd/podsecd.toml";
/// Changes to the weights.
const WEIGHTS: &str = "/etc/podsecd/weights.toml";
/// Directories of drop-ins; of two files of one name the one in the later directory counts.
const DROP_INS: [&str; 3] =
    ["/usr/lib/podsecd/podsecd.toml.d", "/run/podsecd/podsecd.toml.d", "/etc/podsecd/podsecd.toml.d"];
/// Larger files are no configuration.
const MAX_FILE: u64 = 1 << 20;

/// Why a configuration is refused: file, line, key and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1 on, where one can be named.
    pub line: Option<usize>,
    /// The key, such as `kubeapi.audit-log`, where one can be named.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": `{key}`")?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

/// Reads and checks the configuration: `file`, or the shipped place below `root`, with its drop-ins, and the weights.
///
/// # Errors
/// The first thing that is wrong. A main file or a table of weights that is not there is none; defaults hold. A file
/// that was named and is not there is an error.
pub fn load(file: Option<&Path>, root: &Root) -> Result<Config, ConfigError> {
    let trusted = root.is_elsewhere();
    let (main, directories) = match file {
        Some(file) => (file.to_path_buf(), vec![PathBuf::from(format!("{}.d", file.display()))]),
        None => (root.path(FILE), DROP_INS.iter().map(|directory| root.path(directory)).collect()),
    };
    let mut fragments = Vec::new();
    match read(&main, trusted)? {
        Some(text) => fragments.push((main, text)),
        None if file.is_some() => return Err(ConfigError::io(&main, &io::ErrorKind::NotFound.into())),
        None => {}
    }
    for path in drop_ins(&directories)? {
        // As in systemd's directories, such a link masks the file of that name in the directories before.
        if std::fs::read_link(&path).is_ok_and(|target| target == Path::new("/dev/null")) {
            continue;
        }
        if let Some(text) = read(&path, trusted)? {
            fragments.push((path, text));
        }
    }
    let mut merged = toml::Table::new();
    for (path, text) in &fragments {
        // Each file by itself first: only then can the line be named.
        parse::<Config>(path, text)?;
        merge(&mut merged, parse::<toml::Table>(path, text)?);
    }
    let mut config: Config = merged.try_into().map_err(|error: toml::de::Error| ConfigError {
        file: root.path(FILE),
        line: None,
        key: None,
        what: error.message().to_owned(),
        remedy: "its drop-ins contradict it".into(),
    })?;
    if let Some(contradiction) = config.contradiction() {
        let place = contradiction.keys.iter().flat_map(|(section, key)| {
            let lines = fragments.iter().enumerate();
            lines
                .filter_map(move |(at, (_, text))| Some((at, line_of(text, section, key)?, format!("{section}.{key}"))))
        });
        // The last file that says something of it is the one that made it so.
        let place = place.max_by_key(|(at, ..)| *at);
        let (file, line, key) = place
            .map_or((root.path(FILE), None, None), |(at, line, key)| (fragments[at].0.clone(), Some(line), Some(key)));
        let (what, remedy) = (contradiction.what.into(), contradiction.remedy.into());
        return Err(ConfigError { file, line, key, what, remedy });
    }
    let weights = root.path(WEIGHTS);
    if let Some(text) = read(&weights, trusted)? {
        config.weights.change(parse::<WeightChanges>(&weights, &text)?);
    }
    Ok(config.settle())
}

/// The drop-ins, sorted by name.
fn drop_ins(directories: &[PathBuf]) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = BTreeMap::new();
    for directory in directories {
        let entries = match directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| ConfigError::io(directory, &error))?,
        };
        for entry in entries {
            let path = entry.map_err(|error| ConfigError::io(directory, &error))?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
    }
    Ok(files.into_values().collect())
}

/// The text of a file; `None` if there is none. Refuses what somebody else than root could have written.
fn read(path: &Path, trusted: bool) -> Result<Option<String>, ConfigError> {
    let file = match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| ConfigError::io(path, &error))?,
    };
    let metadata = file.metadata().map_err(|error| ConfigError::io(path, &error))?;
    if !trusted {
        let directory = directory_of(path);
        let parent = directory.metadata().map_err(|error| ConfigError::io(directory, &error))?;
        for (what, metadata) in [(path, &metadata), (directory, &parent)] {
            if !is_trusted(metadata) {
                return Err(ConfigError {
                    what: format!("{} can be written by others than root", what.display()),
                    remedy: remedy_of_trust(what, metadata, "root"),
                    ..ConfigError::io(path, &io::ErrorKind::PermissionDenied.into())
                });
            }
        }
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| ConfigError::io(path, &error))?;
    if bytes.len() as u64 > MAX_FILE {
        let error = io::Error::other("larger than 1 MiB");
        return Err(ConfigError::io(path, &error));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| ConfigError {
        what: format!("byte {} is no UTF-8", error.utf8_error().valid_up_to()),
        remedy: "save it as UTF-8".into(),
        ..ConfigError::io(path, &io::ErrorKind::InvalidData.into())
    })
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let refuse = |error: &toml::de::Error, key: Option<String>| {
        let line = error.span().map(|span| line_at(text, span.start));
        ConfigError {
            file: path.to_path_buf(),
            line,
            key,
            what: error.message().trim_end().replace('\n', "; "),
            remedy: "`podsecctl config check` tells when it is right; every key is shown in the shipped podsecd.toml"
                .into(),
        }
    };
    let deserializer = toml::Deserializer::parse(text).map_err(|error| refuse(&error, None))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let key = error.path().to_string();
        refuse(error.inner(), (key != ".").then_some(key))
    })
}

/// The line, from 1 on, in which a file sets a key of a section.
fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    let table = toml::de::DeTable::parse(text).ok()?;
    let (key, _) = table.get_ref().get(section)?.get_ref().as_table()?.get_key_value(key)?;
    Some(line_at(text, key.span().start))
}

/// The line, from 1 on, of a byte.
fn line_at(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

/// What the later file says wins, key by key.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

impl ConfigError {
    fn io(file: &Path, error: &io::Error) -> ConfigError {
        ConfigError {
            file: file.to_path_buf(),
            line: None,
            key: None,
            what: error.to_string(),
            remedy: "see that it is a regular file that podsecd can read".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A tree with these files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn load_tree(files: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tree(files);
        load(None, &Root::new(Some(dir.path().to_path_buf())))
            .map_err(|error| error.to_string().replace(&dir.path().display().to_string(), ""))
    }

    #[test]
    fn without_any_file_defaults_hold() {
        assert_eq!(load_tree(&[]), Ok(Config::default()));
    }

    /// The shipped file with every `#key = value` and `#[table]` made active.
    fn shipped() -> String {
        let text = include_str!("../../policy/podsecd.toml");
        let active = text.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        });
        active.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        assert_eq!(
            load_tree(&[(FILE, include_str!("../../policy/podsecd.toml"))]),
            Ok(Config::default()),
            "as shipped"
        );
        assert_eq!(load_tree(&[(FILE, &shipped())]), Ok(Config::default()), "with every key active");
        let table: toml::Table = shipped().parse().expect("toml");
        // serde lists the keys that it knows when it refuses one.
        for section in [
            "",
            "kubeapi",
            "policy",
            "containers",
            "forwards",
            "u7s",
            "controlplane",
            "watch",
            "journal",
            "forbidden-log",
            "digest",
            "mail",
        ] {
            let heading = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
            let shown = if section.is_empty() { &table } else { table[section].as_table().expect("a table") };
            let refused = load_tree(&[(FILE, &format!("{heading}no-such-key = 1\n"))]).expect_err("unknown");
            let known = refused.split("expected").nth(1).expect("a list").split(';').next().expect("its end");
            let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
            assert!(!known.is_empty(), "{refused}");
            for key in known {
                assert!(shown.contains_key(key), "{key} of [{section}] is not in the shipped file");
            }
        }
    }

    #[test]
    fn drop_ins_are_merged_by_name_and_the_nearer_directory_wins() {
        let config = load_tree(&[
            (FILE, "metric-window = \"1min\"\n[forbidden-log]\nkeep = 1\n"),
            ("/usr/lib/podsecd/podsecd.toml.d/10-a.toml", "[forbidden-log]\nkeep = 2\n"),
            ("/usr/lib/podsecd/podsecd.toml.d/20-b.toml", "[forbidden-log]\nkeep = 3\n"),
            ("/etc/podsecd/podsecd.toml.d/20-b.toml", "[kubeapi]\nstart = \"end\"\n"),
            ("/etc/podsecd/podsecd.toml.d/README", "not a drop-in"),
        ])
        .expect("valid");
        let expected = (Period::from_secs(60), 2, crate::watch::follow::Start::End);
        assert_eq!((config.metric_window, config.forbidden_log.keep, config.kubeapi.start), expected);
    }

    #[test]
    fn a_link_to_dev_null_masks_a_drop_in() {
        let dir = tree(&[("/usr/lib/podsecd/podsecd.toml.d/10-a.toml", "[forbidden-log]\nkeep = 2\n")]);
        let masks = dir.path().join("etc/podsecd/podsecd.toml.d");
        fs::create_dir_all(&masks).expect("made");
        std::os::unix::fs::symlink("/dev/null", masks.join("10-a.toml")).expect("linked");
        assert_eq!(load(None, &Root::new(Some(dir.path().to_path_buf()))), Ok(Config::default()));
    }

    use crate::config::Period;

    #[test]
    fn what_is_wrong_is_named_with_file_line_and_key() {
        for (text, parts) in [
            ("[kubeapi]\naudit-lgo = \"/x\"\n", &["/etc/podsecd/podsecd.toml:2", "audit-lgo", "audit-log"][..]),
            ("\n[kubeapi]\naudit-log = \"x\"\n", &[":3", "kubeapi.audit-log", "begin with `/`"]),
            ("metric-window = 5\n", &[":1", "metric-window"]),
            ("metric-window = \"0s\"\n", &[":1", "metric-window", "longer than zero"]),
            ("[levels]\ncritical = \"x\"\n", &[":2", "levels.critical", "Nagios range"]),
            ("[kubeapi\n", &[":1"]),
            ("a = 1\na = 2\n", &[":2"]),
            ("[mail]\nserver = \"mx.example.org:25\"\nuser = \"x\"\n", &[":3", "mail.user", "set `tls` of [mail]"]),
        ] {
            let refused = load_tree(&[(FILE, text)]).expect_err(text);
            for part in parts {
                assert!(refused.contains(part), "{refused} should contain {part}");
            }
        }
    }

    #[test]
    fn a_contradiction_names_the_last_file_that_made_it() {
        const DROP_IN: &str = "/etc/podsecd/podsecd.toml.d/10-mail.toml";
        let main = (FILE, "[mail]\nuser = \"x\"\n");
        let refused = load_tree(&[main, (DROP_IN, "\n[mail]\nserver = \"mx.example.org:25\"\n")]).expect_err("refused");
        assert!(refused.starts_with(&format!("{DROP_IN}:3: `mail.server`: ")), "{refused}");
    }

    #[test]
    fn podsec_levels_make_every_refusal_critical() {
        let config = load_tree(&[(FILE, "[kubeapi]\npodsec-levels = true\n")]).expect("valid");
        for id in crate::checks::kubeapi::ids::REFUSALS {
            assert_eq!(config.weights.get(id).level, Some(crate::score::Level::Critical), "{id}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tree(&[("podsecd.toml", "")]);
        let file = dir.path().join("podsecd.toml");
        assert!(load(Some(&file), &Root::default()).is_ok());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).expect("changed");
        let refused = load(Some(&file), &Root::default()).expect_err("writable").to_string();
        assert!(refused.contains("others than root") && refused.contains("chmod go-w"), "{refused}");
        fs::remove_file(&file).expect("removed");
        assert!(load(Some(&file), &Root::default()).is_err(), "a file that was named must be there");
    }
}
