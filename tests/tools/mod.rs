//! Our decisions beside those of a real skopeo, for policies and images that nobody tuned to them: a registry on loopback
//! has signed and unsigned images, skopeo pulls each by a generated policy, and podsecd judges what skopeo has stored of it
//! by the same policy.
//!
//! `PODSECD_TOOLS_SEED` repeats a set of policies, `PODSECD_TOOLS_CASES` says how many there are (300).

mod images;
mod policies;
mod registry;
#[path = "../torture/rng.rs"]
mod rng;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use self::images::{Image, World};
use self::rng::Rng;
use crate::support::{Tree, podsecctl, stdout};

/// What becomes of an image by a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Decision {
    /// It may be run, whoever made it.
    Anything,
    /// It may be run, since it is signed.
    Signed,
    /// It may not.
    Refused,
    /// The policy is none.
    Invalid,
}

/// A policy, and the image that is judged by it under one of its names.
struct Case<'w> {
    image: &'w Image,
    name: String,
    policy: String,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) by {}", self.name, self.image.what, self.policy)
    }
}

const TOOLS: [&str; 4] = ["skopeo", "docker-registry", "gpg", "openssl"];

#[test]
fn our_decisions_are_those_of_skopeo() {
    let is_there = |tool: &&&str| Command::new(tool).arg("--version").output().is_ok();
    if let Some(missing) = TOOLS.iter().find(|tool| !is_there(tool)) {
        eprintln!("skipped: {missing} is not installed");
        return;
    }
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let seed = number("PODSECD_TOOLS_SEED").unwrap_or_else(clock);
    eprintln!("PODSECD_TOOLS_SEED={seed}");
    let world = World::new();
    let mut rng = Rng::new(seed);
    let cases: Vec<_> = (0..number("PODSECD_TOOLS_CASES").unwrap_or(300)).map(|_| case(&world, &mut rng)).collect();
    let theirs: Vec<_> = cases.iter().map(|case| decide_with_skopeo(&world, case)).collect();
    let ours = decide(&world, &cases);
    let mut counts = BTreeMap::<_, usize>::new();
    for ((case, theirs), ours) in cases.iter().zip(&theirs).zip(&ours) {
        // Why it lets an image in, skopeo does not say.
        let (lets_in, why) = (matches!(ours, Decision::Anything | Decision::Signed), &theirs.1);
        assert_eq!(lets_in, theirs.0 == Decision::Signed, "seed {seed}: {case}\nours: {ours:?}; skopeo: {why}");
        assert_eq!(*ours == Decision::Invalid, theirs.0 == Decision::Invalid, "seed {seed}: {case}; skopeo: {why}");
        *counts.entry(*ours).or_default() += 1;
    }
    eprintln!("{counts:?}");
    for decision in [Decision::Anything, Decision::Signed, Decision::Refused] {
        assert!(counts[&decision] * 5 >= cases.len(), "{decision:?} is less than a fifth: {counts:?}, seed {seed}");
    }
}

fn case<'w>(world: &'w World, rng: &mut Rng) -> Case<'w> {
    // Else most would be refused.
    let is_well_signed = |image: &&Image| matches!(image.what, "maker" | "deep-maker" | "both" | "other");
    let well_signed: Vec<_> = world.images.iter().filter(is_well_signed).collect();
    let image = if rng.percent(75) { rng.pick(&well_signed) } else { rng.pick(&world.images) };
    let name = if rng.percent(25) { image.name_with_digest() } else { image.name_with_tag() };
    Case { image, policy: policies::generate(rng, world, image, &name), name }
}

/// What skopeo decides when it pulls, and what it says. Why it lets an image in is not known: it is called signed.
fn decide_with_skopeo(world: &World, case: &Case<'_>) -> (Decision, String) {
    let policy = world.path("policy.json");
    fs::write(&policy, &case.policy).expect("written");
    let output = world.skopeo(&policy, &["--src-tls-verify=false", &format!("docker://{}", case.name), "dir:pulled"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let decision = match () {
        () if output.status.success() => Decision::Signed,
        () if said.contains("Source image rejected: ") => Decision::Refused,
        () if said.contains("invalid policy in ") => Decision::Invalid,
        () => panic!("{case}: skopeo did not decide: {said}"),
    };
    (decision, said)
}

/// What podsecd decides. Each case is a user of one tree, whose own policy it is, and who has nothing but that image.
fn decide(world: &World, cases: &[Case<'_>]) -> Vec<Decision> {
    let tree = Tree::new(&[]);
    let mut passwd = "root:x:0:0::/root:/bin/sh\n".to_owned();
    for (number, case) in cases.iter().enumerate() {
        passwd += &format!("case{number}:x:{}:500::/home/case{number}:/bin/sh\n", 100_000 + number);
        let home = tree.path(&format!("home/case{number}"));
        write(&home.join(".config/containers/policy.json"), case.policy.as_bytes());
        world.copy_stored(&case.image.id, &case.name, &home.join(".local/share/containers/storage"));
    }
    write(&tree.path("etc/passwd"), passwd.as_bytes());
    write(&tree.path("etc/group"), b"podman:x:500:\n");
    for (name, bytes) in &world.keys {
        write(&tree.path(name.strip_prefix('/').expect("absolute")), bytes);
    }
    let unsigned = users_with(&tree, "images", "has images that are not signed");
    let unverifiable = users_with(&tree, "images", "has images whose signatures cannot be judged");
    let decide = |(number, case): (usize, &Case<'_>)| {
        let user = format!("case{number}");
        let explained =
            podsecctl(&["policy", "explain", &case.name, "--user", &user, "--root", &tree.root(), "--json"]);
        if !explained.status.success() {
            let said = String::from_utf8_lossy(&explained.stderr);
            assert!(said.contains("so every pull fails"), "{case}: {said}");
            return Decision::Invalid;
        }
        let explained: Value = serde_json::from_str(&stdout(&explained)).expect("JSON");
        match explained["verdict"].as_str().expect("a verdict") {
            "anything" => Decision::Anything,
            "never" => Decision::Refused,
            _ if unsigned.contains(&user) => Decision::Refused,
            _ => {
                assert!(!unverifiable.contains(&user), "{case}: it is said that this cannot be judged");
                Decision::Signed
            }
        }
    };
    cases.iter().enumerate().map(decide).collect()
}

/// The users of whom a check says so.
fn users_with(tree: &Tree, check: &str, what: &str) -> Vec<String> {
    let said = stdout(&podsecctl(&["check", check, "--root", &tree.root(), "-v"]));
    let users = said.lines().filter(|line| line.contains(what));
    users.filter_map(|line| line.split_whitespace().next()).map(ToOwned::to_owned).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("has one")).expect("made");
    fs::write(path, bytes).expect("written");
}
