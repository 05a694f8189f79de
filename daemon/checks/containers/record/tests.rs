use proptest::prelude::*;

use super::*;

fn stat(changed: i64, mode: u16) -> Stat {
    let changed = Moment::from_nanoseconds(changed);
    Stat { mode, size: 1, device: (0, 0), changed, modified: changed, made: None, marks: 0 }
}

const PROGRAM: u16 = 0o100_755;
const WHITEOUT: u16 = 0o020_000;
/// All that was noted was told.
const TOLD: i64 = i64::MAX;

fn open(directory: &Path, told: i64) -> Record {
    Record::open(directory, Path::new("/store"), Moment::from_nanoseconds(told))
}

/// Whether it is to be told when something changes a file.
fn happens(record: &mut Record, path: &str, stat: Stat) -> bool {
    record.note("layer", path.as_bytes(), &stat, How::Told)
}

/// Looks all through: these are there, and what else is asked for is like `others`. What is to be told or asked for.
fn seek(record: &mut Record, seen: &[(&str, Stat)], others: Option<Stat>) -> Vec<String> {
    record.begin(Moment::from_nanoseconds(7));
    let is_news = |(path, stat): &&(&str, Stat)| record.note("layer", path.as_bytes(), stat, How::Seen);
    let mut asked: Vec<_> = seen.iter().filter(is_news).map(|(path, _)| format!("told: {path}")).collect();
    record.finish(|_, layer, path, _| {
        asked.push(format!("{layer} {}", String::from_utf8_lossy(path)));
        others
    });
    asked.sort();
    asked
}

#[test]
fn what_was_noted_is_known_after_a_restart_and_what_is_missing_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut record = open(dir.path(), TOLD);
    for path in ["usr/bin/a", "usr/bin/b \n", "usr/bin/c"] {
        assert!(happens(&mut record, path, stat(1, PROGRAM)));
    }
    record.forget("layer", b"usr/bin/c", false);
    drop(record);
    let mut record = open(dir.path(), TOLD);
    let seen = |changed, mode| ("usr/bin/a", stat(changed, mode));
    assert_eq!(seek(&mut record, &[seen(1, PROGRAM)], None), ["layer usr/bin/b \n"]);
    drop(record);
    let mut record = open(dir.path(), TOLD);
    assert_eq!(record.sought(), Moment::from_nanoseconds(7));
    assert_eq!(seek(&mut record, &[seen(2, PROGRAM)], None), ["told: usr/bin/a"]);
    assert_eq!(seek(&mut record, &[seen(2, PROGRAM)], None), [""; 0]);
    assert_eq!(seek(&mut record, &[seen(2, 0o104_755)], None), ["told: usr/bin/a"]);
    assert_eq!(seek(&mut record, &[seen(2, 0o104_755), ("usr/bin/d", stat(1, PROGRAM))], None), [""; 0]);
}

#[test]
fn what_did_not_come_to_be_told_before_a_restart_is_told_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut record = open(dir.path(), 0);
    let programs = [("usr/bin/a", stat(1, PROGRAM)), ("usr/bin/b", stat(1, PROGRAM))];
    assert_eq!(seek(&mut record, &programs, None), [""; 0], "it was there before");
    let a = [("usr/bin/a", stat(2, PROGRAM))];
    assert_eq!(seek(&mut record, &a, None), ["layer usr/bin/b", "told: usr/bin/a"]);
    drop(record);
    // All of before was told, but this had no time to be.
    drop(open(dir.path(), 0));
    let mut record = open(dir.path(), TOLD);
    assert_eq!(seek(&mut record, &a, None), ["layer usr/bin/b", "told: usr/bin/a"]);
    drop(record);
    assert_eq!(seek(&mut open(dir.path(), TOLD), &a, None), [""; 0]);
}

#[test]
fn what_was_removed_from_an_image_is_that_whatever_else_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut record = open(dir.path(), 0);
    assert!(happens(&mut record, "usr/bin/a", stat(1, WHITEOUT)));
    assert_eq!(seek(&mut record, &[("usr/bin/a", stat(9, WHITEOUT))], None), [""; 0]);
    drop(record);
    let found = |told| open(dir.path(), told).note("layer", b"usr/bin/a", &stat(9, WHITEOUT), How::Found);
    assert!(found(0), "it may not have been told");
    assert!(!found(TOLD));
    assert!(happens(&mut open(dir.path(), TOLD), "usr/bin/a", stat(1, PROGRAM)));
}

#[test]
fn what_went_with_its_directory_is_known_to_have_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut record = open(dir.path(), TOLD);
    happens(&mut record, "usr/lib/x/a", stat(1, PROGRAM));
    record.forget("layer", b"usr/lib/x", true);
    let is_told = ["usr/lib/x/a", "usr/lib/xa", "usr/lib/x"].map(|path| record.has_departed("layer", path.as_bytes()));
    assert_eq!(is_told, [true, false, false]);
    assert!(!record.has_departed("other", b"usr/lib/x/a"));
    assert_eq!(seek(&mut record, &[], None).len(), 1);
    assert!(!record.has_departed("layer", b"usr/lib/x/a"), "until all was looked through");
}

