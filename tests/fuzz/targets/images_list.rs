//! Any bytes as an images.json, and as the one after it: both are taken within their bounds or refused; nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::images::known::{Known, What, diff};
use podsecd::checks::images::list::{MAX_IMAGES, MAX_NAMES, file_name, parse};

fuzz_target!(|bytes: &[u8]| {
    // The lists stand before and behind the first NUL.
    let (old, new) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(0));
    let read = |list: &[u8]| {
        let images = parse(list).unwrap_or_default();
        assert!(images.len() <= MAX_IMAGES);
        for image in &images {
            assert!(image.names.len() <= MAX_NAMES);
            assert!(!image.id.starts_with('.') && !image.id.contains('/'), "its directory is in the store");
            assert!(image.blobs.iter().all(|blob| !matches!(&*file_name(blob), "" | "." | "..")));
        }
        images.iter().map(Known::from).collect::<Vec<_>>()
    };
    let (old, new) = (read(old), read(new.strip_prefix(b"\0").unwrap_or(new)));
    assert!(diff(&old, &old).is_empty());
    let count = |from, to, what| diff(from, to).iter().filter(|change| change.what == what).count();
    assert_eq!(count(&old, &new, What::Created), count(&new, &old, What::Deleted));
});
