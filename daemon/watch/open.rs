//! Opens what others may have put there.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::libc::{ELOOP, ENOTDIR, EXDEV};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags, fstat, fstatfs, openat, readlinkat, statx};
use rustix::io::Errno;

/// Of statfs(2): file systems whose regular files are none. Reading one may change something.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
const DEBUGFS_MAGIC: u64 = 0x6462_6720;
const TRACEFS_MAGIC: u64 = 0x7472_6163;

/// The directory in which a path lies; that of a bare name is the current one.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        None => Path::new("/"),
        Some(here) if here.as_os_str().is_empty() => Path::new("."),
        Some(directory) => directory,
    }
}

/// Whether nobody but root and our own user may change what has this metadata.
pub fn is_trusted(metadata: &Metadata) -> bool {
    let owner = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    owner && metadata.mode() & 0o022 == 0
}

/// What makes that trusted which is not. A directory that all may write to, as /tmp, is to stay what it is.
pub fn remedy_of_trust(path: &Path, metadata: &Metadata, user: &str) -> String {
    if metadata.mode() & 0o1000 != 0 {
        return format!("keep the file in another directory, to which only {user} can write");
    }
    format!("run `chown {user} {0}` and `chmod go-w {0}`", path.display())
}

/// Opens a regular file for reading: never blocks (a FIFO would), opens nothing else even for a moment (a device may mind),
/// and follows a link in the last component only where root owns both the link and its directory.
///
/// # Errors
/// Those of open(2); `InvalidInput` if it is not a regular file, or a link that somebody else than root made.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let open = |flags: OFlags| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty());
    let found = open(OFlags::NOFOLLOW)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink {
        if !is_roots_link(path) {
            // Not ELOOP: others may well follow it.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a link that is not root's"));
        }
        return read(&open(OFlags::empty())?);
    }
    read(&found)
}

/// Opens a regular file of our own, as [`open_regular`] does; `None` if there is none. Others may write to its
/// directory: what is theirs is not touched, so that no error of theirs is ours.
///
/// # Errors
/// Those of lstat(2) and open(2), but for what says that none of ours is there.
pub fn open_own(path: &Path) -> io::Result<Option<File>> {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound, PermissionDenied};
    let opened = path.symlink_metadata().and_then(|metadata| {
        let is_own = metadata.is_file() && metadata.uid() == nix::unistd::geteuid().as_raw();
        is_own.then(|| open_regular(path)).transpose()
    });
    match opened {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied | InvalidFilename) => Ok(None),
        // Somebody made one of its directories a link in a circle.
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => Ok(None),
        other => other,
    }
}

/// A directory below which to look, whatever somebody else puts there.
///
/// Paths are walked here, a component at a time, and not by openat2(2), which `RestrictSUIDSGID=` of systemd.exec(5)
/// takes away.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    bounds: Bounds,
    mount: Mount,
}

/// Tells mounts apart: their numbers, or else the devices.
type Mount = (u64, u32, u32);

/// Where a path may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// Nowhere else: a link that leads further up, and one that is absolute, is not followed, and no mount is entered.
    Below,
    /// The directory is the root: whatever leads further up ends there, and absolute links begin there.
    Root,
}

/// So many links one path may lead over, as for the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Deeper paths are not walked: each step holds a descriptor.
pub const MAX_PARTS: usize = 64;

