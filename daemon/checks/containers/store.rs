//! Watches the layers of one store.

mod cover;
mod events;
mod handed;
mod telling;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::assess::Observation;
use super::change::{MARKS, Overlay, is_precious};
use super::class::Class;
use super::files::{Files, Lists, Runtime};
use super::layer::{Watched, all};
use super::life::{Counts, Happened, Lives};
use super::neighbours::Neighbour;
use super::pace::Pace;
use super::record::Record;
use super::records::{Container, Owner};
use super::scarcity::{Cover, Member};
use super::source::{Message, Progress, Times};
use super::walks::Walks;
use crate::handover::Handover;
use crate::watch::names::{Added, Names};
use crate::watch::open::Directory;
use crate::watch::tree::{Event, Interest, Moment, News, Root, Scope, Trees};

/// Lists that change so closely are read once.
const BURST: Duration = Duration::from_millis(20);
/// A layer that no list has after this time is of nobody.
const UNLISTED: Duration = Duration::from_secs(5);
/// So many starts and stops wait; the others are still to be read.
const MAX_HAPPENED: usize = 256;
/// The exit code of a container is there for milliseconds only; so often what changes goes first all the same.
const FAIR: u32 = 8;
/// More layers of a store are not watched.
const MAX_LAYERS: usize = 10_000;
/// What was due while podsecd was not running is done so long after its start.
const SETTLED: Duration = Duration::from_secs(30);
/// So many containers are remembered that went.
const MAX_FORMER: usize = 256;
/// So many observations wait before changes are gathered further.
const MAX_WAITING: usize = 4;

use self::cover::SLOW;
use self::events::note;
use self::handed::Former;
pub(super) use self::handed::{Holding, open_lives};

/// How a store is to be watched.
pub(super) struct Task<'t> {
    /// What of a container is of interest.
    pub(super) scope: Scope,
    pub(super) times: Times,
    /// Where it is kept what programs there are.
    pub(super) state: &'t Path,
    /// Who has watches to spare gives them to others.
    pub(super) member: Member,
    /// Who else tells of starts and stops of the same account.
    pub(super) neighbour: Neighbour,
    /// How far it was watched; what changed since then is told.
    pub(super) progress: Arc<Progress>,
    /// What systemd keeps.
    pub(super) handover: &'t Handover,
}

/// A store that is watched.
pub(super) struct Store {
    files: Arc<Files>,
    scope: Arc<Scope>,
    times: Times,
    sender: mpsc::Sender<Message>,
    member: Member,
    neighbour: Neighbour,
    progress: Arc<Progress>,
    names: Names<()>,
    trees: Trees,
    /// What systemd keeps of them.
    holding: Holding,
    /// What was watched by whoever watched before, and is not watched yet.
    handed: Former,
    /// By when all of that was told that had been read, if it was.
    told: Option<Moment>,
    /// When it was opened.
    opened: Instant,
    /// What waited while nobody watched is still to be told.
    is_catching_up: bool,
    layers: BTreeMap<Root, Watched>,
    roots: BTreeMap<String, Root>,
    next: Root,
    owners: BTreeMap<String, Owner>,
    overlay: Overlay,
    /// Layers that no list has, and since when.
    unlisted: BTreeMap<String, Instant>,
    /// Layers of images that were watched, and until when.
    unfinished: BTreeMap<String, Moment>,
    /// When the lists are to be read.
    lists_due: Option<Instant>,
    /// To be sent.
    waiting: Vec<Observation>,
    /// podsecd ends: whose the layers are is not read any more.
    is_ending: bool,
    /// All before this moment was told.
    complete: Moment,
    /// What programs and the like there are.
    record: Record,
    walks: Walks,
    /// Where it is told which containers start and stop.
    lives: Lives,
    /// All that was noted of that up to this moment was told.
    lived: Moment,
    /// The same, as whoever sees it says, whatever the clock says.
    noted: Moment,
    /// More was told than what is up to that moment.
    is_behind: bool,
    /// How many layers are not watched because there are too many.
    unwatched: usize,
    /// How often that was told of each container.
    counts: Counts,
    /// What was told of that.
    happened: Vec<Happened>,
    /// The containers that there are, and the last ones that were, by their ids.
    containers: BTreeMap<String, Container>,
    /// When they were started first.
    first_starts: BTreeMap<String, Moment>,
    /// How those run that were started.
    runtimes: BTreeMap<String, Runtime>,
    /// The ids of those, in the order in which they went.
    former: VecDeque<String>,
    /// What was said last of what is not covered.
    said: Option<Option<String>>,
}

