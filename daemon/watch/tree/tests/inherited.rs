//! What waits in an inotify instance that somebody had before is told once, whatever the walk of the tree finds.

use super::*;

/// How whoever had it ended.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// All was told that it had read.
    Told,
    /// It had not told all that it had read.
    Untold,
    /// Nothing is known.
    Killed,
}

impl World {
    /// What there is, for whoever inherits it.
    fn leave(mut self, end: End) -> (tempfile::TempDir, OwnedFd, Past) {
        let inotify = self.trees.descriptor().try_clone_to_owned().expect("cloned");
        let told = (end == End::Told).then(|| Moment::at(SystemTime::now()));
        let past = self.trees.leave("root".to_owned(), told).to_bytes();
        let past = if end == End::Killed { Past::default() } else { Past::parse(&past).expect("ours") };
        (self.dir, inotify, past)
    }

    /// As [`World::new`] with what another one left; it is not walked yet.
    fn of((dir, inotify, past): (tempfile::TempDir, OwnedFd, Past), since: Moment) -> World {
        let inherited = Inherited::read(inotify, since, past).expect("read").expect("inotify");
        let base = Directory::open(dir.path().parent().expect("above")).expect("opened");
        let interest = Interest { is_precious: Stat::is_setuid, ..Interest::NONE };
        let mut trees = Trees::inherit(base, interest, inherited).expect("made");
        let scope = Scope::new([Path::new("/out")], []);
        trees.add(3, dir.path().file_name().expect("named").as_ref(), Arc::new(scope));
        assert_eq!(trees.drained(), since, "what waits is still to be told");
        World { dir, trees }
    }

    /// The same, after something happened while nobody watched; and what it tells after a walk.
    async fn inherit(self, end: End, since: Moment, gap: impl FnOnce(&Path)) -> (World, Vec<Told>) {
        let left = self.leave(end);
        std::thread::sleep(2 * LAG);
        gap(left.0.path());
        let mut world = World::of(left, since);
        let told = world.walk(News::Since(since)).await;
        assert!(world.trees.drained() > since);
        (world, told)
    }
}

fn now() -> Moment {
    Moment::at(SystemTime::now()).before(LAG)
}

#[tokio::test]
async fn what_came_and_went_is_told_and_what_came_and_stayed_is_told_once() {
    let (world, since) = (World::new(&["usr/bin", "etc", "opt", "out"]).await, now());
    let (mut world, told) = world
        .inherit(End::Told, since, |dir| {
            fs::write(dir.join("etc/came"), "x").expect("written");
            fs::remove_file(dir.join("etc/came")).expect("removed");
            fs::write(dir.join("usr/bin/stays"), "x").expect("written");
            fs::set_permissions(dir.join("opt"), fs::Permissions::from_mode(0o700)).expect("set");
            fs::write(dir.join("out/side"), "x").expect("written");
        })
        .await;
    World::is(
        &told,
        &[
            ("Created", "etc/came"),
            ("Written", "etc/came"),
            ("Removed", "etc/came"),
            ("Created", "usr/bin/stays"),
            ("Written", "usr/bin/stays"),
            ("Attributes", "opt"),
        ],
    );
    world.write("etc/later");
    World::is(&world.told().await, &[("Created", "etc/later"), ("Written", "etc/later")]);
}

#[tokio::test]
async fn what_was_read_and_not_told_is_found() {
    let (mut world, since) = (World::new(&["usr/bin"]).await, now());
    world.write("usr/bin/read");
    world.write("usr/bin/both");
    world.told().await;
    let (_, told) =
        world.inherit(End::Untold, since, |dir| fs::write(dir.join("usr/bin/both"), "y").expect("written")).await;
    let (found, waited): (Vec<_>, Vec<_>) = told.into_iter().partition(|(change, _)| change.starts_with("Found"));
    let mut found: Vec<_> = found.into_iter().map(|(_, path)| path).filter(|path| path != "usr/bin").collect();
    found.sort();
    // That it was made, and not only written to, is still to be told.
    assert_eq!(found, ["usr/bin/both", "usr/bin/read"]);
    World::is(&waited, &[("Written", "usr/bin/both")]);
}

