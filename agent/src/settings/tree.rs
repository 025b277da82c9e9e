//! Settings as they were written: YAML with the place of every value, and several files merged into one.
//!
//! Scalars stay the text that was written. What they mean is decided by what is wanted in their place: `4.0` is the name of
//! a protocol's version for one key and a number for another, and `on` is a word in an environment variable.
//!
//! Files are merged key by key: a map that is given in two files has the keys of both, and anything else that is given again,
//! lists included, replaces what was there. A key without a value (`scratch:`) takes back what an earlier file said.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Number, Value as Json};
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span, Tag};

use crate::job::finding::{Findings, Place};

/// The deepest document, in levels.
const MAX_DEPTH: usize = 64;

/// The most values of a document, with those that aliases repeat.
const MAX_NODES: usize = 100_000;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    /// Which file came first, for sorting.
    pub order: usize,
    /// From 1; 0 where there are no lines.
    pub line: usize,
    /// A file, or the name of an option.
    pub source: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.source),
            line => write!(f, "line {line} of {}", self.source),
        }
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub origin: Origin,
    pub value: Value,
}

/// What was written.
#[derive(Clone)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Nothing,
    /// Text, and whether it stood there without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl fmt::Debug for Value {
    /// Shows the form only: values can be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Scalar { .. } => f.write_str("a scalar"),
            Self::List(items) => f.debug_list().entries(items.iter().map(|item| &item.value)).finish(),
            Self::Map(entries) => {
                f.debug_map().entries(entries.iter().map(|entry| (&entry.key, &entry.node.value))).finish()
            }
        }
    }
}

/// A key, where it was written, and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub origin: Origin,
    pub node: Node,
}

impl Node {
    /// The value in YAML's own terms, where nothing particular is wanted: numbers and words that look like numbers in their
    /// usual form are numbers, `true`, `false` and nothing are themselves, and everything else is text.
    pub fn plain_json(&self) -> Json {
        match &self.value {
            Value::Nothing => Json::Null,
            Value::Scalar { text, plain: false } => Json::String(text.clone()),
            Value::Scalar { text, plain: true } => match text.as_str() {
                "true" => Json::Bool(true),
                "false" => Json::Bool(false),
                text => number(text).map_or_else(|| Json::String(text.to_owned()), Json::Number),
            },
            Value::List(items) => Json::Array(items.iter().map(Self::plain_json).collect()),
            Value::Map(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), entry.node.plain_json()));
                Json::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// Lays `over` over this: maps key by key, anything else as a whole.
    pub fn merge(&mut self, over: Self) {
        match (&mut self.value, over.value) {
            (Value::Map(under), Value::Map(over)) => {
                for entry in over {
                    match under.iter_mut().find(|known| known.key == entry.key) {
                        Some(known) => {
                            known.origin = entry.origin;
                            known.node.merge(entry.node);
                        }
                        None => under.push(entry),
                    }
                }
            }
            (under, over_value) => {
                *under = over_value;
                self.origin = over.origin;
            }
        }
    }

    /// Levels below this one, and values with this one.
    fn extent(&self) -> (usize, usize) {
        let join = |(depth, count): (usize, usize), (below, more): (usize, usize)| (depth.max(below), count + more);
        let (depth, count) = match &self.value {
            Value::Nothing | Value::Scalar { .. } => (0, 0),
            Value::List(items) => items.iter().map(Self::extent).fold((0, 0), join),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.extent()).fold((0, 0), join),
        };
        (depth + 1, count + 1)
    }

    /// Where everything in this tree was written, by its path.
    pub fn origins(&self) -> HashMap<String, Origin> {
        fn walk(node: &Node, place: &Place, all: &mut HashMap<String, Origin>) {
            all.entry(place.to_string()).or_insert_with(|| node.origin.clone());
            match &node.value {
                Value::Nothing | Value::Scalar { .. } => {}
                Value::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        walk(item, &place.index(index), all);
                    }
                }
                Value::Map(entries) => {
                    for entry in entries {
                        let place = place.key(&entry.key);
                        // The key's line is where a person looks, also when the value begins on the next.
                        all.insert(place.to_string(), entry.origin.clone());
                        walk(&entry.node, &place, all);
                    }
                }
            }
        }
        let mut all = HashMap::new();
        walk(self, &Place::root(), &mut all);
        all
    }
}

/// A number in its usual form: what would be written for it. `007`, `1e3` and `0x10` are text.
fn number(text: &str) -> Option<Number> {
    let number = match text.parse::<i64>() {
        Ok(number) => Number::from(number),
        Err(_) => match text.parse::<u64>() {
            Ok(number) => Number::from(number),
            Err(_) => Number::from_f64(text.parse::<f64>().ok()?)?,
        },
    };
    (number.to_string() == text).then_some(number)
}

/// Reads one document. An empty one is an empty map. What is wrong with it is found with its line, and nothing comes back
/// where it cannot be understood at all.
pub(super) fn parse(text: &str, source: &Arc<str>, order: usize, findings: &mut Findings) -> Option<Node> {
    let mut node = parse_value(text, source, order, findings)?;
    if matches!(node.value, Value::Nothing) {
        node.value = Value::Map(Vec::new());
    }
    Some(node)
}

