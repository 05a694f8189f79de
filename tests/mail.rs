//! The delivery of a digest, against servers of all kinds.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::smtp::{Does, Script, Smtp, Stage};
use crate::support::{PODSECD, Tree, event, podsecctl, stderr, stdout, wait_until};

/// A digest as podsecd makes it, in a tree of its own.
fn digest() -> (Tree, PathBuf) {
    let tree = Tree::new(&[("audit.log", event("one", 403).as_bytes())]);
    let daemon = tree.start();
    wait_until("it is read", || tree.forbidden_log().len() == 1);
    assert_eq!(daemon.stop(), Some(0));
    let path = tree.path("1.eml");
    fs::write(&path, podsecctl(&["digest", "preview", "--eml", "--root", &tree.root()]).stdout).expect("written");
    (tree, path)
}

/// One try with this `[mail]`.
fn deliver(tree: &Tree, mail: &str, more: &[&str]) -> Output {
    let config = tree.path("mail.toml");
    fs::write(&config, format!("[mail]\n{mail}\n")).expect("written");
    let mut command = Command::new(PODSECD);
    command.arg("--config").arg(config).args(["mail", "--deliver"]).args(more);
    command.output().expect("podsecd runs")
}

fn server(script: Script) -> (Smtp, String) {
    let smtp = Smtp::start(move |_| script.clone());
    let mail = format!("server = \"{}\"", smtp.address);
    (smtp, mail)
}

#[test]
fn a_server_gets_the_digest_as_it_was_made() {
    let (tree, path) = digest();
    let (smtp, mail) = server(None);
    let file = path.display().to_string();
    let output = deliver(&tree, &mail, &[&file]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "delivered\n"));
    assert_eq!(smtp.taken(), [fs::read(&path).expect("readable")]);
    assert_eq!(deliver(&tree, &mail, &[&file, "--bare"]).status.code(), Some(0));
    let bare = String::from_utf8(smtp.taken().remove(1)).expect("text");
    assert!(bare.contains("alice: list secrets") && !bare.contains("filename"), "{bare}");
}

/// Exit codes: 65 refused, 75 not now, 69 takes nothing at all, 74 nothing more since it was offered this.
#[test]
fn what_a_server_says_is_told_apart() {
    use {Does::*, Stage::*};
    let (tree, path) = digest();
    let file = path.display().to_string();
    for (stage, does, code, words) in [
        (Recipient, Says("550 5.1.1 no such user\r\n"), 65, "no such user"),
        (Recipient, Says("554 5.7.1 relay access denied\r\n"), 65, "relay access denied"),
        (Dot, Says("552 too big\r\n"), 65, "too big"),
        (Recipient, Says("451 4.7.1 greylisted\r\n"), 75, "greylisted"),
        (Dot, Says("452 disk full\r\n"), 75, "disk full"),
        (Greeting, Says("421 4.3.2 not now\r\n"), 69, "not now"),
        (Sender, Says("421 4.3.2 shutting down\r\n"), 74, "shutting down"),
        (Dot, Says("421 4.7.0 not that one\r\n"), 74, "not that one"),
        (Greeting, Says("554 no service\r\n"), 69, "no service"),
        (Greeting, Closes, 69, ""),
        (Hello, Closes, 69, ""),
        (Data, Closes, 75, ""),
        (Dot, Closes, 75, ""),
        (Greeting, Says("\u{0}\u{1}garbage\n\n\n"), 69, ""),
        (Recipient, Says("9999999999 \u{1b}[2J\r\n"), 75, ""),
        (Dot, TakesAndCloses, 75, ""),
        (Greeting, Hangs(Duration::from_millis(10)), 69, ""),
    ] {
        let (smtp, mail) = server(Some((stage, does.clone())));
        let output = deliver(&tree, &mail, &[&file]);
        let said = stdout(&output);
        assert_eq!(output.status.code(), Some(code), "{stage:?} {does:?}: {said}{}", stderr(&output));
        assert!(
            said.contains(words) && said.lines().count() == 1 && !said.contains('\u{1b}'),
            "{stage:?} {does:?}: {said}"
        );
        assert_eq!(smtp.taken().len(), usize::from(matches!(does, TakesAndCloses)), "{stage:?} {does:?}");
    }
}

