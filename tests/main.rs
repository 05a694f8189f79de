//! Integration tests with the real binaries, on trees of their own: nothing of them reaches this machine's journal.

mod command_line;
mod containers;
mod daemon;
mod digest;
mod documents;
mod golden;
mod images;
mod mail;
mod policy;
mod probe;
mod services;
mod smtp;
mod support;
mod tools;
