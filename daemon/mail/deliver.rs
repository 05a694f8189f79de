//! One delivery by SMTP (RFC 5321).

use std::time::Duration;

use lettre::address::Envelope;
use lettre::{Address, SmtpTransport, Transport};

use crate::config::Config;

/// How long a server may take for an answer; after the final dot RFC 5321 (4.5.3.2.6) gives it ten minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// What became of a delivery.
#[derive(Debug)]
pub(super) enum Answer {
    /// The server took it.
    Taken,
    /// It will never take this, and why.
    Refused(String),
    /// It may take it later, or another time; and why not now.
    Later(String),
}

/// Delivers a message; `bare`: without its attachment.
pub(super) fn deliver(message: &[u8], bare: bool, config: &Config) -> Answer {
    let without;
    let message = if bare {
        without = without_attachment(message);
        &without
    } else {
        message
    };
    let to = config.digest.to.get().clone();
    let Ok(envelope) = Envelope::new(from(message), vec![to]) else {
        return Answer::Refused("it has no recipient".into());
    };
    let (host, port) = config.mail.server.get();
    let transport = SmtpTransport::builder_dangerous(host).port(port).timeout(Some(PATIENCE)).build();
    match transport.send_raw(&envelope, message) {
        Ok(_) => Answer::Taken,
        Err(error) if error.is_permanent() => Answer::Refused(describe(&error)),
        Err(error) => Answer::Later(describe(&error)),
    }
}

/// The sender that the message names; without one nobody gets it back.
fn from(message: &[u8]) -> Option<Address> {
    let text = String::from_utf8_lossy(message);
    let line = text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("From: "))?;
    let address = line.rsplit_once('<').map_or(line, |(_, rest)| rest.trim_end_matches('>'));
    address.parse().ok()
}

/// The error with its causes; a server's words are escaped where they are written.
fn describe(error: &lettre::transport::smtp::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The message up to its second part. Digests are made by [`crate::report::digest::mail`]: text first, then one attachment.
fn without_attachment(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(message);
    let Some(boundary) = text.split("boundary=\"").nth(1).and_then(|rest| rest.split('"').next()) else {
        return message.to_vec();
    };
    let delimiter = format!("\r\n--{boundary}\r\n");
    match text.match_indices(&delimiter).nth(1) {
        Some((second, _)) => format!("{}\r\n--{boundary}--\r\n", &text[..second]).into_bytes(),
        None => message.to_vec(),
    }
}
