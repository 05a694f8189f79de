//! What was known of trees, for whoever inherits the inotify instance by which they are watched.
//!
//! The form is ours alone: fields that end with a NUL, which is in no name and in no number. Another version's is refused by
//! the name of the form, and then it is as if nothing had been known.

use std::ffi::CString;
use std::io::Write;
use std::str::FromStr;

use rustix::fs::inotify::ReadFlags;

use super::nodes::{Nodes, Parent, Root};
use super::stat::Moment;
use super::state::Raw;

const FORM: &str = "podsecd trees 1";

/// What was known of trees.
#[derive(Debug, Default)]
pub struct Past {
    /// If all was told that had been read by then, when that was.
    pub told: Option<Moment>,
    /// What whoever watches them says of them; without NUL.
    pub note: String,
    /// Which watch is of which directory.
    pub(super) nodes: Nodes,
    /// The same of what is watched since then: of that nothing was told.
    pub(super) fresh: Nodes,
    /// What was read, and is still to be told.
    pub(super) waiting: Vec<(Raw, CString)>,
}

impl Past {
    /// How much was read, and is still to be told.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A number that no root has, and none had of which there may still be something to tell.
    pub(super) fn next_root(&self) -> Root {
        let of = |(_, parent, _)| if let Parent::Root(root) = parent { Some(root) } else { None };
        let roots = self.nodes.entries().chain(self.fresh.entries()).filter_map(of);
        roots.max().map_or(0, |root| root.saturating_add(1))
    }

    /// As bytes, for [`Past::parse`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let told = self.told.map_or(i64::MIN, Moment::nanoseconds);
        add(&mut bytes, &[told], FORM.as_bytes());
        add(&mut bytes, &[], self.note.as_bytes());
        for nodes in [&self.nodes, &self.fresh] {
            for (watch, parent, name) in nodes.entries() {
                add(&mut bytes, &[watch.into(), parent.number().into()], name);
            }
            bytes.push(0);
        }
        for (Raw { watch, flags, cookie }, name) in &self.waiting {
            add(&mut bytes, &[i64::from(*watch), flags.bits().into(), i64::from(*cookie)], name.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    /// What [`Past::to_bytes`] made; `None`: it is of another form.
    pub fn parse(bytes: &[u8]) -> Option<Past> {
        let mut fields = Fields(bytes);
        let told = Some(fields.number()?).filter(|told| *told != i64::MIN).map(Moment::from_nanoseconds);
        let mut past = Past { told, ..Past::default() };
        if fields.next()? != FORM.as_bytes() {
            return None;
        }
        str::from_utf8(fields.next()?).ok()?.clone_into(&mut past.note);
        for nodes in [&mut past.nodes, &mut past.fresh] {
            while let Some(watch) = fields.number_or_end()? {
                let parent = Parent::of(fields.number()?)?;
                nodes.insert(watch, parent, fields.next()?);
            }
        }
        while let Some(watch) = fields.number_or_end()? {
            let (flags, cookie) = (ReadFlags::from_bits_retain(fields.number()?), fields.number()?);
            past.waiting.push((Raw { watch, flags, cookie }, CString::new(fields.next()?).ok()?));
        }
        fields.0.is_empty().then_some(past)
    }
}

/// Adds numbers and what they are of.
fn add(bytes: &mut Vec<u8>, numbers: &[i64], what: &[u8]) {
    for number in numbers {
        // Nothing keeps it from being written to memory.
        let _ = write!(bytes, "{number}\0");
    }
    bytes.extend_from_slice(what);
    bytes.push(0);
}

/// The fields that are still to be read.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn next(&mut self) -> Option<&'b [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (field, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(field)
    }

    fn number<N: FromStr>(&mut self) -> Option<N> {
        str::from_utf8(self.next()?).ok()?.parse().ok()
    }

    /// The first field of a further part; an empty one: there is none.
    fn number_or_end<N: FromStr>(&mut self) -> Option<Option<N>> {
        let field = self.next()?;
        if field.is_empty() { Some(None) } else { str::from_utf8(field).ok()?.parse().ok().map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1_u8.., 0..9)
    }

    #[test]
    fn a_number_that_a_tree_had_is_not_given_to_another_one() {
        let mut past = Past::default();
        assert_eq!(past.next_root(), 0);
        // It may be gone, and what was done in it is still to be told.
        past.nodes.insert(1, Parent::Root(9), b"");
        assert_eq!(past.next_root(), 10);
    }

    proptest! {
        #[test]
        fn what_was_known_is_read_as_it_was_written(
            told in proptest::option::of(0_i64..),
            note in "[^\0]*",
            nodes in proptest::collection::vec((1.., prop_oneof![..=-1, 1..], name()), 0..40),
            waiting in proptest::collection::vec((-1.., any::<u32>(), any::<u32>(), name()), 0..40),
        ) {
            let mut past = Past { told: told.map(Moment::from_nanoseconds), note, ..Past::default() };
            for (watch, parent, name) in nodes {
                let nodes = if watch % 3 == 0 { &mut past.fresh } else { &mut past.nodes };
                nodes.insert(watch, Parent::of(parent).expect("not 0"), &name);
            }
            for (watch, flags, cookie, name) in waiting {
                let event = Raw { watch, flags: ReadFlags::from_bits_retain(flags), cookie };
                past.waiting.push((event, CString::new(name).expect("no NUL")));
            }
            let read = Past::parse(&past.to_bytes()).expect("ours");
            prop_assert_eq!((read.told, &read.note), (past.told, &past.note));
            let entries = |nodes: &Nodes| {
                let entries = nodes.entries().map(|(watch, parent, name)| (watch, (parent.number(), name.to_vec())));
                entries.collect::<BTreeMap<_, _>>()
            };
            prop_assert_eq!(entries(&read.nodes), entries(&past.nodes));
            prop_assert_eq!(entries(&read.fresh), entries(&past.fresh));
            let fields = |past: &Past| {
                let fields = past.waiting.iter().map(|(raw, name)| (raw.watch, raw.flags.bits(), raw.cookie, name.clone()));
                fields.collect::<Vec<_>>()
            };
            prop_assert_eq!(fields(&read), fields(&past));
        }

        #[test]
        fn what_is_torn_or_damaged_is_refused_or_something(at in 0_usize..60, byte: u8, length in 0_usize..60) {
            let mut past = Past { note: "note".to_owned(), ..Past::default() };
            past.nodes.insert(1, Parent::Root(7), b"");
            past.nodes.insert(2, Parent::Directory(1), b"usr");
            let mut bytes = past.to_bytes();
            if let Some(damaged) = bytes.get_mut(at) {
                *damaged = byte;
            }
            let _ = Past::parse(&bytes);
            let torn = past.to_bytes();
            prop_assert!(length >= torn.len() || Past::parse(&torn[..length]).is_none());
        }
    }
}
