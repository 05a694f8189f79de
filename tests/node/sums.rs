//! The metrics of checks `policy` and `images` on a node that is made to violate each line of podsec's tables in turn, and
//! all together, by the commands with which somebody would.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::node::Node;
use crate::podsec::{SOON, registry_node};

/// A check's metric, and the ids that count for it.
type Sum = (u64, &'static [&'static str]);

const NOTHING: Sum = (0, &[]);

/// Users alice, bob, carol and dave are the N of podsec's shares; `policy` changes the policy of all, who have none of their
/// own, and `stranger` is not in group podman.
const COMMANDS: &str = r#"
podman_user carol
podman_user dave
useradd -m stranger
cat >/usr/local/bin/policy <<'END'
#!/bin/sh -eu
cd /etc/containers
sed "$@" policy_1 >policy_2
ln -sfn policy_2 policy.json
END
cat >/usr/local/bin/writable <<'END'
#!/bin/sh -eu
for user; do chattr -R -i /home/$user/.config/containers; done
END
cat >/usr/local/bin/immutable <<'END'
#!/bin/sh -eu
for user; do chattr -R +i /home/$user/.config/containers; done
END
cat >/usr/local/bin/missing <<'END'
#!/bin/sh -eu
writable "$@"
for user; do rm /home/$user/.config/containers/storage.conf; done
immutable "$@"
END
cat >/usr/local/bin/there <<'END'
#!/bin/sh -eu
writable "$@"
for user; do printf '[storage]\ndriver = "overlay"\n' >/home/$user/.config/containers/storage.conf; done
immutable "$@"
END
chmod 755 /usr/local/bin/*
"#;

const POLICY_AS_BEFORE: &str = "ln -sfn policy_1 /etc/containers/policy.json";

/// Pulls as alice, who has found out how to do without signatures.
const LOOSELY: &str = "as alice podman pull --quiet --signature-policy=/srv/loose.json --tls-verify=false";

/// What is done, how it is undone, and what checks `policy` and `images` say in between.
const LINES: &[(&str, &str, Sum, Sum)] = &[
    (
        "as stranger podman pull --quiet registry.local/signed:1",
        "as stranger podman rmi --all",
        (101, &["policy/user-outside-podman"]),
        NOTHING,
    ),
    ("policy 's/reject/insecureAcceptAnything/'", POLICY_AS_BEFORE, (102, &["policy/default-not-reject"]), NOTHING),
    (
        "policy 's/registry.local/registry.example/'",
        POLICY_AS_BEFORE,
        (103, &["policy/registry-local-unsigned"]),
        NOTHING,
    ),
    // One line of each check's table.
    (
        r#"policy 's/"docker":{/&"registry.example":[{"type":"insecureAcceptAnything"}],/'"#,
        POLICY_AS_BEFORE,
        (104, &["policy/unsigned-registry"]),
        (101, &["images/unsupported-registry"]),
    ),
    (
        r#"policy 's/"transports":{/&"oci":{"":[{"type":"reject"}]},/'"#,
        POLICY_AS_BEFORE,
        (105, &["policy/foreign-transport"]),
        NOTHING,
    ),
    (
        "cd /etc/containers/registries.d; sed s,/sigstore/,/elsewhere/,g default_1 >default_2
         ln -sfn default_2 default.yaml",
        "ln -sfn default_1 /etc/containers/registries.d/default.yaml",
        (106, &["policy/foreign-sigstore"]),
        NOTHING,
    ),
    ("usermod -aG wheel bob", "gpasswd -d bob wheel", (101, &["policy/podman-in-wheel"]), NOTHING),
    // Shares of N = 4: 90 x 1/4 = 22.5, 90 x 2/4 = 45, 90 x 3/4 = 67.5, 90 x 4/4 = 90; parts of one do not count.
    ("writable bob", "immutable bob", (22, &["policy/config-writable"]), NOTHING),
    ("writable bob carol", "immutable bob carol", (45, &["policy/config-writable"]), NOTHING),
    ("writable bob carol dave", "immutable bob carol dave", (67, &["policy/config-writable"]), NOTHING),
    ("writable alice bob carol dave", "immutable alice bob carol dave", (90, &["policy/config-writable"]), NOTHING),
    ("missing carol", "there carol", (22, &["policy/config-missing"]), NOTHING),
    ("missing alice bob carol dave", "there alice bob carol dave", (90, &["policy/config-missing"]), NOTHING),
    // Each has its own share: 90 x 1/4 = 22.5 and 90 x 2/4 = 45.
    (
        "writable bob; missing carol dave",
        "immutable bob; there carol dave",
        (67, &["policy/config-missing", "policy/config-writable"]),
        NOTHING,
    ),
    // Whoever makes images is not of N: 90 x 1/3 = 30.
    (
        "usermod -aG podman_dev dave; writable bob",
        "gpasswd -d dave podman_dev; immutable bob",
        (30, &["policy/config-writable"]),
        NOTHING,
    ),
];

/// Lines of check `images` that are no line of check `policy`; each by alice's pull, to be added to [`LOOSELY`].
const PULLS: &[(&str, Sum)] = &[
    ("registry.local/unsigned:1", (101, &["images/unsigned"])),
    ("other.local/foreign:1", (101, &["images/outside-policy"])),
    ("registry.local/unsigned:1 other.local/foreign:1", (202, &["images/outside-policy", "images/unsigned"])),
];

/// other.local is a registry with signatures here, so that an unsigned image of it is one that the policy covers, and
/// registry.local is none.
const ALL: &str = r#"
as stranger podman pull --quiet registry.local/signed:1
LOOSELY registry.local/unsigned:1
LOOSELY other.local/foreign:1
policy -e 's/reject/insecureAcceptAnything/' -e 's/registry.local/other.local/' \
    -e 's/"docker":{/&"registry.example":[{"type":"insecureAcceptAnything"}],/' \
    -e 's/"transports":{/&"oci":{"":[{"type":"reject"}]},/'
sed s,/sigstore/,/elsewhere/,g /etc/containers/registries.d/default_1 >/etc/containers/registries.d/default_2
ln -sfn default_2 /etc/containers/registries.d/default.yaml
usermod -aG wheel bob
writable bob
missing carol
"#;

const UNDO_ALL: &str = "
there carol
immutable bob
gpasswd -d bob wheel
ln -sfn default_1 /etc/containers/registries.d/default.yaml
ln -sfn policy_1 /etc/containers/policy.json
as alice podman rmi --all --force
as stranger podman rmi --all
";

/// 101 + 102 + 103 + 104 + 105 + 106 + 101 = 722; and of N = 4 one each: 90 x 1/4 = 22.5 twice, of which 22 count.
const ALL_OF_POLICY: Sum = (
    766,
    &[
        "policy/config-missing",
        "policy/config-writable",
        "policy/default-not-reject",
        "policy/foreign-sigstore",
        "policy/foreign-transport",
        "policy/podman-in-wheel",
        "policy/registry-local-unsigned",
        "policy/unsigned-registry",
        "policy/user-outside-podman",
    ],
);

/// Three times 101.
const ALL_OF_IMAGES: Sum = (303, &["images/outside-policy", "images/unsigned", "images/unsupported-registry"]);

pub(crate) fn each_line_violated_alone_has_its_weight_and_all_together_the_sum() {
    let node = registry_node(COMMANDS);
    expect(&node, "nothing", NOTHING, NOTHING);
    for (change, undo, policy, images) in LINES {
        node.shell(change);
        expect(&node, change, *policy, *images);
        node.shell(undo);
        expect(&node, undo, NOTHING, NOTHING);
    }
    for (names, images) in PULLS {
        let pull = |name| format!("{LOOSELY} {name}\n");
        node.shell(&names.split(' ').map(pull).collect::<String>());
        expect(&node, names, NOTHING, *images);
        node.shell("as alice podman rmi --all --force");
        expect(&node, "podman rmi", NOTHING, NOTHING);
    }
    node.shell(&ALL.replace("LOOSELY", LOOSELY));
    expect(&node, "all together", ALL_OF_POLICY, ALL_OF_IMAGES);
    node.shell(UNDO_ALL);
    expect(&node, "all undone", NOTHING, NOTHING);
}

/// Waits until the checks say that, and root, who evaluates anew.
fn expect(node: &Node, what: &str, policy: Sum, images: Sum) {
    let (mut last, expected) = (Vec::new(), [in_full(policy), in_full(images)]);
    node.wait_until(&format!("{what} leads to {expected:?}"), SOON, || {
        let said = ["policy", "images"].map(|check| sum(node, check));
        if said[..] != last[..] {
            eprintln!("{what}: {said:?}");
            last = said.to_vec();
        }
        said == expected
    });
    assert_eq!(["policy --now", "images --now"].map(|check| sum(node, check)), expected, "{what}");
}

fn in_full((metric, ids): Sum) -> (u64, BTreeSet<String>) {
    (metric, ids.iter().map(|id| (*id).to_owned()).collect())
}

/// What podsecctl says: the metric, and the ids that have weight.
fn sum(node: &Node, check: &str) -> (u64, BTreeSet<String>) {
    let said = node.try_shell(&format!("podsecctl check {check} --json"));
    let said: Value = serde_json::from_slice(&said.stdout).expect("podsecctl writes JSON");
    let findings = said["findings"].as_array().expect("an array").iter();
    let ids = findings.filter(|finding| finding["weight"] != 0).map(|finding| finding["id"].as_str().expect("a text"));
    (said["metric"].as_u64().expect("a number"), ids.map(str::to_owned).collect())
}
