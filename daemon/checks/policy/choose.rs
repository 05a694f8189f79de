//! Which requirements of a policy an image must meet: those of the most specific scope that is there, and no others. Pure.

use super::document::{Document, KeyType, Requirement, Requirements};
use super::reference::{Reference, scopes_of};

/// Transport of images that come from a registry.
pub const DOCKER: &str = "docker";

/// Where in a policy the requirements stand that hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this scope of the transport.
    Scope(String),
    /// In the transport's own default, scope `""`.
    Transport,
    /// In `default`.
    Default,
}

/// What becomes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may run, whoever made it.
    Anything,
    /// It may run if it has the signatures that are asked for.
    Signed,
    /// It may not run, and why.
    Never(&'static str),
}

/// The requirements that hold for an image of a registry, and where they stand.
pub fn choose<'d>(policy: &'d Document, image: &Reference) -> (Place, &'d Requirements) {
    find(policy, image.scopes())
}

/// The requirements that hold for whatever lies in a scope: a registry, a part of one, or one image.
pub fn choose_scope<'d>(policy: &'d Document, scope: &str) -> (Place, &'d Requirements) {
    let around = scopes_of(repository(scope)).into_iter().filter(|around| around != scope);
    find(policy, std::iter::once(scope.to_owned()).chain(around))
}

/// The requirements that would hold for what lies in a scope if that scope were not there: those of the scopes around it,
/// and of the transport's own default; `None` if there are none.
pub fn surrounding<'d>(policy: &'d Document, scope: &str) -> Option<&'d Requirements> {
    let scopes = policy.transports.get(DOCKER)?;
    let around = scopes_of(repository(scope)).into_iter().chain([String::new()]).filter(|around| around != scope);
    around.filter(|_| !scope.is_empty()).find_map(|around| scopes.get(&around))
}

/// The scopes whose images need no signature.
pub fn unsigned_scopes(policy: &Document) -> impl Iterator<Item = &str> {
    let scopes = policy.transports.get(DOCKER).into_iter().flatten();
    scopes.filter(|(_, requirements)| judge(requirements) == Verdict::Anything).map(|(scope, _)| scope.as_str())
}

/// A scope without tag and digest.
fn repository(scope: &str) -> &str {
    let name = scope.split_once('@').map_or(scope, |(name, _)| name);
    // A colon behind the last slash is a tag's, one before a port's.
    match name.rfind('/') {
        Some(slash) => name[slash..].find(':').map_or(name, |colon| &name[..slash + colon]),
        None => name,
    }
}

fn find(policy: &Document, looked_up: impl IntoIterator<Item = String>) -> (Place, &Requirements) {
    let Some(scopes) = policy.transports.get(DOCKER) else { return (Place::Default, &policy.default) };
    let found = looked_up.into_iter().find_map(|scope| {
        let requirements = scopes.get(&scope)?;
        Some((Place::Scope(scope), requirements))
    });
    let own_default = || scopes.get("").map(|requirements| (Place::Transport, requirements));
    found.or_else(own_default).unwrap_or((Place::Default, &policy.default))
}

