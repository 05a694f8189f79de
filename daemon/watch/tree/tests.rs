mod inherited;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proptest::prelude::*;
use tokio::time::timeout;

use super::state::join;
use super::*;

/// Nothing happens for so long that nothing more comes.
const QUIET: Duration = Duration::from_millis(60);

struct World {
    dir: tempfile::TempDir,
    trees: Trees,
}

/// What was told: what changed, and its path.
type Told = (String, String);

impl World {
    /// A tree with these directories, watched; `out` is left out.
    async fn new(directories: &[&str]) -> World {
        let dir = tempfile::tempdir().expect("a directory");
        for directory in directories {
            fs::create_dir_all(dir.path().join(directory)).expect("made");
        }
        let base = Directory::open(dir.path().parent().expect("above")).expect("opened");
        let interest = Interest {
            marks: &[c"user.mark"],
            is_kept: |name| name == b"usr",
            is_precious: Stat::is_setuid,
            ..Interest::NONE
        };
        let mut trees = Trees::new(base, interest).expect("inotify");
        let scope = Scope::new([Path::new("/out")], []);
        trees.add(3, dir.path().file_name().expect("named").as_ref(), Arc::new(scope));
        let mut world = World { dir, trees };
        assert_eq!(world.walk(News::Begun(Moment::at(SystemTime::now()))).await, vec![]);
        world
    }

    async fn walk(&mut self, news: News) -> Vec<Told> {
        self.trees.walk(3, news, 1).expect("walked");
        let told = self.told().await;
        assert!(!self.trees.is_walking());
        told
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str) {
        fs::write(self.path(name), "x").expect("written");
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("renamed");
    }

    /// What is told until nothing more comes; what follows of the same is once.
    async fn told(&mut self) -> Vec<Told> {
        let mut told: Vec<Told> = Vec::new();
        let mut doubted = false;
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if std::mem::take(&mut doubted) {
                self.trees.walk(3, News::Since(Moment::at(SystemTime::now())), 1).expect("walked");
            }
            let mut tell = |event: Event<'_>| {
                let entry = match event {
                    Event::Changed(entry) => entry,
                    Event::Walked(3, 1) => return,
                    Event::Doubted(3) => return doubted = true,
                    other => return told.push((format!("{other:?}"), String::new())),
                };
                let path = join(entry.directory, entry.name).to_string_lossy().into_owned();
                let change = (format!("{:?}", entry.change), path);
                if told.last() != Some(&change) {
                    told.push(change);
                }
            };
            match timeout(QUIET, self.trees.tell(&mut tell)).await {
                Ok(told) => told.expect("read"),
                // The thread that walks may have to wait for its turn.
                Err(_) if self.trees.is_walking() && Instant::now() < end => {}
                Err(_) => return told,
            }
        }
    }

    #[track_caller]
    fn is(told: &[Told], expected: &[(&str, &str)]) {
        let told: Vec<_> = told.iter().map(|(change, path)| (change.as_str(), path.as_str())).collect();
        assert_eq!(told, expected);
    }

    /// The paths of all watched directories.
    fn watched(&self) -> BTreeSet<String> {
        let nodes = &self.trees.state.nodes;
        let mut path = Vec::new();
        let path_of = |watch| nodes.path(watch, &mut path).map(|_| String::from_utf8_lossy(&path).into_owned());
        (1..=nodes.last()).filter_map(path_of).collect()
    }

    /// The paths of all directories that are to be watched.
    fn there(&self) -> BTreeSet<String> {
        fn add(top: &Path, path: &Path, found: &mut BTreeSet<String>) {
            found.insert(path.strip_prefix(top).expect("below").to_string_lossy().into_owned());
            for entry in fs::read_dir(path).expect("read").flatten() {
                if entry.file_type().expect("known").is_dir() && entry.path() != top.join("out") {
                    add(top, &entry.path(), found);
                }
            }
        }
        let mut found = BTreeSet::new();
        add(self.dir.path(), self.dir.path(), &mut found);
        found
    }
}