#[test]
fn a_server_that_answers_without_end_ends_the_try_and_nothing_else() {
    let (tree, path) = digest();
    for flood in [&[b'2'; 65536][..], b"220-and so on, and so on, and so on\r\n"] {
        let (_, mail) = server(Some((Stage::Greeting, Does::Floods(flood))));
        let output = deliver(&tree, &mail, &[&path.display().to_string()]);
        assert!(!matches!(output.status.code(), Some(0 | 65)), "{output:?}");
    }
}

#[test]
fn what_a_server_took_is_delivered_however_it_takes_its_leave() {
    let (tree, path) = digest();
    for does in
        [Does::Closes, Does::Says("garbage"), Does::Hangs(Duration::from_secs(60)), Does::Floods(&[b'2'; 65536])]
    {
        let (smtp, mail) = server(Some((Stage::Farewell, does.clone())));
        let start = std::time::Instant::now();
        let output = deliver(&tree, &mail, &[&path.display().to_string()]);
        // Whoever waits for it goes by the words: it may be killed for what the server sends then.
        assert_eq!(stdout(&output), "delivered\n", "{does:?}");
        assert!(start.elapsed() < Duration::from_secs(30), "{does:?}: the server is not waited for");
        assert_eq!(smtp.taken().len(), 1, "{does:?}");
    }
}

#[test]
fn where_no_server_is_the_reason_is_named() {
    let (tree, path) = digest();
    let file = path.display().to_string();
    let (smtp, _) = server(None);
    for (mail, code, words) in [
        ("server = \"no-such-host.invalid:25\"".to_owned(), 69, "no-such-host.invalid"),
        ("server = \"127.0.0.1:1\"".to_owned(), 69, "refused"),
        (format!("server = \"{}\"\ntls = \"starttls\"", smtp.address), 69, "does not offer STARTTLS"),
        (format!("server = \"{}\"\nuser = \"podsec\"", smtp.address), 69, "/etc/podsecd/smtp-password"),
        ("transport = \"sendmail\"\nsendmail = \"/no/such/program\"".to_owned(), 69, "/no/such/program"),
        ("transport = \"maildir\"\nmaildir = \"/proc/Maildir\"".to_owned(), 74, "/proc/Maildir"),
    ] {
        let output = deliver(&tree, &mail, &[&file]);
        assert_eq!(output.status.code(), Some(code), "{mail}: {}", stderr(&output));
        assert!(stdout(&output).contains(words), "{mail}: {}", stdout(&output));
    }
    assert!(smtp.taken().is_empty());
}

#[test]
fn a_digest_that_was_changed_is_not_sent() {
    let (tree, path) = digest();
    let (smtp, mail) = server(None);
    let whole = fs::read_to_string(&path).expect("text");
    for changed in [whole.replace("alice", "mallory"), whole.replace("To: root", "To: evil"), "x".into(), String::new()]
    {
        fs::write(&path, changed).expect("written");
        let output = deliver(&tree, &mail, &[&path.display().to_string()]);
        assert_eq!(output.status.code(), Some(65), "{}", stdout(&output));
        assert!(stdout(&output).contains("was changed since it was made"), "{}", stdout(&output));
    }
    assert!(smtp.taken().is_empty());
}

