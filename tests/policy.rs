//! Check `policy` as a whole: podsecd sees what changes on a tree of its own, and podsecctl finds the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{Tree, podsecctl, stdout, wait_until};

const SIGNED: &str = r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/keys/imagemaker.pgp"}]"#;
const ANYTHING: &str = r#"[{"type":"insecureAcceptAnything"}]"#;

/// A tree with a policy and two users of group podman, of whom alice has images.
fn node() -> Tree {
    let tree = Tree::new(&[]);
    write(
        &tree,
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nalice:x:4242:500::/home/alice:/bin/sh\nbob:x:4243:500::/home/bob:/bin/sh\n",
    );
    write(&tree, "etc/group", "podman:x:500:\nwheel:x:10:\n");
    write(&tree, "etc/containers/policy.json", &policy(&format!("\"registry.local\":{SIGNED}")));
    write(
        &tree,
        "etc/containers/registries.d/default.yaml",
        "default-docker:\n  lookaside: http://sigstore.local:81/sigstore/\n",
    );
    fs::create_dir_all(tree.path("keys")).expect("made");
    fs::copy("tests/data/keys/imagemaker.pgp", tree.path("keys/imagemaker.pgp")).expect("copied");
    for user in ["alice", "bob"] {
        write(&tree, &format!("home/{user}/.config/containers/storage.conf"), "");
    }
    write(&tree, "home/alice/.local/share/containers/storage/overlay-images/images.json", "[{\"id\":\"1\"}]");
    tree
}

fn policy(scopes: &str) -> String {
    format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scopes}}}}}}}"#)
}

fn write(tree: &Tree, name: &str, text: &str) -> PathBuf {
    let path = tree.path(name);
    fs::create_dir_all(path.parent().expect("has one")).expect("made");
    fs::write(&path, text).expect("written");
    path
}

/// The open conditions of check policy, `id of subject`, as the daemon's status has them.
fn open(tree: &Tree) -> Vec<String> {
    let status = tree.status().unwrap_or_default();
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let conditions = conditions.iter().map(|condition| {
        format!(
            "{} of {}",
            condition["id"].as_str().unwrap_or_default(),
            condition["subject"].as_str().unwrap_or_default()
        )
    });
    conditions.filter_map(|condition| condition.strip_prefix("policy/").map(ToOwned::to_owned)).collect()
}

