//! Gathers what changed, so that few findings say it all: one for each kind of change, grade and directory of a layer. Pure.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::change::What;
use super::class::Class;
use crate::watch::tree::Moment;

/// So many names of a directory are kept.
const MAX_NAMES: usize = 32;
/// So many bytes of names are kept.
const MAX_BYTES: usize = 256 << 10;
/// Longer paths are cut in the middle.
const MAX_PATH: usize = 4096;
/// So many of the other names of a layer are told apart, so that each counts once.
const MAX_KNOWN: usize = 16 << 10;

/// What changed in a layer.
#[derive(Debug)]
pub struct Gathered {
    /// All before this moment is not in it.
    pub since: Moment,
    /// So many directories of each kind of change are told one by one; the others together.
    directories: usize,
    groups: BTreeMap<Key, Group>,
    known: HashSet<u64>,
    /// How long all names are.
    bytes: usize,
    /// Nobody can choose paths that are taken for each other.
    random: RandomState,
    /// What went last, which may only have another name now.
    gone: Option<Gone>,
}

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thing {
    /// A directory. They are told apart, so that they do not hide files.
    Directory,
    /// A file without content, as runtimes make them to mount something there.
    Empty,
    /// Anything else.
    File,
}

/// What changes are told together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What was done.
    pub what: What,
    /// How grave that is.
    pub class: Class,
    /// With what.
    pub thing: Thing,
}

/// What went from a directory.
#[derive(Debug)]
struct Gone {
    key: Key,
    directory: Box<[u8]>,
    name: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Group {
    directories: BTreeMap<Box<[u8]>, Names>,
    more: Names,
}

/// Names in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The first ones: paths from the root of the layer on.
    pub first: Vec<Box<[u8]>>,
    /// How many there are, at least.
    pub count: u64,
}

/// What is told as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What was done, and with what.
    pub key: Key,
    /// The directory; `None`: these are of further directories.
    pub directory: Option<Box<[u8]>>,
    /// With what.
    pub names: Names,
}

impl Gathered {
    /// Nothing yet; all before this moment was told. Of each kind of change so many directories are told one by one.
    pub fn new(since: Moment, directories: usize) -> Gathered {
        Gathered {
            since,
            directories,
            groups: BTreeMap::new(),
            known: HashSet::new(),
            bytes: 0,
            random: RandomState::new(),
            gone: None,
        }
    }

    /// Takes in a change of what is called `name` in a directory. `renamed`: the same directory had it under another name, of
    /// which it was just noted that it went.
    pub fn note(&mut self, key: Key, directory: &[u8], name: &[u8], renamed: bool) {
        if let Some(Gone { key, name, .. }) = self.gone.take().filter(|gone| renamed && *gone.directory == *directory) {
            let made = Key { what: What::Created, ..key };
            if self.has(made, directory, &name) {
                // What was made under another name is told under this one.
                self.forget(made, directory, &name);
                self.forget(key, directory, &name);
            }
        }
        if key.what == What::Moved {
            self.gone = Some(Gone { key, directory: directory.into(), name: name.into() });
        }
        // What was made empty is no longer.
        let (mut key, empty) = (key, Key { what: What::Created, thing: Thing::Empty, ..key });
        if key.thing == Thing::File && self.has(empty, directory, name) {
            self.forget(empty, directory, name);
            key.what = if key.what == What::Written { What::Created } else { key.what };
        }
        // Whoever makes a file writes to it.
        let is_told = matches!(key.what, What::Written | What::Attributes | What::Changed)
            && [What::Created, What::Replaced].iter().any(|what| self.has(Key { what: *what, ..key }, directory, name));
        if is_told {
            return;
        }
        let group = self.groups.entry(key).or_default();
        let has_room = group.directories.len() < self.directories;
        let names = match group.directories.get_mut(directory) {
            Some(names) => names,
            None if has_room => group.directories.entry(directory.into()).or_default(),
            None => &mut group.more,
        };
        let path = join(directory, name);
        if names.first.contains(&path) {
            return;
        }
        // The graver ones have room of their own.
        let most = if matches!(key.class, Class::Setuid | Class::Capability) { 2 * MAX_BYTES } else { MAX_BYTES };
        if names.first.len() < MAX_NAMES && self.bytes + path.len() < most {
            self.bytes += path.len();
            names.first.push(path);
            names.count += 1;
        } else if self.known.len() >= MAX_KNOWN || self.known.insert(self.random.hash_one((key, &path))) {
            names.count += 1;
        }
    }

