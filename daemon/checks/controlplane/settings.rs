//! What an operator may set.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Uri;
use serde::{Deserialize, Deserializer};

use super::seen::{Part, Unit};

/// What is expected of this node, and what may be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// What the node is.
    pub role: RoleSetting,
    /// What this node does without, though others have it.
    pub without: Vec<Expected>,
    /// The units that are started again when they are down; none by default.
    pub restart: Vec<Restart>,
    /// How it is asked whether endpoints are well.
    pub health: Health,
    /// The apiserver of this node.
    pub apiserver: Endpoint,
    /// The load balancer before the apiservers, if this node has one.
    pub load_balancer: LoadBalancer,
    /// An address that moves between nodes; asked at the load balancer's port by the node that holds it.
    pub virtual_address: VirtualAddress,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleSetting {
    /// What its manifests say.
    Auto,
    /// The apiserver runs here, and all that belongs to it.
    ControlPlane,
    /// Only pods run here.
    Worker,
}

/// Something that is expected of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A unit of systemd.
    Unit(Unit),
    /// A process, or a container.
    Part(Part),
}

impl<'de> Deserialize<'de> for Expected {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expected, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unit = Unit::EXPECTED.into_iter().find(|unit| unit.name() == name).map(Expected::Unit);
        let part = || Part::ALL.into_iter().find(|part| part.name() == name).map(Expected::Part);
        unit.or_else(part).ok_or_else(|| {
            let names = Unit::EXPECTED.map(Unit::name).into_iter().chain(Part::ALL.map(Part::name));
            let names: Vec<_> = names.collect();
            serde::de::Error::custom(format!("`{name}` is nothing of a node; it may be one of {}", names.join(", ")))
        })
    }
}

/// A unit of u7s-admin that is started again when it is down.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Restart {
    /// Which.
    pub unit: RestartUnit,
    /// How long after the first try the second comes, if the unit is down; doubled for each further one. From 1 s to a day.
    #[serde(default = "pause", deserialize_with = "period")]
    pub pause: Duration,
    /// How often within an hour at most: 1 to 100.
    #[serde(default = "limit", deserialize_with = "count")]
    pub limit: u32,
}

/// The units that podsecd may start, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RestartUnit {
    /// rootlesskit and CRI-O.
    #[serde(rename = "rootlesskit.service")]
    Rootlesskit,
    /// The kubelet.
    #[serde(rename = "kubelet.service")]
    Kubelet,
}

impl RestartUnit {
    /// As the others.
    pub fn unit(self) -> Unit {
        match self {
            RestartUnit::Rootlesskit => Unit::Rootlesskit,
            RestartUnit::Kubelet => Unit::Kubelet,
        }
    }
}

fn pause() -> Duration {
    Duration::from_secs(30)
}

fn limit() -> u32 {
    5
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    let period = humantime::parse_duration(&text).ok().filter(|period| range.contains(period));
    period.ok_or_else(|| {
        serde::de::Error::custom(format!("`{text}` is no period from 1s to 1day; write for example `30s`"))
    })
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let count = u32::deserialize(deserializer)?;
    let is_fit = (1..=100).contains(&count);
    is_fit.then_some(count).ok_or_else(|| serde::de::Error::custom("the limit is a number from 1 to 100"))
}

/// How it is asked whether endpoints are well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// By a request without credentials. Who refuses it is alive, and asked no more but by a handshake.
    Request,
    /// By a TLS handshake only.
    Handshake,
    /// Not at all.
    Off,
}

/// Where the apiserver is spoken to: `https://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Begins with `/`. Without one it is that of the apiserver's own health: `/` itself is forbidden to whoever has no
    /// credentials, and each refusal is a finding.
    pub path: String,
}

/// Where an apiserver says how it is to whoever asks (<https://kubernetes.io/docs/reference/using-api/health-checks/>).
const READY: &str = "/readyz";

impl Endpoint {
    /// The one of an address.
    pub fn at(address: IpAddr, port: u16) -> Endpoint {
        Endpoint { host: address.to_string(), port, path: READY.to_owned() }
    }

