//! What crio.conf(5) says of images: which policies hold, which registries need no encryption, where images are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;

use super::tables::parse;

/// What crio.conf and its drop-ins say, the later over the former.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crio {
    /// The policy, in place of all others.
    pub signature_policy: Option<PathBuf>,
    /// Where namespaces have policies of their own, `<namespace>.json`.
    pub signature_policy_dir: Option<PathBuf>,
    /// Registries that are spoken to without encryption or certificates.
    pub insecure_registries: BTreeSet<String>,
    /// Where images and containers are.
    pub root: Option<PathBuf>,
    /// Where what of them is kept that is lost when the node is switched off.
    pub runroot: Option<PathBuf>,
    /// Where it is noted which containers ended, and how.
    pub container_exits_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    crio: Section,
}

#[derive(Default, Deserialize)]
struct Section {
    root: Option<String>,
    runroot: Option<String>,
    #[serde(default)]
    image: Image,
    #[serde(default)]
    runtime: Runtime,
}

#[derive(Default, Deserialize)]
struct Runtime {
    container_exits_dir: Option<String>,
}

#[derive(Default, Deserialize)]
struct Image {
    signature_policy: Option<String>,
    signature_policy_dir: Option<String>,
    insecure_registries: Option<BTreeSet<String>>,
}

impl Crio {
    /// Takes in one more file; what it does not say stays.
    ///
    /// # Errors
    /// It is no TOML, or of a wrong type: line and reason.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        let File { crio } = parse(bytes)?;
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let Image { signature_policy, signature_policy_dir, insecure_registries } = crio.image;
        for (mine, said) in [
            (&mut self.root, crio.root),
            (&mut self.runroot, crio.runroot),
            (&mut self.container_exits_dir, crio.runtime.container_exits_dir),
            (&mut self.signature_policy, signature_policy),
            (&mut self.signature_policy_dir, signature_policy_dir),
        ] {
            if let Some(said) = said {
                *mine = path(said);
            }
        }
        if let Some(registries) = insecure_registries {
            self.insecure_registries = registries;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_says_only_what_it_says() {
        let mut crio = Crio::default();
        let podsec = b"[crio]\n root = \"/data\"\n runroot = \"/run/x\"\n [crio.image]\n signature_policy = \"/etc/p.json\"\n \
            insecure_registries = [\n \"registry.local\"\n ]\n [crio.runtime]\n conmon = \"x\"\n container_exits_dir = \"/run/exits\"\n";
        crio.read(podsec).expect("valid");
        crio.read(b"[crio.image]\nsignature_policy = \"\"\nsignature_policy_dir = \"/p\"\n").expect("valid");
        let registries = ["registry.local".to_owned()].into();
        let expected = Crio {
            signature_policy: None,
            signature_policy_dir: Some("/p".into()),
            insecure_registries: registries,
            root: Some("/data".into()),
            runroot: Some("/run/x".into()),
            container_exits_dir: Some("/run/exits".into()),
        };
        assert_eq!(crio, expected);
        for (text, why) in [("x", "line 1: "), ("\n[crio.image]\nsignature_policy = 1", "line 3: invalid type")] {
            let error = Crio::default().read(text.as_bytes()).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
