//! What the tools see in the text before they look at its meaning: JSON in which no key comes twice, and an object
//! wherever one is meant. serde alone would take a list for an object, and a number for the name of a type.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// JSON, as far as its shape matters.
pub(super) enum Shape {
    Object(Vec<(String, Shape)>),
    List(Vec<Shape>),
    Text,
    Other,
}

impl Shape {
    /// Whether it is one of a policy; if not, what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let Shape::Object(members) = self else { return Err("a policy is an object".into()) };
        for (name, member) in members {
            match name.as_str() {
                "default" => member.check_requirements("default")?,
                "transports" => {
                    for (transport, scopes) in member.members("transports")? {
                        for (scope, requirements) in scopes.members(transport)? {
                            requirements.check_requirements(scope)?;
                        }
                    }
                }
                // It is refused by its name.
                _ => {}
            }
        }
        Ok(())
    }

    fn members(&self, name: &str) -> Result<&[(String, Shape)], String> {
        match self {
            Shape::Object(members) => Ok(members),
            _ => Err(format!("`{name}` is no object")),
        }
    }

    fn check_requirements(&self, name: &str) -> Result<(), String> {
        let Shape::List(list) = self else { return Err(format!("`{name}` is no list of requirements")) };
        for requirement in list {
            for (name, value) in requirement.members("a requirement")? {
                match name.as_str() {
                    "type" | "keyType" => value.check_text(name)?,
                    "signedIdentity" | "baseLayerIdentity" => {
                        value.members(name)?.iter().try_for_each(|(name, value)| value.check_text(name))?;
                    }
                    "fulcio" | "pki" => drop(value.members(name)?),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn check_text(&self, name: &str) -> Result<(), String> {
        if matches!(self, Shape::Text) { Ok(()) } else { Err(format!("`{name}` is no text")) }
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut members = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{name}` comes twice")));
            }
            members.push((name, map.next_value()?));
        }
        Ok(Shape::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Shape::List(items))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Text)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }
}

/// The text with U+FFFD in place of each half of a surrogate pair that stands alone, as the tools read it.
pub(crate) fn mend_surrogates(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains("\\u") {
        return text.into();
    }
    let unit = |at: usize| {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    let (mut mended, mut copied, mut at) = (String::with_capacity(text.len()), 0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            Some(0xD800..=0xDFFF) => {
                mended.push_str(&text[copied..at]);
                mended.push('\u{fffd}');
                at += 6;
                copied = at;
            }
            // The backslash and what it escapes: one character, of however many bytes.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    mended.push_str(&text[copied..]);
    mended.into()
}
