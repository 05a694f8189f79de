//! Check `containers`: what changes in the files of containers, and in the layers of images on disk.
//!
//! `source` has a task for each store, `store` watches its layers, with `files` to read whose they are (`records`), what the
//! runtime made itself (`spec`) and as whom it runs (`users`). `change` and `class` say what a change means, `gather` makes
//! few of many, `assess` judges. `life` tells when containers start and stop (`runs`: each once), by conmon's files, by `groups`
//! and by the `journal`. `record` keeps what programs there are, `scarcity` shares what watches there are among the stores, and
//! `neighbours` says which of an account's stores tells what. `assess`, `change`, `class`, `gather`, `pace`,
//! `records`, `runs`, `spec` and `users` are pure.

pub mod assess;
pub mod change;
pub mod class;
pub mod fields;
pub mod files;
pub mod gather;
mod groups;
pub mod ids;
mod journal;
mod layer;
pub mod life;
mod neighbours;
mod pace;
pub mod record;
pub mod records;
mod runs;
mod scarcity;
pub mod settings;
pub mod source;
pub mod spec;
mod store;
pub mod users;
mod walks;
