//! Check `containers` as a whole, on the store of a tree of its own. What a container does is done by hand, in the layer's
//! directory; real containers are in the tests on the node.

mod ends;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag};

use crate::support::{Daemon, Tree, wait_until};

const STORE: &str = "home/alice/.local/share/containers/storage";
const RUN: &str = "run/user/4242";

fn id(digit: char) -> String {
    String::from(digit).repeat(64)
}

/// A store with a container and its image.
fn node() -> Tree {
    let tree = Tree::new(&[]);
    write(&tree, "etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:4242:500::/home/alice:/bin/sh\n");
    write(&tree, "etc/subuid", "alice:100000:65536\n");
    write(&tree, "etc/podsecd/podsecd.toml", "[watch]\ngather = \"1s\"\n");
    let (image, layer, container) = (id('1'), id('2'), id('c'));
    write(
        &tree,
        &format!("{STORE}/overlay-layers/layers.json"),
        &format!(r#"[{{"id":"{image}"}},{{"id":"{layer}","parent":"{image}"}}]"#),
    );
    write(
        &tree,
        &format!("{STORE}/overlay-images/images.json"),
        &format!(r#"[{{"id":"{image}","names":["registry.local/web:1"],"layer":"{image}"}}]"#),
    );
    let metadata = r#"{\"image-name\":\"registry.local/web:1\",\"name\":\"web\"}"#;
    write(
        &tree,
        &format!("{STORE}/overlay-containers/containers.json"),
        &format!(r#"[{{"id":"{container}","names":["web"],"layer":"{layer}","metadata":"{metadata}"}}]"#),
    );
    write(
        &tree,
        &format!("{STORE}/overlay-containers/{container}/userdata/config.json"),
        r#"{"process":{"user":{"uid":33},"cwd":"/"},"mounts":[{"destination":"/data/base"},{"destination":"/etc/hosts"}]}"#,
    );
    for directory in ["opt", "etc", "srv", "usr/bin", "var/lib"] {
        fs::create_dir_all(in_container(&tree, directory)).expect("made");
    }
    fs::create_dir_all(tree.path(&format!("{STORE}/overlay/{image}/diff/bin"))).expect("made");
    fs::create_dir_all(tree.path(&format!("{RUN}/containers/overlay-containers/{container}/userdata"))).expect("made");
    fs::create_dir_all(tree.path(&format!("{RUN}/libpod/tmp/exits"))).expect("made");
    tree
}

fn write(tree: &Tree, name: &str, text: &str) -> PathBuf {
    let path = tree.path(name);
    fs::create_dir_all(path.parent().expect("has one")).expect("made");
    fs::write(&path, text).expect("written");
    path
}

/// Writes a file as conmon does: it comes by rename.
fn rename_to(path: &Path, text: &str) {
    fs::write(path.with_extension("AAAAAA"), text).expect("written");
    fs::rename(path.with_extension("AAAAAA"), path).expect("renamed");
}

fn in_container(tree: &Tree, path: impl AsRef<Path>) -> PathBuf {
    tree.path(&format!("{STORE}/overlay/{}/diff", id('2'))).join(path)
}

/// What podsecd says of containers since it was started.
fn said(tree: &Tree) -> Vec<String> {
    let text = fs::read_to_string(tree.path("output")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(" containers/"));
    lines.filter(|line| !line.contains("/probe")).map(ToOwned::to_owned).collect()
}

fn has_said(tree: &Tree, words: &[&str]) -> bool {
    said(tree).iter().any(|line| words.iter().all(|word| line.contains(word)))
}

/// podsecd, which watches the container by now.
fn watching(tree: &Tree) -> Daemon {
    let daemon = tree.start();
    let mut number = 0;
    wait_until("the container is watched", || {
        number += 1;
        fs::write(in_container(tree, format!("srv/probe{number}")), "x").expect("written");
        fs::read_to_string(tree.path("output")).is_ok_and(|text| text.contains("/probe"))
    });
    daemon
}

#[test]
fn what_a_container_did_is_told_by_what_it_did_and_where() {
    let tree = node();
    let _daemon = watching(&tree);
    let path = |name: &str| in_container(&tree, name);
    fs::write(path("opt/file"), "x").expect("written");
    fs::write(path("etc/passwd"), "x").expect("written");
    fs::write(path("var/lib/data"), "x").expect("written");
    fs::create_dir_all(path("data/base")).expect("made");
    fs::write(path("usr/bin/su"), "x").expect("written");
    fs::set_permissions(path("usr/bin/su"), fs::Permissions::from_mode(0o4755)).expect("set");
    symlink("/etc/shadow", path("etc/link")).expect("linked");
    fs::write(path("opt").join(std::ffi::OsStr::from_bytes(b"$(x)\n\xff]: Critical: y")), "x").expect("written");
    fs::write(tree.path(&format!("{STORE}/overlay/{}/diff/bin/sh", id('1'))), "x").expect("written");
    let web = "container web (user alice, image registry.local/web:1)";
    for words in [
        &["Critical", web, "created", "/opt/file"][..],
        &["Warning", web, "created", "/etc/link"],
        &["Critical", web, "setuid", "/usr/bin/su"],
        &["Critical", web, r"/opt/$(x)\u{a}\xff]\u{3a} Critical: y"],
        &["Critical", "a layer of image registry.local/web:1", "created", "/bin/sh"],
    ] {
        wait_until(&format!("{words:?}"), || has_said(&tree, words));
    }
    for path in ["/var/lib", "/data", "/etc/passwd"] {
        // podman writes the last one when it starts the container, which was not started yet.
        assert!(!has_said(&tree, &[path]), "{path}: {:#?}", said(&tree));
    }
}

#[test]
fn starts_and_stops_are_told_with_the_user_and_the_reason() {
    let tree = node();
    let _daemon = watching(&tree);
    let container = id('c');
    let userdata = |top: &str| tree.path(&format!("{top}/overlay-containers/{container}/userdata"));
    let exits = tree.path(&format!("{RUN}/libpod/tmp/exits"));
    // As conmon does. No container can be killed for want of memory where the host has no memory controller: what conmon
    // notes then is made by hand.
    let stop = |code: &str, out_of_memory: bool| {
        if out_of_memory {
            fs::write(userdata(STORE).join("oom"), "").expect("written");
        }
        rename_to(&exits.join(&container), code);
    };
    for (code, out_of_memory, words) in [
        ("0", false, &["Low", "stopped with exit code 0"][..]),
        ("3", false, &["Low", "stopped with exit code 3"]),
        ("137", false, &["Low", "stopped with exit code 137: signal 9"]),
        ("137", true, &["Warning", "stopped with exit code 137", "for want of memory"]),
        ("x", false, &["Low", "nobody says with which exit code"]),
    ] {
        let count = |words: &str| said(&tree).iter().filter(|line| line.contains(words)).count();
        let starts = count("was started");
        fs::write(userdata(&format!("{RUN}/containers")).join("pidfile"), "4711").expect("written");
        wait_until("its start is told", || count("was started") == starts + 1);
        let _ = fs::remove_file(userdata(STORE).join("oom"));
        stop(code, out_of_memory);
        wait_until(&format!("{words:?}"), || has_said(&tree, words));
        wait_until("it is known which has ended", || exits.join(&container).exists());
        fs::remove_file(exits.join(&container)).expect("removed");
    }
    assert!(has_said(&tree, &["container web (user alice", "was started, as user id 100032 of the node"]));
}

/// A store of CRI-O with a container in a pod, and where its runtime keeps what is lost when the node is switched off.
const CRIO: &str = "var/lib/u7s-admin/own";
const CRIO_RUN: &str = "run/user/4300/own";
const OF_CRIO: &str = "container nginx of pod prod/web (user u7s-admin, image registry.local/nginx:1)";

fn node_of_crio() -> Tree {
    let tree = Tree::new(&[]);
    write(&tree, "etc/passwd", "u7s-admin:x:4300:4300::/var/lib/u7s-admin:/bin/sh\n");
    write(&tree, "etc/subuid", "u7s-admin:200000:65536\n");
    write(
        &tree,
        "var/lib/u7s-admin/.config/usernetes/crio/crio.conf",
        "[crio]\nroot = \"/var/lib/u7s-admin/own\"\nrunroot = \"/run/user/4300/own/run\"\n\
         [crio.runtime]\ncontainer_exits_dir = \"/run/user/4300/own/ended\"\n",
    );
    let (layer, container, sandbox) = (id('2'), id('c'), id('d'));
    write(&tree, &format!("{CRIO}/overlay-layers/volatile-layers.json"), &format!(r#"[{{"id":"{layer}"}}]"#));
    let of_pod = r#"{\"pod-name\":\"k8s_web_prod_u_0\",\"pod-id\":\"POD\",\"metadata-name\":\"web\",\"namespace\":\"prod\",\"pod\":true}"#;
    let of_container = r#"{\"pod-name\":\"k8s_web_prod_u_0\",\"pod-id\":\"POD\",\"image-name\":\"registry.local/nginx:1\",\"metadata-name\":\"nginx\"}"#;
    let [of_pod, of_container] = [of_pod, of_container].map(|metadata| metadata.replace("POD", &sandbox));
    write(
        &tree,
        &format!("{CRIO}/overlay-containers/volatile-containers.json"),
        &format!(
            r#"[{{"id":"{sandbox}","layer":"{}","metadata":"{of_pod}"}},
            {{"id":"{container}","names":["k8s_nginx_web_prod_u_0"],"layer":"{layer}","metadata":"{of_container}"}}]"#,
            id('3')
        ),
    );
    fs::create_dir_all(tree.path(&format!("{CRIO}/overlay/{layer}/diff/opt"))).expect("made");
    fs::create_dir_all(tree.path(&format!("{CRIO_RUN}/ended"))).expect("made");
    tree
}

/// podsecd, which watches CRI-O's container by now.
fn watching_crio(tree: &Tree) -> Daemon {
    let daemon = tree.start();
    let opt = tree.path(&format!("{CRIO}/overlay/{}/diff/opt", id('2')));
    let mut number = 0;
    wait_until("it is watched", || {
        number += 1;
        fs::write(opt.join(format!("{}-{number}", std::process::id())), "x").expect("written");
        has_said(tree, &[OF_CRIO, "/opt/"])
    });
    daemon
}

#[test]
fn containers_of_crio_are_told_with_their_pods_wherever_its_configuration_has_them() {
    let tree = node_of_crio();
    let _daemon = watching_crio(&tree);
    let (run, container) = (CRIO_RUN, id('c'));
    write(&tree, &format!("{run}/run/overlay-containers/{container}/userdata/pidfile"), "4711");
    wait_until("its start is told", || has_said(&tree, &[OF_CRIO, "was started, as user id 4300"]));
    let ended = tree.path(&format!("{run}/ended"));
    rename_to(&ended.join(&container), "1");
    wait_until("its end is told", || has_said(&tree, &[OF_CRIO, "stopped with exit code 1"]));
}

#[test]
fn what_changes_while_podsecd_is_away_is_found_when_it_comes_back() {
    let tree = node();
    let path = |name: &str| in_container(&tree, name);
    for (name, end) in [("one", "TERM"), ("two", "KILL")] {
        let daemon = watching(&tree);
        let before = path(&format!("opt/before-{name}"));
        fs::write(&before, "x").expect("written");
        wait_until("it is told", || has_said(&tree, &[&format!("/opt/before-{name}")]));
        daemon.signal(end);
        daemon.wait();
        fs::write(path(&format!("usr/bin/{name}")), "x").expect("written");
        fs::set_permissions(path(&format!("usr/bin/{name}")), fs::Permissions::from_mode(0o4755)).expect("set");
        fs::remove_file(&before).expect("removed");
        let _daemon = tree.start();
        wait_until("it is told", || has_said(&tree, &["setuid", &format!("/usr/bin/{name}")]));
        wait_until("it is told that something is lacking", || has_said(&tree, &["removed /opt"]));
        assert!(!has_said(&tree, &[&format!("/opt/before-{name}")]), "{:#?}", said(&tree));
    }
}

/// Ends podsecd. What it said.
fn stop(tree: &Tree, daemon: Daemon) -> Vec<String> {
    assert_eq!(daemon.stop(), Some(0));
    said(tree)
}

/// podsecd, which looks all through so often.
fn seeking(tree: &Tree, rescan: &str) -> Daemon {
    write(tree, "etc/podsecd/podsecd.toml.d/rescan.toml", &format!("[watch]\nrescan = \"{rescan}\"\n"));
    watching(tree)
}

#[test]
fn what_the_kernel_does_not_tell_of_programs_is_told_once_also_after_restarts() {
    let tree = node();
    let path = |name: &str| in_container(&tree, name);
    for name in ["tool", "hidden", "kept"] {
        fs::write(path(&format!("usr/bin/{name}")), "x").expect("written");
    }
    // Nobody watches it under this name.
    let unseen = tree.path("unseen");
    fs::hard_link(path("usr/bin/tool"), &unseen).expect("linked");
    let removed = |name: &str| {
        // As overlayfs does: all names are of one file.
        let whiteout = tree.path("whiteout");
        if !whiteout.exists() {
            nix::sys::stat::mknod(&whiteout, SFlag::S_IFCHR, Mode::empty(), 0).expect("made");
        }
        fs::hard_link(whiteout, path(&format!("usr/bin/{name}"))).expect("linked");
    };
    let daemon = seeking(&tree, "1h");
    fs::write(&unseen, "y").expect("written");
    removed("first");
    wait_until("it is told", || has_said(&tree, &["removed /usr/bin/first"]));
    assert!(!has_said(&tree, &["/usr/bin/tool"]));
    let mut all = stop(&tree, daemon);

    removed("second");
    let daemon = seeking(&tree, "2s");
    wait_until("it is told", || has_said(&tree, &["Critical", "changed, as a look found: /usr/bin/tool"]));
    wait_until("it is told", || has_said(&tree, &["removed /usr/bin/second"]));
    all.extend(stop(&tree, daemon));

    // Who removes a program while nobody watches can hide that from times.
    let directory = fs::File::open(path("usr/bin")).expect("opened");
    let modified = directory.metadata().and_then(|metadata| metadata.modified()).expect("known");
    fs::remove_file(path("usr/bin/hidden")).expect("removed");
    directory.set_modified(modified).expect("set");
    let daemon = seeking(&tree, "2s");
    wait_until("it is told", || has_said(&tree, &["removed /usr/bin/hidden"]));
    all.extend(stop(&tree, daemon));
    for (name, times) in [("tool", 1), ("first", 1), ("second", 1), ("hidden", 1), ("kept", 0)] {
        let told = all.iter().filter(|line| line.contains(&format!("/usr/bin/{name}")));
        assert_eq!(told.count(), times, "{name}: {all:#?}");
    }
}

#[test]
fn an_image_that_comes_is_no_alarm_and_one_that_changes_is_whether_podsecd_watches_or_not() {
    let tree = node();
    let layer = |digit: char| tree.path(&format!("{STORE}/overlay/{}/diff", id(digit)));
    let lists = tree.path(&format!("{STORE}/overlay-layers/layers.json"));
    // As a pull does.
    let pull = |digit: char| {
        let former = fs::read_to_string(&lists).expect("read");
        let with = |flags: &str| {
            let record = format!(r#"{{"id":"{}","flags":{{{flags}}}}}"#, id(digit));
            let text = former.trim_end_matches(']').to_owned() + "," + &record + "]";
            fs::write(lists.with_extension("tmp"), text).expect("written");
            fs::rename(lists.with_extension("tmp"), &lists).expect("renamed");
        };
        with(r#""incomplete":true"#);
        fs::create_dir_all(layer(digit).join("bin")).expect("made");
        fs::write(layer(digit).join("bin/sh"), "x").expect("written");
        with("");
    };
    let daemon = watching(&tree);
    pull('5');
    fs::write(in_container(&tree, "opt/first"), "x").expect("written");
    wait_until("it is told", || has_said(&tree, &["/opt/first"]));
    assert_eq!(daemon.stop(), Some(0));
    pull('6');
    fs::write(layer('1').join("bin/sh"), "x").expect("written");
    let _daemon = watching(&tree);
    wait_until("it is told", || has_said(&tree, &["a layer of image registry.local/web:1", "/bin/sh"]));
    // It is known once it is watched, which nothing tells.
    let is_told = |number: usize| {
        fs::write(layer('6').join(format!("bin/sh{number}")), "x").expect("written");
        has_said(&tree, &["a layer of image", &id('6'), "/bin/sh"])
    };
    let mut number = 0;
    wait_until("it is told", || {
        number += 1;
        is_told(number)
    });
    let of_pulls = |line: &&String| {
        let is_pulled = line.contains("/bin/sh,") || line.ends_with("/bin/sh");
        line.contains(&id('5')) || (line.contains(&id('6')) && is_pulled)
    };
    assert!(!said(&tree).iter().any(|line| of_pulls(&line)), "{:#?}", said(&tree));
}

#[test]
fn a_container_that_comes_is_watched_and_one_that_goes_is_no_alarm() {
    let tree = node();
    let _daemon = watching(&tree);
    let (layer, container) = (id('3'), id('d'));
    let lists = ["overlay-layers/layers.json", "overlay-containers/containers.json"];
    let former = lists.map(|list| fs::read_to_string(tree.path(&format!("{STORE}/{list}"))).expect("read"));
    let replace = |list: &str, text: &str| {
        let path = tree.path(&format!("{STORE}/{list}"));
        fs::write(path.with_extension("tmp"), text).expect("written");
        fs::rename(path.with_extension("tmp"), path).expect("renamed");
    };
    let with = |former: &str, record: &str| former.trim_end_matches(']').to_owned() + "," + record + "]";
    let diff = tree.path(&format!("{STORE}/overlay/{layer}/diff"));
    fs::create_dir_all(diff.join("opt")).expect("made");
    replace(lists[0], &with(&former[0], &format!(r#"{{"id":"{layer}"}}"#)));
    replace(lists[1], &with(&former[1], &format!(r#"{{"id":"{container}","names":["job"],"layer":"{layer}"}}"#)));
    fs::write(diff.join("opt/file"), "x").expect("written");
    wait_until("it is told", || has_said(&tree, &["container job", "created", "/opt/file"]));
    // As the tools remove one.
    replace(lists[0], &with(&former[0], &format!(r#"{{"id":"{layer}","flags":{{"incomplete":true}}}}"#)));
    fs::remove_dir_all(tree.path(&format!("{STORE}/overlay/{layer}"))).expect("removed");
    replace(lists[1], &former[1]);
    replace(lists[0], &former[0]);
    fs::write(in_container(&tree, "opt/last"), "x").expect("written");
    wait_until("it is told", || has_said(&tree, &["/opt/last"]));
    assert!(!has_said(&tree, &["container job", "removed"]), "{:#?}", said(&tree));
}
