//! Judges what was seen in containers. Pure.

use std::path::PathBuf;
use std::time::SystemTime;

use super::change::What;
use super::class::Class;
use super::fields;
use super::gather::{Names, Thing, Told};
use super::ids;
use super::life::Life;
use super::records::{Container, Owner};
use crate::checks::images::fields as of_image;
use crate::finding::{Fields, Finding, Id, Kind};
use crate::watch::tree::Moment;

/// So many paths are told in a sentence and in fields.
const MAX_TOLD: usize = 8;

/// What the source saw in one store.
#[derive(Debug)]
pub struct Observation {
    /// Where the store is.
    pub store: PathBuf,
    /// What changed in its layers.
    pub changes: Vec<Changed>,
    /// Which containers started and stopped.
    pub lived: Vec<Lived>,
    /// What is told with this, and was before.
    pub complete: Complete,
}

/// Up to which moments all is told of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// Before this one, of changes in layers.
    pub changes: Moment,
    /// Up to and with this one, of starts and stops, by the times of the files that say so.
    pub lives: Moment,
}

impl Complete {
    /// From nanoseconds since 1970; of starts and stops nothing else may be known.
    pub fn from_nanoseconds(changes: i64, lives: Option<i64>) -> Complete {
        let [changes, lives] = [changes, lives.unwrap_or(changes)].map(Moment::from_nanoseconds);
        Complete { changes, lives }
    }
}

/// What changed in a layer.
#[derive(Clone, Debug)]
pub struct Changed {
    /// When it was told first.
    pub time: SystemTime,
    /// Whose it is.
    pub layer: Layer,
    /// What was done.
    pub told: Told,
}

/// What happened to a container.
#[derive(Clone, Debug)]
pub struct Lived {
    /// When.
    pub time: SystemTime,
    /// The container's layer.
    pub layer: Layer,
    /// What.
    pub life: Life,
}

/// A layer, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its id in the store.
    pub id: String,
    /// Whose it is; `None`: the store's lists do not have it.
    pub owner: Option<Owner>,
    /// The account whose store it is.
    pub user: String,
    /// Its id.
    pub uid: u32,
    /// The id that the container's first process has on the node.
    pub host_uid: Option<u32>,
}

/// The findings.
pub fn assess(observation: &Observation) -> Vec<Finding<'static>> {
    let changes = observation.changes.iter().map(of_change);
    changes.chain(observation.lived.iter().map(of_life)).collect()
}

/// A container started or stopped.
fn of_life(lived: &Lived) -> Finding<'static> {
    let Lived { time, layer, life } = lived;
    let (subject, whose) = layer.names();
    let mut list = layer.fields();
    let (id, message) = match life {
        Life::Started => {
            let uid = layer.host_uid.unwrap_or(layer.uid);
            (ids::STARTED, format!("{whose} was started, as user id {uid} of the node"))
        }
        Life::Often => (
            ids::RESTARTING,
            format!("{whose} starts and stops so often that only the first times of each minute are told"),
        ),
        Life::Stopped { code, out_of_memory } => {
            // A program can say so, too: it is told what a signal would be.
            let signal = code.filter(|code| (129..=192).contains(code)).map(|code| code - 128);
            let mut message = match (code, signal) {
                (None, _) => format!("{whose} stopped; nobody says with which exit code"),
                (Some(code), None) => format!("{whose} stopped with exit code {code}"),
                (Some(code), Some(signal)) => format!("{whose} stopped with exit code {code}: signal {signal}"),
            };
            let reason = match (out_of_memory, signal) {
                (true, _) => "out-of-memory",
                (false, Some(_)) => "signal",
                (false, None) if code.is_none() => "unknown",
                (false, None) => "exit",
            };
            if *out_of_memory {
                message += ", after the kernel had killed something of it for want of memory";
            }
            list.text(&fields::REASON, reason);
            if let Some(code) = code {
                list.text(&fields::EXIT_CODE, code.to_string());
            }
            (if *out_of_memory { ids::OUT_OF_MEMORY } else { ids::STOPPED }, message)
        }
    };
    Finding { time: *time, id, kind: Kind::Event, subject: subject.into(), message: message.into(), fields: list }
}

