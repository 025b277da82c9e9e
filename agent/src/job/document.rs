//! A parsed but not yet understood document, from JSON or YAML.
//!
//! Both parsers are given a ceiling: 16 MiB of text, 128 levels in JSON (`serde_json`'s own limit), 64 levels and a
//! budget of nodes and aliases in YAML. A key that is written twice in one object would silently lose one of its values; it
//! is an error here, because the lost one may be a task.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::finding::{Findings, Place, Problems};

/// The longest description that is read, in bytes. The largest real ones (thousands of mappings) are under 1 MiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// Reads JSON. Keys given twice are found as errors, and the first value is kept.
pub(crate) fn json(text: &str, findings: &mut Findings) -> Result<Value, serde_json::Error> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let mut place = Vec::new();
    let value = Node { place: &mut place, findings }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(value)
}

/// Reads YAML into the same form.
pub(crate) fn yaml(text: &str, findings: &mut Findings) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |parser| {
        let mut place = Vec::new();
        Node { place: &mut place, findings }.deserialize(parser)
    })
}

/// How YAML is read: errors without an excerpt of the document, which may hold secrets.
pub(crate) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { with_snippet: false }
}

/// The text of a document: UTF-8, with or without a byte order mark.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Problems> {
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(too_large());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        Problems::single(
            &Place::root(),
            format!("the job description is not UTF-8: byte {} is not", error.valid_up_to()),
            "save it as UTF-8 text",
        )
    })
}

/// The document is over [`MAX_BYTES`].
pub(crate) fn too_large() -> Problems {
    Problems::single(
        &Place::root(),
        format!("the job description is larger than {} MiB", MAX_BYTES >> 20),
        "put data into object storage and map it; a description only names it",
    )
}

/// A step on the way from the document's root.
enum Step {
    Key(String),
    Index(usize),
}

fn place(steps: &[Step]) -> Place {
    steps.iter().fold(Place::root(), |place, step| match step {
        Step::Key(key) => place.key(key),
        Step::Index(index) => place.index(*index),
    })
}

/// Builds a [`Value`], watching for keys that come twice.
struct Node<'a> {
    place: &'a mut Vec<Step>,
    findings: &'a mut Findings,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        parser.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Node { place, findings } = self;
        let mut list = Vec::new();
        loop {
            place.push(Step::Index(list.len()));
            let item = items.next_element_seed(Node { place: &mut *place, findings: &mut *findings })?;
            place.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let Node { place: steps, findings } = self;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            steps.push(Step::Key(key));
            let value = entries.next_value_seed(Node { place: &mut *steps, findings: &mut *findings })?;
            let Some(Step::Key(key)) = steps.last() else {
                return Err(A::Error::custom("the place in the document was lost"));
            };
            if map.contains_key(key) {
                findings.error_with(&place(steps), "is given twice", "remove one of them, or give it another name");
                steps.pop();
            } else if let Some(Step::Key(key)) = steps.pop() {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is() {
        let text = r#"{"a":[1,-2,2.5,true,null,"x"],"b":{"c":18446744073709551615}}"#;
        let mut findings = Findings::default();
        assert_eq!(json(text, &mut findings).unwrap().to_string(), text);
        assert_eq!(findings.error_count(), 0);
    }

    #[test]
    fn a_key_that_comes_twice_is_an_error_with_its_place() {
        let mut findings = Findings::default();
        let value = json(r#"{"a":[0,{"b.c":1,"d":2,"b.c":3}]}"#, &mut findings).unwrap();
        assert_eq!(value.to_string(), r#"{"a":[0,{"b.c":1,"d":2}]}"#);
        assert_eq!(
            findings.finish().unwrap_err().to_string(),
            "a[1][\"b.c\"]: is given twice; remove one of them, or give it another name"
        );
    }

    #[test]
    fn depth_is_bounded() {
        let mut findings = Findings::default();
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(json(&deep, &mut findings).unwrap_err().to_string().contains("recursion limit"));
        assert!(yaml(&deep, &mut findings).is_err());
        let block: String = (0..5_000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(yaml(&block, &mut findings).is_err());
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(yaml(&bomb, &mut Findings::default()).is_err());
    }

    #[test]
    fn yaml_gives_the_same_form() {
        let value = yaml("DAG:\n  Tasks: {a: {Timeout: 5, X: ~, Y: [yes, '5']}}\n", &mut Findings::default()).unwrap();
        assert_eq!(value.to_string(), r#"{"DAG":{"Tasks":{"a":{"Timeout":5,"X":null,"Y":[true,"5"]}}}}"#);
    }

    #[test]
    fn text_is_utf8_of_a_bounded_size() {
        assert_eq!(text(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(
            text(b"ab\xff").unwrap_err().to_string(),
            "the job description is not UTF-8: byte 2 is not; save it as UTF-8 text"
        );
        let large = vec![b' '; (16 << 20) + 1];
        assert!(text(&large).unwrap_err().to_string().starts_with("the job description is larger than 16 MiB"));
    }
}
