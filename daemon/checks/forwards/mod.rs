//! Check `forwards`: the port forwards of rootlesskit, by which alone the world reaches what runs behind it. They are in its
//! memory, and gone when it restarts.
//!
//! In podsecd-u7s: `declared` says which are to stand, `source` looks (`api` and `instance` are rootlesskit, `tables` the
//! kernel's sockets) and does what `plan` says; `assess` judges what was seen over time (of each forward: `entry`); `services` finds those of
//! the cluster that want a forward. In podsecd: `exposure` judges
//! what it can see of the host's sockets by itself. `assess`, `declared`, `entry`, `exposure`, `forward` and `plan` are pure.

pub mod api;
pub mod assess;
pub mod declared;
pub mod entry;
pub mod exposure;
pub mod forward;
pub mod ids;
pub mod instance;
pub mod plan;
pub mod services;
pub mod settings;
pub mod source;
pub mod tables;
