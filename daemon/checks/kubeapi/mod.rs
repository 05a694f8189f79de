//! Check `kubeapi`: what the apiserver refused, read from its audit log.
//!
//! `observe` follows the log and turns lines into events; `assess` judges them; `event` and `json` are the format.

pub mod assess;
pub mod event;
pub mod fields;
pub mod ids;
mod json;
pub mod observe;
