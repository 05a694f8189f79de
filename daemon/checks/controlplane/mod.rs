//! Check `controlplane`: whether what makes a rootless Kubernetes node runs, is well, and is where it belongs.
//!
//! `source` observes, at its start, at each turn that it is given, and when systemd says that a unit changed: `units` over
//! D-Bus, `processes` in `/proc` (`containers` knows which of them CRI-O started for what), `health` over TLS, `facts` of the
//! node. What it sees is in `seen`; `assess` judges it and is pure, and so is `restart`, which says when to start again what
//! is down, if an administrator wants that.
//!
//! It runs as u7s-admin without capabilities. It looks into processes of that user and of the user namespaces that the user
//! owns; of others it sees names and user ids, by which, and by the system's units, a part that runs as real root is known.

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