#[test]
fn sendmail_gets_the_digest_on_its_standard_input() {
    use std::os::unix::fs::PermissionsExt;
    let (tree, path) = digest();
    let program = tree.path("sendmail");
    let run = |script: &str| {
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        let mail = format!("transport = \"sendmail\"\nsendmail = \"{}\"", program.display());
        deliver(&tree, &mail, &[&path.display().to_string()])
    };
    let output = run(&format!("echo \"$@\" > {0}/arguments; cat > {0}/taken", tree.root()));
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let arguments = fs::read_to_string(tree.path("arguments")).expect("called");
    assert!(arguments.starts_with("-i -f root@") && arguments.ends_with(" -- root\n"), "{arguments}");
    let taken = fs::read_to_string(tree.path("taken")).expect("taken");
    assert_eq!(taken, fs::read_to_string(&path).expect("text").replace("\r\n", "\n"));
    // What it leaves behind with its standard error open, and how much it says, is no reason to wait for it: a digest that
    // was taken would be sent again.
    let leaves = "cat > /dev/null; yes | head -c 1000000 >&2; sleep 3 &";
    for (script, code) in [("exit 75", 75), ("echo down >&2; exit 1", 75), ("exit 67", 75), (leaves, 0)] {
        assert_eq!(run(script).status.code(), Some(code), "{script}");
    }
    let output = run("echo no room >&2; sleep 3 & exit 1");
    assert!(stdout(&output).contains("no room"), "what it said is known all the same: {}", stdout(&output));
}

