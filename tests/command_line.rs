//! What users type, and what they are told when it is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{PODSECCTL, PODSECD, Tree, event, podsecctl, stderr, stdout};

#[test]
fn a_wrong_configuration_is_refused_alike_by_both_programs_with_exit_code_78() {
    let tree = Tree::new(&[]);
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "[kubeapi]\naudit-lgo = \"/x\"\n").expect("written");
    let check = Command::new(PODSECD).args(["--check-config", "--root", &tree.root()]).output().expect("runs");
    let control = podsecctl(&["config", "check", "--root", &tree.root()]);
    let start = Command::new(PODSECD).args(["--root", &tree.root()]).output().expect("runs");
    for output in [&check, &control, &start] {
        assert_eq!(output.status.code(), Some(78), "{}", stderr(output));
        for part in ["/etc/podsecd/podsecd.toml:2", "`audit-lgo`", "`audit-log`"] {
            assert!(stderr(output).contains(part), "{} should name {part}", stderr(output));
        }
    }
}

#[test]
fn the_shipped_configuration_is_valid() {
    let tree = Tree::new(&[]);
    fs::copy("policy/podsecd.toml", tree.path("etc/podsecd/podsecd.toml")).expect("copied");
    fs::copy("policy/weights.toml", tree.path("etc/podsecd/weights.toml")).expect("copied");
    let output = podsecctl(&["config", "check", "--root", &tree.root()]);
    assert_eq!(stdout(&output), "the configuration is valid\n");
}

#[test]
fn scan_reads_gzip_and_says_what_cannot_be_read() {
    let tree = Tree::new(&[("audit.log", event("a", 403).as_bytes())]);
    let plain = tree.path("etc/kubernetes/audit/audit.log").display().to_string();
    assert!(Command::new("gzip").args(["-k", &plain]).status().expect("gzip runs").success());
    let count = |path: &str| stdout(&podsecctl(&["audit", "scan", "--json", path])).lines().count();
    assert_eq!((count(&plain), count(&format!("{plain}.gz"))), (1, 1));
    let output = podsecctl(&["audit", "scan", "/nonexistent/audit.log"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot open /nonexistent/audit.log: No such file"), "{}", stderr(&output));
}

#[test]
fn scan_ends_quietly_when_its_reader_does() {
    let script =
        format!("{PODSECCTL} audit scan tests/data/audit/audit-small.log | head -n 1; echo ${{PIPESTATUS[0]}}");
    let output = Command::new("bash").args(["-c", &script]).output().expect("runs");
    assert_eq!(stderr(&output), "");
}

#[test]
fn check_answers_as_a_nagios_plugin() {
    let now = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
    let recent = event("a", 403).replace("2026-11-22T02:58:59.072529Z", &now);
    let check = |log: &str, arguments: &[&str]| {
        let tree = Tree::new(&[("audit.log", log.as_bytes())]);
        let root = tree.root();
        let arguments = [&["check", "kubeapi", "--root", &root], arguments].concat();
        let output = podsecctl(&arguments);
        (output.status.code(), stdout(&output))
    };
    for (log, arguments, code, words) in [
        (recent.as_str(), &[][..], 2, "KUBEAPI CRITICAL: metric 101 (Critical): kubeapi/forbidden | metric=101;;;0\n"),
        (&recent, &["--critical", "200"], 0, "KUBEAPI OK: metric 101 (Low): kubeapi/forbidden | metric=101;;;0\n"),
        (&recent, &["--warning", "100"], 1, "KUBEAPI WARNING: metric 101 (Warning)"),
        (&event("a", 403), &[], 0, "KUBEAPI OK: metric 0 (Low): nothing found | metric=0;;;0\n"),
        (&recent, &["--json"], 2, r#"{"check":"kubeapi","metric":101,"level":"Critical","findings":[{"#),
    ] {
        let (answered, line) = check(log, arguments);
        assert_eq!(answered, Some(code), "{arguments:?}: {line}");
        assert!(line.starts_with(words), "{arguments:?}: {line}");
    }
}

#[test]
fn check_is_unknown_where_nothing_can_be_known() {
    let tree = Tree::new(&[]);
    for name in ["kubeapi", "self", "nonsense"] {
        let output = podsecctl(&["check", name, "--root", &tree.root()]);
        assert_eq!(output.status.code(), Some(3));
        assert!(stdout(&output).contains(" UNKNOWN: "), "{}", stdout(&output));
    }
}

#[test]
fn explain_tells_what_to_do() {
    let output = podsecctl(&["explain", "kubeapi/forbidden"]);
    for part in ["weight 101, level Critical", "what to do:", "journalctl PODSEC_FINDING=kubeapi/forbidden"] {
        assert!(stdout(&output).contains(part), "{}", stdout(&output));
    }
    let unknown = podsecctl(&["explain", "kubeapi/forbiden"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("`podsecctl explain` lists all"));
}

#[test]
fn installing_again_keeps_a_configuration_that_was_edited() {
    let directory = tempfile::tempdir().expect("a directory");
    let install = || {
        let mut command = Command::new("packaging/install");
        command.arg(directory.path()).env("BINARIES", Path::new(PODSECD).parent().expect("a directory"));
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let configuration = directory.path().join("etc/podsecd/podsecd.toml");
    let shipped = fs::read("policy/podsecd.toml").expect("shipped");
    assert_eq!(install() + &install(), "");
    assert_eq!(fs::read(&configuration).expect("installed"), shipped);
    fs::write(&configuration, "# edited").expect("written");
    let said = install();
    assert!(said.contains("kept") && said.contains("podsecd.toml.rpmnew"), "{said}");
    assert_eq!(fs::read(&configuration).expect("kept"), b"# edited");
    assert_eq!(fs::read(configuration.with_extension("toml.rpmnew")).expect("beside"), shipped);
}

#[test]
fn policy_explain_says_which_requirements_hold_for_whom_and_why() {
    let tree = Tree::new(&[]);
    let write = |path: &str, text: &str| {
        let path = tree.path(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, text).expect("written");
    };
    write("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n");
    let signed = r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k.gpg"}"#;
    write(
        "etc/containers/policy.json",
        &format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"registry.local":[{signed}]}}}}}}"#),
    );
    write("home/alice/.config/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let explain = |arguments: &[&str]| podsecctl(&[&["policy", "explain", "--root", &tree.root()], arguments].concat());
    for (arguments, words) in [
        (&["busybox"][..], "root may not run it: it is rejected\nimage     docker.io/library/busybox:latest\n"),
        (&["registry.local/a:1"], "root may run it if it is signed as required\n"),
        (
            &["registry.local/a:1"],
            "scope     registry.local of transport docker\nrequires  signedBy /k.gpg (GPGKeys), for just",
        ),
        (&["registry.local:5000/a"], "scope     default: no scope"),
        (&["registry.local/a", "--user", "alice"], "alice may run it, whoever made it"),
        (&["registry.local/a", "--user", "alice"], "/home/alice/.config/containers/policy.json: the account's own"),
        (&["registry.local/a", "--json"], r#""verdict":"signed""#),
    ] {
        let output = explain(arguments);
        assert!(
            output.status.success() && stdout(&output).contains(words),
            "{arguments:?}: {}{}",
            stdout(&output),
            stderr(&output)
        );
    }
    write("home/alice/.config/containers/policy.json", "{}");
    for (arguments, words) in [
        (&["Busybox"][..], "`Busybox` is no name of an image"),
        (&["busybox", "--user", "bob"], "there is no account `bob`"),
        (
            &["busybox", "--user", "alice"],
            "policy.json: missing field `default` at line 1 column 2; so every pull fails",
        ),
    ] {
        let output = explain(arguments);
        assert!(!output.status.success() && stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_configuration_may_be_named_from_where_one_is() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("x.toml"), "").expect("written");
    let mut command = Command::new(PODSECD);
    let output = command.current_dir(dir.path()).args(["--check-config", "--config", "x.toml"]).output().expect("runs");
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "the configuration is valid\n"));
}

