//! Finds the bytes that matter in a text of JSON, eight at a time. Most texts of an audit event are short: calling a
//! vectorised search for each of them costs more than the search.

use memchr::memchr2;

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);

/// From here on a vectorised search is worth its call.
const SHORT: usize = 48;

/// The first quote or backslash.
#[inline]
pub fn find_quote(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < SHORT
        && let Some(block) = bytes[at..].first_chunk::<8>()
    {
        let word = u64::from_le_bytes(*block);
        let found = quotes(word);
        if found != 0 {
            return Some(at + first(found));
        }
        at += 8;
    }
    memchr2(b'"', b'\\', &bytes[at..]).map(|found| at + found)
}

/// The first byte that a text of JSON must escape: a quote, a backslash or a control character.
#[inline]
pub fn find_escaped(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(block) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*block);
        let found = quotes(word) | below_space(word);
        if found != 0 {
            return Some(at + first(found));
        }
        at += 8;
    }
    let rest = &bytes[at..];
    let mut block = [b' '; 8];
    block[..rest.len()].copy_from_slice(rest);
    let word = u64::from_le_bytes(block);
    let found = quotes(word) | below_space(word);
    (found != 0).then(|| at + first(found))
}

/// Marks the bytes of the word that are a quote or a backslash. Bytes above the first marked one may be marked wrongly.
fn quotes(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    zero(word ^ (ONES * b'"' as u64)) | zero(word ^ (ONES * b'\\' as u64))
}

/// Marks the bytes of the word that are control characters, with the same restriction.
fn below_space(word: u64) -> u64 {
    word.wrapping_sub(ONES * b' ' as u64) & !word & HIGHS
}

/// Index of the first marked byte.
fn first(marks: u64) -> usize {
    marks.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_one_is_found(bytes in prop::collection::vec(prop_oneof![9 => any::<u8>(), 1 => Just(b'"')], 0..100)) {
            let quote = |byte: &u8| matches!(byte, b'"' | b'\\');
            prop_assert_eq!(find_quote(&bytes), bytes.iter().position(quote));
            prop_assert_eq!(find_escaped(&bytes), bytes.iter().position(|byte| quote(byte) || *byte < b' '));
        }
    }
}
