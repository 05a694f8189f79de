//! Check `images` on a real node: what a rootless podman does with images of a real registry, signed by a real key.

use std::time::Duration;

use crate::node::{Node, field};
use crate::podsec::{SOON, check, entries_since, micros, now, registry_node};

const DIGEST: &str = "as alice podman image inspect --format='{{.Digest}}' registry.local/signed:1";

const PULL: &str = "as alice podman pull --quiet registry.local/signed:1";
const REMOVE: &str = "as alice podman rmi registry.local/signed:1";

/// A pull writes the list of images eight times: the image, each blob, the lengths of its signatures, its name. Each time it
/// is held up for longer than podsecd gathers changes, so that podsecd sees all of that.
const HELD_UP: &str = "strace -f -qq -ttt -o /run/writes -e signal=none -e trace=renameat -e inject=renameat:delay_exit=250000 \
    -P /home/alice/.local/share/containers/storage/overlay-images/images.json";

/// What looks unfinished counts after five seconds.
const SETTLED: Duration = Duration::from_secs(6);

/// Does that pull. False: the machine was too busy, and from the first write to the last it took longer than podsecd waits.
fn is_pulled_in_time(node: &Node) -> bool {
    node.shell(&format!("{HELD_UP} {PULL}"));
    let times = node.shell("sed 's/^[0-9]* *\\([0-9.]*\\) .*/\\1/' /run/writes");
    let times: Vec<f64> = times.lines().map(|time| time.parse().expect("a time")).collect();
    let time = times.last().expect("written") - times.first().expect("written");
    eprintln!("from the first of {} writes of the list to the last {time:.1} s", times.len());
    time < 4.0
}

/// Tries it on a node of its own each time, until one was quick enough.
fn repeat(is_done: impl Fn(&Node) -> bool) {
    assert!((0..3).any(|_| is_done(&registry_node(""))), "each of three pulls took too long");
}

/// What was raised and cleared from then on, in this order: id, kind, subject.
fn conditions_since(node: &Node, then: u64) -> Vec<[String; 3]> {
    let entries = entries_since(node, then, &["PODSEC_CHECK=images", "PODSEC_KIND=raised", "PODSEC_KIND=cleared"]);
    let names = ["PODSEC_FINDING", "PODSEC_KIND", "PODSEC_SUBJECT"];
    entries.iter().map(|(_, entry)| names.map(|name| field(entry, name).concat())).collect()
}

/// Nothing of check `images` was raised since podsecd began to look, nor is it once the images had time to settle.
#[track_caller]
fn no_alarm(node: &Node) {
    std::thread::sleep(SETTLED);
    assert_eq!(conditions_since(node, 0), <[[String; 3]; 0]>::default());
    let said = check(node, "images");
    assert!(said.starts_with("IMAGES OK: metric 0 (Low)"), "{said}");
}

/// How many events of alice's images there were with that id.
fn events(node: &Node, id: &str) -> usize {
    node.journal(&[&format!("PODSEC_FINDING=images/{id}"), "PODSEC_KIND=event", "PODSEC_USER=alice"]).len()
}

pub(crate) fn a_signed_image_is_told_with_its_user_name_and_digest_and_is_no_alarm() {
    let node = registry_node("");
    let refused = node.try_shell("as alice podman pull --quiet registry.local/unsigned:1");
    assert!(!refused.status.success(), "podman itself does not take an unsigned image");
    let then = now(&node);
    node.shell(PULL);
    let matches = ["PODSEC_FINDING=images/created", "PODSEC_USER=alice"];
    let mut entries = Vec::new();
    node.wait_until("it is told", SOON, || {
        entries = entries_since(&node, then, &matches);
        !entries.is_empty()
    });
    let names = ["PODSEC_IMAGE", "PODSEC_SUBJECT", "PODSEC_IMAGE_DIGEST", "PODSEC_HOST_UID", "PODSEC_KIND"];
    let said = names.map(|name| field(&entries[0].1, name).concat());
    let [digest, uid] = [DIGEST, "id -u alice"].map(|script| node.shell(script).trim().to_owned());
    let expected = ["registry.local/signed:1", "registry.local/signed:1", &digest, &uid, "event"];
    assert_eq!(said, expected);
    no_alarm(&node);
}

pub(crate) fn pulling_a_signed_image_again_and_again_is_no_alarm() {
    repeat(pull_again_and_again);
}

fn pull_again_and_again(node: &Node) -> bool {
    // Of different lengths, so that podsecd does not look at the same moment of every pull.
    for pause in 0..10 {
        node.shell(&format!("{PULL}; sleep 0.{pause}; {REMOVE}; sleep 0.{pause}"));
    }
    node.wait_until("podsecd is done with it", SOON, || events(node, "deleted") == events(node, "created"));
    // Those that follow closely are one, or none if the image is the same.
    let created = events(node, "created");
    assert!(created >= 3, "podsecd looked on: {created} created");
    if !is_pulled_in_time(node) {
        return false;
    }
    node.wait_until("it is told once it has its name", SOON, || events(node, "created") == created + 1);
    assert_eq!((events(node, "changed"), events(node, "tagged")), (0, 0), "and nothing before");
    no_alarm(node);
    true
}

pub(crate) fn an_image_that_is_signed_once_more_is_no_alarm() {
    repeat(pull_signed_once_more);
}