#[tokio::test]
async fn what_is_kept_is_told_though_it_is_no_news() {
    let mut world = World::new(&["usr/bin", "etc", "opt"]).await;
    for name in ["usr/bin/su", "usr/file", "etc/passwd", "opt/tool", "file"] {
        world.write(name);
    }
    fs::set_permissions(world.path("opt/tool"), fs::Permissions::from_mode(0o4755)).expect("set");
    world.told().await;
    let mut told = world.walk(News::Kept(Moment::at(SystemTime::now() + Duration::from_secs(9)))).await;
    told.sort();
    World::is(&told, &[("Seen", "opt/tool"), ("Seen", "usr/bin/su"), ("Seen", "usr/file")]);
    let told = world.walk(News::Kept(Moment::MIN)).await;
    assert!(told.iter().all(|(change, _)| change != "Seen"), "{told:?}");
}

#[tokio::test]
async fn what_happens_to_a_file_is_told() {
    let mut world = World::new(&["usr/bin", "etc", "out"]).await;
    world.write("usr/bin/su");
    World::is(&world.told().await, &[("Created", "usr/bin/su"), ("Written", "usr/bin/su")]);
    world.write("usr/bin/su");
    World::is(&world.told().await, &[("Written", "usr/bin/su")]);
    fs::set_permissions(world.path("usr/bin/su"), fs::Permissions::from_mode(0o4755)).expect("set");
    World::is(&world.told().await, &[("Attributes", "usr/bin/su")]);
    world.rename("usr/bin/su", "usr/bin/sudo");
    World::is(&world.told().await, &[("MovedFrom", "usr/bin/su"), ("MovedTo(Within)", "usr/bin/sudo")]);
    world.rename("usr/bin/sudo", "etc/sudo");
    World::is(&world.told().await, &[("MovedFrom", "usr/bin/sudo"), ("MovedTo(Watched)", "etc/sudo")]);
    world.rename("etc/sudo", "out/sudo");
    World::is(&world.told().await, &[("MovedFrom", "etc/sudo")]);
    world.rename("out/sudo", "etc/sudo");
    World::is(&world.told().await, &[("MovedTo(Elsewhere)", "etc/sudo")]);
    fs::remove_file(world.path("etc/sudo")).expect("removed");
    World::is(&world.told().await, &[("Removed", "etc/sudo")]);
    symlink("/etc/passwd", world.path("etc/link")).expect("linked");
    World::is(&world.told().await, &[("Created", "etc/link")]);
    world.write("out/file");
    World::is(&world.told().await, &[]);
}

#[tokio::test]
async fn directories_that_come_are_walked_and_those_that_are_moved_keep_their_watches() {
    let mut world = World::new(&["a/b/c", "other", "out/x/y"]).await;
    world.write("out/x/file");
    let watches = world.trees.count();
    world.rename("a/b", "other/b");
    World::is(&world.told().await, &[("MovedFrom", "a/b"), ("MovedTo(Watched)", "other/b")]);
    assert_eq!(world.trees.count(), watches);
    world.write("other/b/c/file");
    World::is(&world.told().await, &[("Created", "other/b/c/file"), ("Written", "other/b/c/file")]);
    world.rename("out/x", "a/x");
    let told = world.told().await;
    World::is(&told[..1], &[("MovedTo(Elsewhere)", "a/x")]);
    let rest: BTreeSet<_> = told[1..].iter().map(|(change, path)| (change.as_str(), path.as_str())).collect();
    assert_eq!(rest, [("Created", "a/x/file"), ("Created", "a/x/y")].into());
    world.write("a/x/y/file");
    World::is(&world.told().await, &[("Created", "a/x/y/file"), ("Written", "a/x/y/file")]);
    // Where that is now nobody watches; there it is another directory.
    world.rename("a/x", "out/z");
    World::is(&world.told().await, &[("MovedFrom", "a/x")]);
    fs::create_dir(world.path("a/x")).expect("made");
    World::is(&world.told().await, &[("Created", "a/x")]);
    world.write("out/z/y/file");
    World::is(&world.told().await, &[]);
    world.write("a/x/file");
    World::is(&world.told().await, &[("Created", "a/x/file"), ("Written", "a/x/file")]);
    world.trees.tidy();
    world.told().await;
    assert_eq!(world.trees.count(), world.there().len());
}

