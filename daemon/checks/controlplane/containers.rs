//! Which container is which part: what CRI-O writes of its containers into the store (containers/storage containers.go; CRI-O
//! internal/storage/runtime.go), and of a pod into its `config.json` (CRI-O server/sandbox_run_linux.go).
//!
//! The records are u7s-admin's, and not of the pods: a pod cannot say here that it is another one. But whoever may make
//! pods in kube-system may give them any name. The kubelet says of each pod where it has it from
//! (`kubernetes.io/config.source`): a static one is of a file of this node.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Deserializer as Json;

use super::seen::Part;
use crate::checks::images::list::Bounded;
use crate::watch::open::open_regular;

/// The lists of containers in a store; CRI-O writes into the second one.
const LISTS: [&str; 2] = ["overlay-containers/containers.json", "overlay-containers/volatile-containers.json"];
/// Longest of these files, in bytes.
const MAX_LIST: u64 = 16 << 20;
/// Longest `config.json`, in bytes.
const MAX_CONFIG: u64 = 4 << 20;
/// Most records in a list.
const MAX_RECORDS: usize = 20_000;
/// Where the parts are that are containers.
const NAMESPACE: &str = "kube-system";
/// How the kubelet calls a file of the node as the source of a pod (kubernetes pkg/kubelet/types/pod_update.go).
const FILE: &str = "file";

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The pod's sandbox: likewise.
    pub pod: String,
    /// What part it says to be: by its namespace and name.
    pub part: Option<Part>,
}

#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    metadata: Option<String>,
}

/// What CRI-O writes of a container; only of a sandbox it says the namespace.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Metadata {
    pod_id: Option<String>,
    metadata_name: Option<String>,
    namespace: Option<String>,
}

/// Reads lists of containers: those of pods, without the pods' own sandboxes.
///
/// # Errors
/// Where one is no such list.
pub fn parse(lists: &[Vec<u8>]) -> Result<Vec<Container>, String> {
    let mut records: Vec<(String, Metadata)> = Vec::new();
    for bytes in lists {
        let bounded = Bounded { most: MAX_RECORDS, of: "records", take: |_: &Record| true, item: PhantomData };
        let mut text = Json::from_slice(bytes);
        let list = serde::Deserializer::deserialize_any(&mut text, bounded).map_err(|error| error.to_string())?;
        records.extend(list.into_iter().filter_map(|record| {
            let metadata = serde_json::from_str(record.metadata.as_deref()?).ok()?;
            is_id(&record.id).then_some((record.id, metadata))
        }));
    }
    let sandboxes: BTreeMap<&str, &Metadata> = records.iter().map(|(id, metadata)| (id.as_str(), metadata)).collect();
    let container = |(id, metadata): &(String, Metadata)| {
        let pod = metadata.pod_id.as_deref().filter(|pod| is_id(pod) && pod != id)?;
        let is_system = sandboxes.get(pod).is_some_and(|pod| pod.namespace.as_deref() == Some(NAMESPACE));
        let is_it = |part: &Part| part.is_container() && metadata.metadata_name.as_deref() == Some(part.name());
        let part = Part::ALL.into_iter().find(is_it).filter(|_| is_system);
        Some(Container { id: id.clone(), pod: pod.to_owned(), part })
    };
    Ok(records.iter().filter_map(container).collect())
}

/// Whether a pod's `config.json` says that it is of a file of the node; `None` if it says nothing of that.
pub fn is_of_file(config: &[u8]) -> Option<bool> {
    #[derive(Deserialize)]
    struct Config {
        annotations: Annotations,
    }
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(rename = "kubernetes.io/config.source")]
        source: Option<String>,
    }
    let config: Config = serde_json::from_slice(config).ok()?;
    Some(config.annotations.source? == FILE)
}

/// The container in whose control group a process is, by the text of its `/proc/PID/cgroup` (cgroups(7)): CRI-O calls the
/// group `crio-ID`, with systemd `crio-ID.scope`. The outermost counts: whoever is in a container may make groups below.
pub fn container_of(cgroup: &str) -> Option<&str> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).find_map(|name| {
        let id = name.strip_prefix("crio-")?;
        let id = id.strip_suffix(".scope").unwrap_or(id);
        is_id(id).then_some(id)
    })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Tells the states of a file apart: device, inode, size, time of the last change.
