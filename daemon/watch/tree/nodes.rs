//! Which watch is of which directory: the names of two hundred thousand directories in four megabytes.
//!
//! The kernel numbers watches one after the other, and never gives a number twice. So nodes of numbers that follow each other
//! lie side by side, with their names, and are freed together.

use std::collections::{BTreeMap, HashMap};

/// The number of a watch, as inotify_add_watch(2) gives it: above 0.
pub(super) type Watch = i32;
/// The number of a root, as whoever watches it chose it.
pub type Root = u32;

/// Deeper is no directory: one level of path is two bytes at least, and so much is no path at all.
const MAX_CLIMB: usize = 8192;

/// All watched directories.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pages: HashMap<i32, Box<Page>>,
    count: usize,
    last: Watch,
    /// Counts the walks of whole trees.
    turn: u8,
}

/// Nodes of watches that follow each other.
#[derive(Debug)]
struct Page {
    /// Which are there, as bits.
    live: u64,
    nodes: [Node; PAGE],
    names: Vec<u8>,
}

const PAGE: usize = 64;
/// From this size on names of former nodes are thrown away.
const MAX_NAMES: usize = 32 << 10;

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// The watch of the directory in which it is; that of a root is below 0; 0: it was moved away.
    parent: i32,
    name_at: u16,
    name_length: u8,
    /// In which turn it was seen last.
    turn: u8,
}

/// What a directory is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// It is the root of that number itself.
    Root(Root),
    /// The directory of that watch.
    Directory(Watch),
}

/// A directory that was moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The watch of the directory in which it was.
    pub(super) parent: Watch,
    pub(super) name: Box<[u8]>,
    /// The last watch at that time: what came to its place later has a higher one.
    pub(super) last: Watch,
}

impl Moved {
    /// Whether a directory has been there under that name, and may be it.
    pub(super) fn may_be(&self, watch: Watch, parent: Parent, name: &[u8]) -> bool {
        watch <= self.last && parent == Parent::Directory(self.parent) && *name == *self.name
    }
}

impl Parent {
    /// The one of which [`Parent::number`] gives that number; `None`: 0, which is none.
    pub(super) fn of(number: i32) -> Option<Parent> {
        match number {
            0 => None,
            root if root < 0 => Some(Parent::Root((-1 - root).cast_unsigned())),
            watch => Some(Parent::Directory(watch)),
        }
    }

    pub(super) fn number(self) -> i32 {
        match self {
            // There are not so many roots.
            Parent::Root(root) => -1 - root.cast_signed().max(0),
            Parent::Directory(watch) => watch,
        }
    }
}

impl Nodes {
    /// How many directories are watched.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The highest number of a watch so far.
    pub(super) fn last(&self) -> Watch {
        self.last
    }

    fn get(&self, watch: Watch) -> Option<(&Page, Node)> {
        let page = self.pages.get(&(watch / PAGE as i32))?;
        let at = watch as usize % PAGE;
        (page.live >> at & 1 == 1).then(|| (&**page, page.nodes[at]))
    }

    /// Whether a directory has that watch.
    pub(super) fn has(&self, watch: Watch) -> bool {
        self.get(watch).is_some()
    }

    /// Whether a directory is in that one, under that name; `None` if it is not known, or was moved away.
    pub(super) fn is_at(&self, watch: Watch, parent: Parent, name: &[u8]) -> Option<bool> {
        let (page, node) = self.get(watch)?;
        (node.parent != 0).then(|| node.parent == parent.number() && page.name(node) == name)
    }

    /// A directory is watched, or one that is has another name. Names of more than 255 bytes are none, and are cut.
    pub(super) fn insert(&mut self, watch: Watch, parent: Parent, name: &[u8]) {
        let Some(at) = usize::try_from(watch).ok().map(|watch| watch % PAGE) else { return };
        let page = self
            .pages
            .entry(watch / PAGE as i32)
            .or_insert_with(|| Box::new(Page { live: 0, nodes: [Node::default(); PAGE], names: Vec::new() }));
        let is_new = page.live >> at & 1 == 0;
        self.count += usize::from(is_new);
        self.last = self.last.max(watch);
        page.live |= 1 << at;
        (page.nodes[at].parent, page.nodes[at].turn) = (parent.number(), self.turn);
        if is_new || page.name(page.nodes[at]) != name {
            page.rename(at, &name[..name.len().min(255)]);
        }
    }

