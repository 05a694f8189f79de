//! What podsecctl asks of podsecd-u7s: the way is that of [`crate::control`].

use serde::{Deserialize, Serialize};

use crate::checks::forwards::assess::Row;
use crate::checks::forwards::forward::Forward;
use crate::control;

/// Where podsecctl connects.
pub const SOCKET: &str = "/run/podsecd-u7s/control.sock";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// All forwards.
    List,
    /// This one is to stand, from now on.
    Add(Forward),
    /// And this one no more.
    Remove(Forward),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// All forwards.
    Forwards(Vec<Row>),
    /// It is kept, and how it is now.
    Added(Row),
    /// It is forgotten; whether rootlesskit has it still.
    Removed(bool),
}

/// A request on its way.
pub(super) type Asked = control::Asked<Request, Answer>;