#[tokio::test]
async fn what_was_told_by_one_that_ended_in_order_is_not_told_again() {
    let (mut world, since) = (World::new(&["usr/bin", "etc"]).await, now());
    world.write("usr/bin/told");
    world.write("etc/gone");
    fs::remove_file(world.path("etc/gone")).expect("removed");
    world.told().await;
    let (_, told) =
        world.inherit(End::Told, since, |dir| fs::write(dir.join("usr/bin/waits"), "x").expect("written")).await;
    World::is(&told, &[("Created", "usr/bin/waits"), ("Written", "usr/bin/waits")]);
}

#[tokio::test]
async fn a_directory_that_came_is_watched_with_all_that_is_in_it() {
    let (world, since) = (World::new(&["usr"]).await, now());
    let (mut world, mut told) = world
        .inherit(End::Told, since, |dir| {
            fs::create_dir_all(dir.join("usr/new/below")).expect("made");
            fs::write(dir.join("usr/new/below/file"), "x").expect("written");
        })
        .await;
    told.sort();
    let new = "Found { is_new: true }";
    World::is(&told, &[("Created", "usr/new"), (new, "usr/new/below"), (new, "usr/new/below/file")]);
    assert_eq!(world.watched(), world.there());
    world.write("usr/new/below/later");
    let later = [("Created", "usr/new/below/later"), ("Written", "usr/new/below/later")];
    World::is(&world.told().await, &later);
}

#[tokio::test]
async fn directories_that_moved_and_went_are_where_they_are_and_their_watches_are_given_back() {
    let (mut world, since) = (World::new(&["a/deep/er", "b", "goes/in"]).await, now());
    world.write("goes/in/file");
    world.told().await;
    let (mut world, told) = world
        .inherit(End::Told, since, |dir| {
            fs::write(dir.join("a/deep/er/before"), "x").expect("written");
            fs::rename(dir.join("a/deep"), dir.join("b/moved")).expect("renamed");
            fs::create_dir(dir.join("a/deep")).expect("made");
            fs::remove_dir_all(dir.join("goes")).expect("removed");
            fs::write(dir.join("b/moved/er/after"), "x").expect("written");
        })
        .await;
    for expected in [
        ("Created", "b/moved/er/before"),
        ("MovedFrom", "a/deep"),
        ("MovedTo(Watched)", "b/moved"),
        ("Created", "a/deep"),
        ("Created", "b/moved/er/after"),
        ("Removed", "goes/in/file"),
        ("Removed", "goes/in"),
        ("Removed", "goes"),
    ] {
        assert!(told.contains(&(expected.0.to_owned(), expected.1.to_owned())), "{expected:?} in {told:?}");
    }
    assert_eq!(world.watched(), world.there());
    world.write("a/deep/file");
    let later = [("Created", "a/deep/file"), ("Written", "a/deep/file")];
    World::is(&world.told().await, &later);
}

#[tokio::test]
async fn watches_of_what_is_of_interest_no_longer_are_given_back() {
    let directories: Vec<_> = (0..50).map(|number| format!("out/{number}")).collect();
    let directories: Vec<_> = directories.iter().map(String::as_str).chain(["in"]).collect();
    let mut world = World::new(&directories).await;
    world.trees.add(3, world.dir.path().file_name().expect("named").as_ref(), Arc::new(Scope::new([], [])));
    world.walk(News::Since(now())).await;
    assert_eq!(world.trees.count(), 53);
    let (world, _) = world.inherit(End::Told, now(), |_| {}).await;
    let inotify = world.trees.descriptor().try_clone_to_owned().expect("cloned");
    let waiting = Inherited::read(inotify, now(), Past::default()).expect("read").expect("inotify");
    assert_eq!((world.trees.count(), waiting.count()), (2, 2));
}

#[tokio::test]
async fn events_that_were_lost_are_said_to_be_and_all_is_sought() {
    let (world, since) = (World::new(&["usr"]).await, now());
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("read");
    let most: usize = most.trim().parse().expect("a number");
    let (_, told) = world
        .inherit(End::Told, since, |dir| {
            let (one, other) = (dir.join("usr/one"), dir.join("usr/other"));
            for number in 0..=most {
                fs::write(if number % 2 == 0 { &one } else { &other }, "x").expect("written");
            }
            fs::write(dir.join("usr/last"), "x").expect("written");
        })
        .await;
    assert!(told.iter().any(|(change, _)| change == "Lost"), "{:?}", told.len());
    assert!(told.contains(&("Found { is_new: true }".to_owned(), "usr/last".to_owned())));
}

