//! Which layer is whose: `containers.json`, `layers.json` and `images.json` of containers/storage, and what podman and CRI-O
//! write into the metadata of a container. Pure.
//!
//! Sources: containers/storage containers.go, layers.go, images.go; podman libpod/storage.go; CRI-O
//! internal/storage/runtime.go.

use std::collections::BTreeMap;
use std::iter::successors;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::checks::images::list::Bounded;
use crate::finding::prefix;

/// Longest of these files, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// Most records in one.
const MAX_RECORDS: usize = 20_000;
/// More layers have no names: a chain of so many is none.
const MAX_CHAIN: usize = 512;

/// A container of a store.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its first name; in a pod that which the pod's specification gives it.
    pub name: Option<String>,
    /// The image that it was made of: its name, else its id.
    pub image: Option<String>,
    /// Its writable layer.
    pub layer: String,
    /// The layers of its image, the one that hides the others first.
    pub below: Arc<[String]>,
    /// The pod in which it is.
    pub pod: Option<String>,
    /// The pod's namespace.
    pub namespace: Option<String>,
}

/// Whose a layer is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Owner {
    /// A container writes to it.
    Container(Container),
    /// It is of an image, with these names.
    Image(Vec<String>),
    /// It is being made or removed.
    Unfinished,
}

#[derive(Deserialize)]
struct ContainerRecord {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    layer: Option<String>,
    #[serde(default)]
    metadata: Option<String>,
}

