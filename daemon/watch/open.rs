//! Opens what others may have put there.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, fstat, fstatfs, openat, openat2};

/// Of statfs(2): file systems whose regular files are none. Reading one may change something.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
const DEBUGFS_MAGIC: u64 = 0x6462_6720;
const TRACEFS_MAGIC: u64 = 0x7472_6163;

/// Opens a regular file for reading: never blocks (a FIFO would), opens nothing else even for a moment (a device may mind),
/// and follows a link in the last component only where root owns both the link and its directory.
///
/// # Errors
/// Those of open(2); `InvalidInput` if it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let open = |flags: OFlags| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty());
    let found = open(OFlags::NOFOLLOW)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Symlink {
        if !is_roots_link(path) {
            return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
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
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    within: ResolveFlags,
}

impl Directory {
    /// A directory that nobody else chose.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Directory> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = openat(CWD, path, flags, Mode::empty())?;
        Ok(Directory { descriptor, within: ResolveFlags::BENEATH | ResolveFlags::NO_XDEV })
    }

    /// The same, as the root of a tree: absolute paths and links in it are of that tree.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_root(path: &Path) -> io::Result<Directory> {
        Ok(Directory { within: ResolveFlags::IN_ROOT, ..Directory::open(path)? })
    }

    /// Opens what is there, whatever it is, without any effect (`O_PATH`). In a [`Directory::open_root`] no link leads out of
    /// it; below others no link leaves them, and no mount is entered (openat2(2), Linux 5.6).
    ///
    /// # Errors
    /// Those of openat2(2), `EXDEV` for what leaves it.
    pub fn find(&self, name: &Path) -> io::Result<OwnedFd> {
        self.find_with(name, OFlags::empty())
    }

    fn find_with(&self, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
        let within = self.within | ResolveFlags::NO_MAGICLINKS;
        // A rename elsewhere at that moment makes the kernel unsure.
        for _ in 0..16 {
            match openat2(&self.descriptor, name, flags, Mode::empty(), within) {
                Err(rustix::io::Errno::AGAIN) => {}
                found => return Ok(found?),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// A directory in it, below which the same holds as below those that [`Directory::open`] opens.
    ///
    /// # Errors
    /// Those of [`Directory::find`], `ENOTDIR`.
    pub fn directory(&self, name: &Path) -> io::Result<Directory> {
        let descriptor = self.find_with(name, OFlags::DIRECTORY)?;
        Ok(Directory { descriptor, within: ResolveFlags::BENEATH | ResolveFlags::NO_XDEV })
    }

    /// Opens a regular file in it for reading.
    ///
    /// # Errors
    /// Those of [`Directory::find`]; `InvalidInput` if it is not a regular file.
    pub fn file(&self, name: &Path) -> io::Result<File> {
        read(&self.find(name)?)
    }

    /// The names in it, sorted, `most` at most.
    ///
    /// # Errors
    /// Those of open(2) and getdents(2); one that says that there are more.
    pub fn names(&self, most: usize) -> io::Result<Vec<std::ffi::OsString>> {
        use std::os::unix::ffi::OsStringExt;
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
                names.push(std::ffi::OsString::from_vec(name));
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

/// The path of what a descriptor is of, whatever its name is by now: proc_pid_fd(5).
pub fn proc_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Opens what was found for reading if it is a regular file.
fn read(found: &OwnedFd) -> io::Result<File> {
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
            ("proc", false, false),
            ("../secret", false, true),
            ("sub", false, false),
        ] {
            assert_eq!(beneath.file(Path::new(name)).is_ok(), in_home, "{name} below the home");
            assert_eq!(root.file(&Path::new("/home").join(name)).is_ok(), in_root, "{name} in the tree");
        }
        let sub = root.directory(Path::new("/home/sub")).expect("opened");
        assert!(sub.file(Path::new("file")).is_ok() && sub.file(Path::new("../file")).is_err());
        assert_eq!(beneath.names(9).expect("listed").len(), 8);
        assert!(beneath.names(7).is_err());
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
