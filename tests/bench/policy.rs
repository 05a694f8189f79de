//! `podsecctl check policy` on a thousand users against podsec's way on fifty: jq over each policy, id for each group.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::data::{PODSECCTL, needs};
use crate::table::{Bound, Figure, Table, median};
use crate::world::{self, wait_until};

const USERS: usize = 1000;
const IMAGES: usize = 20;
/// How many of them podsec's way is measured on.
const PEER_USERS: usize = 50;
const ROUNDS: usize = 3;

/// What podsec-policy-functions asks of each user's policy and groups; its yq calls are left out.
const PODSECS: &str = r#"
for directory in "$1"/home/user[0-9] "$1"/home/user[1-4][0-9]; do
    policy=$directory/.config/containers/policy.json
    [ -f "$policy" ] || continue
    default=$(jq '.default[].type' "$policy")
    signed=$(jq 'if .transports.docker then [.transports.docker | to_entries[] | select(.value[].type == "signedBy") | .key] else [] end' "$policy")
    unsigned=$(jq 'if .transports.docker then [.transports.docker | to_entries[] | select(.value[].type != "signedBy") | .key] else [] end' "$policy")
    transports=$(jq 'if .transports then [.transports | to_entries[] | select(.key != "docker").key] else [] end' "$policy")
    group=$(id -g -n root); groups=$(id -G -n root)
    users="$users
{\"user\":\"${directory##*/}\",\"defaultPolicy\":$default,\"signedRegistries\":$signed,\"notSignedRegistries\":$unsigned,\"forbiddenTransports\":$transports,\"groups\":[\"$group\",\"$groups\"]}"
done
for filter in 'select(.groups | any(index("podman")) | not)' 'select(.defaultPolicy != "reject")' \
    'select(.signedRegistries | any(index("registry.local")) | not)' 'select(.notSignedRegistries | length > 0)' \
    'select(.forbiddenTransports | length > 0)'; do
    echo "$users" | jq -c "$filter" >/dev/null
done
"#;

/// Speed, memory, and what one change costs.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    ["jq", "bash"].into_iter().try_for_each(needs)?;
    let root = tempfile::tempdir().map_err(|error| error.to_string())?;
    make(root.path()).map_err(|error| format!("cannot make the users: {error}"))?;
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let tree = root.path().display().to_string();
        ours.push(time(Command::new(PODSECCTL).args(["check", "policy", "--root", &tree]))? / USERS as f64);
        peer.push(time(Command::new("bash").args(["-c", PODSECS, "-", &tree]))? / PEER_USERS as f64);
    }
    let (ours, peer) = (median(&ours), median(&peer));
    table.add(Figure {
        what: format!("check policy, a user of {USERS}, vs podsec's jq and id, a user of {PEER_USERS}"),
        ours: format!("{:.3} ms", ours * 1000.0),
        peer: format!("{:.3} ms", peer * 1000.0),
        ratio: peer / ours,
        bound: Bound::AtLeast(200.0, 200.0),
    });
    watched(table, root.path())
}

/// The daemon that watches all of them.
fn watched(table: &mut Table, root: &Path) -> Result<(), String> {
    let begun = Instant::now();
    let podsecd = world::podsecd(Some(root))?;
    let status = root.join("run/podsecd/status.json");
    let has_looked = || fs::read_to_string(&status).is_ok_and(|status| status.contains("\"policy\":"));
    wait_until("podsecd has looked at all homes", has_looked)?;
    let whole = begun.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let id = podsecd.0.id();
    let memory = status_mib(id)?;
    table.add(Figure {
        what: format!("memory, VmRSS with {USERS} users and {} images", USERS * IMAGES),
        ours: format!("{memory:.1} MiB"),
        peer: "-".into(),
        ratio: memory,
        bound: Bound::AtMost(32.0),
    });
    let (look, before) = (cpu(id)?, said(&status));
    let policy = root.join("home/user7/.config/containers/policy.json");
    let text = fs::read_to_string(&policy).map_err(|error| error.to_string())?;
    fs::write(&policy, text.replace("reject", "insecureAcceptAnything")).map_err(|error| error.to_string())?;
    wait_until("the change is seen", || said(&status) != before)?;
    std::thread::sleep(Duration::from_millis(500));
    let change = cpu(id)? - look;
    table.add(Figure {
        what: format!("CPU of one user's change, vs of a look at all {USERS}"),
        ours: format!("{:.1} ms", change * 1000.0),
        peer: format!("{:.1} ms", look * 1000.0),
        ratio: look / change,
        bound: Bound::AtLeast(20.0, 40.0),
    });
    table.note(format!(
        "policy: the status had all {USERS} users {:.0} ms after the start",
        whole.as_secs_f64() * 1000.0
    ));
    Ok(())
}

