//! A node set up as podsec's commands do, and what stands around it: a registry, a signature store, signed images.

use std::time::Duration;

use serde_json::Value;

use crate::node::{Node, field};

pub(crate) const SOON: Duration = Duration::from_secs(90);

/// What podsec-create-podmanusers does, with the storage.conf that podsec's conditions ask for.
const PODMAN_USER: &str = r#"
podman_user() {
    useradd -m -g podman $1
    mkdir -p /home/$1/.config/containers
    printf '[storage]\ndriver = "overlay"\n' >/home/$1/.config/containers/storage.conf
    chmod -R 500 /home/$1/.config/containers
    images=/home/$1/.local/share/containers/storage/overlay-images
    mkdir -p $images
    echo '[]' >$images/images.json
    chown -R $1:podman /home/$1/.config /home/$1/.local
    chattr -R +i /home/$1/.config/containers
    chmod 700 /home/$1
}
"#;

/// What podsec-create-policy, podsec-create-imagemakeruser and crio.sh do. Homes are on a tmpfs, so that what is immutable
/// goes with the node.
const PODSEC: &str = r#"
mount -t tmpfs -o mode=755 none /home
groupadd -r podman; groupadd -r podman_dev; groupadd wheel
useradd -r -m -d /var/lib/u7s-admin -G podman u7s-admin
sigstore='{"lookaside":"http://sigstore.local:81/sigstore/","sigstore":"http://sigstore.local:81/sigstore/"}'
mkdir -p /etc/containers/registries.d /var/sigstore/keys
chown root:podman_dev /var/sigstore/keys; chmod 775 /var/sigstore/keys
cd /etc/containers
echo '{"default":[{"type":"reject"}],"transports":{"docker":{"registry.local":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/var/sigstore/keys/imagemaker.pgp"}]}}}' >policy_1
ln -sf policy_1 policy.json
echo "{\"default-docker\":$sigstore}" >registries.d/default_1
ln -sf default_1 registries.d/default.yaml
printf '[[registry]]\nlocation = "registry.local"\ninsecure = true\n' >registries_1
ln -sf registries_1 registries.conf
useradd -m -g podman -G podman_dev imagemaker
install -o imagemaker -m 644 /key.pgp /var/sigstore/keys/imagemaker.pgp
mkdir -p /home/imagemaker/.config/containers/registries.d
sed 's/reject/insecureAcceptAnything/' policy.json >/home/imagemaker/.config/containers/policy.json
echo "{\"default-docker\":$sigstore}" >/home/imagemaker/.config/containers/registries.d/default.yaml
chown -R imagemaker:podman /home/imagemaker
podman_user alice
podman_user bob
crio=/var/lib/u7s-admin/.config/usernetes/crio
store=/var/lib/u7s-admin/.local/share/usernetes/containers/storage
mkdir -p $crio $store/overlay-images
echo '[]' >$store/overlay-images/images.json
printf '[crio]\nroot = "%s"\n[crio.image]\nsignature_policy = "/etc/containers/policy.json"\ninsecure_registries = ["registry.local"]\n' $store >$crio/crio.conf
chown -R u7s-admin:u7s-admin /var/lib/u7s-admin
chmod 700 /var/lib/u7s-admin
"#;

/// `as USER COMMAND…` runs what a user would run after logging in; `/srv/loose.json` is the policy of a user who does not
/// care.
const USERS: &str = r#"
cat >/usr/local/bin/as <<'END'
#!/bin/sh -eu
user=$1; shift
id=$(id -u $user)
loginctl enable-linger $user
systemctl start user@$id.service   # which waits until it is up, sockets included
cd /home/$user
exec setpriv --reuid=$user --regid=$(id -g $user) --init-groups --reset-env env XDG_RUNTIME_DIR=/run/user/$id "$@"
END
chmod 755 /usr/local/bin/as
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/srv/loose.json
"#;

