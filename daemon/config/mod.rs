//! The configuration: what can be set, its defaults, and the types that keep it valid.
//!
//! `load` reads it; `policy/podsecd.toml` shows it to operators, and a test holds that file equal to the defaults here.

mod load;
mod units;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use load::{ConfigError, load};
pub use units::{AbsolutePath, Interval, Period, Recipient, Server, Size};

use crate::checks;
use crate::score::{Level, Levels, Weights};
use crate::watch::follow::Start;

/// podsecd.toml, merged with its drop-ins.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// How long an event counts in its check's metric.
    pub metric_window: Period,
    /// Which weights and metrics have which level.
    pub levels: Levels,
    /// Check `kubeapi`.
    pub kubeapi: Kubeapi,
    /// Check `policy`.
    pub policy: checks::policy::settings::Settings,
    /// Check `containers`.
    pub containers: checks::containers::settings::Settings,
    /// Check `forwards`.
    pub forwards: checks::forwards::settings::Settings,
    /// podsecd-u7s.
    pub u7s: U7s,
    /// Check `controlplane`.
    pub controlplane: checks::controlplane::settings::Settings,
    /// What is watched through inotify(7).
    pub watch: Watch,
    /// Journal entries.
    pub journal: Journal,
    /// forbidden.log.
    pub forbidden_log: ForbiddenLog,
    /// Mail digests.
    pub digest: Digest,
    /// Their delivery.
    pub mail: Mail,
    /// Weight, level, meaning and remedy of every id. From weights.toml, not from podsecd.toml.
    #[serde(skip, default = "Weights::shipped")]
    pub weights: Weights,
}

/// Check `kubeapi`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Kubeapi {
    /// kube-apiserver's `--audit-log-path`.
    pub audit_log: AbsolutePath,
    /// Where to begin when nothing was read before.
    pub start: Start,
    /// Every refusal is Critical, as in podsec.
    pub podsec_levels: bool,
    /// Whether clients reach the apiserver through rootlesskit.
    pub rootlesskit: Rootlesskit,
}

/// Whether clients reach the apiserver through rootlesskit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rootlesskit {
    /// If there is a user u7s-admin.
    Auto,
    /// They do.
    Yes,
    /// They do not.
    No,
}

/// podsecd-u7s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct U7s {
    /// After this it looks at everything again: there are things that nobody tells.
    pub probe: Period,
}

/// What is watched through inotify(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Watch {
    /// After this everything is looked at again, because there are changes that the kernel tells nobody.
    pub rescan: Period,
    /// How long changes of a container are gathered at most, while it goes on changing.
    pub gather: Period,
}

/// Journal entries.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Journal {
    /// What stands before the check's name in SYSLOG_IDENTIFIER.
    pub identifier_prefix: String,
}

/// forbidden.log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ForbiddenLog {
    /// From this size on it is rotated.
    pub max_size: Size,
    /// How many rotated files are kept.
    pub keep: u8,
    /// Lines stay after the digest that holds them was delivered.
    pub keep_delivered: bool,
}

/// Mail digests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Digest {
    /// How long a digest gathers findings.
    pub period: Period,
    /// How long there may be nothing to say before a digest says that all is well.
    pub all_is_well: Interval,
    /// Who gets it: a mail address, or a user of this node.
    pub to: Recipient,
    /// Whom it comes from, likewise.
    pub from: Recipient,
    /// How much may wait in the outbox.
    pub outbox_size: Size,
    /// How long a digest waits there.
    pub outbox_age: Period,
}

/// Delivery of digests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Mail {
    /// The way out.
    pub transport: Transport,
    /// The SMTP server.
    pub server: Server,
    /// Whether the connection to it is encrypted.
    pub tls: Tls,
    /// The user at that server; empty: none. The password is the systemd credential `smtp-password`.
    pub user: String,
    /// The program that takes mail, with sendmail's arguments.
    pub sendmail: AbsolutePath,
    /// The directory of a maildir.
    pub maildir: AbsolutePath,
}

/// How a digest leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// By SMTP (RFC 5321).
    Smtp,
    /// By a program with sendmail's arguments.
    Sendmail,
    /// Into a directory (<https://cr.yp.to/proto/maildir.html>).
    Maildir,
}

/// Whether the connection to the SMTP server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// It is not.
    None,
    /// After STARTTLS (RFC 3207); a server that does not offer it gets nothing.
    Starttls,
    /// From the beginning (RFC 8314).
    Tls,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            metric_window: Period::from_secs(15 * 60),
            levels: Levels::default(),
            kubeapi: Kubeapi::default(),
            policy: checks::policy::settings::Settings::default(),
            containers: checks::containers::settings::Settings::default(),
            forwards: checks::forwards::settings::Settings::default(),
            u7s: U7s::default(),
            controlplane: checks::controlplane::settings::Settings::default(),
            watch: Watch::default(),
            journal: Journal::default(),
            forbidden_log: ForbiddenLog::default(),
            digest: Digest::default(),
            mail: Mail::default(),
            weights: Weights::shipped(),
        }
    }
}

