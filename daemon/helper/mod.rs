//! The way in for podsecd's helpers: processes with other rights, which report what podsecd itself cannot see.
//!
//! A helper connects to [`SOCKET`] and sends lines of JSON of at most [`MAX_LINE`] bytes. The first holds its open
//! conditions, all of them: what it reported before and is not among them is cleared (unless it says with `"all":false` that it
//! does not know yet). Each further line is a [`Report`], or
//! its conditions once more, which also says that it is there.
//! podsecd answers each line with an [`Answer`], when what it said counts as reported: it is on the disk for the mail, and
//! a journal that takes nothing is not waited for. Whoever closes its end is not answered any more.
//!
//! Weight and level are podsecd's to set, and who may report on what it knows from the peer's user id (SO_PEERCRED,
//! unix(7)). A helper that sends too much is read more slowly, and no more than so many of its conditions can be open
//! ([`Helper::conditions`]). While [`MAX_PENDING`] findings wait to be reported, what it says is refused.

mod client;
mod protocol;
mod server;

pub use client::Client;
pub use protocol::{
    Answer, Condition, Helper, MAX_MESSAGE, MAX_PENDING, Opening, Refusal, Report, Reported, What, parse,
};
pub use server::{Delivery, Taken, accept};

/// Where helpers connect.
pub const SOCKET: &str = "/run/podsecd-in/findings.sock";

/// podsecd-mail, which delivers digests.
pub const MAIL: &str = "podsecd-mail";
/// podsecd-u7s, which looks after the rootless side.
pub const U7S: &str = "podsecd-u7s";

/// Longest line, in bytes, without its newline.
pub const MAX_LINE: usize = 64 << 10;
