//! How registries are reached: containers-registries.conf(5), and where their signatures are: containers-registries.d(5).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::tables::parse;

/// A registry of registries.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The names that it is for: a registry, a part of one, or `*.` and a domain.
    pub prefix: String,
    /// Without encryption, or without certificates.
    pub insecure: bool,
    /// Where else its images come from, and whether insecurely.
    pub mirrors: Vec<(String, bool)>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
    /// The former format of the file.
    registries: Option<Former>,
}

#[derive(Deserialize)]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
}

#[derive(Deserialize)]
struct Former {
    insecure: Option<FormerList>,
}

#[derive(Deserialize)]
struct FormerList {
    #[serde(default)]
    registries: Vec<String>,
}

/// The registries of a registries.conf or one of its drop-ins.
///
/// # Errors
/// It is no TOML, or of a wrong type: line and reason.
pub fn registries(bytes: &[u8]) -> Result<Vec<Registry>, String> {
    let file: File = parse(bytes)?;
    let name = |text: &str| text.trim_end_matches('/').to_owned();
    let former = file.registries.and_then(|former| former.insecure).map(|list| list.registries).unwrap_or_default();
    let former = former.iter().map(|registry| Registry { prefix: name(registry), insecure: true, mirrors: Vec::new() });
    let mut registries: Vec<_> = former.collect();
    for entry in file.registry {
        let prefix = entry.prefix.filter(|prefix| !prefix.is_empty()).or(entry.location);
        let prefix = prefix.ok_or("a [[registry]] has neither prefix nor location")?;
        let mirrors = entry.mirror.iter().map(|mirror| (name(&mirror.location), mirror.insecure)).collect();
        registries.push(Registry { prefix: name(&prefix), insecure: entry.insecure, mirrors });
    }
    Ok(registries)
}

/// Where signatures are, from all files of a registries.d.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookaside {
    /// `default-docker`, if there is one.
    pub default: Option<Section>,
    /// By scope.
    pub docker: BTreeMap<String, Section>,
}

/// Where the signatures of a scope are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Section {
    lookaside: Option<String>,
    /// The former name.
    sigstore: Option<String>,
}

#[derive(Deserialize)]
struct LookasideFile {
    #[serde(rename = "default-docker")]
    default: Option<Section>,
    docker: Option<BTreeMap<String, Section>>,
}

impl Section {
    /// Where signatures are read from.
    pub fn url(&self) -> Option<&str> {
        [&self.lookaside, &self.sigstore].into_iter().flatten().map(String::as_str).find(|url| !url.is_empty())
    }
}

impl Lookaside {
    /// Takes in one more file.
    ///
    /// # Errors
    /// It is no YAML, of a wrong type, or says again what another says: then no signature is read at all.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let file: Option<LookasideFile> = serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location().map_or_else(String::new, |place| format!("line {}: ", place.line()));
            place + error.without_snippet().to_string().lines().next().unwrap_or_default()
        })?;
        let Some(file) = file else { return Ok(()) };
        if let Some(default) = file.default {
            if self.default.is_some() {
                return Err("`default-docker` stands in another file, too".into());
            }
            self.default = Some(default);
        }
        for (scope, section) in file.docker.into_iter().flatten() {
            if self.docker.contains_key(&scope) {
                return Err(format!("`{scope}` of docker stands in another file, too"));
            }
            self.docker.insert(scope, section);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_read_in_the_present_and_the_former_format() {
        let text = b"unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"registry.local\"\n\
            insecure = true\n[[registry]]\nprefix = \"*.example\"\nlocation = \"a.example/x\"\n\
            [[registry.mirror]]\nlocation = \"mirror.local/x/\"\ninsecure = true\n";
        let mirrored = ("mirror.local/x".to_owned(), true);
        let expected = [
            Registry { prefix: "registry.local".into(), insecure: true, mirrors: vec![] },
            Registry { prefix: "*.example".into(), insecure: false, mirrors: vec![mirrored] },
        ];
        assert_eq!(registries(text), Ok(expected.into()));
        let former =
            registries(b"[registries.search]\nregistries=['a']\n[registries.insecure]\nregistries=['b:5000']\n");
        assert_eq!(former, Ok(vec![Registry { prefix: "b:5000".into(), insecure: true, mirrors: vec![] }]));
        for (text, why) in [
            ("[[registry]]\ninsecure = true\n", "neither prefix nor location"),
            ("\n[[registry]]\nlocation = 1\n", "line 3: invalid type"),
            ("[[registry]", "line 1: "),
        ] {
            let error = registries(text.as_bytes()).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn signature_stores_are_merged_over_all_files() {
        let mut lookaside = Lookaside::default();
        lookaside.read(b"# nothing\n").expect("valid");
        lookaside.read(b"default-docker:\n  lookaside: http://s/\n  sigstore: http://t/\n  x: 1\n").expect("valid");
        lookaside.read(b"docker:\n  registry.local:\n    sigstore: http://u/\n").expect("valid");
        assert_eq!(lookaside.default.as_ref().and_then(Section::url), Some("http://s/"));
        assert_eq!(lookaside.docker["registry.local"].url(), Some("http://u/"));
        for (text, why) in [
            ("default-docker:\n  lookaside: x\n", "another file"),
            ("docker:\n  registry.local: {}\n", "another file"),
            ("docker: [\n", "line "),
            ("docker:\n  a: 1\n", "line "),
            ("a: &a [x]\nb: [*a, *a", "line "),
        ] {
            let error = lookaside.clone().read(text.as_bytes()).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