/// A registry, which is also `other.local`; podsec's signature store; images of which `signed` is signed by `imagemaker`.
/// podsec's policy names `registry.local`, which is port 80 and no other. `/srv/KEY` has the key's fingerprint.
const REGISTRY: &str = r#"
echo '127.0.0.1 registry.local other.local sigstore.local' >>/etc/hosts
mkdir /srv/registry
echo 'version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry}}
http: {addr: "127.0.0.1:80"}' >/etc/registry.yml
systemd-run --quiet --unit=registry docker-registry serve /etc/registry.yml
install -d -o imagemaker /var/sigstore/sigstore
systemd-run --quiet --unit=signatures busybox httpd -f -p 127.0.0.1:81 -h /var/sigstore
for port in 80 81; do until socat -u /dev/null TCP:127.0.0.1:$port 2>/dev/null; do sleep 0.05; done; done
url=http://sigstore.local:81/sigstore/ staging=file:///var/sigstore/sigstore/
echo "{\"default-docker\":{\"lookaside\":\"$url\",\"lookaside-staging\":\"$staging\",\"sigstore\":\"$url\",\"sigstore-staging\":\"$staging\"}}" \
    >/home/imagemaker/.config/containers/registries.d/default.yaml
key() {
    as imagemaker gpg --batch --quiet --passphrase '' --quick-gen-key $1 $2 sign never
    as imagemaker gpg --with-colons --list-keys $1 | sed -n '/^fpr/ { s/^fpr:*//; s/:$//p; q }' >/srv/$1
}
key imagemaker rsa2048
key another rsa3072
as imagemaker gpg --export >/var/sigstore/keys/imagemaker.pgp
mkdir /srv/image
cp /bin/busybox /srv/image
for name in signed unsigned; do
    tar -C /srv/image -c . | as imagemaker podman import --quiet --message=$name - registry.local/$name:1
done
as imagemaker podman push --quiet --sign-by=$(cat /srv/imagemaker) registry.local/signed:1
as imagemaker podman push --quiet registry.local/unsigned:1
as imagemaker podman push --quiet --tls-verify=false registry.local/unsigned:1 docker://other.local/foreign:1
"#;

/// A node as podsec sets it up, with users alice and bob; podsecd has looked at it.
pub(crate) fn podsec_node() -> Node {
    podsec_node_with("")
}

/// The same with the registry and the images of [`REGISTRY`], after a script of the test's own, which can use `podman_user`.
pub(crate) fn registry_node(script: &str) -> Node {
    podsec_node_with(&[REGISTRY, script].concat())
}

/// The same after a script of the test's own.
pub(crate) fn podsec_node_with(script: &str) -> Node {
    let node = Node::boot();
    std::fs::copy("tests/data/keys/imagemaker.pgp", node.root().join("key.pgp")).expect("copied");
    node.shell(&[PODMAN_USER, PODSEC, USERS, script, "systemctl enable --now podsecd"].concat());
    let has_looked = "grep -q '\"policy\":' /run/podsecd/status.json";
    node.wait_until("podsecd has looked", SOON, || node.try_shell(has_looked).status.success());
    node
}

/// What the daemon says of a check.
pub(crate) fn check(node: &Node, name: &str) -> String {
    String::from_utf8(node.try_shell(&format!("podsecctl check {name} -v")).stdout).expect("text")
}

/// The node's time, as its journal has it: microseconds.
pub(crate) fn now(node: &Node) -> u64 {
    micros(node.shell("date +%s%6N").trim())
}

pub(crate) fn micros(text: &str) -> u64 {
    text.parse().expect("a number")
}

/// The journal's entries from then on that match, with their times.
pub(crate) fn entries_since(node: &Node, micros_then: u64, matches: &[impl AsRef<str>]) -> Vec<(u64, Value)> {
    let since = format!("--since=@{}", micros_then / 1_000_000);
    let arguments: Vec<_> = [since.as_str()].into_iter().chain(matches.iter().map(AsRef::as_ref)).collect();
    let entries = node.journal(&arguments);
    let timed = entries.into_iter().map(|entry| (micros(&field(&entry, "__REALTIME_TIMESTAMP")[0]), entry));
    timed.filter(|(time, _)| *time >= micros_then).collect()
}
