//! What is to be known of a file.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, lgetxattr, statx};
use serde::{Deserialize, Serialize};

use crate::watch::open::proc_path;

/// A moment of the node's clock, in nanoseconds since 1970: what inodes hold.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moment(i64);

impl Moment {
    /// Before everything.
    pub const MIN: Moment = Moment(i64::MIN);

    /// The time of a statx(2).
    pub fn of(time: StatxTimestamp) -> Moment {
        Moment(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec.into()))
    }

    /// A time since 1970, as far as it can be said in nanoseconds.
    pub fn at(time: SystemTime) -> Moment {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// The time since 1970 in nanoseconds, which a file may hold; saturating.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Moment {
        Moment(nanoseconds)
    }

    /// The same, the other way round.
    pub fn nanoseconds(self) -> i64 {
        self.0
    }

    /// How long it is after an earlier one; 0 if that is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }

    /// The same as a time, of 1970 at the earliest.
    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0.max(0).cast_unsigned())
    }

    /// The one after it; saturating.
    #[must_use]
    pub fn next(self) -> Moment {
        Moment(self.0.saturating_add(1))
    }

    /// So much earlier; saturating.
    #[must_use]
    pub fn before(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }
}

/// An extended attribute of which it is of interest whether a file has it (xattr(7)).
pub type Mark = &'static CStr;

/// What is to be known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Kind and permissions (inode(7)).
    pub mode: u16,
    /// How long it is, in bytes.
    pub size: u64,
    /// The number of a device.
    pub device: (u32, u32),
    /// When it changed last, which nobody can set.
    pub changed: Moment,
    /// When its content changed last, as whoever owns it says.
    pub modified: Moment,
    /// When it was made, if the file system knows.
    pub made: Option<Moment>,
    /// Which of the marks it has, as bits.
    pub marks: u8,
}

impl Stat {
    /// What is called `name` in a directory; `None` if it is not there. The server of a file system is not asked.
    pub fn of(directory: BorrowedFd<'_>, name: &[u8], marks: &[Mark]) -> Option<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat: Statx = statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).ok()?;
        let mut found = Stat {
            mode: stat.stx_mode,
            size: stat.stx_size,
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            changed: Moment::of(stat.stx_ctime),
            modified: Moment::of(stat.stx_mtime),
            made: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| Moment::of(stat.stx_btime)),
            marks: 0,
        };
        if matches!(found.kind(), FileType::RegularFile | FileType::Directory) {
            let mut path = proc_path(directory).into_bytes();
            path.push(b'/');
            path.extend_from_slice(name);
            let has = |mark: &Mark| {
                let value = lgetxattr(&path[..], *mark, &mut [0_u8; 0][..]);
                // One that somebody else's root wrote is there, too, though it says nothing here.
                !matches!(value, Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOENT | rustix::io::Errno::NOTSUP))
            };
            let marked = marks.iter().enumerate().filter(|(_, mark)| has(mark));
            found.marks = marked.fold(0, |marks, (at, _)| marks | 1 << at);
        }
        Some(found)
    }

    /// What kind of file it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode.into())
    }

    /// Whether it is a program that runs with the rights of its owner or its group.
    pub fn is_setuid(&self) -> bool {
        const S_ISUID: u16 = 0o4000;
        const S_ISGID: u16 = 0o2000;
        const S_IXGRP: u16 = 0o010;
        let is_setgid = self.mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP;
        self.kind() == FileType::RegularFile && (self.mode & S_ISUID != 0 || is_setgid)
    }
}
