//! podsecd as a whole, on a tree of its own.

use std::fs;
use std::io::Write;
use std::process::Command;

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
    for _ in 0..3 {
        let daemon = tree.start();
        wait_until("all is read", || tree.forbidden_log().len() >= expected);
        assert_eq!(daemon.stop(), Some(0));
    }
    assert_eq!(tree.forbidden_log().len(), expected);
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
    assert_eq!(
        tree.forbidden_log(),
        [
            r#"["2026-11-22T02:58:59.072009Z","10.0.0.7","no",{"auditID":"one","code":403,"resource":"secrets","user":"alice","verb":"list"}]"#
        ]
    );
    let shown = fs::read_to_string(tree.path("output")).expect("output");
    assert!(shown.contains("Critical: alice: list secrets forbidden (403), from 10.0.0.7"), "{shown}");
    let status = podsecctl(&["status", "--root", &tree.root()]);
    assert!(stdout(&status).contains("no open conditions") && stdout(&status).contains("nothing unread"));
    assert_eq!(daemon.stop(), Some(0));
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
fn a_checkpoint_that_is_damaged_or_newer_is_refused() {
    for (content, words) in [("nonsense", "is damaged"), (r#"{"version":99}"#, "install the newer podsecd")] {
        let tree = Tree::new(&[]);
        fs::create_dir_all(tree.path("var/lib/podsecd")).expect("made");
        fs::write(tree.path("var/lib/podsecd/checkpoint.json"), content).expect("written");
        let output = Command::new(PODSECD).args(["--root", &tree.root()]).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
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
    // Somebody puts a link there.
    fs::rename(&log, tree.path("moved")).expect("moved");
    fs::write(tree.path("target"), "").expect("written");
    std::os::unix::fs::symlink(tree.path("target"), &log).expect("linked");
    append(&tree, &event("3", 403));
    wait_until("the third is there", || tree.forbidden_log().iter().any(|line| line.contains("\"auditID\":\"3\"")));
    assert!(!log.is_symlink() && fs::read(tree.path("target")).expect("readable").is_empty());
    wait_until("it is reported", || {
        tree.status().is_some_and(|status| status["counts"]["self/forbidden-log-changed"].as_u64() >= Some(2))
    });
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
