//! The rules of containers-policy.json(5), in tables and against a model.

use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";

fn image(name: &str) -> Reference {
    Reference::parse(name).map(Reference::image).expect("a name")
}

fn remap(prefix: &str, signed_prefix: &str) -> Identity {
    Identity::RemapIdentity { prefix: prefix.into(), signed_prefix: signed_prefix.into() }
}

#[test]
fn identities_are_judged_as_the_tools_do() {
    let exact = Identity::MatchExact {};
    let default = Identity::default();
    let repository = Identity::MatchRepository {};
    let reference = Identity::ExactReference { docker_reference: "a.b/c:1".into() };
    let exact_repository = Identity::ExactRepository { docker_repository: "a.b/c".into() };
    let by_digest = format!("a.b/c@{DIGEST}");
    for (identity, name, signed, expected) in [
        (&exact, "a.b/c:1", "a.b/c:1", true),
        (&exact, "a.b/c:1", "a.b/c:2", false),
        (&exact, "a.b/c:1", "a.b/c", false),
        (&exact, "busybox", "docker.io/library/busybox:latest", true),
        (&exact, "busybox", "busybox:latest", true),
        (&exact, "busybox", "busybox", false),
        (&exact, &by_digest, "a.b/c:1", false),
        (&exact, &by_digest, &by_digest, true),
        (&default, "a.b/c:1", "a.b/c:1", true),
        (&default, "a.b/c:1", "a.b/c:2", false),
        (&default, "a.b/c:1", &by_digest, false),
        (&default, &by_digest, "a.b/c:1", true),
        (&default, &by_digest, "a.b/d:1", false),
        (&default, &by_digest, "a.b/c", false),
        (&repository, "a.b/c:1", "a.b/c", true),
        (&repository, "a.b/c:1", "a.b/c:2", true),
        (&repository, "a.b/c:1", "a.b/c/d:1", false),
        (&repository, "a.b:5000/c:1", "a.b/c:1", false),
        (&reference, "x.y/z:9", "a.b/c:1", true),
        (&reference, "a.b/c:2", "a.b/c:2", false),
        (&exact_repository, "x.y/z:9", "a.b/c:7", true),
        (&exact_repository, "x.y/z:9", "a.b/c", true),
        (&exact_repository, "x.y/z:9", "x.y/z:9", false),
        (&remap("a.b", "q.io/m"), "a.b/c:1", "q.io/m/c:1", true),
        (&remap("a.b", "q.io/m"), "a.b/c:1", "a.b/c:1", false),
        (&remap("a.b", "q.io/m"), "a.bc/c:1", "a.bc/c:1", true),
        (&remap("a.b", "q.io/m"), "a.b:5000/c:1", "a.b:5000/c:1", true),
        (&remap("a.b/c", "q.io/m"), "a.b/c:1", "q.io/m:1", true),
        (&remap("a.b/c", "q.io/m"), &by_digest, "q.io/m:5", true),
        // What comes out is not expanded, and no name as it is.
        (&remap("a.b", "docker.io"), "a.b/c:1", "docker.io/library/c:1", false),
        (&remap("a.b", "host"), "a.b/c:1", "docker.io/host/c:1", false),
        (&repository, "a.b/c:1", "", false),
        (&repository, "a.b/c:1", "A.b/C", false),
    ] {
        assert_eq!(accepts(identity, &image(name), signed), expected, "{identity} {name} {signed}");
    }
}

/// A name by its parts: the model compares those, and knows no text.
#[derive(Clone, Debug, PartialEq)]
struct Name {
    parts: Vec<&'static str>,
    tag: Option<u8>,
    digest: bool,
}

impl Name {
    fn text(&self) -> String {
        let tag = self.tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = if self.digest { format!("@{DIGEST}") } else { String::new() };
        format!("{}{tag}{digest}", self.parts.join("/"))
    }

    fn repository(&self) -> Name {
        Name { parts: self.parts.clone(), tag: None, digest: false }
    }

    fn says_which(&self) -> bool {
        self.tag.is_some() || self.digest
    }
}

#[derive(Clone, Debug)]
enum Rule {
    Exact,
    RepoDigestOrExact,
    Repository,
    ExactReference(Name),
    ExactRepository(Name),
    Remap(Vec<&'static str>, Vec<&'static str>),
}

fn model(rule: &Rule, image: &Name, signed: &Name) -> bool {
    let same = |wanted: &Name| wanted.says_which() && wanted == signed;
    let same_or_digest = |wanted: &Name| match wanted.tag {
        None if wanted.digest => signed.says_which() && signed.parts == wanted.parts,
        _ => same(wanted),
    };
    match rule {
        Rule::Exact => same(image),
        Rule::RepoDigestOrExact => same_or_digest(image),
        Rule::Repository => image.parts == signed.parts,
        Rule::ExactReference(wanted) => same(wanted),
        Rule::ExactRepository(wanted) => wanted.parts == signed.parts,
        Rule::Remap(from, to) => match image.parts.strip_prefix(&from[..]) {
            // A registry alone is no repository.
            Some([]) if to.len() == 1 => false,
            Some(rest) => same_or_digest(&Name { parts: [to, rest].concat(), ..image.clone() }),
            None => same_or_digest(image),
        },
    }
}

fn parts(most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    let host = prop::sample::select(vec!["a.b", "a.b:5", "a.bb"]);
    let path = prop::collection::vec(prop::sample::select(vec!["c", "cc"]), 0..=most);
    (host, path).prop_map(|(host, path)| [vec![host], path].concat())
}

fn name() -> impl Strategy<Value = Name> {
    let named = (parts(2), prop::option::of(1..3u8), prop::bool::weighted(0.3));
    named.prop_filter("a repository", |(parts, ..)| parts.len() > 1).prop_map(|(parts, tag, digest)| Name {
        parts,
        tag,
        digest,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::Exact),
        Just(Rule::RepoDigestOrExact),
        Just(Rule::Repository),
        name().prop_filter("exact", Name::says_which).prop_map(Rule::ExactReference),
        name().prop_map(|name| Rule::ExactRepository(name.repository())),
        (parts(1), parts(1)).prop_map(|(from, to)| Rule::Remap(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn identities_are_judged_as_by_a_simple_model(rule in rule(), image in name(), signed in name(), alike in 0..3) {
        // Names that have nothing in common say little.
        let signed = match alike {
            0 => signed,
            1 => Name { parts: image.parts.clone(), ..signed },
            _ => image.clone(),
        };
        let identity = match &rule {
            Rule::Exact => Identity::MatchExact {},
            Rule::RepoDigestOrExact => Identity::MatchRepoDigestOrExact {},
            Rule::Repository => Identity::MatchRepository {},
            Rule::ExactReference(name) => Identity::ExactReference { docker_reference: name.text() },
            Rule::ExactRepository(name) => Identity::ExactRepository { docker_repository: name.text() },
            Rule::Remap(from, to) => remap(&from.join("/"), &to.join("/")),
        };
        let reference = Reference::parse(&image.text()).expect("a name");
        prop_assert_eq!(accepts(&identity, &reference, &signed.text()), model(&rule, &image, &signed));
    }
}
