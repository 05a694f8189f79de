//! Check `containers` on a real node: whatever is done to the files of real rootless containers is told, and nothing else.

mod containers;
mod rows;
mod table;
mod watchers;

use std::time::Duration;

use serde_json::Value;

use crate::node::{Node, field};
use crate::podsec::{SOON, entries_since, now, podsec_node};
use containers::{Container, IMAGE, OPTIONS};
use table::Outcome;
use watchers::Fate;

/// One way to tamper with a container, and what must be told of it.
struct Row {
    name: &'static str,
    steps: &'static [Step],
    /// All of it must be told.
    told: &'static [Told],
    /// Of these paths more may be told; of others nothing.
    besides: &'static [&'static str],
    /// Otherwise one is started for it, well before.
    starts_its_own_container: bool,
}

enum Step {
    /// A script in the container.
    In(&'static str),
    /// A script of the user whose container it is.
    Out(&'static str),
    Meet(Fate),
}

/// An event of check `containers`.
struct Told {
    id: &'static str,
    /// One of them.
    changes: &'static [&'static str],
    /// As the container has it. `*` stands for anything, at most once.
    path: &'static str,
}

const fn row(name: &'static str, steps: &'static [Step], told: &'static [Told]) -> Row {
    Row { name, steps, told, besides: &[], starts_its_own_container: false }
}

impl Row {
    const fn besides(self, besides: &'static [&'static str]) -> Row {
        Row { besides, ..self }
    }

    const fn of_its_own_container(self) -> Row {
        Row { starts_its_own_container: true, ..self }
    }

    /// The name of its container: the row's, as far as podman takes it.
    fn container(&self) -> String {
        self.name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
    }

    fn may_be_told(&self, path: &str) -> bool {
        let told = self.told.iter().map(|told| told.path);
        told.chain(self.besides.iter().copied()).any(|pattern| is_like(pattern, path))
    }
}

fn is_like(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, end)) => path.len() >= start.len() + end.len() && path.starts_with(start) && path.ends_with(end),
    }
}

/// Changes that follow others in the same directory may be gathered for ten seconds.
const GATHERED: Duration = Duration::from_secs(15);
const IN_TIME: Duration = Duration::from_secs(60);

/// The interval of looking at everything again, where it matters; podsecd has so long for it and a bit.
const RESCAN: &str = "[watch]\nrescan = \"20s\"\n";
const WITH_THE_RESCAN: Duration = Duration::from_secs(120);

/// A node with alice's image.
fn node_with_image() -> Node {
    let node = podsec_node();
    containers::build_image(&node);
    node
}

/// The events of check `containers` from then on.
fn events_since(node: &Node, then: u64) -> Vec<(u64, Value)> {
    entries_since(node, then, &["PODSEC_CHECK=containers", "PODSEC_KIND=event"])
}

fn paths(entry: &Value) -> Vec<String> {
    field(entry, "PODSEC_PATH")
}

fn is_of(entry: &Value, container: &Container) -> bool {
    field(entry, "PODSEC_CONTAINER") == [container.name.as_str()]
}

/// Containers in the state in which rows begin: that they were started is told.
fn start(node: &Node, names: &[String]) -> Vec<Container> {
    let then = now(node);
    let started = containers::start(node, names);
    node.wait_until("their own files are told", SOON, || {
        let events = events_since(node, then);
        let is_ready = |container| {
            let of_it =
                |(_, entry): &(u64, Value)| is_of(entry, container) && paths(entry).contains(&"/srv/own/ready".into());
            events.iter().any(of_it)
        };
        started.iter().all(is_ready)
    });
    started
}

