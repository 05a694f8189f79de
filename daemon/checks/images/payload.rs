//! What a signature says of an image: the JSON of containers-signature(5), and that of cosign, which is almost the same.
//! As strict as containers/image (`ParanoidUnmarshalJSONObject`): a member more, twice or missing, and it is none. To be
//! read only when its signature is verified.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::checks::policy::document::mend_surrogates;
use crate::checks::policy::reference::is_digest;

/// What a signature is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    /// Algorithm and digest of the manifest.
    pub(super) digest: String,
    /// The name of the image; not looked at yet.
    pub(super) reference: String,
}

/// Who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Simple signing: podman, skopeo.
    Simple,
    /// sigstore: cosign, podman.
    Cosign,
}

impl Payload {
    /// Reads a payload.
    ///
    /// # Errors
    /// Why it is none, in few words.
    pub(super) fn parse(bytes: &[u8], kind: Kind) -> Result<Payload, String> {
        let text = String::from_utf8_lossy(bytes);
        let json: Json = serde_json::from_str(&mend_surrogates(&text))
            .map_err(|error| format!("the payload is no JSON: {error}"))?;
        let [critical, optional] = json.members("the payload", ["critical", "optional"])?;
        // cosign writes null where the signer has added nothing.
        if !(kind == Kind::Cosign && matches!(optional, Json::Null)) {
            check_optional(optional)?;
        }
        let [is, image, identity] = critical.members("critical", ["type", "image", "identity"])?;
        let expected = match kind {
            Kind::Simple => "atomic container signature",
            Kind::Cosign => "cosign container image signature",
        };
        if !matches!(is, Json::Text(is) if is == expected) {
            return Err(format!("critical.type is not `{expected}`"));
        }
        let [digest] = image.members("critical.image", ["docker-manifest-digest"])?;
        let [reference] = identity.members("critical.identity", ["docker-reference"])?;
        match (digest, reference) {
            (Json::Text(digest), Json::Text(reference)) if is_digest(digest) => {
                Ok(Payload { digest: digest.clone(), reference: reference.clone() })
            }
            (Json::Text(_), Json::Text(_)) => Err("docker-manifest-digest is no digest".into()),
            _ => Err("a member of critical is no text".into()),
        }
    }
}

/// Anything may stand in it, but what the tools know of it must be as they know it.
fn check_optional(optional: &Json) -> Result<(), String> {
    let members = optional.object("optional")?;
    for (at, (name, value)) in members.iter().enumerate() {
        if members[..at].iter().any(|(other, _)| other == name) {
            return Err(format!("`{}` comes twice", name.escape_debug()));
        }
        match (name.as_str(), value) {
            ("creator", Json::Text(_) | Json::Null) | ("timestamp", Json::Null) => {}
            ("timestamp", Json::Number(seconds)) if seconds.fract() == 0.0 && seconds.abs() < TIMESTAMP_END => {}
            ("creator", _) => return Err("optional.creator is no text".into()),
            ("timestamp", _) => return Err("optional.timestamp is no whole number".into()),
            _ => {}
        }
    }
    Ok(())
}

/// What no 64 bits hold any more.
const TIMESTAMP_END: f64 = 9_223_372_036_854_775_808.0;
/// Most members of an object that is looked at: each name is compared with all before it.
const MAX_MEMBERS: usize = 1000;

/// JSON with the members of objects as they are written, twice or not.
enum Json {
    Object(Vec<(String, Json)>),
    Text(String),
    Number(f64),
    Null,
    Other,
}

impl Json {
    fn object(&self, what: &str) -> Result<&[(String, Json)], String> {
        match self {
            Json::Object(members) if members.len() > MAX_MEMBERS => Err(format!("{what} has too many members")),
            Json::Object(members) => Ok(members),
            _ => Err(format!("{what} is no object")),
        }
    }

    /// Just these members, each once.
    fn members<const N: usize>(&self, what: &str, names: [&str; N]) -> Result<[&Json; N], String> {
        let members = self.object(what)?;
        if let Some((unknown, _)) = members.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            return Err(format!("{what} has an unknown member `{}`", unknown.escape_debug()));
        }
        let find = |wanted: &str| {
            let mut found = members.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value);
            match (found.next(), found.next()) {
                (Some(value), None) => Ok(value),
                (Some(_), Some(_)) => Err(format!("`{wanted}` comes twice in {what}")),
                (None, _) => Err(format!("{what} has no `{wanted}`")),
            }
        };
        let mut values = [const { &Json::Null }; N];
        for (value, name) in values.iter_mut().zip(names) {
            *value = find(name)?;
        }
        Ok(values)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

