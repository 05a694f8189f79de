//! Images in a registry, signed by the real tools or not, and stored by them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::registry::Registry;

/// An image of the registry.
pub(super) struct Image {
    /// How it is signed.
    pub(super) what: &'static str,
    /// With its registry.
    pub(super) repository: String,
    digest: String,
    /// In the store.
    pub(super) id: String,
}

const TAG: &str = "1";

impl Image {
    pub(super) fn name_with_tag(&self) -> String {
        format!("{}:{TAG}", self.repository)
    }

    pub(super) fn name_with_digest(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }
}

/// Where everything is.
pub(super) struct World {
    directory: tempfile::TempDir,
    pub(super) registry: Registry,
    pub(super) images: Vec<Image>,
    /// Public keys, by their paths.
    pub(super) keys: BTreeMap<String, Vec<u8>>,
}

/// Who signs with OpenPGP, and with sigstore.
const MAKERS: [&str; 3] = ["maker", "other", "expired"];
const SIGSTORE: [&str; 2] = ["p256", "p256-other"];

/// A signature: who makes it, for which image (`None`: this one), under which name.
type Signature = (&'static str, Option<&'static str>, Name);

#[derive(Clone, Copy)]
enum Name {
    Tag,
    OtherTag,
    Digest,
    Repository,
    OtherRepository,
}

/// How the images are signed. What has `deep` in it lies further down.
const IMAGES: &[(&str, &[Signature])] = &[
    ("unsigned", &[]),
    ("deep-unsigned", &[]),
    ("maker", &[("maker", None, Name::Tag)]),
    ("deep-maker", &[("maker", None, Name::Tag)]),
    ("maker-digest", &[("maker", None, Name::Digest)]),
    ("other", &[("other", None, Name::Tag)]),
    ("deep-maker-digest", &[("maker", None, Name::Digest)]),
    ("both", &[("other", None, Name::Tag), ("maker", None, Name::Tag)]),
    ("expired", &[("expired", None, Name::Tag)]),
    ("maker-of-another", &[("maker", Some("unsigned"), Name::Tag)]),
    ("maker-other-tag", &[("maker", None, Name::OtherTag)]),
    ("maker-other-repository", &[("maker", None, Name::OtherRepository)]),
    ("garbage", &[("", None, Name::Tag)]),
    ("sigstore", &[("p256", None, Name::Repository)]),
    ("sigstore-and-maker", &[("p256", None, Name::Repository), ("maker", None, Name::Tag)]),
];

impl World {
    pub(super) fn new() -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let registry = Registry::start(directory.path());
        let mut world = World { directory, registry, images: Vec::new(), keys: BTreeMap::new() };
        world.make_keys();
        world.configure();
        for (what, _) in IMAGES {
            let image = world.make(what);
            world.images.push(image);
        }
        for (number, (_, signatures)) in IMAGES.iter().enumerate() {
            world.sign(number, signatures);
        }
        world.store();
        world
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has skopeo copy an image.
    pub(super) fn skopeo(&self, policy: &Path, arguments: &[&str]) -> Output {
        let mut command = self.command("skopeo");
        command.arg("--policy").arg(policy).arg("--registries.d").arg(self.path("registries.d")).arg("copy");
        command.args(arguments).output().expect("skopeo runs")
    }

