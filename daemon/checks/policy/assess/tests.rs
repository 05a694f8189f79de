//! Every condition on a tree of files that violates it, and on none that does not.

mod violations;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use self::violations::VIOLATIONS;
use super::*;
use crate::checks::policy::ids::*;
use crate::checks::policy::observe::Observer;
use crate::checks::policy::seen::Former;
use crate::finding::Kind;
use crate::score::{Metrics, OpenConditions, Weights, condition};

const KEY: &[u8] = include_bytes!("../../../../tests/data/keys/imagemaker.pgp");
const EXPIRED: &[u8] = include_bytes!("../../../../tests/data/keys/expired.gpg");

const SIGNED: &str = r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/var/sigstore/keys/imagemaker.pgp"}]"#;
const ANYTHING: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
const REJECT: &str = r#"[{"type":"reject"}]"#;
const ALICE: &str = "home/alice/.config/containers";

/// A tree of files; each change of it is a sentence.
struct Tree(tempfile::TempDir);

impl Tree {
    /// A node as podsec's commands set it up: policy, registries.d, registries.conf, users, crio.conf. Files belong to
    /// whoever runs the test; nobody in passwd has that id but root.
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().expect("a directory"));
        tree.write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nu7s-admin:x:470:470::/var/lib/u7s-admin:/bin/sh\n\
             alice:x:4242:500::/home/alice:/bin/sh\nbob:x:4243:500::/home/bob:/bin/sh\n\
             imagemaker:x:4244:500::/home/imagemaker:/bin/sh\nstrange:x:4245:4245::/home/strange:/bin/sh\n",
        );
        tree.write("etc/group", "podman:x:500:u7s-admin\npodman_dev:x:501:imagemaker\nwheel:x:10:root\nu7s:x:470:\n");
        tree.write("etc/subuid", "alice:100000:65536\nbob:165536:65536\nu7s-admin:231072:65536\n");
        tree.write("etc/containers/policy_2026-11-26", &policy(REJECT, &[("registry.local", SIGNED)]));
        symlink("policy_2026-11-26", tree.path("etc/containers/policy.json")).expect("linked");
        tree.write(
            "etc/containers/registries.d/default.yaml",
            "default-docker:\n  lookaside: http://sigstore.local:81/sigstore/\n  sigstore: http://sigstore.local:81/sigstore/\n",
        );
        tree.write("etc/containers/registries.conf", "[[registry]]\nlocation = \"registry.local\"\ninsecure = true\n");
        tree.write_bytes("var/sigstore/keys/imagemaker.pgp", KEY);
        tree.write(
            "var/lib/u7s-admin/.config/usernetes/crio/crio.conf",
            "[crio]\nroot = \"/var/lib/u7s-admin/.local/share/usernetes/containers/storage\"\n[crio.image]\n\
             signature_policy = \"/etc/containers/policy.json\"\ninsecure_registries = [\"registry.local\"]\n",
        );
        tree.images("var/lib/u7s-admin/.local/share/usernetes/containers/storage");
        for user in ["alice", "bob"] {
            tree.write(&format!("home/{user}/.config/containers/storage.conf"), "[storage]\ndriver = \"overlay\"\n");
            tree.images(&format!("home/{user}/.local/share/containers/storage"));
        }
        tree.write("home/imagemaker/.config/containers/policy.json", &policy(ANYTHING, &[("registry.local", SIGNED)]));
        tree.write(
            "home/imagemaker/.config/containers/registries.d/default.yaml",
            "default-docker:\n  lookaside: http://sigstore.local:81/sigstore/\n  lookaside-staging: file:///var/sigstore\n",
        );
        tree.images("home/imagemaker/.local/share/containers/storage");
        fs::create_dir_all(tree.path("home/strange")).expect("made");
        tree
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        self.write_bytes(name, text.as_bytes());
    }

    fn write_bytes(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().expect("has one")).expect("made");
        fs::write(self.path(name), bytes).expect("written");
    }

    fn images(&self, store: &str) {
        self.write(&format!("{store}/overlay-images/images.json"), "[{\"id\":\"x\"}]");
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).expect("changed");
    }

    fn observe(&self) -> Observation {
        let observer = Observer::new(Some(self.0.path()), Settings::default()).expect("opened");
        let system = observer.system();
        let homes = observer
            .owners(&system.accounts)
            .iter()
            .map(|account| observer.home(account, &system, &Former::default()).expect("readable"))
            .collect();
        Observation { system: Some(Arc::new(system)), homes, ..Observation::default() }
    }

    /// Assesses it once, with what was known before.
    fn assess(&self, assessor: &mut Assessor) -> Vec<Finding<'static>> {
        assessor.assess(self.observe(), SystemTime::now())
    }
}