#[test]
fn a_file_that_cannot_be_written_is_told_and_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let there = dir.path().join("there");
    let mut record = open(&there, TOLD);
    assert!(record.failure().is_some_and(|failure| failure.contains("there/")));
    happens(&mut record, "usr/bin/a", stat(1, PROGRAM));
    seek(&mut record, &[], None);
    assert!(record.failure().is_some());
    fs::create_dir(&there).expect("made");
    assert_eq!(seek(&mut record, &[("usr/bin/a", stat(1, PROGRAM))], None), [""; 0]);
    assert_eq!(record.failure(), None);
    drop(record);
    assert_eq!(seek(&mut open(&there, TOLD), &[("usr/bin/a", stat(2, PROGRAM))], None), ["told: usr/bin/a"]);
}

#[test]
fn only_what_is_kept_of_known_stores_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let (kept, other) = (PathBuf::from("/store"), PathBuf::from("/other"));
    drop(Record::open(dir.path(), &other, Moment::MIN));
    drop(Record::open(dir.path(), &kept, Moment::MIN));
    tidy(dir.path(), [kept.clone()].iter());
    assert_eq!(
        (dir.path().join(file_name(&kept)).exists(), dir.path().join(file_name(&other)).exists()),
        (true, false)
    );
}

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Note(u8, i64),
    Forget(u8),
    Restart,
    /// All is looked through; what has a higher number is there no more.
    Seek(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..20_u8, 0..5_i64).prop_map(|(path, changed)| Step::Note(path, changed)),
        2 => (1..20_u8).prop_map(Step::Forget),
        1 => Just(Step::Restart),
        1 => (0..20_u8).prop_map(Step::Seek),
    ]
}

proptest! {
    #[test]
    fn it_knows_what_a_plain_map_knows(steps in proptest::collection::vec(step(), 1..100)) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut record, mut model) = (open(dir.path(), TOLD), BTreeMap::new());
        for step in steps {
            match step {
                Step::Note(path, changed) => {
                    record.note("layer", &[path], &stat(changed, PROGRAM), How::Told);
                    model.insert(path, changed);
                }
                Step::Forget(path) => {
                    record.forget("layer", &[path], false);
                    model.remove(&path);
                }
                Step::Restart => {
                    drop(record);
                    record = open(dir.path(), TOLD);
                }
                Step::Seek(most) => {
                    record.begin(Moment::MIN);
                    model.retain(|path, _| *path <= most);
                    for (path, changed) in model.iter().filter(|(path, _)| *path % 2 == 0) {
                        record.note("layer", &[*path], &stat(*changed, PROGRAM), How::Seen);
                    }
                    let there = |path: &[u8]| model.get(&path[0]).map(|changed| stat(*changed, PROGRAM));
                    record.finish(|_, _, path, _| there(path));
                }
            }
            let known = |path: &u8| record.get("layer", &[*path]).map(|known| known.changed.nanoseconds());
            for path in 1..20 {
                prop_assert_eq!(known(&path), model.get(&path).copied(), "{}", path);
            }
        }
    }

    #[test]
    fn any_file_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), has_head in any::<bool>()) {
        let dir = tempfile::tempdir().expect("a directory");
        let head = if has_head { sheet::head(Moment::from_nanoseconds(5)) } else { String::new() };
        fs::write(dir.path().join(file_name(Path::new("/store"))), [head.as_bytes(), &bytes].concat()).expect("written");
        happens(&mut open(dir.path(), TOLD), "usr/bin/a", stat(1, PROGRAM));
        let mut record = open(dir.path(), TOLD);
        record.begin(Moment::MIN);
        prop_assert!(record.note("layer", b"usr/bin/a", &stat(2, PROGRAM), How::Seen));
    }
}

#[test]
fn what_a_newer_podsecd_kept_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.programs");
    let now = sheet::head(Moment::from_nanoseconds(5));
    let newer = now.replace(&format!(" {} ", sheet::VERSION), " 99 ");
    for (text, is_refused) in
        [(now, false), (newer, true), ("podsecd-programs ninety-nine 5\0".into(), false), (String::new(), false)]
    {
        fs::write(&path, &text).expect("written");
        let refused = refuse_newer(dir.path()).err().map(|error| error.to_string());
        assert_eq!(refused.is_some(), is_refused, "{text}: {refused:?}");
        assert!(refused.iter().all(|told| told.contains("x.programs is of version 99")), "{refused:?}");
    }
    refuse_newer(&dir.path().join("none")).expect("nothing to refuse");
}
