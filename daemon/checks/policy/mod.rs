//! Check `policy`: who may run which image, as the container tools read their configuration.
//!
//! `observe` reads it (`tree` and `place` are where, `rights` who may change it); `assess` judges it and is pure, with
//! `choose`, the lookup, and `change`, the meaning of a change. `document`, `reference`, `registries`, `storage`, `crio`,
//! `keys` and `accounts` are formats.

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
pub mod reference;
pub mod registries;
pub mod rights;
pub mod settings;
pub mod storage;
pub mod store;
pub mod tree;
