//! What the node is like: the kernel, what systemd and the kernel give to u7s-admin, what its manifests make of it.
//!
//! The limits of inotify(7) are in `/proc/sys`, which a unit with `ProcSubset=pid` has not. Then they are read from the
//! credentials that the unit was given (systemd.exec(5): `LoadCredential=max_user_watches:/proc/sys/fs/inotify/max_user_watches`,
//! likewise `max_user_instances`): they are those of the unit's start.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::seen::{Facts, Part, Role};
use super::settings::RoleSetting;
use crate::service::credential;

/// More bytes of one of these files are not read; of passwd(5), the same.
const MAX_BYTES: u64 = 1 << 20;
/// Where kubeadm puts the files of static pods (the kubelet's `staticPodPath`).
pub const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// Where systemd-logind notes whose manager stays (loginctl(1), `enable-linger`).
const LINGER: &str = "/var/lib/systemd/linger";
/// Where CRI-O's store is in the home, as podsec's crio.conf has it.
const STORE: &str = ".local/share/usernetes/containers/storage";

/// The account u7s-admin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Where CRI-O keeps its containers, in the tree.
    pub store: PathBuf,
}

/// Where the facts of a node are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The tree; `None`: the node's own.
    root: Option<PathBuf>,
    /// u7s-admin's.
    uid: u32,
}

impl Places {
    /// Those of a tree, or the node's own.
    pub fn new(root: Option<PathBuf>, uid: u32) -> Places {
        Places { root, uid }
    }

