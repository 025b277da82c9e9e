//! Reading a JSON object whose keys and types are known.
//!
//! An [`Object`] is opened with the table of its keys. Opening it says everything there is to say about types and unknown
//! keys; after that the getters need not report anything: what is of the wrong type is absent to them.

use serde_json::{Map, Value};

use crate::job::finding::{At, Findings, Place, nearest, quoted};

/// What a key's value must be. `null` always counts as absent: Java's serialisers write it for unset fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Text that no message may show.
    Secret,
    Flag,
    Whole,
    Seconds,
    Object,
    List,
    /// Nothing a node looks at.
    Any,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Text | Self::Secret => "text",
            Self::Flag => "true or false",
            Self::Whole => "a whole number",
            Self::Seconds => "seconds",
            Self::Object => "an object",
            Self::List => "a list",
            Self::Any => "anything",
        }
    }

    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text | Self::Secret => value.is_string(),
            Self::Flag => value.is_boolean(),
            Self::Whole | Self::Seconds => whole(value).is_some(),
            Self::Object => value.is_object(),
            Self::List => value.is_array(),
            Self::Any => true,
        }
    }
}

/// The keys of an object and what their values must be.
pub(super) type Keys = &'static [(&'static str, Kind)];

/// An object at its place.
#[derive(Debug, Clone)]
pub(super) struct Object<'a> {
    pub place: Place,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Opens an object with known keys: a wrong type is an error, an unknown key a warning.
    pub fn open(place: Place, map: &'a Map<String, Value>, keys: Keys, findings: &mut Findings) -> Self {
        for (key, value) in map {
            let known = keys.iter().find(|(known, _)| known == key);
            match known {
                Some((_, kind)) => {
                    expect(&place.key(key), value, *kind, findings);
                }
                None => unknown(&place, key, keys, findings),
            }
        }
        Self { place, map }
    }

    /// Opens an object whose keys are the author's own, such as a mapping.
    pub fn open_mapping(place: Place, map: &'a Map<String, Value>) -> Self {
        Self { place, map }
    }

    /// The object under `key`, opened with its keys.
    pub fn object(&self, key: &str, keys: Keys, findings: &mut Findings) -> Option<Self> {
        let map = self.map.get(key)?.as_object()?;
        Some(Self::open(self.place.key(key), map, keys, findings))
    }

    /// The object under `key`, whose keys are the author's own; absent when it is empty.
    pub fn mapping(&self, key: &str) -> Option<Self> {
        let map = self.map.get(key)?.as_object()?;
        (!map.is_empty()).then(|| Self::open_mapping(self.place.key(key), map))
    }

    /// The text under `key`. An empty one counts as absent: clients write `""` for what is not set.
    pub fn text(&self, key: &str) -> Option<At<String>> {
        let text = self.map.get(key)?.as_str()?;
        (!text.is_empty()).then(|| At::new(self.place.key(key), text.to_owned()))
    }

    /// The flag under `key`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.map.get(key)?.as_bool()
    }

    /// The whole number under `key`.
    pub fn whole(&self, key: &str) -> Option<At<i64>> {
        whole(self.map.get(key)?).map(|number| At::new(self.place.key(key), number))
    }

    /// The items of the list under `key`, each at its place; none when it is absent.
    pub fn list(&self, key: &str) -> impl Iterator<Item = At<&'a Value>> + use<'a> {
        let place = self.place.key(key);
        self.map
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
            .map(move |(index, value)| At::new(place.index(index), value))
    }

    /// All entries, each at its place.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<&'a Value>)> {
        self.map.iter().map(|(key, value)| (key.as_str(), At::new(self.place.key(key), value)))
    }

    /// Whether the key is there and not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// The value under `key`, as it is.
    pub fn raw(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }
}

/// Reports a value of the wrong type; says whether it is there and of the right one.
pub(super) fn expect(place: &Place, value: &Value, kind: Kind, findings: &mut Findings) -> bool {
    if value.is_null() {
        return false;
    }
    let fits = kind.accepts(value);
    if !fits {
        let got = if kind == Kind::Secret { type_of(value).to_owned() } else { shown(value) };
        findings.error(place, format!("expected {}, got {got}", kind.expected()));
    }
    fits
}

fn unknown(place: &Place, key: &str, keys: Keys, findings: &mut Findings) {
    if findings.is_full() {
        return;
    }
    let remedy = match nearest(key, keys.iter().map(|(known, _)| *known)) {
        Some(near) => format!("did you mean {near}?"),
        None => "it has no effect".to_owned(),
    };
    findings.warn(&place.key(key), "is not a key known here and is ignored", remedy);
}

/// The value as a whole number. JSON knows one kind of number, so `3.0` is one, too.
fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    if value.is_u64() {
        return Some(i64::MAX);
    }
    let number = value.as_f64()?;
    (number.fract() == 0.0 && number.abs() < 9e15).then(|| format!("{number:.0}").parse().ok()).flatten()
}

/// What kind of value it is, for messages that must not show it.
pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value as a message shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Bool(_) | Value::Number(_) | Value::Null => value.to_string(),
        Value::Array(_) | Value::Object(_) => type_of(value).to_owned(),
    }
}
