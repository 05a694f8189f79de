//! The RPMs that `packaging/build-rpm` made, in the node: what they install, upgrade and leave.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::handover;
use crate::kubeapi::{append, event, lines};
use crate::node::Node;
use crate::podsec::now;

const SOON: Duration = Duration::from_secs(90);
const FORBIDDEN_LOG: &str = "var/lib/podsecd/forbidden.log";
/// As on a node of ALT; Debian's rpm would have it in root's home.
const RPM: &str = "rpm --dbpath /var/lib/rpm";
/// What the next mail will say.
const SPOOLED: &str = "cat /var/lib/podsecd/spool/*";
/// Where tests/run has the packages made.
const PACKAGES: &str = "target/rpm-test";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What to upgrade to: as tests/run has it made.
fn next_version() -> String {
    let (others, last) = VERSION.rsplit_once('.').expect("dots");
    format!("{others}.{}", last.parse::<u32>().expect("a number") + 1)
}

/// The file of a package of that version, if it is what the working tree would give: others prove nothing about it.
fn package(name: &str, version: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let make = format!(
        "commit and make them: packaging/build-rpm --quick --target target/rpm-quick --version {version} {PACKAGES}"
    );
    let directory = root.join(PACKAGES).join("RPMS");
    let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.find(|file| file.starts_with(&format!("{name}-{version}-")));
    let path =
        directory.join(found.unwrap_or_else(|| panic!("no {name}-{version} in {}: {make}", directory.display())));
    let commit = root.join(PACKAGES).join(format!("podsecd-{version}.commit"));
    let commit =
        std::fs::read_to_string(&commit).unwrap_or_else(|error| panic!("{}: {error}: {make}", commit.display()));
    let mut git = Command::new("git");
    git.current_dir(root).args(["-c", "safe.directory=*", "diff", "--stat", "--exit-code", commit.trim(), "--"]);
    let changed = git.args([".", ":!tests", ":!.ci"]).output().expect("git runs");
    let told = String::from_utf8_lossy(&changed.stdout) + String::from_utf8_lossy(&changed.stderr);
    assert!(changed.status.success(), "{} is of {}, which differs; {make}\n{told}", path.display(), commit.trim());
    path
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

/// Manual pages and completions are where man and the shells look for them.
fn assert_documented(node: &Node) {
    let root = node.root().display();
    let share = format!("{root}/usr/share");
    let zsh = format!("fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -D -u");
    for (script, words) in [
        (format!("man -M {share}/man 8 podsecd"), "podsecd - guardian of a rootless Kubernetes node"),
        (format!("man -M {share}/man 8 podsecctl"), "podsecctl takeover"),
        (format!("man -M {share}/man 5 podsecd.toml"), "metric-window"),
        (format!("man -M {share}/man/ru 8 podsecd"), "служба защиты узла Kubernetes"),
        (format!("man -M {share}/man/ru 8 podsecctl"), "podsecctl takeover"),
        (format!("man -M {share}/man/ru 5 podsecd.toml"), "metric-window"),
        (format!(". {share}/bash-completion/completions/podsecctl; complete -p podsecctl"), "-F _podsecctl podsecctl"),
        (format!(". {share}/bash-completion/completions/podsecd; complete -p podsecd"), "-F _podsecd podsecd"),
        (format!("zsh -fc '{zsh}; autoload +X _podsecctl _podsecd; print $_comps[podsecctl]'"), "_podsecctl"),
        (
            format!(
                "PATH=$PATH:{root}/usr/bin fish --no-config -c \
                 'set -p fish_complete_path {share}/fish/vendor_completions.d; complete -C \"podsecctl forw\"'"
            ),
            "forwards",
        ),
    ] {
        let output = Command::new("bash").args(["-c", &script]).env("LC_ALL", "C.UTF-8").output().expect("bash runs");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(words), "{script}: {told}{}", String::from_utf8_lossy(&output.stderr));
    }
}

