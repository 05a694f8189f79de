//! The switch from podsec-inotify to podsecd: what of podsec-inotify a node still starts. It only looks.

pub mod crontab;
pub mod units;
