//! NodePorts, found through a Kubernetes API that does what it is told.

mod api;
mod kubeconfig;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podsecd::checks::forwards::services::{LeftOut, Message, Times, spawn};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use api::{Api, Does, bookmark, event, list, page, service, status};

/// As long as the tests can wait.
const TIMES: Times = Times {
    first_pause: Duration::from_millis(20),
    most_pause: Duration::from_millis(320),
    request: Duration::from_secs(5),
    list: Duration::from_secs(10),
    watch: Duration::from_secs(20),
    settle: Duration::from_millis(150),
    gather: Duration::from_millis(10),
};

/// A watch that lasts so long stands, also where the machine is busy.
const SETTLED: Duration = TIMES.settle.saturating_mul(8);

/// The source, as podsecd has it.
struct Source {
    messages: mpsc::Receiver<Message>,
    kubeconfig: PathBuf,
    _directory: TempDir,
}

impl Source {
    fn start(api: &Api) -> Source {
        Source::start_with(api, TIMES)
    }

    fn start_with(api: &Api, times: Times) -> Source {
        let directory = tempfile::tempdir().expect("a directory");
        let kubeconfig = kubeconfig::write(directory.path(), &kubeconfig::plain(api));
        Source::read(kubeconfig, directory, times)
    }

    fn read(kubeconfig: PathBuf, directory: TempDir, times: Times) -> Source {
        let (sender, messages) = mpsc::channel(4);
        spawn(kubeconfig.clone(), times, sender);
        Source { messages, kubeconfig, _directory: directory }
    }

    /// What it says next: the ports, or the rest as it is.
    async fn says(&mut self) -> String {
        let message = timeout(Duration::from_secs(60), self.messages.recv()).await;
        match message.expect("it says something").expect("it runs") {
            Message::Services(ports) => {
                let shown = ports
                    .iter()
                    .map(|port| format!("{}/{} {}/{}", port.namespace, port.service, port.port, port.transport));
                shown.collect::<Vec<_>>().join(", ")
            }
            Message::LeftOut(LeftOut { unfit, beyond }) => format!("left out: {unfit} unfit, {beyond} beyond"),
            Message::Away(why) => format!("away: {why}"),
            Message::Back => "back".to_owned(),
        }
    }

    /// It says nothing for so long.
    async fn is_silent(&mut self, time: Duration) {
        if let Ok(message) = timeout(time, self.messages.recv()).await {
            panic!("it says {message:?}");
        }
    }
}

/// The queries of the requests for services.
fn targets(api: &Api) -> Vec<String> {
    let query =
        |target: &str| target.strip_prefix("/api/v1/services?").expect(target).trim_start_matches('&').to_owned();
    api.asked().iter().map(|asked| query(&asked.target)).collect()
}

const WATCH: &str = "watch=true&timeoutSeconds=20&allowWatchBookmarks=true&resourceVersion=";

