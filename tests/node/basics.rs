//! The node itself: it boots, and what it logs and mails can be read.

use std::time::Duration;

use crate::node::{Node, field};

pub(crate) fn boots_with_no_failed_unit() {
    let node = Node::boot();
    assert_eq!(node.failed_units(), "");
    assert_eq!(node.shell("cat /proc/1/comm; pwd"), "systemd\n/\n");
    std::fs::write(node.root().join("etc/motd"), "from outside").expect("write into the node");
    assert_eq!(node.shell("cat /etc/motd"), "from outside");
}

pub(crate) fn reads_its_journal() {
    let node = Node::boot();
    node.shell(r"printf 'MESSAGE=hello\nTEST_ID=1\nTEST_USER=a\nTEST_USER=b\nTEST_BYTES=\377\n\n' | logger --journald");
    let entries = node.journal(&["TEST_ID=1"]);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(field(&entries[0], "MESSAGE"), ["hello"]);
    assert_eq!(field(&entries[0], "TEST_USER"), ["a", "b"]);
    assert_eq!(field(&entries[0], "TEST_BYTES"), ["\u{fffd}"]);
    assert!(node.journal(&["TEST_ID=2"]).is_empty());
}

pub(crate) fn delivers_mail_to_root() {
    let node = Node::boot();
    node.shell("echo body | mail -s subject root");
    let has_mail = || node.mailbox("root").contains("\nSubject: subject\n");
    node.wait_until("root has mail", Duration::from_secs(60), has_mail);
}
