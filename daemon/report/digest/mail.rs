//! The message (RFC 5322, MIME) of a digest. The same occasion and findings always give the same bytes, and a part of the
//! Message-ID is a hash of all of them: whoever delivers it sees whether it was edited since. The hash has no key: whoever
//! can write the outbox and knows how it is made can make another.

use std::io::{self, Write};
use std::ops::Range;

use flate2::Compression;
use flate2::write::GzEncoder;
use lettre::Message;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use sha2::{Digest, Sha256};

use super::Occasion;
use super::summary::Summary;
use super::text::{body, subject};

/// Up to this length forbidden.log's lines are attached as they are, in bytes; beyond it they are compressed.
const MAX_PLAIN: usize = 64 << 10;
/// How much of them is attached at most, in bytes before compression.
const MAX_LINES: usize = 8 << 20;

/// Why a message cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// A header does not take what it should.
    #[error("cannot make the mail: {0}")]
    Message(#[from] lettre::error::Error),
    /// The attachment cannot be compressed.
    #[error("cannot compress the attachment: {0}")]
    Compress(#[from] io::Error),
}

/// The lines of forbidden.log that belong to a digest, as far as they are attached.
#[derive(Debug, Default)]
pub struct Lines {
    plain: Vec<u8>,
    compressed: Option<GzEncoder<Vec<u8>>>,
    length: usize,
    /// How many were left out.
    pub unattached: u64,
}

impl Lines {
    /// Takes the next line, with its newline; it is only made if there is room.
    ///
    /// # Errors
    /// None that memory does not make.
    pub fn add(&mut self, line: impl FnOnce() -> Vec<u8>) -> io::Result<()> {
        if self.unattached > 0 {
            self.unattached += 1;
            return Ok(());
        }
        let line = &line()[..];
        if self.length + line.len() > MAX_LINES {
            self.unattached += 1;
            return Ok(());
        }
        self.length += line.len();
        if let Some(compressed) = &mut self.compressed {
            return compressed.write_all(line);
        }
        self.plain.extend_from_slice(line);
        if self.plain.len() > MAX_PLAIN {
            let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
            compressed.write_all(&std::mem::take(&mut self.plain))?;
            self.compressed = Some(compressed);
        }
        Ok(())
    }

    fn attach(self) -> io::Result<Option<SinglePart>> {
        if let Some(compressed) = self.compressed {
            let name = Attachment::new("forbidden.log.gz".into());
            return Ok(Some(name.body(compressed.finish()?, content_type("application/gzip"))));
        }
        let name = Attachment::new("forbidden.log".into());
        Ok((!self.plain.is_empty()).then(|| name.body(self.plain, content_type("text/plain; charset=utf-8"))))
    }
}

/// The message.
///
/// # Errors
/// [`MailError`].
pub fn message(occasion: &Occasion<'_>, summary: &Summary, lines: Lines) -> Result<Vec<u8>, MailError> {
    let domain = occasion.host;
    let digest = &occasion.config.digest;
    let from = Mailbox::new(Some(format!("podsec on {domain}")), digest.from.at(domain));
    let seconds = occasion.now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = format!("podsecd.{}.{seconds}.{UNSEALED}@{domain}", occasion.number);
    let thread = format!("<podsecd@{domain}>");
    let text = SinglePart::builder()
        .header(ContentType::TEXT_PLAIN)
        .header(ContentTransferEncoding::QuotedPrintable)
        .body(body(occasion, summary, lines.unattached));
    let builder = Message::builder()
        .from(from)
        .to(Mailbox::new(None, digest.to.get().clone()))
        .date(occasion.now)
        .message_id(Some(format!("<{id}>")))
        .in_reply_to(thread.clone())
        .references(thread)
        .subject(subject(occasion, summary));
    let mut message = match lines.attach()? {
        None => builder.singlepart(text)?,
        Some(attachment) => {
            let parts = MultiPart::mixed().boundary(format!("podsecd-{}-{seconds}", occasion.number));
            builder.multipart(parts.singlepart(text).singlepart(attachment))?
        }
    };
    // RFC 3834: nothing answers it.
    message
        .headers_mut()
        .insert_raw(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()));
    Ok(sealed(message.formatted()))
}

/// What stands in the Message-ID where the seal will.
const UNSEALED: &str = "00000000000000000000000000000000";

/// The message with its seal.
fn sealed(mut message: Vec<u8>) -> Vec<u8> {
    if let Some(place) = seal_place(&message)
        && message[place.clone()] == *UNSEALED.as_bytes()
    {
        let seal = seal(&message);
        message[place].copy_from_slice(seal.as_bytes());
    }
    message
}

/// Whether nobody changed a message since it was made.
pub fn is_sealed(message: &[u8]) -> bool {
    let Some(place) = seal_place(message) else { return false };
    let mut unsealed = message.to_vec();
    unsealed[place.clone()].copy_from_slice(UNSEALED.as_bytes());
    seal(&unsealed).as_bytes() == &message[place]
}

/// The number of a digest, as its Message-ID says.
pub fn number(message: &[u8]) -> Option<u64> {
    let start = memchr::memmem::find(message, NAME)? + NAME.len();
    let end = start + memchr::memchr(b'.', &message[start..])?;
    std::str::from_utf8(&message[start..end]).ok()?.parse().ok()
}

/// How the Message-ID begins; the number follows.
const NAME: &[u8] = b"\nMessage-ID: <podsecd.";

/// Where the seal stands: before the domain of the Message-ID.
fn seal_place(message: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memmem::find(message, NAME)? + NAME.len();
    let end = start + memchr::memchr2(b'@', b'\n', &message[start..])?;
    (end >= start + UNSEALED.len() && message[end] == b'@').then(|| end - UNSEALED.len()..end)
}

/// The first half of the SHA-256, in hexadecimal.
fn seal(message: &[u8]) -> String {
    Sha256::digest(message)[..UNSEALED.len() / 2].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content_type(name: &str) -> ContentType {
    // Those above are valid.
    ContentType::parse(name).unwrap_or(ContentType::TEXT_PLAIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Vec<u8> {
        sealed(format!("From: x\r\nMessage-ID: <podsecd.7.1790000000.{UNSEALED}@node>\r\n\r\ntext").into_bytes())
    }

    proptest! {
        #[test]
        fn whoever_changes_a_byte_breaks_the_seal(at in 0..example().len(), byte: u8) {
            let (whole, mut changed) = (example(), example());
            prop_assert!(is_sealed(&whole));
            changed[at] = byte;
            prop_assert_eq!(is_sealed(&changed), whole == changed);
            prop_assert!(!is_sealed(&whole[..at]));
        }
    }
}
