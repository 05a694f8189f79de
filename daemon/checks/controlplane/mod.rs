//! Check `controlplane`: whether what makes a rootless Kubernetes node runs, is well, and is where it belongs.
//!
//! `source` observes, at its start, at each turn that it is given, and when systemd says that a unit changed: `units` over
//! D-Bus, `processes` in `/proc` (`containers` knows which of them CRI-O started for what), `health` over TLS, `facts` of the
//! node. What it sees is in `seen`; `assess` judges it and is pure, and so is `restart`, which says when to start again what
//! is down, if an administrator wants that.
//!
//! It runs as u7s-admin without capabilities. Of the processes it sees those of that user and of the user namespaces that
//! the user owns; those of root it does not: that a part runs as real root is seen by the system's units.

pub mod assess;
pub mod containers;
pub mod facts;
pub mod health;
pub mod ids;
pub mod processes;
pub mod restart;
pub mod seen;
pub mod settings;
pub mod source;
pub mod units;
