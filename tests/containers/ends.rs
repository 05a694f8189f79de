//! Ends of containers that conmon's exit files do not tell, or not in time.
//!
//! No container can be killed for want of memory where the host has no memory controller: podsecd is shown a **recorded
//! cgroup tree**, of plain files with what the kernel's documentation says they hold
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html>, `memory.events` and `cgroup.events`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{CRIO, CRIO_RUN, OF_CRIO, RUN, has_said, id, node, node_of_crio, rename_to, said, watching, write};
use super::{in_container, watching_crio};
use crate::support::{Tree, wait_until};

const WEB: &str = "container web (user alice, image registry.local/web:1)";

fn count(tree: &Tree, words: &[&str]) -> usize {
    said(tree).iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Where the end of CRI-O's container is kept until it is removed.
fn lasting(tree: &Tree, container: char) -> PathBuf {
    let userdata = tree.path(&format!("{CRIO}/overlay-containers/{}/userdata", id(container)));
    fs::create_dir_all(&userdata).expect("made");
    userdata.join("exit")
}

#[test]
fn what_of_crio_ended_while_podsecd_was_down_is_told_once_when_it_starts() {
    let tree = node_of_crio();
    let ended = tree.path(&format!("{CRIO_RUN}/ended"));
    // That was before podsecd came to this node.
    rename_to(&lasting(&tree, 'd'), "9");
    let daemon = watching_crio(&tree);
    assert_eq!(daemon.stop(), Some(0));
    // CRI-O keeps one for good, and the other until it has seen it.
    rename_to(&lasting(&tree, 'c'), "3");
    rename_to(&ended.join(id('c')), "3");
    for (start, times) in [("first", 1), ("second", 0)] {
        let daemon = watching_crio(&tree);
        wait_until(start, || count(&tree, &[OF_CRIO, "stopped with exit code 3"]) == times);
        assert_eq!(count(&tree, &["stopped"]), times, "{start}: {:#?}", said(&tree));
        assert_eq!(daemon.stop(), Some(0));
    }
}

#[test]
fn an_exit_code_that_was_missed_is_the_one_that_crio_keeps_and_what_was_told_is_not_told_again() {
    let tree = node_of_crio();
    let daemon = watching_crio(&tree);
    rename_to(&lasting(&tree, 'c'), "5");
    // What cannot be read is as good as gone.
    std::os::unix::fs::symlink("/etc/passwd", tree.path(&format!("{CRIO_RUN}/ended/x"))).expect("linked");
    fs::rename(tree.path(&format!("{CRIO_RUN}/ended/x")), tree.path(&format!("{CRIO_RUN}/ended/{}", id('c'))))
        .expect("renamed");
    wait_until("its end is told", || has_said(&tree, &[OF_CRIO, "stopped with exit code 5"]));
    assert_eq!(count(&tree, &["stopped"]), 1, "{:#?}", said(&tree));
    assert_eq!(daemon.stop(), Some(0));
    let _daemon = watching_crio(&tree);
    assert_eq!(count(&tree, &["stopped"]), 0, "{:#?}", said(&tree));
}

#[test]
fn an_exit_file_that_comes_with_its_directory_is_read() {
    let tree = node();
    fs::remove_dir(tree.path(&format!("{RUN}/libpod/tmp/exits"))).expect("removed");
    let _daemon = watching(&tree);
    fs::create_dir(tree.path(&format!("{RUN}/libpod/tmp/new"))).expect("made");
    write(&tree, &format!("{RUN}/libpod/tmp/new/{}", id('c')), "7");
    fs::rename(tree.path(&format!("{RUN}/libpod/tmp/new")), tree.path(&format!("{RUN}/libpod/tmp/exits")))
        .expect("renamed");
    wait_until("its end is told", || has_said(&tree, &[WEB, "stopped with exit code 7"]));
    assert_eq!(count(&tree, &["stopped"]), 1, "{:#?}", said(&tree));
}

/// A recorded cgroup tree with the group of alice's container, in which something runs.
struct Groups<'t> {
    tree: &'t Tree,
    group: String,
}

