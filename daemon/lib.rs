//! wip
pub mod checks;
pub mod config;
pub mod finding;
pub mod score;
pub mod watch;
