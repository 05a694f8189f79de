//! Watching 200,000 directories against `inotifywait -m -r` with podsec's events, and against a bare loop that reads each
//! directory and adds a watch.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use podsecd::watch::open::Directory;
use podsecd::watch::tree::{Event, Interest, Moment, News, Scope, Trees};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::data::needs;
use crate::table::{Bound, Figure, Table, median};
use crate::world::{self, Running, wait_until};

/// Layers, directories in each, and in each of these.
const SHAPE: [usize; 3] = [10, 100, 199];
const DIRECTORIES: usize = SHAPE[0] * (1 + SHAPE[1] * (1 + SHAPE[2]));
const ROUNDS: usize = 5;
/// Of alice.
const STORE: &str = "home/alice/.local/share/containers/storage";

/// Time and memory.
pub(crate) fn run(table: &mut Table) -> Result<(), String> {
    needs("inotifywait")?;
    let _limit = Limit::raise()?;
    let root = tempfile::tempdir().map_err(|error| error.to_string())?;
    make(root.path()).map_err(|error| format!("cannot make the tree: {error}"))?;
    let layers = root.path().join(STORE).join("overlay");
    let (mut ours, mut bare, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(watch(&layers)?);
        bare.push(loop_bare(&layers)?);
        peer.push(inotifywait(&layers)?.0);
    }
    let [ours, bare, peer] = [ours, bare, peer].map(|times| median(&times));
    for (what, peer, most) in [("inotifywait -m -r", peer, 0.8), ("a bare loop", bare, 1.2)] {
        table.add(Figure {
            what: format!("{DIRECTORIES} directories watched, vs {what}"),
            ours: format!("{ours:.2} s"),
            peer: format!("{peer:.2} s"),
            ratio: ours / peer,
            bound: Bound::AtMost(most),
        });
    }
    let (_, theirs) = inotifywait(&layers)?;
    let podsecd = world::podsecd(Some(root.path()))?;
    let watches = || count_watches(&podsecd).unwrap_or(0);
    wait_until("podsecd watches all directories", || {
        sleep(Duration::from_secs(1));
        watches() >= DIRECTORIES
    })?;
    sleep(Duration::from_secs(2));
    let own = resident(podsecd.0.id())?;
    table.add(Figure {
        what: format!("VmRSS with {DIRECTORIES} directories watched, vs inotifywait"),
        ours: format!("{own:.1} MiB"),
        peer: format!("{theirs:.1} MiB"),
        ratio: own / theirs,
        bound: Bound::AtMost(1.0 / 3.0),
    });
    drop(podsecd);
    storm(table)
}

/// Containers in which much changes at once, and how much in each.
const CONTAINERS: usize = 10;
const CHANGES: usize = 10_000;

/// A storm in ten containers, at the end of which a file of each becomes setuid.
fn storm(table: &mut Table) -> Result<(), String> {
    let root = tempfile::tempdir().map_err(|error| error.to_string())?;
    let layers = make_containers(root.path()).map_err(|error| format!("cannot make the containers: {error}"))?;
    let output = root.path().join("output");
    let said = |words: &str| {
        fs::read_to_string(&output).map_or(0, |text| text.lines().filter(|line| line.contains(words)).count())
    };
    let file = fs::File::create(&output).map_err(|error| error.to_string())?;
    let podsecd = world::podsecd_onto(Some(root.path()), file)?;
    wait_until("podsecd watches all containers", || {
        sleep(Duration::from_millis(300));
        layers.iter().for_each(|layer| drop(fs::write(layer.join("opt/probe"), "x")));
        (0..CONTAINERS).all(|at| said(&format!("container c{at} ")) > 0)
    })?;
    // The next period is over.
    sleep(Duration::from_secs(5));
    fs::write(format!("/proc/{}/clear_refs", podsecd.0.id()), "5").map_err(|error| error.to_string())?;
    let beginning = Instant::now();
    let threads: Vec<_> = layers.into_iter().map(|layer| std::thread::spawn(move || change(&layer))).collect();
    for thread in threads {
        thread.join().map_err(|_| "a storm failed")?.map_err(|error| error.to_string())?;
    }
    let storm = beginning.elapsed().as_secs_f64();
    wait_until("all is told", || said("containers/setuid-file") >= CONTAINERS)?;
    let told = beginning.elapsed().as_secs_f64();
    let status = fs::read_to_string(format!("/proc/{}/status", podsecd.0.id())).map_err(|error| error.to_string())?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("no VmHWM").to_owned();
    let lines = said(" containers/");
    table.add(Figure {
        what: format!("{} changes in {CONTAINERS} containers told, vs the time they take", CONTAINERS * CHANGES),
        ours: format!("{told:.2} s"),
        peer: format!("{storm:.2} s"),
        ratio: told / storm,
        bound: Bound::AtMost(2.0),
    });
    let lost = said("self/watch-incomplete");
    table.note(format!("storm: {lines} findings, events lost or found again {lost} times, peak of podsecd {peak}"));
    Ok(())
}

