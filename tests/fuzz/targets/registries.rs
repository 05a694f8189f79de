//! Any text as a file of registries.d, registries.conf, storage.conf or crio.conf, and as passwd, group and subuid: it is
//! taken or refused; nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::policy::accounts::{Accounts, overlaps};
use podsecd::checks::policy::crio::Crio;
use podsecd::checks::policy::registries::{Lookaside, registries};
use podsecd::checks::policy::storage::{Storage, expand};

fuzz_target!(|text: &[u8]| {
    // The first byte says as what.
    let Some((kind, text)) = text.split_first() else { return };
    match kind % 5 {
        0 => {
            let mut lookaside = Lookaside::default();
            if lookaside.read(text).is_ok() && (lookaside.default.is_some() || !lookaside.docker.is_empty()) {
                assert!(lookaside.read(text).is_err(), "the same again is refused");
            }
        }
        1 => drop(registries(text)),
        2 => drop(Storage::parse(text)),
        3 => drop(Crio::default().read(text)),
        _ => {
            let accounts = Accounts::parse(text, text);
            for overlap in overlaps(text, &accounts) {
                assert_ne!(overlap.one, overlap.other);
            }
            for account in accounts.iter() {
                assert_eq!(accounts.find(&account.name), Some(account));
                assert!(expand("relative", account).is_none());
            }
        }
    }
});