impl Store {
    /// Watches what is there: all that changed since it was watched, or from now on. `None`: nobody wants to know any more.
    ///
    /// # Errors
    /// Those of inotify_init1(2), and of open(2) for the store.
    pub(super) async fn open(
        files: Arc<Files>,
        Task { scope, times, state, member, neighbour, progress, handover }: Task<'_>,
        sender: mpsc::Sender<Message>,
        ends: &mut watch::Receiver<()>,
    ) -> io::Result<Option<Store>> {
        let complete = progress.complete();
        let beginning = Moment::at(SystemTime::now());
        let mut names = Names::new()?;
        let base = tokio::select! {
            base = wait_for_layers(&files, &mut names) => base?,
            _ = ends.changed() => return Ok(None),
        };
        let is_fuse = base.file(Path::new(".has-mount-program")).is_ok_and(|mut file| {
            let mut text = String::new();
            file.read_to_string(&mut text).is_ok_and(|_| text.trim() == "true")
        });
        let interest = Interest {
            marks: MARKS,
            is_first: |name| Class::of(name) != Class::Other,
            is_kept: |name| Class::of(name) == Class::Binary,
            is_precious,
        };
        handed::claim(&files.place.path, handover);
        // Lists that cannot be read are known before what waited is.
        let lists = Arc::clone(&files);
        spawn_blocking(move || lists.lists().map(drop)).await.map_err(io::Error::other)??;
        let overlay = Overlay { is_marked: !files.place.account.is_root(), is_fuse };
        // Whoever else watches it by now has what there is to take over.
        if sender.is_closed() || ends.has_changed().is_err() {
            return Ok(None);
        }
        let (trees, holding, (mut handed, told)) =
            handed::open(base, interest, &files.place.path, (handover, complete))?;
        let changes = complete.map_or(beginning, |complete| complete.changes);
        let record = Record::open(state, &files.place.path, told.map_or(changes, |told| told.max(changes)));
        let (is_catching_up, unfinished) = (trees.is_behind(), std::mem::take(&mut handed.unfinished));
        let next = handed.layers.values().map(|(root, ..)| root.saturating_add(1)).max();
        let next = next.unwrap_or(0).max(trees.next_root());
        let mut store = Store {
            lives: Lives::new(&files, complete.map_or(beginning, |complete| complete.lives), handover),
            lived: complete.map_or(beginning, |complete| complete.lives),
            noted: complete.map_or(beginning, |complete| complete.lives),
            files,
            scope: Arc::new(scope),
            times,
            sender,
            member,
            neighbour,
            progress,
            names,
            trees,
            holding,
            opened: Instant::now(),
            is_catching_up,
            next,
            handed,
            told,
            layers: BTreeMap::new(),
            roots: BTreeMap::new(),
            owners: BTreeMap::new(),
            overlay,
            unlisted: BTreeMap::new(),
            unfinished,
            lists_due: None,
            waiting: Vec::new(),
            is_ending: false,
            complete: changes,
            record,
            walks: Walks::new(),
            unwatched: 0,
            counts: Counts::default(),
            happened: Vec::new(),
            containers: BTreeMap::new(),
            former: VecDeque::new(),
            first_starts: BTreeMap::new(),
            runtimes: BTreeMap::new(),
            is_behind: false,
            said: None,
        };
        let news = complete.map_or(News::Begun(beginning), |complete| News::Since(complete.changes));
        if let Err(error) = store.read_lists(news).await {
            store.end(handover).await;
            return Err(error);
        }
        store.watch_former(news);
        store.lives.open(store.containers.keys(), &mut store.happened).await;
        store.tell_uncovered().await;
        Ok(Some(store))
    }

