//! Any bytes as the signatures of an image, under policies that ask for some: nothing panics, and nothing is signed but
//! what was.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use podsecd::checks::images::keys::KeyFiles;
use podsecd::checks::images::verify::{Evidence, Outcome, verify};
use podsecd::checks::policy::document::{Document, Requirements};
use podsecd::checks::policy::reference::Reference;

const POLICY: &str = r#"{"default":[{"type":"reject"}],"transports":{"docker":{
    "simple":[{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/subkey","/maker"]}],
    "sigstore":[{"type":"sigstoreSigned","keyPath":"/p256","signedIdentity":{"type":"matchRepository"}}],
    "fulcio":[{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"a@b"},"rekorPublicKeyPath":"/r"}]
}}}"#;
/// It is none of those that the keys have signed.
const MANIFEST: &[u8] = b"{}";

static KEYS: LazyLock<KeyFiles> = LazyLock::new(|| {
    let mut keys = KeyFiles::default();
    keys.insert("/maker", Ok(include_bytes!("../../data/images/maker.gpg")));
    keys.insert("/subkey", Ok(include_bytes!("../../data/images/subkey.gpg")));
    keys.insert("/p256", Ok(include_bytes!("../../data/images/p256.pem")));
    keys
});

fuzz_target!(|bytes: &[u8]| {
    // The first byte says where it is cut.
    let Some((cut, signatures)) = bytes.split_first() else { return };
    let first = usize::from(*cut) * 16 % (signatures.len() + 1);
    let sizes = [first, signatures.len() - first].map(|size| size as u64);
    let sizes = if first == 0 { &sizes[1..] } else { &sizes[..] };
    let name = Reference::parse("registry.local:5000/k8s/pause:3.9").expect("a name");
    let image = Evidence { name: &name, manifest: MANIFEST, digest: None, index: None, signatures, sizes };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let policy = Document::parse(POLICY.as_bytes()).expect("valid");
    let requirements = policy.transports["docker"].values();
    for outcome in requirements.map(|requirements: &Requirements| verify(requirements, &image, &KEYS, now)) {
        assert!(matches!(outcome, Outcome::Unsigned(_) | Outcome::Unverifiable(_)), "{outcome:?}");
    }
    // Bytes of any kind as a file of keys.
    let mut keys = KeyFiles::default();
    keys.insert("/maker", Ok(signatures));
    keys.insert("/subkey", Ok(include_bytes!("../../data/images/subkey.gpg")));
    let good = include_bytes!("../../data/images/good.signature");
    let image = Evidence { signatures: good, sizes: &[good.len() as u64], ..image };
    verify(&policy.transports["docker"]["simple"], &image, &keys, now);
});
