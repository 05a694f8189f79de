//! Policies made at random, of what Debian's skopeo 1.9 knows: no `keyPaths`, no certificates. It reads `sigstoreSigned`, but
//! Debian has switched off what judges it: it refuses all. So that stands only in scopes that are not the image's.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::images::{Image, World};
use super::rng::Rng;

/// Makes a policy.json for an image under that name.
pub(super) fn generate(rng: &mut Rng, world: &World, image: &Image, name: &str) -> String {
    let maker = Maker { world, image, name };
    let mut policy = Map::new();
    // Of images that no scope covers podsecd says that, and nothing of their signatures.
    let default = if rng.percent(60) { ANYTHING } else { "reject" };
    policy.insert("default".into(), json!([{ "type": default }]));
    let mut scopes = Map::new();
    for (scopes_of, sigstore) in [(maker.own_scopes(), false), (maker.other_scopes(), true)] {
        for scope in scopes_of {
            if rng.percent(30) {
                scopes.insert(scope, maker.requirements(rng, sigstore));
            }
        }
    }
    let mut transports = Map::new();
    if rng.percent(96) {
        transports.insert("docker".into(), scopes.into());
    }
    if rng.percent(20) {
        transports.insert("oci".into(), json!({ "": maker.requirements(rng, true) }));
    }
    if rng.percent(96) {
        policy.insert("transports".into(), transports.into());
    }
    let text = Value::from(policy).to_string();
    if rng.percent(6) { spoil(rng, &text) } else { text }
}

const ANYTHING: &str = "insecureAcceptAnything";

struct Maker<'w> {
    world: &'w World,
    image: &'w Image,
    name: &'w str,
}

impl Maker<'_> {
    fn own_scopes(&self) -> Vec<String> {
        let repository = &self.image.repository;
        let parents = repository.match_indices('/').map(|(at, _)| repository[..at].to_owned());
        parents.chain([self.name, repository, "", "*.0.0.1", "*.1"].map(ToOwned::to_owned)).collect()
    }

    /// Some that look as if they were its own.
    fn other_scopes(&self) -> Vec<String> {
        let (address, repository) = (&self.world.registry.address, &self.image.repository);
        let near = [format!("{address}/other"), format!("{repository}x"), format!("{repository}:2")];
        near.into_iter().chain(["127.0.0.1", "*.127.0.0.1", "docker.io", "*.example"].map(ToOwned::to_owned)).collect()
    }

    fn requirements(&self, rng: &mut Rng, sigstore: bool) -> Value {
        let count = *rng.pick(&[1, 1, 1, 1, 1, 1, 1, 2, 2, 3]);
        (0..count).map(|_| self.requirement(rng, sigstore)).collect()
    }

    fn requirement(&self, rng: &mut Rng, sigstore: bool) -> Value {
        match rng.within(0..20) {
            0..7 => json!({ "type": ANYTHING }),
            7 => json!({ "type": "reject" }),
            8..11 if sigstore => {
                let key = *rng.pick(&["p256.pem", "p256-other.pem", "maker.gpg", "missing.pem"]);
                self.sigstore_signed(rng, key)
            }
            // One that the image may well meet.
            8..19 => self.signed_by(rng, if self.image.what == "other" { "other.gpg" } else { "maker.gpg" }),
            _ => {
                let key = *rng.pick(&["maker.gpg", "other.gpg", "expired.gpg", "p256.pem", "missing.gpg"]);
                self.signed_by(rng, key)
            }
        }
    }

    fn signed_by(&self, rng: &mut Rng, key: &str) -> Value {
        let mut requirement = self.requirement_with(rng, "signedBy", key);
        requirement["keyType"] = if rng.percent(96) { "GPGKeys".into() } else { "X509Certificates".into() };
        if rng.percent(30) {
            requirement["signedIdentity"] = self.identity(rng);
        }
        requirement
    }

    fn sigstore_signed(&self, rng: &mut Rng, key: &str) -> Value {
        let mut requirement = self.requirement_with(rng, "sigstoreSigned", key);
        if rng.percent(50) {
            requirement["signedIdentity"] = json!({ "type": "matchRepository" });
        } else if rng.percent(80) {
            requirement["signedIdentity"] = self.identity(rng);
        }
        requirement
    }

    fn requirement_with(&self, rng: &mut Rng, kind: &str, key: &str) -> Value {
        let path = self.world.path(key).display().to_string();
        match self.world.keys.get(&path) {
            Some(bytes) if rng.percent(30) => json!({ "type": kind, "keyData": BASE64_STANDARD.encode(bytes) }),
            _ => json!({ "type": kind, "keyPath": path }),
        }
    }

    fn identity(&self, rng: &mut Rng) -> Value {
        let (address, repository) = (&self.world.registry.address, &self.image.repository);
        let tag = self.image.name_with_tag();
        let other = format!("{address}/b/c");
        match rng.within(0..9) {
            0 => json!({ "type": "matchExact" }),
            1 => json!({ "type": "matchRepoDigestOrExact" }),
            2 | 3 => json!({ "type": "matchRepository" }),
            4 => json!({ "type": "exactReference", "dockerReference": rng.pick(&[tag, format!("{other}:1")]) }),
            5 => json!({ "type": "exactRepository", "dockerRepository": rng.pick(&[repository, &other]) }),
            6 => json!({ "type": "remapIdentity", "prefix": repository, "signedPrefix": other }),
            7 => json!({ "type": "remapIdentity", "prefix": "registry.example", "signedPrefix": other }),
            _ => json!({ "type": "remapIdentity", "prefix": address, "signedPrefix": rng.pick(&[address, &other]) }),
        }
    }
}

/// Makes it something that is no policy.
fn spoil(rng: &mut Rng, text: &str) -> String {
    let end = text.len() - 1;
    match rng.within(0..8) {
        0 => format!("{},\"more\":1}}", &text[..end]),
        1 => format!("{},\"default\":[{{\"type\":\"reject\"}}]}}", &text[..end]),
        2 => text.replacen("\"default\":[", "\"default\":[[],", 1),
        3 => text.replacen("\"default\"", "\"Default\"", 1),
        4 => format!("{text}x"),
        5 => text.replacen("\"type\":\"", "\"type\":\"x", 1),
        6 => text[..end].to_owned(),
        _ => text.replacen("\"type\"", "\"more\":[],\"type\"", 1),
    }
}