/// What podsecctl finds on the same tree, without the daemon.
fn evaluated(tree: &Tree) -> serde_json::Value {
    let output = podsecctl(&["check", "policy", "--root", &tree.root(), "--json"]);
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

/// What happens, and the conditions that hold then.
type Step = (&'static str, fn(&Tree), &'static [&'static str]);

#[test]
fn conditions_are_raised_and_cleared_as_files_change() {
    let tree = node();
    let _daemon = tree.start();
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["policy"]["metric"] == 0));
    let steps: &[Step] = &[
        (
            "the system's policy, replaced by rename",
            |tree| {
                let new = write(tree, "etc/containers/.new", &policy(&format!("\"registry.local\":{ANYTHING}")));
                fs::rename(new, tree.path("etc/containers/policy.json")).expect("renamed");
            },
            &[
                "registry-local-unsigned of alice",
                "registry-local-unsigned of bob",
                "registry-local-unsigned of root",
                "unsigned-registry of alice",
                "unsigned-registry of bob",
                "unsigned-registry of root",
            ],
        ),
        (
            "written in place",
            |tree| {
                write(tree, "etc/containers/policy.json", &policy(&format!("\"registry.local\":{SIGNED}")));
            },
            &[],
        ),
        (
            "an own policy, which is none",
            |tree| {
                write(tree, "home/alice/.config/containers/policy.json", "{");
            },
            &["file-invalid of /home/alice/.config/containers/policy.json"],
        ),
        (
            "it goes",
            |tree| fs::remove_file(tree.path("home/alice/.config/containers/policy.json")).expect("removed"),
            &[],
        ),
        (
            "the configuration becomes writable",
            |tree| chmod(tree, "home/bob/.config/containers", 0o777),
            &["config-writable of bob"],
        ),
        ("and no longer", |tree| chmod(tree, "home/bob/.config/containers", 0o755), &[]),
        (
            "all configuration goes",
            |tree| fs::remove_dir_all(tree.path("home/bob/.config")).expect("removed"),
            &["config-missing of bob"],
        ),
        (
            "and appears again, level by level",
            |tree| {
                for directory in ["home/bob/.config", "home/bob/.config/containers"] {
                    fs::create_dir(tree.path(directory)).expect("made");
                    std::thread::sleep(std::time::Duration::from_millis(300));
                }
                write(tree, "home/bob/.config/containers/storage.conf", "");
            },
            &[],
        ),
        (
            "a directory of registries.d appears",
            |tree| {
                write(tree, "home/alice/.config/containers/registries.d/x.yaml", "default-docker: {}\n");
            },
            &["foreign-sigstore of alice"],
        ),
        (
            "and goes",
            |tree| fs::remove_dir_all(tree.path("home/alice/.config/containers/registries.d")).expect("removed"),
            &[],
        ),
        (
            "a user comes into group wheel",
            |tree| {
                write(tree, "etc/group", "podman:x:500:\nwheel:x:10:bob\n");
            },
            &["podman-in-wheel of bob"],
        ),
        (
            "a user goes, with home",
            |tree| {
                write(tree, "etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:4242:500::/home/alice:/bin/sh\n");
                fs::remove_dir_all(tree.path("home/bob")).expect("removed");
            },
            &[],
        ),
        (
            "a home of somebody whom passwd does not know, with images",
            |tree| {
                let home = tree.path("home/carol");
                fs::create_dir(&home).expect("made");
                if nix::unistd::geteuid().is_root() {
                    std::os::unix::fs::chown(&home, Some(70000), None).expect("given");
                }
                write(tree, "home/carol/.local/share/containers/storage/vfs-images/images.json", "[{\"id\":\"1\"}]");
            },
            if_root(&["user-outside-podman of uid 70000 (/home/carol)"]),
        ),
        ("which goes", |tree| fs::remove_dir_all(tree.path("home/carol")).expect("removed"), &[]),
        (
            "a key goes",
            |tree| fs::rename(tree.path("keys"), tree.path("kept")).expect("renamed"),
            &["key-missing of /etc/containers/policy.json: /keys/imagemaker.pgp"],
        ),
        ("and comes back", |tree| fs::rename(tree.path("kept"), tree.path("keys")).expect("renamed"), &[]),
    ];
    for (what, change, expected) in steps {
        change(&tree);
        let mut found = Vec::new();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::time::Instant::now() < end {
            found = open(&tree);
            if found == *expected {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(found, *expected, "{what}");
        // Whoever looks just now finds the same ids.
        let ids: std::collections::BTreeSet<_> = expected.iter().map(|condition| condition.split(' ').next()).collect();
        assert_eq!(evaluated(&tree)["findings"].as_array().map(Vec::len), Some(ids.len()), "{what}");
    }
    let output = fs::read_to_string(tree.path("output")).expect("output");
    assert!(
        output.contains("policy/changed") && output.contains("registry.local: allowed unsigned, was allowed if signed")
    );
}

fn if_root(conditions: &'static [&'static str]) -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { conditions } else { &[] }
}

fn chmod(tree: &Tree, name: &str, mode: u32) {
    fs::set_permissions(tree.path(name), fs::Permissions::from_mode(mode)).expect("changed");
}

#[test]
fn the_immutable_flag_is_seen_when_it_is_taken_away_and_given_back() {
    let tree = node();
    let own = tree.path("home/bob/.config/containers");
    let chattr = |flag: &str| {
        let chattr = Command::new("chattr").arg("-R").arg(flag).arg(&own).status();
        chattr.is_ok_and(|status| status.success())
    };
    if !nix::unistd::geteuid().is_root() || !chattr("+i") {
        eprintln!("skipped: root on a file system with chattr is needed");
        return;
    }
    let bobs = |path: &PathBuf| std::os::unix::fs::chown(path, Some(4243), Some(500)).expect("given");
    assert!(chattr("-i"));
    bobs(&own);
    bobs(&own.join("storage.conf"));
    assert!(chattr("+i"));
    let _daemon = tree.start();
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["policy"]["metric"] == 0));
    for _ in 0..2 {
        assert!(chattr("-i"));
        wait_until("that is seen", || open(&tree) == ["config-writable of bob"]);
        assert!(chattr("+i"));
        wait_until("that is seen, too", || open(&tree).is_empty());
    }
    assert!(chattr("-i"));
    let (config, home) = (tree.path("home/bob/.config"), tree.path("home/bob"));
    chmod(&tree, "home/bob/.config/containers", 0o555);
    assert!(chattr("+i"));
    bobs(&config);
    bobs(&home);
    wait_until("what it lies in can be renamed", || open(&tree) == ["config-replaceable of bob"]);
    let freeze = |flag: &str| Command::new("chattr").arg(flag).arg(&config).status().expect("runs").success();
    assert!(freeze("+i"));
    wait_until("it cannot any more", || open(&tree).is_empty());
    assert!(freeze("-i") && chattr("-i"));
}

#[test]
fn who_changes_things_all_the_time_hinders_nobody_and_is_seen_in_the_end() {
    let tree = node();
    let _daemon = tree.start();
    wait_until("it has looked", || tree.status().is_some_and(|status| status["checks"]["policy"]["metric"] == 0));
    let policies = [policy(&format!("\"a\":{ANYTHING}")), policy(&format!("\"b\":{ANYTHING}"))];
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for text in policies.iter().cycle().take_while(|_| std::time::Instant::now() < end) {
                write(&tree, "home/alice/.config/containers/policy.json", text);
                write(&tree, "home/alice/.config/containers/registries.conf", "");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            write(&tree, "home/alice/.config/containers/policy.json", "{");
        });
        let bobs = || open(&tree).iter().any(|condition| condition == "config-writable of bob");
        while std::time::Instant::now() < end {
            for (mode, is_open) in [(0o777, true), (0o755, false)] {
                chmod(&tree, "home/bob/.config/containers", mode);
                wait_until("bob is seen", || bobs() == is_open);
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
        }
    });
    wait_until("alice's last word is seen", || {
        open(&tree) == ["file-invalid of /home/alice/.config/containers/policy.json"]
    });
    // Sixty at once, and then one each five seconds: without that it would be a hundred.
    let looks = tree.status().expect("there")["counts"]["policy/changed"].as_u64().expect("a number");
    assert!(looks < 80, "{looks} changes were told");
}