/// What requirements mean: all of them must be met.
pub fn judge(requirements: &Requirements) -> Verdict {
    let mut verdict = Verdict::Anything;
    for requirement in requirements.iter() {
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} => return Verdict::Never("it is rejected"),
            Requirement::SignedBaseLayer { .. } => {
                return Verdict::Never("signedBaseLayer is not implemented, so nothing meets it");
            }
            Requirement::SignedBy(signed) if signed.key_type != KeyType::GPGKeys => {
                return Verdict::Never("of signedBy only the key type GPGKeys is implemented, so nothing meets it");
            }
            Requirement::SignedBy(signed) if signed.keys.is_none() => {
                return Verdict::Never("signedBy names no key, so nothing meets it");
            }
            Requirement::SignedBy(_) | Requirement::SigstoreSigned(_) => verdict = Verdict::Signed,
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(scopes: &[&str]) -> Document {
        let reject = r#"[{"type":"reject"}]"#;
        let scopes: Vec<_> = scopes.iter().map(|scope| format!("{scope:?}:{reject}")).collect();
        let text = format!(r#"{{"default":{reject},"transports":{{"docker":{{{}}}}}}}"#, scopes.join(","));
        Document::parse(text.as_bytes()).expect("valid")
    }

    #[test]
    fn the_most_specific_scope_alone_holds() {
        let image = Reference::parse("registry.local:5000/k8s/pause:3.9").expect("a name");
        let scope = |scope: &str| Place::Scope(scope.to_owned());
        for (scopes, place) in [
            (
                &["registry.local:5000/k8s/pause:3.9", "registry.local:5000/k8s"][..],
                scope("registry.local:5000/k8s/pause:3.9"),
            ),
            (&["registry.local:5000/k8s", "registry.local:5000", ""], scope("registry.local:5000/k8s")),
            (&["registry.local", "*.local"], scope("*.local")),
            (&["registry.local", "registry.local/k8s", "k8s", "registry.local:5000/k8s/pau", ""], Place::Transport),
            (&["registry.local"], Place::Default),
            (&[], Place::Default),
        ] {
            assert_eq!(choose(&policy(scopes), &image).0, place, "{scopes:?}");
        }
        let none = Document::parse(br#"{"default":[{"type":"reject"}]}"#).expect("valid");
        assert_eq!(choose(&none, &image).0, Place::Default);
    }

    #[test]
    fn around_a_scope_are_those_that_it_takes_the_place_of() {
        for (scope, others, found) in [
            ("a.b/c/d", &["a.b/c"][..], true),
            ("a.b/c", &["a.b/c/d", "a.b/x", "b"], false),
            ("a.b:5000/c:1", &["a.b:5000/c"], true),
            ("a.b:5000", &["*.b"], true),
            ("a.b/c@sha256:00", &["a.b/c"], true),
            ("*.b.c", &["*.c"], true),
            ("a.b/c", &[""], true),
            ("", &["a.b"], false),
        ] {
            let scopes: Vec<_> = others.iter().copied().chain([scope]).collect();
            assert_eq!(surrounding(&policy(&scopes), scope).is_some(), found, "{scope} in {others:?}");
        }
    }

    #[test]
    fn all_requirements_must_be_met() {
        let signed = r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#;
        let anything = r#"{"type":"insecureAcceptAnything"}"#;
        let x509 = r#"{"type":"signedBy","keyType":"X509Certificates","keyPath":"/k"}"#;
        let never = |verdict| matches!(verdict, Verdict::Never(_));
        for (requirements, expected) in [
            (vec![anything], Some(Verdict::Anything)),
            (vec![anything, signed], Some(Verdict::Signed)),
            (vec![signed, anything], Some(Verdict::Signed)),
            (vec![anything, r#"{"type":"reject"}"#], None),
            (vec![signed, x509], None),
            (vec![r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}"#], None),
            (vec![r#"{"type":"signedBy","keyType":"GPGKeys","keyData":""}"#], None),
            (vec![signed, r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchExact"}}"#], None),
        ] {
            let text = format!(r#"{{"default":[{}]}}"#, requirements.join(","));
            let verdict = judge(&Document::parse(text.as_bytes()).expect("valid").default);
            assert_eq!(expected.clone().unwrap_or_else(|| verdict.clone()), verdict, "{requirements:?}");
            assert_eq!(expected.is_none(), never(verdict), "{requirements:?}");
        }
    }

    /// How specifically a scope covers a name, if it does: another way to say what containers-policy.json(5) says.
    fn specificity(scope: &str, name: &str) -> Option<(u8, usize)> {
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        let host = repository.split('/').next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        if scope == name {
            return Some((3, 0));
        }
        if repository == scope || repository.starts_with(&format!("{scope}/")) {
            return Some((2, scope.len()));
        }
        let domain = scope.strip_prefix('*')?;
        (domain.starts_with('.') && host.ends_with(domain)).then_some((1, domain.len()))
    }

    proptest! {
        #[test]
        fn the_scope_is_that_of_a_simple_model(
            name in "[ab]\\.[ab]\\.c(:5)?(/[ab]){1,3}:[12]",
            scopes in prop::collection::hash_set("(\\*(\\.[ab]){0,1}\\.c|[ab]\\.[ab]\\.c(:5)?(/[ab]){0,3}(:[12])?)", 0..30),
        ) {
            let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
            let image = Reference::parse(&name).expect("a name");
            let best = scopes.iter().filter_map(|scope| Some((specificity(scope, &name)?, *scope))).max();
            let expected = best.map_or(Place::Default, |(_, scope)| Place::Scope(scope.to_owned()));
            prop_assert_eq!(choose(&policy(&scopes), &image).0, expected);
        }
    }
}