type Stamp = (u64, u64, u64, i64, i64);

/// The records of a store, read again when they changed.
#[derive(Debug)]
pub struct Records {
    store: PathBuf,
    stamps: Option<[Option<Stamp>; 2]>,
    containers: Vec<Container>,
    /// Whether pods are of files of the node, by their sandboxes, as far as they were asked for.
    sources: BTreeMap<String, Option<bool>>,
}

impl Records {
    /// Of the store there; nothing is read yet.
    pub fn new(store: PathBuf) -> Records {
        Records { store, stamps: None, containers: Vec::new(), sources: BTreeMap::new() }
    }

    /// The containers that are recorded now. A part that is to be static, and is of no file, is none.
    ///
    /// # Errors
    /// The lists cannot be read.
    pub fn containers(&mut self) -> Result<&[Container], String> {
        let told = |name: &str, error: String| format!("{}: {error}", self.store.join(name).display());
        let mut stamps = [None; 2];
        for (stamp, name) in stamps.iter_mut().zip(LISTS) {
            *stamp = stamp_of(&self.store.join(name)).map_err(|error| told(name, error.to_string()))?;
        }
        if stamps == [None; 2] {
            return Err(told(LISTS[1], io::Error::from(io::ErrorKind::NotFound).to_string()));
        }
        if self.stamps != Some(stamps) {
            let mut lists = Vec::new();
            for name in LISTS.iter().zip(stamps).filter_map(|(name, stamp)| stamp.map(|_| name)) {
                lists.push(read(&self.store.join(name), MAX_LIST).map_err(|error| told(name, error.to_string()))?);
            }
            let mut containers = parse(&lists).map_err(|error| told("overlay-containers", error))?;
            self.sources.retain(|pod, _| containers.iter().any(|container| container.pod == *pod));
            for container in &mut containers {
                if container.part.is_some_and(Part::is_static) && self.is_of_file(&container.pod) == Some(false) {
                    container.part = None;
                }
            }
            (self.containers, self.stamps) = (containers, Some(stamps));
        }
        Ok(&self.containers)
    }

    fn is_of_file(&mut self, pod: &str) -> Option<bool> {
        if let Some(known) = self.sources.get(pod) {
            return *known;
        }
        let path = self.store.join("overlay-containers").join(pod).join("userdata/config.json");
        let source = read(&path, MAX_CONFIG).ok().and_then(|config| is_of_file(&config));
        // It may be written yet.
        if source.is_some() {
            self.sources.insert(pod.to_owned(), source);
        }
        source
    }
}

