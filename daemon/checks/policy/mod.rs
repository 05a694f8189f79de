//! Check `policy`: who may run which image, as the container tools read their configuration.
//!
//! `source` sees what changes, and has `observe` read it (`tree`, `place` and `places` are where, `rights` who may
//! change it), which gives what is in `seen`; `assess` judges it and is pure, with
//! `choose`, the lookup, and `change`, the meaning of a change. `document`, `reference`, `registries`, `storage`, `crio`
//! (all three through `tables`), `keys` and `accounts` are formats.

pub mod accounts;
pub mod assess;
mod change;
pub mod choose;
pub mod crio;
pub mod document;
pub mod ids;
pub mod keys;
pub mod observe;
mod place;
mod places;
pub mod reference;
pub mod registries;
pub mod rights;
pub mod seen;
pub mod settings;
pub mod source;
pub mod storage;
pub mod store;
mod tables;
pub mod tree;