    /// A directory is watched no longer. Answers in what it was, if it was known.
    pub(super) fn remove(&mut self, watch: Watch) -> Option<Parent> {
        let (_, node) = self.get(watch)?;
        let key = watch / PAGE as i32;
        if let Some(page) = self.pages.get_mut(&key) {
            page.live &= !(1 << (watch as usize % PAGE));
            if page.live == 0 {
                self.pages.remove(&key);
            }
        }
        self.count -= 1;
        Some(match node.parent {
            root if root < 0 => Parent::Root((-1 - root).cast_unsigned()),
            parent => Parent::Directory(parent),
        })
    }

    /// The root of a directory, and its path from there (`usr/bin`, empty for the root itself), in place of what is in `path`; a
    /// root that is not watched has the number that [`Parent::number`] gives. `None` if it was moved away, or is not known, nor one of those above it.
    pub(super) fn path(&self, watch: Watch, path: &mut Vec<u8>) -> Option<Root> {
        path.clear();
        if watch < 0 {
            return Some((-1 - watch).cast_unsigned());
        }
        let mut at = watch;
        for _ in 0..MAX_CLIMB {
            let (page, node) = self.get(at)?;
            match node.parent {
                0 => return None,
                root if root < 0 => {
                    path.pop();
                    path.reverse();
                    return Some((-1 - root).cast_unsigned());
                }
                parent => {
                    path.extend(page.name(node).iter().rev());
                    path.push(b'/');
                    at = parent;
                }
            }
        }
        None
    }

    /// Of what was moved away it is not known where it is: it is not there any more, nor is what is in it. All of `moved` in one
    /// go: it takes a look at each node.
    pub(super) fn detach(&mut self, moved: &[Moved]) {
        let mut from: HashMap<Watch, Vec<&Moved>> = HashMap::new();
        for moved in moved {
            from.entry(moved.parent).or_default().push(moved);
        }
        for (number, page) in &mut self.pages {
            for at in 0..PAGE {
                let (node, watch) = (page.nodes[at], number * PAGE as i32 + at as i32);
                let is_it = |moved: &&Moved| watch <= moved.last && page.name(node) == &*moved.name;
                let moved = from.get(&node.parent).into_iter().flatten();
                if page.live >> at & 1 == 1 && moved.copied().any(|moved| is_it(&moved)) {
                    page.nodes[at].parent = 0;
                }
            }
        }
    }

    /// The walk of a whole tree begins. Answers its turn, for [`Nodes::detach_unseen`].
    pub(super) fn begin_turn(&mut self) -> u8 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// Walks that saw all of these trees are done: what was not seen since they began, in their turns, is not there.
    pub(super) fn detach_unseen(&mut self, walked: &BTreeMap<Root, u8>) {
        let age = |turn: u8| self.turn.wrapping_sub(turn);
        let Some(least) = walked.values().map(|turn| age(*turn)).min() else { return };
        let mut path = Vec::new();
        let is_unseen = |watch: &Watch| {
            let Some((_, node)) = self.get(*watch).filter(|(_, node)| age(node.turn) > least) else { return false };
            let root = self.path(*watch, &mut path);
            root.and_then(|root| walked.get(&root)).is_some_and(|turn| age(node.turn) > age(*turn))
        };
        let unseen: Vec<_> = self.watches().filter(is_unseen).collect();
        for watch in unseen {
            if let Some(page) = self.pages.get_mut(&(watch / PAGE as i32)) {
                page.nodes[watch as usize % PAGE].parent = 0;
            }
        }
    }

    /// The watches of what is not in a root, at a path below it, that are `kept`.
    pub(super) fn outside(&self, kept: impl Fn(Root, &[u8]) -> bool) -> Vec<Watch> {
        let mut path = Vec::new();
        let is_outside = |watch: &Watch| {
            let root = self.path(*watch, &mut path);
            !root.is_some_and(|root| kept(root, &path))
        };
        self.watches().filter(is_outside).collect()
    }

    /// How many directories there are of each root.
    pub(super) fn counts(&self) -> BTreeMap<Root, usize> {
        let (mut path, mut counts) = (Vec::new(), BTreeMap::new());
        for root in self.watches().filter_map(|watch| self.path(watch, &mut path)) {
            *counts.entry(root).or_default() += 1;
        }
        counts
    }

    /// All directories of which it is known where they are: in what, and under which name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Watch, Parent, &[u8])> {
        let entry = |watch| {
            let (page, node) = self.get(watch)?;
            Some((watch, Parent::of(node.parent)?, page.name(node)))
        };
        self.watches().filter_map(entry)
    }

    fn watches(&self) -> impl Iterator<Item = Watch> {
        self.pages.iter().flat_map(|(number, page)| {
            (0..PAGE).filter(|at| page.live >> at & 1 == 1).map(move |at| number * PAGE as i32 + at as i32)
        })
    }
}

