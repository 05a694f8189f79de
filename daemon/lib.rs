//! wip
pub mod checks;
pub mod cli;
pub mod config;
pub mod finding;
pub mod guardian;
pub mod report;
pub mod run;
pub mod score;
pub mod watch;
