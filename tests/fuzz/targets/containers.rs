//! The lists of a store's containers and layers, and what runtimes were told. Whoever keeps a store writes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::containers::records::{is_id, owners};
use podsecd::checks::containers::spec::Spec;
use podsecd::checks::containers::users::Subordinates;

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    if kind % 2 == 0 {
        let parts: Vec<_> = text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let [containers, layers, images] = &parts[..] else { return };
        if let Ok(owners) = owners(&[containers.clone()], &[layers.clone()], &[images.clone()]) {
            assert!(owners.keys().all(|layer| is_id(layer)));
        }
    } else if let Some(spec) = Spec::parse(text) {
        assert!(spec.targets.iter().all(|target| !target.starts_with(b"/") && !target.is_empty()));
        let _ = spec.outer_uid().and_then(|uid| Subordinates::of("alice", 1000, text).host(uid));
    }
});
