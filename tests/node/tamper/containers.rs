//! Rootless containers of alice, all of one image and in the same state when they are started.

use std::process::Command;

use crate::node::Node;

pub(super) const IMAGE: &str = "registry.local/app:1";

/// A change in one of these podsecd must tell. There is a setcap with its libraries, since busybox has none.
const BUILD: &str = r#"
cd /srv/image
mkdir -p bin sbin usr/bin usr/sbin lib/x86_64-linux-gnu lib64 etc/app root home/user srv/app/tree/a/b opt/none tmp var
cp /bin/busybox bin
for name in $(busybox --list); do [ -e bin/$name ] || ln -s busybox bin/$name; done
cp /usr/sbin/setcap usr/sbin
for library in $(ldd /usr/sbin/setcap | grep -o '/[^ ]*'); do install -D $library ./$library; done
echo library >lib/libapp.so
echo key=1 >etc/app/app.conf
echo export A=1 | tee root/.profile >home/user/.profile
for file in page other third tree/top tree/a/b/leaf; do echo $file >srv/app/$file; done
tar -c . | as alice podman import --quiet --signature-policy=/srv/loose.json - registry.local/app:1
"#;

/// What is told when one is started: its own files, and what podman puts in its place.
pub(super) const OF_THE_START: &[&str] = &["/srv/own*", "/usr/bin/own", "/etc/*"];

/// The main process. What is in /srv/own the container has made itself, when it was started for the first time.
const START: &str = r"
[ -e /srv/own ] || {
    mkdir -p /srv/own/dir
    cd /srv/own
    for file in a b dir/x dir/y; do echo $file >$file; done
    ln -s a link
    cp /usr/bin/tool program
    cp program /usr/bin/own
    echo hidden >/tmp/hidden
    touch ready
}
exec sleep 1d";

/// The options of every `podman run`: what a node in a node cannot give is left out.
pub(super) const OPTIONS: &str = "--network=none --cgroups=disabled";

pub(super) struct Container {
    pub(super) name: String,
    /// Not known of those that a row starts itself.
    pub(super) id: Option<String>,
    /// The writable layer.
    upper: String,
}

impl Container {
    /// One that is yet to be started.
    pub(super) fn to_come(name: &str) -> Container {
        Container { name: name.to_owned(), id: None, upper: String::new() }
    }

    /// Runs a script in it.
    #[track_caller]
    pub(super) fn inside(&self, node: &Node, script: &str) {
        succeed(node, &["as", "alice", "podman", "exec", &self.name, "sh", "-euc", script]);
    }

    /// Runs a script of alice: `$name` is the container's name, `$upper` its writable layer.
    #[track_caller]
    pub(super) fn outside(&self, node: &Node, script: &str) {
        let [name, upper] = [format!("name={}", self.name), format!("upper={}", self.upper)];
        let run = format!("run={OPTIONS}");
        succeed(node, &["as", "alice", "env", &name, &upper, &run, "sh", "-euc", script]);
    }
}

#[track_caller]
fn succeed(node: &Node, command: &[&str]) {
    let output = node.run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Brings the image into alice's store, with a `tool` (`tool.c`) for what a shell cannot do.
pub(super) fn build_image(node: &Node) {
    let directory = node.root().join("srv/image/usr/bin");
    std::fs::create_dir_all(&directory).expect("made");
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O", "-Wall", "-Werror", "tests/node/tamper/tool.c", "-o"]).arg(directory.join("tool"));
    let status = compiler.status().expect("cc, which cargo needs too, is installed");
    assert!(status.success(), "a static program cannot be made: apt-get install libc6-dev");
    node.shell(BUILD);
}

/// Starts a container of each name.
pub(super) fn start(node: &Node, names: &[String]) -> Vec<Container> {
    let names = names.join(" ");
    let started = node.shell(&format!(
        "for name in {names}; do as alice podman run --detach --name=$name {OPTIONS} {IMAGE} sh -c '{START}' >&2; done
         as alice podman container inspect --format='{{{{.Name}}}} {{{{.Id}}}} {{{{.GraphDriver.Data.UpperDir}}}}' {names}",
    ));
    let container = |line: &str| {
        let [name, id, upper] = line.split(' ').collect::<Vec<_>>().try_into().expect("three words");
        let [name, id, upper]: [&str; 3] = [name, id, upper];
        Container { name: name.to_owned(), id: Some(id.to_owned()), upper: upper.to_owned() }
    };
    started.lines().map(container).collect()
}