fn stamp_of(path: &Path) -> io::Result<Option<Stamp>> {
    match path.symlink_metadata() {
        Ok(file) => Ok(Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("longer than {} MiB", most >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An id of one digit.
    pub(in super::super) fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    /// The record of a sandbox.
    pub(in super::super) fn sandbox(digit: char, namespace: &str, pod: &str) -> String {
        let id = id(digit);
        let metadata =
            serde_json::json!({ "pod-name": "k8s", "pod-id": id, "metadata-name": pod, "namespace": namespace });
        serde_json::json!({ "id": id, "names": ["x"], "metadata": metadata.to_string() }).to_string()
    }

    /// The record of a container.
    pub(in super::super) fn container(digit: char, pod: char, name: &str) -> String {
        let metadata = serde_json::json!({ "pod-id": id(pod), "metadata-name": name, "image-name": "i" });
        serde_json::json!({ "id": id(digit), "layer": "x", "metadata": metadata.to_string() }).to_string()
    }

    /// A list of records.
    pub(in super::super) fn list(records: &[String]) -> Vec<u8> {
        format!("[{}]", records.join(",")).into_bytes()
    }

    #[test]
    fn a_part_is_a_container_of_its_name_in_kube_system_and_nowhere_else() {
        let records = [
            sandbox('a', "kube-system", "etcd-node"),
            container('1', 'a', "etcd"),
            container('2', 'a', "sidecar"),
            sandbox('b', "default", "etcd-node"),
            container('3', 'b', "etcd"),
            container('4', 'c', "kubelet"),
            sandbox('d', "kube-system", "x"),
            container('5', 'd', "kubelet"),
            "{\"id\":\"x\",\"metadata\":\"{}\"}".to_owned(),
            format!("{{\"id\":\"{}\",\"metadata\":\"no json\"}}", id('6')),
        ];
        let found = parse(&[list(&records[..3]), list(&records[3..])]).expect("a list");
        let found: Vec<_> = found.iter().map(|found| (&found.id[..1], &found.pod[..1], found.part)).collect();
        let expected =
            [("1", "a", Some(Part::Etcd)), ("2", "a", None), ("3", "b", None), ("4", "c", None), ("5", "d", None)];
        assert_eq!(found, expected);
        assert_eq!(parse(&[b"null".to_vec()]), Ok(Vec::new()));
        assert!(parse(&[b"{}".to_vec()]).is_err());
    }

    #[test]
    fn the_container_of_a_process_is_the_outermost_group_that_cri_o_named() {
        let (one, two) = (id('1'), id('2'));
        let base = "user.slice/user-1.slice/user@1.service/app.slice/rootlesskit.service";
        for (text, expected) in [
            (format!("0::/{base}/kubepods/burstable/podx/crio-{one}\n"), Some(&one)),
            (format!("0::/{base}/crio-{one}.scope\n"), Some(&one)),
            (format!("12:pids:/x\n1:name=systemd:/{base}/crio-{one}/crio-{two}\n0::/\n"), Some(&one)),
            (format!("0::/{base}/crio-conmon-{one}\n"), None),
            (format!("0::/{base}/crio-{}\n", &one[1..]), None),
            (format!("0::/{base}/rootlesskit_evac\n"), None),
            (format!("crio-{one}\n"), None),
            (String::new(), None),
        ] {
            assert_eq!(container_of(&text), expected.map(String::as_str), "{text}");
        }
    }

    #[test]
    fn a_static_pod_is_of_a_file() {
        let config =
            |source: &str| format!("{{\"annotations\":{{\"a\":\"b\",\"kubernetes.io/config.source\":\"{source}\"}}}}");
        assert_eq!(is_of_file(config("file").as_bytes()), Some(true));
        assert_eq!(is_of_file(config("api").as_bytes()), Some(false));
        assert_eq!(is_of_file(b"{\"annotations\":{}}"), None);
        assert_eq!(is_of_file(b"{"), None);
    }

    #[test]
    fn records_are_read_again_when_they_change_and_a_pod_of_the_apiserver_is_no_static_one() {
        let store = tempfile::tempdir().expect("a directory");
        let mut records = Records::new(store.path().to_path_buf());
        assert!(records.containers().is_err_and(|why| why.contains("volatile-containers.json")), "nothing is known");
        let write = |name: &str, bytes: &[u8]| {
            let path = store.path().join("overlay-containers").join(name);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
            std::fs::write(path, bytes).expect("written");
        };
        let apiserver = [sandbox('a', "kube-system", "kube-apiserver-n"), container('1', 'a', "kube-apiserver")];
        write("volatile-containers.json", &list(&apiserver));
        let parts = |records: &mut Records| {
            records.containers().expect("read").iter().map(|container| container.part).collect::<Vec<_>>()
        };
        assert_eq!(parts(&mut records), [Some(Part::KubeApiserver)], "of its source nobody says anything");
        let forged = [sandbox('b', "kube-system", "kube-apiserver-x"), container('2', 'b', "kube-apiserver")];
        let config = b"{\"annotations\":{\"kubernetes.io/config.source\":\"api\"}}";
        write(&format!("{}/userdata/config.json", id('b')), config);
        write("volatile-containers.json", &list(&[apiserver, forged].concat()));
        assert_eq!(parts(&mut records), [Some(Part::KubeApiserver), None]);
        write("volatile-containers.json", b"x");
        assert!(records.containers().is_err());
    }
}
