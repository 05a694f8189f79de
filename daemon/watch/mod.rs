//! inotify and file reading made safe; knows nothing of Kubernetes.

pub mod follow;
pub mod lines;
pub mod names;
pub mod open;
pub mod tree;
pub mod wake;
