//! Those who watch the containers: podsecd, and `inotifywait` as podsec-inotify-check-containers calls it.
//!
//! Both are units of the same user with the same rights, and what befalls one befalls the other.

use crate::node::Node;
use crate::podsec::SOON;

/// podsec's events and podsec's exclusions. It is started when the layers are all there, which is more than podsec
/// manages, and writes whole names. podsec's `eval` of them is left out.
const START_INOTIFYWAIT: &str = r#"
for layer in /home/*/.local/share/containers/storage/overlay/*/diff; do
    echo $layer
    for excluded in var proc tmp run; do echo "@$layer/$excluded"; done
done >/run/layers
rm -f /run/established
systemd-run --quiet --collect --unit=inotifywait --property=User=_podsecd \
    --property=AmbientCapabilities=CAP_DAC_READ_SEARCH \
    --property=StandardOutput=append:/run/seen --property=StandardError=file:/run/established \
    inotifywait --monitor --recursive --event moved_from,create,delete,modify --fromfile /run/layers \
    --format '%w%f%0' --no-newline
until grep -q established /run/established || ! systemctl --quiet is-active inotifywait; do sleep 0.02; done
"#;

const STOP_INOTIFYWAIT: &str = "systemctl stop inotifywait 2>/dev/null || true";

/// What befalls the watchers.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    Stop,
    Start,
    Restart,
    Kill,
    /// They get no processor, as on a machine that has too much to do.
    HoldUp,
    GoOn,
    /// Another process takes all watches that their user may still have.
    NoMoreWatches,
}

/// Lets inotifywait see what happens from here on.
pub(super) fn start_inotifywait(node: &Node) {
    node.shell(&["rm -f /run/seen", START_INOTIFYWAIT].join("\n"));
}

/// Stops it; what it saw: paths as the container has them.
pub(super) fn stop_inotifywait(node: &Node) -> Vec<String> {
    node.shell(STOP_INOTIFYWAIT);
    let seen = std::fs::read(node.root().join("run/seen")).expect("readable");
    let paths = seen.split(|byte| *byte == 0).map(|path| String::from_utf8_lossy(path).into_owned());
    paths.filter_map(|path| Some(path.split_once("/diff")?.1.to_owned())).collect()
}

pub(super) fn meet(node: &Node, fate: Fate) {
    let script = match fate {
        Fate::Stop => &["systemctl stop podsecd\n", STOP_INOTIFYWAIT].concat(),
        Fate::Start => &["systemctl start podsecd\n", START_INOTIFYWAIT].concat(),
        Fate::Restart => &["systemctl restart podsecd\n", STOP_INOTIFYWAIT, "\n", START_INOTIFYWAIT].concat(),
        Fate::Kill => "systemctl kill --signal=KILL podsecd inotifywait",
        // For longer than systemd's patience, perhaps.
        Fate::HoldUp => "systemctl service-watchdogs no; systemctl kill --signal=STOP podsecd inotifywait",
        Fate::GoOn => "systemctl kill --signal=CONT podsecd inotifywait",
        Fate::NoMoreWatches => {
            "mkdir /run/hoard; cd /run/hoard
             seq 0 $(($(cat /proc/sys/fs/inotify/max_user_watches) / 100)) | xargs mkdir
             systemd-run --quiet --collect --unit=hoard --property=User=_podsecd \
                 --property=StandardOutput=file:/run/hoarded /srv/image/usr/bin/tool hoard /run/hoard"
        }
    };
    node.shell(script);
    if let Fate::NoMoreWatches = fate {
        node.wait_until("no watches are left", SOON, || node.try_shell("grep -q left /run/hoarded").status.success());
    }
}

/// The end of [`Fate::NoMoreWatches`].
pub(super) fn give_watches_back(node: &Node) {
    node.shell("systemctl stop hoard");
}