impl Directory {
    /// A directory that nobody else chose.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Directory> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = openat(CWD, path, flags, Mode::empty())?;
        let (_, mount) = mount(&descriptor)?;
        Ok(Directory { descriptor, bounds: Bounds::Below, mount })
    }

    /// The same, as the root of a tree: absolute paths and links in it are of that tree.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_root(path: &Path) -> io::Result<Directory> {
        Ok(Directory { bounds: Bounds::Root, ..Directory::open(path)? })
    }

    /// Tells mounts apart.
    pub fn mount(&self) -> impl PartialEq + use<> {
        self.mount
    }

    /// Opens what is there, whatever it is, without any effect (`O_PATH`); links are followed as [`Directory::open`] and
    /// [`Directory::open_root`] say.
    ///
    /// # Errors
    /// Those of openat(2); `EXDEV` for what leads out of the directory, `ELOOP` for too many links.
    pub fn find(&self, name: &Path) -> io::Result<OwnedFd> {
        Ok(self.walk(name)?.0)
    }

    /// The same, and over how many links the path leads.
    ///
    /// # Errors
    /// Those of [`Directory::find`].
    pub fn walk(&self, name: &Path) -> io::Result<(OwnedFd, u32)> {
        let error = |errno: i32| io::Error::from_raw_os_error(errno);
        let mut rest: Vec<OsString> = reversed(name);
        if name.is_absolute() && self.bounds == Bounds::Below {
            return Err(error(EXDEV));
        }
        let mut links = 0;
        // Where the path leads: what is above the last one is where `..` leads to.
        let mut trail: Vec<OwnedFd> = Vec::new();
        while let Some(part) = rest.pop() {
            if part == ".." {
                if trail.pop().is_none() && self.bounds == Bounds::Below {
                    return Err(error(EXDEV));
                }
                continue;
            }
            if trail.len() == MAX_PARTS {
                return Err(io::Error::other(format!("its path has more than {MAX_PARTS} parts")));
            }
            let here = trail.last().unwrap_or(&self.descriptor);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = openat(here, part.as_os_str(), flags, Mode::empty())?;
            let (kind, mount) = mount(&found)?;
            if self.bounds == Bounds::Below && mount != self.mount {
                return Err(error(EXDEV));
            }
            if kind != FileType::Symlink {
                trail.push(found);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(error(ELOOP));
            }
            let target = OsString::from_vec(readlinkat(&found, c"", Vec::new())?.into_bytes());
            if Path::new(&target).is_absolute() {
                if self.bounds == Bounds::Below {
                    return Err(error(EXDEV));
                }
                trail.clear();
            }
            rest.extend(reversed(Path::new(&target)));
        }
        match trail.pop() {
            Some(found) => Ok((found, links)),
            None => Ok((self.descriptor.try_clone()?, links)),
        }
    }

    /// A directory in it, below which the same holds as below those that [`Directory::open`] opens.
    ///
    /// # Errors
    /// Those of [`Directory::find`], `ENOTDIR`.
    pub fn directory(&self, name: &Path) -> io::Result<Directory> {
        let descriptor = self.find(name)?;
        let (kind, mount) = mount(&descriptor)?;
        if kind != FileType::Directory {
            return Err(io::Error::from_raw_os_error(ENOTDIR));
        }
        Ok(Directory { descriptor, bounds: Bounds::Below, mount })
    }

    /// Opens a regular file in it for reading.
    ///
    /// # Errors
    /// Those of [`Directory::find`]; `InvalidInput` if it is not a regular file.
    pub fn file(&self, name: &Path) -> io::Result<File> {
        read(&self.find(name)?)
    }

    /// Where the links end that a path leads over, as a path in it; `None` if it leads over none, or out of it.
    pub fn target(&self, name: &Path) -> Option<PathBuf> {
        match self.walk(name).ok()? {
            (_, 0) => None,
            (found, _) => self.path_of(&found),
        }
    }

    /// The path in it of what was found.
    pub fn path_of(&self, found: &OwnedFd) -> Option<PathBuf> {
        let real = |descriptor: BorrowedFd<'_>| std::fs::read_link(proc_path(descriptor)).ok();
        Some(real(found.as_fd())?.strip_prefix(real(self.as_fd())?).ok()?.to_path_buf())
    }

    /// The names in it, sorted, `most` at most.
    ///
    /// # Errors
    /// Those of open(2) and getdents(2); one that says that there are more.
    pub fn names(&self, most: usize) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(CWD, proc_path(self.descriptor.as_fd()).as_str(), flags, Mode::empty())?;
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(&opened, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_bytes().to_vec();
            if !matches!(&name[..], b"." | b"..") {
                if names.len() == most {
                    return Err(io::Error::other(format!("more than {most} names in it")));
                }
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The components of a path, the last one first.
fn reversed(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    parts.rev().collect()
}

/// What kind of file that is, and on which mount; without asking a server that may have died.
fn mount(found: &OwnedFd) -> io::Result<(FileType, Mount)> {
    let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
    let stat = statx(found, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted)?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    Ok(match stat.stx_mnt_id {
        // Before Linux 5.8 there is no number of the mount, and the device has to do.
        0 => (kind, (0, stat.stx_dev_major, stat.stx_dev_minor)),
        // A subvolume of btrfs is another device on the same mount.
        mount => (kind, (mount, 0, 0)),
    })
}

/// Opens a directory below another one (`O_PATH`), by a path that leads over no link, nowhere up, and to no other mount than
/// that.
///
/// # Errors
/// Those of openat(2); `ENOTDIR` for a link, `EXDEV` for another mount.
pub fn descend(directory: impl AsFd, path: &[u8], mount: u64) -> Result<OwnedFd, Errno> {
    let here = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut found = openat(directory, c".", here, Mode::empty())?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        if matches!(name, b"." | b"..") {
            return Err(Errno::XDEV);
        }
        // What is mounted there may not answer: it is not even opened.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        if statx(&found, name, flags, StatxFlags::MNT_ID)?.stx_mnt_id != mount {
            return Err(Errno::XDEV);
        }
        found = openat(&found, name, here, Mode::empty())?;
    }
    Ok(found)
}

