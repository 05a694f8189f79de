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
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    crio: Section,
}

#[derive(Default, Deserialize)]
struct Section {
    root: Option<String>,
    #[serde(default)]
    image: Image,
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
        let podsec = b"[crio]\n root = \"/data\"\n [crio.image]\n signature_policy = \"/etc/p.json\"\n \
            insecure_registries = [\n \"registry.local\"\n ]\n [crio.runtime]\n conmon = \"x\"\n";
        crio.read(podsec).expect("valid");
        crio.read(b"[crio.image]\nsignature_policy = \"\"\nsignature_policy_dir = \"/p\"\n").expect("valid");
        let registries = ["registry.local".to_owned()].into();
        let (signature_policy_dir, root) = (Some("/p".into()), Some("/data".into()));
        assert_eq!(crio, Crio { signature_policy: None, signature_policy_dir, insecure_registries: registries, root });
        for (text, why) in [("x", "line 1: "), ("\n[crio.image]\nsignature_policy = 1", "line 3: invalid type")] {
            let error = Crio::default().read(text.as_bytes()).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
