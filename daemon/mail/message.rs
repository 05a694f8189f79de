//! What the delivery has to know of a digest. Digests are made by [`crate::report::digest::mail`]: text first, then at most
//! one attachment; somebody may have changed them since.

use lettre::Address;

/// The Message-ID with its brackets, if it is one as podsecd makes them: nothing in it can be a path.
pub(super) fn message_id(message: &[u8]) -> Option<&str> {
    let id = header(message, "Message-ID")?;
    let inner = id.strip_prefix("<podsecd.")?.strip_suffix('>')?;
    let is_usable = |byte: u8| byte.is_ascii_alphanumeric() || b".-_@".contains(&byte);
    (inner.len() < 200 && inner.bytes().all(is_usable)).then_some(id)
}

/// The sender that the message names; without one nobody gets it back.
pub(super) fn sender(message: &[u8]) -> Option<Address> {
    let line = header(message, "From")?;
    let address = line.rsplit_once('<').map_or(line, |(_, rest)| rest.trim_end_matches('>'));
    address.parse().ok()
}

/// The first line of a header's value.
fn header<'m>(message: &'m [u8], name: &str) -> Option<&'m str> {
    let lines = message.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines.take_while(|line| !line.is_empty()).filter_map(|line| std::str::from_utf8(line).ok());
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The message up to its second part.
pub(super) fn without_attachment(message: &[u8]) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_podsecds_own_ids_are_taken() {
        for (message, id) in [
            ("Message-ID: <podsecd.7.1790000000@node>\r\n\r\nx", Some("<podsecd.7.1790000000@node>")),
            ("Message-ID: <podsecd./../../x@node>\r\n\r\n", None),
            ("Message-ID: <x@node>\r\n\r\n", None),
            ("X: y\r\n\r\nMessage-ID: <podsecd.7@node>\r\n", None),
            ("", None),
        ] {
            assert_eq!(message_id(message.as_bytes()), id, "{message}");
        }
    }

    #[test]
    fn the_sender_is_the_address_of_from() {
        for (line, address) in [("From: \"a\" <root@node>", "root@node"), ("From: root@node", "root@node")] {
            assert_eq!(sender(format!("{line}\r\n\r\n").as_bytes()).map(|it| it.to_string()).as_deref(), Some(address));
        }
        assert_eq!(sender(b"To: x\r\n\r\n"), None);
    }

    #[test]
    fn the_attachment_can_be_left_out() {
        let head = "Content-Type: multipart/mixed; boundary=\"b\"\r\n\r\n--b\r\n\r\ntext\r\n";
        let whole = format!("{head}--b\r\n\r\nattached\r\n--b--\r\n");
        let bare = without_attachment(whole.as_bytes());
        assert_eq!(String::from_utf8_lossy(&bare), format!("{}\r\n--b--\r\n", head.trim_end()));
        assert_eq!(without_attachment(&bare), bare);
    }
}
