//! Who may run which image: containers-policy.json(5) as the container tools read it.
//!
//! `document` is the format, `reference` the names of images, `choose` the lookup (pure), `observe` finds the file that
//! holds for an account.

pub mod choose;
pub mod document;
pub mod observe;
pub mod reference;