#[test]
fn takeover_shows_what_it_would_do_and_changes_nothing() {
    let (first, second) = (event("a", 403), event("b", 403));
    let tree = Tree::new(&[("audit.log", [first.as_bytes(), second.as_bytes()].concat().as_slice())]);
    let root = tree.root();
    let shown = stdout(&podsecctl(&["takeover", "--root", &root]));
    for part in [
        "systemd was not asked",
        "no unit of podsec-inotify is enabled",
        "at the oldest backup of the audit log: podsec-inotify has left",
    ] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let wants = "etc/systemd/system/timers.target.wants";
    fs::create_dir_all(tree.path(wants)).expect("made");
    for unit in ["podsec-inotify-check-policy.timer", "podsec-inotify-check-vuln.timer"] {
        std::os::unix::fs::symlink(Path::new("/lib/systemd/system").join(unit), tree.path(wants).join(unit))
            .expect("linked");
    }
    let line = "0 * * * * podsec-inotify-check-kubeapi -m";
    fs::create_dir_all(tree.path("var/spool/cron")).expect("made");
    fs::write(tree.path("var/spool/cron/root"), format!("# root's\n{line}\n")).expect("written");
    let read: serde_json::Value = serde_json::from_str(&first).expect("JSON");
    let told =
        serde_json::json!([read["requestReceivedTimestamp"], read["sourceIPs"][0], read["responseStatus"]["message"]]);
    fs::create_dir_all(tree.path("var/lib/podsec/u7s/log/kubeapi")).expect("made");
    fs::write(tree.path("var/lib/podsec/u7s/log/kubeapi/forbidden.log"), format!("{told}\n")).expect("written");
    let shown = stdout(&podsecctl(&["takeover", "--root", &root]));
    for part in [
        "podsec-inotify-check-policy.timer  enabled          unknown\n",
        "systemctl disable --now podsec-inotify-check-policy.timer\n",
        "no known vulnerabilities: podsec-inotify-check-vuln.timer\n",
        &format!("audit.log from byte {} on\n", first.len()),
        &format!("/var/spool/cron/root:2: {line}\n"),
    ] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&podsecctl(&["takeover", "--json", "--root", &root]))).expect("JSON");
    assert_eq!(json["enabled"], serde_json::json!(["podsec-inotify-check-policy.timer"]));
    assert_eq!((&json["asked"], &json["begins"]["offset"]), (&"links".into(), &first.len().into()));
    assert_eq!(json["crontab"][0]["line"], 2);
    assert!(tree.path(wants).join("podsec-inotify-check-policy.timer").is_symlink());
    assert!(!tree.path("var/lib/podsecd/checkpoint.json").exists());
}

#[test]
fn a_takeover_is_done_on_the_node_itself_only_and_not_of_two_kinds_at_once() {
    for options in [
        &["--yes", "--root", "/x"][..],
        &["--undo", "--root", "/x"],
        &["--yes", "--undo"],
        &["--vuln"],
        &["--yes", "--json"],
    ] {
        let output = podsecctl(&[&["takeover"], options].concat());
        assert_eq!(output.status.code(), Some(2), "{options:?}: {}", stderr(&output));
    }
}
