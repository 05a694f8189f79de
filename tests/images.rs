//! Check `images` as a whole: real signatures in real stores, judged on a tree of its own.

use std::fs;

use crate::support::{Tree, podsecctl, stdout, wait_until};

const NAME: &str = "registry.local:5000/k8s/pause:3.9";
const DATA: &str = "tests/data/images";

fn write(tree: &Tree, name: &str, bytes: impl AsRef<[u8]>) {
    let path = tree.path(name);
    fs::create_dir_all(path.parent().expect("has one")).expect("made");
    let new = path.with_extension("new");
    fs::write(&new, bytes).expect("written");
    fs::rename(new, path).expect("renamed");
}

fn data(name: &str) -> Vec<u8> {
    fs::read(format!("{DATA}/{name}")).expect("readable")
}

/// A tree with a policy that wants images of registry.local:5000 signed by maker, and a user alice.
fn node() -> Tree {
    let tree = Tree::new(&[]);
    write(&tree, "etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:4242:500::/home/alice:/bin/sh\n");
    write(&tree, "etc/group", "podman:x:500:\npodman_dev:x:501:\n");
    let signed = r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/keys/maker.gpg"}]"#;
    let scopes = format!(r#""registry.local":{signed},"registry.local:5000":{signed}"#);
    let policy = format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scopes}}}}}}}"#);
    write(&tree, "etc/containers/policy.json", policy);
    write(&tree, "keys/maker.gpg", data("maker.gpg"));
    tree
}

/// Puts an image into alice's store; what is not named any more goes.
fn store(tree: &Tree, driver: &str, images: &[(&str, Option<&str>)]) {
    let directory = format!("home/alice/.local/share/containers/storage/{driver}-images");
    let mut list = Vec::new();
    for (at, (name, signature)) in images.iter().enumerate() {
        let id = format!("{:064x}", at + 1);
        write(tree, &format!("{directory}/{id}/manifest"), data("manifest.json"));
        let signature = signature.map(data).unwrap_or_default();
        if !signature.is_empty() {
            write(tree, &format!("{directory}/{id}/signatures"), &signature);
        }
        let sizes = if signature.is_empty() { "[]".to_owned() } else { format!("[{}]", signature.len()) };
        list.push(format!(
            r#"{{"id":"{id}","names":["{name}"],"metadata":"{{\"signature-sizes\":{sizes}}}","big-data-names":["manifest","signatures"]}}"#
        ));
    }
    write(tree, &format!("{directory}/images.json"), format!("[{}]", list.join(",")));
}

/// The findings of `podsecctl check images`, ids only.
fn evaluated(tree: &Tree) -> Vec<String> {
    let output = stdout(&podsecctl(&["check", "images", "--root", &tree.root(), "--json"]));
    let answer: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    findings.iter().filter_map(|finding| Some(finding["id"].as_str()?.to_owned())).collect()
}

#[test]
fn signed_is_what_the_keys_of_the_policy_verify_and_nothing_else() {
    for (name, signature, expected) in [
        (NAME, Some("good.signature"), &[][..]),
        (NAME, None, &["images/unsigned"]),
        (NAME, Some("other-key.signature"), &["images/unsigned"]),
        (NAME, Some("other-digest.signature"), &["images/unsigned"]),
        (NAME, Some("other-identity.signature"), &["images/unsigned"]),
        (NAME, Some("tampered.signature"), &["images/unsigned"]),
        ("registry.example/app:1", Some("good.signature"), &["images/outside-policy"]),
        ("localhost/built:latest", None, &["images/outside-policy"]),
    ] {
        for driver in ["overlay", "vfs"] {
            let tree = node();
            store(&tree, driver, &[(name, signature)]);
            assert_eq!(evaluated(&tree), expected, "{name} with {signature:?} in {driver}");
        }
    }
}

#[test]
fn conditions_follow_policy_keys_and_groups() {
    let tree = node();
    store(&tree, "overlay", &[(NAME, Some("good.signature"))]);
    let _daemon = tree.start();
    let open = || {
        let status = tree.status().unwrap_or_default();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ids = conditions.iter().filter_map(|it| Some(it["id"].as_str()?.strip_prefix("images/")?.to_owned()));
        ids.collect::<Vec<_>>()
    };
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["images"]["metric"] == 0));
    write(&tree, "keys/maker.gpg", data("other.gpg"));
    wait_until("the key is another", || open() == ["unsigned"]);
    write(&tree, "keys/maker.gpg", data("maker.gpg"));
    wait_until("it is the former again", || open().is_empty());
    let policy = fs::read_to_string(tree.path("etc/containers/policy.json")).expect("readable");
    let loose = policy
        .replace(r#""registry.local":"#, r#""registry.example":[{"type":"insecureAcceptAnything"}],"registry.local":"#);
    write(&tree, "etc/containers/policy.json", loose);
    wait_until("a registry needs no signatures", || open() == ["unsupported-registry", "unsupported-registry"]);
    write(&tree, "etc/containers/policy.json", &policy);
    wait_until("it does", || open().is_empty());
    store(&tree, "overlay", &[(NAME, Some("good.signature")), ("registry.example/app:1", None)]);
    wait_until("another image comes", || open() == ["outside-policy"]);
    write(&tree, "etc/group", "podman:x:500:\npodman_dev:x:501:alice\n");
    wait_until("alice makes images", || open().is_empty());
    write(&tree, "home/alice/.local/share/containers/storage/overlay-images/images.json", "[");
    wait_until("the list is broken", || open() == ["list-invalid"]);
}

#[test]
fn what_happens_to_images_is_told_with_user_uid_and_name() {
    let tree = node();
    store(&tree, "overlay", &[(NAME, Some("good.signature"))]);
    let _daemon = tree.start();
    let counted = |id: &str| tree.status().is_some_and(|status| status["counts"][id] == 1);
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["images"]["metric"] == 0));
    store(&tree, "overlay", &[(NAME, Some("good.signature")), ("registry.local:5000/k8s/other:1", None)]);
    wait_until("one came", || counted("images/created"));
    store(&tree, "overlay", &[(NAME, Some("good.signature")), ("registry.local:5000/k8s/other:2", None)]);
    wait_until("it was tagged", || counted("images/tagged") && counted("images/untagged"));
    store(&tree, "overlay", &[(NAME, Some("other-key.signature")), ("registry.local:5000/k8s/other:2", None)]);
    wait_until("one was changed", || counted("images/changed"));
    store(&tree, "overlay", &[(NAME, Some("other-key.signature"))]);
    wait_until("one went", || counted("images/deleted"));
    let output = fs::read_to_string(tree.path("output")).expect("readable");
    assert!(output.contains("alice: image registry.local:5000/k8s/other:1 came in /home/alice/"), "{output}");
}
