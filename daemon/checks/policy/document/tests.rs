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
    ] {
        assert!(with(requirement).is_ok(), "{requirement}: {:?}", with(requirement));
    }
    let policy = br#"{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"reject"}],"a/b":[{"type":"reject"}]},"unheard-of":{}}}"#;
    assert_eq!(Document::parse(policy).expect("valid").transports.0["docker"].0.len(), 2);
}

#[test]
fn what_the_tools_refuse_is_refused_with_its_reason() {
    for (requirement, why) in [
        ("", "empty"),
        (r#"{"type":"sometimes"}"#, "unknown variant `sometimes`"),
        (r#"{"type":"reject","keyPath":"/k"}"#, "unknown field `keyPath`"),
        (r#"{"type":"reject","type":"reject"}"#, "duplicate field `type`"),
        (r#"{"type":"insecureAcceptAnything","x":1}"#, "unknown field `x`"),
        (r#"{"type":"signedBy","keyPath":"/k"}"#, "missing field `keyType`"),
        (r#"{"type":"signedBy","keyType":"PGP","keyPath":"/k"}"#, "unknown variant `PGP`"),
        (r#"{"type":"signedBy","keyType":"GPGKeys"}"#, "one of keyPath"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":""}"#, "keyPath is empty"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":null}"#, "null"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyPaths":["/l"]}"#, "only one of"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyPath":"/l"}"#, "duplicate field `keyPath`"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"!"}"#, "no base64"),
        (r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":null}"#, "null"),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"matchExact","x":1}}"#,
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
    ] {
        let error = with(requirement).expect_err(requirement);
        assert!(error.contains(why), "{requirement}: {error}");
    }
    for (policy, why) in [
        ("", "EOF"),
        ("[]", "invalid"),
        ("{}", "missing field `default`"),
        (r#"{"default":[]}"#, "empty"),
        (r#"{"default":null}"#, "null"),
        (r#"{"default":[{"type":"reject"}],"transports":null}"#, "null"),
        (r#"{"default":[{"type":"reject"}],"Default":[{"type":"reject"}]}"#, "unknown field `Default`"),
        (r#"{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}"#, "duplicate field `default`"),
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
