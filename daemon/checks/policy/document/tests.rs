//! What the container tools take, and what they refuse.

use super::*;

fn with(requirement: &str) -> Result<Document, String> {
    Document::parse(format!(r#"{{"default":[{requirement}]}}"#).as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn what_the_tools_take_is_taken() {
    for requirement in [
        r#"{"type":"insecureAcceptAnything"}"#,
        r#"{"type":"reject"}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}"#,
        r#"{"type":"signedBy","keyType":"X509Certificates","keyData":"AAEC"}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"matchExact"}}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a/b:1"}}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"exactRepository","dockerRepository":"a/b"}}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"reg.local:5000/a","signedPrefix":"quay.io"}}"#,
        r#"{"type":"signedBaseLayer","baseLayerIdentity":{"type":"matchRepository"}}"#,
        r#"{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchRepository"}}"#,
        r#"{"type":"sigstoreSigned","keyDatas":["AA==","BB=="],"rekorPublicKeyPath":"/r"}"#,
        r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"https://i","subjectEmail":"a@b"},"rekorPublicKeyData":"AA=="}"#,
        r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectHostname":"h"}}"#,
        r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyPath":"","rekorPublicKeyData":null}"#,
        r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/\ud800\ud83d\ude00\\\ude00"}"#,
    ] {
        assert!(with(requirement).is_ok(), "{requirement}: {:?}", with(requirement));
    }
    let scopes = [
        ("dir", "/a/b"),
        ("oci", "/a:b/c"),
        ("docker-daemon", "a"),
        ("containers-storage", "[overlay@/var/lib/containers/storage]a"),
        ("atomic", "what/ever"),
    ];
    for (transport, scope) in scopes {
        let policy = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"{transport}":{{"{scope}":[{{"type":"reject"}}]}}}}}}"#
        );
        assert!(Document::parse(policy.as_bytes()).is_ok(), "{policy}");
    }
    let policy = br#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"reject"}],"a/b":[{"type":"reject"}]},"unheard-of":{}}}"#;
    assert_eq!(Document::parse(policy).expect("valid").transports["docker"].len(), 2);
}

#[test]
fn what_the_tools_refuse_is_refused_with_its_reason() {
    for (requirement, why) in [
        ("", "empty"),
        (r#"{"type":"sometimes"}"#, "unknown variant `sometimes`"),
        (r#"{"type":"reject","keyPath":"/k"}"#, "unknown field `keyPath`"),
        (r#"{"type":"reject","type":"reject"}"#, "`type` comes twice"),
        (r#"{"type":"insecureAcceptAnything","x":1}"#, "unknown field `x`"),
        (r#"{"type":"signedBy","keyPath":"/k"}"#, "missing field `keyType`"),
        (r#"{"type":"signedBy","keyType":"PGP","keyPath":"/k"}"#, "unknown variant `PGP`"),
        (r#"{"type":"signedBy","keyType":"GPGKeys"}"#, "one of keyPath"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":""}"#, "keyPath is empty"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":null}"#, "null"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyPaths":["/l"]}"#, "only one of"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyPath":"/l"}"#, "`keyPath` comes twice"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"!"}"#, "no base64"),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":null}"#,
            "`signedIdentity` is no object",
        ),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"matchExact","x":"y"}}"#,
            "unknown field `x`",
        ),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"a"}}"#,
            "neither tag nor digest",
        ),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a b","signedPrefix":"quay.io"}}"#,
            "no prefix",
        ),
        (r#"{"type":"signedBaseLayer"}"#, "missing field `baseLayerIdentity`"),
        (r#"{"type":"sigstoreSigned"}"#, "one of keyPath"),
        (r#"{"type":"sigstoreSigned","keyPaths":[]}"#, "keyPaths is empty"),
        (
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c","oidcIssuer":"i","subjectEmail":"a@b"}}"#,
            "rekorPublicKey",
        ),
        (r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c"}}"#, "subjectEmail and subjectHostname"),
        (
            r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectHostname":"h"},"rekorPublicKeyPath":"/r"}"#,
            "with pki none",
        ),
    ] {
        let error = with(requirement).expect_err(requirement);
        assert!(error.contains(why), "{requirement}: {error}");
    }
    for (policy, why) in [
        ("", "EOF"),
        ("[]", "a policy is an object"),
        (r#"[[{"type":"insecureAcceptAnything"}]]"#, "a policy is an object"),
        (r#"{"default":[["insecureAcceptAnything"]]}"#, "`a requirement` is no object"),
        (r#"{"default":[{"type":1}]}"#, "`type` is no text"),
        (r#"{"default":[{"type":"signedBy","keyType":{"GPGKeys":null},"keyPath":"/k"}]}"#, "`keyType` is no text"),
        (
            r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":2}}]}"#,
            "`type` is no text",
        ),
        (r#"{"default":[{"type":"reject"}],"transports":{"docker-archive":{"x":[{"type":"reject"}]}}}"#, "no scope"),
        (r#"{"default":[{"type":"reject"}],"transports":{"dir":{"rel":[{"type":"reject"}]}}}"#, "no scope"),
        (r#"{"default":[{"type":"reject"}],"transports":{"oci":{"/a/../b":[{"type":"reject"}]}}}"#, "no scope"),
        (
            r#"{"default":[{"type":"reject"}],"transports":{"containers-storage":{"a":[{"type":"reject"}]}}}"#,
            "no scope",
        ),
        ("{}", "missing field `default`"),
        (r#"{"default":[]}"#, "empty"),
        (r#"{"default":null}"#, "`default` is no list"),
        (r#"{"default":[{"type":"reject"}],"transports":null}"#, "`transports` is no object"),
        (r#"{"default":[{"type":"reject"}],"Default":[{"type":"reject"}]}"#, "unknown field `Default`"),
        (r#"{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}"#, "`default` comes twice"),
        (r#"{"default":[{"type":"reject"}],"transports":{"docker":{},"docker":{}}}"#, "`docker` comes twice"),
        (
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"reject"}]}}}"#,
            "`a` comes twice",
        ),
        (r#"{"default":[{"type":"reject"}]} x"#, "trailing"),
    ] {
        let error = Document::parse(policy.as_bytes()).expect_err(policy).to_string();
        assert!(error.contains(why), "{policy}: {error}");
    }
}

#[test]
fn nesting_without_end_is_refused() {
    assert!(Document::parse("{\"default\":".repeat(100_000).as_bytes()).is_err());
    assert!(Document::parse("[".repeat(100_000).as_bytes()).is_err());
}
