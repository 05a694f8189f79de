//! Lines of crontabs that start podsec-inotify, as its old versions added them: crontab(5).

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::config::Root;
use crate::watch::open::{Directory, open_regular};

/// How the programs' names begin.
const PROGRAMS: &str = "podsec-inotify-check-";
/// Crontabs of the system and of root. ALT has root's in the third, others in the fourth.
const FILES: &[&str] = &["/etc/crontab", "/var/spool/cron/root", "/var/spool/cron/crontabs/root"];
/// Crontabs of packages.
const DIRECTORY: &str = "/etc/cron.d";
/// So much of a crontab is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// So many crontabs are read of a directory.
const MAX_FILES: usize = 1024;

/// A line of a crontab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its file, as a path of the node.
    pub file: PathBuf,
    /// Its number there, from 1.
    pub number: usize,
    /// What it says. Any bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// The lines that start podsec-inotify, and what could not be read.
pub fn find(root: &Root) -> (Vec<Line>, Vec<(PathBuf, io::Error)>) {
    let (mut lines, mut unread) = (Vec::new(), Vec::new());
    let mut files: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
    match Directory::open(&root.path(DIRECTORY)).and_then(|directory| directory.names(MAX_FILES)) {
        Ok(mut names) => {
            names.sort();
            files.extend(names.iter().map(|name| Path::new(DIRECTORY).join(name)));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => unread.push((DIRECTORY.into(), error)),
    }
    for file in files {
        match open_regular(&root.path(&file)).and_then(|opened| lines_of(&file, opened)) {
            Ok(found) => lines.extend(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => unread.push((file, error)),
        }
    }
    (lines, unread)
}

/// The lines of one crontab that start podsec-inotify.
fn lines_of(file: &Path, crontab: impl Read) -> io::Result<Vec<Line>> {
    let mut found = Vec::new();
    let mut crontab = BufReader::new(crontab.take(MAX_SIZE + 1));
    let (mut bytes, mut size) = (Vec::new(), 0);
    for number in 1.. {
        bytes.clear();
        size += crontab.read_until(b'\n', &mut bytes)? as u64;
        if size > MAX_SIZE {
            return Err(io::Error::other(format!("it is larger than {MAX_SIZE} bytes")));
        }
        if bytes.is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        if text.contains(PROGRAMS) && !text.starts_with('#') {
            found.push(Line { file: file.into(), number, text });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_start_podsec_inotify_are_found_and_comments_are_not() {
        let text = "SHELL=/bin/sh\n# 0 * * * * podsec-inotify-check-policy\n  0 * * * * podsec-inotify-check-policy -vvv\n\
            */10 * * * * /usr/bin/podsec-inotify-check-kubeapi -m\n0 0 * * * other";
        let found = lines_of(Path::new("/etc/crontab"), text.as_bytes()).expect("read");
        let numbers: Vec<_> = found.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [3, 4]);
        assert_eq!(found[0].text, "0 * * * * podsec-inotify-check-policy -vvv");
    }

    #[test]
    fn a_crontab_without_end_is_refused() {
        assert!(lines_of(Path::new("/etc/crontab"), io::repeat(b'x')).is_err());
    }
}