impl Default for Kubeapi {
    fn default() -> Kubeapi {
        Kubeapi {
            audit_log: AbsolutePath::new("/etc/kubernetes/audit/audit.log"),
            start: Start::Oldest,
            podsec_levels: false,
            rootlesskit: Rootlesskit::Auto,
        }
    }
}

impl Default for U7s {
    fn default() -> U7s {
        U7s { probe: Period::from_secs(30) }
    }
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { rescan: Period::from_secs(15 * 60), gather: Period::from_secs(10) }
    }
}

impl Default for Journal {
    fn default() -> Journal {
        Journal { identifier_prefix: "podsec-inotify-check-".into() }
    }
}

impl Default for ForbiddenLog {
    fn default() -> ForbiddenLog {
        ForbiddenLog { max_size: Size::from_mib(64), keep: 4, keep_delivered: false }
    }
}

impl Default for Digest {
    fn default() -> Digest {
        Digest {
            period: Period::from_secs(10 * 60),
            all_is_well: Interval::NEVER,
            to: Recipient::root(),
            from: Recipient::root(),
            outbox_size: Size::from_mib(64),
            outbox_age: Period::from_secs(14 * 24 * 3600),
        }
    }
}

impl Default for Mail {
    fn default() -> Mail {
        Mail {
            transport: Transport::Smtp,
            server: Server::localhost(),
            tls: Tls::None,
            user: String::new(),
            sendmail: AbsolutePath::new("/usr/sbin/sendmail"),
            maildir: AbsolutePath::new("/var/lib/podsecd-mail/Maildir"),
        }
    }
}

impl Config {
    /// What contradicts what.
    fn contradiction(&self) -> Option<Contradiction> {
        if self.policy.homes.iter().any(|home| !home.is_absolute()) {
            return Some(Contradiction {
                keys: &[("policy", "homes")],
                what: "a directory of homes is not absolute",
                remedy: "write its whole path, from / on",
            });
        }
        let containers = &self.containers;
        let of_stores = containers.store.iter().flat_map(|store| [&store.exclude, &store.include]).flatten();
        if [&containers.exclude, &containers.include]
            .into_iter()
            .chain(of_stores)
            .flatten()
            .any(|path| !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir))
        {
            return Some(Contradiction {
                keys: &[("containers", "exclude"), ("containers", "include"), ("containers", "store")],
                what: "a path in containers is not absolute, or has `..` in it",
                remedy: "write its whole path, from the container's / on",
            });
        }
        let forwards = &self.forwards;
        let paths = [&forwards.state_directory, &forwards.kubeconfig];
        if paths.iter().any(|path| !path.as_os_str().is_empty() && !path.is_absolute()) {
            return Some(Contradiction {
                keys: &[("forwards", "state-directory"), ("forwards", "kubeconfig")],
                what: "a path in forwards is not absolute",
                remedy: "write its whole path, from / on",
            });
        }
        let mail = &self.mail;
        (!mail.user.is_empty() && mail.tls == Tls::None && !mail.server.is_local()).then_some(Contradiction {
            keys: &[("mail", "tls"), ("mail", "server"), ("mail", "user")],
            what: "the password of `user` would cross the network for everybody to read",
            remedy: "set `tls` of [mail] to \"starttls\" or \"tls\"",
        })
    }

    /// What follows from one setting for others.
    fn settle(mut self) -> Config {
        if self.kubeapi.podsec_levels {
            for id in crate::checks::kubeapi::ids::REFUSALS {
                self.weights.set_level(id, Level::Critical);
            }
        }
        self
    }
}

/// Settings that do not go together.
struct Contradiction {
    /// Their sections and keys.
    keys: &'static [(&'static str, &'static str)],
    /// What is wrong.
    what: &'static str,
    /// What to do.
    remedy: &'static str,
}

/// The tree that podsecd looks at: the node's own, or one below a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root(Option<PathBuf>);

impl Root {
    /// The node's own tree, or the one below `directory`.
    pub fn new(directory: Option<PathBuf>) -> Root {
        Root(directory)
    }

    /// Where an absolute path of that tree lies.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.0 {
            None => path.to_path_buf(),
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// Makes a directory to write to, and those above it. In another tree no part of its path may be a link: what is
    /// written there must not leave the tree.
    ///
    /// # Errors
    /// A part of the path is a link; those of mkdir(2).
    pub fn make(&self, path: &str) -> std::io::Result<PathBuf> {
        let made = self.path(path);
        if let Some(root) = &self.0 {
            let parts: Vec<_> = made.ancestors().take_while(|part| *part != root).collect();
            let is_link = |part: &&&Path| part.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            if let Some(link) = parts.iter().find(is_link) {
                let message = format!("{} is a link, which would lead out of {}", link.display(), root.display());
                return Err(std::io::Error::other(message));
            }
        }
        std::fs::create_dir_all(&made)?;
        Ok(made)
    }

    /// The directory below which that tree lies, if it is another one.
    pub fn directory(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// Whether it is another tree than the node's own: then reports do not leave it.
    pub fn is_elsewhere(&self) -> bool {
        self.0.is_some()
    }
}