pub(crate) fn whatever_is_done_to_the_files_of_a_container_is_told_and_nothing_else() {
    let node = node_with_image();
    node.shell(
        "mkdir -p /srv/spare/srv; tar -C /srv/spare -c . |
        as alice podman import --quiet --signature-policy=/srv/loose.json - registry.local/spare:1",
    );
    let beginning = now(&node);
    let all = || rows::LIVE.iter().chain(rows::RESCAN);
    let names: Vec<_> = all().filter(|row| !row.starts_its_own_container).map(Row::container).collect();
    let mut started = start(&node, &[names, vec!["bystander".to_owned()]].concat());
    let bystander = started.pop().expect("it is the last one");
    let mut started = started.into_iter();
    let mut container = |row: &Row| match row.starts_its_own_container {
        true => Container::to_come(&row.container()),
        false => started.next().expect("one was started"),
    };

    let mut outcomes: Vec<Outcome> = Vec::new();
    for row in rows::LIVE {
        let mut outcome = Outcome::of(&node, row, container(row));
        outcome.wait(&node, IN_TIME);
        outcome.look_at_inotifywait(&node);
        outcome.clean_up(&node);
        eprintln!("{outcome}");
        outcomes.push(outcome);
    }
    node.shell(&format!(
        "mkdir -p /etc/podsecd/podsecd.toml.d; printf '{RESCAN}' >/etc/podsecd/podsecd.toml.d/rescan.toml"
    ));
    node.shell("systemctl restart podsecd");
    let rescanned = outcomes.len();
    for row in rows::RESCAN {
        let mut outcome = Outcome::of(&node, row, container(row));
        outcome.look_at_inotifywait(&node);
        outcomes.push(outcome);
    }
    outcomes[rescanned..].iter_mut().for_each(|outcome| outcome.wait(&node, WITH_THE_RESCAN));
    watchers::give_watches_back(&node);

    eprintln!("{}", table::print(&outcomes));
    let mut faults: Vec<_> = outcomes.iter().flat_map(Outcome::faults).collect();
    let events = events_since(&node, beginning);
    let is_of_a_start = |time, entry: &Value| {
        let is_like_one = |path: &String| containers::OF_THE_START.iter().any(|pattern| is_like(pattern, path));
        time < outcomes[0].begin && paths(entry).iter().all(is_like_one)
    };
    let is_explained = |(time, entry): &(u64, Value)| {
        is_of_a_start(*time, entry) || outcomes.iter().any(|outcome| outcome.explains(*time, entry))
    };
    let others = events.iter().filter(|event| !is_explained(event));
    faults.extend(others.map(|(_, entry)| format!("told, though nobody did it: {entry}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let of_the_bystander = |(time, entry): &&(u64, Value)| *time >= outcomes[0].begin && is_of(entry, &bystander);
    assert_eq!(events.iter().find(of_the_bystander), None);
    let pwned = node.shell("find / /home /run /tmp -xdev -name pwned");
    assert_eq!(pwned, "", "a file's name was run");
    // Of the storm that nobody had the time to read, and of the watches that were taken away.
    node.wait_until("that the watch has holes is told, and that it has none any more", WITH_THE_RESCAN, || {
        let of = |kind| node.journal(&["PODSEC_FINDING=self/watch-incomplete", &format!("PODSEC_KIND={kind}")]).len();
        of("raised") >= 2 && of("cleared") == of("raised")
    });
}

/// podsec's own day: no finding above Warning.
pub(crate) fn a_database_and_a_web_server_are_no_alarm() {
    let node = node_with_image();
    let podman = |command: &str| node.shell(&format!("cd /; as alice podman {command}"));
    let database = "mkdir -p /var/lib/db /var/log /run/db /tmp/db; echo $$ >/run/db/pid
        n=0; while :; do
            n=$((n + 1)); echo $n >>/var/lib/db/log; echo $n >/var/lib/db/table.new; mv /var/lib/db/table.new /var/lib/db/table
            echo $n >>/data/rows; mkdir -p /data/$((n % 20)); echo $n >/tmp/db/sort; rm /tmp/db/sort
            echo $n done >>/var/log/db.log; sleep 0.02
        done";
    let then = now(&node);
    podman(&format!("run --detach --name=database --volume=data:/data {OPTIONS} {IMAGE} sh -c '{database}'"));
    podman(&format!("run --detach --name=web {OPTIONS} {IMAGE} httpd -f -p 8080 -h /srv/app"));
    for round in 0..3 {
        let request = "mkdir -p /var/log; wget -q -O /tmp/page http://127.0.0.1:8080/page; cat /tmp/page; date >>/var/log/access.log";
        assert_eq!(podman(&format!("exec web sh -c '{request}'")), "page\n", "round {round}");
        std::thread::sleep(Duration::from_secs(2));
        podman("stop --time=0 database web");
        podman("start database web");
    }
    // So that it is known that podsecd has seen all of it.
    podman("exec web sh -c 'echo x >/srv/app/end'");
    let mut events = Vec::new();
    let is_the_end = |(_, entry): &(u64, Value)| paths(entry) == ["/srv/app/end"];
    node.wait_until("the change that is an alarm is told", IN_TIME, || {
        events = events_since(&node, then);
        events.iter().any(is_the_end)
    });
    podman("rm --force --time=0 database web");
    podman("volume rm data");
    std::thread::sleep(Duration::from_secs(2));
    let quiet = ["Warning", "Low", "Debug"].map(|level| vec![level.to_owned()]);
    let events = entries_since(&node, then, &["PODSEC_CHECK=containers"]);
    let alarms = events.iter().filter(|event| !quiet.contains(&field(&event.1, "PODSEC_LEVEL")) && !is_the_end(event));
    assert_eq!(alarms.collect::<Vec<_>>(), <[&(u64, Value); 0]>::default());
}

/// Images come and go with thousands of files, and a commit writes a layer anew.
pub(crate) fn what_podman_does_itself_is_no_flood() {
    let node = node_with_image();
    let container = &start(&node, &["worker".to_owned()])[0];
    container.inside(&node, "mkdir /srv/many; cd /srv/many; for i in $(seq 500); do echo $i >$i; done");
    std::thread::sleep(GATHERED);
    let then = now(&node);
    node.shell(
        "mkdir -p /srv/large/d; cd /srv/large/d; for i in $(seq 3000); do echo $i >$i; chmod u+s $i; done
         tar -C /srv/large -c . | as alice podman import --quiet --signature-policy=/srv/loose.json - registry.local/large:1",
    );
    container.outside(
        &node,
        "podman commit --quiet $name registry.local/committed:1
         podman run --rm --name=brief $run registry.local/committed:1 true
         podman create --name=never $run registry.local/large:1 true
         podman rm never
         podman rmi registry.local/large:1 registry.local/committed:1",
    );
    std::thread::sleep(GATHERED);
    let events = events_since(&node, then);
    let of_files: Vec<_> = events.iter().filter(|(_, entry)| !paths(entry).is_empty()).collect();
    // A container that starts gets files in /etc from podman.
    let alarms = of_files.iter().filter(|(_, entry)| paths(entry).iter().any(|path| !path.starts_with("/etc/")));
    assert_eq!(alarms.collect::<Vec<_>>(), <[&&(u64, Value); 0]>::default());
    assert!(of_files.len() <= 4, "{of_files:?}");
    assert!(events.len() <= 20, "{events:?}");
}

/// dpkg itself, in a container, with a package of 2,000 programs, 500 pages and 20 files of configuration.
pub(crate) fn a_package_that_is_installed_is_tens_of_lines() {
    let node = node_with_image();
    node.shell(
        r#"cd /srv/image
        for program in dpkg dpkg-deb dpkg-split tar; do
            cp /usr/bin/$program usr/bin
            for library in $(ldd /usr/bin/$program | grep -o '/[^ ]*'); do install -D $library ./$library; done
        done
        mkdir -p var/lib/dpkg/updates var/lib/dpkg/info; touch var/lib/dpkg/status
        tar -c . | as alice podman import --quiet --signature-policy=/srv/loose.json - registry.local/app:1
        mkdir -p /srv/package/DEBIAN /srv/package/etc/tool; cd /srv/package
        printf 'Package: tool
Version: 1
Architecture: all
Maintainer: nobody
Description: many files
' >DEBIAN/control
        for directory in $(seq 40); do
            mkdir -p usr/lib/tool/$directory usr/share/doc/tool/$directory
            for file in $(seq 50); do echo x >usr/lib/tool/$directory/$file; done
            for file in $(seq 12); do echo x >usr/share/doc/tool/$directory/$file; done
        done
        for file in $(seq 20); do echo x >etc/tool/$file.conf; done
        echo x >usr/lib/tool/helper; chmod 4755 usr/lib/tool/helper
        dpkg-deb --root-owner-group --build . /srv/tool.deb"#,
    );
    let container = &start(&node, &["debian".to_owned()])[0];
    container.outside(&node, "podman cp /srv/tool.deb $name:/tmp/tool.deb");
    let then = now(&node);
    container.inside(&node, "export PATH=/usr/bin:/bin:/usr/sbin; /usr/bin/dpkg --force-all -i /tmp/tool.deb");
    let mut events = Vec::new();
    let of = |id: &str, events: &[(u64, Value)]| {
        let is_it = |entry: &&Value| field(entry, "PODSEC_FINDING") == [format!("containers/{id}")];
        let count = |entry: &Value| field(entry, "PODSEC_COUNT").concat().parse::<usize>().unwrap_or_default();
        events.iter().map(|(_, entry)| entry).filter(is_it).map(count).sum::<usize>()
    };
    node.wait_until("all of it is told", SOON, || {
        events = events_since(&node, then);
        let least = [("binary-changed", 2500), ("settings-changed", 20), ("setuid-file", 1)];
        least.iter().all(|(id, count)| of(id, &events) >= *count)
    });
    // Under both of their names that may be before the last of them is told.
    node.shell("sleep 3");
    events = events_since(&node, then);
    // With the name that dpkg gives it first, and its own.
    assert!((1..=3).contains(&of("setuid-file", &events)), "{events:?}");
    let lines = events.len();
    eprintln!("a package with 2,521 files in 81 directories: {lines} findings");
    assert!(lines < 120, "{lines}");
}

/// What a container makes of its tree costs neither podsecd nor what it has to tell.
pub(crate) fn a_hostile_tree_hides_nothing_and_costs_little() {
    const MEMORY_KB: u64 = 64 * 1024;
    let node = node_with_image();
    let container = &start(&node, &["hostile".to_owned()])[0];
    container.inside(
        &node,
        "mkdir /srv/many; cd /srv/many; seq 100000 | xargs touch
         mkdir /srv/loops; cd /srv/loops; ln -s . itself; ln -s .. up; ln -s a b; ln -s b a; ln -s /proc/1/root root
         deep=$(seq -s / 300); mkdir -p $deep
         (while :; do mkdir -p /srv/vanishing/a/b/c/d; rm -r /srv/vanishing; done) >/dev/null 2>&1 </dev/null &",
    );
    for how in ["systemctl is-active podsecd", "systemctl restart podsecd"] {
        node.shell(how);
        let then = now(&node);
        container.inside(&node, "chmod u-s /srv/own/program; chmod u+s /srv/own/program");
        node.wait_until(&format!("the setuid file is told ({how})"), IN_TIME, || {
            let events = events_since(&node, then);
            events.iter().any(|(_, entry)| {
                field(entry, "PODSEC_FINDING") == ["containers/setuid-file"] && paths(entry) == ["/srv/own/program"]
            })
        });
        let peak = node.shell(
            "sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(systemctl show --value -p MainPID podsecd)/status",
        );
        let peak: u64 = peak.trim().parse().expect("a number");
        assert!(peak < MEMORY_KB, "{peak} kB after {how}");
    }
    assert_eq!(node.shell("systemctl show --value -p NRestarts podsecd"), "0\n");
}

/// Watches are one pool for all stores of the node.
pub(crate) fn a_container_that_takes_all_watches_gives_them_back_to_others() {
    let node = node_with_image();
    node.shell(&format!(
        "mkdir -p /etc/podsecd/podsecd.toml.d; printf '{RESCAN}' >/etc/podsecd/podsecd.toml.d/rescan.toml
         systemctl restart podsecd"
    ));
    node.shell("cd /srv/image; tar -c . | as bob podman import --quiet --signature-policy=/srv/loose.json - registry.local/app:1");
    let is_told = |then: u64, container: &str, path: &str| {
        let is_it = |(_, entry): &(u64, Value)| {
            field(entry, "PODSEC_CONTAINER") == [container] && paths(entry).iter().any(|told| is_like(path, told))
        };
        events_since(&node, then).iter().any(is_it)
    };
    let hog = &start(&node, &["hog".to_owned()])[0];
    hog.inside(&node, "mkdir /srv/hog; cd /srv/hog; seq 2000 | xargs mkdir; sleep 2");
    let then = now(&node);
    hog.inside(&node, "echo x >/srv/hog/2000/file");
    node.wait_until("all of it is watched", IN_TIME, || is_told(then, "hog", "/srv/hog/2000/file"));
    watchers::meet(&node, Fate::NoMoreWatches);
    // More than an image gives back.
    for user in ["bob", "alice"] {
        let then = now(&node);
        let name = format!("of-{user}");
        let many = "mkdir /srv/many; cd /srv/many; seq 400 | xargs mkdir; exec sleep 1d";
        node.shell(&format!("cd /; as {user} podman run --detach --name={name} {OPTIONS} {IMAGE} sh -c '{many}'"));
        let mut number = 0;
        node.wait_until(&format!("what {user}'s container does is told"), IN_TIME, || {
            number += 1;
            let write = format!("cd /srv/many; for it in 1 99 200 301 400; do echo x >$it/{number}; done");
            node.shell(&format!("cd /; as {user} podman exec {name} sh -c '{write}'"));
            [1, 99, 200, 301, 400].iter().all(|it| is_told(then, &name, &format!("/srv/many/{it}/*")))
        });
    }
    let then = now(&node);
    hog.inside(&node, "echo x >>/usr/bin/own");
    node.wait_until("its programs are watched all the same", IN_TIME, || is_told(then, "hog", "/usr/bin/own"));
    let then = now(&node);
    hog.inside(&node, "echo x >/srv/hog/1999/late; mkdir /srv/hog/new; echo x >/srv/hog/new/file");
    node.wait_until("what is not watched is looked at all the same", IN_TIME, || {
        ["/srv/hog/1999/late", "/srv/hog/new/file"].iter().all(|path| is_told(then, "hog", path))
    });
    node.wait_until("status names it", SOON, || {
        let status = node.shell("cat /run/podsecd/status.json");
        status.contains("of hog") && status.contains("there are no watches left")
    });
    watchers::give_watches_back(&node);
}