/// What a container does: each file is made, written, renamed, made readable for all, and every other one is removed.
fn change(layer: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for number in 0..CHANGES / 5 {
        let directory = layer.join(format!("opt/{}", number % 50));
        fs::create_dir_all(&directory)?;
        let (first, last) = (directory.join(format!("{number}.tmp")), directory.join(number.to_string()));
        fs::write(&first, "x")?;
        fs::rename(&first, &last)?;
        fs::set_permissions(&last, fs::Permissions::from_mode(0o644))?;
        if number % 2 == 0 {
            fs::remove_file(&last)?;
        }
    }
    fs::write(layer.join("opt/su"), "x")?;
    fs::set_permissions(layer.join("opt/su"), fs::Permissions::from_mode(0o4755))
}

/// Containers in the store of a user. Their layers.
pub(crate) fn make_containers(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let store = root.join(STORE);
    let layers: Vec<_> = (0..CONTAINERS).map(|at| store.join("overlay").join(id(at)).join("diff")).collect();
    layers.iter().try_for_each(|layer| fs::create_dir_all(layer.join("opt")))?;
    for directory in ["etc", "run/user/4242"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in ["overlay-layers", "overlay-containers"] {
        fs::create_dir_all(store.join(directory))?;
    }
    fs::write(root.join("etc/passwd"), "alice:x:4242:0::/home/alice:/bin/sh\n")?;
    let of_layers: Vec<_> = (0..layers.len()).map(|at| format!("{{\"id\":\"{}\"}}", id(at))).collect();
    let container =
        |at: usize| format!("{{\"id\":\"{}\",\"names\":[\"c{at}\"],\"layer\":\"{}\"}}", id(at + 100), id(at));
    let containers: Vec<_> = (0..layers.len()).map(container).collect();
    // They were started: what changes is told soon.
    for at in 0..layers.len() {
        let userdata = root.join(format!("run/user/4242/containers/overlay-containers/{}/userdata", id(at + 100)));
        fs::create_dir_all(&userdata)?;
        fs::write(userdata.join("pidfile"), "1")?;
    }
    fs::write(store.join("overlay-layers/layers.json"), format!("[{}]", of_layers.join(",")))?;
    fs::write(store.join("overlay-containers/containers.json"), format!("[{}]", containers.join(",")))?;
    Ok(layers)
}

/// The number of watches that a user may have; it is put back in the end.
struct Limit(Option<String>);

const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";

impl Limit {
    fn raise() -> Result<Limit, String> {
        let former = fs::read_to_string(LIMIT).map_err(|error| format!("{LIMIT}: {error}"))?;
        if former.trim().parse().is_ok_and(|limit: usize| limit >= 2 * DIRECTORIES) {
            return Ok(Limit(None));
        }
        let raised = fs::write(LIMIT, (2 * DIRECTORIES).to_string());
        raised.map_err(|error| format!("{LIMIT} is {}, and cannot be raised: {error}", former.trim()))?;
        Ok(Limit(Some(former)))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // It is the machine's, and stays as it is if it has to.
        self.0.iter().for_each(|former| drop(fs::write(LIMIT, former)));
    }
}

/// How long it takes until all is watched.
fn watch(layers: &Path) -> Result<f64, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime
        .block_on(async {
            let mut trees = Trees::new(Directory::open(layers)?, Interest::NONE)?;
            let beginning = Instant::now();
            let scope = Arc::new(Scope::new([Path::new("/var")], []));
            let mut left = SHAPE[0];
            for layer in 0..SHAPE[0] {
                let root = u32::try_from(layer).map_err(std::io::Error::other)?;
                trees.add(root, &Path::new(&id(layer)).join("diff"), Arc::clone(&scope));
                trees.walk(root, News::Begun(Moment::at(SystemTime::now())), 1)?;
            }
            while left > 0 {
                trees.tell(&mut |event| left -= usize::from(matches!(event, Event::Walked(..)))).await?;
            }
            let took = beginning.elapsed().as_secs_f64();
            if trees.count() == DIRECTORIES { Ok(took) } else { Err(std::io::Error::other("not all are watched")) }
        })
        .map_err(|error| error.to_string())
}

