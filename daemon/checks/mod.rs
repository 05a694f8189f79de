//! One room per check, all of the same shape: observe (I/O makes an observation), assess (pure, an observation makes
//! findings), formats (what it reads). Checks know [`crate::watch`], [`crate::http`] and [`crate::finding`], not each other; but
//! [`images`] asks of an image what the documents of [`policy`] ask of it, and [`policy`] has it look; and [`controlplane`] reads
//! the kernel's tables of sockets as [`forwards`] does.

pub mod containers;
pub mod controlplane;
pub mod forwards;
pub mod images;
pub mod kubeapi;
pub mod own;
pub mod policy;

use crate::finding::Id;

/// The ids of all findings that podsecd can have. `policy/weights.toml` describes each of them.
pub fn ids() -> Vec<Id> {
    [
        kubeapi::ids::ALL,
        policy::ids::ALL,
        images::ids::ALL,
        containers::ids::ALL,
        forwards::ids::OF_U7S,
        forwards::ids::OF_HOST,
        forwards::ids::OF_ADMINISTRATORS,
        controlplane::ids::OF_U7S,
        controlplane::ids::OF_HOST,
        own::ids::ALL,
    ]
    .concat()
}

/// The checks of this version, by their names in findings, in the journal and on the command line.
pub const NAMES: [&str; 7] = ["kubeapi", "policy", "images", "containers", "forwards", "controlplane", "self"];
