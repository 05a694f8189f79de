//! Which paths below a root are of interest.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// Paths that are left out, with all that is below them, and paths below those that are not. Of two the longer one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(Vec<Part>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// Whether it is of interest, if that is said of it.
    verdict: Option<bool>,
    parts: BTreeMap<Box<[u8]>, usize>,
}

/// A place below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which part of the scope it is, if something is said of what is below it.
    part: Option<usize>,
    wanted: bool,
}

impl Scope {
    /// All but what is in `excluded`, unless it is in `included`. Paths are from the root on, with or without a leading `/`.
    pub fn new<'p>(
        excluded: impl IntoIterator<Item = &'p Path>,
        included: impl IntoIterator<Item = &'p Path>,
    ) -> Scope {
        let mut scope = Scope(vec![Part::default()]);
        excluded.into_iter().for_each(|path| scope.add(path, false));
        included.into_iter().for_each(|path| scope.add(path, true));
        scope
    }

    /// Of that only what is in these directories of the root, and what was included by name.
    #[must_use]
    pub fn only(&self, names: impl IntoIterator<Item = &'static str>) -> Scope {
        let mut scope = self.clone();
        let wanted = scope.0[0].verdict.replace(false).unwrap_or(true);
        for name in names {
            let known = scope.0[0].parts.get(name.as_bytes()).and_then(|part| scope.0[*part].verdict);
            scope.add(Path::new(name), known.unwrap_or(wanted));
        }
        scope
    }

    fn add(&mut self, path: &Path, wanted: bool) {
        let mut at = 0;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let next = self.0.len();
            at = *self.0[at].parts.entry(name.as_bytes().into()).or_insert(next);
            if at == next {
                self.0.push(Part::default());
            }
        }
        self.0[at].verdict = Some(wanted);
    }

    /// The root itself.
    pub fn root(&self) -> Place {
        Place { part: Some(0), wanted: self.0[0].verdict.unwrap_or(true) }
    }

    /// What is called `name` in a directory.
    pub fn child(&self, place: Place, name: &[u8]) -> Place {
        let part = place.part.and_then(|part| self.0[part].parts.get(name).copied());
        let verdict = part.and_then(|part| self.0[part].verdict);
        let part = part.filter(|part| !self.0[*part].parts.is_empty());
        Place { part, wanted: verdict.unwrap_or(place.wanted) }
    }

    /// What is at a path from the root on.
    pub fn find(&self, path: &[u8]) -> Place {
        let mut place = self.root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if place.part.is_none() {
                break;
            }
            place = self.child(place, name);
        }
        place
    }
}

impl Place {
    /// Whether it is of interest.
    pub fn is_wanted(self) -> bool {
        self.wanted
    }

    /// Whether it is, or something below it may be.
    pub fn leads_on(self) -> bool {
        self.wanted || self.part.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_paths_the_longer_one_counts() {
        let paths = |list: &'static [&str]| list.iter().map(Path::new);
        let scope =
            Scope::new(paths(&["/var", "proc", "/srv/www/cache"]), paths(&["/var/lib/app", "/var/lib/app/../x"]));
        for (path, wanted, leads_on) in [
            ("", true, true),
            ("etc/passwd", true, true),
            ("var", false, true),
            ("var/log/x", false, false),
            ("var/lib", false, true),
            ("var/lib/app/data", true, true),
            ("var/lib/application", false, false),
            ("proc", false, false),
            ("processes", true, true),
            ("srv/www", true, true),
            ("srv/www/cache/x", false, false),
            ("srv//www/cache", false, false),
        ] {
            let place = scope.find(path.as_bytes());
            assert_eq!((place.is_wanted(), place.leads_on()), (wanted, leads_on), "{path}");
        }
        let scope = scope.only(["etc", "var"]);
        for (path, wanted) in [
            ("", false),
            ("etc/passwd", true),
            ("var", false),
            ("var/lib/app/data", true),
            ("srv", false),
            ("srv/www", false),
        ] {
            assert_eq!(scope.find(path.as_bytes()).is_wanted(), wanted, "{path}");
        }
    }
}
