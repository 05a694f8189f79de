//! Reads JSON as bytes and decodes only what it is asked for.
//!
//! An audit line holds request bodies that a client wrote: invalid UTF-8, lone surrogates, numbers such as 1e999 and
//! thousands of levels of nesting. All of that is skipped without being understood, but by the grammar (RFC 8259), so
//! that a torn line is noticed. Nothing here recurses on what the input nests.

use std::borrow::Cow;

use crate::bytes::Quotes;

/// Most elements that are kept of a list.
const MAX_TEXTS: usize = 256;

/// A place in a text of JSON. Every function answers `None` where the text is not what was asked for.
pub(super) struct Json<'a> {
    bytes: &'a [u8],
    /// The same, if all of it is Unicode, as it is but for hostile request bodies.
    unicode: Option<&'a str>,
    at: usize,
    quotes: Quotes,
    /// What closes the objects and lists that are open while a value is passed over; kept for its memory.
    open: Vec<u8>,
}

impl<'a> Json<'a> {
    /// `unicode` is the same as `bytes`, if all of it is Unicode.
    pub(super) fn new(bytes: &'a [u8], unicode: Option<&'a str>) -> Json<'a> {
        Json { bytes, unicode, at: 0, quotes: Quotes::new(), open: Vec::new() }
    }

    /// Whether an object begins here.
    pub(super) fn is_object(&mut self) -> bool {
        self.peek() == Some(b'{')
    }

    /// How many bytes were read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is not white space.
    #[inline(always)]
    fn peek(&mut self) -> Option<u8> {
        match self.bytes.get(self.at) {
            // kube-apiserver writes none.
            Some(b' ' | b'\t' | b'\r' | b'\n') => self.peek_behind_space(),
            next => next.copied(),
        }
    }

    #[cold]
    fn peek_behind_space(&mut self) -> Option<u8> {
        let rest = self.bytes.get(self.at..)?;
        self.at += rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        self.bytes.get(self.at).copied()
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.bytes.get(self.at) == Some(&byte) || self.peek()? == byte).then(|| self.at += 1)
    }

    /// Calls `member` with the key (not decoded) of each member; it must read or skip the value.
    /// A value that is no object is skipped.
    #[inline]
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        if self.peek()? != b'{' {
            return self.skip();
        }
        self.at += 1;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Some(());
                }
                _ => return None,
            }
        }
    }

    /// A list of texts; elements of other types are left out, and so is a value that is no list. Of a long list the
    /// first [`MAX_TEXTS`] - 1 and the last.
    pub(super) fn texts(&mut self) -> Option<Vec<Cow<'a, str>>> {
        let mut texts = Vec::new();
        if self.peek()? != b'[' {
            self.skip()?;
            return Some(texts);
        }
        self.at += 1;
        if self.peek()? == b']' {
            self.at += 1;
            return Some(texts);
        }
        loop {
            if self.peek()? == b'"' {
                texts.truncate(MAX_TEXTS - 1);
                texts.push(self.text()?);
            } else {
                self.skip()?;
            }
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Some(texts);
                }
                _ => return None,
            }
        }
    }

    /// A text, decoded; what is no Unicode in it becomes U+FFFD. A value of another type is skipped and empty.
    #[inline]
    pub(super) fn text(&mut self) -> Option<Cow<'a, str>> {
        if self.peek()? != b'"' {
            self.skip()?;
            return Some(Cow::Borrowed(""));
        }
        self.at += 1;
        let start = self.at;
        let (end, escaped) = self.string_end()?;
        let text = match self.unicode {
            Some(all) => Cow::Borrowed(all.get(start..end)?),
            None => String::from_utf8_lossy(&self.bytes[start..end]),
        };
        Some(if escaped { Cow::Owned(unescape(&text)) } else { text })
    }

    /// A whole number that is not negative; any other value is skipped and 0.
    pub(super) fn number(&mut self) -> Option<u64> {
        self.peek()?;
        let start = self.at;
        self.skip()?;
        let text = str::from_utf8(&self.bytes[start..self.at]).ok();
        Some(text.and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Goes on behind the quote that ends the string here; answers where that quote is, and whether there is an escape
    /// before it.
    #[inline(always)]
    fn string_end(&mut self) -> Option<(usize, bool)> {
        let found = self.quotes.find(self.bytes, self.at)?;
        if self.bytes.get(found) == Some(&b'"') {
            self.at = found + 1;
            return Some((found, false));
        }
        self.escaped_string_end(found)
    }

    #[inline(never)]
    fn escaped_string_end(&mut self, mut backslash: usize) -> Option<(usize, bool)> {
        loop {
            let found = self.quotes.find(self.bytes, backslash + 2)?;
            if self.bytes[found] == b'"' {
                self.at = found + 1;
                return Some((found, true));
            }
            backslash = found;
        }
    }

    /// A key (not decoded), and the colon behind it.
    #[inline(always)]
    fn key(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let start = self.at;
        let (end, _) = self.string_end()?;
        self.take(b':')?;
        self.bytes.get(start..end)
    }

    /// Passes over one value of any type and depth.
    pub(super) fn skip(&mut self) -> Option<()> {
        self.open.clear();
        loop {
            // A value starts here.
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    self.string_end()?;
                }
                b'{' => {
                    self.at += 1;
                    if self.peek()? == b'}' {
                        self.at += 1;
                    } else {
                        self.open.push(b'}');
                        self.key()?;
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    if self.peek()? == b']' {
                        self.at += 1;
                    } else {
                        self.open.push(b']');
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value ended here: close what it closes, up to the comma before the next one.
            loop {
                let Some(&closing) = self.open.last() else { return Some(()) };
                match self.peek()? {
                    b',' => {
                        self.at += 1;
                        if closing == b'}' {
                            self.key()?;
                        }
                        break;
                    }
                    byte if byte == closing => {
                        self.at += 1;
                        self.open.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    /// true, false, null, or anything made of the bytes of a number: how large it is does not matter.
    fn scalar(&mut self) -> Option<()> {
        let rest = &self.bytes[self.at..];
        let length = match rest {
            [b't', b'r', b'u', b'e', ..] | [b'n', b'u', b'l', b'l', ..] => 4,
            [b'f', b'a', b'l', b's', b'e', ..] => 5,
            _ => rest.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count(),
        };
        self.at += length;
        (length > 0).then_some(())
    }
}

/// Decodes the escapes of RFC 8259, section 7. A lone surrogate or an unknown escape becomes U+FFFD.
#[inline(never)]
fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let (mut backslashes, mut at) = (Quotes::new(), 0);
    // Between the quotes of a string, every quote is behind a backslash.
    while let Some(backslash) = backslashes.find(raw.as_bytes(), at) {
        text.push_str(&raw[at..backslash]);
        let escape = &raw[backslash + 1..];
        let (decoded, length) = match escape.chars().next() {
            Some(itself @ ('"' | '\\' | '/')) => (itself, 1),
            Some('u') => unicode_escape(escape.as_bytes()),
            Some('n') => ('\n', 1),
            Some('t') => ('\t', 1),
            Some('r') => ('\r', 1),
            Some('b') => ('\u{8}', 1),
            Some('f') => ('\u{c}', 1),
            Some(unknown) => (char::REPLACEMENT_CHARACTER, unknown.len_utf8()),
            None => (char::REPLACEMENT_CHARACTER, 0),
        };
        text.push(decoded);
        at = backslash + 1 + length;
    }
    text.push_str(&raw[at..]);
    text
}

/// Decodes `uXXXX`, or `uXXXX\uXXXX` for a pair of surrogates: the character and the length of the escape.
fn unicode_escape(escape: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = escape.get(at..at + 4)?;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
    };
    let Some(first) = unit(1) else { return (char::REPLACEMENT_CHARACTER, 1) };
    if let Some(character) = char::from_u32(first) {
        return (character, 5);
    }
    if first < 0xdc00
        && escape.get(5..7) == Some(b"\\u")
        && let Some(second @ 0xdc00..=0xdfff) = unit(7)
    {
        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
    }
    (char::REPLACEMENT_CHARACTER, 5)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(json: &str) -> Option<String> {
        let mut reader = Json::new(json.as_bytes(), Some(json));
        let text = reader.text()?.into_owned();
        (reader.at == json.len()).then_some(text)
    }

    fn skipped(json: &[u8]) -> bool {
        let mut reader = Json::new(json, str::from_utf8(json).ok());
        reader.skip().is_some() && reader.at == json.len()
    }

    #[test]
    fn escapes_are_decoded_and_what_is_no_unicode_is_replaced() {
        for (json, decoded) in [
            (r#""plain""#, "plain"),
            (r#""a\"b\\c\/d\n\t\r\b\f""#, "a\"b\\c/d\n\t\r\u{8}\u{c}"),
            (r#""\u0041\u003c\u043f""#, "A<п"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\ud83dx""#, "\u{fffd}x"),
            (r#""\udc00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\u00""#, "\u{fffd}00"),
        ] {
            assert_eq!(text(json).as_deref(), Some(decoded), "{json}");
        }
    }

    #[test]
    fn hostile_values_are_skipped_without_being_understood() {
        let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
        let cases: [&[u8]; 6] =
            [b"1e999", b"\"\xff\xfe\"", b"\"\\ud800\"", b"{\"a\":1,\"a\":{\"a\":[]}}", b"[1, true ,null]", &deep];
        for case in cases {
            assert!(skipped(case), "{}", String::from_utf8_lossy(&case[..case.len().min(40)]));
        }
    }

    #[test]
    fn torn_or_mended_values_are_noticed() {
        for case in
            ["", "{", "[1,", "{\"a\"", "{\"a\":", "[1}", "{\"a\":1]", "\"a", "\"a\\\"", "[1 2]", "{1:2}", "nul", "{,}"]
        {
            assert!(!skipped(case.as_bytes()), "{case}");
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_text_is_what_serde_json_reads(value: String) {
            prop_assert_eq!(text(&serde_json::to_string(&value).expect("json")), Some(value));
        }

        #[test]
        fn what_serde_json_writes_is_skipped_and_no_proper_prefix_is(value in any_json(), cut: prop::sample::Index) {
            let json = serde_json::to_vec(&value).expect("json");
            prop_assert!(skipped(&json));
            let cut = &json[..cut.index(json.len())];
            // A number cut short is a number.
            prop_assert!(value.is_number() || !skipped(cut));
        }
    }
}
