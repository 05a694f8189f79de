//! Any text as a policy.json, and any name of an image: both are taken or refused; nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::policy::choose::{Verdict, choose, judge};
use podsecd::checks::policy::document::Document;
use podsecd::checks::policy::reference::Reference;

fuzz_target!(|text: &[u8]| {
    // The name stands before the first line break.
    let (name, policy) = text.split_at(text.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let Ok(image) = Reference::parse(&String::from_utf8_lossy(name)).map(Reference::image) else { return };
    assert_eq!(Reference::parse(&image.to_string()), Ok(image.clone()), "what is expanded stays so");
    let Ok(document) = Document::parse(policy) else { return };
    let (_, requirements) = choose(&document, &image);
    assert!(requirements.iter().all(|requirement| !requirement.to_string().is_empty()));
    let rejects = requirements.iter().any(|requirement| requirement.to_string() == "reject");
    assert!(!rejects || matches!(judge(requirements), Verdict::Never(_)));
});
