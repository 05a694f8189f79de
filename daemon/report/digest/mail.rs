//! The message (RFC 5322, MIME) of a digest. The same occasion and findings always give the same bytes.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};

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
    /// The host's name cannot stand in an address.
    #[error("cannot make a mail address with `{0}`: {1}")]
    Address(String, lettre::address::AddressError),
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
    /// Takes the next line, with its newline.
    ///
    /// # Errors
    /// None that memory does not make.
    pub fn add(&mut self, line: &[u8]) -> io::Result<()> {
        if self.unattached > 0 || self.length + line.len() > MAX_LINES {
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

/// The message for `to`.
///
/// # Errors
/// [`MailError`].
pub fn message(occasion: &Occasion<'_>, to: &Address, summary: &Summary, lines: Lines) -> Result<Vec<u8>, MailError> {
    let domain = occasion.host;
    let from = Mailbox::new(Some(format!("podsec on {domain}")), address("root", domain)?);
    let seconds = occasion.now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = format!("podsecd.{}.{seconds}@{domain}", occasion.number);
    let thread = format!("<podsecd@{domain}>");
    let text = SinglePart::builder()
        .header(ContentType::TEXT_PLAIN)
        .header(ContentTransferEncoding::QuotedPrintable)
        .body(body(occasion, summary, lines.unattached));
    let builder = Message::builder()
        .from(from)
        .to(Mailbox::new(None, to.clone()))
        .date(occasion.now)
        .message_id(Some(format!("<{id}>")))
        .in_reply_to(thread.clone())
        .references(thread)
        .subject(subject(occasion.host, summary));
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
    Ok(message.formatted())
}

fn address(user: &str, domain: &str) -> Result<Address, MailError> {
    Address::new(user, domain).map_err(|error| MailError::Address(format!("{user}@{domain}"), error))
}

fn content_type(name: &str) -> ContentType {
    // Those above are valid.
    ContentType::parse(name).unwrap_or(ContentType::TEXT_PLAIN)
}
