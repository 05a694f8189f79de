//! Check `containers` on a real node: what a rootless podman's containers do.

use crate::node::field;
use crate::podsec::{SOON, check, entries_since, now, registry_node};

pub(crate) fn what_changes_in_a_container_is_told_with_container_image_user_and_path() {
    let node = registry_node("");
    node.shell("as alice podman pull --quiet registry.local/signed:1");
    let then = now(&node);
    let run = "as alice podman run --quiet -d --name=web --network=none --cgroups=disabled registry.local/signed:1";
    node.shell(&format!("{run} /busybox sleep 1000"));
    node.wait_until("its start is told", SOON, || {
        !entries_since(&node, then, &["PODSEC_FINDING=containers/started"]).is_empty()
    });
    let said = check(&node, "containers");
    assert!(said.starts_with("CONTAINERS OK"), "{said}");
    node.shell("as alice podman exec web /busybox sh -c '/busybox mkdir -p /opt/app; echo x >/opt/app/file; echo y >/etc/passwd; /busybox mkdir /bin; /busybox cp /busybox /bin/su; /busybox chmod u+s /bin/su'");
    let mut entries = Vec::new();
    node.wait_until("it is told", SOON, || {
        entries = entries_since(&node, then, &["PODSEC_CHECK=containers"]);
        entries.iter().any(|(_, entry)| field(entry, "PODSEC_FINDING") == ["containers/setuid-file"])
    });
    for (_, entry) in &entries {
        eprintln!("{}", field(entry, "MESSAGE").concat());
        eprintln!("    {entry}");
    }
    std::thread::sleep(std::time::Duration::from_secs(
        std::env::var("HOLD").map_or(0, |hold| hold.parse().unwrap_or(0)),
    ));
    node.shell("as alice podman rm -f -t 0 web");
    std::thread::sleep(std::time::Duration::from_secs(3));
    for (_, entry) in entries_since(&node, then, &["PODSEC_CHECK=containers"]) {
        eprintln!("{}", field(&entry, "MESSAGE").concat());
    }
    eprintln!("{}", node.shell("podsecctl status; journalctl -u podsecd --no-pager | tail -50"));
}