/// The directory of a path, and the name there.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The path of what a descriptor is of, whatever its name is by now: proc_pid_fd(5).
pub fn proc_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Opens what was found for reading if it is a regular file on a disk.
///
/// # Errors
/// Those of fstat(2), fstatfs(2) and open(2); `InvalidInput` for anything else.
pub fn read(found: &OwnedFd) -> io::Result<File> {
    let is_file = FileType::from_raw_mode(fstat(found)?.st_mode) == FileType::RegularFile;
    let kind = fstatfs(found)?.f_type as u64;
    if !is_file || [PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC].contains(&kind) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(CWD, proc_path(found.as_fd()).as_str(), flags, Mode::empty())?.into())
}

/// What [`open_regular`] would open.
///
/// # Errors
/// Those of stat(2).
pub fn metadata(path: &Path) -> io::Result<Metadata> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_symlink() && is_roots_link(path) { path.metadata() } else { Ok(metadata) }
}

fn is_roots_link(path: &Path) -> bool {
    let owned = |path: &Path| path.symlink_metadata().is_ok_and(|metadata| metadata.uid() == 0);
    owned(path) && path.parent().is_some_and(owned)
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::process::{Resource, getrlimit, setrlimit};

    use super::*;

    /// Whether it fails where nothing can be opened. That is tried where no other test suffers: under nextest, which
    /// gives each a process of its own.
    pub(crate) fn fails_without_descriptors<T>(run: impl FnOnce() -> io::Result<T>) -> bool {
        if std::env::var_os("NEXTEST").is_none() {
            return true;
        }
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(0), ..limit }).expect("set");
        let failed = run().is_err();
        setrlimit(Resource::Nofile, limit).expect("set");
        failed
    }

    #[test]
    fn only_a_regular_file_is_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").expect("written");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(open_regular(&path("file")).is_ok());
        for name in ["fifo", ".", "absent"] {
            assert!(open_regular(&path(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_no_file_on_a_disk_is_not_opened() {
        for name in ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/null", "/dev/tty"] {
            assert!(open_regular(Path::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_directory_is_not_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("home/sub")).expect("made");
        for name in ["secret", "home/file", "home/sub/file"] {
            std::fs::write(path(name), name).expect("written");
        }
        let links = [
            ("home/inside", "sub/file"),
            ("home/round", "sub/../file"),
            ("home/out", "../secret"),
            ("home/absolute", "/secret"),
            ("home/loop", "loop"),
            ("home/chain", "sub/up"),
            ("home/sub/up", "../file"),
            ("home/dangling", "nowhere"),
            ("home/proc", "/proc/self/root"),
        ];
        for (name, target) in links {
            std::os::unix::fs::symlink(target, path(name)).expect("linked");
        }
        let beneath = Directory::open(&path("home")).expect("opened");
        let root = Directory::open_root(dir.path()).expect("opened");
        for (name, in_home, in_root) in [
            ("file", true, true),
            ("inside", true, true),
            ("round", true, true),
            ("out", false, true),
            ("absolute", false, true),
            ("loop", false, false),
            ("chain", true, true),
            ("sub/../sub/./file", true, true),
            ("sub/../../home/file", false, true),
            ("dangling", false, false),
            ("file/x", false, false),
            ("", false, false),
            ("proc", false, false),
            ("../secret", false, true),
            ("sub", false, false),
        ] {
            assert_eq!(beneath.file(Path::new(name)).is_ok(), in_home, "{name} below the home");
            assert_eq!(root.file(&Path::new("/home").join(name)).is_ok(), in_root, "{name} in the tree");
        }
        let sub = root.directory(Path::new("/home/sub")).expect("opened");
        assert!(sub.file(Path::new("file")).is_ok() && sub.file(Path::new("../file")).is_err());
        assert_eq!(beneath.names(10).expect("listed").len(), 10);
        assert!(beneath.names(9).is_err());
    }

    #[test]
    fn only_what_cannot_be_ours_is_taken_for_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").expect("written");
        std::os::unix::fs::symlink("circle", path("circle")).expect("linked");
        std::os::unix::fs::symlink("file", path("link")).expect("linked");
        std::os::unix::fs::symlink("x".repeat(300), path("long")).expect("linked");
        for name in [".", "absent", "circle", "circle/x", "link", "long/x", "file/x"] {
            assert!(open_own(&path(name)).expect(name).is_none(), "{name}");
        }
        assert!(open_own(&path("file")).expect("opened").is_some());
        assert!(fails_without_descriptors(|| open_own(&path("file"))), "EMFILE says nothing of the file");
    }

    #[test]
    fn a_link_is_followed_only_where_root_owns_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        std::fs::write(dir.path().join("file"), "x").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(open_regular(&link).is_ok(), root);
        if root {
            let nobody = nix::unistd::Uid::from_raw(65534);
            nix::unistd::chown(dir.path(), Some(nobody), None).expect("given away");
            assert!(open_regular(&link).is_err());
        }
    }
}