/// What podman and CRI-O write of a container; the latter all but the first one.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Metadata {
    image_name: Option<String>,
    pod_name: Option<String>,
    pod_id: Option<String>,
    metadata_name: Option<String>,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct LayerRecord {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    flags: Option<Flags>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Flags {
    incomplete: bool,
}

#[derive(Deserialize)]
struct ImageRecord {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: Option<String>,
}

/// The owners of all layers of a store, by the layers' ids. Of each kind there may be several files; those that are not there are
/// left out.
///
/// # Errors
/// Which kind of file is no such JSON, and where.
pub fn owners(
    containers: &[Vec<u8>],
    layers: &[Vec<u8>],
    images: &[Vec<u8>],
) -> Result<BTreeMap<String, Owner>, String> {
    let mut layers: Vec<LayerRecord> = parse("layers.json", layers)?;
    layers.retain(|layer| is_id(&layer.id));
    let images: Vec<ImageRecord> = parse("images.json", images)?;
    let mut containers = containers_of(parse("containers.json", containers)?);
    let parents: BTreeMap<&str, &str> =
        layers.iter().filter_map(|layer| Some((layer.id.as_str(), layer.parent.as_deref()?))).collect();
    for container in &mut containers {
        let below = successors(parents.get(container.layer.as_str()), |layer| parents.get(*layer));
        container.below = below.take(MAX_CHAIN).filter(|layer| is_id(layer)).map(ToString::to_string).collect();
    }
    let mut names: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for image in &images {
        let name = image.names.iter().flatten().next().unwrap_or(&image.id);
        let mut layer = image.layer.as_deref().filter(|layer| !layer.is_empty());
        for _ in 0..MAX_CHAIN {
            let Some(id) = layer else { break };
            let of_layer = names.entry(id).or_default();
            if of_layer.len() < MAX_IMAGES {
                of_layer.push(prefix(name, MAX_NAME).to_owned());
            }
            layer = parents.get(id).copied().filter(|layer| !layer.is_empty());
        }
    }
    let owner = |layer: &LayerRecord| {
        let is_unfinished = layer.flags.as_ref().is_some_and(|flags| flags.incomplete);
        let names = || names.get(layer.id.as_str()).cloned().unwrap_or_default();
        (layer.id.clone(), if is_unfinished { Owner::Unfinished } else { Owner::Image(names()) })
    };
    let mut owners: BTreeMap<String, Owner> = layers.iter().map(owner).collect();
    for container in containers {
        match owners.get(&container.layer) {
            Some(Owner::Unfinished) => {}
            // The two files are not written at the same time.
            _ => drop(owners.insert(container.layer.clone(), Owner::Container(container))),
        }
    }
    Ok(owners)
}

/// So many images of a layer are named.
const MAX_IMAGES: usize = 4;

/// Whether it is an id, and so a name in a directory: the tools make 64 hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whoever keeps a store writes these files: names are cut.
const MAX_NAME: usize = 256;

fn parse<T: for<'de> Deserialize<'de>>(name: &str, files: &[Vec<u8>]) -> Result<Vec<T>, String> {
    let mut all = Vec::new();
    for bytes in files {
        let bounded = Bounded { most: MAX_RECORDS, of: "records", take: |_: &T| true, item: PhantomData };
        let mut text = serde_json::Deserializer::from_slice(bytes);
        let records = text.deserialize_any(bounded).and_then(|records| text.end().map(|()| records));
        all.extend(records.map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(all)
}

fn containers_of(records: Vec<ContainerRecord>) -> Vec<Container> {
    let records: Vec<_> = records
        .into_iter()
        .map(|record| {
            let metadata: Metadata =
                record.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            (record, metadata)
        })
        .collect();
    let some = |text: &Option<String>| {
        text.as_deref().filter(|text| !text.is_empty()).map(|text| prefix(text, MAX_NAME).to_owned())
    };
    // Only the sandbox knows what Kubernetes calls the pod.
    let sandboxes: BTreeMap<&str, &Metadata> =
        records.iter().map(|(record, metadata)| (record.id.as_str(), metadata)).collect();
    records
        .iter()
        .filter_map(|(record, metadata)| {
            let sandbox = metadata.pod_id.as_deref().and_then(|pod| sandboxes.get(pod).copied());
            let first = some(&record.names.iter().flatten().next().cloned());
            if !is_id(&record.id) || !record.layer.as_deref().is_some_and(is_id) {
                return None;
            }
            Some(Container {
                id: record.id.clone(),
                name: some(&metadata.metadata_name).filter(|_| metadata.pod_id.is_some()).or(first),
                image: some(&metadata.image_name).or_else(|| some(&record.image)),
                layer: some(&record.layer)?,
                pod: sandbox.and_then(|sandbox| some(&sandbox.metadata_name)).or_else(|| some(&metadata.pod_name)),
                namespace: sandbox.and_then(|sandbox| some(&sandbox.namespace)),
                below: Arc::default(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text in which ids are short: `#1` is the first one.
    fn with_ids(text: &str) -> Vec<u8> {
        let mut parts = text.split('#');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + &id(&part[..1]) + &part[1..]).into_bytes()
    }

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    #[test]
    fn layers_are_of_containers_of_images_or_being_made() {
        let layers = with_ids(
            r##"[{"id":"#1","created":"2026"},{"id":"#2","parent":"#1","flags":{}},{"id":"#3","parent":"#2"},
            {"id":"#4","parent":"#2","flags":{"incomplete":true}},{"id":"#5","flags":{"incomplete":true}},{"id":"../../etc"}]"##,
        );
        let images =
            with_ids(r##"[{"id":"i1","names":["registry.local/web:1","x"],"layer":"#2"},{"id":"i2","layer":"#1"}]"##);
        let containers = with_ids(
            r##"[{"id":"#a","names":["web"],"image":"i1","layer":"#3",
            "metadata":"{\"image-name\":\"registry.local/web:1\",\"image-id\":\"i1\",\"name\":\"web\",\"created-at\":1}"},
            {"id":"#b","names":["old"],"image":"i1","layer":"#5"},{"id":"#c","names":null},{"id":"#d","layer":"../x"}]"##,
        );
        let owners = owners(&[containers], &[layers, b"[]".to_vec()], &[images]).expect("valid");
        let web = Container {
            id: id("a"),
            name: Some("web".into()),
            image: Some("registry.local/web:1".into()),
            layer: id("3"),
            below: [id("2"), id("1")].into(),
            ..Container::default()
        };
        let expected = [
            ("1", Owner::Image(vec!["registry.local/web:1".into(), "i2".into()])),
            ("2", Owner::Image(vec!["registry.local/web:1".into()])),
            ("3", Owner::Container(web)),
            ("4", Owner::Unfinished),
            ("5", Owner::Unfinished),
        ];
        assert_eq!(owners, expected.map(|(layer, owner)| (id(layer), owner)).into());
    }

    #[test]
    fn a_container_of_a_pod_has_the_names_that_kubernetes_gives() {
        let containers = with_ids(
            r##"[{"id":"#b","names":["k8s_POD_nginx_default_u_0","k8s_nginx_default_u_0"],"layer":"#1","metadata":
             "{\"pod-name\":\"k8s_nginx_default_u_0\",\"pod-id\":\"#b\",\"metadata-name\":\"nginx\",\"namespace\":\"default\",\"pod\":true}"},
            {"id":"#c","names":["k8s_web_nginx_default_u_0"],"layer":"#2","metadata":
             "{\"pod-name\":\"k8s_nginx_default_u_0\",\"pod-id\":\"#b\",\"image-name\":\"i\",\"metadata-name\":\"web\"}"}]"##,
        );
        let owners = owners(&[containers], &[], &[]).expect("valid");
        let Some(Owner::Container(container)) = owners.get(&id("2")) else { panic!("{owners:?}") };
        let names = [&container.name, &container.pod, &container.namespace, &container.image];
        assert_eq!(names.map(|name| name.as_deref().expect("there")), ["web", "nginx", "default", "i"]);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_name() {
        let refused = owners(&[], &[b"{}".to_vec()], &[]).expect_err("refused");
        assert!(refused.starts_with("layers.json: "), "{refused}");
        assert!(owners(&[b"null".to_vec()], &[], &[]).expect("valid").is_empty(), "what Go writes for nothing");
    }
}
