//! What a change in a layer means, as overlayfs makes it (Documentation/filesystems/overlayfs.rst). Pure.

use rustix::fs::FileType;

use super::class::Class;
use crate::watch::tree::{Change, From, Mark, Stat};

/// What is to be known of files: whether they have capabilities, and whether they were copied up from the image. Nobody in
/// a container can set the second one; that of root's own containers podsecd cannot see.
pub const MARKS: &[Mark] = &[c"security.capability", c"user.overlay.origin"];
const CAPABILITY: u8 = 1;
const COPIED_UP: u8 = 1 << 1;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// It was made, or linked.
    Created,
    /// Its content was written.
    Written,
    /// Something was moved to its place.
    Replaced,
    /// It was removed.
    Removed,
    /// It was moved away.
    Moved,
    /// Its mode, owner, times or extended attributes were changed.
    Attributes,
    /// It is other than it was; the kernel did not say how.
    Changed,
}

impl What {
    /// The word for it in `PODSEC_CHANGE`, and in a sentence.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Created => "created",
            What::Written => "written",
            What::Replaced => "replaced",
            What::Removed => "removed",
            What::Moved => "moved",
            What::Attributes => "attributes",
            What::Changed => "changed",
        }
    }
}

/// What overlayfs and fuse-overlayfs leave where something of the image was removed.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    stat.kind() == FileType::CharacterDevice && stat.device == (0, 0)
}

/// Whether it is marked as copied up from the image.
pub(super) fn is_copied_up(stat: &Stat) -> bool {
    stat.marks & COPIED_UP != 0
}

/// fuse-overlayfs' name for it.
const WHITEOUT: &[u8] = b".wh.";
/// And for a directory of which nothing below is seen.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What can be told in a store.
#[derive(Clone, Copy, Debug)]
pub struct Overlay {
    /// What was copied up from the image is marked.
    pub is_marked: bool,
    /// It is fuse-overlayfs, which has names for what was removed.
    pub is_fuse: bool,
}

/// The name of what an entry of a layer is of.
pub fn name(name: &[u8], overlay: Overlay) -> &[u8] {
    match name {
        name if !overlay.is_fuse => name,
        OPAQUE => b"",
        name => name.strip_prefix(WHITEOUT).unwrap_or(name),
    }
}

/// What the image has where a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// That is not known.
    Unknown,
    /// No directory.
    Nothing,
    /// A directory, which has the same permissions or others.
    Directory {
        /// They are the same.
        is_same: bool,
    },
}

/// What was done with an entry of a layer, if it means anything. What is `below` is asked for directories only.
pub fn meaning(
    change: Change,
    name: &[u8],
    is_directory: bool,
    stat: Option<&Stat>,
    overlay: Overlay,
    below: Below,
) -> Option<What> {
    // A program is none, whatever its name is.
    let is_named_so = overlay.is_fuse && name.starts_with(WHITEOUT) && stat.is_none_or(|stat| stat.size == 0);
    let is_copied_up = stat.is_some_and(is_copied_up);
    let is_copied_directory = is_directory && below != Below::Nothing && (is_copied_up || !overlay.is_marked);
    match change {
        // These are told by what is made of them, not by their going.
        Change::MovedFrom | Change::Removed | Change::Attributes if is_named_so => None,
        Change::MovedFrom => Some(What::Moved),
        Change::Removed | Change::Lacking => Some(What::Removed),
        _ if is_named_so || stat.is_some_and(is_whiteout) => Some(What::Removed),
        // Of the layer's own directory, and of those of the image, overlayfs changes times and the like all the time.
        Change::Attributes if name.is_empty() => None,
        Change::MovedTo(From::Elsewhere) | Change::Attributes | Change::Created | Change::Found { .. }
            if is_copied_directory && below == (Below::Directory { is_same: false }) =>
        {
            Some(What::Attributes)
        }
        // Something in it is changed, which is told.
        Change::MovedTo(From::Elsewhere) | Change::Attributes if is_copied_directory => None,
        Change::Created | Change::Found { .. } if matches!(below, Below::Directory { .. }) => None,
        Change::Created if is_directory && is_copied_up => None,
        Change::Seen => None,
        Change::Created | Change::MovedTo(From::Elsewhere) if is_copied_up && !is_directory => Some(What::Written),
        Change::Created => Some(What::Created),
        Change::MovedTo(_) => Some(What::Replaced),
        Change::Written => Some(What::Written),
        Change::Attributes => Some(What::Attributes),
        Change::Found { is_new: true } if !is_copied_up => Some(What::Created),
        Change::Found { .. } if is_directory => None,
        Change::Found { .. } => Some(What::Changed),
    }
}

