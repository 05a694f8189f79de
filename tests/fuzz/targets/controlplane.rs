//! Any bytes as CRI-O's lists of containers, and as the control groups of a process: nothing panics, and what is told of a
//! container is bounded and names it by its id.

#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::controlplane::containers::{container_of, parse};

fuzz_target!(|bytes: &[u8]| {
    let lists: Vec<_> = bytes.split(|byte| *byte == 0).take(2).map(<[u8]>::to_vec).collect();
    for container in parse(&lists).unwrap_or_default() {
        assert!(container.id.len() == 64 && container.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    if let Some(id) = std::str::from_utf8(bytes).ok().and_then(container_of) {
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
});
