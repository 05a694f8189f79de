//! What is remembered of a store's images, to see later what happened to them: thousands of users may have thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::list::Image;

/// An image as it was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Id, digest and names, each with a NUL behind it: one piece of memory and not many.
    texts: Box<str>,
    /// Hash of what else makes it what it is: layer, blobs, signatures.
    rest: u64,
}

impl Known {
    /// Its id.
    pub fn id(&self) -> &str {
        self.texts.split('\0').next().unwrap_or_default()
    }

    /// Digest of its manifest; empty if not known.
    pub fn digest(&self) -> &str {
        self.texts.split('\0').nth(1).unwrap_or_default()
    }

    /// What it is called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.split_terminator('\0').skip(2)
    }
}

/// What happened to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub what: What,
    /// The image, as it is now; as it was if it is deleted.
    pub image: Known,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It was not there before. Its names are told with it.
    Created,
    /// It is no longer there, nor are its names.
    Deleted,
    /// It was there, with another digest, another layer, other blobs or other signatures.
    Changed,
    /// It lost this name.
    Untagged(String),
    /// It got this name.
    Tagged(String),
}

impl From<&Image> for Known {
    fn from(image: &Image) -> Known {
        let mut rest = DefaultHasher::new();
        let Image { layer, signatures, blobs, blob_digests, .. } = image;
        // Their order means nothing.
        let blobs: BTreeSet<_> = blobs.iter().collect();
        (layer, signatures, blobs, blob_digests).hash(&mut rest);
        let mut texts = String::new();
        let names = image.names.iter().map(String::as_str);
        for text in [image.id.as_str(), image.digest.as_deref().unwrap_or_default()].into_iter().chain(names) {
            texts.extend(text.chars().map(|character| if character == '\0' { '\u{fffd}' } else { character }));
            texts.push('\0');
        }
        Known { texts: texts.into(), rest: rest.finish() }
    }
}

fn by_id(images: &[Known]) -> BTreeMap<&str, &Known> {
    images.iter().map(|image| (image.id(), image)).collect()
}

/// What happened between two lists of one store, in the order of the images' ids. Order in a list means nothing.
pub fn diff(old: &[Known], new: &[Known]) -> Vec<Change> {
    // Of two with one id the tools, too, know the last.
    let (old, new) = (by_id(old), by_id(new));
    let ids: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    for id in ids {
        let mut push = |what, image: &Known| changes.push(Change { what, image: image.clone() });
        match (old.get(id), new.get(id)) {
            (None, Some(image)) => push(What::Created, image),
            (Some(image), None) => push(What::Deleted, image),
            (Some(before), Some(image)) => {
                if (before.digest(), before.rest) != (image.digest(), image.rest) {
                    push(What::Changed, image);
                }
                let (had, has): (BTreeSet<_>, BTreeSet<_>) = (before.names().collect(), image.names().collect());
                had.difference(&has).for_each(|name| push(What::Untagged((*name).to_owned()), image));
                has.difference(&had).for_each(|name| push(What::Tagged((*name).to_owned()), image));
            }
            (None, None) => {}
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checks::images::list::parse;

    fn image(id: &str, names: &[&str], digest: &str) -> Known {
        let list = format!(r#"[{{"id":{id:?},"names":{names:?},"digest":{digest:?},"big-data-names":["manifest"]}}]"#);
        Known::from(&parse(list.as_bytes()).expect("a list")[0])
    }

    #[test]
    fn a_change_is_told_by_image_and_name() {
        let whats = |old: &[Known], new: &[Known]| -> Vec<_> {
            diff(old, new).into_iter().map(|change| (change.image.id().to_owned(), change.what)).collect()
        };
        let (a, b) = (image("a", &["x:1"], "d"), image("b", &["y:1"], "e"));
        let told = |id: &str, what| (id.into(), what);
        for (old, new, expected) in [
            (vec![], vec![a.clone()], vec![told("a", What::Created)]),
            (vec![a.clone(), b.clone()], vec![b.clone(), a.clone()], vec![]),
            (vec![a.clone(), b.clone()], vec![b.clone()], vec![told("a", What::Deleted)]),
            (vec![a.clone()], vec![image("a", &["x:1"], "f")], vec![told("a", What::Changed)]),
            (
                vec![a.clone(), b.clone()],
                vec![image("a", &[], "d"), image("b", &["x:1", "y:1"], "e")],
                vec![told("a", What::Untagged("x:1".into())), told("b", What::Tagged("x:1".into()))],
            ),
            (
                vec![a],
                vec![image("a", &["z:1"], "g")],
                vec![
                    told("a", What::Changed),
                    told("a", What::Untagged("x:1".into())),
                    told("a", What::Tagged("z:1".into())),
                ],
            ),
        ] {
            assert_eq!(whats(&old, &new), expected);
        }
    }

    fn images() -> impl Strategy<Value = Vec<Known>> {
        let one = (prop::collection::btree_set("[xyz]:[12]", 0..3), "[de]");
        prop::collection::btree_map("[abc]", one, 0..3).prop_map(|images| {
            let image = |(id, (names, digest)): (String, (BTreeSet<String>, String))| {
                image(&id, &names.iter().map(String::as_str).collect::<Vec<_>>(), &digest)
            };
            images.into_iter().map(image).collect()
        })
    }

    proptest! {
        #[test]
        fn whoever_follows_the_changes_knows_the_new_list(old in images(), new in images()) {
            let mut names: BTreeMap<_, BTreeSet<_>> =
                old.iter().map(|image| (image.id().to_owned(), image.names().map(str::to_owned).collect())).collect();
            for Change { what, image } in diff(&old, &new) {
                match what {
                    What::Created => drop(names.insert(image.id().to_owned(), image.names().map(str::to_owned).collect())),
                    What::Deleted => drop(names.remove(image.id())),
                    What::Changed => {}
                    What::Tagged(name) => prop_assert!(names.get_mut(image.id()).expect("there").insert(name)),
                    What::Untagged(name) => prop_assert!(names.get_mut(image.id()).expect("there").remove(&name)),
                }
            }
            let expected: BTreeMap<_, BTreeSet<_>> =
                new.iter().map(|image| (image.id().to_owned(), image.names().map(str::to_owned).collect())).collect();
            prop_assert_eq!(names, expected);
            prop_assert_eq!(diff(&new, &new), []);
        }
    }
}