    fn copy(&self, arguments: &[&str]) {
        check(self.skopeo(&self.path("anything.json"), arguments));
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(self.directory.path()).env("GNUPGHOME", self.path("gnupg")).stdin(Stdio::null());
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Vec<u8> {
        check(self.command(name).args(arguments).output().expect("it runs"))
    }

    fn gpg(&self, arguments: &[&str]) -> Vec<u8> {
        const QUIETLY: [&str; 7] =
            ["--batch", "--quiet", "--no-tty", "--yes", "--pinentry-mode", "loopback", "--passphrase"];
        self.run("gpg", &[&QUIETLY[..], &[""], arguments].concat())
    }

    /// Makes keys; skopeo and podsecd find the public ones at the same paths, podsecd below its tree.
    fn make_keys(&mut self) {
        fs::create_dir(self.path("gnupg")).expect("made");
        fs::set_permissions(self.path("gnupg"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("changed");
        for maker in MAKERS {
            let times: &[&str] = if maker == "expired" { &["--faked-system-time", "20200101T000000"] } else { &[] };
            let until = if maker == "expired" { "1y" } else { "never" };
            let user = format!("{maker}@example");
            self.gpg(&[times, &["--quick-generate-key", &user, "rsa2048", "sign", until]].concat());
            let key = self.gpg(&["--export", &format!("={user}")]);
            self.add_key(&format!("{maker}.gpg"), key);
        }
        for name in SIGSTORE {
            let private = format!("{name}.key");
            self.run("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &private]);
            let key = self.run("openssl", &["pkey", "-in", &private, "-pubout"]);
            self.add_key(&format!("{name}.pem"), key);
        }
    }

    fn add_key(&mut self, name: &str, key: Vec<u8>) {
        let path = self.path(name);
        fs::write(&path, &key).expect("written");
        self.keys.insert(path.display().to_string(), key);
    }

    /// Where signatures are, for skopeo.
    fn configure(&self) {
        let directory = self.path("registries.d");
        fs::create_dir(&directory).expect("made");
        let text = format!(
            "docker:\n  {}:\n    lookaside: file://{}\n    use-sigstore-attachments: true\n",
            self.registry.address,
            self.path("lookaside").display()
        );
        fs::write(directory.join("loopback.yaml"), text).expect("written");
        fs::write(self.path("anything.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("written");
    }

    /// Makes an image and brings it into the registry.
    fn make(&self, what: &'static str) -> Image {
        let repository =
            format!("{}/{}{what}", self.registry.address, if what.contains("deep") { "a/b/" } else { "a/" });
        let label = json!({ "name": what });
        let rootfs = json!({ "type": "layers", "diff_ids": [] });
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": label }, "rootfs": rootfs });
        let layout = Layout::new(&self.path(what), config.to_string().as_bytes(), &[]);
        self.copy(&["--dest-tls-verify=false", &format!("dir:{what}"), &format!("docker://{repository}:{TAG}")]);
        Image { what, repository, digest: layout.digest, id: layout.config }
    }

    /// Signs an image.
    fn sign(&self, number: usize, signatures: &[Signature]) {
        let image = &self.images[number];
        let (mut simple, mut attached) = (Vec::new(), Vec::new());
        for (who, of, name) in signatures {
            let signed = of.and_then(|what| self.images.iter().find(|image| image.what == what)).unwrap_or(image);
            let name = match name {
                Name::Tag => image.name_with_tag(),
                Name::OtherTag => format!("{}:2", image.repository),
                Name::Digest => image.name_with_digest(),
                Name::Repository => image.repository.clone(),
                Name::OtherRepository => format!("{}/b/c", self.registry.address),
            };
            match *who {
                "" => simple.push(b"\x90garbage".to_vec()),
                who if SIGSTORE.contains(&who) => attached.push(self.sign_for_sigstore(who, &name, &signed.digest)),
                who => simple.push(self.sign_simply(who, &name, signed)),
            }
        }
        let path = image.repository.split_once('/').expect("has one").1;
        for (number, signature) in simple.iter().enumerate() {
            let place = format!("lookaside/{path}@{}/signature-{}", image.digest.replace(':', "="), number + 1);
            super::write(&self.path(&place), signature);
        }
        if !attached.is_empty() {
            Layout::new(&self.path("attached"), b"{}", &attached);
            let tag = image.digest.replace(':', "-");
            let to = format!("docker://{}:{tag}.sig", image.repository);
            self.copy(&["--dest-tls-verify=false", "dir:attached", &to]);
        }
    }

    /// A simple signature. An expired key signs as long as it has not expired; the tools would not do that.
    fn sign_simply(&self, who: &str, name: &str, image: &Image) -> Vec<u8> {
        let user = format!("={who}@example");
        if who == "expired" {
            let payload = json!({ "critical": {
                "type": "atomic container signature",
                "image": { "docker-manifest-digest": image.digest },
                "identity": { "docker-reference": name },
            }, "optional": {} });
            fs::write(self.path("payload"), payload.to_string()).expect("written");
            return self.gpg(&[
                "--faked-system-time",
                "20200601T000000",
                "-u",
                &user,
                "--output",
                "-",
                "--sign",
                "payload",
            ]);
        }
        let listed = String::from_utf8(self.gpg(&["--list-keys", "--with-colons", &user])).expect("text");
        let fingerprint = listed.lines().find_map(|line| line.strip_prefix("fpr:")).expect("a fingerprint");
        let fingerprint = fingerprint.trim_matches(':');
        let manifest = format!("{}/manifest.json", image.what);
        self.run("skopeo", &["standalone-sign", &manifest, name, fingerprint, "--output", "signature"]);
        fs::read(self.path("signature")).expect("readable")
    }

    /// A signature of sigstore as cosign makes it: its text, and the signature of that in base64.
    fn sign_for_sigstore(&self, who: &str, name: &str, digest: &str) -> (Vec<u8>, String) {
        let payload = json!({ "critical": {
            "type": "cosign container image signature",
            "image": { "docker-manifest-digest": digest },
            "identity": { "docker-reference": name },
        }, "optional": null });
        fs::write(self.path("payload"), payload.to_string()).expect("written");
        let signature = self.run("openssl", &["dgst", "-sha256", "-sign", &format!("{who}.key"), "payload"]);
        (payload.to_string().into_bytes(), BASE64_STANDARD.encode(signature))
    }

    /// Has skopeo store all images, under both names of each.
    fn store(&self) {
        let place = format!("[vfs@{}+{}]", self.path("store").display(), self.path("run").display());
        for image in &self.images {
            for name in [image.name_with_tag(), image.name_with_digest()] {
                let to = format!("containers-storage:{place}{name}");
                self.copy(&["--src-tls-verify=false", &format!("docker://{name}"), &to]);
            }
        }
    }

    /// Copies what is stored of one image to another store, under one of its names.
    pub(super) fn copy_stored(&self, id: &str, name: &str, store: &Path) {
        let (from, to) = (self.path("store/vfs-images"), store.join("vfs-images"));
        fs::create_dir_all(to.join(id)).expect("made");
        for blob in fs::read_dir(from.join(id)).expect("listed") {
            let blob = blob.expect("listed");
            fs::copy(blob.path(), to.join(id).join(blob.file_name())).expect("copied");
        }
        let list = fs::read(from.join("images.json")).expect("readable");
        let mut list: Vec<Value> = serde_json::from_slice(&list).expect("JSON");
        list.retain(|image| image["id"] == id);
        let names = list[0]["names"].as_array().expect("names").clone();
        assert!(names.iter().any(|stored| stored == name), "{name} is stored: {names:?}");
        list[0]["names"] = json!([name]);
        fs::write(to.join("images.json"), Value::from(list).to_string()).expect("written");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.command("gpgconf").args(["--kill", "all"]).status();
    }
}

/// An image as a directory (containers-transports(5), `dir:`).
struct Layout {
    /// Of its manifest.
    digest: String,
    /// Of its configuration, in hexadecimal: its id.
    config: String,
}

impl Layout {
    /// Writes one whose layers are signatures of sigstore, if any.
    fn new(directory: &Path, config: &[u8], signatures: &[(Vec<u8>, String)]) -> Layout {
        let _ = fs::remove_dir_all(directory);
        let blob = |bytes: &[u8]| {
            super::write(&directory.join(hash(bytes)), bytes);
            format!("sha256:{}", hash(bytes))
        };
        let layers: Vec<_> = signatures
            .iter()
            .map(|(payload, signature)| {
                json!({
                    "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                    "size": payload.len(),
                    "digest": blob(payload),
                    "annotations": { "dev.cosignproject.cosign/signature": signature },
                })
            })
            .collect();
        let media = "application/vnd.oci.image.config.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": media, "size": config.len(), "digest": blob(config) },
            "layers": layers,
        });
        let manifest = manifest.to_string();
        super::write(&directory.join("manifest.json"), manifest.as_bytes());
        super::write(&directory.join("version"), b"Directory Transport Version: 1.1\n");
        Layout { digest: format!("sha256:{}", hash(manifest.as_bytes())), config: hash(config) }
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The output of a command that must succeed.
fn check(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