impl Page {
    fn name(&self, node: Node) -> &[u8] {
        &self.names[usize::from(node.name_at)..][..usize::from(node.name_length)]
    }

    fn rename(&mut self, at: usize, name: &[u8]) {
        if self.names.len() + name.len() > MAX_NAMES {
            let mut names = Vec::new();
            for other in (0..PAGE).filter(|other| *other != at && self.live >> other & 1 == 1) {
                let start = names.len();
                names.extend_from_slice(self.name(self.nodes[other]));
                self.nodes[other].name_at = start as u16;
            }
            self.names = names;
        }
        let node = &mut self.nodes[at];
        (node.name_at, node.name_length) = (self.names.len() as u16, name.len() as u8);
        self.names.extend_from_slice(name);
        if self.live == u64::MAX {
            self.names.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a directory, by number of the watch.
    #[derive(Clone, Debug)]
    enum Step {
        Insert(Watch, Watch, Vec<u8>),
        Remove(Watch),
        Detach(Watch, Vec<u8>, Watch),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (watch, parent) = (1..200, 0..200);
        let name = proptest::collection::vec(any::<u8>().prop_filter("a name", |byte| *byte != b'/'), 1..4);
        prop_oneof![
            6 => (watch.clone(), parent, name.clone()).prop_map(|(watch, parent, name)| Step::Insert(watch, parent, name)),
            1 => watch.clone().prop_map(Step::Remove),
            1 => (watch.clone(), name, watch).prop_map(|(parent, name, last)| Step::Detach(parent, name, last)),
        ]
    }

    /// Parent (0 for the root, `None` for what was moved away) and name.
    type Model = BTreeMap<Watch, (Option<Watch>, Vec<u8>)>;

    fn model_path(model: &Model, mut watch: Watch) -> Option<Vec<u8>> {
        let mut parts = Vec::new();
        for _ in 0..=model.len() {
            match model.get(&watch)? {
                (None, _) => return None,
                (Some(0), _) => {
                    parts.reverse();
                    return Some(parts.join(&b'/'));
                }
                (Some(parent), name) => {
                    parts.push(&name[..]);
                    watch = *parent;
                }
            }
        }
        None
    }

    proptest! {
        #[test]
        fn paths_are_those_of_a_plain_map(steps in proptest::collection::vec(step(), 1..400)) {
            let (mut nodes, mut model) = (Nodes::default(), Model::new());
            for step in steps {
                match step {
                    Step::Insert(watch, parent, name) => {
                        let of = if parent == 0 { Parent::Root(7) } else { Parent::Directory(parent) };
                        nodes.insert(watch, of, &name);
                        model.insert(watch, (Some(parent), name));
                    }
                    Step::Remove(watch) => {
                        let root = nodes.remove(watch);
                        let removed = model.remove(&watch);
                        let is_root = removed.map(|(parent, _)| parent == Some(0));
                        prop_assert_eq!(root.map(|parent| parent == Parent::Root(7)), is_root);
                    }
                    Step::Detach(parent, name, last) => {
                        nodes.detach(&[Moved { parent, name: name.clone().into(), last }]);
                        for (watch, (of, called)) in &mut model {
                            if *watch <= last && *of == Some(parent) && *called == name {
                                *of = None;
                            }
                        }
                    }
                }
            }
            prop_assert_eq!(nodes.count(), model.len());
            let mut path = Vec::new();
            for watch in 0..200 {
                let root = nodes.path(watch, &mut path);
                prop_assert_eq!(root.map(|_| path.clone()), model_path(&model, watch), "watch {}", watch);
                prop_assert_eq!(nodes.get(watch).is_some(), model.contains_key(&watch));
            }
            let outside = nodes.outside(|_, _| true);
            prop_assert_eq!(nodes.counts().values().sum::<usize>(), model.len() - outside.len());
            prop_assert_eq!(outside.len(), model.keys().filter(|watch| model_path(&model, **watch).is_none()).count());
        }
    }

    #[test]
    fn names_of_former_directories_take_no_memory_for_ever() {
        let mut nodes = Nodes::default();
        nodes.insert(1, Parent::Root(0), b"");
        nodes.insert(2, Parent::Directory(1), b"kept");
        for number in 0..10_000 {
            nodes.insert(3, Parent::Directory(1), format!("{number:0200}").as_bytes());
        }
        let mut path = Vec::new();
        assert_eq!((nodes.path(2, &mut path), &path[..]), (Some(0), &b"kept"[..]));
        assert!(nodes.path(3, &mut path).is_some() && path.ends_with(b"9999"));
        assert!(nodes.pages[&0].names.capacity() <= 2 * MAX_NAMES);
    }
}
