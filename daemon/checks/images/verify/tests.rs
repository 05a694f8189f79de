//! Signatures that gpg, skopeo and openssl have made (`tests/data/images/make.sh` tells how), and what becomes of them.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::checks::policy::document::Document;

const NAME: &str = "registry.local:5000/k8s/pause:3.9";

fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Shortly after the keys were made.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn keys() -> KeyFiles {
    let mut keys = KeyFiles::default();
    let names = [
        "maker.gpg",
        "maker.asc",
        "other.gpg",
        "subkey.gpg",
        "subkey-revoked.gpg",
        "revoked.gpg",
        "no-more-signing.gpg",
        "expired.gpg",
        "old.gpg",
        "p256.pem",
        "p256-other.pem",
        "p384.pem",
        "p521.pem",
        "ed25519.pem",
        "rsa.pem",
    ];
    for name in names {
        keys.insert(&format!("/{name}"), Ok(&data(name)));
    }
    keys.insert("/garbage", Ok(b"garbage"));
    keys.insert("/missing", Err("no such file".into()));
    keys
}

fn requirements(list: &str) -> Requirements {
    Document::parse(format!(r#"{{"default":[{list}]}}"#).as_bytes()).expect(list).default
}

fn signed_by(files: &[&str]) -> String {
    let paths: Vec<_> = files.iter().map(|file| format!("/{file}")).collect();
    format!(r#"{{"type":"signedBy","keyType":"GPGKeys","keyPaths":{paths:?}}}"#)
}

fn sigstore_signed(files: &[&str]) -> String {
    let paths: Vec<_> = files.iter().map(|file| format!("/{file}")).collect();
    format!(r#"{{"type":"sigstoreSigned","keyPaths":{paths:?},"signedIdentity":{{"type":"matchRepository"}}}}"#)
}

/// An image and its signatures.
struct Case {
    name: String,
    manifest: Vec<u8>,
    index: Option<Vec<u8>>,
    signatures: Vec<u8>,
    sizes: Vec<u64>,
}

impl Case {
    fn new(signatures: &[Vec<u8>]) -> Case {
        Case {
            name: NAME.into(),
            manifest: data("manifest.json"),
            index: None,
            signatures: signatures.concat(),
            sizes: signatures.iter().map(|signature| signature.len() as u64).collect(),
        }
    }

    fn files(names: &[&str]) -> Case {
        Case::new(&names.iter().map(|name| data(&format!("{name}.signature"))).collect::<Vec<_>>())
    }

    fn verify_at(&self, list: &str, now: SystemTime) -> Outcome {
        let name = Reference::parse(&self.name).expect("a name").image();
        let image = Evidence {
            digest: None,
            name: &name,
            manifest: &self.manifest,
            index: self.index.as_deref(),
            signatures: &self.signatures,
            sizes: &self.sizes,
        };
        verify(&requirements(list), &image, &keys(), now)
    }

    fn verify(&self, list: &str) -> Outcome {
        self.verify_at(list, now())
    }
}

/// What an outcome must be: `""` is signed, `?` before a part of the reason unverifiable, anything else a part of the
/// reason why it is not signed.
#[track_caller]
fn expect(outcome: &Outcome, expected: &str, what: &str) {
    let is = match outcome {
        Outcome::Signed => expected.is_empty(),
        Outcome::Unsigned(why) => !expected.is_empty() && why.contains(expected),
        Outcome::Unverifiable(why) => expected.strip_prefix('?').is_some_and(|expected| why.contains(expected)),
        Outcome::Anything | Outcome::Rejected(_) => false,
    };
    assert!(is, "{what}: {outcome:?}, not {expected:?}");
}

#[test]
fn simple_signatures_count_if_all_about_them_is_good() {
    for (signatures, keys, expected) in [
        (&["good"][..], &["maker.gpg"][..], ""),
        (&["good"], &["maker.asc"], ""),
        (&["good"], &["other.gpg", "maker.gpg"], ""),
        (&["good"], &["garbage", "maker.gpg"], ""),
        (&["good"], &["missing", "maker.gpg"], "/missing: no such file"),
        (&["good"], &["unheard-of"], "/unheard-of was not read"),
        (&["good"], &["garbage"], "/garbage: no OpenPGP"),
        (&["good"], &["p256.pem"], "/p256.pem: no OpenPGP"),
        (&["good"], &["other.gpg"], "a key that does not count"),
        (&["other-key"], &["maker.gpg"], "a key that does not count"),
        (&["other-key"], &["other.gpg"], ""),
        (&["other-key", "good"], &["maker.gpg"], ""),
        (&["good", "other-key"], &["maker.gpg"], ""),
        (
            &["other-digest", "other-identity"],
            &["maker.gpg"],
            "another digest; the signature is for `registry.local:5000/k8s/other:3.9`",
        ),
        (&[], &["maker.gpg"], "no signature"),
        (&["sigstore-p256"], &["maker.gpg"], "no simple signature"),
        (&["subkey"], &["subkey.gpg"], ""),
        (&["subkey-revoked"], &["subkey-revoked.gpg"], "subkey is revoked"),
        (&["revoked"], &["revoked.gpg"], "key is revoked"),
        (&["no-more-signing"], &["no-more-signing.gpg"], "not for signing"),
        (&["expired"], &["expired.gpg"], "key has expired"),
        (&["expired-signature"], &["old.gpg"], "signature has expired"),
        (&["other-identity"], &["maker.gpg"], "is for `registry.local:5000/k8s/other:3.9`"),
        (&["other-tag"], &["maker.gpg"], "is for `registry.local:5000/k8s/pause:3.8`"),
        (&["other-digest"], &["maker.gpg"], "another digest"),
        (&["plain"], &["maker.gpg"], ""),
        (&["zlib"], &["maker.gpg"], ""),
        (&["text"], &["maker.gpg"], ""),
        // As for gpg.
        (&["sha1"], &["maker.gpg"], ""),
        (&["md5"], &["maker.gpg"], "MD5"),
        // The tools tell a manifest's SHA-256 only.
        (&["sha512"], &["maker.gpg"], "another digest"),
        (&["optional-more"], &["maker.gpg"], ""),
        (&["optional-null"], &["maker.gpg"], "optional is no object"),
        (&["optional-fraction"], &["maker.gpg"], "timestamp"),
        (&["tampered"], &["maker.gpg"], "not that of its text"),
        (&["extra-member"], &["maker.gpg"], "critical has an unknown member `more`"),
        // Nothing is said of what nobody has vouched for.
        (&["extra-member"], &["other.gpg"], "a key that does not count"),
        (&["no-json"], &["maker.gpg"], "no JSON"),
        (&["two-in-one"], &["maker.gpg", "other.gpg"], "with one signature"),
        (&["detached"], &["maker.gpg"], "with one signature"),
        (&["unsigned"], &["maker.gpg"], "with one signature"),
        (&["clear"], &["maker.gpg"], "is none"),
        // For the tools, one that cannot be read spoils them all.
        (&["good", "clear"], &["maker.gpg"], "is none"),
    ] {
        let outcome = Case::files(signatures).verify(&signed_by(keys));
        expect(&outcome, expected, &format!("{signatures:?} by {keys:?}"));
    }
}

#[test]
fn keys_and_signatures_expire_when_they_say() {
    let day = 24 * 60 * 60;
    let june = SystemTime::UNIX_EPOCH + Duration::from_secs(1_590_969_600);
    let at = |days: u64| june + Duration::from_secs(days * day + 60);
    let expired = Case::files(&["expired"]);
    expect(&expired.verify_at(&signed_by(&["expired.gpg"]), at(0)), "", "in its time");
    expect(&expired.verify_at(&signed_by(&["expired.gpg"]), at(300)), "key has expired", "afterwards");
    let signature = Case::files(&["expired-signature"]);
    expect(&signature.verify_at(&signed_by(&["old.gpg"]), at(0)), "", "in its time");
    expect(&signature.verify_at(&signed_by(&["old.gpg"]), at(1)), "signature has expired", "afterwards");
    let good = Case::files(&["good"]).verify_at(&signed_by(&["maker.gpg"]), june);
    expect(&good, "newer than the signature", "before the key was made");
}

#[test]
fn sigstore_signatures_count_if_all_about_them_is_good() {
    for (signatures, keys, expected) in [
        (&["sigstore-p256"][..], &["p256.pem"][..], ""),
        (&["sigstore-p384"], &["p384.pem"], ""),
        (&["sigstore-ed25519"], &["ed25519.pem"], ""),
        (&["sigstore-rsa"], &["rsa.pem"], ""),
        (&["sigstore-p521"], &["p521.pem"], "?neither P-256"),
        (&["sigstore-tag"], &["p256.pem"], ""),
        (&["sigstore-p256"], &["p384.pem", "p256.pem"], ""),
        (&["sigstore-other-key", "good", "sigstore-p256"], &["p256.pem"], ""),
        (&["sigstore-p256"], &["p256-other.pem"], "none of the keys that count"),
        (&["sigstore-p256"], &["rsa.pem"], "none of the keys that count"),
        (&["sigstore-p256"], &["p256.pem", "garbage"], "/garbage: no PEM"),
        (&["sigstore-p256"], &["maker.asc"], "/maker.asc: no PEM"),
        (&["sigstore-p256"], &["p256.pem", "missing"], "/missing: no such file"),
        (&["sigstore-other-key"], &["p256.pem"], "none of the keys that count"),
        (&["sigstore-other-identity"], &["p256.pem"], "is for `registry.local:5000/k8s/other`"),
        (&["sigstore-other-digest"], &["p256.pem"], "another digest"),
        (&["sigstore-extra-member"], &["p256.pem"], "unknown member `more`"),
        (&["sigstore-tampered"], &["p256.pem"], "not of its text"),
        (&["sigstore-other-type"], &["p256.pem"], "no sigstore signature"),
        (&["good"], &["p256.pem"], "no sigstore signature"),
    ] {
        let outcome = Case::files(signatures).verify(&sigstore_signed(keys));
        expect(&outcome, expected, &format!("{signatures:?} by {keys:?}"));
    }
}

#[test]
fn what_needs_a_certificate_or_the_log_is_unverifiable_if_it_may_be_good() {
    let log = r#""rekorPublicKeyPath":"/r","signedIdentity":{"type":"matchRepository"}"#;
    let rekor = format!(r#"{{"type":"sigstoreSigned","keyPath":"/p256.pem",{log}}}"#);
    let fulcio = format!(
        r#"{{"type":"sigstoreSigned","fulcio":{{"caPath":"/c","oidcIssuer":"i","subjectEmail":"a@b"}},{log}}}"#
    );
    let pki = r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/c","subjectHostname":"h"},"signedIdentity":{"type":"matchRepository"}}"#;
    let annotated = |name: &str| {
        let stored = String::from_utf8(data(&format!("{name}.signature"))).expect("text");
        let more = r#","dev.sigstore.cosign/bundle":"b","dev.sigstore.cosign/certificate":"c"}}"#;
        Case::new(&[stored.replace("}}", more).into_bytes()])
    };
    for (name, requirement, expected) in [
        ("sigstore-p256", rekor.as_str(), "?rekor"),
        ("sigstore-other-key", &rekor, "none of the keys that count"),
        ("sigstore-other-key", &fulcio, "?Fulcio"),
        ("sigstore-other-identity", &fulcio, "is for"),
        ("sigstore-other-key", pki, "?pki"),
        ("sigstore-other-digest", pki, "another digest"),
    ] {
        expect(&annotated(name).verify(requirement), expected, &format!("{name}: {requirement}"));
    }
    for requirement in [rekor.as_str(), &fulcio, pki] {
        expect(&Case::files(&["sigstore-p256"]).verify(requirement), "has no dev.sigstore.cosign/", requirement);
    }
}

#[test]
fn all_requirements_must_be_met() {
    let anything = r#"{"type":"insecureAcceptAnything"}"#.to_owned();
    let (maker, other, sigstore) =
        (signed_by(&["maker.gpg"]), signed_by(&["other.gpg"]), sigstore_signed(&["p256.pem"]));
    let both = Case::files(&["good", "other-key", "sigstore-p256"]);
    for (list, expected) in [
        (vec![&anything, &maker], ""),
        (vec![&maker, &other, &sigstore], ""),
        (vec![&maker, &other, &sigstore, &signed_by(&["subkey.gpg"])], "a key that does not count"),
    ] {
        let list: Vec<_> = list.into_iter().map(String::as_str).collect();
        expect(&both.verify(&list.join(",")), expected, &format!("{list:?}"));
    }
    assert_eq!(both.verify(&anything), Outcome::Anything);
    let never = |list: &str| matches!(both.verify(list), Outcome::Rejected(_));
    assert!(never(&format!(r#"{maker},{{"type":"reject"}}"#)));
    assert!(never(&maker.replace("GPGKeys", "X509Certificates")));
    // What is not there for sure outweighs what cannot be told.
    let p521 = sigstore_signed(&["p521.pem"]);
    let unknown = Case::files(&["sigstore-p521"]);
    expect(&unknown.verify(&p521), "?", "unknown");
    expect(&unknown.verify(&format!("{p521},{maker}")), "no simple signature", "unknown and unsigned");
}

#[test]
fn a_name_with_a_digest_is_that_of_the_manifest_or_of_a_list_with_it() {
    let digest = |name: &str| digest_of(&data(name));
    let mut case = Case::files(&["good"]);
    let maker = signed_by(&["maker.gpg"]);
    case.name = format!("registry.local:5000/k8s/pause@{}", digest("manifest.json"));
    expect(&case.verify(&maker), "", "by its digest");
    case.name = format!("registry.local:5000/k8s/pause@{}", digest("index.json"));
    expect(&case.verify(&maker), "not the one that the digest", "by that of a list that is not there");
    case.index = Some(data("manifest.json"));
    expect(&case.verify(&maker), "not the one that the digest", "another list");
    case.index = Some(data("index.json"));
    expect(&case.verify(&maker), "", "by that of its list");
    case.manifest.push(b' ');
    expect(&case.verify(&maker), "not the one that the digest", "not in the list");
}

#[test]
fn signatures_that_do_not_fit_are_none() {
    let maker = signed_by(&["maker.gpg"]);
    let length = data("good.signature").len() as u64;
    for (sizes, expected) in [
        (vec![length + 1], "shorter"),
        (vec![length, 1], "shorter"),
        (vec![u64::MAX], "shorter"),
        (vec![length - 1], "longer"),
        (vec![0, length], "is none"),
        (vec![], "no signature"),
        (vec![0; 1000], "more than 128"),
    ] {
        let mut case = Case::files(&["good"]);
        case.sizes.clone_from(&sizes);
        expect(&case.verify(&maker), expected, &format!("{sizes:?}"));
    }
    for (signature, expected) in [
        (&b"\x00sigstore-json"[..], "does not name its format"),
        (b"\x00cosign\n{}", "unknown format"),
        (b"\x00sigstore-json\n{", "malformed"),
        (b"\x00sigstore-json\n{}", "no simple signature"),
        (b"\xa3\x01", "cannot be unpacked"),
        (b"\x90\x01", "OpenPGP message"),
        (b"-----BEGIN PGP MESSAGE-----", "is none"),
    ] {
        expect(&Case::new(&[signature.into()]).verify(&maker), expected, &format!("{signature:?}"));
    }
    let good = [&b"\x00simple-signing\n"[..], &data("good.signature")].concat();
    expect(&Case::new(&[good]).verify(&maker), "", "with the name of its format");
}

#[test]
fn packed_messages_are_unpacked_within_bounds() {
    use std::io::Write;
    let pack = |bytes: &[u8]| {
        let mut packed = flate2::write::DeflateEncoder::new(vec![0xA3, 1], flate2::Compression::best());
        packed.write_all(bytes).expect("in memory");
        packed.finish().expect("in memory")
    };
    let maker = signed_by(&["maker.gpg"]);
    let plain = data("plain.signature");
    expect(&Case::new(&[pack(&plain)]).verify(&maker), "", "packed");
    expect(&Case::new(&[pack(&pack(&plain))]).verify(&maker), "", "packed twice");
    let mut deep = plain.clone();
    (0..100).for_each(|_| deep = pack(&deep));
    expect(&Case::new(&[deep]).verify(&maker), "with one signature", "packed a hundred times");
    expect(&Case::new(&[pack(&vec![0; 4 << 20])]).verify(&maker), "longer than", "a bomb");
    // Markers, which mean nothing.
    let marker = [0xCA, 3, b'P', b'G', b'P'];
    expect(&Case::new(&[pack(&[&marker[..], &plain].concat())]).verify(&maker), "", "a marker");
    expect(&Case::new(&[pack(&marker.repeat(100))]).verify(&maker), "too many packets", "a hundred markers");
}

proptest! {
    #[test]
    fn whatever_becomes_of_a_signature_it_is_for_no_other_manifest(
        name in prop::sample::select(vec!["good", "plain", "subkey", "text", "zlib", "sigstore-p256", "sigstore-rsa"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut case = Case::files(&[name]);
        case.manifest = b"{}".to_vec();
        changes.iter().for_each(|(at, byte)| case.signatures[at.index(case.sizes[0] as usize)] = *byte);
        if let Some(cut) = cut {
            case.signatures.truncate(cut.index(case.signatures.len()));
            case.sizes = vec![case.signatures.len() as u64];
        }
        for list in [signed_by(&["maker.gpg", "subkey.gpg"]), sigstore_signed(&["p256.pem", "rsa.pem"])] {
            prop_assert!(matches!(case.verify(&list), Outcome::Unsigned(_)));
        }
    }
}