/// What of it is told of these paths.
fn of<'t>(told: &'t [Told], paths: &[&str]) -> Vec<(&'t str, &'t str)> {
    let told = told.iter().filter(|(_, path)| paths.contains(&&path[..]));
    told.map(|(change, path)| (&change[..], &path[..])).collect()
}

#[tokio::test]
async fn what_was_done_in_directories_that_are_gone_is_told_where_they_were() {
    let (world, since) = (World::new(&["goes/in", "left", "held", "one/a", "one/b", "out"]).await, now());
    let mut held = None;
    let (mut world, told) = world
        .inherit(End::Told, since, |dir| {
            let write = |name: &str| fs::write(dir.join(name), "x").expect("written");
            write("goes/in/file");
            write("goes/in/came");
            fs::remove_file(dir.join("goes/in/came")).expect("removed");
            write("left/before");
            fs::rename(dir.join("left"), dir.join("out/left")).expect("renamed");
            write("held/file");
            held = Some(fs::File::open(dir.join("held")).expect("opened"));
            write("one/a/of-a");
            write("one/b/of-b");
            let (mut a, mut b) = (dir.join("one/a"), dir.join("one/b"));
            for gone in ["goes", "held"] {
                fs::remove_dir_all(dir.join(gone)).expect("removed");
            }
            std::thread::scope(|scope| {
                scope.spawn(|| fs::remove_dir_all(&mut a));
                scope.spawn(|| fs::remove_dir_all(&mut b));
            });
        })
        .await;
    for (path, expected) in [
        ("goes/in/file", &["Created", "Written", "Removed"][..]),
        ("goes/in/came", &["Created", "Written", "Removed"]),
        ("left/before", &["Created", "Written"]),
        ("held/file", &["Created", "Written", "Removed"]),
        ("one/a/of-a", &["Created", "Written", "Removed"]),
        ("one/b/of-b", &["Created", "Written", "Removed"]),
    ] {
        let expected: Vec<_> = expected.iter().map(|change| (*change, path)).collect();
        assert_eq!(of(&told, &[path]), expected, "{told:?}");
    }
    // What is held, and what was moved away, is watched no longer.
    drop(held);
    assert_eq!(world.watched(), world.there());
    world.write("out/left/later");
    assert_eq!(world.told().await, vec![]);
}

#[tokio::test]
async fn a_tree_that_is_gone_is_told_as_that_and_before_that_what_was_done_in_it() {
    let (world, since) = (World::new(&["usr"]).await, now());
    let left = world.leave(End::Told);
    fs::write(left.0.path().join("usr/came"), "x").expect("written");
    fs::remove_dir_all(left.0.path()).expect("removed");
    let mut world = World::of(left, since);
    assert_eq!(world.trees.walk(3, News::Since(since), 1).expect_err("gone").kind(), io::ErrorKind::NotFound);
    let told = world.told().await;
    assert_eq!(of(&told, &["usr/came"])[0], ("Created", "usr/came"));
    assert_eq!(told.last().expect("told").0, "Gone(3)");
    assert!(!world.trees.is_behind());
}

#[tokio::test]
async fn that_nobody_knows_where_something_was_is_told() {
    let (world, since) = (World::new(&["held"]).await, now());
    let mut held = None;
    let (_, told) = world
        .inherit(End::Killed, since, |dir| {
            fs::write(dir.join("held/file"), "x").expect("written");
            held = Some(fs::File::open(dir.join("held")).expect("opened"));
            fs::remove_dir_all(dir.join("held")).expect("removed");
        })
        .await;
    assert!(told.iter().any(|(what, _)| what.starts_with("Untold")), "{told:?}");
}

