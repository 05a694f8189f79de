//! Values that a configuration file writes as text.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Longest period: a year.
const MAX_PERIOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// A period longer than zero and of a year at most: `90s`, `15min`, `1h 30min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(Duration);

impl Period {
    pub(super) const fn from_secs(seconds: u64) -> Period {
        Period(Duration::from_secs(seconds))
    }

    /// As std's type.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Period, String> {
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= MAX_PERIOD => Ok(Period(duration)),
            Ok(_) => Err("a period must be longer than zero and not longer than a year".into()),
            Err(error) => Err(format!("`{text}` is no period ({error}); write for example `15min` or `1h 30min`")),
        }
    }
}

/// A period, or never: `7days`, `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Interval(Option<Period>);

impl Interval {
    pub(super) const NEVER: Interval = Interval(None);

    /// As std's type.
    pub fn get(self) -> Option<Duration> {
        self.0.map(Period::get)
    }
}

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Interval, String> {
        let period = || text.clone().try_into().map(Some).map_err(|error| format!("{error}, or `never`"));
        Ok(Interval(if text == "never" { None } else { period()? }))
    }
}

/// A mail address, or a user of this node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Recipient(lettre::Address);

impl Recipient {
    pub(super) fn root() -> Recipient {
        Recipient::try_from("root".to_owned()).expect("root is a user")
    }

    /// The address; that of a user is `user@localhost`.
    pub fn get(&self) -> &lettre::Address {
        &self.0
    }

    /// The address as others see it: that of a user is at `host`.
    pub fn at(&self, host: &str) -> lettre::Address {
        let of_user = || lettre::Address::new(self.0.user(), host).ok().filter(|_| self.0.domain() == "localhost");
        of_user().unwrap_or_else(|| self.0.clone())
    }
}

impl TryFrom<String> for Recipient {
    type Error = String;

    fn try_from(text: String) -> Result<Recipient, String> {
        let (user, domain) = text.rsplit_once('@').unwrap_or((&text, "localhost"));
        lettre::Address::new(user, domain).map(Recipient).map_err(|error| {
            format!("`{text}` is no mail address ({error}); write for example `root` or `root@example.org`")
        })
    }
}

/// A server: a host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Server(String, u16);

impl Server {
    pub(super) fn localhost() -> Server {
        Server("localhost".to_owned(), 25)
    }

    /// Host and port.
    pub fn get(&self) -> (&str, u16) {
        (&self.0, self.1)
    }

    /// Whether it is this node, so that what is sent to it crosses no network.
    pub fn is_local(&self) -> bool {
        self.0 == "localhost" || self.0.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Server, String> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parsed {
            Some((host, port)) if !host.is_empty() && port > 0 => {
                Ok(Server(host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
            }
            _ => Err(format!("`{text}` is no server; write for example `localhost:25`")),
        }
    }
}

/// A size in bytes: `512KiB`, `64MiB`, `1GiB`; at least 1 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(u64);

impl Size {
    pub(super) const fn from_mib(mebibytes: u64) -> Size {
        Size(mebibytes << 20)
    }

    /// In bytes.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
        let size = units.iter().find_map(|(unit, shift)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(1 << shift).filter(|size| *size > 0)
        });
        size.map(Size).ok_or_else(|| format!("`{text}` is no size; write for example `512KiB`, `64MiB` or `1GiB`"))
    }
}

/// A path from the root on, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    pub(super) fn new(path: &str) -> AbsolutePath {
        AbsolutePath(path.into())
    }
}

impl AsRef<Path> for AbsolutePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<AbsolutePath, String> {
        let parent = path.components().any(|part| part == std::path::Component::ParentDir);
        if !path.is_absolute() || parent || path.file_name().is_none() {
            return Err(format!("`{}` is no path of a file; begin with `/` and use no `..`", path.display()));
        }
        Ok(AbsolutePath(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_refused_with_an_example() {
        assert_eq!(Period::try_from("15min".to_owned()), Ok(Period::from_secs(900)));
        assert_eq!(Size::try_from("64MiB".to_owned()), Ok(Size::from_mib(64)));
        for text in ["", "0s", "15", "-1s", "400days"] {
            assert!(Period::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(Interval::try_from("never".to_owned()), Ok(Interval::NEVER));
        assert!(Interval::try_from("ever".to_owned()).is_err_and(|error| error.contains("never")));
        for (text, local) in [("localhost:25", true), ("[::1]:25", true), ("127.0.0.2:587", true), ("mx.org:25", false)]
        {
            assert_eq!(Server::try_from(text.to_owned()).map(|server| server.is_local()), Ok(local), "{text}");
        }
        for text in ["", "0MiB", "64", "64MB", "-1MiB", "99999999999GiB"] {
            assert!(Size::try_from(text.to_owned()).is_err(), "{text}");
        }
        for path in ["", "audit.log", "/", "/a/../b", "/.."] {
            assert!(AbsolutePath::try_from(PathBuf::from(path)).is_err(), "{path}");
        }
    }
}
