//! Values of our format that are more than what a derive can read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use crate::job::finding::quoted;
use fuse_oss::ByteSize;

/// A map that remembers its order, so that tasks run, and are talked about, in the author's.
#[derive(Debug)]
pub(super) struct Ordered<T>(pub Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                // The parser refuses keys that come twice.
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        parser.deserialize_map(Entries(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Ordered<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        <BTreeMap<String, T>>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        <BTreeMap<String, T>>::json_schema(generator)
    }
}

/// A program and its arguments.
#[derive(Debug)]
pub(crate) enum CommandDocument {
    Line(String),
    Words(Vec<String>),
}

impl<'de> Deserialize<'de> for CommandDocument {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = CommandDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a command line, or a list of words")
            }

            fn visit_str<E>(self, line: &str) -> Result<CommandDocument, E> {
                Ok(CommandDocument::Line(line.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<CommandDocument, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = items.next_element()? {
                    words.push(word);
                }
                Ok(CommandDocument::Words(words))
            }
        }
        parser.deserialize_any(Either)
    }
}

impl JsonSchema for CommandDocument {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Command".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 }
        ]})
    }
}

/// A length of time, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeoutDocument(pub i64);

impl<'de> Deserialize<'de> for TimeoutDocument {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = TimeoutDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as 90s, 30m, 1h30m or 2d, or seconds")
            }

            fn visit_i64<E>(self, seconds: i64) -> Result<TimeoutDocument, E> {
                Ok(TimeoutDocument(seconds))
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<TimeoutDocument, E> {
                Ok(TimeoutDocument(i64::try_from(seconds).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TimeoutDocument, E> {
                seconds(text)
                    .map(TimeoutDocument)
                    .ok_or_else(|| E::custom(format!("expected {}, got {}", Expecting(&self), quoted(text))))
            }
        }
        parser.deserialize_any(Either)
    }
}

/// A size, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeDocument(pub u64);

impl<'de> Deserialize<'de> for SizeDocument {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = SizeDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 4GiB or 500MB, or bytes")
            }

            fn visit_u64<E>(self, bytes: u64) -> Result<SizeDocument, E> {
                Ok(SizeDocument(bytes))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SizeDocument, E> {
                text.parse::<ByteSize>().map(|size| SizeDocument(size.bytes())).map_err(E::custom)
            }
        }
        parser.deserialize_any(Either)
    }
}

impl JsonSchema for SizeDocument {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^[0-9]+ *([KMGTkmgt]?[Ii]?[Bb]|[KMGTkmgt])?$" }
        ]})
    }
}

/// A user, by name or number, as it was written.
#[derive(Debug)]
pub(crate) struct UserDocument(pub String);

impl<'de> Deserialize<'de> for UserDocument {
    fn deserialize<D: Deserializer<'de>>(parser: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = UserDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user's name or number, or USER:GROUP")
            }

            fn visit_u64<E>(self, number: u64) -> Result<UserDocument, E> {
                Ok(UserDocument(number.to_string()))
            }

            fn visit_str<E>(self, text: &str) -> Result<UserDocument, E> {
                Ok(UserDocument(text.to_owned()))
            }
        }
        parser.deserialize_any(Either)
    }
}

impl JsonSchema for UserDocument {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "User".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "minLength": 1 }
        ]})
    }
}

/// Shows what a visitor expects.
struct Expecting<'a, V>(&'a V);

impl<'de, V: Visitor<'de>> fmt::Display for Expecting<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

/// Reads `1h30m`: numbers, each with its unit, from days to seconds, each unit at most once and in that order.
fn seconds(text: &str) -> Option<i64> {
    let mut rest = text.trim();
    let mut total: i64 = 0;
    let mut finest = i64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        let (unit, length) = match rest.as_bytes().get(digits)? {
            b'd' => (86_400, 1),
            b'h' => (3_600, 1),
            b'm' => (60, 1),
            b's' => (1, 1),
            _ => return None,
        };
        if unit >= finest {
            return None;
        }
        finest = unit;
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = rest.get(digits + length..)?;
    }
    (finest != i64::MAX).then_some(total)
}

impl JsonSchema for TimeoutDocument {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Timeout".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "integer", "minimum": 1 },
            { "type": "string", "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2 }
        ]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("30m", Some(1_800)),
            ("1h30m", Some(5_400)),
            ("2d", Some(172_800)),
            ("1d2h3m4s", Some(93_784)),
            ("0s", Some(0)),
            ("", None),
            ("h", None),
            ("5", None),
            ("5x", None),
            ("1m1h", None),
            ("1m1m", None),
            ("-5s", None),
            ("1h 30m", None),
            ("99999999999999999999s", None),
            ("9223372036854775807d", None),
            ("5天", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }
}
