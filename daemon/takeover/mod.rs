//! The switch from podsec-inotify to podsecd, and back: what of podsec-inotify a node still starts, where podsecd begins to
//! read, and what was turned off.

pub mod beginning;
pub mod crontab;
pub mod list;
pub mod record;
pub mod state;
pub mod units;