#[tokio::test]
async fn what_is_listed_and_what_changes_is_told() {
    let api = Api::start(|asked, _| match asked.is_watch() {
        false => vec![list(10, &[service("web", 5, 30080)])],
        true => vec![
            Does::Begins,
            event("ADDED", &service("mail", 11, 30025)),
            Does::Waits(Duration::from_secs(3)),
            event("MODIFIED", &service("web", 12, 30081)),
            Does::Waits(Duration::from_secs(3)),
            event("DELETED", &service("mail", 13, 30025)),
            bookmark(14),
            Does::Stays,
        ],
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "shop/web 30080/tcp");
    assert_eq!(source.says().await, "shop/mail 30025/tcp, shop/web 30080/tcp");
    assert_eq!(source.says().await, "shop/mail 30025/tcp, shop/web 30081/tcp");
    assert_eq!(source.says().await, "shop/web 30081/tcp", "it is withdrawn with the service");
    source.is_silent(Duration::from_millis(500)).await;
    assert_eq!(targets(&api), ["limit=500", &format!("{WATCH}10")]);
    let asked = &api.asked()[0];
    assert!(asked.headers.contains(&"authorization: bearer secret".to_owned()), "{asked:?}");
    assert!(asked.headers.contains(&"user-agent: podsecd-u7s".to_owned()), "{asked:?}");
}

#[tokio::test]
async fn that_there_are_none_is_told_once() {
    let api = Api::start(|asked, _| match asked.is_watch() {
        false => vec![list(10, &[])],
        true => vec![Does::Begins, bookmark(11), Does::Stays],
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "");
    source.is_silent(Duration::from_millis(400)).await;
}

#[tokio::test]
async fn changes_that_come_together_are_told_together() {
    let api = Api::start(|asked, _| match asked.is_watch() {
        false => vec![list(10, &[])],
        true => {
            let service = |number: u16| service(&format!("s{number:03}"), 11, 30000 + number);
            let lines = (0..200).map(|number| match event("ADDED", &service(number)) {
                Does::Tells(line) => line,
                other => panic!("{other:?}"),
            });
            let lines: Vec<_> = lines.collect();
            vec![Does::Begins, Does::Tells(lines.join("\n")), Does::Stays]
        }
    });
    let mut source = Source::start_with(&api, Times { gather: Duration::from_millis(500), ..TIMES });
    assert_eq!(source.says().await, "");
    assert_eq!(source.says().await.split(", ").count(), 200);
}

#[tokio::test]
async fn a_list_is_asked_for_in_pages_and_pages_that_are_too_long_in_shorter_ones() {
    let large = |name: &str| {
        let mut service = service(name, 5, 30080);
        service["metadata"]["annotations"] = json!({"note": "x".repeat(3 << 20)});
        service
    };
    let api = Api::start(move |asked, _| {
        let has = |part: &str| asked.target.contains(part);
        match () {
            () if asked.is_watch() => vec![Does::Begins, Does::Stays],
            () if !has("continue=") => vec![page(10, &[service("a", 5, 30001)], "second page")],
            () if has("continue=second") && has("limit=500") => vec![page(10, &[large("b"), large("c")], "third")],
            () if has("continue=second") => vec![page(10, &[large("b")], "third")],
            () => vec![page(10, &[service("d", 5, 30004)], "")],
        }
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "shop/a 30001/tcp, shop/b 30080/tcp, shop/d 30004/tcp");
    source.is_silent(Duration::from_millis(100)).await;
    let pages =
        ["limit=500", "limit=500&continue=second+page", "limit=100&continue=second+page", "limit=100&continue=third"];
    assert_eq!(targets(&api), [pages.map(ToOwned::to_owned).as_slice(), &[format!("{WATCH}10")]].concat());
}

/// What changes between the list and the watch is told by the watch, which begins where the list ended.
#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_ended() {
    let api = Api::start(|asked, before| match before {
        0 => vec![list(10, &[service("web", 5, 30080)])],
        1 => vec![Does::Begins, event("DELETED", &service("web", 11, 30080)), Does::Waits(SETTLED), Does::Ends],
        // A line may come in pieces.
        2 => vec![
            Does::Begins,
            Does::Waits(SETTLED),
            Does::Sends("{\"type\":\"BOOKMARK\",\"object\":{\"meta"),
            Does::Waits(Duration::from_millis(50)),
            Does::Sends("data\":{\"resourceVersion\":\"12\"}}}"),
            Does::Waits(Duration::from_millis(50)),
            Does::Sends("\n"),
            Does::Closes,
        ],
        3 => vec![
            Does::Begins,
            event("ADDED", &service("web", 13, 30081)),
            Does::Waits(SETTLED),
            Does::Sends("{\"type\":\"ADD"),
            Does::Ends,
        ],
        4 => vec![Does::Begins, event("ADDED", &service("mail", 14, 30025)), Does::Stays],
        _ => panic!("{asked:?}"),
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "shop/web 30080/tcp");
    assert_eq!(source.says().await, "");
    assert_eq!(source.says().await, "shop/web 30081/tcp");
    assert_eq!(source.says().await, "shop/mail 30025/tcp, shop/web 30081/tcp");
    source.is_silent(Duration::from_millis(300)).await;
    let versions = [10, 11, 12, 13].map(|version| format!("{WATCH}{version}"));
    assert_eq!(targets(&api)[1..], versions, "there is one list");
}

#[tokio::test]
async fn after_410_gone_all_is_listed_again() {
    for gone in [
        vec![Does::Answers(410, status(410, "too old resource version: 10 (20)"))],
        vec![Does::Begins, event("ERROR", &status(410, "too old resource version: 10 (20)")), Does::Ends],
    ] {
        let api = Api::start(move |_, before| match before {
            0 => vec![list(10, &[service("web", 5, 30080), service("mail", 6, 30025)])],
            1 => gone.clone(),
            2 => vec![list(20, &[service("web", 5, 30080)])],
            _ => vec![Does::Begins, Does::Stays],
        });
        let mut source = Source::start(&api);
        assert_eq!(source.says().await, "shop/mail 30025/tcp, shop/web 30080/tcp");
        assert_eq!(source.says().await, "shop/web 30080/tcp", "and nothing is withdrawn in between");
        source.is_silent(Duration::from_millis(300)).await;
        assert_eq!(targets(&api)[2..], ["limit=500", &format!("{WATCH}20")]);
    }
}

#[tokio::test]
async fn a_list_whose_pages_are_gone_is_begun_again() {
    let api = Api::start(|_, before| match before {
        0 => vec![page(10, &[service("web", 5, 30080)], "next")],
        1 => vec![Does::Answers(410, status(410, "The provided continue parameter is too old"))],
        2 => vec![list(20, &[service("mail", 5, 30025)])],
        _ => vec![Does::Begins, Does::Stays],
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "shop/mail 30025/tcp");
    source.is_silent(Duration::from_millis(300)).await;
}

/// What the API does instead, what is said of it, and whether it does so when it is asked for a list, or for a watch.
#[tokio::test]
async fn an_api_that_does_not_do_its_work_is_away_and_what_was_told_stands() {
    use Does::*;
    let refused = |code: u16, message: &str| vec![Answers(code, status(code, message))];
    let mut all = JoinSet::new();
    for (instead, expected, at_list) in [
        (refused(401, "Unauthorized"), "answers 401: Unauthorized; the kubeconfig's token", true),
        (
            refused(403, "services is forbidden"),
            "403: services is forbidden; run `kubectl apply -f podsecd-u7s-rbac.yaml`",
            true,
        ),
        (refused(500, "etcd\nis away"), "answers 500: etcd\nis away", true),
        (refused(503, ""), "answers 503", true),
        (vec![Answers(302, Value::Null)], "answers 302", true),
        (vec![Answers(200, json!({}))], "no list of services", true),
        (vec![Answers(200, status(200, "x"))], "no list of services", true),
        (vec![Answers(200, json!([[[[[[]]]]]]))], "no list of services", true),
        (vec![Closes], "connection closed", true),
        (vec![Waits(Duration::from_secs(9))], "does not answer in 5s", true),
        (vec![Begins, Stays], "does not answer in 5s", true),
        (vec![Begins, Floods(&[b' '; 65536])], "more than there is room for", true),
        (vec![page(10, &[], "again")], "same page of a list again and again", true),
        (refused(500, ""), "answers 500", false),
        (vec![Closes], "connection closed", false),
        (vec![Begins, Closes], "unexpected EOF", false),
        (vec![Begins, Ends], "ends each watch at once", false),
        (vec![Begins, Sends("{\"type\":\"DELE"), Ends], "within a line", false),
        (vec![Begins, Sends("garbage\n"), Stays], "no event", false),
        (vec![Begins, Floods(&[b'x'; 65536])], "one service with more than 4 MiB", false),
        (vec![Begins, event("ERROR", &status(500, "etcd")), Ends], "ends the watch: 500 etcd", false),
        (vec![Begins, event("ERROR", &status(410, "")), Ends], "410 Gone again and again", false),
        (refused(410, ""), "410 Gone again and again", false),
        (vec![Waits(Duration::from_secs(9))], "does not answer in 5s", false),
    ] {
        all.spawn(stands_while_away(instead, expected, at_list));
    }
    all.join_all().await;
}

async fn stands_while_away(instead: Vec<Does>, expected: &str, at_list: bool) {
    let shown: String = format!("{instead:?}").chars().take(200).collect();
    // A page that is too long is asked for in ever shorter ones.
    let per_round = if matches!(instead[..], [.., Does::Floods(_)]) && at_list { 5 } else { 2 };
    let is_well = Arc::new(AtomicBool::new(false));
    let became_well = Arc::clone(&is_well);
    let api = Api::start(move |asked, before| match (asked.is_watch(), before) {
        (false, 0) => vec![list(10, &[service("web", 5, 30080)])],
        // After this it lists again, or it does not.
        (true, 1) if at_list => {
            vec![Does::Begins, Does::Waits(SETTLED), event("ERROR", &status(410, "")), Does::Ends]
        }
        (true, 1) => vec![Does::Begins, Does::Waits(SETTLED), Does::Ends],
        (is_watch, _) if is_watch != at_list && !became_well.load(Ordering::SeqCst) => instead.clone(),
        (false, _) => vec![list(30, &[service("web", 5, 30080)])],
        (true, _) => vec![Does::Begins, Does::Stays],
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "shop/web 30080/tcp", "{shown}");
    let away = source.says().await;
    assert!(away.starts_with("away: ") && away.contains(expected), "{shown}: {away}");
    let before = api.asked().len();
    let more = timeout(Duration::from_secs(1), source.messages.recv()).await;
    assert!(more.is_err(), "{shown}: it says {more:?}");
    // Pauses of 20, 40, 80, 160, 320, 320, 320, … ms: so many rounds there are in a second.
    let asked = api.asked().len() - before;
    assert!(asked <= 8 * per_round, "{shown}: {asked} requests");
    let asks_again = async {
        while api.asked().len() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), asks_again).await.expect("it asks again");
    is_well.store(true, Ordering::SeqCst);
    assert_eq!(source.says().await, "back", "{shown}");
}

#[tokio::test]
async fn the_pauses_grow_up_to_a_limit_and_begin_anew_when_a_watch_stood() {
    let api = Api::start(|_, before| match before {
        0..=7 | 10.. => vec![Does::Answers(500, status(500, ""))],
        8 => vec![list(10, &[])],
        9 => vec![Does::Begins, Does::Waits(SETTLED), Does::Closes],
    });
    let mut source = Source::start(&api);
    assert!(source.says().await.starts_with("away: answers 500"));
    assert_eq!(source.says().await, "", "the list");
    assert_eq!(source.says().await, "back");
    assert!(source.says().await.starts_with("away: answers 500"));
    source.is_silent(Duration::from_secs(1)).await;
    let asked = api.asked();
    let pauses: Vec<_> = asked.windows(2).map(|two| (two[1].at - two[0].at).as_millis()).collect();
    for (pause, least) in pauses.iter().zip([20, 40, 80, 160, 320, 320, 320, 320]) {
        assert!((least..least + 10_000).contains(pause), "{pauses:?}");
    }
    // Between them: the list and its watch, and how long that stood.
    for (pause, least) in pauses[10..].iter().zip([40, 80, 160]) {
        assert!((least..least + 10_000).contains(pause), "{pauses:?}");
    }
}

#[tokio::test]
async fn an_api_that_was_never_there_is_told_once_and_found_when_it_comes() {
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    let mut source = Source::read(kubeconfig, directory, TIMES);
    let away = source.says().await;
    assert!(away.contains("No such file"), "{away}");
    source.is_silent(Duration::from_millis(500)).await;
    let api = Api::start(|asked, _| match asked.is_watch() {
        false => vec![list(10, &[service("web", 5, 30080)])],
        true => vec![Does::Begins, Does::Stays],
    });
    kubeconfig::write(source.kubeconfig.parent().expect("has one"), &kubeconfig::plain(&api));
    assert_eq!(source.says().await, "shop/web 30080/tcp");
    assert_eq!(source.says().await, "back");
}

#[tokio::test]
async fn what_is_more_than_there_is_room_for_comes_with_the_next_list() {
    let many = |name: &str, number: u16| {
        let ports: Vec<_> = (1..=number).map(|port| json!({"nodePort": port})).collect();
        let mut service = service(name, 5, 1);
        service["spec"]["ports"] = json!(ports);
        service
    };
    let api = Api::start(move |asked, before| match (asked.is_watch(), before) {
        (false, 0) => vec![list(10, &[many("a", 8000), service("b", 5, 30080)])],
        (true, 1) => vec![Does::Begins, event("DELETED", &many("a", 1)), Does::Waits(SETTLED), Does::Ends],
        (false, _) => vec![list(20, &[service("b", 5, 30080)])],
        (true, _) => vec![Does::Begins, Does::Stays],
    });
    let mut source = Source::start(&api);
    assert_eq!(source.says().await, "left out: 0 unfit, 6001 beyond");
    assert_eq!(source.says().await.split(", ").count(), 2000);
    assert_eq!(source.says().await, "left out: 0 unfit, 1 beyond");
    assert_eq!(source.says().await, "");
    assert_eq!(source.says().await, "left out: 0 unfit, 0 beyond");
    assert_eq!(source.says().await, "shop/b 30080/tcp");
}

/// A slow reader stops the source, and the source the API: nothing piles up.
#[tokio::test]
async fn the_source_ends_with_its_receiver_and_its_connection_with_it() {
    let api = Api::start(|asked, _| match asked.is_watch() {
        false => vec![list(10, &[])],
        true => vec![Does::Begins, Does::Stays],
    });
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = kubeconfig::write(directory.path(), &kubeconfig::plain(&api));
    let (sender, mut messages) = mpsc::channel(1);
    let handle = spawn(kubeconfig, TIMES, sender);
    assert!(messages.recv().await.is_some());
    drop(messages);
    let end = Instant::now() + Duration::from_secs(60);
    while !handle.is_finished() {
        assert!(Instant::now() < end, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