#[expect(clippy::cast_precision_loss, reason = "the tools, too, read numbers as floating point")]
impl<'de> Visitor<'de> for Any {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        while list.next_element::<Json>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRITICAL: &str = r#""type":"atomic container signature","image":{"docker-manifest-digest":"DIGEST"},"identity":{"docker-reference":"a"}"#;

    fn parse(text: &str, kind: Kind) -> Result<Payload, String> {
        let digest = format!("sha256:{}", "0f".repeat(32));
        let mut text = text.replace("CRITICAL", CRITICAL).replace("DIGEST", &digest);
        if kind == Kind::Cosign {
            text = text.replace("atomic container", "cosign container image");
        }
        Payload::parse(text.as_bytes(), kind)
    }

    #[test]
    fn only_what_is_just_so_is_a_payload() {
        for (text, wrong) in [
            (r#"{"critical":{CRITICAL},"optional":{}}"#, None),
            (r#" {"optional":{"creator":null,"timestamp":null,"x":{"y":1,"y":2}},"critical":{CRITICAL}} "#, None),
            (r#"{"critical":{CRITICAL},"optional":{"timestamp":1e9}}"#, None),
            (r#"{"critical":{CRITICAL},"optional":{"x":"\ud800"}}"#, None),
            (r#"{"critical":{CRITICAL}}"#, Some("no `optional`")),
            (r#"{"optional":{}}"#, Some("no `critical`")),
            (r#"{"critical":{CRITICAL},"optional":{},"more":1}"#, Some("unknown member `more`")),
            (r#"{"critical":{CRITICAL},"optional":{},"optional":{}}"#, Some("`optional` comes twice")),
            (r#"{"critical":{CRITICAL},"Optional":{}}"#, Some("unknown member `Optional`")),
            (
                r#"{"critical":{CRITICAL,"type":"atomic container signature"},"optional":{}}"#,
                Some("`type` comes twice"),
            ),
            (r#"{"critical":{CRITICAL},"optional":{"x":1,"x":1}}"#, Some("`x` comes twice")),
            (r#"{"critical":{CRITICAL},"optional":{"creator":1}}"#, Some("creator")),
            (r#"{"critical":{CRITICAL},"optional":{"timestamp":"1"}}"#, Some("timestamp")),
            (r#"{"critical":{CRITICAL},"optional":{"timestamp":1e30}}"#, Some("timestamp")),
            (r#"{"critical":[{CRITICAL}],"optional":{}}"#, Some("critical is no object")),
            (r#"[{CRITICAL},{}]"#, Some("the payload is no object")),
            (r#"{"critical":{CRITICAL},"optional":{}} x"#, Some("no JSON")),
            ("", Some("no JSON")),
        ] {
            for kind in [Kind::Simple, Kind::Cosign] {
                let parsed = parse(text, kind);
                match wrong {
                    None => assert_eq!(parsed.map(|payload| payload.reference), Ok("a".into()), "{text}"),
                    Some(wrong) => assert!(parsed.as_ref().is_err_and(|why| why.contains(wrong)), "{text}: {parsed:?}"),
                }
            }
        }
        let null = r#"{"critical":{CRITICAL},"optional":null}"#;
        assert_eq!((parse(null, Kind::Simple).is_ok(), parse(null, Kind::Cosign).is_ok()), (false, true));
    }

    #[test]
    fn what_is_critical_is_what_it_must_be() {
        let text = r#"{"critical":{CRITICAL},"optional":{}}"#.replace("CRITICAL", CRITICAL);
        for (part, other, wrong) in [
            ("atomic", "cosign", "critical.type"),
            (r#""atomic container signature""#, "null", "critical.type"),
            ("DIGEST", "sha256:0f", "no digest"),
            ("DIGEST", "md5:d41d8cd98f00b204e9800998ecf8427e", "no digest"),
            (r#""DIGEST""#, "null", "no text"),
            (r#"{"docker-manifest-digest":"DIGEST"}"#, r#"["DIGEST"]"#, "critical.image is no object"),
            (r#""docker-reference":"a""#, r#""docker-reference":["a"]"#, "no text"),
            (r#""docker-reference":"a""#, r#""docker-reference":"a","x":1"#, "unknown member `x`"),
            (r#""docker-reference":"a""#, "", "no `docker-reference`"),
        ] {
            let parsed = parse(&text.replace(part, other), Kind::Simple);
            assert!(parsed.as_ref().is_err_and(|why| why.contains(wrong)), "{other}: {parsed:?}");
        }
    }
}