/// Something changed.
fn of_change(changed: &Changed) -> Finding<'static> {
    let Changed { time, layer, told } = changed;
    let (subject, whose) = layer.names();
    let (paths, sentence) = paths(&told.names);
    let of = if told.directory.is_none() { ", in further directories" } else { "" };
    let message = format!("{whose}: {} {sentence}{of}", in_words(told));
    let mut list = layer.fields();
    list.text(&fields::CHANGE, told.key.what.as_str());
    list.list(&fields::PATHS, paths.into_iter().map(Into::into).collect());
    list.number(&fields::COUNT, told.names.count);
    Finding {
        time: *time,
        id: id(layer, told.key.class),
        kind: Kind::Event,
        subject: subject.into(),
        message: message.into(),
        fields: list,
    }
}

fn id(layer: &Layer, class: Class) -> Id {
    match (&layer.owner, class) {
        (Some(Owner::Image(_)), _) => ids::IMAGE_LAYER_CHANGED,
        (_, Class::Setuid) => ids::SETUID_FILE,
        (_, Class::Capability) => ids::FILE_CAPABILITY,
        (_, Class::Binary) => ids::BINARY_CHANGED,
        (_, Class::Settings) => ids::SETTINGS_CHANGED,
        (_, Class::Other) => ids::FILE_CHANGED,
    }
}

fn in_words(told: &Told) -> &'static str {
    match (told.key.class, told.key.what) {
        (Class::Setuid, What::Attributes) => "setuid, and changed in attributes:",
        (Class::Setuid, _) => "setuid, and new or changed:",
        (Class::Capability, _) => "with capabilities, and new or changed:",
        (_, What::Attributes) => "attributes changed of",
        (_, What::Changed) => "changed, as a look found:",
        (_, What::Created) if told.key.thing == Thing::Directory => "created directory",
        (_, What::Created) => "created",
        (_, What::Written) => "written",
        (_, What::Replaced) => "moved to its place:",
        (_, What::Removed) => "removed",
        (_, What::Moved) => "moved away:",
    }
}

/// The first paths, and a sentence of them.
fn paths(names: &Names) -> (Vec<String>, String) {
    let shown: Vec<_> = names.first.iter().take(MAX_TOLD).map(|path| format!("/{}", shown(path))).collect();
    let more = names.count.saturating_sub(shown.len() as u64);
    let mut sentence = shown.join(", ");
    if more > 0 {
        sentence += &format!(" and {more} more");
    }
    (shown, sentence)
}

/// A path as text: bytes that are none are written as `\xHH`.
pub fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

impl Layer {
    /// What a finding says of it.
    fn fields(&self) -> Fields<'static> {
        let mut list = Fields::default();
        if let Some(Owner::Container(container)) = &self.owner {
            let Container { id, image, pod, namespace, .. } = container.clone();
            list.text(&fields::CONTAINER, self.names().0);
            list.text(&fields::CONTAINER_ID, id);
            list.text(&of_image::IMAGE, image.unwrap_or_default());
            list.text(&fields::POD, pod.unwrap_or_default());
            list.text(&fields::NAMESPACE, namespace.unwrap_or_default());
        }
        if let Some(Owner::Image(images)) = &self.owner {
            list.list(&of_image::IMAGE, images.iter().map(|image| image.clone().into()).collect());
        }
        list.text(&of_image::USER, self.user.clone());
        list.number(&of_image::HOST_UID, self.host_uid.unwrap_or(self.uid).into());
        list.text(&fields::LAYER, self.id.clone());
        list
    }

    /// What it is called, and in a sentence whose it is.
    fn names(&self) -> (String, String) {
        let user = &self.user;
        match &self.owner {
            Some(Owner::Container(container)) => {
                let name = container.name.clone().unwrap_or_else(|| container.id.clone());
                let pod = match (&container.namespace, &container.pod) {
                    (Some(namespace), Some(pod)) => format!(" of pod {namespace}/{pod}"),
                    (None, Some(pod)) => format!(" of pod {pod}"),
                    _ => String::new(),
                };
                let image = container.image.as_ref().map(|image| format!(", image {image}")).unwrap_or_default();
                let whose = format!("container {name}{pod} (user {user}{image})");
                (name, whose)
            }
            Some(Owner::Image(images)) => {
                let name = images.first().cloned().unwrap_or_else(|| self.id.clone());
                let whose = format!("a layer of image {name} (user {user}) is not what it was");
                (name, whose)
            }
            Some(Owner::Unfinished) | None => {
                (self.id.clone(), format!("layer {} of user {user}, which is of no container or image", self.id))
            }
        }
    }
}