    /// As the `Host` of a request has it.
    pub fn authority(&self) -> String {
        let Endpoint { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Endpoint, String> {
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
        let uri = uri.filter(|uri| !uri.authority().is_some_and(|authority| authority.as_str().contains('@')));
        let found = uri.as_ref().and_then(|uri| Some((uri.host()?, uri.path_and_query()?)));
        let (host, path) = found.filter(|(host, _)| !host.is_empty()).ok_or_else(|| {
            format!("`{text}` is no address of an apiserver; write for example `https://localhost:8443/`")
        })?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = if path.as_str() == "/" { READY } else { path.as_str() }.to_owned();
        let port = uri.as_ref().and_then(Uri::port_u16).unwrap_or(443);
        Ok(Endpoint { host, port, path })
    }
}

/// A load balancer, or none: then the text is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LoadBalancer(pub Option<Endpoint>);

impl TryFrom<String> for LoadBalancer {
    type Error = String;

    fn try_from(text: String) -> Result<LoadBalancer, String> {
        Ok(LoadBalancer(if text.is_empty() { None } else { Some(text.try_into()?) }))
    }
}

/// An address, or none: then the text is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct VirtualAddress(pub Option<IpAddr>);

impl TryFrom<String> for VirtualAddress {
    type Error = String;

    fn try_from(text: String) -> Result<VirtualAddress, String> {
        let address = || text.parse().map_err(|_| format!("`{text}` is no IP address; write for example `192.0.2.10`"));
        Ok(VirtualAddress(if text.is_empty() { None } else { Some(address()?) }))
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            role: RoleSetting::Auto,
            without: Vec::new(),
            restart: Vec::new(),
            health: Health::Request,
            apiserver: Endpoint::at(IpAddr::from([127, 0, 0, 1]), 6443),
            load_balancer: LoadBalancer::default(),
            virtual_address: VirtualAddress::default(),
        }
    }
}

impl Settings {
    /// Whether that is expected of this node.
    pub fn expects(&self, what: Expected) -> bool {
        !self.without.contains(&what)
    }

    /// What serves the virtual address, if there is one: the load balancer, else the apiserver itself.
    pub fn at_virtual_address(&self) -> Option<Endpoint> {
        let port = self.load_balancer.0.as_ref().unwrap_or(&self.apiserver).port;
        self.virtual_address.0.map(|address| Endpoint::at(address, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_path_is_asked_how_it_is() {
        for (text, authority, path) in [
            ("https://localhost:8443/", "localhost:8443", "/readyz"),
            ("https://localhost:8443", "localhost:8443", "/readyz"),
            ("https://[2001:db8::1]:6443/livez?verbose", "[2001:db8::1]:6443", "/livez?verbose"),
            ("https://lb.example.org/healthz", "lb.example.org:443", "/healthz"),
        ] {
            let endpoint = Endpoint::try_from(text.to_owned()).expect(text);
            assert_eq!((endpoint.authority().as_str(), endpoint.path.as_str()), (authority, path));
        }
        for text in ["", "localhost:8443", "http://localhost:8443/", "https://", "https://a:b@c/", "https:///x"] {
            let refused = Endpoint::try_from(text.to_owned()).expect_err(text);
            assert!(refused.contains("write for example"), "{refused}");
        }
    }

    #[test]
    fn the_virtual_address_is_asked_where_the_load_balancer_listens() {
        let mut settings =
            Settings { virtual_address: VirtualAddress(Some([192, 0, 2, 1].into())), ..Settings::default() };
        let asked = |settings: &Settings| settings.at_virtual_address().map(|endpoint| endpoint.to_string());
        assert_eq!(asked(&settings).as_deref(), Some("https://192.0.2.1:6443/readyz"));
        settings.load_balancer = "https://localhost:8443/".to_owned().try_into().expect("valid");
        assert_eq!(asked(&settings).as_deref(), Some("https://192.0.2.1:8443/readyz"));
        assert_eq!(asked(&Settings::default()), None);
    }

    #[test]
    fn values_are_read_or_refused_by_name() {
        let read = toml::from_str::<Settings>;
        let settings =
            read("without = [\"etcd\", \"u7s.service\"]\n[[restart]]\nunit = \"kubelet.service\"\n").expect("valid");
        assert!(!settings.expects(Expected::Part(Part::Etcd)) && !settings.expects(Expected::Unit(Unit::U7s)));
        assert!(settings.expects(Expected::Part(Part::Kubelet)), "of the part and the unit each has its name");
        assert_eq!(settings.restart, [Restart { unit: RestartUnit::Kubelet, pause: pause(), limit: limit() }]);
        for (text, part) in [
            ("without = [\"etcdd\"]", "one of u7s.service"),
            ("[[restart]]\nunit = \"u7s.service\"", "kubelet.service"),
            ("[[restart]]\nunit = \"kubelet.service\"\npause = \"0s\"", "for example `30s`"),
            ("[[restart]]\nunit = \"kubelet.service\"\nlimit = 0", "1 to 100"),
            ("role = \"master\"", "control-plane"),
            ("virtual-address = \"localhost\"", "192.0.2.10"),
            ("health = \"no\"", "handshake"),
        ] {
            let refused = read(text).expect_err(text).to_string();
            assert!(refused.contains(part), "{refused} should contain {part}");
        }
    }
}
