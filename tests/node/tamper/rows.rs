//! The table. Every container has the same image and the same files of its own (`containers.rs`).

use super::watchers::Fate::{GoOn, HoldUp, Kill, NoMoreWatches, Restart, Start, Stop};
use super::{Row, Step, Told, row};
use Step::{In, Meet, Out};

const fn told(id: &'static str, changes: &'static [&'static str], path: &'static str) -> Told {
    Told { id, changes, path }
}

// Where an overlay brings a file of the image into the container's layer with its first change, and where a name moves,
// several words are right.
const CREATED: &[&str] = &["created"];
const WRITTEN: &[&str] = &["written"];
const REMOVED: &[&str] = &["removed"];
const ATTRIBUTES: &[&str] = &["attributes"];
const ARRIVED: &[&str] = &["moved", "replaced", "created"];
const LEFT: &[&str] = &["moved", "removed"];
const COPIED_UP: &[&str] = &["written", "created", "replaced", "attributes"];
// What is found by looking is `changed`.
const ANY: &[&str] = &["created", "written", "replaced", "removed", "moved", "attributes", "changed"];

const fn file(changes: &'static [&'static str], path: &'static str) -> Told {
    told("file-changed", changes, path)
}

const fn settings(changes: &'static [&'static str], path: &'static str) -> Told {
    told("settings-changed", changes, path)
}

const fn binary(changes: &'static [&'static str], path: &'static str) -> Told {
    told("binary-changed", changes, path)
}

const fn setuid(path: &'static str) -> Told {
    told("setuid-file", ANY, path)
}

const fn capability(path: &'static str) -> Told {
    told("file-capability", ANY, path)
}