fn pull_signed_once_more(node: &Node) -> bool {
    node.shell(PULL);
    node.wait_until("it is told", SOON, || events(node, "created") == 1);
    let further = "as imagemaker skopeo copy --quiet --sign-by=$(cat /srv/another) docker://registry.local/signed:1 \
        docker://registry.local/signed:1";
    let instead = |key| {
        let push = "rm -r /var/sigstore/sigstore/*; as imagemaker podman push --quiet registry.local/signed:1";
        format!("{push} --sign-by=$(cat /srv/{key})")
    };
    for (signing, signatures) in [(further, 2), (&instead("another"), 1), (&instead("imagemaker"), 1)] {
        node.shell(signing);
        assert_eq!(node.shell("find /var/sigstore/sigstore -type f").lines().count(), signatures, "{signing}");
        let before = events(node, "changed");
        if !is_pulled_in_time(node) {
            return false;
        }
        node.wait_until("that is told", SOON, || events(node, "changed") > before);
    }
    no_alarm(node);
    true
}

/// What alice does, and what the journal must then have: ids (any of them), kind, and subject; `ID` is the image's id.
type Step = (&'static str, &'static [(&'static [&'static str], &'static str, &'static str)]);

/// In the end alice has no images, as at the beginning.
const STEPS: &[Step] = &[
    (
        "podman pull --quiet --signature-policy=/srv/loose.json registry.local/unsigned:1",
        &[(&["created"], "event", "registry.local/unsigned:1"), (&["unsigned"], "raised", "alice")],
    ),
    (
        "podman tag registry.local/unsigned:1 registry.local/again:1",
        &[(&["tagged"], "event", "registry.local/again:1")],
    ),
    (
        "podman untag registry.local/unsigned:1 registry.local/again:1",
        &[(&["untagged"], "event", "registry.local/again:1")],
    ),
    // To no name at all: the condition stays.
    ("podman untag registry.local/unsigned:1", &[(&["untagged"], "event", "registry.local/unsigned:1")]),
    ("podman rmi ID", &[(&["deleted"], "event", "ID"), (&["unsigned"], "cleared", "alice")]),
    (
        "podman pull --quiet --signature-policy=/srv/loose.json --tls-verify=false other.local/foreign:1",
        &[(&["created"], "event", "other.local/foreign:1"), (&["outside-policy"], "raised", "alice")],
    ),
    ("podman untag other.local/foreign:1", &[(&["untagged"], "event", "other.local/foreign:1")]),
    ("podman rmi ID", &[(&["deleted"], "event", "ID"), (&["outside-policy"], "cleared", "alice")]),
    ("podman pull --quiet registry.local/signed:1", &[(&["created"], "event", "registry.local/signed:1")]),
    // The signature is for the other name.
    (
        "podman tag registry.local/signed:1 registry.local/signed:2",
        &[(&["tagged"], "event", "registry.local/signed:2"), (&["unsigned"], "raised", "alice")],
    ),
    (
        "podman rmi registry.local/signed:2",
        &[(&["untagged"], "event", "registry.local/signed:2"), (&["unsigned"], "cleared", "alice")],
    ),
    ("podman rmi registry.local/signed:1", &[(&["deleted"], "event", "registry.local/signed:1")]),
];

pub(crate) fn what_the_policy_does_not_let_in_is_in_the_journal_within_a_second() {
    const IN_TIME: Duration = Duration::from_secs(1);
    let mut best = vec![Duration::MAX; STEPS.len()];
    // A busy machine may be late now and then, podsecd may not. Each time on another node: who changes things all the time is
    // looked at less often.
    for _ in 0..3 {
        let node = registry_node("");
        let id = node.shell("as imagemaker podman image inspect --format='{{.Id}}' registry.local/unsigned:1");
        let in_words = |text: &str| text.replace("ID", id.trim());
        let beginning = now(&node);
        for ((command, expected), best) in STEPS.iter().zip(&mut best) {
            let late = lateness(&node, &in_words(command), expected, &in_words);
            *best = late.min(*best);
            eprintln!("{late:?} after {command}");
        }
        let kept = |(_, kind, _): &&(&[&str], &str, &str)| *kind != "event";
        let expected = STEPS.iter().flat_map(|(_, entries)| entries.iter().filter(kept));
        let expected: Vec<_> = expected
            .map(|(ids, kind, subject)| [&format!("images/{}", ids[0]), *kind, *subject].map(str::to_owned))
            .collect();
        assert_eq!(conditions_since(&node, beginning), expected, "these and no others");
        if best.iter().all(|best| *best <= IN_TIME) {
            return;
        }
    }
    let late: Vec<_> = STEPS.iter().zip(&best).filter(|(_, best)| **best > IN_TIME).collect();
    panic!("too late each of three times, at best: {late:#?}");
}

/// How long after the end of alice's command the last of the entries came that it leads to.
fn lateness(
    node: &Node,
    command: &str,
    expected: &[(&[&str], &str, &str)],
    in_words: &dyn Fn(&str) -> String,
) -> Duration {
    let times = node.shell(&format!("date +%s%6N; as alice {command} >&2; date +%s%6N"));
    let times: Vec<_> = times.lines().map(micros).collect();
    let mut last = times[1];
    for (ids, kind, subject) in expected {
        let ids = ids.iter().map(|id| format!("PODSEC_FINDING=images/{id}"));
        let of = if *kind == "event" { "PODSEC_USER=alice" } else { "PODSEC_CHECK=images" };
        let others = [format!("PODSEC_KIND={kind}"), format!("PODSEC_SUBJECT={}", in_words(subject)), of.to_owned()];
        let matches: Vec<_> = ids.chain(others).collect();
        let mut entries = Vec::new();
        node.wait_until(&format!("{command}: {matches:?}"), SOON, || {
            entries = entries_since(node, times[0], &matches);
            !entries.is_empty()
        });
        last = last.max(entries[0].0);
    }
    Duration::from_micros(last - times[1])
}
