//! What kind of place in a container a path is. Pure.

/// How grave a change there is, by what it is that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A program that runs with the rights of its owner or its group.
    Setuid,
    /// A program with capabilities of its own (capabilities(7)).
    Capability,
    /// What a distribution installs: programs and libraries.
    Binary,
    /// Configuration and homes: podsec warns only.
    Settings,
    /// Anything else.
    Other,
}

/// Programs and libraries: hier(7), and the further names of `/lib`.
const BINARIES: [&[u8]; 3] = [b"bin", b"sbin", b"usr"];
/// podsec's.
const SETTINGS: [&[u8]; 3] = [b"etc", b"root", b"home"];

impl Class {
    /// That of a path in the container, without a leading `/`.
    pub fn of(path: &[u8]) -> Class {
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        if SETTINGS.contains(&top) {
            Class::Settings
        } else if BINARIES.contains(&top) || top.starts_with(b"lib") {
            Class::Binary
        } else {
            Class::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_decides() {
        for (path, class) in [
            ("etc/passwd", Class::Settings),
            ("etc", Class::Settings),
            ("root/.bashrc", Class::Settings),
            ("home/x", Class::Settings),
            ("usr/bin/su", Class::Binary),
            ("lib64/ld.so", Class::Binary),
            ("lib", Class::Binary),
            ("sbin/init", Class::Binary),
            ("opt/usr/bin", Class::Other),
            ("etcetera", Class::Other),
            ("", Class::Other),
        ] {
            assert_eq!(Class::of(path.as_bytes()), class, "{path}");
        }
    }
}
