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

/// An image of a store in JSON, with other members.
fn store_as(tree: &Tree, directory: &str, members: &str) {
    let id = "1".repeat(64);
    write(tree, &format!("{directory}/{id}/manifest"), data("manifest.json"));
    write(tree, &format!("{directory}/{id}/signatures"), data("good.signature"));
    let metadata = format!(r#""metadata":"{{\"signature-sizes\":[{}]}}""#, data("good.signature").len());
    write(tree, &format!("{directory}/images.json"), format!(r#"[{{"id":"{id}",{metadata},{members}}}]"#));
}

const STORE: &str = "home/alice/.local/share/containers/storage/overlay-images";

#[test]
fn an_image_without_a_name_is_judged_by_those_it_had() {
    for (members, expected) in [
        (format!(r#""names":["{NAME}"]"#), &[][..]),
        (format!(r#""names-history":["registry.example/app:1","{NAME}"]"#), &[]),
        (r#""names-history":["registry.local:5000/k8s/other:1"]"#.to_owned(), &["images/unsigned"]),
        (r#""names-history":["registry.example/app:1"]"#.to_owned(), &["images/outside-policy"]),
        (r#""names":[]"#.to_owned(), &["images/outside-policy"]),
    ] {
        let tree = node();
        store_as(&tree, STORE, &members);
        assert_eq!(evaluated(&tree), expected, "{members}");
    }
}

#[test]
fn each_digest_in_a_name_is_that_of_the_manifest_or_of_its_own_list() {
    use base64::Engine;
    use sha2::Digest;
    let digest = |bytes: &[u8]| {
        let hash = sha2::Sha256::digest(bytes);
        format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    // Two lists that have the manifest.
    let lists = [data("index.json"), [data("index.json"), b"\n".to_vec()].concat()];
    let digests = [digest(&data("manifest.json")), digest(&lists[0]), digest(&lists[1])];
    let names = digests.each_ref().map(|digest| format!("\"registry.local:5000/k8s/pause@{digest}\""));
    let tree = node();
    store_as(&tree, STORE, &format!(r#""names":[{}]"#, names.join(",")));
    assert_eq!(evaluated(&tree), ["images/unsigned"], "the lists are not there");
    for (list, digest) in lists.iter().zip(&digests[1..]) {
        let blob = base64::prelude::BASE64_STANDARD.encode(format!("manifest-{digest}"));
        write(&tree, &format!("{STORE}/{}/={blob}", "1".repeat(64)), list);
    }
    assert_eq!(evaluated(&tree), [] as [&str; 0]);
}

#[test]
fn evidence_that_is_missing_or_other_than_listed_is_no_signature() {
    let digest = format!(r#""digest":"sha256:{}""#, "0".repeat(64));
    for (what, file, member) in [
        ("nothing is missing", "", r#""layer":"x""#),
        ("no manifest", "manifest", r#""layer":"x""#),
        ("no signatures", "signatures", r#""layer":"x""#),
        ("another manifest", "", digest.as_str()),
    ] {
        let tree = node();
        store_as(&tree, STORE, &format!(r#""names":["{NAME}"],{member}"#));
        let path = tree.path(&format!("{STORE}/{}/{file}", "1".repeat(64)));
        if !file.is_empty() {
            fs::remove_file(path).expect("removed");
        }
        let expected = if what == "nothing is missing" { &[][..] } else { &["images/unsigned"] };
        assert_eq!(evaluated(&tree), expected, "{what}");
    }
}

#[test]
fn all_stores_that_a_user_may_run_images_from_are_looked_at() {
    let storage = "home/alice/.config/containers/storage.conf";
    for (conf, place, expected) in [
        ("[storage]\ngraphroot = \"/home/alice/x\"\n", "home/alice/x", "images/outside-policy"),
        ("[storage]\nrootless_storage_path = \"$HOME/x\"\n", "home/alice/x", "images/outside-policy"),
        ("[storage]\nimagestore = \"$HOME/x\"\n", "home/alice/x", "images/outside-policy"),
        ("[storage.options]\nadditionalimagestores = [\"/srv/x\"]\n", "srv/x", "images/outside-policy"),
        ("[storage]\ngraphroot = \"$XDG_DATA_HOME/x\"\n", "", "images/store-unread"),
        // The daemon has a /tmp of its own.
        ("[storage]\ngraphroot = \"/tmp/x\"\n", "", "images/store-unread"),
        ("[storage]\ngraphroot = \"$HOME/link\"\n", "", "images/store-unread"),
        ("[storage]\ngraphroot = \"$HOME/link/..\"\n", "", "images/store-unread"),
        ("[storage]\ngraphroot = \"$HOME/round\"\n", "", "images/store-unread"),
        ("[storage]\ngraphroot = \"/srv/link/x\"\n", "", "images/store-unread"),
        ("[storage]\ngraphroot = \"$HOMES/home/alice/x\"\n", "home/alice/x", "images/store-unread"),
        ("[storage]\n\"\\u0047raphroot\" = \"/home/alice/x\"\n", "home/alice/x", "images/outside-policy"),
        ("[storage.options]\nadditionalimagestores = [\"relative\"]\n", "", "images/store-unread"),
        ("", "home/alice/.local/share/containers/storage", "images/outside-policy"),
    ] {
        let tree = node();
        write(&tree, storage, conf);
        fs::create_dir_all(tree.path("srv")).expect("made");
        for (target, link) in [("/tmp", "home/alice/link"), ("round", "home/alice/round"), ("../tmp", "srv/link")] {
            std::os::unix::fs::symlink(target, tree.path(link)).expect("linked");
        }
        if !place.is_empty() {
            store_as(&tree, &format!("{place}/vfs-images"), r#""names":["registry.example/app:1"]"#);
        }
        assert_eq!(evaluated(&tree), [expected], "{conf}");
    }
    for driver in ["btrfs", "zfs"] {
        let tree = node();
        store(&tree, driver, &[("registry.example/app:1", None)]);
        assert_eq!(evaluated(&tree), ["images/outside-policy"], "driver {driver}");
    }
    let tree = node();
    fs::create_dir_all(tree.path(STORE)).expect("made");
    std::os::unix::fs::symlink("/srv/images.json", tree.path(&format!("{STORE}/images.json"))).expect("linked");
    assert_eq!(evaluated(&tree), ["images/store-unread"], "a list that leaves the home");
}

#[test]
fn a_user_does_not_fill_the_log_with_images() {
    let tree = node();
    store(&tree, "overlay", &[]);
    let _daemon = tree.start();
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["images"]["metric"] == 0));
    let names: Vec<_> = (0..300).map(|number| format!("registry.example/app:{number}")).collect();
    let list = names.iter().enumerate().map(|(at, name)| format!(r#"{{"id":"{at}","names":["{name}"]}}"#));
    write(&tree, &format!("{STORE}/images.json"), format!("[{}]", list.collect::<Vec<_>>().join(",")));
    wait_until("that is told once", || tree.status().is_some_and(|it| it["counts"]["images/more-changes"] == 1));
    let status = tree.status().expect("there");
    assert_eq!(status["counts"]["images/created"], 100);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let message = conditions.iter().find(|it| it["id"] == "images/outside-policy").expect("open")["message"].clone();
    assert!(message.as_str().is_some_and(|message| message.ends_with(" and 292 more")), "{message}");
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
fn to_break_a_file_makes_no_image_go_away() {
    let tree = node();
    let conf = "home/alice/.config/containers";
    write(&tree, &format!("{conf}/policy.json"), fs::read(tree.path("etc/containers/policy.json")).expect("readable"));
    write(&tree, &format!("{conf}/storage.conf"), "[storage]\ngraphroot = \"$HOME/x\"\n");
    store_as(&tree, "home/alice/x/overlay-images", r#""names":["registry.local/other:1"]"#);
    let _daemon = tree.start();
    let open = || {
        let conditions = tree.status().unwrap_or_default()["conditions"].as_array().cloned().unwrap_or_default();
        let ids = conditions.iter().filter_map(|it| Some(it["id"].as_str()?.to_owned()));
        ids.filter(|id| id.starts_with("images/") || id == "policy/file-invalid").collect::<Vec<_>>()
    };
    wait_until("it has looked", || open() == ["images/unsigned"]);
    for name in ["policy.json", "storage.conf"] {
        let text = fs::read(tree.path(&format!("{conf}/{name}"))).expect("readable");
        write(&tree, &format!("{conf}/{name}"), "{");
        wait_until("it is broken", || open() == ["images/unsigned", "policy/file-invalid"]);
        write(&tree, &format!("{conf}/{name}"), text);
        wait_until("it is mended", || open() == ["images/unsigned"]);
    }
    let output = fs::read_to_string(tree.path("output")).expect("readable");
    assert!(!output.contains("no longer: alice has images") && !output.contains("images/deleted"), "{output}");
}

#[test]
fn an_image_that_is_being_pulled_is_no_alarm_and_one_that_stays_so_is() {
    assert!((0..3).any(|_| is_pulled_in_time_and_no_alarm()), "each of three pulls took too long");
}

/// What takes five seconds stays so: false, if the machine was too busy to be quicker.
fn is_pulled_in_time_and_no_alarm() -> bool {
    let tree = node();
    store(&tree, "overlay", &[]);
    let _daemon = tree.start();
    let counted = |id: &str| tree.status().is_some_and(|status| status["counts"][id] == 1);
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["images"]["metric"] == 0));
    // The tools write the entry, then blobs, then the sizes of the signatures, then the name.
    let id = "2".repeat(64);
    let list = |members: &str| write(&tree, &format!("{STORE}/images.json"), format!(r#"[{{"id":"{id}"{members}}}]"#));
    let sizes = format!(r#","metadata":"{{\"signature-sizes\":[{}]}}""#, data("good.signature").len());
    let looked_at = || std::thread::sleep(std::time::Duration::from_millis(600));
    let beginning = std::time::Instant::now();
    list("");
    looked_at();
    write(&tree, &format!("{STORE}/{id}/manifest"), data("manifest.json"));
    write(&tree, &format!("{STORE}/{id}/signatures"), data("good.signature"));
    list(&format!(r#","names":["{NAME}"]"#));
    looked_at();
    list(&format!(r#","names":["{NAME}"]{sizes}"#));
    if beginning.elapsed() > std::time::Duration::from_secs(4) {
        return false;
    }
    wait_until("it is finished", || counted("images/created"));
    let metric = || tree.status().expect("there")["checks"]["images"]["metric"].clone();
    let output = || fs::read_to_string(tree.path("output")).expect("readable");
    assert_eq!(metric(), 0);
    assert!(!output().contains("alice has images"), "{}", output());
    assert!(output().contains(&format!("alice: image {NAME} came in /home/alice/")), "{}", output());
    list(&sizes);
    wait_until("one without a name stays", || metric() == 101 && counted("images/untagged"));
    assert!(output().contains("alice has images that no registry of the policy covers: 2222"), "{}", output());
    true
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