impl Groups<'_> {
    fn new(tree: &Tree) -> Groups<'_> {
        write(tree, "sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n");
        let user = "sys/fs/cgroup/user.slice/user-4242.slice/user@4242.service/user.slice";
        let groups = Groups { tree, group: format!("{user}/libpod-{}.scope", id('c')) };
        write(tree, &format!("{user}/libpod-conmon-{}.scope/cgroup.events", id('c')), "populated 1\nfrozen 0\n");
        groups
    }

    /// As systemd and crun make it, and waits until podsecd knows that it was started so many times.
    fn run(&self, time: usize) {
        let inner = format!("{}/container", self.group);
        for group in [&self.group, &inner] {
            write(self.tree, &format!("{group}/cgroup.events"), "populated 0\nfrozen 0\n");
            write(self.tree, &format!("{group}/memory.events"), &memory(0));
            write(self.tree, &format!("{group}/cgroup.events"), "populated 1\nfrozen 0\n");
        }
        write(self.tree, &format!("{RUN}/containers/overlay-containers/{}/userdata/pidfile", id('c')), "4711");
        wait_until("its start is told", || count(self.tree, &[WEB, "was started"]) == time);
        wait_until("its control groups are watched", || {
            [&self.group, &inner].iter().all(|group| self.is_watched(group))
        });
        // What is in them is read a moment later.
        std::thread::sleep(Duration::from_secs(1));
    }

    fn is_watched(&self, group: &str) -> bool {
        let inode = format!(" ino:{:x} ", fs::metadata(self.tree.path(group)).expect("there").ino());
        let pid = self.tree.status().expect("there")["pid"].clone();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it runs").flatten();
        let mut texts = descriptors.map(|descriptor| fs::read_to_string(descriptor.path()).unwrap_or_default());
        texts.any(|text| text.contains(&inode))
    }

    fn kill_for_want_of_memory(&self) {
        write(self.tree, &format!("{}/memory.events", self.group), &memory(1));
    }

    /// As the kernel does when the last process has ended.
    fn end(&self) {
        write(self.tree, &format!("{}/cgroup.events", self.group), "populated 0\nfrozen 0\n");
    }

    /// As systemd does after that.
    fn remove(&self) {
        fs::remove_dir_all(self.tree.path(&self.group)).expect("removed");
    }
}

fn memory(kills: u32) -> String {
    format!("low 0\nhigh 0\nmax 31\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")
}

fn exit_file(tree: &Tree) -> PathBuf {
    tree.path(&format!("{RUN}/libpod/tmp/exits/{}", id('c')))
}

#[test]
fn out_of_memory_is_told_from_a_recorded_cgroup_tree_and_only_of_the_run_in_which_it_was() {
    let tree = node();
    let groups = Groups::new(&tree);
    let _daemon = watching(&tree);
    for (round, is_killed) in [true, false, true].into_iter().enumerate() {
        groups.run(round + 1);
        if is_killed {
            groups.kill_for_want_of_memory();
        }
        groups.end();
        rename_to(&exit_file(&tree), "137");
        wait_until("its end is told", || count(&tree, &[WEB, "stopped with exit code 137"]) == round + 1);
        let last = said(&tree).into_iter().rfind(|line| line.contains("stopped")).expect("told");
        assert_eq!(last.contains("for want of memory"), is_killed, "{last}");
        fs::remove_file(exit_file(&tree)).expect("removed");
        groups.remove();
    }
    assert_eq!(count(&tree, &["stopped"]), 3, "{:#?}", said(&tree));
}

#[test]
fn an_end_that_conmon_does_not_tell_is_told_once_from_a_recorded_cgroup_tree() {
    let tree = node();
    let groups = Groups::new(&tree);
    let _daemon = watching(&tree);
    // Nobody knows this one: any user can make a group of any name.
    let stranger = Groups { tree: &tree, group: groups.group.replace(&id('c'), &id('e')) };
    write(&tree, &format!("{}/cgroup.events", stranger.group), "populated 1\nfrozen 0\n");
    for (round, is_killed) in [true, false].into_iter().enumerate() {
        groups.run(round + 1);
        if is_killed {
            groups.kill_for_want_of_memory();
            stranger.remove();
            groups.end();
        } else {
            groups.remove();
        }
        wait_until("its end is told", || {
            count(&tree, &[WEB, "stopped; nobody says with which exit code"]) == round + 1
        });
        let last = said(&tree).into_iter().rfind(|line| line.contains("stopped")).expect("told");
        assert_eq!(last.contains("for want of memory"), is_killed, "{last}");
        // conmon, which was stopped, goes on.
        rename_to(&exit_file(&tree), "137");
        let after = format!("/opt/after{round}");
        fs::write(in_container(&tree, &after[1..]), "x").expect("written");
        wait_until("what comes after that is told", || has_said(&tree, &[&after]));
        assert_eq!(count(&tree, &["stopped"]), round + 1, "{:#?}", said(&tree));
        fs::remove_file(exit_file(&tree)).expect("removed");
    }
    // It may be told by conmon again.
    groups.run(3);
    groups.remove();
    rename_to(&exit_file(&tree), "0");
    wait_until("its end is told", || has_said(&tree, &[WEB, "stopped with exit code 0"]));
    assert!(!has_said(&tree, &[&id('e')]), "{:#?}", said(&tree));
}