fn loop_bare(layers: &Path) -> Result<f64, String> {
    fn add(inotify: &OwnedFd, directory: &Path) -> std::io::Result<()> {
        inotify::add_watch(inotify, directory, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MODIFY)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                add(inotify, &entry.path())?;
            }
        }
        Ok(())
    }
    let inotify = inotify::init(CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
    let beginning = Instant::now();
    (0..SHAPE[0])
        .try_for_each(|layer| add(&inotify, &layers.join(id(layer)).join("diff")))
        .map_err(|e| e.to_string())?;
    Ok(beginning.elapsed().as_secs_f64())
}

/// How long it takes, and how much memory.
fn inotifywait(layers: &Path) -> Result<(f64, f64), String> {
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-r", "-e", "moved_from,create,delete,modify"]);
    command.args((0..SHAPE[0]).map(|layer| layers.join(id(layer)).join("diff")));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let beginning = Instant::now();
    let mut child = Running(command.spawn().map_err(|error| error.to_string())?);
    let stderr = child.0.stderr.take().ok_or("no stderr")?;
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    lines.find(|line| line.contains("Watches established")).ok_or("inotifywait ended")?;
    Ok((beginning.elapsed().as_secs_f64(), resident(child.0.id())?))
}

fn resident(process: u32) -> Result<f64, String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| "no number")?;
    Ok(kibibytes / 1024.0)
}

/// How many watches a process has.
fn count_watches(process: &Running) -> std::io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", process.0.id()))? {
        count += fs::read_to_string(entry?.path())?.lines().filter(|line| line.starts_with("inotify ")).count();
    }
    Ok(count)
}

fn id(layer: usize) -> String {
    format!("{layer:064x}")
}

/// Layers of images, in the store of a user.
fn make(root: &Path) -> std::io::Result<()> {
    let store = root.join(STORE);
    let layers: Vec<_> = (0..SHAPE[0]).map(id).collect();
    for layer in &layers {
        for top in 0..SHAPE[1] {
            for below in 0..SHAPE[2] {
                let directory: PathBuf =
                    store.join("overlay").join(layer).join(format!("diff/directory{top}/some-name{below}"));
                fs::create_dir_all(&directory)?;
                fs::write(directory.join("file"), "x")?;
            }
        }
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "alice:x:4242:0::/home/alice:/bin/sh\n")?;
    fs::create_dir_all(store.join("overlay-layers"))?;
    let records: Vec<_> = layers.iter().map(|layer| format!("{{\"id\":\"{layer}\"}}")).collect();
    fs::write(store.join("overlay-layers/layers.json"), format!("[{}]", records.join(",")))
}