    /// Watches until nobody wants to know any more, or the store is gone.
    ///
    /// # Errors
    /// Those of read(2) for what changed. What is known by then is left to whoever watches next.
    pub(super) async fn run(&mut self, ends: &mut watch::Receiver<()>, handover: &Handover) -> io::Result<()> {
        let watched = self.watch_all(ends).await;
        self.end(handover).await;
        watched
    }

    async fn watch_all(&mut self, ends: &mut watch::Receiver<()>) -> io::Result<()> {
        let mut rescan = Instant::now() + self.first_rescan();
        let mut turn = 0_u32;
        loop {
            turn = turn.wrapping_add(1);
            let due = Some(rescan).filter(|_| !self.is_catching_up);
            let next = self.next_time().into_iter().chain(due).min().unwrap_or_else(|| Instant::now() + SETTLED);
            let Store {
                trees,
                layers,
                walks,
                record,
                names,
                sender,
                waiting,
                lives,
                happened,
                member,
                complete,
                progress,
                ..
            } = self;
            let since = (trees.drained(), *complete);
            let mut tell = |event: Event<'_>| note(event, layers, (walks, record), since);
            let (mut are_lists_changed, mut others, mut is_end) = (false, None, false);
            tokio::select! {
                biased;
                _ = ends.changed() => is_end = true,
                permit = sender.reserve(), if !waiting.is_empty() => match permit {
                    Ok(permit) => {
                        let observation = waiting.remove(0);
                        progress.note(observation.complete);
                        permit.send(Message::Observed(observation));
                        record.flush();
                    }
                    Err(_) => return Ok(()),
                },
                changed = names.changed() => {
                    let changed = changed?;
                    // Reading them releases them, too.
                    are_lists_changed = changed.lost || !changed.keys.is_empty();
                }
                told = tell_next((lives, happened), (trees, &mut tell), turn.is_multiple_of(FAIR)) => told?,
                said = member.said() => others = Some(said),
                () = sleep_until(next) => {}
                () = sender.closed() => return Ok(()),
            }
            if is_end {
                return Ok(());
            }
            self.note_past();
            if are_lists_changed || !self.walks.vanished.is_empty() {
                self.want_lists(Instant::now() + BURST);
            }
            if let Some(said) = others {
                self.share(said);
            }
            if Instant::now() >= rescan && !self.is_catching_up {
                rescan = Instant::now() + self.times.rescan;
                self.seek();
            }
            if self.lists_due.is_some_and(|due| due <= Instant::now()) {
                self.lists_due = None;
                self.read_lists(News::All).await?;
            }
            self.lives.open(self.containers.keys(), &mut self.happened).await;
            self.flush().await;
            self.mend();
            // Others have their turn.
            tokio::task::yield_now().await;
            self.tell_uncovered().await;
        }
    }

    /// After this all is looked through: a restart does not put that off for ever.
    fn first_rescan(&self) -> Duration {
        let since = Moment::at(SystemTime::now()).since(self.record.sought());
        self.times.rescan.saturating_sub(since).max(SETTLED).min(self.times.rescan)
    }

    /// The lists are to be read by then.
    fn want_lists(&mut self, due: Instant) {
        self.lists_due = Some(self.lists_due.map_or(due, |former| former.min(due)));
    }

    /// When something is to be done though nothing happens.
    fn next_time(&self) -> Option<Instant> {
        let has_room = self.waiting.len() < MAX_WAITING;
        let is_told = |layer: &&Watched| has_room && layer.gathered.is_some() && !self.trees.is_behind();
        let gathered = self.layers.values().filter(is_told).map(|layer| layer.pace.due);
        let lived = (has_room && !self.happened.is_empty()).then(|| Instant::now() + BURST);
        let slow = self.is_catching_up.then_some(self.opened + SLOW).filter(|due| *due > Instant::now());
        gathered.chain(slow).chain(self.lists_due).chain(lived).chain(self.walks.next()).min()
    }

