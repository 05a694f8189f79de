//! Check `forwards`: the ports that rootlesskit forwards into the node.

pub mod services;