    /// Where an absolute path of the tree lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.as_ref().map_or_else(|| path.into(), |root| root.join(path.trim_start_matches('/')))
    }

    /// Of whom the uid is, if `/etc/passwd` says so.
    pub fn account(&self) -> Option<Account> {
        let text = self.read("/etc/passwd")?;
        text.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let [name, _, uid, _, _, home, _] = fields[..] else { return None };
            let is_it = uid.parse() == Ok(self.uid) && !name.is_empty() && !name.contains('/') && home.starts_with('/');
            is_it.then(|| Account { name: name.to_owned(), store: self.path(home).join(STORE) })
        })
    }

    /// What the node is.
    ///
    /// # Errors
    /// Those of stat(2): whether there are manifests is not known.
    pub fn role(&self, set: RoleSetting) -> io::Result<Role> {
        match set {
            RoleSetting::ControlPlane => return Ok(Role::ControlPlane),
            RoleSetting::Worker => return Ok(Role::Worker),
            RoleSetting::Auto => {}
        }
        let names = |part: Part| ["yaml", "yml", "json"].map(|suffix| format!("{MANIFESTS}/{}.{suffix}", part.name()));
        let manifests = Part::ALL.into_iter().filter(|part| part.is_static()).flat_map(names);
        let mut error = None;
        for manifest in manifests {
            match self.path(&manifest).try_exists() {
                Ok(true) => return Ok(Role::ControlPlane),
                Ok(false) => {}
                Err(why) => error = Some(why),
            }
        }
        error.map_or(Ok(Role::Worker), Err)
    }

    /// What it is like.
    pub fn facts(&self) -> Facts {
        Facts {
            kernel: self.kernel(),
            controllers: self.controllers(),
            lingers: self.lingers(),
            watches: self.limit("max_user_watches"),
            instances: self.limit("max_user_instances"),
        }
    }

    fn kernel(&self) -> Option<String> {
        match &self.root {
            Some(_) => self.read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            None => rustix::system::uname().release().to_str().ok().map(ToOwned::to_owned),
        }
    }

    /// Those of version 2 of control groups (<https://docs.kernel.org/admin-guide/cgroup-v2.html>); `None` where the node has
    /// version 1, or nobody is logged in.
    fn controllers(&self) -> Option<Vec<String>> {
        let uid = self.uid;
        let group = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
        Some(self.read(&group)?.split_ascii_whitespace().map(ToOwned::to_owned).collect())
    }

    fn lingers(&self) -> Option<bool> {
        let name = self.account()?.name;
        // Nobody lingers where there is no such directory yet; it is of no use to look where there is no systemd.
        let is_there = self.path(LINGER).parent().is_some_and(Path::is_dir);
        is_there.then(|| self.path(LINGER).join(name).try_exists().ok())?
    }

    fn limit(&self, name: &str) -> Option<u64> {
        let text = self.read(&format!("/proc/sys/fs/inotify/{name}"));
        let own = self.root.is_none();
        text.or_else(|| credential(name).filter(|_| own))?.trim().parse().ok()
    }

    fn read(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        fs::File::open(self.path(path)).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let tree = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        let places = Places::new(Some(tree.path().to_path_buf()), 495);
        (tree, places)
    }

    #[test]
    fn the_role_is_what_the_manifests_say_unless_it_is_set() {
        let manifests = "etc/kubernetes/manifests";
        for (name, set, expected) in [
            ("kube-apiserver.yaml", RoleSetting::Auto, Role::ControlPlane),
            ("etcd.yaml", RoleSetting::Auto, Role::ControlPlane),
            ("kube-flannel.yml", RoleSetting::Auto, Role::Worker),
            ("kube-apiserver.yaml.rpmnew", RoleSetting::Auto, Role::Worker),
            ("kube-apiserver.yaml", RoleSetting::Worker, Role::Worker),
            ("x", RoleSetting::ControlPlane, Role::ControlPlane),
        ] {
            let (_tree, places) = tree(&[(&format!("{manifests}/{name}"), "")]);
            assert_eq!(places.role(set).expect("seen"), expected, "{name}");
        }
        // A link to itself, as what cannot be looked at.
        let (tree, places) = tree(&[(&format!("{manifests}/x"), "")]);
        let manifest = tree.path().join(manifests).join("etcd.yaml");
        std::os::unix::fs::symlink(&manifest, &manifest).expect("linked");
        places.role(RoleSetting::Auto).expect_err("not known");
        assert_eq!(places.role(RoleSetting::Worker).expect("set"), Role::Worker);
        fs::write(tree.path().join(manifests).join("kube-scheduler.yaml"), "").expect("written");
        assert_eq!(places.role(RoleSetting::Auto).expect("one can be seen"), Role::ControlPlane);
    }

    #[test]
    fn facts_are_read_where_they_can_be_seen() {
        let group = "sys/fs/cgroup/user.slice/user-495.slice/user@495.service/cgroup.controllers";
        let passwd = "root:x:0:0::/root:/bin/bash\nbroken\nu7s-admin:x:495:495:a:/var/lib/u7s-admin:/bin/bash\n";
        let (tree, places) = tree(&[
            ("proc/sys/kernel/osrelease", "6.12.8-6.12-alt1\n"),
            (group, "cpuset cpu io memory pids\n"),
            ("etc/passwd", passwd),
            ("var/lib/systemd/linger/u7s-admin", ""),
            ("proc/sys/fs/inotify/max_user_watches", "1048576\n"),
            ("proc/sys/fs/inotify/max_user_instances", "128\n"),
        ]);
        let store = tree.path().join("var/lib/u7s-admin/.local/share/usernetes/containers/storage");
        assert_eq!(places.account(), Some(Account { name: "u7s-admin".into(), store }));
        let expected = Facts {
            kernel: Some("6.12.8-6.12-alt1".into()),
            controllers: Some(["cpuset", "cpu", "io", "memory", "pids"].map(Into::into).into()),
            lingers: Some(true),
            watches: Some(1_048_576),
            instances: Some(128),
        };
        assert_eq!(places.facts(), expected);
        fs::remove_dir_all(tree.path().join("var/lib/systemd/linger")).expect("removed");
        assert_eq!(places.facts().lingers, Some(false));
    }

    #[test]
    fn what_cannot_be_seen_is_unknown() {
        let (_tree, places) = tree(&[("etc/passwd", "alice:x:500:500::/home/alice:/bin/sh\n../x:x:495:1::/:/\n")]);
        assert_eq!(places.facts(), Facts::default());
        let (_tree, places) = tree(&[("proc/sys/fs/inotify/max_user_watches", "many\n")]);
        assert_eq!(places.facts(), Facts::default());
        let own = Places::new(None, 495).facts();
        assert!(own.kernel.is_some_and(|release| release.starts_with(|first: char| first.is_ascii_digit())));
    }
}
