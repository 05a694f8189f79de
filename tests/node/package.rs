//! The RPMs that `packaging/build-rpm` made, in the node: what they install, upgrade and leave.

use std::path::PathBuf;
use std::time::Duration;

use crate::kubeapi::{append, event, lines};
use crate::node::Node;

const SOON: Duration = Duration::from_secs(20);
const FORBIDDEN_LOG: &str = "var/lib/podsecd/forbidden.log";
/// As on a node of ALT; Debian's rpm would have it in root's home.
const RPM: &str = "rpm --dbpath /var/lib/rpm";
/// Where tests/run has the packages made.
const PACKAGES: &str = "target/rpm-test/RPMS";

/// The file of a package of that version.
fn package(name: &str, version: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(PACKAGES);
    let found = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}-{version}-")))
    });
    let make = "packaging/build-rpm --quick --target target/rpm-quick [--version 0.1.1] target/rpm-test";
    found.unwrap_or_else(|| panic!("no {name}-{version} in {}: {make}", directory.display()))
}

/// A node on which nothing of ours is, with both packages of these versions in /root.
fn bare_node(versions: &[&str]) -> Node {
    let node = Node::boot_with(|root| {
        for version in versions {
            for name in ["podsecd", "podsecd-u7s"] {
                let to = root.join("root").join(format!("{name}-{version}.rpm"));
                std::fs::copy(package(name, version), to).expect("copied");
            }
        }
    });
    node.shell(&format!(
        "rm -rf /usr/sbin/podsecd /usr/bin/podsecctl /usr/lib/systemd/system/podsecd* /usr/lib/sysusers.d/podsecd.conf
         rm -rf /usr/lib/tmpfiles.d/podsecd.conf /etc/podsecd /usr/share/podsecd /var/lib/podsecd
         userdel _podsecd; userdel _podsecd-mail; groupdel podsecd; systemctl daemon-reload; {RPM} --initdb"
    ));
    node
}

fn install(node: &Node, version: &str) {
    node.shell(&format!("{RPM} -U --nodeps /root/podsecd-{version}.rpm /root/podsecd-u7s-{version}.rpm 2>&1"));
}

pub(crate) fn what_is_installed_is_whole_starts_nothing_and_leaves_what_was_changed() {
    let node = bare_node(&["0.1.0"]);
    install(&node, "0.1.0");
    assert_eq!(node.shell(&format!("{RPM} -V --nodeps podsecd podsecd-u7s")), "", "as the package has it");
    let files = node.shell(&format!("{RPM} -ql podsecd podsecd-u7s"));
    let twice = node.shell(&format!("{RPM} -ql podsecd podsecd-u7s | sort | uniq -d"));
    assert_eq!(twice, "", "{files}");
    let owners = "stat -c '%U:%G %a %n' /usr/sbin/podsecd /etc/podsecd/podsecd.toml /var/lib/podsecd";
    assert_eq!(
        node.shell(owners),
        "root:root 755 /usr/sbin/podsecd\nroot:root 644 /etc/podsecd/podsecd.toml\n_podsecd:_podsecd 750 /var/lib/podsecd\n"
    );
    let units = "podsecd.service podsecd-mail.service podsecd-mail.path podsecd-findings.socket podsecd-control.socket \
                 podsecd-u7s.service podsecd-u7s.socket";
    node.shell(&format!("useradd -r -M u7s-admin; systemd-analyze verify {units}"));
    assert_eq!(
        node.shell("systemctl is-active podsecd podsecd-u7s podsecd-mail.path || true").matches("inactive").count(),
        3
    );
    assert_eq!(node.shell("systemctl is-enabled podsecd podsecd-u7s || true"), "disabled\ndisabled\n");

    node.shell("systemctl enable --now podsecd; systemctl is-active podsecd; podsecctl status");
    node.shell(&format!("echo '# mine' >> /etc/podsecd/podsecd.toml; {RPM} -e podsecd podsecd-u7s 2>&1"));
    assert_eq!(node.shell("systemctl is-active podsecd || true"), "inactive\n");
    node.shell("grep -q '# mine' /etc/podsecd/podsecd.toml.rpmsave; test -e /var/lib/podsecd/checkpoint.json");
    assert_eq!(
        node.shell("find /usr /etc/systemd -name '*podsecd*' -o -name '*podsecctl*'"),
        "",
        "nothing else is left"
    );
    install(&node, "0.1.0");
    node.shell("systemctl start podsecd; podsecctl status");
}

pub(crate) fn an_upgrade_loses_nothing_and_tells_nothing_twice() {
    let node = bare_node(&["0.1.0", "0.1.1"]);
    install(&node, "0.1.0");
    node.shell(
        "install -d /etc/kubernetes/audit; install -m 0644 /dev/null /etc/kubernetes/audit/audit.log
         systemctl enable --now podsecd",
    );
    append(&node, &event("first", 0));
    node.wait_until("it reads", SOON, || lines(&node, FORBIDDEN_LOG) == 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=400 {
                append(&node, &event(&format!("e-{number}"), number));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        std::thread::sleep(Duration::from_secs(2));
        install(&node, "0.1.1");
    });
    let version = node.shell("journalctl -q -o json -t podsecd | grep -c '\"VERSION\":\"0.1.1\"' || true");
    assert_eq!(version.trim(), "1", "{}", node.shell("journalctl -q -o json -t podsecd"));
    node.wait_until("all are there", SOON, || lines(&node, FORBIDDEN_LOG) >= 401);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(lines(&node, FORBIDDEN_LOG), 401, "and none twice");
    let told = node.shell("journalctl -q -o json PODSEC_FINDING=kubeapi/forbidden | wc -l");
    assert_eq!(told.trim(), "401");
    assert_eq!(node.shell(&format!("{RPM} -q podsecd")), "podsecd-0.1.1-alt1.x86_64\n");
}
