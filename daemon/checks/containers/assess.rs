//! Judges what was seen in containers. Pure.

use std::path::PathBuf;
use std::time::SystemTime;

use super::change::What;
use super::class::Class;
use super::fields;
use super::gather::{Names, Told};
use super::ids;
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
    /// All that happened before this moment is told with this.
    pub complete: Moment,
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
    observation.changes.iter().map(|changed| finding(changed)).collect()
}

fn finding(changed: &Changed) -> Finding<'static> {
    let Changed { time, layer, told } = changed;
    let (subject, whose) = layer.names();
    let (paths, sentence) = paths(&told.names);
    let of = if told.directory.is_none() { ", in further directories" } else { "" };
    let message = format!("{whose}: {} {sentence}{of}", in_words(told));
    let mut list = Fields::default();
    if let Some(Owner::Container(Container { id, image, pod, namespace, .. })) = &layer.owner {
        list.text(&fields::CONTAINER, subject.clone());
        list.text(&fields::CONTAINER_ID, id.clone());
        list.text(&of_image::IMAGE, image.clone().unwrap_or_default());
        list.text(&fields::POD, pod.clone().unwrap_or_default());
        list.text(&fields::NAMESPACE, namespace.clone().unwrap_or_default());
    }
    if let Some(Owner::Image(images)) = &layer.owner {
        list.list(&of_image::IMAGE, images.iter().map(|image| image.clone().into()).collect());
    }
    list.text(&of_image::USER, layer.user.clone());
    list.number(&of_image::HOST_UID, layer.host_uid.unwrap_or(layer.uid).into());
    list.text(&fields::LAYER, layer.id.clone());
    list.text(&fields::CHANGE, told.what.as_str());
    list.list(&fields::PATHS, paths.into_iter().map(Into::into).collect());
    list.number(&fields::COUNT, told.names.count);
    Finding {
        time: *time,
        id: id(layer, told.class),
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
    match (told.class, told.what) {
        (Class::Setuid, What::Attributes) => "setuid, and changed in attributes:",
        (Class::Setuid, _) => "setuid, and new or changed:",
        (Class::Capability, _) => "with capabilities, and new or changed:",
        (_, What::Attributes) => "attributes changed of",
        (_, What::Changed) => "changed, as a look found:",
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
