//! Finds the bytes that matter in a text of JSON, many at a time. Most texts of an audit event are short: what is called
//! for each of them must cost less than they do.

use wide::u8x16;

/// How many bytes are looked at together.
pub const LANE: usize = 16;

/// How many bytes [`Quotes`] looks at together.
const BLOCK: usize = 4 * LANE;

/// Where the quotes and backslashes of a text of JSON are. Remembers the block that was looked at last: whoever reads
/// from the beginning to the end looks at every block once, however many texts begin in it.
#[derive(Debug)]
pub struct Quotes {
    /// Index of the block in `marks`; [`usize::MAX`] before the first.
    block: usize,
    /// Its quotes and backslashes, a bit for each byte, the first byte lowest.
    marks: u64,
}

impl Quotes {
    /// For a text of which nothing was looked at.
    pub fn new() -> Quotes {
        Quotes { block: usize::MAX, marks: 0 }
    }

    /// The first quote or backslash at `at` or behind it, in bytes from the beginning of `text`, which must be the same
    /// each time.
    #[inline(always)]
    pub fn find(&mut self, text: &[u8], at: usize) -> Option<usize> {
        let block = at / BLOCK;
        let marks = self.marks & (!0 << (at % BLOCK));
        if block == self.block && marks != 0 {
            return Some(block * BLOCK + marks.trailing_zeros() as usize);
        }
        self.find_further(text, at)
    }

    #[inline(never)]
    fn find_further(&mut self, text: &[u8], at: usize) -> Option<usize> {
        let mut from = at;
        loop {
            let block = from / BLOCK;
            if block != self.block {
                self.marks = marks(text.get(block * BLOCK..)?)?;
                self.block = block;
            }
            let marks = self.marks & (!0 << (from % BLOCK));
            if marks != 0 {
                return Some(block * BLOCK + marks.trailing_zeros() as usize);
            }
            from = (block + 1) * BLOCK;
        }
    }
}

impl Default for Quotes {
    fn default() -> Quotes {
        Quotes::new()
    }
}

/// The quotes and backslashes of the first block of `text`; `None` behind its end.
fn marks(text: &[u8]) -> Option<u64> {
    if let Some(block) = text.first_chunk::<BLOCK>() {
        return Some(marks_of(block));
    }
    let mut block = [0; BLOCK];
    block[..text.len()].copy_from_slice(text);
    (!text.is_empty()).then(|| marks_of(&block))
}

fn marks_of(block: &[u8; BLOCK]) -> u64 {
    let (lanes, _) = block.as_chunks::<LANE>();
    let mut marks = 0;
    for (at, lane) in lanes.iter().enumerate() {
        marks |= u64::from(quotes(u8x16::new(*lane)).to_bitmask()) << (LANE * at);
    }
    marks
}

fn quotes(lane: u8x16) -> u8x16 {
    lane.simd_eq(u8x16::splat(b'"')) | lane.simd_eq(u8x16::splat(b'\\'))
}

/// Which of these bytes a text of JSON must escape: quotes, backslashes and control characters; a bit for each, the first
/// byte lowest.
#[inline]
pub fn find_escaped(lane: &[u8; LANE]) -> u32 {
    let lane = u8x16::new(*lane);
    (quotes(lane) | lane.simd_lt(u8x16::splat(b' '))).to_bitmask()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_one_is_found(
            text in prop::collection::vec(prop_oneof![9 => any::<u8>(), 1 => Just(b'"')], 0..200),
            places in prop::collection::vec(0..200_usize, 1..9),
        ) {
            let quote = |byte: &u8| matches!(byte, b'"' | b'\\');
            for lane in text.as_chunks().0 {
                let escaped = |at: &usize| quote(&lane[*at]) || lane[*at] < b' ';
                prop_assert_eq!(find_escaped(lane), (0..LANE).filter(escaped).map(|at| 1 << at).sum::<u32>());
            }
            let mut quotes = Quotes::new();
            for at in places {
                let behind = text.get(at..).unwrap_or_default();
                prop_assert_eq!(quotes.find(&text, at), behind.iter().position(quote).map(|found| at + found));
            }
        }
    }
}
