//! podsecd as a whole, on a tree of its own.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::support::{PODSECD, Tree, event, podsecctl, recorded, stderr, stdout, wait_until};

/// Appends to the tree's audit log.
fn append(tree: &Tree, text: &str) {
    let path = tree.path("etc/kubernetes/audit/audit.log");
    let mut log = fs::File::options().create(true).append(true).open(path).expect("opened");
    log.write_all(text.as_bytes()).expect("written");
}

#[test]
fn a_rotated_log_is_read_once_over_restarts() {
    let names = ["audit-2026-11-22T03-06-08.372.log", "audit-2026-11-22T03-06-08.847.log", "audit.log"];
    let logs: Vec<_> = names.iter().map(|name| (*name, recorded(&format!("rotated/{name}")))).collect();
    let logs: Vec<_> = logs.iter().map(|(name, log)| (*name, log.as_slice())).collect();
    let tree = Tree::new(&logs);
    let scanned = |tree: &Tree| {
        let paths: Vec<_> =
            names.iter().map(|name| tree.path("etc/kubernetes/audit").join(name).display().to_string()).collect();
        let arguments =
            [&["audit", "scan", "--json"], &paths.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat();
        stdout(&podsecctl(&arguments)).lines().count()
    };
    let expected = scanned(&tree);
    for round in 0..3 {
        let daemon = tree.start();
        append(&tree, &event(&format!("round-{round}"), 403));
        // What comes last shows that all before it was read.
        wait_until("all is read", || tree.forbidden_log().iter().any(|line| line.contains(&format!("round-{round}"))));
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(tree.forbidden_log().len(), expected + round + 1);
    }
}

#[test]
fn a_finding_is_on_the_terminal_in_forbidden_log_and_in_the_status() {
    let tree = Tree::new(&[]);
    let daemon = tree.start();
    wait_until("the log is missed", || {
        tree.status().is_some_and(|status| status["conditions"][0]["id"] == "self/audit-log-unavailable")
    });
    append(&tree, &event("one", 403));
    wait_until("it is counted", || {
        tree.status()
            .is_some_and(|status| status["counts"]["kubeapi/forbidden"] == 1 && status["conditions"][0].is_null())
    });
    // The status does not wait for the disk.
    wait_until("it is written", || !tree.forbidden_log().is_empty());
    assert_eq!(
        tree.forbidden_log(),
        [
            r#"["2026-11-22T02:58:59.072009Z","10.0.0.7","no",{"auditID":"one","code":403,"resource":"secrets","user":"alice","verb":"list"}]"#
        ]
    );
    wait_until("it is on the terminal", || {
        let shown = fs::read_to_string(tree.path("output")).expect("output");
        shown.contains("Critical: alice: list secrets forbidden (403), from 10.0.0.7")
    });
    let status = podsecctl(&["status", "--root", &tree.root()]);
    assert!(stdout(&status).contains("no open conditions") && stdout(&status).contains("nothing unread"));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_happens_to_the_log_is_a_finding_with_file_and_bytes() {
    let first = event("one", 403);
    let tree = Tree::new(&[("audit.log", first.as_bytes())]);
    let live = tree.path("etc/kubernetes/audit/audit.log");
    let daemon = tree.start();
    let said = || fs::read_to_string(tree.path("output")).expect("output");
    wait_until("it is read", || said().contains("kubeapi/forbidden "));
    append(&tree, "no event\n");
    let length = first.len();
    wait_until("a broken line is named", || {
        said().contains("self/audit-line-unreadable")
            && said().contains(&format!("8 bytes of audit.log at offset {length}"))
    });
    fs::File::options().write(true).open(&live).and_then(|file| file.set_len(0)).expect("cut");
    wait_until("a cut is named", || {
        said().contains("kubeapi/audit-truncated")
            && said().contains(&format!("{} bytes had been read, it has 0 now", length + 9))
    });
    append(&tree, &event("two", 403));
    wait_until("what comes behind it is read", || tree.forbidden_log().len() == 2);
    assert_eq!(daemon.stop(), Some(0));
    // It was rotated twice, and what it had become is gone. Open, it keeps its inode from the new files.
    let _former = fs::File::open(&live).expect("opened");
    fs::remove_file(&live).expect("removed");
    fs::write(live.with_file_name("audit-2026-11-22T03-05-05.001.log"), event("three", 403)).expect("written");
    append(&tree, &event("four", 403));
    let daemon = tree.start();
    wait_until("a loss is named from and to", || {
        let (from, to) = ("of what was audit.log", "to the beginning of audit-2026-11-22T03-05-05.001.log");
        said().lines().any(|line| line.contains("self/audit-lost") && line.contains(from) && line.contains(to))
    });
    wait_until("reading goes on", || tree.forbidden_log().len() == 4);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn systemd_is_told_of_start_turns_reload_and_end() {
    let tree = Tree::new(&[("audit.log", b"")]);
    let path = tree.path("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let environment = [("NOTIFY_SOCKET", path.to_str().expect("a name")), ("WATCHDOG_USEC", "400000")];
    let daemon = tree.spawn_with(&environment);
    let next = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).expect("a message in time");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    next("READY=1");
    let status = tree.path("run/podsecd/status.json");
    next("WATCHDOG=1");
    wait_until("the status is there", || status.exists());
    let touched = || status.metadata().and_then(|metadata| metadata.modified()).expect("a time");
    let before = touched();
    next("WATCHDOG=1");
    wait_until("a turn touches the status", || touched() > before);
    daemon.signal("HUP");
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    daemon.signal("TERM");
    next("STOPPING=1");
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn nothing_is_written_through_a_link_out_of_another_root() {
    let (tree, outside) = (Tree::new(&[]), tempfile::tempdir().expect("a directory"));
    for directory in ["var", "run"] {
        let link = tree.path(directory);
        std::os::unix::fs::symlink(outside.path(), &link).expect("linked");
        assert_eq!(tree.spawn().wait(), Some(1));
        let errors = fs::read_to_string(tree.path("errors")).expect("errors");
        assert!(errors.contains(&format!("{} is a link", link.display())), "{errors}");
        assert_eq!(fs::read_dir(outside.path()).expect("listed").count(), 0);
        fs::remove_file(link).expect("removed");
    }
}

#[test]
fn a_second_podsecd_is_refused() {
    let tree = Tree::new(&[]);
    let _first = tree.start();
    let second = Command::new(PODSECD).args(["--root", &tree.root()]).output().expect("it runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("another podsecd is running"), "{}", stderr(&second));
}

#[test]
fn a_reload_takes_a_good_configuration_and_keeps_the_former_one_else() {
    let tree = Tree::new(&[("audit.log", b"")]);
    let configure = |text: &str| fs::write(tree.path("etc/podsecd/podsecd.toml"), text).expect("written");
    let daemon = tree.start();
    let refused =
        || tree.status().is_some_and(|status| status["conditions"].to_string().contains("self/config-refused"));
    configure("nonsense = 1\n");
    daemon.signal("HUP");
    wait_until("it is refused", refused);
    configure("[kubeapi]\npodsec-levels = true\n");
    daemon.signal("HUP");
    wait_until("it is taken", || !refused());
    append(&tree, &event("a", 404));
    wait_until("the finding comes", || tree.forbidden_log().len() == 1);
    wait_until("it is shown", || {
        fs::read_to_string(tree.path("output")).expect("output").contains("Critical: alice: list")
    });
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_refused_configuration_that_was_mended_is_no_condition_after_a_restart() {
    let tree = Tree::new(&[("audit.log", event("one", 403).as_bytes())]);
    let has_condition = || {
        let status = tree.status().expect("a status");
        status["conditions"].to_string().contains("self/config-refused")
    };
    let daemon = tree.start();
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "nonsense = 1").expect("written");
    daemon.signal("HUP");
    wait_until("it is refused", has_condition);
    assert_eq!(daemon.stop(), Some(0));
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "").expect("written");
    let daemon = tree.start();
    wait_until("the condition is cleared", || !has_condition());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn state_that_is_damaged_or_of_a_newer_podsecd_is_refused_and_stays() {
    let of_newer = "is of version 99, which this podsecd does not know";
    for (file, content, words) in [
        ("checkpoint.json", "nonsense", "checkpoint.json is damaged"),
        ("checkpoint.json", r#"{"version":99}"#, of_newer),
        ("containers/x.programs", "podsecd-programs 99 5\0", of_newer),
    ] {
        let tree = Tree::new(&[]);
        let state = tree.path("var/lib/podsecd");
        let files = [(file, content), ("spool/1.jsonl", "a line of another format\n"), ("outbox/1.eml", "a mail")];
        for (file, content) in files {
            fs::create_dir_all(state.join(file).parent().expect("a directory")).expect("made");
            fs::write(state.join(file), content).expect("written");
        }
        let output = Command::new(PODSECD).args(["--root", &tree.root()]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words) && stderr(&output).contains(file), "{}", stderr(&output));
        for (file, content) in files {
            assert_eq!(fs::read_to_string(state.join(file)).expect(file), content);
        }
    }
}

#[test]
fn strangers_in_forbidden_log_are_reported_and_nothing_is_written_through_a_link() {
    let tree = Tree::new(&[("audit.log", b"")]);
    let daemon = tree.start();
    let log = tree.path("var/lib/podsecd/forbidden.log");
    append(&tree, &event("1", 403));
    wait_until("the first is there", || tree.forbidden_log().len() == 1);
    // Somebody appends.
    fs::OpenOptions::new().append(true).open(&log).expect("opened").write_all(b"stranger\n").expect("written");
    append(&tree, &event("2", 403));
    wait_until("both are there", || tree.forbidden_log().len() == 3);
    // What happens while one line is written is told once: that one is on the disk by then.
    let changed = |count: u64| {
        tree.status().is_some_and(|status| status["counts"]["self/forbidden-log-changed"].as_u64() >= Some(count))
    };
    wait_until("it is reported", || changed(1));
    // Somebody puts a link there.
    fs::write(tree.path("target"), "").expect("written");
    std::os::unix::fs::symlink(tree.path("target"), tree.path("link")).expect("linked");
    fs::rename(tree.path("link"), &log).expect("moved");
    append(&tree, &event("3", 403));
    wait_until("the third is there", || tree.forbidden_log().iter().any(|line| line.contains("\"auditID\":\"3\"")));
    assert!(!log.is_symlink() && fs::read(tree.path("target")).expect("readable").is_empty());
    wait_until("that is reported, too", || changed(2));
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn it_ends_with_a_message_where_it_cannot_keep_its_state() {
    let tree = Tree::new(&[]);
    fs::write(tree.path("var"), "a file").expect("written");
    let daemon = tree.spawn();
    assert_eq!(daemon.wait(), Some(1));
    let errors = fs::read_to_string(tree.path("errors")).expect("errors");
    assert!(errors.contains("cannot make") && errors.contains("var/lib/podsecd"), "{errors}");
}