/// Whether a file runs with other rights than those of whoever runs it.
pub fn is_precious(stat: &Stat) -> bool {
    matches!(class(b"", Some(stat)), Class::Setuid | Class::Capability)
}

/// How grave it is.
pub fn class(path: &[u8], stat: Option<&Stat>) -> Class {
    match stat {
        Some(stat) if stat.is_setuid() => Class::Setuid,
        Some(stat) if stat.kind() == FileType::RegularFile && stat.marks & CAPABILITY != 0 => Class::Capability,
        _ => Class::of(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::tree::Moment;

    const FILE: Stat = Stat {
        mode: 0o100_644,
        size: 0,
        device: (0, 0),
        changed: Moment::MIN,
        modified: Moment::MIN,
        made: None,
        marks: 0,
    };

    const FUSE: Overlay = Overlay { is_marked: true, is_fuse: true };

    #[test]
    fn what_overlayfs_does_means_what_the_container_did() {
        let copied = Stat { marks: COPIED_UP, ..FILE };
        let whiteout = Stat { mode: 0o020_000, ..FILE };
        let null = Stat { device: (1, 3), ..whiteout };
        let directory = Stat { mode: 0o040_755, ..FILE };
        let copied_directory = Stat { marks: COPIED_UP, ..directory };
        let gone = None;
        for (change, name, stat, expected) in [
            (Change::Created, "f", Some(FILE), Some(What::Created)),
            (Change::Created, "f", gone, Some(What::Created)),
            (Change::Created, "f", Some(copied), Some(What::Written)),
            (Change::Created, "d", Some(directory), Some(What::Created)),
            (Change::Created, "null", Some(null), Some(What::Created)),
            (Change::Created, ".wh.f", Some(FILE), Some(What::Removed)),
            (Change::Removed, ".wh.f", gone, None),
            (Change::MovedTo(From::Elsewhere), "f", Some(whiteout), Some(What::Removed)),
            (Change::MovedTo(From::Elsewhere), "f", Some(copied), Some(What::Written)),
            (Change::MovedTo(From::Elsewhere), "f", Some(FILE), Some(What::Replaced)),
            (Change::MovedTo(From::Within), "f", Some(copied), Some(What::Replaced)),
            (Change::MovedTo(From::Elsewhere), "etc", Some(copied_directory), None),
            (Change::MovedTo(From::Elsewhere), "d", Some(directory), Some(What::Replaced)),
            (Change::MovedTo(From::Watched), "d", Some(copied_directory), Some(What::Replaced)),
            (Change::Attributes, "etc", Some(copied_directory), None),
            (Change::Created, "bin", Some(copied_directory), None),
            (Change::Attributes, "", Some(directory), None),
            (Change::Attributes, "f", Some(copied), Some(What::Attributes)),
            (Change::MovedFrom, "f", gone, Some(What::Moved)),
            (Change::Removed, "f", gone, Some(What::Removed)),
            (Change::Lacking, "", gone, Some(What::Removed)),
            (Change::Written, "f", Some(FILE), Some(What::Written)),
            (Change::Found { is_new: false }, "f", Some(FILE), Some(What::Changed)),
            (Change::Found { is_new: true }, "f", Some(FILE), Some(What::Created)),
            (Change::Found { is_new: true }, "f", Some(copied), Some(What::Changed)),
            (Change::Found { is_new: true }, "f", Some(whiteout), Some(What::Removed)),
            (Change::Found { is_new: false }, "d", Some(directory), None),
        ] {
            let is_directory = stat.is_some_and(|stat| stat.kind() == FileType::Directory);
            let meant = meaning(change, name.as_bytes(), is_directory, stat.as_ref(), FUSE, Below::Unknown);
            assert_eq!(meant, expected, "{change:?} {name} {stat:?}");
        }
        let [same, other] = [true, false].map(|is_same| Below::Directory { is_same });
        let copied = |is_marked| if is_marked { copied_directory } else { directory };
        for (change, below, expected) in [
            (Change::Attributes, other, Some(What::Attributes)),
            (Change::Attributes, same, None),
            (Change::MovedTo(From::Elsewhere), other, Some(What::Attributes)),
            (Change::MovedTo(From::Elsewhere), same, None),
            (Change::Created, same, None),
            (Change::Found { is_new: true }, other, Some(What::Attributes)),
            (Change::Found { is_new: true }, same, None),
        ] {
            for is_marked in [true, false] {
                let overlay = Overlay { is_marked, is_fuse: false };
                let stat = copied(is_marked);
                assert_eq!(
                    meaning(change, b"etc", true, Some(&stat), overlay, below),
                    expected,
                    "{change:?} {below:?}"
                );
            }
        }
        let of_root = Overlay { is_marked: false, is_fuse: false };
        for (change, expected) in [
            (Change::Attributes, What::Attributes),
            (Change::MovedTo(From::Elsewhere), What::Replaced),
            (Change::Created, What::Created),
        ] {
            assert_eq!(meaning(change, b"own", true, Some(&directory), of_root, Below::Nothing), Some(expected));
        }
        let native = Overlay { is_marked: false, is_fuse: false };
        let meant = |name: &[u8], is_directory, stat, overlay| {
            let change = if is_directory { Change::MovedTo(From::Elsewhere) } else { Change::Created };
            meaning(change, name, is_directory, Some(stat), overlay, Below::Unknown)
        };
        assert_eq!(meant(b"etc", true, &directory, native), None, "of root");
        assert_eq!(meant(b".wh.f", false, &FILE, native), Some(What::Created), "only a name");
        let program = Stat { size: 1, ..FILE };
        assert_eq!(meant(b".wh.f", false, &program, FUSE), Some(What::Created), "a program");
        let names = [&b".wh.f"[..], b".wh..wh..opq", b"f"];
        assert_eq!(names.map(|it| name(it, FUSE)), [&b"f"[..], b"", b"f"]);
        assert_eq!(names.map(|it| name(it, native)), names);
    }

    #[test]
    fn who_runs_with_others_rights_is_graver_than_where_it_is() {
        let setuid = Stat { mode: 0o104_755, ..FILE };
        let setgid = Stat { mode: 0o102_755, ..FILE };
        // That only means that files are locked when they are read.
        let locked = Stat { mode: 0o102_644, ..FILE };
        let capable = Stat { marks: CAPABILITY, ..FILE };
        let directory = Stat { mode: 0o042_775, ..FILE };
        for (path, stat, expected) in [
            ("etc/x", Some(setuid), Class::Setuid),
            ("opt/x", Some(setgid), Class::Setuid),
            ("opt/x", Some(locked), Class::Other),
            ("opt/x", Some(directory), Class::Other),
            ("usr/x", Some(capable), Class::Capability),
            ("usr/x", None, Class::Binary),
        ] {
            assert_eq!(class(path.as_bytes(), stat.as_ref()), expected, "{path} {stat:?}");
        }
    }
}
