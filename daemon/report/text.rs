//! Makes text that an attacker may have written harmless on a line of its own.

use std::borrow::Cow;
use std::fmt::Write;

use crate::finding::prefix;

/// The text on one line: what could begin a new line, move a terminal's cursor, turn the direction of writing or hide is
/// written as `\u{…}`. `]:` is broken up, because podsec's filter for nagwad takes whatever stands before the last one
/// on a line for the name of a check.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && !text.contains("]:") {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    let mut previous = ' ';
    for character in text.chars() {
        if is_hostile(character) || (previous == ']' && character == ':') {
            // Writing into a String cannot fail.
            let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
        } else {
            line.push(character);
        }
        previous = character;
    }
    Cow::Owned(line)
}

/// A line of JSON in which what [`one_line`] writes out is an escape: it says the same, and can be shown by cat(1). JSON
/// has such characters only within its strings.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_hostile(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing into a String cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Control characters, line separators, and the format characters that are not seen or turn the direction (Unicode's
/// general categories Cc, Zl, Zp and the well-known ones of Cf).
fn is_hostile(character: char) -> bool {
    // systemd takes the noncharacters for no text at all and prints "[12B blob data]".
    let noncharacter = u32::from(character) & 0xfffe == 0xfffe || matches!(character, '\u{fdd0}'..='\u{fdef}');
    character.is_control()
        || noncharacter
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The beginning of a text, at most `most` bytes of it, with a mark if it was cut.
pub fn shorten(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", prefix(text, most)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["", "alice: list secrets", "привет, мир", "a [1] b: c", "日本語 😀"] {
            assert_eq!(one_line(text), text);
        }
    }

    #[test]
    fn what_forges_a_line_is_written_out() {
        for (text, line) in [
            ("a\nb\r\tc", "a\\u{a}b\\u{d}\\u{9}c"),
            ("\u{1b}[2J\u{7f}\u{85}", "\\u{1b}[2J\\u{7f}\\u{85}"),
            ("\u{ffff}\u{fdd0}\u{1fffe}", "\\u{ffff}\\u{fdd0}\\u{1fffe}"),
            ("\u{202e}abc\u{2028}", "\\u{202e}abc\\u{2028}"),
            ("podsec-inotify-check-vuln[1]: Critical: x", "podsec-inotify-check-vuln[1]\\u{3a} Critical: x"),
        ] {
            assert_eq!(one_line(text), line);
        }
    }

    proptest! {
        #[test]
        fn json_is_shown_without_hostile_characters_and_says_the_same(
            text in prop_oneof![any::<String>(), "[\u{7f}-\u{9f}\u{202a}-\u{202e}\u{e0000}-\u{e0010}\"\\\\a]{1,9}"],
        ) {
            let json = serde_json::json!([text]).to_string();
            let shown = shown_json(&json);
            prop_assert_eq!(serde_json::from_str::<[String; 1]>(&shown).expect("JSON"), [text]);
            prop_assert!(!shown.chars().any(is_hostile));
        }

        /// The filter of podsec.sed, over the journal's short form.
        #[test]
        fn nagwad_sees_our_check_and_level_whatever_the_text(
            text in prop_oneof![
                any::<String>(),
                "(podsec-inotify-(check|build)-vuln|x| |\n)?\\[[0-9]{1,3}\\]?:?\\s?(Critical|Warning|Low)?:\\s?x?",
            ],
        ) {
            let critical = Regex::new(
                r"^.*\s*(podsec-inotify-(?:check|build)-.*)\[[0-9]+\]:\s*(Crash|Fatal|Critical|High|Middle|Warning):\s(.*)$",
            ).expect("a regular expression");
            for level in ["Low", "Warning"] {
                let line = format!("Nov 23 02:00:00 node podsec-inotify-check-kubeapi[7]: {level}: {}", one_line(&text));
                prop_assert_eq!(line.lines().count(), 1);
                match critical.captures(&line) {
                    None => prop_assert_eq!(level, "Low"),
                    Some(seen) => prop_assert_eq!((&seen[1], &seen[2]), ("podsec-inotify-check-kubeapi", "Warning")),
                }
            }
        }
    }
}