/// The queue as a whole, with what it tells podsecd: in another tree digests go to a maildir of that tree.
#[test]
fn with_root_digests_go_from_the_outbox_to_the_trees_own_maildir() {
    let tree = Tree::new(&[]);
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "[digest]\nperiod = \"200ms\"\n").expect("written");
    let daemon = tree.start();
    fs::write(tree.path("etc/kubernetes/audit/audit.log"), event("one", 403)).expect("written");
    let outbox = tree.path("var/lib/podsecd/outbox");
    let files = |path: PathBuf| fs::read_dir(path).map(Iterator::count).unwrap_or(0);
    wait_until("a digest is made", || files(outbox.clone()) > 0 && tree.forbidden_log().len() == 1);
    wait_until("it is delivered, recorded and forgotten", || {
        let output = Command::new(PODSECD).args(["--root", &tree.root(), "mail"]).output().expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        files(outbox.clone()) == 0 && tree.forbidden_log().is_empty()
    });
    let maildir = tree.path("var/lib/podsecd-mail/Maildir/new");
    let mails: Vec<_> = fs::read_dir(maildir).expect("made").map(|entry| entry.expect("listed").path()).collect();
    assert!(mails.iter().any(|mail| fs::read_to_string(mail).expect("text").contains("alice: list secrets")));
    wait_until("the status says so", || {
        tree.status().is_some_and(|status| status["mail"]["waiting"] == 0 && status["mail"]["delivered"].is_u64())
    });
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn what_is_delivered_and_cannot_be_marked_as_that_is_not_sent_again() {
    let (tree, path) = digest();
    let outbox = tree.path("var/lib/podsecd/outbox");
    fs::create_dir_all(&outbox).expect("made");
    fs::copy(path, outbox.join("1.eml")).expect("copied");
    // Nothing can be renamed to that.
    fs::create_dir_all(outbox.join("1.sent/x")).expect("made");
    let maildir = tree.path("var/lib/podsecd-mail/Maildir/new");
    let mails = || fs::read_dir(&maildir).map(Iterator::count).unwrap_or(0);
    let mut mail = Command::new(PODSECD).args(["--root", &tree.root(), "mail"]).spawn().expect("runs");
    wait_until("it is delivered", || mails() == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert!(mail.try_wait().expect("its state").is_none(), "it waits, and is not started again and again");
    assert_eq!((mails(), outbox.join("1.eml").exists()), (1, true));
    mail.kill().expect("killed");
    mail.wait().expect("ended");
}

/// podsecd-mail says that, and runs still three seconds later.
fn is_said_and_no_reason_to_end(tree: &Tree, expected: &str) {
    let path = tree.path("said");
    let mut command = Command::new(PODSECD);
    command.args(["--root", &tree.root(), "mail"]).stderr(fs::File::create(&path).expect("made"));
    let mut mail = command.spawn().expect("runs");
    let said = || fs::read_to_string(&path).expect("readable");
    wait_until(&format!("it says {expected}"), || said().contains(expected));
    std::thread::sleep(Duration::from_secs(3));
    let ended = mail.try_wait().expect("its state");
    mail.kill().and_then(|()| mail.wait()).expect("killed");
    assert_eq!(ended, None, "{}", said());
}

/// podsecd-mail.path would start it again at once.
#[test]
fn a_stranger_in_the_outbox_starts_nothing_again_and_again() {
    let tree = Tree::new(&[]);
    let outbox = tree.path("var/lib/podsecd/outbox");
    fs::create_dir_all(&outbox).expect("made");
    fs::write(outbox.join("7-copy.eml"), "x").expect("written");
    is_said_and_no_reason_to_end(&tree, "7-copy.eml is no digest");
}

/// It would forget what was delivered and could not be marked as that, and send it again.
#[test]
fn an_outbox_that_cannot_be_read_does_not_end_podsecd_mail() {
    let tree = Tree::new(&[]);
    fs::create_dir_all(tree.path("var/lib/podsecd")).expect("made");
    fs::write(tree.path("var/lib/podsecd/outbox"), "no directory").expect("written");
    is_said_and_no_reason_to_end(&tree, "the outbox cannot be read");
}

#[test]
fn a_test_alert_says_which_legs_it_reached() {
    let tree = Tree::new(&[("audit.log", b"")]);
    let daemon = tree.start();
    wait_until("it listens", || tree.path("run/podsecd/control.sock").exists());
    let output = podsecctl(&["test-alert", "--root", &tree.root(), "--wait", "0", "--json"]);
    assert_eq!(output.status.code(), Some(1), "no mail was delivered: {}", stderr(&output));
    let said: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let arrived: Vec<_> = said["legs"].as_array().expect("legs").iter().map(|leg| leg["arrived"] == true).collect();
    assert_eq!(arrived, [true, true, false], "{said}");
    let digest = fs::read_to_string(tree.path("var/lib/podsecd/outbox/1.eml")).expect("made");
    assert!(digest.contains("tries whether alerts arrive"), "{digest}");
    let sent = podsecctl(&["digest", "send", "--root", &tree.root()]);
    assert!(stdout(&sent).contains("nothing was found since the last digest"), "{}", stdout(&sent));
    assert_eq!(daemon.stop(), Some(0));
    let output = podsecctl(&["test-alert", "--root", &tree.root()]);
    assert!(stderr(&output).contains("is podsecd running"), "{}", stderr(&output));
}

#[test]
fn a_flood_of_refusals_does_not_hold_back_the_mail() {
    use std::io::Write;
    let tree = Tree::new(&[("audit.log", event("first", 403).as_bytes())]);
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "[digest]\nperiod = \"500ms\"\n").expect("written");
    let daemon = tree.start();
    let log = tree.path("etc/kubernetes/audit/audit.log");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let flood = std::thread::spawn(move || {
        let mut log = fs::File::options().append(true).open(log).expect("opened");
        for number in 0.. {
            if stopped.try_recv().is_ok() {
                return;
            }
            log.write_all(event(&format!("flood-{number}"), 403).as_bytes()).expect("written");
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    wait_until("a digest is made in the midst of it", || tree.path("var/lib/podsecd/outbox/2.eml").exists());
    stop.send(()).expect("still at it");
    flood.join().expect("it ended");
    assert_eq!(daemon.stop(), Some(0));
}

/// A terminal that takes nothing stands for such a journal.
#[test]
fn history_that_cannot_be_read_on_does_not_hold_back_the_mail() {
    use std::io::Write;
    let (_takes_nothing, mut terminal) = std::io::pipe().expect("a pipe");
    terminal.write_all(&[0; 65536]).expect("filled");
    // A refusal in each block that is read: more than can be on their way at once.
    let fine = event("fine", 200).repeat(400);
    let history: String = (0..160).map(|number| event(&format!("history-{number}"), 403) + &fine).collect();
    let tree = Tree::new(&[("audit.log", history.as_bytes())]);
    fs::write(tree.path("etc/podsecd/podsecd.toml"), "[digest]\nperiod = \"200ms\"\n").expect("written");
    let _daemon = tree.spawn_onto(terminal, &[]);
    wait_until("it listens", || tree.path("run/podsecd/control.sock").exists());
    let root = tree.root();
    // It is answered when the alert is on the terminal.
    std::thread::spawn(move || podsecctl(&["test-alert", "--root", &root]));
    let digest = tree.path("var/lib/podsecd/outbox/1.eml");
    wait_until("a digest is made of what podsecd itself says", || digest.exists());
    let digest = fs::read_to_string(digest).expect("readable");
    assert!(digest.contains("tries whether alerts arrive") && !digest.contains("refusal"), "{digest}");
    let lag = tree.status().and_then(|status| status["audit_log"]["lag"].as_u64());
    assert!(lag > Some(0), "history is still being read: {lag:?}");
}

/// A certificate of localhost, made for this test, and its key.
fn certificate(tree: &Tree) -> [String; 2] {
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| tree.path(name).display().to_string());
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    let output = openssl.args(["-out", &certificate, "-keyout", &key]).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", stderr(&output));
    [certificate, key]
}

#[test]
fn a_provider_gets_the_digest_encrypted_and_from_a_user_with_its_password() {
    use std::io::{BufRead, BufReader};
    let (tree, path) = digest();
    let [certificate, key] = certificate(&tree);
    for mode in ["starttls", "tls"] {
        let mut server = Command::new("python3");
        server.args(["tests/smtp_tls.py", mode, &certificate, &key, &tree.root()]);
        let mut server = server.stdout(std::process::Stdio::piped()).spawn().expect("python3 is installed");
        let mut port = String::new();
        BufReader::new(server.stdout.take().expect("piped")).read_line(&mut port).expect("it listens");
        let deliver = |tls: &str, trusted: bool, password: Option<&str>| {
            let config = tree.path("mail.toml");
            let mail = format!("server = \"localhost:{}\"\ntls = \"{tls}\"\nuser = \"podsec\"", port.trim());
            fs::write(&config, format!("[mail]\n{mail}\n")).expect("written");
            let mut command = Command::new(PODSECD);
            command.arg("--config").arg(config).args(["mail", "--deliver"]).arg(&path);
            command.env("CREDENTIALS_DIRECTORY", tree.path("credentials"));
            fs::create_dir_all(tree.path("credentials")).expect("made");
            fs::write(tree.path("credentials/smtp-password"), password.unwrap_or("-")).expect("written");
            if trusted {
                command.env("SSL_CERT_FILE", &certificate);
            }
            let output = command.output().expect("podsecd runs");
            (output.status.code(), stdout(&output))
        };
        for (trusted, password, words) in [
            (true, Some("wrong"), "wrong password"),
            (true, None, "/etc/podsecd/smtp-password"),
            (false, Some("secret word"), "certificate"),
        ] {
            let (code, said) = deliver(mode, trusted, password);
            assert_eq!(code, Some(69), "{mode}: {said}");
            assert!(said.contains(words), "{mode}: {said}");
            assert!(!tree.path("taken").exists());
        }
        assert_eq!(deliver(mode, true, Some("secret word\n")).0, Some(0), "{mode}");
        assert_eq!(fs::read(tree.path("taken")).expect("taken"), fs::read(&path).expect("readable"), "{mode}");
        fs::remove_file(tree.path("taken")).expect("removed");
        server.kill().and_then(|()| server.wait()).expect("ended");
    }
}