#[tokio::test]
async fn what_waited_is_told_before_what_happens_meanwhile_which_does_not_hide_where_it_was() {
    let (world, since) = (World::new(&["goes"]).await, now());
    let left = world.leave(End::Killed);
    fs::write(left.0.path().join("goes/came"), "x").expect("written");
    fs::remove_file(left.0.path().join("goes/came")).expect("removed");
    let mut world = World::of(left, since);
    world.trees.walk(3, News::Since(since), 1).expect("walked");
    // The walk is there, and nothing of it is taken in yet.
    while world.trees.batches.is_empty() {
        std::thread::sleep(QUIET);
    }
    world.write("goes/later");
    fs::remove_dir_all(world.path("goes")).expect("removed");
    let told = world.told().await;
    let of = of(&told, &["goes/came", "goes/later", "goes"]);
    let at = |change: &str, path: &str| of.iter().position(|told| *told == (change, path));
    let order = [("Created", "goes/came"), ("Removed", "goes/came"), ("Created", "goes/later"), ("Removed", "goes")];
    let order = order.map(|(change, path)| at(change, path).unwrap_or_else(|| panic!("{change} {path} in {told:?}")));
    assert!(order.is_sorted(), "{told:?}");
}

#[tokio::test]
async fn whoever_ends_before_the_first_walk_is_done_loses_nothing_and_tells_nothing_of_it() {
    let world = World::new(&["usr/bin", "goes", "out/side"]).await;
    world.write("out/side/su");
    fs::set_permissions(world.path("out/side/su"), fs::Permissions::from_mode(0o4755)).expect("set");
    std::thread::sleep(2 * LAG);
    let since = now();
    let mut left = world.leave(End::Told);
    // What is in it is older, and told all the same.
    fs::rename(left.0.path().join("out/side"), left.0.path().join("usr/side")).expect("renamed");
    let write = |left: &(tempfile::TempDir, OwnedFd, Past), name: &str| {
        fs::write(left.0.path().join(name), "x").expect("written");
    };
    write(&left, "goes/first");
    write(&left, "usr/bin/stays");
    for round in 0..3 {
        let mut world = World::of(left, since);
        world.trees.walk(3, News::Since(since), 1).expect("walked");
        std::thread::sleep(QUIET);
        // What comes during the walk is kept.
        world.write(&format!("goes/{round}"));
        while rustix::io::ioctl_fionread(world.trees.descriptor()).expect("asked") > 0 && world.trees.is_behind() {
            let mut tell = |event: Event<'_>| assert!(!matches!(event, Event::Lost), "{event:?}");
            let Trees { inotify, state, buffer, .. } = &mut world.trees;
            let mut events = inotify::Reader::new(inotify.get_ref(), buffer);
            while let Ok(event) = events.next() {
                state.note(Raw::of(&event), event.file_name().unwrap_or_default(), &mut tell);
            }
        }
        left = world.leave(End::Told);
    }
    fs::remove_dir_all(left.0.path().join("goes")).expect("removed");
    let mut world = World::of(left, since);
    let told = world.walk(News::Since(since)).await;
    for path in ["goes/first", "goes/0", "goes/1", "goes/2"] {
        assert_eq!(of(&told, &[path]).first(), Some(&("Created", path)), "{told:?}");
    }
    assert_eq!(of(&told, &["usr/bin/stays"]), [("Created", "usr/bin/stays"), ("Written", "usr/bin/stays")]);
    assert_eq!(of(&told, &["usr/side/su"]), [("Found { is_new: false }", "usr/side/su")], "{told:?}");
}

#[tokio::test]
async fn that_events_were_lost_is_known_to_whoever_goes_on() {
    let (world, since) = (World::new(&["usr"]).await, now());
    let mut world = World::of(world.leave(End::Told), since);
    world.trees.walk(3, News::Since(since), 1).expect("walked");
    world.trees.state.note(Raw::OVERFLOW, c"", &mut |_| {});
    let mut world = World::of(world.leave(End::Told), since);
    let told = world.walk(News::Since(since)).await;
    assert!(told.iter().any(|(what, _)| what == "Lost"), "{told:?}");
}

#[tokio::test]
async fn what_was_of_no_interest_was_not_told() {
    let (mut world, since) = (World::new(&["usr"]).await, now());
    world.trees.remove(3);
    world.write("usr/file");
    assert_eq!(world.told().await, vec![]);
    let (_, told) = world.inherit(End::Told, since, |_| {}).await;
    assert!(told.contains(&("Found { is_new: true }".to_owned(), "usr/file".to_owned())), "{told:?}");
}

#[test]
fn what_is_no_inotify_is_not_inherited() {
    let file = tempfile::tempfile().expect("made");
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("made");
    for descriptor in [OwnedFd::from(file), event] {
        assert!(Inherited::read(descriptor, Moment::MIN, Past::default()).expect("looked at").is_none());
    }
}