    fn has(&self, key: Key, directory: &[u8], name: &[u8]) -> bool {
        let names = self.groups.get(&key).map(|group| group.directories.get(directory).unwrap_or(&group.more));
        let path = || join(directory, name);
        names.is_some_and(|names| names.first.contains(&path()))
            || (!self.known.is_empty() && self.known.contains(&self.random.hash_one((key, &path()))))
    }

    fn forget(&mut self, key: Key, directory: &[u8], name: &[u8]) {
        let Some(group) = self.groups.get_mut(&key) else { return };
        let path = join(directory, name);
        let names = group.directories.get_mut(directory).unwrap_or(&mut group.more);
        names.first.retain(|first| *first != path);
        self.known.remove(&self.random.hash_one((key, &path)));
        // It may have been counted with the further directories, before there was room for this one.
        names.count = names.count.saturating_sub(1).max(names.first.len() as u64);
        if names.count == 0 {
            group.directories.remove(directory);
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All of it.
    pub fn told(self) -> Vec<Told> {
        let of_group = |(key, Group { directories, more })| {
            let each = directories.into_iter().map(|(directory, names)| (Some(directory), names));
            let rest = (more.count > 0).then_some((None, more));
            each.chain(rest).map(move |(directory, names)| Told { key, directory, names })
        };
        self.groups.into_iter().flat_map(of_group).collect()
    }
}

fn join(directory: &[u8], name: &[u8]) -> Box<[u8]> {
    let path = match (directory, name) {
        (b"", name) => name.into(),
        (directory, b"") => directory.into(),
        _ => [directory, b"/", name].concat(),
    };
    if path.len() > MAX_PATH {
        // The beginning and the end say most.
        return [&path[..MAX_PATH / 2], "…".as_bytes(), &path[path.len() - MAX_PATH / 2..]].concat().into();
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORIES: usize = 16;

    fn key(what: What, class: Class) -> Key {
        Key { what, class, thing: Thing::File }
    }

    fn gathered() -> Gathered {
        Gathered::new(Moment::MIN, DIRECTORIES)
    }

    /// What, directory, names and count of each finding.
    fn told(gathered: Gathered) -> Vec<(What, Option<String>, Vec<String>, u64)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let names = |names: &Names| names.first.iter().map(|name| text(name)).collect();
        let one =
            |told: Told| (told.key.what, told.directory.as_deref().map(text), names(&told.names), told.names.count);
        gathered.told().into_iter().map(one).collect()
    }

    fn note(gathered: &mut Gathered, what: What, path: &str) {
        let (directory, name) = path.rsplit_once('/').expect("a path");
        gathered.note(key(what, Class::Other), directory.as_bytes(), name.as_bytes(), false);
    }

    #[test]
    fn each_file_counts_once_for_each_kind_of_change_and_directory() {
        let mut gathered = gathered();
        for path in ["opt/a", "opt/b", "opt/a", "opt/sub/a"] {
            note(&mut gathered, What::Written, path);
        }
        note(&mut gathered, What::Removed, "opt/a");
        let some = |text: &str| Some(text.to_owned());
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            told(gathered),
            [
                (What::Written, some("opt"), names(&["opt/a", "opt/b"]), 2),
                (What::Written, some("opt/sub"), names(&["opt/sub/a"]), 1),
                (What::Removed, some("opt"), names(&["opt/a"]), 1),
            ]
        );
    }

    #[test]
    fn what_is_made_and_written_is_made_and_what_is_made_under_another_name_has_its_last_one() {
        let mut gathered = gathered();
        for what in [What::Created, What::Written, What::Attributes] {
            note(&mut gathered, what, "opt/new");
        }
        note(&mut gathered, What::Created, "opt/file.tmp");
        note(&mut gathered, What::Moved, "opt/file.tmp");
        gathered.note(key(What::Replaced, Class::Other), b"opt", b"file", true);
        // It was there before.
        note(&mut gathered, What::Moved, "opt/old");
        gathered.note(key(What::Replaced, Class::Other), b"opt", b"young", true);
        let told: Vec<_> = told(gathered).into_iter().map(|(what, _, names, _)| (what, names.join(" "))).collect();
        let expected = [(What::Created, "opt/new"), (What::Replaced, "opt/file opt/young"), (What::Moved, "opt/old")];
        assert_eq!(told, expected.map(|(what, names)| (what, names.to_owned())));
    }

    #[test]
    fn what_is_told_of_further_directories_is_told_once_and_under_its_last_name() {
        let mut gathered = Gathered::new(Moment::MIN, 1);
        note(&mut gathered, What::Created, "opt/a");
        for what in [What::Created, What::Written, What::Attributes] {
            note(&mut gathered, what, "srv/new");
        }
        note(&mut gathered, What::Created, "srv/file.tmp");
        note(&mut gathered, What::Moved, "srv/file.tmp");
        gathered.note(key(What::Replaced, Class::Other), b"srv", b"file", true);
        let told: Vec<_> =
            told(gathered).into_iter().map(|(what, .., names, count)| (what, names.join(" "), count)).collect();
        let expected = [(What::Created, "opt/a", 1), (What::Created, "srv/new", 1), (What::Replaced, "srv/file", 1)];
        assert_eq!(told, expected.map(|(what, names, count)| (what, names.to_owned(), count)));
    }

    #[test]
    fn what_has_another_name_now_takes_no_other_name_with_it() {
        let mut gathered = Gathered::new(Moment::MIN, 1);
        let rename = |gathered: &mut Gathered, directory: &str, from: &str, to: &str| {
            note(gathered, What::Moved, &format!("{directory}/{from}"));
            gathered.note(key(What::Replaced, Class::Other), directory.as_bytes(), to.as_bytes(), true);
        };
        note(&mut gathered, What::Created, "opt/file.tmp");
        for number in 0..=MAX_NAMES {
            note(&mut gathered, What::Created, &format!("srv/{number}"));
        }
        // Now there is room for the next directory, some of whose names are told with those of others.
        rename(&mut gathered, "opt", "file.tmp", "file");
        note(&mut gathered, What::Created, "srv/evil");
        rename(&mut gathered, "srv", &MAX_NAMES.to_string(), "other");
        assert!(told(gathered).iter().any(|(_, _, names, _)| names.contains(&"srv/evil".to_owned())));
    }

    #[test]
    fn directories_do_not_hide_the_file_in_the_last_of_them() {
        let mut gathered = gathered();
        let mut path = String::from("opt");
        for number in 0..100 {
            let directories = Key { thing: Thing::Directory, ..key(What::Created, Class::Other) };
            gathered.note(directories, path.as_bytes(), number.to_string().as_bytes(), false);
            path += &format!("/{number}");
        }
        note(&mut gathered, What::Created, &format!("{path}/file"));
        assert!(told(gathered).iter().any(|(.., names, _)| names.iter().any(|name| name.ends_with("/file"))));
    }

    #[test]
    fn what_is_made_empty_and_written_then_is_made() {
        let mut gathered = gathered();
        let empty = Key { thing: Thing::Empty, ..key(What::Created, Class::Other) };
        gathered.note(empty, b"opt", b"file", false);
        gathered.note(empty, b"opt", b"empty", false);
        note(&mut gathered, What::Written, "opt/file");
        let keys: Vec<_> = gathered.told().into_iter().map(|told| (told.key.what, told.key.thing)).collect();
        assert_eq!(keys, [(What::Created, Thing::Empty), (What::Created, Thing::File)]);
    }

    #[test]
    fn long_paths_take_no_more_memory_than_is_given_to_them() {
        let mut gathered = gathered();
        let deep = vec!["d".repeat(250); 200].join("/");
        for number in 0..100 {
            for what in [What::Created, What::Written, What::Removed, What::Moved, What::Attributes] {
                note(&mut gathered, what, &format!("{number}/{deep}/{number}"));
            }
        }
        let told = gathered.told();
        let bytes: usize = told.iter().flat_map(|told| &told.names.first).map(|path| path.len()).sum();
        assert!(bytes <= MAX_BYTES, "{bytes}");
        assert!(told.iter().map(|told| told.names.count).sum::<u64>() >= 300);
    }

    #[test]
    fn what_lives_and_dies_is_told_as_both() {
        let mut gathered = gathered();
        note(&mut gathered, What::Created, "opt/short");
        note(&mut gathered, What::Removed, "opt/short");
        assert_eq!(told(gathered).len(), 2);
    }

    #[test]
    fn a_storm_takes_little_memory_and_every_grade_of_it_is_told() {
        let mut gathered = gathered();
        for number in 0..200_000 {
            let directory = format!("opt/{}", number % 500);
            gathered.note(key(What::Created, Class::Other), directory.as_bytes(), number.to_string().as_bytes(), false);
        }
        gathered.note(key(What::Attributes, Class::Setuid), b"opt/7", b"su", false);
        gathered.note(key(What::Written, Class::Binary), b"usr/bin", b"ls", false);
        assert!(gathered.known.len() <= MAX_KNOWN);
        let told = gathered.told();
        assert!(told.len() <= DIRECTORIES + 1 + 2);
        let count =
            |class: Class| told.iter().filter(|told| told.key.class == class).map(|told| told.names.count).sum();
        let counts: [u64; 3] = [Class::Other, Class::Setuid, Class::Binary].map(count);
        assert_eq!(counts, [200_000, 1, 1]);
        assert!(told.iter().all(|told| told.names.first.len() <= MAX_NAMES));
    }
}
