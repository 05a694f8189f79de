//! Any text as a configuration: it is taken, or refused with one message; nothing panics.

#![no_main]

use std::cell::LazyCell;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use podsecd::config::{Root, load};

thread_local! {
    static TREE: LazyCell<PathBuf> = LazyCell::new(|| {
        let tree = std::env::temp_dir().join(format!("podsecd-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(tree.join("etc/podsecd")).expect("made");
        tree
    });
}

fuzz_target!(|text: &[u8]| {
    TREE.with(|tree| {
        // The first byte chooses the file.
        let Some((which, text)) = text.split_first() else { return };
        let name = if which % 4 == 0 { "weights.toml" } else { "podsecd.toml" };
        for name in ["weights.toml", "podsecd.toml"] {
            let _ = std::fs::remove_file(tree.join("etc/podsecd").join(name));
        }
        std::fs::write(tree.join("etc/podsecd").join(name), text).expect("written");
        if let Err(error) = load(None, &Root::new(Some(tree.to_path_buf()))) {
            assert!(!error.to_string().is_empty() && error.file.ends_with(name));
        }
    });
});