/// What the kernel shows when it happens.
pub(super) const LIVE: &[Row] = &[
    // Content.
    row("a file is created", &[In("echo x >/srv/app/new")], &[file(CREATED, "/srv/app/new")]),
    row(
        "a file is written in place",
        &[In("printf X | dd of=/srv/own/a conv=notrunc 2>/dev/null")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    row("a file is appended to", &[In("echo x >>/srv/own/a")], &[file(WRITTEN, "/srv/own/a")]),
    row("a file is emptied when it is opened", &[In(": >/srv/own/a")], &[file(WRITTEN, "/srv/own/a")]),
    row("a file is cut to a length", &[In("truncate -s 1 /srv/own/a")], &[file(WRITTEN, "/srv/own/a")]),
    row("room is made in a file", &[In("fallocate -l 8192 /srv/own/a")], &[file(WRITTEN, "/srv/own/a")]),
    row(
        "a file is written far behind its end",
        &[In("echo x | dd of=/srv/own/a bs=1 seek=1000000 conv=notrunc 2>/dev/null")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    row(
        "a file is written through /proc of another process",
        &[In("echo x >>/proc/1/root/srv/own/a")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    row(
        "a file is written through a symbolic link elsewhere",
        &[In("echo x >>/srv/own/link")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    // Names.
    row(
        "a file is renamed over another",
        &[In("mv -f /srv/own/b /srv/own/a")],
        &[file(&["replaced", "moved"], "/srv/own/a")],
    )
    .besides(&["/srv/own/b"]),
    row("a file is renamed in its directory", &[In("mv /srv/own/a /srv/own/c")], &[file(ARRIVED, "/srv/own/c")])
        .besides(&["/srv/own/a"]),
    row("a file is renamed to another directory", &[In("mv /srv/own/a /srv/app/a")], &[file(ARRIVED, "/srv/app/a")])
        .besides(&["/srv/own/a"]),
    row("a file goes where nobody looks", &[In("mv /srv/own/a /tmp/a")], &[file(LEFT, "/srv/own/a")]),
    row("a file comes from where nobody looks", &[In("mv /tmp/hidden /srv/app/new")], &[file(ARRIVED, "/srv/app/new")]),
    row(
        "two files change places",
        &[In("tool exchange /srv/own/a /srv/own/b")],
        &[file(ARRIVED, "/srv/own/a"), file(ARRIVED, "/srv/own/b")],
    ),
    row(
        "a file has no name until it is complete",
        &[In("tool unnamed /srv/own/new /srv/own")],
        &[file(CREATED, "/srv/own/new")],
    )
    .besides(&["/srv/own/#*"]),
    row(
        "a file is made and removed at once",
        &[In("echo x >/srv/own/fast; rm /srv/own/fast")],
        &[file(&["created", "removed"], "/srv/own/fast")],
    ),
    row("a file gets a second name", &[In("ln /srv/own/a /srv/own/second")], &[file(CREATED, "/srv/own/second")]),
    row(
        "a file is written by a second name where nobody looks",
        &[In("cat /srv/own/a; ln /srv/own/a /tmp/second; echo x >>/tmp/second")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    row("a symbolic link is made", &[In("ln -s /etc/passwd /srv/own/new")], &[file(CREATED, "/srv/own/new")]),
    row(
        "a symbolic link is swapped",
        &[In("ln -s b /srv/own/next; mv -fT /srv/own/next /srv/own/link")],
        &[file(&["replaced", "moved"], "/srv/own/link")],
    )
    .besides(&["/srv/own/next"]),
    row("a pipe is made", &[In("mkfifo /srv/own/pipe")], &[file(CREATED, "/srv/own/pipe")]),
    row("a file is removed", &[In("rm /srv/own/a")], &[file(REMOVED, "/srv/own/a")]),
    // Directories.
    row("a directory is made", &[In("mkdir /srv/own/new")], &[file(CREATED, "/srv/own/new")]),
    row(
        "a file is made in a directory that was made at once before",
        &[In("mkdir /srv/own/new; echo x >/srv/own/new/file")],
        &[file(CREATED, "/srv/own/new/file")],
    )
    .besides(&["/srv/own/new"]),
    row(
        "a file is made at the end of a new tree of forty levels",
        &[In("cd /srv/own; deep=deep/$(seq -s / 40); mkdir -p $deep; echo x >$deep/file")],
        &[file(&["created", "written"], "/srv/own/deep/*/40/file")],
    )
    .besides(&["/srv/own/deep*"]),
    row(
        "a directory with files is renamed",
        &[In("mv /srv/own/dir /srv/own/moved")],
        &[file(ARRIVED, "/srv/own/moved")],
    )
    .besides(&["/srv/own/dir*", "/srv/own/moved/*"]),
    row(
        "a file in a directory that was renamed is written",
        &[In("mv /srv/own/dir /srv/own/moved; echo x >>/srv/own/moved/x")],
        &[file(WRITTEN, "/srv/own/moved/x")],
    )
    .besides(&["/srv/own/dir*", "/srv/own/moved*"]),
    row(
        "a new directory is renamed at once and a file made in it",
        &[In("cd /srv/own; mkdir new; mv new moved; echo x >moved/file")],
        &[file(CREATED, "/srv/own/moved/file")],
    )
    .besides(&["/srv/own/new*", "/srv/own/moved"]),
    row(
        "a tree that was made where nobody looks comes, and a file in it is written",
        &[In("mkdir -p /tmp/tree/in; echo x >/tmp/tree/in/file; mv /tmp/tree /srv/own/tree; echo x >>/srv/own/tree/in/file")],
        &[file(&["written", "created"], "/srv/own/tree/in/file")],
    )
    .besides(&["/srv/own/tree*"]),
    row(
        "a directory goes where nobody looks, is changed there, and comes back",
        &[In("mv /srv/own/dir /tmp/dir; echo x >>/tmp/dir/x; mv /tmp/dir /srv/own/dir")],
        &[file(ANY, "/srv/own/dir/x")],
    )
    .besides(&["/srv/own/dir*"]),
    row("a directory with files is removed", &[In("rm -r /srv/own/dir")], &[file(REMOVED, "/srv/own/dir")])
        .besides(&["/srv/own/dir/*"]),
    // What comes from the image is copied or hidden with the first change.
    row("a file of the image is written", &[In("echo x >>/srv/app/page")], &[file(COPIED_UP, "/srv/app/page")]),
    row("a file of the image gets another mode", &[In("chmod 600 /srv/app/page")], &[file(COPIED_UP, "/srv/app/page")]),
    row(
        "a file deep in a tree of the image is written",
        &[In("echo x >>/srv/app/tree/a/b/leaf")],
        &[file(COPIED_UP, "/srv/app/tree/a/b/leaf")],
    ),
    row(
        "the first file is made in a directory of the image",
        &[In("echo x >/opt/none/first")],
        &[file(CREATED, "/opt/none/first")],
    ),
    row("a file of the image is removed", &[In("rm /srv/app/page")], &[file(REMOVED, "/srv/app/page")]),
    row("a further file of the image is removed", &[In("rm /srv/app/page; sleep 3; rm /srv/app/other")], &[
        file(REMOVED, "/srv/app/page"),
        file(REMOVED, "/srv/app/other"),
    ]),
    row("a file of the image is renamed", &[In("mv /srv/app/page /srv/app/new")], &[file(REMOVED, "/srv/app/page")])
        .besides(&["/srv/app/new"]),
    row(
        "a file of the image is replaced by one of the same name",
        &[In("rm /srv/app/page; echo x >/srv/app/page")],
        &[file(&["created", "replaced", "written"], "/srv/app/page")],
    ),
    row("a directory of the image is removed", &[In("rm -r /srv/app/tree")], &[file(REMOVED, "/srv/app/tree")])
        .besides(&["/srv/app/tree/*"]),
    row(
        "a directory of the image is replaced by an empty one",
        &[In("rm -r /srv/app/tree; mkdir /srv/app/tree")],
        &[file(&["removed", "created", "replaced", "moved"], "/srv/app/tree")],
    )
    .besides(&["/srv/app/tree/*"]),
    // Rights.
    row("a file becomes setuid", &[In("chmod u+s /srv/own/program")], &[setuid("/srv/own/program")]),
    row("a file becomes setgid", &[In("chmod g+s /srv/own/program")], &[setuid("/srv/own/program")]),
    row("a program of the image becomes setuid", &[In("chmod u+s /usr/bin/tool")], &[setuid("/usr/bin/tool")]),
    row("a setuid file is brought", &[In("cp /srv/own/program /srv/app/su; chmod 4755 /srv/app/su")], &[setuid(
        "/srv/app/su",
    )]),
    row(
        "a setuid file comes from where nobody looks",
        &[In("cp /srv/own/program /tmp/su; chmod u+s /tmp/su; mv /tmp/su /srv/app/su")],
        &[setuid("/srv/app/su")],
    ),
    row(
        "a setuid file comes in a tree from where nobody looks",
        &[In("mkdir -p /tmp/t/u; cp /srv/own/program /tmp/t/u/su; chmod u+s /tmp/t/u/su; mv /tmp/t /srv/app/t")],
        &[setuid("/srv/app/t/u/su")],
    )
    .besides(&["/srv/app/t*"]),
    // Of such a path the end is not shown.
    row(
        "a setuid file is made deeper than a path can say",
        &[In("cd /srv/own; name=$(printf %0250d 7)
              for i in $(seq 40); do mkdir $name; cd -P $name; done
              cp /srv/own/program su; chmod u+s su")],
        &[setuid("/srv/own/0*")],
    ),
    row("a setuid file gets a second name", &[In("chmod u+s /srv/own/program; ln /srv/own/program /srv/app/su")], &[
        setuid("/srv/app/su"),
        setuid("/srv/own/program"),
    ]),
    row("a file gets a capability", &[In("setcap cap_net_bind_service+ep /srv/own/program")], &[capability(
        "/srv/own/program",
    )]),
    row("a file gets another owner", &[In("chown 1000:1000 /srv/own/a")], &[file(ATTRIBUTES, "/srv/own/a")]),
    row("a file gets another time", &[In("touch -d 2001-01-01 /srv/own/a")], &[file(ATTRIBUTES, "/srv/own/a")]),
    row("a directory gets another mode", &[In("chmod 777 /srv/own/dir")], &[file(ATTRIBUTES, "/srv/own/dir")]),
    // Places.
    row(
        "a program of the image is replaced",
        &[In("cp /bin/busybox /usr/bin/next; mv -f /usr/bin/next /usr/bin/tool")],
        &[binary(&["replaced", "moved"], "/usr/bin/tool")],
    )
    .besides(&["/usr/bin/next"]),
    row("a program is overwritten", &[In("cat /bin/busybox >/usr/bin/own")], &[binary(WRITTEN, "/usr/bin/own")]),
    row("a program is brought", &[In("cp /bin/busybox /sbin/next")], &[binary(CREATED, "/sbin/next")]),
    row("a program is removed", &[In("rm /usr/sbin/setcap")], &[binary(REMOVED, "/usr/sbin/setcap")]),
    row("a library is written", &[In("echo x >>/lib/libapp.so")], &[binary(COPIED_UP, "/lib/libapp.so")]),
    row("a configuration is written", &[In("echo x >>/etc/app/app.conf")], &[settings(COPIED_UP, "/etc/app/app.conf")]),
    row("a file in root's home is written", &[In("echo x >>/root/.profile")], &[settings(COPIED_UP, "/root/.profile")]),
    row("a file in a home is written", &[In("echo x >>/home/user/.profile")], &[settings(
        COPIED_UP,
        "/home/user/.profile",
    )]),
    // Names that are no names. What podsecd writes instead of a control character is its own affair.
    row("a name has a line break", &[In("touch \"/srv/own/line\nbreak\"")], &[file(CREATED, "/srv/own/line*break")]),
    row(
        "a name has a line of a journal entry",
        &[In("touch \"/srv/own/x\nPODSEC_LEVEL=Low\nPODSEC_PATH=\"")],
        &[file(CREATED, "/srv/own/x*PODSEC_PATH=")],
    ),
    row("a name has quotes", &[In("touch '/srv/own/\"'\\''`'")], &[file(CREATED, "/srv/own/\"'`")]),
    row("a name has a command", &[In("touch '/srv/own/$(touch pwned)'")], &[file(CREATED, "/srv/own/$(touch pwned)")]),
    row("a name has a command after a quote", &[In("touch \"/srv/own/';touch pwned;'\"")], &[file(
        CREATED,
        "/srv/own/';touch pwned;'",
    )]),
    row("a name has escape sequences", &[In("touch \"$(printf '/srv/own/\\033[2Jgone')\"")], &[file(
        CREATED,
        "/srv/own/*[2Jgone",
    )]),
    row("a name has 255 bytes", &[In("touch /srv/own/$(printf %0255d 7)")], &[file(CREATED, "/srv/own/000*0007")]),
    row("a name is not UTF-8", &[In("touch \"$(printf '/srv/own/\\377\\200end')\"")], &[file(CREATED, "/srv/own/*end")]),
    // From outside.
    row(
        "podman brings a file into a running container",
        &[Out("echo x >brought; podman cp brought $name:/srv/own/brought")],
        &[file(ARRIVED, "/srv/own/brought")],
    )
    .besides(&["/srv/own/*"]),
    row(
        "podman brings a file into a container that is stopped and then started",
        &[Out("podman stop -t0 $name; echo x >b; podman cp b $name:/srv/own/brought; podman start $name")],
        &[file(ARRIVED, "/srv/own/brought")],
    )
    .besides(&["/srv/own/*", "/etc/*"]),
    row(
        "the owner of the store changes a file of the container",
        &[Out("podman unshare sh -c \"echo x >>$upper/srv/own/a\"")],
        &[file(WRITTEN, "/srv/own/a")],
    ),
    row(
        "the owner of the store changes a file of an image",
        &[Out("layer=$(podman image inspect --format='{{.GraphDriver.Data.UpperDir}}' registry.local/spare:1)
               echo x >$layer/srv/added")],
        &[told("image-layer-changed", CREATED, "/srv/added")],
    ),
    row(
        "a container is made, changed and removed within two seconds",
        &[Out("podman run --rm --name=$name $run registry.local/app:1 sh -c 'echo x >/srv/app/new'")],
        &[file(CREATED, "/srv/app/new")],
    )
    .of_its_own_container()
    .besides(&["/etc/*"]),
    // The watchers' own trouble.
    row(
        "a directory of the image may be written to by all",
        &[In("chmod 1777 /srv/app/tree")],
        &[file(ATTRIBUTES, "/srv/app/tree")],
    ),
    row(
        "a file becomes setuid after a storm of 100,000 changes",
        &[In("mkdir /srv/own/storm; cd /srv/own/storm
              i=0; while [ $i -lt 100000 ]; do : >$((i % 200)); i=$((i + 1)); done
              chmod u+s /srv/own/program")],
        &[setuid("/srv/own/program")],
    )
    .besides(&["/srv/own/storm*"]),
    row(
        "a file becomes setuid after 100,000 changes that nobody had the time to read",
        &[
            Meet(HoldUp),
            In("mkdir /srv/own/storm; cd /srv/own/storm
                i=0; while [ $i -lt 100000 ]; do : >$((i % 200)); i=$((i + 1)); done
                echo x >>/srv/own/a; chmod u+s /srv/own/program"),
            Meet(GoOn),
        ],
        &[setuid("/srv/own/program"), file(ANY, "/srv/own/a")],
    )
    .besides(&["/srv/own/storm*"]),
    row(
        "a file is written before and another after a restart",
        &[In("echo x >>/srv/own/a"), Meet(Restart), In("echo x >>/srv/own/b")],
        &[file(ANY, "/srv/own/a"), file(ANY, "/srv/own/b")],
    ),
    row(
        "files are changed while nobody runs",
        &[Meet(Stop), In("echo x >>/srv/own/a; echo x >/srv/own/new; chmod u+s /srv/own/program"), Meet(Start)],
        &[file(ANY, "/srv/own/a"), file(ANY, "/srv/own/new"), setuid("/srv/own/program")],
    ),
    // All that an overlay hides in one layer it hides by links to one inode: every further one changes the time of all. So
    // what was removed before in the same directory is told once more, and nothing else is.
    row(
        "a file of the image is removed while nobody runs, another was before",
        &[In("rm /srv/app/tree/top; sleep 3"), Meet(Stop), In("rm /srv/app/page"), Meet(Start)],
        &[file(REMOVED, "/srv/app/tree/top"), file(ANY, "/srv/app/page")],
    ),
    row(
        "a program is replaced after the watchers were killed",
        &[Meet(Kill), In("cp /bin/busybox /usr/bin/next; mv -f /usr/bin/next /usr/bin/tool"), Meet(Start)],
        &[binary(ANY, "/usr/bin/tool")],
    )
    .besides(&["/usr/bin/next"]),
];

/// The container anew, so that its overlay knows a file by no name.
const START_AGAIN: Step = Out("podman stop -t0 $name
     while podman unshare grep -q $upper /proc/self/mountinfo; do sleep 0.1; done
     podman start $name");

/// What the kernel shows nobody: only looking at everything again does, of which programs and libraries are told.
pub(super) const RESCAN: &[Row] = &[
    // The end of the mapping would be shown as that of writing is.
    row(
        "a program is written through a mapping that stays",
        &[In("setsid tool mmap /usr/bin/own >/tmp/said 2>&1 </dev/null &
              until grep -q written /tmp/said; do sleep 0.1; done")],
        &[binary(ANY, "/usr/bin/own")],
    ),
    // While an overlay has the file in its memory by the name that is watched, changes are shown there, whichever name they
    // come by.
    row(
        "a program is written by a second name where nobody looks, after the container was started again",
        &[In("ln /usr/bin/own /tmp/second"), START_AGAIN, In("echo x >>/tmp/second")],
        &[binary(ANY, "/usr/bin/own")],
    )
    .besides(&["/etc/*"]),
    row(
        "a program is written and made setuid by a second name where nobody looks",
        &[In("ln /usr/bin/own /tmp/second"), START_AGAIN, In("echo x >>/tmp/second; chmod u+s /tmp/second")],
        &[setuid("/usr/bin/own")],
    )
    .besides(&["/etc/*"]),
    row(
        "a program is written through a mapping before a restart",
        &[
            In("setsid tool mmap /usr/bin/own >/tmp/said 2>&1 </dev/null &
              until grep -q written /tmp/said; do sleep 0.1; done; sleep 3"),
            Meet(Restart),
        ],
        &[binary(ANY, "/usr/bin/own")],
    ),
    row(
        "a program is removed while nobody runs, and its directory is given its former time",
        &[Meet(Stop), In("touch -r /usr/bin /tmp/time; rm /usr/bin/own; touch -r /tmp/time /usr/bin"), Meet(Start)],
        &[binary(REMOVED, "/usr/bin/own")],
    ),
    row(
        "a program of the image is removed while nobody runs, another was before",
        &[In("rm /bin/vi; sleep 3"), Meet(Stop), In("rm /bin/wc"), Meet(Start)],
        &[binary(REMOVED, "/bin/vi"), binary(REMOVED, "/bin/wc")],
    ),
    row(
        "a file is written in a directory for which no watch was left",
        &[Meet(NoMoreWatches), In("mkdir /srv/own/late; sleep 2; echo x >/srv/own/late/file")],
        &[file(ANY, "/srv/own/late/file")],
    )
    .besides(&["/srv/own/late"]),
];