    /// Reads whose the layers are; what of them is not watched yet is, and all in it that is `news` is told.
    async fn read_lists(&mut self, news: News) -> io::Result<()> {
        let files = Arc::clone(&self.files);
        let adder = self.names.adder();
        let read = spawn_blocking(move || (files.watch(&adder), files.lists())).await;
        let (added, lists) = read.map_err(io::Error::other)?;
        if let Ok(added) = added
            && self.names.set(&(), added)
        {
            self.want_lists(Instant::now() + BURST);
        }
        let Lists { owners, unlisted } = lists?;
        self.owners = owners;
        self.remember_containers();
        let now = Instant::now();
        self.unlisted.retain(|layer, _| unlisted.contains(layer));
        for layer in unlisted {
            self.unlisted.entry(layer).or_insert(now);
        }
        if let Some(oldest) = self.unlisted.values().filter(|since| **since + UNLISTED > now).min() {
            self.want_lists(*oldest + UNLISTED);
        }
        self.settle(news);
        Ok(())
    }

    /// Of a container that was removed it may still be told that it stopped.
    fn remember_containers(&mut self) {
        let present: BTreeMap<_, _> = self
            .owners
            .values()
            .filter_map(|owner| if let Owner::Container(container) = owner { Some(container) } else { None })
            .map(|container| (container.id.clone(), container.clone()))
            .collect();
        let gone = self.containers.keys().filter(|id| !present.contains_key(*id) && !self.former.contains(id));
        let gone: Vec<_> = gone.cloned().collect();
        self.former.extend(gone);
        while self.former.len() > MAX_FORMER {
            let oldest = self.former.pop_front();
            if let Some(oldest) = oldest {
                self.containers.remove(&oldest);
                self.runtimes.remove(&oldest);
                self.first_starts.remove(&oldest);
            }
        }
        self.neighbour.note(present.keys().cloned().collect());
        self.containers.extend(present);
        self.lives.look_again(|container| self.containers.contains_key(container));
    }

    /// Watches the layers that there are, and no others.
    fn settle(&mut self, news: News) {
        if self.trees.is_behind() && news == News::All {
            // Of those that went, and before those that came, what waited is told first.
            return;
        }
        let is_unlisted = |layer: &String| self.unlisted.get(layer).is_some_and(|since| since.elapsed() >= UNLISTED);
        let is_there = |layer: &Watched| match self.owners.get(&layer.id) {
            Some(Owner::Unfinished) => false,
            Some(Owner::Image(_)) => layer.is_image,
            Some(Owner::Container(_)) => !layer.is_image,
            None => !layer.is_image && is_unlisted(&layer.id),
        };
        for (root, layer) in &mut self.layers {
            if !layer.is_gone && !is_there(layer) {
                layer.is_gone = true;
                if layer.is_image && self.unfinished.len() < MAX_LAYERS {
                    self.unfinished.insert(layer.id.clone(), self.trees.drained());
                }
                self.trees.remove(*root);
                self.walks.outstanding.remove(root);
                self.roots.remove(&layer.id);
            }
        }
        let listed = self.owners.iter().filter(|(_, owner)| **owner != Owner::Unfinished);
        let listed = listed.map(|(id, owner)| (id.clone(), Some(owner.clone())));
        let unlisted = self.unlisted.keys().filter(|layer| is_unlisted(layer)).map(|layer| (layer.clone(), None));
        let (mut containers, mut images) = (Vec::new(), Vec::new());
        for (id, owner) in listed.chain(unlisted).filter(|(id, _)| !self.roots.contains_key(id)) {
            let is_image = matches!(owner, Some(Owner::Image(_)));
            if is_image { &mut images } else { &mut containers }.push((id, owner));
        }
        let room = MAX_LAYERS.saturating_sub(self.roots.len());
        self.unwatched = (containers.len() + images.len()).saturating_sub(room);
        containers.truncate(room);
        images.truncate(room.saturating_sub(containers.len()));
        // What is written to comes first: there may not be enough watches for all.
        for (id, owner) in containers {
            self.watch(id, owner, false, news);
        }
        for (id, owner) in images {
            self.watch(id, owner, true, news);
        }
        for root in std::mem::take(&mut self.walks.vanished) {
            self.walk(root, News::All);
        }
        for (root, layer) in &mut self.layers {
            if let Some(owner) = self.owners.get(&layer.id).filter(|_| self.roots.get(&layer.id) == Some(root)) {
                layer.owner = Some(owner.clone());
            }
        }
    }

