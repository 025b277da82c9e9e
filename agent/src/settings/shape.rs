//! Whether settings have the form they must have, and reading them into [`SettingsDocument`].
//!
//! Reading goes on after an error, so that a person sees all of them at once. First the tree is compared with the JSON Schema
//! of the format: unknown keys, missing ones, wrong types. What is wrong is left out of the JSON value that this makes, and in
//! that value every scalar has the type that is wanted. Then the value is read into the document's types; what one of those
//! refuses (a length of time, for example) is said, left out too, and the value is read again.

use std::sync::LazyLock;

use serde_json::{Map, Value as Json};

use super::format::SettingsDocument;
use super::tree::{Entry, Node, Value};
use crate::job::finding::{Findings, Place, nearest, quoted};

/// The JSON Schema (draft 2020-12) of `node.yaml`, as indented JSON with a line end.
pub fn json_schema() -> String {
    format!("{:#}\n", *SCHEMA)
}

static SCHEMA: LazyLock<Json> = LazyLock::new(|| schemars::schema_for!(SettingsDocument).to_value());

/// Reads the tree as far as it can be read; everything wrong with its form is in `findings`.
pub(super) fn read(tree: &Node, findings: &mut Findings) -> SettingsDocument {
    let root: &Json = &SCHEMA;
    let mut value = Shape { root, findings }.value(root, tree, &Place::root()).unwrap_or_default();
    loop {
        let refused = match serde_path_to_error::deserialize::<_, SettingsDocument>(&value) {
            Ok(document) => return document,
            Err(refused) => refused,
        };
        let (path, message) = (refused.path().clone(), refused.inner().to_string());
        let place = path.iter().fold(Place::root(), |place, step| match step {
            serde_path_to_error::Segment::Seq { index } => place.index(*index),
            serde_path_to_error::Segment::Map { key } => place.key(key),
            _ => place,
        });
        // A key that was left out because of what is said already.
        if !message.starts_with("missing field") {
            findings.error_with(&place, message, "correct the value");
        }
        if !remove(&mut value, path.iter()) {
            return SettingsDocument::default();
        }
    }
}

/// Takes what is at the path out of the value; an item of a list becomes `null`. Says whether there was anything.
fn remove<'p>(value: &mut Json, path: impl Iterator<Item = &'p serde_path_to_error::Segment>) -> bool {
    let steps: Vec<_> = path
        .filter(|step| {
            matches!(step, serde_path_to_error::Segment::Seq { .. } | serde_path_to_error::Segment::Map { .. })
        })
        .collect();
    let Some((last, before)) = steps.split_last() else { return false };
    let mut at = value;
    for step in before {
        let inner = match step {
            serde_path_to_error::Segment::Seq { index } => at.get_mut(*index),
            serde_path_to_error::Segment::Map { key } => at.get_mut(key),
            _ => None,
        };
        let Some(inner) = inner else { return false };
        at = inner;
    }
    match last {
        serde_path_to_error::Segment::Seq { index } => {
            at.get_mut(*index).filter(|item| !item.is_null()).map(Json::take).is_some()
        }
        serde_path_to_error::Segment::Map { key } => {
            at.as_object_mut().is_some_and(|map| map.shift_remove(key).is_some())
        }
        _ => false,
    }
}

/// Whether a value at this place of the format is a secret.
pub(super) fn is_secret(path: &[&str]) -> bool {
    let root: &Json = &SCHEMA;
    let mut at = root;
    for key in path {
        let mut schema = resolve(root, at);
        // The items of a list have no key of their own in a path.
        while let Some(items) = schema.get("items") {
            schema = resolve(root, items);
        }
        match schema.get("properties").and_then(|known| known.get(*key)) {
            Some(inner) => at = inner,
            None => return false,
        }
    }
    at.get("writeOnly") == Some(&Json::Bool(true))
}

