//! Check `images`: which images lie on this node, and which of them are signed as their users' policies ask.
//!
//! `verify` judges one image, with `signature` (OpenPGP, through `message` and `signer`), `sigstore`, `payload` (what
//! both sign), `identity` (whose name that may be) and `keys`. `list` is the format in which stores list their images,
//! `known` what is remembered of it. All of that is pure: bytes come in, and the time. `observe` reads the stores, on the
//! thread of `policy`'s source, which watches them; `assess` says what follows.

pub mod assess;
pub mod fields;
pub mod identity;
pub mod ids;
pub mod keys;
pub mod known;
pub mod list;
mod message;
pub mod observe;
mod payload;
pub mod signature;
mod signer;
pub mod sigstore;
pub mod verify;

/// Longest reason that is given for anything, in characters: some quote what they do not like.
const MAX_REASON: usize = 500;

fn brief(reason: &impl std::fmt::Display) -> String {
    reason.to_string().chars().take(MAX_REASON).collect()
}
