//! The way in for podsecd's helpers: processes with other rights, which report what podsecd itself cannot see.
//!
//! A helper connects to [`SOCKET`] and sends lines of JSON of at most [`MAX_LINE`] bytes. The first holds its open
//! conditions, all of them: what it reported before and is not among them is cleared. Each further line is a [`Report`].
//! podsecd answers each line with an [`Answer`], when what it said counts as reported: it is on the disk for the mail, and
//! a journal that takes nothing is not waited for. Whoever closes its end is not answered any more.
//!
//! Weight and level are podsecd's to set, and who may report on what it knows from the peer's user id (SO_PEERCRED,
//! unix(7)). A helper that sends too much is read more slowly, and no more than [`MAX_CONDITIONS`] of its conditions can be
//! open. While [`MAX_PENDING`] findings wait to be reported, what it says is refused.

mod client;
mod protocol;
mod server;

pub use client::Client;
pub use protocol::{
    Answer, Condition, MAX_CONDITIONS, MAX_PENDING, Refusal, Report, Reported, parse_conditions, parse_report,
};
pub use server::{Delivery, Helper, accept};

/// Where helpers connect.
pub const SOCKET: &str = "/run/podsecd-in/findings.sock";

/// Longest line, in bytes, without its newline.
pub const MAX_LINE: usize = 64 << 10;