/// [`parse`] for a document that is a single value, or nothing.
pub(super) fn parse_value(text: &str, source: &Arc<str>, order: usize, findings: &mut Findings) -> Option<Node> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let origin = |line| Origin { order, line, source: Arc::clone(source) };
    let mut builder = Builder {
        events: Parser::new_from_str_with_options(text, options),
        source: Arc::clone(source),
        order,
        anchors: HashMap::new(),
        nodes: 0,
        findings,
    };
    let mut document = None;
    loop {
        let (event, span) = match builder.next() {
            Ok(Some(next)) => next,
            Ok(None) => break,
            Err(Broken) => return None,
        };
        match event {
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamEnd => {}
            _ if document.is_some() => {
                builder.complain(&Place::root(), &span, "a second document begins", "keep one document in a file");
                return None;
            }
            event => match builder.node(event, &span, &Place::root(), 0) {
                Ok(node) => document = Some(node),
                Err(Broken) => return None,
            },
        }
    }
    Some(document.unwrap_or(Node { origin: origin(1), value: Value::Nothing }))
}

/// The document cannot be read further, and why has been said.
struct Broken;

struct Builder<'a, 'f> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    source: Arc<str>,
    order: usize,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    findings: &'f mut Findings,
}

impl<'a> Builder<'a, '_> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Broken> {
        match self.events.next_event() {
            None => Ok(None),
            Some(Ok(next)) => Ok(Some(next)),
            Some(Err(error)) => {
                // The parser's words quote nothing of the document but single characters.
                let marker = error.marker();
                let (line, column) = (marker.line(), marker.col() + 1);
                self.findings.error_with(
                    &Place::root(),
                    format!("line {line}, column {column} of {} is no YAML: {}", self.source, error.info()),
                    "correct it there",
                );
                Err(Broken)
            }
        }
    }

    fn origin(&self, span: &Span) -> Origin {
        Origin { order: self.order, line: span.start.line(), source: Arc::clone(&self.source) }
    }

    /// For what goes no further than this file: the place is said here, because the value will not be found later.
    fn complain(&mut self, place: &Place, span: &Span, cause: &str, remedy: &str) {
        let origin = self.origin(span);
        // An empty place keeps `locate` from adding a second line.
        let path = if place.to_string().is_empty() { String::new() } else { format!("{place}: ") };
        self.findings.error_with(&Place::root(), format!("{path}{cause} ({origin})"), remedy);
    }

    fn node(&mut self, event: Event<'a>, span: &Span, place: &Place, depth: usize) -> Result<Node, Broken> {
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            self.complain(place, span, "is too deep, or too much", "settings need no more than a few hundred values");
            return Err(Broken);
        }
        let origin = self.origin(span);
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (self.scalar(text, style, tag.as_deref(), place, span)?, anchor),
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", place, span)?;
                (self.list(place, depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", place, span)?;
                (self.map(place, depth)?, anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    self.complain(place, span, "refers to what it is itself a part of", "write the value out");
                    return Err(Broken);
                };
                let (levels, count) = node.extent();
                self.nodes += count;
                if depth + levels > MAX_DEPTH || self.nodes > MAX_NODES {
                    self.complain(place, span, "repeats too much", "write the values out");
                    return Err(Broken);
                }
                return Ok(node);
            }
            _ => {
                self.complain(place, span, "is nothing that can be read", "correct it there");
                return Err(Broken);
            }
        };
        let node = Node { origin, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn scalar(
        &mut self,
        text: Cow<'a, str>,
        style: ScalarStyle,
        tag: Option<&Tag>,
        place: &Place,
        span: &Span,
    ) -> Result<Value, Broken> {
        let is_text = self.check_tag(tag, "str", place, span)?;
        let plain = style == ScalarStyle::Plain && !is_text;
        Ok(match text.as_ref() {
            "" | "~" | "null" | "Null" | "NULL" if plain => Value::Nothing,
            _ => Value::Scalar { text: text.into_owned(), plain },
        })
    }

    /// Whether the tag that is allowed is there.
    fn check_tag(&mut self, tag: Option<&Tag>, allowed: &str, place: &Place, span: &Span) -> Result<bool, Broken> {
        match tag {
            None => Ok(false),
            // `!` alone, and `!!str`.
            Some(tag) if tag.suffix() == allowed || tag.suffix().is_empty() => Ok(true),
            Some(_) => {
                self.complain(place, span, "has a tag (!...)", "remove the tag: it means nothing here");
                Err(Broken)
            }
        }
    }

    fn list(&mut self, place: &Place, depth: usize) -> Result<Value, Broken> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            items.push(self.node(event, &span, &place.index(items.len()), depth + 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, place: &Place, depth: usize) -> Result<Value, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        while let Some((event, span)) = self.next()? {
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, ..) => key.into_owned(),
                _ => {
                    self.complain(place, &span, "has a key that is not text", "write a plain word before the colon");
                    return Err(Broken);
                }
            };
            let at = place.key(&key);
            let origin = self.origin(&span);
            let Some((event, value_span)) = self.next()? else { return Err(Broken) };
            let node = self.node(event, &value_span, &at, depth + 1)?;
            if let Some(first) = lines.get(&key) {
                let cause = format!("is given twice, first in line {first}");
                self.complain(&at, &span, &cause, "remove one of them");
            } else {
                lines.insert(key.clone(), origin.line);
                entries.push(Entry { key, origin, node });
            }
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(text: &str) -> Node {
        let mut findings = Findings::default();
        let node = parse(text, &"f.yaml".into(), 0, &mut findings);
        match findings.finish() {
            Ok(_) => node.unwrap(),
            Err(problems) => panic!("{problems}"),
        }
    }

    fn problem(text: &str) -> String {
        let mut findings = Findings::default();
        parse(text, &"f.yaml".into(), 0, &mut findings);
        findings.finish().unwrap_err().to_string()
    }

    fn json(text: &str) -> String {
        tree(text).plain_json().to_string()
    }

    #[test]
    fn scalars_stay_what_was_written() {
        assert_eq!(
            json("{a: 5, b: '5', c: 4.0, d: 007, e: yes, f: true, g: ~, h: , i: -3, j: !!str 5, k: 1e3, l: 2.5}"),
            r#"{"a":5,"b":"5","c":4.0,"d":"007","e":"yes","f":true,"g":null,"h":null,"i":-3,"j":"5","k":"1e3","l":2.5}"#
        );
        let Value::Map(entries) = tree("version: 4.10").value else { panic!() };
        assert!(matches!(&entries[0].node.value, Value::Scalar { text, plain: true } if text == "4.10"));
        assert_eq!(json("# nothing but a remark\n"), "{}");
        assert_eq!(json(""), "{}");
        assert_eq!(json("a: &x {b: [1, 2]}\nc: *x\n"), r#"{"a":{"b":[1,2]},"c":{"b":[1,2]}}"#);
        assert_eq!(json("a: |\n  x\n  y\nb: >-\n  x\n  y\n"), r#"{"a":"x\ny\n","b":"x y"}"#);
    }

    #[test]
    fn places_are_remembered() {
        let origins = tree("# one\na:\n  b:\n    - x\n    - {c: 1}\nd: 2\n").origins();
        let line = |path: &str| origins[path].line;
        assert_eq!(
            (line("a"), line("a.b"), line("a.b[0]"), line("a.b[1]"), line("a.b[1].c"), line("d")),
            (2, 3, 4, 5, 5, 6)
        );
        assert_eq!(origins["d"].to_string(), "line 6 of f.yaml");
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_line() {
        for (text, message) in [
            ("a: 1\nb: ]", "line 2, column 4 of f.yaml is no YAML: misplaced bracket; correct it there"),
            ("a: 1\na: 2\n", "a: is given twice, first in line 1 (line 2 of f.yaml); remove one of them"),
            ("a: 1\n---\nb: 2\n", "a second document begins (line 3 of f.yaml); keep one document in a file"),
            ("a: !secret x\n", "a: has a tag (!...) (line 1 of f.yaml); remove the tag: it means nothing here"),
            ("a: &x [*x]\n", "a[0]: refers to what it is itself a part of (line 1 of f.yaml); write the value out"),
            ("? [a]\n: b\n", "has a key that is not text (line 1 of f.yaml); write a plain word before the colon"),
        ] {
            assert_eq!(problem(text), message, "{text}");
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        let mut tower = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned();
        for level in 1..10 {
            let before = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 10].join(", "));
            tower += &format!("a{level}: &a{level} [[[[[[[[[[*a{before}]]]]]]]]]]\n");
        }
        assert!(problem(&bomb).contains("repeats too much"));
        assert!(problem(&tower).contains("repeats too much"));
        assert!(!problem(&"[".repeat(10_000)).is_empty());
    }

    #[test]
    fn maps_are_merged_and_everything_else_is_replaced() {
        let mut node = tree("a: {b: 1, c: [1, 2]}\nd: 5\ne: x\n");
        node.merge(tree("a: {c: [3], f: 2}\nd: {g: 1}\ne:\n"));
        assert_eq!(node.plain_json().to_string(), r#"{"a":{"b":1,"c":[3],"f":2},"d":{"g":1},"e":null}"#);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "([a-c&*!?:,{}\\[\\]\"'|>~#-]|[ \n]){0,40}") {
            let mut findings = Findings::default();
            let node = parse(&text, &"f".into(), 0, &mut findings);
            prop_assert!(node.is_some() || findings.error_count() > 0);
        }

        #[test]
        fn merging_a_document_with_itself_changes_nothing(keys in proptest::collection::vec("[a-d]{1,2}", 0..6)) {
            let mut text = String::new();
            for key in std::collections::BTreeSet::from_iter(keys) {
                text += &format!("{key}: {{{key}: [{key}], x: 1}}\n");
            }
            let once = tree(&text);
            let mut twice = once.clone();
            twice.merge(tree(&text));
            prop_assert_eq!(once.plain_json(), twice.plain_json());
        }
    }
}
