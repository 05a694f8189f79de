//! wip
pub mod checks;
pub mod finding;
pub mod score;
pub mod watch;