#[tokio::test]
async fn a_walk_finds_what_changed_since_then() {
    let mut world = World::new(&["a/b", "c", "out"]).await;
    for name in ["a/b/old", "a/b/changed", "c/removed", "out/x"] {
        world.write(name);
    }
    world.told().await;
    std::thread::sleep(QUIET);
    let then = Moment::at(SystemTime::now());
    std::thread::sleep(QUIET);
    fs::write(world.path("a/b/changed"), "y").expect("written");
    fs::File::open(world.path("a/b/changed")).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("set");
    fs::remove_file(world.path("c/removed")).expect("removed");
    fs::write(world.path("out/x"), "y").expect("written");
    world.told().await;
    let told: BTreeSet<_> = world.walk(News::Since(then)).await.into_iter().collect();
    let expected = [("Found { is_new: false }", "a/b/changed"), ("Found { is_new: false }", "c"), ("Lacking", "c/")];
    assert_eq!(told, expected.map(|(change, path)| (change.to_owned(), path.to_owned())).into());
    assert_eq!(world.walk(News::Begun(then)).await.len(), 1, "only directories that changed are looked through");
}

#[tokio::test]
async fn what_is_to_be_known_of_a_file_is_what_is_there() {
    let mut world = World::new(&["a"]).await;
    world.write("a/file");
    fs::set_permissions(world.path("a/file"), fs::Permissions::from_mode(0o2755)).expect("set");
    rustix::fs::setxattr(world.path("a/file"), "user.mark", b"x", rustix::fs::XattrFlags::empty()).expect("set");
    let mut seen = None;
    world
        .trees
        .tell(&mut |event| {
            if let Event::Changed(mut entry) = event {
                seen = entry.stat();
            }
        })
        .await
        .expect("read");
    let stat = seen.expect("there");
    assert_eq!((stat.mode & 0o7777, stat.marks, stat.is_setuid()), (0o2755, 1, true));
}

#[tokio::test]
async fn links_and_mounts_are_not_entered() {
    let mut world = World::new(&["a"]).await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    symlink(elsewhere.path(), world.path("a/link")).expect("linked");
    symlink(".", world.path("a/loop")).expect("linked");
    world.told().await;
    fs::write(elsewhere.path().join("file"), "x").expect("written");
    World::is(&world.told().await, &[]);
    assert_eq!(world.watched(), world.there());
}

#[tokio::test]
async fn a_root_that_goes_is_told() {
    for goes in [|path: &Path| fs::remove_dir(path), |path: &Path| fs::rename(path, path.with_extension("moved"))] {
        let mut world = World::new(&[]).await;
        goes(world.dir.path()).expect("gone");
        assert_eq!(world.told().await[0].0, "Gone(3)");
        let _ = fs::remove_dir(world.dir.path().with_extension("moved"));
    }
}

#[tokio::test]
async fn trees_that_are_too_deep_are_told_and_need_no_descriptors_without_end() {
    let mut world = World::new(&["a"]).await;
    let name = "d".repeat(8);
    let deep = vec![name.as_str(); usize::from(walk::MAX_DEPTH) + 20].join("/");
    fs::create_dir_all(world.path(&format!("a/{deep}"))).expect("made");
    let told = world.told().await;
    let uncovered: Vec<_> = told.iter().filter(|(event, _)| event.starts_with("Uncovered")).collect();
    assert_eq!(uncovered.len(), 1, "{uncovered:?}");
    assert_eq!(world.trees.count(), usize::from(walk::MAX_DEPTH) + 1);
}

