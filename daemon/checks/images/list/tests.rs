//! Lists as the tools write them, and as they should not be.

use super::*;

const LIST: &str = r#"[{"id":"0f1e","digest":"sha256:aa","names":["a.b/c:1","a.b/c:2"],"names-history":["x"],"layer":"77",
"metadata":"{\"signature-sizes\":[566,5],\"signatures-sizes\":{\"sha256:bb\":[7]}}","big-data-names":["manifest","signatures"],
"big-data-sizes":{"manifest":5},"big-data-digests":{"manifest":"sha256:aa"},"created":"2026-11-20T10:00:00.5Z","flags":{"x":[1]}},
{"id":"0f2e","names":null,"layer":""}]"#;

#[test]
fn a_list_is_read() {
    let images = parse(LIST.as_bytes()).expect("a list");
    let [first, second] = &images[..] else { panic!("{images:?}") };
    assert_eq!((first.id.as_str(), first.digest.as_deref()), ("0f1e", Some("sha256:aa")));
    assert_eq!(first.names, ["a.b/c:1", "a.b/c:2"]);
    assert_eq!(first.former_names, ["x"]);
    assert_eq!((first.layer.as_deref(), first.created.as_deref()), (Some("77"), Some("2026-11-20T10:00:00.5Z")));
    assert_eq!(first.blobs, ["manifest", "signatures"]);
    assert_eq!(first.blob_digests["manifest"], "sha256:aa");
    let sizes = first.signatures.as_ref().expect("sizes");
    assert_eq!((&sizes.own, &sizes.instances["sha256:bb"]), (&vec![566, 5], &vec![7]));
    assert_eq!(second.signatures, Ok(SignatureSizes::default()));
    for empty in ["[]", "null", " [ ] "] {
        assert_eq!(parse(empty.as_bytes()).expect(empty), [], "{empty}");
    }
    let strange = parse(b"[{\"id\":\"a\",\"names\":[\"\xff\\ud800\"]}]").expect("a list");
    assert_eq!(strange[0].names, ["\u{fffd}\u{fffd}"]);
}

#[test]
fn wrong_metadata_is_that_of_one_image_only() {
    for (metadata, wrong) in [
        ("", false),
        ("{}", false),
        (r#"{\"signature-sizes\":null,\"x\":1}"#, false),
        ("x", true),
        (r#"{\"signature-sizes\":[-1]}"#, true),
        (r#"{\"signature-sizes\":[1.5]}"#, true),
    ] {
        let images =
            parse(format!(r#"[{{"id":"a","metadata":"{metadata}"}},{{"id":"b"}}]"#).as_bytes()).expect("a list");
        assert_eq!((images.len(), images[0].signatures.is_err()), (2, wrong), "{metadata}");
    }
}

#[test]
fn what_is_no_list_is_refused_with_its_line() {
    let images = |count: usize| format!("[{}]", vec![r#"{"id":"a"}"#; count].join(","));
    let names = |count: usize| format!(r#"[{{"id":"a","names":[{}]}}]"#, vec![r#""a""#; count].join(","));
    let many = names(MAX_NAMES);
    let many = format!("[{}]", vec![&many[1..many.len() - 1]; 1000].join(","));
    for (list, line, why) in [
        ("", 1, "EOF"),
        ("{}", 1, "a list of images"),
        ("[\n{\"id\":\"a\"},\n{}]", 3, "missing field `id`"),
        ("[\n\n{\"id\":\"../b\"}]", 3, "`../b` is no id"),
        ("[{\"id\":\"\"}]", 1, "no id"),
        ("[{\"id\":\"..\"}]", 1, "no id"),
        ("[{\"id\":\"a/b\"}]", 1, "no id"),
        ("[{\"id\":\"a\",\"names\":[1]}]", 1, "a string"),
        ("[{\"id\":\"a\"}] x", 1, "trailing"),
        (&images(MAX_IMAGES + 1), 1, "more than 10000 images"),
        (&names(MAX_NAMES + 1), 1, "more than 256 names"),
        (&many, 1, "more than 200000 names"),
        (&"[".repeat(100_000), 1, ""),
    ] {
        let error = parse(list.as_bytes()).expect_err(why);
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(error.to_string().contains(&format!("line {line} ")), "{why}: {error}");
    }
    assert_eq!(parse(images(MAX_IMAGES).as_bytes()).expect("just").len(), MAX_IMAGES);
    let quoting = parse(format!(r#"[{{"id":"a","layer":1,"names":"{}"}}]"#, "x".repeat(10_000)).as_bytes());
    assert!(quoting.expect_err("a text").to_string().len() <= 500);
    let long = parse(&vec![b' '; MAX_BYTES + 1]).expect_err("long");
    assert_eq!(long.to_string(), "longer than 16 MiB");
}

#[test]
fn blobs_lie_where_the_tools_put_them() {
    for (blob, file) in [
        ("manifest", "manifest"),
        ("manifest-sha256:00", "=bWFuaWZlc3Qtc2hhMjU2OjAw"),
        ("signature-00", "=c2lnbmF0dXJlLTAw"),
        ("..", "=Li4="),
        ("a/", "=YS8="),
        ("", "="),
    ] {
        assert_eq!(file_name(blob), file, "{blob}");
    }
}
