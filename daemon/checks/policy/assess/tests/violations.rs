//! What violates which line of podsec's table, or of ours.

use std::os::unix::ffi::OsStrExt;

use super::*;

/// A key at the end of more directories than are walked.
const DEEP_KEY: &str = "/home/alice/.config/containers/policy.json: /d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d\
    /d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d";

/// A sentence, what is done to the tree, the conditions that follow, and the metric.
type Violation = (&'static str, fn(&Tree), &'static [(Id, &'static str)], u32);

/// What violates a line of podsec's table or one of ours, what that must lead to and no more, and the metric.
pub(super) const VIOLATIONS: &[Violation] = &[
    (
        "images of a user outside group podman",
        |tree| tree.images("home/strange/.local/share/containers/storage"),
        &[(USER_OUTSIDE_PODMAN, "strange")],
        101,
    ),
    (
        "images of a user outside group podman, where its own storage.conf keeps them",
        |tree| {
            for (user, key) in [("strange", "rootless_storage_path"), ("weird", "imagestore"), ("odd", "graphroot")] {
                let storage = format!("[storage]\n{key} = \"${{HOME}}/{key}\"\n");
                tree.write(&format!("home/{user}/.config/containers/storage.conf"), &storage);
                tree.images(&format!("home/{user}/{key}"));
            }
            let passwd = fs::read_to_string(tree.path("etc/passwd")).expect("readable");
            let more = "weird:x:4246:4245::/home/weird:/bin/sh\nodd:x:4247:4245::/home/odd:/bin/sh\n";
            tree.write("etc/passwd", &(passwd + more));
        },
        &[(USER_OUTSIDE_PODMAN, "odd"), (USER_OUTSIDE_PODMAN, "strange"), (USER_OUTSIDE_PODMAN, "weird")],
        101,
    ),
    (
        "a list of images that is no file of the home may have some",
        |tree| {
            fs::create_dir_all(tree.path("home/strange/.local/share/containers/storage/overlay-images")).expect("made");
            symlink(
                "/srv/images.json",
                tree.path("home/strange/.local/share/containers/storage/overlay-images/images.json"),
            )
            .expect("linked");
        },
        &[(USER_OUTSIDE_PODMAN, "strange")],
        101,
    ),
    (
        "a default that accepts anything",
        |tree| tree.write(&format!("{ALICE}/policy.json"), &policy(ANYTHING, &[("registry.local", SIGNED)])),
        &[(DEFAULT_NOT_REJECT, "alice")],
        102,
    ),
    (
        "a default that asks for signatures is no reject",
        |tree| tree.write(&format!("{ALICE}/policy.json"), &policy(SIGNED, &[("registry.local", SIGNED)])),
        &[(DEFAULT_NOT_REJECT, "alice")],
        102,
    ),
    (
        "a default of several requirements, one of them reject, rejects",
        |tree| {
            let default = r#"[{"type":"insecureAcceptAnything"},{"type":"reject"}]"#;
            tree.write(&format!("{ALICE}/policy.json"), &policy(default, &[("registry.local", SIGNED)]));
        },
        &[],
        0,
    ),
    (
        "registry.local is not among the signed registries",
        |tree| tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &[("registry.example", SIGNED)])),
        &[(REGISTRY_LOCAL_UNSIGNED, "alice")],
        103,
    ),
    (
        "a sigstore signature is one, too",
        |tree| {
            let sigstore = r#"[{"type":"sigstoreSigned","keyPath":"/var/sigstore/keys/imagemaker.pgp","signedIdentity":{"type":"matchRepository"}}]"#;
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &[("registry.local", sigstore)]));
        },
        &[],
        0,
    ),
    (
        "a registry without signatures",
        |tree| {
            let scopes = [("registry.local", SIGNED), ("registry.example", ANYTHING)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        &[(UNSIGNED_REGISTRY, "alice")],
        104,
    ),
    (
        "a registry that is rejected needs no signatures",
        |tree| {
            let scopes = [("registry.local", SIGNED), ("registry.example", REJECT)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        &[],
        0,
    ),
    (
        "another transport",
        |tree| {
            let transports = format!(r#""docker":{{"registry.local":{SIGNED}}},"oci":{{"":{REJECT}}}"#);
            let text = format!(r#"{{"default":{REJECT},"transports":{{{transports}}}}}"#);
            tree.write(&format!("{ALICE}/policy.json"), &text);
        },
        &[(FOREIGN_TRANSPORT, "alice")],
        105,
    ),
    (
        "another signature store",
        |tree| tree.write(&format!("{ALICE}/registries.d/x.yaml"), "default-docker:\n  lookaside: http://evil/\n"),
        &[(FOREIGN_SIGSTORE, "alice")],
        106,
    ),
    (
        "an own registries.d without a store takes the place of the system's",
        |tree| tree.write(&format!("{ALICE}/registries.d/x.yml"), "default-docker:\n  lookaside: http://unread/\n"),
        &[(FOREIGN_SIGSTORE, "alice")],
        106,
    ),
    (
        "a podman user in group wheel",
        |tree| tree.write("etc/group", "podman:x:500:u7s-admin\npodman_dev:x:501:imagemaker\nwheel:x:10:root,bob\n"),
        &[(PODMAN_IN_WHEEL, "bob")],
        101,
    ),
    ("a writable configuration", |tree| tree.mode(ALICE, 0o777), &[(CONFIG_WRITABLE, "alice")], 45),
    (
        "a writable file of the configuration",
        |tree| tree.mode(&format!("{ALICE}/storage.conf"), 0o666),
        &[(CONFIG_WRITABLE, "alice")],
        45,
    ),
    (
        "no storage.conf",
        |tree| {
            fs::remove_file(tree.path(&format!("{ALICE}/storage.conf"))).expect("removed");
            tree.mode(ALICE, 0o777);
        },
        &[(CONFIG_MISSING, "alice")],
        45,
    ),
    (
        "all without storage.conf",
        |tree| {
            for user in ["alice", "bob"] {
                fs::remove_dir_all(tree.path(&format!("home/{user}/.config"))).expect("removed");
            }
        },
        &[(CONFIG_MISSING, "alice"), (CONFIG_MISSING, "bob")],
        90,
    ),
    (
        "a configuration whose parent can be renamed",
        |tree| tree.mode("home/alice", 0o777),
        &[(CONFIG_REPLACEABLE, "alice")],
        0,
    ),
    (
        "the policy of all accepts anything",
        |tree| tree.write("etc/containers/policy.json", &policy(ANYTHING, &[("registry.local", SIGNED)])),
        &[
            (DEFAULT_NOT_REJECT, "alice"),
            (DEFAULT_NOT_REJECT, "bob"),
            (DEFAULT_NOT_REJECT, "root"),
            (DEFAULT_NOT_REJECT, "u7s-admin"),
        ],
        102,
    ),
    (
        "CRI-O has a policy of its own",
        |tree| {
            let crio = "[crio.image]\nsignature_policy = \"/etc/loose.json\"\n";
            tree.write("var/lib/u7s-admin/.config/usernetes/crio/crio.conf", crio);
            tree.write("etc/loose.json", &policy(ANYTHING, &[("registry.local", SIGNED)]));
        },
        &[(DEFAULT_NOT_REJECT, "u7s-admin")],
        102,
    ),
    (
        "a crio.conf of somebody who does not run CRI-O decides nothing",
        |tree| {
            let crio = "[crio.image]\nsignature_policy = \"/etc/loose.json\"\n";
            tree.write("home/alice/.config/usernetes/crio/crio.conf", crio);
            tree.write("etc/loose.json", &policy(ANYTHING, &[]));
        },
        &[],
        0,
    ),
    (
        "a drop-in of crio.conf decides",
        |tree| {
            tree.write("etc/crio/crio.conf.d/99-whatever", "[crio.image]\nsignature_policy = \"/etc/loose.json\"\n");
            tree.write("etc/loose.json", &policy(ANYTHING, &[("registry.local", SIGNED)]));
        },
        &[(DEFAULT_NOT_REJECT, "u7s-admin")],
        102,
    ),
    (
        "a namespace's policy accepts any registry",
        |tree| tree.write("etc/crio/policies/default.json", &policy(REJECT, &[("", ANYTHING)])),
        &[
            (ACCEPTS_ANYTHING, "/etc/crio/policies/default.json"),
            (UNSIGNED_REGISTRY, "u7s-admin: /etc/crio/policies/default.json"),
        ],
        205,
    ),
    (
        "a namespace's policy has a default that is not reject",
        |tree| tree.write("etc/crio/policies/default.json", &format!(r#"{{"default":{ANYTHING}}}"#)),
        &[(DEFAULT_NOT_REJECT, "u7s-admin: /etc/crio/policies/default.json")],
        102,
    ),
    (
        "a namespace's policy that is no regular file",
        |tree| {
            fs::create_dir_all(tree.path("etc/crio/policies/default.json")).expect("made");
        },
        &[(FILE_UNREAD, "/etc/crio/policies/default.json")],
        101,
    ),
    (
        "a policy of somebody who has no images yet",
        |tree| {
            fs::remove_dir_all(tree.path("home/alice/.local")).expect("removed");
            tree.write(&format!("{ALICE}/policy.json"), &policy(ANYTHING, &[("registry.local", SIGNED)]));
        },
        &[(DEFAULT_NOT_REJECT, "alice")],
        102,
    ),
    (
        "files whose names are nothing but an end, or no Unicode",
        |tree| {
            tree.write(&format!("{ALICE}/registries.d/.yaml"), "default-docker:\n  lookaside: http://evil/\n");
            let name = std::ffi::OsStr::from_bytes(b"\xff.conf");
            fs::create_dir_all(tree.path(&format!("{ALICE}/registries.conf.d"))).expect("made");
            fs::write(tree.path(&format!("{ALICE}/registries.conf.d")).join(name), "x").expect("written");
        },
        &[
            (FILE_INVALID, "/home/alice/.config/containers/registries.conf.d/\u{fffd}.conf"),
            (FOREIGN_SIGSTORE, "alice"),
        ],
        156,
    ),
    (
        "a weaker scope under a signed registry",
        |tree| {
            let scopes = [("registry.local", SIGNED), ("registry.local/evil", ANYTHING)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        // podsec reaches registry.local without encryption.
        &[
            (INSECURE_REGISTRY, "alice"),
            (UNSIGNED_REGISTRY, "alice"),
            (WEAKER_SCOPE, "/home/alice/.config/containers/policy.json"),
        ],
        204,
    ),
    (
        "a domain from which anything is accepted",
        |tree| {
            let scopes = [("registry.local", SIGNED), ("*.example", ANYTHING)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        &[(ACCEPTS_ANYTHING, "/home/alice/.config/containers/policy.json"), (UNSIGNED_REGISTRY, "alice")],
        205,
    ),
    (
        "a signature of another name",
        |tree| {
            let identity = r#"{"type":"remapIdentity","prefix":"registry.local","signedPrefix":"quay.io"}"#;
            let remapped = SIGNED.replace("}]", &format!(r#","signedIdentity":{identity}}}]"#));
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &[("registry.local", &remapped)]));
        },
        &[(IDENTITY_LOOSENED, "/home/alice/.config/containers/policy.json")],
        20,
    ),
    (
        "a key that is not there",
        |tree| fs::remove_file(tree.path("var/sigstore/keys/imagemaker.pgp")).expect("removed"),
        &[
            (KEY_MISSING, "/etc/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
            (KEY_MISSING, "/home/imagemaker/.config/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
        ],
        20,
    ),
    (
        "keys that podsecd does not read",
        |tree| {
            let keys = SIGNED.replace("/var/sigstore/keys/imagemaker.pgp", "/tmp/key");
            let deep = SIGNED.replace("/var/sigstore/keys/imagemaker.pgp", &"/d".repeat(70));
            fs::create_dir_all(tree.path(&"d/".repeat(69))).expect("made");
            let scopes = [("registry.local", SIGNED), ("registry.example", &keys), ("quay.io", &deep)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        &[(FILE_UNREAD, DEEP_KEY), (FILE_UNREAD, "/home/alice/.config/containers/policy.json: /tmp/key")],
        101,
    ),
    (
        "a key that has expired",
        |tree| tree.write_bytes("var/sigstore/keys/imagemaker.pgp", EXPIRED),
        &[
            (KEY_EXPIRED, "/etc/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
            (KEY_EXPIRED, "/home/imagemaker/.config/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
        ],
        20,
    ),
    (
        "a key that everybody can change",
        |tree| tree.mode("var/sigstore/keys/imagemaker.pgp", 0o666),
        &[
            (KEY_WRITABLE, "/etc/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
            (KEY_WRITABLE, "/home/imagemaker/.config/containers/policy.json: /var/sigstore/keys/imagemaker.pgp"),
        ],
        101,
    ),
    (
        "an insecure registry whose images are not signed",
        |tree| {
            tree.write(
                &format!("{ALICE}/registries.conf"),
                "[[registry]]\nlocation='registry.example'\ninsecure=true\n",
            );
            let scopes = [("registry.local", SIGNED), ("registry.example/below", ANYTHING)];
            tree.write(&format!("{ALICE}/policy.json"), &policy(REJECT, &scopes));
        },
        &[(INSECURE_REGISTRY, "alice"), (UNSIGNED_REGISTRY, "alice")],
        154,
    ),
    (
        "a mirror that no scope covers",
        |tree| {
            let mirror = "[[registry]]\nlocation='registry.local'\n[[registry.mirror]]\nlocation='mirror.example/x'\n";
            tree.write("etc/containers/registries.conf.d/mirror.conf", mirror);
        },
        &[(MIRROR_OUTSIDE, "imagemaker"), (MIRROR_OUTSIDE, "root"), (MIRROR_OUTSIDE, "u7s-admin")],
        20,
    ),
    (
        "overlapping ranges of user ids",
        |tree| tree.write("etc/subuid", "alice:100000:65536\nbob:150000:65536\n"),
        &[(SUBID_OVERLAP, "/etc/subuid: alice, bob")],
        101,
    ),
    (
        "a policy that is none: every pull fails, and of the rest nothing is known",
        |tree| tree.write(&format!("{ALICE}/policy.json"), "{\"default\":[],}"),
        &[(FILE_INVALID, "/home/alice/.config/containers/policy.json")],
        50,
    ),
    (
        "a key twice in a policy, of which jq sees the last",
        |tree| tree.write(&format!("{ALICE}/policy.json"), &format!(r#"{{"default":{ANYTHING},"default":{REJECT}}}"#)),
        &[(FILE_INVALID, "/home/alice/.config/containers/policy.json")],
        50,
    ),
    (
        "files that are none",
        |tree| {
            for (name, text) in [
                ("registries.conf", "x"),
                ("registries.d/default.yaml", "default-docker: [\n"),
                ("storage.conf", "[storage]\ngraphroot = 1\n"),
            ] {
                tree.write(&format!("{ALICE}/{name}"), text);
            }
        },
        &[
            (FILE_INVALID, "/home/alice/.config/containers/registries.conf"),
            (FILE_INVALID, "/home/alice/.config/containers/registries.d/default.yaml"),
            (FILE_INVALID, "/home/alice/.config/containers/storage.conf"),
        ],
        50,
    ),
    (
        "a home that is no directory, a loop, a FIFO, a link that leaves, a large file",
        |tree| {
            fs::remove_dir_all(tree.path("home/bob")).expect("removed");
            symlink("bob", tree.path("home/bob")).expect("linked");
            symlink("policy.json", tree.path(&format!("{ALICE}/policy.json"))).expect("linked");
            nix::unistd::mkfifo(&tree.path(&format!("{ALICE}/registries.conf")), nix::sys::stat::Mode::S_IRWXU)
                .expect("made");
            symlink("../../../../etc/containers/registries.d", tree.path(&format!("{ALICE}/registries.d")))
                .expect("linked");
            tree.write(&format!("{ALICE}/storage.conf"), &"#".repeat(2 << 20));
        },
        &[
            (CONFIG_MISSING, "bob"),
            (FILE_UNREAD, "/home/alice/.config/containers/registries.conf"),
            (FILE_UNREAD, "/home/alice/.config/containers/registries.d"),
            (FILE_UNREAD, "/home/alice/.config/containers/storage.conf"),
        ],
        101 + 45,
    ),
];