/// A FUSE server, and where it is mounted; both end with it.
struct Server(Child, PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.1).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_home_that_its_owner_mounts_something_over_stays_as_it_was_and_is_told() {
    let tree = node();
    write(&tree, "home/bob/.config/containers/policy.json", &policy(&format!("\"evil\":{ANYTHING}")));
    let _daemon = tree.start();
    let expected = ["registry-local-unsigned of bob", "unsigned-registry of bob"];
    wait_until("it has looked", || open(&tree) == expected);
    let (home, behind) = (tree.path("home/bob"), tree.path("other"));
    fs::create_dir(&behind).expect("made");
    // A FUSE server of bob's answers nobody but bob, not even root.
    let mut bindfs = Command::new("setpriv");
    bindfs.args([
        "--reuid=4243",
        "--clear-groups",
        "--inh-caps=+sys_admin,+dac_override",
        "--ambient-caps=+sys_admin,+dac_override",
        "bindfs",
    ]);
    let Ok(server) = bindfs.args(["-f", "-n", "-o", "nonempty"]).arg(&behind).arg(&home).stdout(Stdio::null()).spawn()
    else {
        eprintln!("skipped: setpriv or bindfs is not installed");
        return;
    };
    let mut server = Server(server, home.clone());
    let is_mounted = || fs::metadata(&home).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    let mut ended = false;
    wait_until("it is mounted", || {
        ended = server.0.try_wait().is_ok_and(|ended| ended.is_some());
        ended || is_mounted()
    });
    if ended {
        eprintln!("skipped: no FUSE here");
        return;
    }
    // Mounts tell nobody; what makes podsecd look is a change of any kind.
    write(&tree, "etc/containers/policy.json", &policy(&format!("\"registry.local\":{SIGNED},\"x\":{SIGNED}")));
    wait_until("that is told", || open(&tree) == ["file-unread of bob", expected[0], expected[1]]);
    drop(server);
    write(&tree, "home/bob/.config/containers/policy.json", &policy(&format!("\"registry.local\":{SIGNED}")));
    write(&tree, "etc/containers/policy.json", &policy(&format!("\"registry.local\":{SIGNED}")));
    wait_until("it can be read again", || open(&tree).is_empty());
}

#[test]
fn a_home_whose_server_has_died_hinders_nobody_and_is_told() {
    let tree = node();
    let (home, behind) = (tree.path("home/bob"), tree.path("behind"));
    fs::rename(&home, &behind).expect("renamed");
    fs::create_dir(&home).expect("made");
    let mount = Command::new("bindfs")
        .args(["-f", "-o", "allow_other,attr_timeout=0,entry_timeout=0"])
        .arg(&behind)
        .arg(&home)
        .spawn();
    let Ok(mut server) = mount else {
        eprintln!("skipped: bindfs is not installed");
        return;
    };
    wait_until("it is mounted", || {
        home.join(".config").exists() || server.try_wait().is_ok_and(|ended| ended.is_some())
    });
    if !home.join(".config").exists() {
        eprintln!("skipped: no FUSE here");
        return;
    }
    let signal = |name: &str| {
        let id = server.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().expect("kill runs").success());
    };
    signal("STOP");
    let daemon = tree.start();
    wait_until("that is told", || open(&tree) == ["home-hanging of bob"]);
    write(&tree, "home/alice/.config/containers/policy.json", "{");
    wait_until("others are looked at", || open(&tree).iter().any(|it| it.starts_with("file-invalid")));
    let output = podsecctl(&["check", "policy", "--root", &tree.root(), "-v"]);
    assert!(stdout(&output).contains("the home of bob does not answer"), "{}", stdout(&output));
    signal("CONT");
    let is_told = || open(&tree).iter().any(|it| it.starts_with("home-hanging"));
    wait_until("it is well again", || !is_told());
    // Whoever was late once is not waited for again, and told all the same.
    signal("STOP");
    write(&tree, "etc/containers/policy.json", &policy(&format!("\"registry.local\":{ANYTHING}")));
    wait_until("others are judged", || open(&tree).iter().any(|it| it == "unsigned-registry of root"));
    wait_until("that is told again", is_told);
    signal("CONT");
    wait_until("it is well once more", || !is_told());
    drop(daemon);
    let _ = Command::new("umount").arg("--lazy").arg(&home).status();
    let _ = server.kill();
    let _ = server.wait();
}