/// What is done in a tree: by numbers of directories and names.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(usize, u8),
    Move(usize, usize, u8),
    MoveOut(usize),
    MoveIn(usize, u8),
    Remove(usize),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let (at, name) = (0..64_usize, 0..6_u8);
    prop_oneof![
        5 => (at.clone(), name.clone()).prop_map(|(at, name)| Step::Make(at, name)),
        3 => (at.clone(), at.clone(), name.clone()).prop_map(|(at, to, name)| Step::Move(at, to, name)),
        1 => at.clone().prop_map(Step::MoveOut),
        1 => (at.clone(), name).prop_map(|(at, name)| Step::MoveIn(at, name)),
        1 => at.prop_map(Step::Remove),
        1 => Just(Step::Look),
    ]
}

/// Does that in a tree, and looks where the directories are.
async fn follow(steps: Vec<Step>) {
    let mut world = World::new(&["a/b", "c", "out"]).await;
    let mut is_doubted = false;
    for step in steps {
        let there: Vec<_> = world.there().into_iter().collect();
        let at = |number: usize| world.path(&there[number % there.len()]);
        let out = fs::read_dir(world.path("out")).expect("read").flatten().next();
        // What cannot be done is not done.
        let _ = match step {
            Step::Make(number, name) => fs::create_dir(at(number).join(name.to_string())),
            Step::Move(from, to, name) => fs::rename(at(from), at(to).join(name.to_string())),
            Step::MoveOut(number) => fs::rename(at(number), world.path(&format!("out/{}", there.len()))),
            Step::MoveIn(to, name) => out.map_or(Ok(()), |out| fs::rename(out.path(), at(to).join(name.to_string()))),
            Step::Remove(number) => fs::remove_dir(at(number)),
            Step::Look => {
                let mut tell = |event: Event<'_>| is_doubted |= matches!(event, Event::Doubted(_));
                let _ = timeout(Duration::from_millis(1), world.trees.tell(&mut tell)).await;
                Ok(())
            }
        };
        if !world.path("out").is_dir() || !world.dir.path().is_dir() {
            return;
        }
    }
    if is_doubted {
        // As whoever hears that has to do.
        world.trees.walk(3, News::Since(Moment::at(SystemTime::now())), 1).expect("walked");
    }
    world.told().await;
    assert_eq!(world.watched(), world.there());
}

#[test]
fn whatever_happens_all_directories_are_watched_where_they_are() {
    // Each of them waits until nothing more comes: not as many as of other properties.
    let config = ProptestConfig { cases: 48, ..ProptestConfig::default() };
    let steps = proptest::collection::vec(step(), 1..120);
    let tried = proptest::test_runner::TestRunner::new(config).run(&steps, |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(follow(steps));
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{failure}"));
}

#[tokio::test]
async fn what_a_walk_found_can_be_read_if_it_is_a_regular_file() {
    let mut world = World::new(&["in"]).await;
    world.write("in/file");
    symlink("file", world.path("in/link")).expect("linked");
    assert!(!world.told().await.is_empty());
    let mut read = Vec::new();
    world.trees.walk(3, News::All, 2).expect("walked");
    let mut is_walked = false;
    while !is_walked {
        let mut tell = |event: Event<'_>| match event {
            Event::Changed(mut entry) => read.push((entry.name.to_vec(), entry.read(8))),
            Event::Walked(..) => is_walked = true,
            _ => {}
        };
        world.trees.tell(&mut tell).await.expect("read");
    }
    read.sort();
    let expected = [("file", Some(b"x".to_vec())), ("in", None), ("link", None)];
    assert_eq!(read, expected.map(|(name, text)| (name.as_bytes().to_vec(), text)));
}
