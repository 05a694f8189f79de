//! Names of images, as the container tools expand and compare them: the grammar of
//! containers/image's docker/reference (<https://pkg.go.dev/github.com/containers/image/v5/docker/reference>), and the scopes of containers-policy.json(5) for transport
//! docker.

use std::fmt;

/// Longest name without tag and digest, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;
/// The registry of names without one.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A name of an image in a registry, expanded: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry with its port, and repository: `docker.io/library/busybox`.
    name: String,
    tag: Option<String>,
    /// Algorithm and digest.
    digest: Option<String>,
}

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A part is not as the grammar wants it.
    #[error("`{0}` is no {1}")]
    Malformed(String, &'static str),
    /// Longer than 255 bytes.
    #[error("the name is longer than {MAX_NAME} bytes")]
    Long,
    /// 64 hexadecimal digits are taken for the id of an image.
    #[error("`{0}` is the id of an image, not a name")]
    Id(String),
}

impl Reference {
    /// Reads a name as users write it.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Id(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, rest),
        };
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let wrong = |what: &str, is: &'static str| ReferenceError::Malformed(what.to_owned(), is);
        if !is_domain(registry) {
            return Err(wrong(registry, "registry"));
        }
        if let Some(component) = path.split('/').find(|component| !is_component(component)) {
            return Err(wrong(component, "part of a repository's name (lower-case letters and digits, . _ -)"));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(wrong(tag, "tag"));
        }
        if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
            return Err(wrong(digest, "digest"));
        }
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let name = format!("{registry}/{}{path}", if official { "library/" } else { "" });
        if name.len() > MAX_NAME {
            return Err(ReferenceError::Long);
        }
        Ok(Reference { name, tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
    }

    /// Whether neither tag nor digest were named.
    pub fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The image that is meant: with the tag `latest` where neither tag nor digest was named; where both were, podman and
    /// CRI-O go by the digest.
    pub fn image(mut self) -> Reference {
        match (&self.tag, &self.digest) {
            (Some(_), Some(_)) => self.tag = None,
            (None, None) => self.tag = Some("latest".to_owned()),
            _ => {}
        }
        self
    }

    /// The scopes of a policy that are looked up for it, the most specific first: itself, its repository and the
    /// namespaces above it, its registry, and that with wildcards and without a port.
    pub fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![self.to_string()];
        scopes.extend(scopes_of(&self.name));
        scopes
    }

    /// The same without tag and digest.
    pub fn repository(&self) -> &str {
        &self.name
    }

    /// The tag, if it names one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Algorithm and digest, if it names one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// The scopes that are looked up for a name without tag and digest, the most specific first.
pub(super) fn scopes_of(mut name: &str) -> Vec<String> {
    let mut scopes = vec![name.to_owned()];
    // No image has such a name, and whoever writes a policy may write a megabyte of slashes.
    if name.len() > MAX_NAME {
        return scopes;
    }
    while let Some((parent, _)) = name.rsplit_once('/') {
        name = parent;
        scopes.push(name.to_owned());
    }
    let mut host = name.split_once(':').map_or(name, |(host, _)| host);
    while let Some((_, parent)) = host.split_once('.') {
        host = parent;
        scopes.push(format!("*.{host}"));
    }
    scopes
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// Whether what stands before the first slash is a registry, and not a part of a name of Docker Hub.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// Host name or IPv4 address, and a port.
pub(super) fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        ends(label.bytes().next())
            && ends(label.bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// `a`, `a.b`, `a__b`, `a---b`: runs of letters and digits with one separator between them.
fn is_component(text: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| is_plain(*byte));
    let separators = bytes.split(|byte| is_plain(*byte)).filter(|separator| !separator.is_empty());
    let is_separator =
        |separator: &[u8]| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-');
    ends(bytes.first()) && ends(bytes.last()) && separators.into_iter().all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

/// `sha256:` and 64 hexadecimal digits; other algorithms have as many as they have.
pub(crate) fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        // The tools know no other.
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a text is a registry, or a registry and a part of a repository's name (remapIdentity).
pub(super) fn is_prefix(text: &str) -> bool {
    let (registry, path) = text.split_once('/').map_or((text, None), |(registry, path)| (registry, Some(path)));
    is_domain(registry) && path.is_none_or(|path| path.split('/').all(is_component))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_expanded_as_the_tools_do() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        for (text, expanded) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("alice/app", "docker.io/alice/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("registry.local/k8s/pause:3.9", "registry.local/k8s/pause:3.9".to_owned()),
            ("reg.local:5000/a/b/c", "reg.local:5000/a/b/c:latest".to_owned()),
            ("Reg.local/a", "Reg.local/a:latest".to_owned()),
            (&format!("a:b@{digest}"), format!("docker.io/library/a@{digest}")),
            (&format!("quay.io/a__b/c---d@{digest}"), format!("quay.io/a__b/c---d@{digest}")),
        ] {
            let image = Reference::parse(text).map(Reference::image);
            assert_eq!(image.map(|image| image.to_string()), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        let id = "0f".repeat(32);
        let long = "a/".repeat(130) + "a";
        for text in [
            "",
            "Busybox",
            "Reg/a",
            "[::1]:5000/a",
            "a//b",
            "a/",
            "/a",
            "a_-b",
            "a___b",
            "-a",
            "a-",
            "a:",
            "a:-x",
            "a:b:c",
            "a@sha256:00",
            "a@md5:00",
            "reg.local:x/a",
            "reg..local/a",
            "reg.local:/a",
            "a b",
            "прод",
            "a\u{0}",
            &id,
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_that_no_image_has_lies_in_no_scope_but_its_own() {
        assert_eq!(scopes_of(&"a/".repeat(1 << 19)).len(), 1);
        assert_eq!(scopes_of(&"a.".repeat(1 << 19)).len(), 1);
    }

    #[test]
    fn scopes_go_from_the_image_to_its_registry_and_its_wildcards() {
        let scopes = |text: &str| Reference::parse(text).map(Reference::image).expect("a name").scopes();
        assert_eq!(
            scopes("reg.local.example:5000/a/b:1"),
            [
                "reg.local.example:5000/a/b:1",
                "reg.local.example:5000/a/b",
                "reg.local.example:5000/a",
                "reg.local.example:5000",
                "*.local.example",
                "*.example"
            ]
        );
        assert_eq!(
            scopes("busybox"),
            ["docker.io/library/busybox:latest", "docker.io/library/busybox", "docker.io/library", "docker.io", "*.io"]
        );
        assert_eq!(scopes("localhost/a").last().map(String::as_str), Some("localhost"));
    }
}