/// The schema that is really meant: behind references, and without the possibility of `null`.
fn resolve<'s>(root: &'s Json, mut schema: &'s Json) -> &'s Json {
    loop {
        if let Some(name) = schema.get("$ref").and_then(Json::as_str) {
            match root.pointer(name.trim_start_matches('#')) {
                Some(inner) => schema = inner,
                None => return schema,
            }
        } else if let Some([inner, null]) = schema.get("anyOf").and_then(Json::as_array).map(Vec::as_slice)
            && null.get("type").and_then(Json::as_str) == Some("null")
        {
            schema = inner;
        } else {
            return schema;
        }
    }
}

/// What may stand at a place.
#[derive(Default)]
struct Wanted<'s> {
    /// The only texts that are allowed.
    words: Vec<&'s str>,
    text: bool,
    flag: bool,
    whole: Option<&'s Json>,
    list: Option<&'s Json>,
    map: Option<&'s Json>,
    anything: bool,
}

impl<'s> Wanted<'s> {
    fn of(root: &'s Json, schema: &'s Json) -> Self {
        let mut wanted = Self::default();
        wanted.add(root, schema);
        wanted
    }

    fn add(&mut self, root: &'s Json, schema: &'s Json) {
        let schema = resolve(root, schema);
        for choice in ["oneOf", "anyOf"] {
            for inner in schema.get(choice).and_then(Json::as_array).into_iter().flatten() {
                self.add(root, inner);
            }
        }
        let words = schema.get("enum").and_then(Json::as_array).into_iter().flatten().chain(schema.get("const"));
        let words: Vec<&str> = words.filter_map(Json::as_str).collect();
        if !words.is_empty() {
            self.words.extend(words);
            return;
        }
        let types = match schema.get("type") {
            Some(Json::String(one)) => vec![one.as_str()],
            Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
            _ => {
                self.anything |= schema.get("oneOf").is_none() && schema.get("anyOf").is_none();
                return;
            }
        };
        for kind in types {
            match kind {
                "string" => self.text = true,
                "boolean" => self.flag = true,
                "integer" => self.whole = Some(schema),
                "array" => self.list = Some(schema),
                "object" => self.map = Some(schema),
                _ => {}
            }
        }
    }

    fn named(&self) -> String {
        let mut names = Vec::new();
        names.extend((!self.words.is_empty()).then(|| format!("one of {}", self.words.join(", "))));
        names.extend(self.text.then(|| "text".to_owned()));
        names.extend(self.flag.then(|| "true or false".to_owned()));
        names.extend(self.whole.map(|_| "a whole number".to_owned()));
        names.extend(self.list.map(|_| "a list".to_owned()));
        names.extend(self.map.map(|_| "a map".to_owned()));
        names.join(" or ")
    }

    fn remedy(&self) -> &'static str {
        match (self.list.is_some(), self.map.is_some(), self.text) {
            (true, false, false) => "write a list: each item on a line of its own, after a dash",
            (false, true, false) => "write a map: each key on a line of its own, indented",
            (false, false, true) => "write text, in quotes if need be",
            _ => "correct the value",
        }
    }
}

struct Shape<'s, 'f> {
    root: &'s Json,
    findings: &'f mut Findings,
}