fn said(status: &Path) -> usize {
    fs::read_to_string(status).map_or(0, |status| status.matches("policy/default-not-reject").count())
}

/// What a command takes by the clock, in seconds.
fn time(command: &mut Command) -> Result<f64, String> {
    let begun = Instant::now();
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat())));
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// CPU time of all threads of a process, in seconds: /proc/PID/task/*/schedstat.
fn cpu(id: u32) -> Result<f64, String> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).map_err(|error| error.to_string())?;
    let of = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    Ok(tasks.filter_map(of).sum::<f64>() / 1e9)
}

fn status_mib(id: u32) -> Result<f64, String> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| "no number")?;
    Ok(kib / 1024.0)
}

/// Users of group podman, each with a policy and images.
fn make(root: &Path) -> std::io::Result<()> {
    let write = |name: &str, text: &str| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(path, text)
    };
    let mut passwd = "root:x:0:0::/root:/bin/sh\n".to_owned();
    (0..USERS).for_each(|user| passwd += &format!("user{user}:x:{}:500::/home/user{user}:/bin/sh\n", 100_000 + user));
    write("etc/passwd", &passwd)?;
    write("etc/group", "podman:x:500:\n")?;
    write("etc/kubernetes/audit/audit.log", "")?;
    write("etc/containers/registries.d/x.yaml", "default-docker:\n  lookaside: http://sigstore.local:81/sigstore/\n")?;
    let signed = r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/keys/imagemaker.pgp"}]"#;
    let policy = |user: usize| {
        let scopes: Vec<_> = (0..8).map(|scope| format!(r#""registry.example/{user}/{scope}":{signed}"#)).collect();
        let scopes = format!(r#""registry.local":{signed},{}"#, scopes.join(","));
        format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scopes}}}}}}}"#)
    };
    write("etc/containers/policy.json", &policy(USERS))?;
    write("keys/imagemaker.pgp", include_str!("../data/keys/imagemaker.pgp"))?;
    for user in 0..USERS {
        write(&format!("home/user{user}/.config/containers/policy.json"), &policy(user))?;
        write(&format!("home/user{user}/.config/containers/storage.conf"), "")?;
        let images = format!("home/user{user}/.local/share/containers/storage/overlay-images");
        let list: Vec<_> = (0..IMAGES).map(|image| entry(user, image)).collect();
        write(&format!("{images}/images.json"), &format!("[{}]", list.join(",")))?;
        for image in 0..IMAGES {
            write(&format!("{images}/{}/manifest", id(user, image)), MANIFEST)?;
        }
    }
    Ok(())
}

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

fn id(user: usize, image: usize) -> String {
    format!("{:064x}", user * IMAGES + image)
}

/// An image as containers/storage lists it.
fn entry(user: usize, image: usize) -> String {
    let id = id(user, image);
    format!(
        r#"{{"id":"{id}","digest":"sha256:{id}","names":["registry.local/team{user}/app{image}:1.0"],"layer":"{id}","metadata":"{{\"signature-sizes\":[]}}","big-data-names":["manifest","sha256:{id}","manifest-sha256:{id}"],"big-data-sizes":{{"manifest":253,"sha256:{id}":2,"manifest-sha256:{id}":253}},"big-data-digests":{{"manifest":"sha256:{id}","sha256:{id}":"sha256:{id}","manifest-sha256:{id}":"sha256:{id}"}},"created":"2026-11-26T00:00:00Z"}}"#
    )
}
