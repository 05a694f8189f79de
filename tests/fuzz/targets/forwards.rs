//! Any bytes as a forward, as rootlesskit's list of them, and as a table of sockets: nothing panics, and a forward that is read
//! is written as one that reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use podsecd::checks::forwards::api::parse_list;
use podsecd::checks::forwards::forward::{Forward, Transport};
use podsecd::checks::forwards::tables::{Sockets, parse_table};

fuzz_target!(|bytes: &[u8]| {
    let mut forwards: Vec<Forward> = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).into_iter().collect();
    forwards.extend(parse_list(bytes).unwrap_or_default().iter().map(|listed| listed.forward));
    let tables = [Transport::Tcp, Transport::Udp].map(|transport| parse_table(bytes, transport).unwrap_or_default());
    let sockets = Sockets::new(tables.concat());
    for forward in forwards {
        assert_eq!(forward.to_string().parse(), Ok(forward));
        assert!(sockets.in_the_way(&forward.end).count() >= sockets.serving(&forward.end).count());
    }
});
