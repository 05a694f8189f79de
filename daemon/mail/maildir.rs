//! Delivery into a maildir (<https://cr.yp.to/proto/maildir.html>).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Puts a message into the maildir, which is made if need be. Its file is named after its Message-ID: what is delivered
/// again takes its own place.
///
/// # Errors
/// Those of mkdir(2), open(2), write(2), fsync(2) and rename(2); then it is not delivered.
pub(super) fn put(maildir: &Path, id: &str, message: &[u8]) -> io::Result<()> {
    for part in ["tmp", "new", "cur"] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(maildir.join(part))?;
    }
    let name = id.trim_matches(['<', '>']);
    let read = fs::read_dir(maildir.join("cur"))?.filter_map(Result::ok);
    if read.map(|entry| entry.file_name()).any(|seen| seen.to_string_lossy().split(':').next() == Some(name)) {
        // It was delivered, and somebody has read it since.
        return Ok(());
    }
    let temporary = maildir.join("tmp").join(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(message).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    fs::rename(&temporary, maildir.join("new").join(name))?;
    File::open(maildir.join("new"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delivered_twice_is_there_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let maildir = dir.path().join("Maildir");
        let count = |part: &str| fs::read_dir(maildir.join(part)).expect("listed").count();
        for _ in 0..2 {
            put(&maildir, "<podsecd.1.7@node>", b"x").expect("delivered");
            assert_eq!((count("tmp"), count("new"), count("cur")), (0, 1, 0));
        }
        let name = "podsecd.1.7@node";
        fs::rename(maildir.join("new").join(name), maildir.join("cur").join(format!("{name}:2,S"))).expect("read");
        put(&maildir, "<podsecd.1.7@node>", b"x").expect("delivered");
        assert_eq!((count("new"), count("cur")), (0, 1));
    }
}