pub(crate) fn what_is_installed_is_whole_starts_nothing_and_leaves_what_was_changed() {
    let node = bare_node(&[VERSION]);
    install(&node, VERSION);
    assert_eq!(node.shell(&format!("{RPM} -V --nodeps podsecd podsecd-u7s")), "", "as the package has it");
    let files = node.shell(&format!("{RPM} -ql podsecd podsecd-u7s"));
    let twice = node.shell(&format!("{RPM} -ql podsecd podsecd-u7s | sort | uniq -d"));
    assert_eq!(twice, "", "{files}");
    let owners = "stat -c '%U:%G %a %n' /usr/sbin/podsecd /etc/podsecd/podsecd.toml /var/lib/podsecd";
    assert_eq!(
        node.shell(owners),
        "root:root 755 /usr/sbin/podsecd\nroot:root 644 /etc/podsecd/podsecd.toml\n_podsecd:_podsecd 750 /var/lib/podsecd\n"
    );
    let units: Vec<&str> = files.lines().filter_map(|file| file.strip_prefix("/usr/lib/systemd/system/")).collect();
    assert!(["service", "socket", "path"].iter().all(|kind| units.iter().any(|unit| unit.ends_with(kind))), "{files}");
    node.shell(&format!("useradd -r -M u7s-admin; systemd-analyze verify {}", units.join(" ")));
    for unit in units {
        let is = node.shell(&format!("systemctl is-active {unit} || true; systemctl is-enabled {unit} || true"));
        assert!(["inactive\ndisabled\n", "inactive\nstatic\n"].contains(&is.as_str()), "{unit}: {is}");
    }

    assert_documented(&node);

    node.shell("systemctl enable --now podsecd; systemctl is-active podsecd; podsecctl status");
    node.shell(&format!("echo '# mine' >> /etc/podsecd/podsecd.toml; {RPM} -e podsecd podsecd-u7s 2>&1"));
    assert_eq!(node.shell("systemctl is-active podsecd || true"), "inactive\n");
    node.shell("grep -q '# mine' /etc/podsecd/podsecd.toml.rpmsave; test -e /var/lib/podsecd/checkpoint.json");
    assert_eq!(
        node.shell("find /usr /etc/systemd -name '*podsecd*' -o -name '*podsecctl*'"),
        "",
        "nothing else is left"
    );
    install(&node, VERSION);
    node.shell("systemctl start podsecd; podsecctl status");
}

pub(crate) fn an_upgrade_loses_nothing_and_tells_nothing_twice() {
    let node = bare_node(&[VERSION, &next_version()]);
    install(&node, VERSION);
    node.shell(handover::STORE);
    handover::start(&node);
    append(&node, &event("first", 0));
    node.wait_until("it reads", SOON, || lines(&node, FORBIDDEN_LOG) == 1);
    // A condition that holds, and is not told again.
    node.shell("mkdir -p /etc/containers; echo '{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}' >/etc/containers/policy.json");
    let raised = || node.journal(&["PODSEC_CHECK=policy", "PODSEC_KIND=raised"]).len();
    node.wait_until("it is told", SOON, || raised() > 0);
    node.shell("sleep 3");
    let (conditions, spool) = (raised(), node.shell(SPOOLED));
    let then = now(&node);
    let files = handover::write(&node, 80);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=400 {
                append(&node, &event(&format!("e-{number}"), number));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        std::thread::sleep(Duration::from_secs(2));
        install(&node, &next_version());
    });
    let version =
        node.shell(&format!("journalctl -q -o json -t podsecd | grep -c '\"VERSION\":\"{}\"' || true", next_version()));
    assert_eq!(version.trim(), "1", "{}", node.shell("journalctl -q -o json -t podsecd"));
    node.wait_until("all are there", SOON, || lines(&node, FORBIDDEN_LOG) >= 401);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(lines(&node, FORBIDDEN_LOG), 401, "and none twice");
    let told = node.shell("journalctl -q -o json PODSEC_FINDING=kubeapi/forbidden | wc -l");
    assert_eq!(told.trim(), "401");
    files.are_told_once(&node, then);
    assert_eq!(raised(), conditions, "what held holds");
    assert_eq!(node.journal(&["PODSEC_CHECK=policy", "PODSEC_KIND=cleared"]).len(), 0);
    let spooled = node.shell(SPOOLED);
    assert!(spooled.starts_with(spool.trim_end()), "what was to be mailed is: {spool}\n{spooled}");
    eprintln!("{}", handover::gap(&node));
    assert_eq!(
        node.shell(&format!("{RPM} -q podsecd")),
        format!("podsecd-{}-alt1.{}\n", next_version(), std::env::consts::ARCH)
    );
}