fn policy(default: &str, scopes: &[(&str, &str)]) -> String {
    let scopes: Vec<_> = scopes.iter().map(|(scope, list)| format!("{scope:?}:{list}")).collect();
    format!(r#"{{"default":{default},"transports":{{"docker":{{{}}}}}}}"#, scopes.join(","))
}

fn conditions(tree: &Tree) -> Conditions {
    let mut assessor = Assessor::new(Settings::default());
    assert_eq!(tree.assess(&mut assessor), [], "nothing changed before the first look");
    assessor.conditions()
}

/// The metric of these conditions.
fn metric(conditions: &Conditions, population: usize) -> u32 {
    let (mut open, now) = (OpenConditions::default(), SystemTime::now());
    for ((id, subject), message) in conditions {
        open.changes(&condition(*id, Kind::Raised, subject, message.clone(), now));
    }
    open.set_population(&SHARED, population);
    Metrics::new(std::time::Duration::from_secs(900)).of("policy", &open, &Weights::shipped(), now)
}

#[test]
fn a_node_as_podsec_sets_it_up_has_metric_0() {
    let found = conditions(&Tree::new());
    assert_eq!(metric(&found, 2), 0, "{found:#?}");
}

#[test]
fn each_violation_leads_to_its_condition_and_to_no_other() {
    for (what, violate, expected, sum) in VIOLATIONS {
        let tree = Tree::new();
        violate(&tree);
        let mut assessor = Assessor::new(Settings::default());
        tree.assess(&mut assessor);
        let found = assessor.conditions();
        let keys: Vec<_> = found.keys().map(|(id, subject)| (*id, subject.as_str())).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(keys, expected, "{what}: {found:#?}");
        assert_eq!(metric(&found, assessor.population()), *sum, "{what}");
    }
}

#[test]
fn every_id_is_reached_by_a_violation() {
    let reached: BTreeSet<_> =
        VIOLATIONS.iter().flat_map(|(_, _, expected, _)| expected.iter()).map(|(id, _)| *id).collect();
    // Other owners and a server that dies need root, and are tried on the node; a change is an event.
    let elsewhere = [KEY_REPLACEABLE, CHANGED, FOREIGN_STORE, HOME_HANGING];
    let missing: Vec<_> = ALL.iter().filter(|id| !reached.contains(id) && !elsewhere.contains(id)).collect();
    assert_eq!(missing, [] as [&Id; 0]);
}

#[test]
fn all_nine_of_podsec_together_are_their_sum() {
    let tree = Tree::new();
    tree.images("home/strange/.local/share/containers/storage");
    let transports = format!(r#""docker":{{"registry.example":{ANYTHING}}},"oci":{{"":{REJECT}}}"#);
    tree.write("etc/containers/policy.json", &format!(r#"{{"default":{ANYTHING},"transports":{{{transports}}}}}"#));
    tree.write("etc/containers/registries.d/default.yaml", "default-docker:\n  lookaside: http://evil/\n");
    tree.write("etc/group", "podman:x:500:u7s-admin\npodman_dev:x:501:imagemaker\nwheel:x:10:root,bob\n");
    tree.mode(ALICE, 0o777);
    fs::remove_file(tree.path("home/bob/.config/containers/storage.conf")).expect("removed");
    let mut assessor = Assessor::new(Settings::default());
    tree.assess(&mut assessor);
    let found = assessor.conditions();
    assert_eq!(assessor.population(), 2);
    assert_eq!(metric(&found, 2), 101 + 102 + 103 + 104 + 105 + 106 + 101 + 45 + 45, "{found:#?}");
}

#[test]
fn a_node_without_container_tools_has_nothing_to_judge() {
    let tree = Tree(tempfile::tempdir().expect("a directory"));
    tree.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:4242:500::/home/alice:/bin/sh\n");
    assert_eq!(conditions(&tree), Conditions::new());
}

#[test]
fn a_change_says_what_it_means_and_for_whom() {
    let tree = Tree::new();
    let mut assessor = Assessor::new(Settings::default());
    tree.assess(&mut assessor);
    let system = "etc/containers/policy.json";
    for (file, text, expected) in [
        (system, policy(REJECT, &[("registry.local", SIGNED)]) + "\n", vec![]),
        (
            system,
            policy(REJECT, &[("registry.local", SIGNED), ("registry.local/evil", ANYTHING)]),
            vec![
                "/etc/containers/policy.json was changed; for alice, bob, root, u7s-admin: registry.local/evil: allowed \
                 unsigned, was allowed if signed",
            ],
        ),
        (
            "home/alice/.config/containers/policy.json",
            policy(REJECT, &[]),
            vec![
                "/home/alice/.config/containers/policy.json holds now, in place of /etc/containers/policy.json; for alice: \
                 registry.local: denied, was allowed if signed; registry.local/evil: denied, was allowed unsigned",
            ],
        ),
        (
            "var/lib/u7s-admin/.config/usernetes/crio/crio.conf",
            "[crio]\nroot = \"/var/lib/u7s-admin/.local/share/usernetes/containers/storage\"\n[crio.image]\n\
             signature_policy = \"/etc/containers/policy.json\"\ninsecure_registries = [\"evil.example\"]\n"
                .to_owned(),
            vec![
                "CRI-O of u7s-admin is told otherwise: evil.example is an insecure registry now; registry.local is no \
                 insecure registry now",
            ],
        ),
        ("var/lib/u7s-admin/.config/usernetes/crio/crio.conf", "x".to_owned(), vec![]),
        (
            "var/lib/u7s-admin/.config/usernetes/crio/crio.conf",
            "[crio.image]\nsignature_policy = \"/etc/containers/policy.json\"\n".to_owned(),
            vec![
                "CRI-O of u7s-admin is told otherwise: root is nothing, was \
                 /var/lib/u7s-admin/.local/share/usernetes/containers/storage; evil.example is no insecure registry now",
            ],
        ),
        (system, "{".to_owned(), vec![]),
        (
            // What was hidden by a file that was none is told as soon as it is one again.
            system,
            policy(REJECT, &[("registry.local", SIGNED)]),
            vec![
                "/etc/containers/policy.json was changed; for bob, root, u7s-admin: registry.local/evil: allowed if signed, \
                 was allowed unsigned",
            ],
        ),
        (
            system,
            policy(REJECT, &[("registry.local", SIGNED), ("registry.local/a:1", REJECT)]),
            vec![
                "/etc/containers/policy.json was changed; for bob, root, u7s-admin: registry.local/a:1: denied, was allowed \
                 if signed",
            ],
        ),
    ] {
        tree.write(file, &text);
        let found = tree.assess(&mut assessor);
        assert_eq!(found.iter().map(|finding| &*finding.message).collect::<Vec<_>>(), expected, "{file}: {text}");
    }
}

#[test]
fn other_keys_in_the_same_file_are_a_change_of_the_policy() {
    let tree = Tree::new();
    let mut assessor = Assessor::new(Settings::default());
    tree.assess(&mut assessor);
    tree.write_bytes("var/sigstore/keys/imagemaker.pgp", include_bytes!("../../../../tests/data/images/maker.gpg"));
    let told = tree.assess(&mut assessor);
    let told: Vec<_> = told.iter().map(|finding| &*finding.message).collect();
    assert_eq!(
        told,
        [
            "/etc/containers/policy.json was changed; for alice, bob, root, u7s-admin: it means the same as before; other \
             keys are in /var/sigstore/keys/imagemaker.pgp",
            "/home/imagemaker/.config/containers/policy.json was changed; for imagemaker: it means the same as before; \
             other keys are in /var/sigstore/keys/imagemaker.pgp",
        ]
    );
}

#[test]
fn what_is_of_a_home_that_has_not_answered_since_the_start_is_not_known() {
    let tree = Tree::new();
    let mut assessor = Assessor::new(Settings::default());
    let mut observation = tree.observe();
    observation.homes.retain(|home| home.account.name != "alice");
    observation.hanging.insert("alice".into());
    assessor.assess(observation, SystemTime::now());
    for (subject, is_unknown) in [
        ("alice", true),
        ("alice: /srv/images", true),
        ("/home/alice/.config/containers/policy.json", true),
        ("alicia", false),
        ("bob", false),
        ("/home/alicia/.config/containers/policy.json", false),
        ("/etc/containers/policy.json", false),
    ] {
        assert_eq!(assessor.is_unknown(subject), is_unknown, "{subject}");
    }
    tree.assess(&mut assessor);
    assert!(!assessor.is_unknown("alice"), "it has answered");
}

/// Whatever happened before, and however it was observed, what holds is what a first look finds. Each case makes a tree of
/// files, so they are few whatever the environment says.
#[test]
fn any_sequence_of_changes_ends_as_one_look() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
    let steps = prop::collection::vec((0..6usize, 0..4usize), 1..12);
    runner.run(&steps, look_after).expect("holds");
}

fn look_after(steps: Vec<(usize, usize)>) -> Result<(), TestCaseError> {
    let tree = Tree::new();
    let mut assessor = Assessor::new(Settings::default());
    tree.assess(&mut assessor);
    let observer = Observer::new(Some(tree.0.path()), Settings::default()).expect("opened");
    for (file, content) in steps {
        let name = [
            "home/alice/.config/containers/policy.json",
            "home/bob/.config/containers/policy.json",
            "home/alice/.config/containers/registries.conf",
            "home/bob/.config/containers/registries.d/x.yaml",
            "etc/containers/policy.json",
            "home/bob/.config/containers/storage.conf",
        ][file];
        let text = [
            String::new(),
            "{".to_owned(),
            policy(ANYTHING, &[("registry.local/x", ANYTHING), ("registry.local", SIGNED)]),
            policy(REJECT, &[]),
        ][content]
            .clone();
        if content == 0 {
            let _ = fs::remove_file(tree.path(name));
        } else {
            tree.write(name, &text);
        }
        // The source looks only at what changed.
        let mut observation = Observation::default();
        let system = observer.system();
        let user = Path::new(name).iter().nth(1).and_then(std::ffi::OsStr::to_str).expect("a name");
        let homes: BTreeMap<_, _> =
            observer.owners(&system.accounts).into_iter().map(|it| (it.name.clone(), it)).collect();
        match homes.get(user) {
            Some(account) => {
                observation.homes.push(observer.home(account, &system, &Former::default()).expect("readable"));
            }
            None => observation.system = Some(Arc::new(system)),
        }
        assessor.assess(observation, SystemTime::now());
        let found = assessor.conditions();
        prop_assert_eq!(&found, &conditions(&tree));
        let weights = Weights::shipped();
        let weigh = |id: Id| {
            let count = found.keys().filter(|(found, _)| *found == id).count() as u32;
            let weight = weights.get(id).weight;
            if SHARED.contains(&id) { weight * count / 2 } else { weight * count.min(1) }
        };
        prop_assert_eq!(metric(&found, 2), ALL.iter().map(|id| weigh(*id)).sum::<u32>());
    }
    Ok(())
}
