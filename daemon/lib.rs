//! podsecd is the guardian of one rootless Kubernetes node: it turns what the node writes down into findings, scores
//! them with podsec's metric weights, and reports them. The library holds everything; `podsecd` (`main.rs`) and
//! `podsecctl` (`podsecctl.rs`) only call it.
//!
//! # One straight line
//!
//! ```text
//! source            observation        finding             score               report
//! watch::follow ->  checks/*/observe -> checks/*/assess -> score           ->  report::journal
//! watch::names      (reads, parses)    (pure)              weights, levels,    report::forbidden_log
//! watch::tree                                              conditions,         report::status
//!                                                          metrics (pure)      report::terminal
//!                                                                              report::digest -> outbox -> mail
//! ```
//!
//! [`run`] puts the line together in this order; read it first. [`guardian`] is the state between observation and
//! report, owned by one task.
//!
//! # Rooms
//!
//! | room | what belongs there | it may know |
//! |---|---|---|
//! | [`finding`], [`bytes`], [`http`] | the nouns: id, kind, fields; searching bytes; one request and its answer | nothing |
//! | [`score`] | the arithmetic: weights, levels, ranges, open conditions, metrics; no I/O, time comes in | `finding` |
//! | [`watch`] | files and inotify made safe; nothing of Kubernetes | nothing |
//! | [`checks`] | one room per check: `observe` does the I/O, `assess` judges and is pure, the rest are formats | `watch`, `http`, `finding` |
//! | [`report`] | where findings go, and the order in which they become final (`report::ledger`, guarantee 1) | `finding`, `score`, `config`, `watch`; of checks their ids and field names |
//! | [`mail`] | `podsecd mail`, a process of its own: the way of a digest from the outbox to its reader | `config`, `helper`, the outbox |
//! | [`u7s`] | `podsecd u7s`, a process of its own: port forwards and the rootless control plane, as u7s-admin | the checks `forwards` and `controlplane`, `config`, `helper`, `control` |
//! | [`helper`], [`control`], [`doors`] | the ways in: findings of helpers, requests of podsecctl, the sockets of both | `finding` |
//! | [`handover`] | descriptors that systemd keeps from one podsecd to the next | nothing |
//! | [`takeover`] | the switch from podsec-inotify: its units and crontab lines, where podsecd begins to read, what was turned off | `config`, `watch`, the lines of check `kubeapi`, of `report` the checkpoint and forbidden.log |
//! | [`http`] | one bounded HTTP request over any stream | nothing |
//! | [`version`] | whether a file that was kept is of a podsecd that is newer | nothing |
//! | [`config`] | what can be set; its types cannot hold what is not valid | all of the above |
//! | [`guardian`], [`run`] with `start`, `source`, `service` and `reports`, [`cli`] | composition | everything |
//! | [`ctl`] | podsecctl: one file for each command | everything |
//!
//! A new finding: an id in its check's `ids`, a judgement in its `assess`, an entry in `policy/weights.toml`. A new check:
//! a room in [`checks`] and its source in [`run`]. What operators and systemd read lies in `policy/` and `units/` as it
//! is installed.
//!
//! # What must stay true
//!
//! - Whatever a container, a user or an API client can write is data: bounded, and escaped where it is shown
//!   ([`report::text`]).
//! - Nothing is lost, nothing comes twice: a place in the log is passed for good only when all before it is reported.
//! - No locks on state, no shell, no polling where an event exists. A full queue stops whoever fills it, back to the file.

pub mod bytes;
pub mod checks;
pub mod cli;
pub mod config;
pub mod control;
pub mod ctl;
pub mod doors;
pub mod finding;
pub mod guardian;
pub mod handover;
pub mod helper;
pub mod http;
pub mod mail;
pub mod report;
mod reports;
pub mod run;
pub mod score;
mod service;
mod source;
mod start;
pub mod takeover;
pub mod u7s;
pub mod version;
pub mod watch;