    /// Layers that went while nobody watched are watched as if they were there, until what waited of them is told.
    fn watch_former(&mut self, news: News) {
        if self.trees.is_behind() {
            let room = MAX_LAYERS.saturating_sub(self.roots.len());
            for (id, (_, owner, is_image)) in self.handed.layers.clone().into_iter().take(room) {
                if let Some(Owner::Container(container)) = &owner {
                    self.containers.entry(container.id.clone()).or_insert_with(|| container.clone());
                }
                self.watch(id, owner, is_image, news);
            }
        }
        self.handed.layers.clear();
    }

    /// What waited while nobody watched is told: layers that went meanwhile are gone.
    fn note_past(&mut self) {
        if self.is_catching_up && !self.trees.is_behind() {
            self.is_catching_up = false;
            self.holding.forget_past(&self.trees);
            self.want_lists(Instant::now());
        }
    }

    fn watch(&mut self, id: String, owner: Option<Owner>, is_image: bool, news: News) {
        let scope = if is_image { all() } else { Arc::clone(&self.scope) };
        let path = Watched::path_of(&id);
        let mut root = self.handed.layers.remove(&id).map_or(self.next, |(root, ..)| root);
        self.trees.add(root, &path, Arc::clone(&scope));
        let is_other = |told: Moment| self.trees.made(root).is_some_and(|made| made >= told);
        if is_image && root != self.next && self.told.is_some_and(is_other) {
            // An image was removed, and pulled again: what went is not of this one.
            self.trees.remove(root);
            root = self.next;
            self.trees.add(root, &path, scope);
        }
        self.next = self.next.max(root + 1);
        self.roots.insert(id.clone(), root);
        let mut layer = Watched {
            id,
            owner,
            is_image,
            overlay: self.overlay,
            is_gone: false,
            from: Moment::MIN,
            cover: Cover::All,
            looked: None,
            former: None,
            walked: Moment::MIN,
            gathered: None,
            since: SystemTime::now(),
            pace: Pace::new(Instant::now()),
            uncovered: None,
            pending: None,
            made: BTreeMap::new(),
            permissions: BTreeMap::new(),
        };
        // An image's layer is written before it is listed. Of one that was made while nobody watched nothing is known.
        if is_image {
            let made = self.trees.made(root);
            if news == News::All || made.is_none_or(|made| made >= self.complete) {
                // Nobody can have it written to by saying for a while that it is unfinished.
                let former = self.unfinished.remove(&layer.id);
                let former = former.filter(|former| made.is_none_or(|made| made < *former));
                layer.from = former.unwrap_or(Moment::at(SystemTime::now()));
            } else if made.is_some_and(|made| made >= self.record.sought()) {
                // It was written since all was looked through.
                layer.from = self.complete;
            }
        }
        self.layers.insert(root, layer);
        self.walk(root, news);
    }
}

/// Waits until containers start or stop, or something in them changes.
async fn tell_next(
    (lives, happened): (&mut Lives, &mut Vec<Happened>),
    (trees, tell): (&mut Trees, &mut impl FnMut(Event<'_>)),
    are_changes_first: bool,
) -> io::Result<()> {
    let has_room = happened.len() < MAX_HAPPENED;
    if are_changes_first {
        tokio::select! {
            biased;
            told = trees.tell(tell) => told,
            () = lives.tell(happened), if has_room => Ok(()),
        }
    } else {
        tokio::select! {
            biased;
            () = lives.tell(happened), if has_room => Ok(()),
            told = trees.tell(tell) => told,
        }
    }
}

/// Waits until the store has layers.
async fn wait_for_layers(files: &Arc<Files>, names: &mut Names<()>) -> io::Result<Directory> {
    loop {
        let (reading, adder) = (Arc::clone(files), names.adder());
        let read = spawn_blocking(move || (reading.watch(&adder), reading.layers())).await;
        let (added, layers) = read.map_err(io::Error::other)?;
        let happened = names.set(&(), added.unwrap_or_else(|_| Added::default()));
        match layers? {
            Some(layers) => return Ok(layers),
            None if happened => {}
            None => drop(names.changed().await?),
        }
    }
}