impl<'s> Shape<'s, '_> {
    /// The value with the types that are wanted; nothing when it is of no use, which has been said then.
    fn value(&mut self, schema: &'s Json, node: &Node, place: &Place) -> Option<Json> {
        let wanted = Wanted::of(self.root, schema);
        if wanted.anything {
            return Some(node.plain_json());
        }
        match &node.value {
            Value::Map(entries) if wanted.map.is_some() => self.map(wanted.map?, entries, place),
            Value::List(items) if wanted.list.is_some() => {
                let item = wanted.list?.get("items").unwrap_or(&Json::Bool(true));
                // The item's place stays, also when there is nothing in it.
                let item = |(index, node)| self.value(item, node, &place.index(index)).unwrap_or_default();
                Some(Json::Array(items.iter().enumerate().map(item).collect()))
            }
            Value::Scalar { text, plain } => self.scalar(&wanted, text, *plain, place),
            // What is there is not shown: it can be a secret in the wrong place.
            found => {
                let found = match found {
                    Value::Map(_) => "a map",
                    Value::List(_) => "a list",
                    Value::Nothing | Value::Scalar { .. } => "nothing",
                };
                let remedy = match (found, wanted.text) {
                    ("nothing", true) => "write \"\" for an empty text",
                    _ => wanted.remedy(),
                };
                self.findings.error_with(place, format!("expected {}, got {found}", wanted.named()), remedy);
                None
            }
        }
    }

    fn scalar(&mut self, wanted: &Wanted<'s>, text: &str, plain: bool, place: &Place) -> Option<Json> {
        if !wanted.words.is_empty() {
            if wanted.words.contains(&text) {
                return Some(Json::String(text.to_owned()));
            }
            let all = wanted.words.join(", ");
            let remedy = match nearest(text, wanted.words.iter().copied()) {
                Some(near) => format!("did you mean {near}? Known are {all}"),
                None => format!("write one of {all}"),
            };
            self.findings.error_with(place, format!("{} is not known", quoted(text)), remedy);
            return None;
        }
        if let Some(schema) = wanted.whole
            && let Ok(number) = text.trim().parse::<i64>()
            && (plain || !wanted.text)
        {
            return self.whole(schema, number, place);
        }
        if wanted.text {
            return Some(Json::String(text.to_owned()));
        }
        if wanted.flag {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => return Some(Json::Bool(true)),
                "false" | "no" | "off" => return Some(Json::Bool(false)),
                _ => {}
            }
        }
        self.findings.error_with(place, format!("expected {}, got text", wanted.named()), wanted.remedy());
        None
    }

    fn whole(&mut self, schema: &Json, number: i64, place: &Place) -> Option<Json> {
        let limit = |key: &str| schema.get(key).and_then(Json::as_i64);
        let format = schema.get("format").and_then(Json::as_str);
        let least = limit("minimum");
        let most = limit("maximum").or_else(|| (format == Some("uint32")).then(|| i64::from(u32::MAX)));
        if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
            let range = match (least, most.filter(|most| *most < i64::MAX)) {
                (Some(least), Some(most)) => format!("{least} to {most}"),
                (Some(least), None) => format!("at least {least}"),
                (None, most) => format!("at most {}", most.unwrap_or(i64::MAX)),
            };
            self.findings.error_with(place, format!("expected {range}, got {number}"), "correct the value");
            return None;
        }
        Some(Json::from(number))
    }

    fn map(&mut self, schema: &'s Json, entries: &[Entry], place: &Place) -> Option<Json> {
        let nothing = Map::new();
        let known = schema.get("properties").and_then(Json::as_object);
        let known: &'s Map<String, Json> = match known {
            Some(known) => known,
            None => {
                let inner = schema.get("additionalProperties")?;
                let pairs = entries.iter().filter_map(|entry| {
                    Some((entry.key.clone(), self.value(inner, &entry.node, &place.key(&entry.key))?))
                });
                return Some(Json::Object(pairs.collect()));
            }
        };
        let mut map = nothing;
        for entry in entries {
            let at = place.key(&entry.key);
            match known.get(&entry.key) {
                // A key without a value is one that was not given.
                Some(_) if matches!(entry.node.value, Value::Nothing) => {}
                Some(inner) => map.extend(self.value(inner, &entry.node, &at).map(|value| (entry.key.clone(), value))),
                None => self.unknown(&at, &entry.key, known),
            }
        }
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        let mut complete = true;
        for key in required {
            let given = |entry: &Entry| entry.key == key && !matches!(entry.node.value, Value::Nothing);
            if !entries.iter().any(given) {
                self.findings.error_with(place, format!("the key {key} is missing"), "add it");
                complete = false;
            }
            complete &= map.contains_key(key);
        }
        complete.then_some(Json::Object(map))
    }

    fn unknown(&mut self, place: &Place, key: &str, known: &Map<String, Json>) {
        let names = known.keys().map(String::as_str);
        let remedy = match nearest(key, names.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known here are {}", names.collect::<Vec<_>>().join(", ")),
        };
        self.findings.error_with(place, format!("the key {} is not known", quoted(key)), remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tree;

    fn read_text(text: &str) -> (SettingsDocument, Findings) {
        let mut findings = Findings::default();
        let node = tree::parse(text, &"f".into(), 0, &mut findings).unwrap();
        let document = read(&node, &mut findings);
        (document, findings)
    }

    fn problems(text: &str) -> Vec<String> {
        let (_, findings) = read_text(text);
        findings.finish().unwrap_err().findings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let text = "\
identiti: {}
identity: {cloud: Amazon, spot: maybe, region: [x]}
mounts:
  - {source: a}
  - {source: b, target: c, writeable: true, deadline: soon}
  - just text
  - {source: d, target: e, version: 4}
cache: big
task: {instance: -1}
environment: {A: , B: [x], C: on, D: 007, E: 4.0}
outputs: {}
";
        assert_eq!(
            problems(text),
            [
                "identiti: the key \"identiti\" is not known; did you mean identity?",
                "identity.cloud: \"Amazon\" is not known; write one of auto, alibaba, aws, none",
                "identity.spot: expected true or false, got text; correct the value",
                "identity.region: expected text, got a list; write text, in quotes if need be",
                "mounts[0]: the key target is missing; add it",
                "mounts[1].writeable: the key \"writeable\" is not known; did you mean writable?",
                "mounts[2]: expected a map, got text; write a map: each key on a line of its own, indented",
                "mounts[3].version: \"4\" is not known; write one of 3, 4.0, 4.1",
                "cache: expected a map, got text; write a map: each key on a line of its own, indented",
                "task.instance: expected 0 to 4294967295, got -1; correct the value",
                "environment.A: expected text, got nothing; write \"\" for an empty text",
                "environment.B: expected text, got a list; write text, in quotes if need be",
                "outputs: expected a list, got a map; write a list: each item on a line of its own, after a dash",
                "mounts[1].deadline: expected a length of time such as 90s, 30m, 1h30m or 2d, or seconds, got \"soon\"; \
                 correct the value",
            ]
        );
        let (document, _) = read_text(text);
        let mounts = document.mounts.unwrap();
        assert_eq!(mounts.len(), 4, "what can be read keeps its place");
        assert!(mounts[0].is_none() && mounts[2].is_none());
        assert_eq!(mounts[1].as_ref().unwrap().source, "b");
        let environment = document.environment.unwrap();
        assert_eq!(environment["C"].as_str(), "on");
        assert_eq!((environment["D"].as_str(), environment["E"].as_str()), ("007", "4.0"));
    }

    #[test]
    fn a_key_without_a_value_is_not_given() {
        let (document, findings) = read_text("identity: {cloud: , region: }\nscratch:\nmounts:\n");
        assert!(findings.finish().unwrap().is_empty());
        assert!(document.scratch.is_none() && document.mounts.is_none());
    }

    #[test]
    fn secrets_are_known_by_the_format() {
        assert!(is_secret(&["storage", "oss", "access_key_secret"]));
        assert!(is_secret(&["storage", "s3", "security_token"]));
        assert!(!is_secret(&["storage", "s3", "access_key_id"]));
        assert!(!is_secret(&["storage"]) && !is_secret(&["nothing", "known"]));
    }

    #[test]
    fn the_schema_describes_every_key_and_forbids_others() {
        fn check(name: &str, schema: &Json) {
            let Some(properties) = schema["properties"].as_object() else { return };
            assert_eq!(schema["additionalProperties"], false, "{name}");
            for (key, property) in properties {
                assert!(property["description"].as_str().is_some_and(|text| !text.is_empty()), "{name}.{key}");
            }
        }
        let schema: Json = serde_json::from_str(&json_schema()).unwrap();
        assert_eq!(schema["title"], "batch-agent node");
        check("root", &schema);
        let inner = schema["$defs"].as_object().unwrap();
        assert!(inner.contains_key("MountDocument") && inner.contains_key("StoreDocument"));
        inner.iter().for_each(|(name, schema)| check(name, schema));
    }
}
