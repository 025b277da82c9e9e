//! ListObjects, both versions: pages, delimiters, tokens and the URL encoding of odd keys.
//!
//! Keys come in the order of their UTF-8 bytes. A common prefix counts as one entry of a page, and the page after it
//! skips everything below it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::SystemTime;

use super::config::Dialect;
use super::error::{Outcome, Refusal};
use super::generated::Generated;
use super::object::quoted;
use super::operation::Reply;
use super::request::{Call, Head, encode};
use super::world::{Object, World, plain_object};
use super::xml::Xml;

/// One entry of a page.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) enum Entry {
    Key(String),
    Prefix(String),
}

impl Entry {
    fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Prefix(text) => text,
        }
    }
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the first key.
    Beginning,
    /// After this key.
    After(String),
    /// After everything that begins so.
    Past(String),
}

/// The entries of one page of at most `limit`, and whether there are more.
pub(crate) fn page<T>(
    objects: &BTreeMap<String, T>,
    prefix: &str,
    delimiter: &str,
    start: &Start,
    limit: usize,
) -> (Vec<Entry>, bool) {
    let mut entries: Vec<Entry> = Vec::new();
    let from = match start {
        Start::After(key) | Start::Past(key) if key.as_str() >= prefix => Bound::Excluded(key.as_str()),
        _ => Bound::Included(prefix),
    };
    for key in objects.range::<str, _>((from, Bound::Unbounded)).map(|(key, _)| key) {
        let Some(rest) = key.strip_prefix(prefix) else {
            // Keys are sorted: whatever does not begin with the prefix now comes after all that do.
            break;
        };
        if matches!(start, Start::Past(past) if key.starts_with(past)) {
            continue;
        }
        let entry = match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => Entry::Prefix(format!("{prefix}{}", &rest[..at + delimiter.len()])),
            None => Entry::Key(key.clone()),
        };
        if entries.last() == Some(&entry) {
            continue;
        }
        if entries.len() == limit {
            return (entries, true);
        }
        entries.push(entry);
    }
    (entries, false)
}

/// A continuation token: opaque to clients, so that none can rely on its being a key.
fn token(entry: &Entry) -> String {
    let kind = if matches!(entry, Entry::Prefix(_)) { 'p' } else { 'k' };
    hex::encode(format!("{kind}{}", entry.text()))
}

fn read_token(text: &str) -> Option<Start> {
    let token = String::from_utf8(hex::decode(text).ok()?).ok()?;
    match token.split_at_checked(1)? {
        ("k", key) => Some(Start::After(key.to_owned())),
        ("p", prefix) => Some(Start::Past(prefix.to_owned())),
        _ => None,
    }
}

/// How many entries a page may have.
pub(crate) fn page_limit(head: &Head, name: &str, default: u64) -> Outcome<u64> {
    let asked = head.query.number(name)?.unwrap_or(default);
    if head.is_oss() && !(1..=1000).contains(&asked) {
        let text = asked.to_string();
        return Err(Refusal::invalid_argument(
            name,
            &text,
            format!("Argument {name} must be an integer between 1 and 1000."),
        ));
    }
    Ok(asked.min(1000))
}

/// Text as `encoding-type=url` asks for it. S3 leaves slashes and writes a space as a plus; OSS escapes both.
fn url_encoded(dialect: Dialect, text: &str) -> String {
    let encoded = encode(text);
    match dialect {
        Dialect::Oss => encoded,
        Dialect::S3 => encoded.replace("%2F", "/").replace("%20", "+"),
    }
}

/// The function that spells keys as the request asked for.
pub(crate) fn speller(head: &Head) -> Outcome<(bool, impl Fn(&str) -> String)> {
    let url = match head.query.get("encoding-type") {
        None | Some("") => false,
        Some("url") => true,
        Some(other) => {
            return Err(Refusal::invalid_argument(
                "encoding-type",
                other,
                "Invalid Encoding Method specified in Request",
            ));
        }
    };
    let dialect = head.dialect;
    Ok((url, move |text: &str| if url { url_encoded(dialect, text) } else { text.to_owned() }))
}

pub(crate) fn list(world: &mut World, call: &Call) -> Outcome<Reply> {
    let head = &call.head;
    let query = |name: &str| head.query.get(name).unwrap_or("");
    let second = match head.query.get("list-type") {
        None => false,
        Some("2") => true,
        Some(other) => return Err(Refusal::invalid_argument("list-type", other, "Invalid list-type")),
    };
    let limit = page_limit(head, "max-keys", if head.is_oss() { 100 } else { 1000 })?;
    let (url, spell) = speller(head)?;
    let (prefix, delimiter) = (query("prefix"), query("delimiter"));
    // Alibaba's SDK sends an empty token with the first page; S3 refuses it.
    let token_given = head.query.get("continuation-token").filter(|token| !(token.is_empty() && head.is_oss()));
    let start = match (second, token_given, query("start-after"), query("marker")) {
        (true, Some(text), _, _) => read_token(text).ok_or_else(|| {
            Refusal::invalid_argument("continuation-token", text, "The continuation token provided is incorrect")
        })?,
        (true, None, after, _) if !after.is_empty() => Start::After(after.to_owned()),
        // The first version's marker may be a common prefix of the page before.
        (false, _, _, marker) if !delimiter.is_empty() && marker.ends_with(delimiter) => Start::Past(marker.to_owned()),
        (false, _, _, marker) if !marker.is_empty() => Start::After(marker.to_owned()),
        _ => Start::Beginning,
    };
    let name = head.bucket()?;
    let bucket = world.bucket(name)?;
    let generated = bucket.generated.clone().filter(|generated| generated.covers(prefix));
    let mut made_up = BTreeMap::new();
    let (entries, more) = if limit == 0 {
        (Vec::new(), false)
    } else if let Some(generated) = &generated {
        let after = match &start {
            Start::After(key) | Start::Past(key) if !generated.stuck => key.as_str(),
            _ => "",
        };
        let (numbers, more) = generated.page(prefix, after, limit);
        // There are only ten kinds, and digests take time.
        let kinds: Vec<Object> =
            (0..10).map(|kind| plain_object(Generated::content(kind), SystemTime::UNIX_EPOCH)).collect();
        for (number, kind) in numbers.map(|number| (number, number % 10)) {
            made_up.extend(
                kinds.get(usize::try_from(kind).unwrap_or(0)).map(|object| (generated.key(number), object.clone())),
            );
        }
        (made_up.keys().cloned().map(Entry::Key).collect(), more)
    } else {
        page(&bucket.objects, prefix, delimiter, &start, usize::try_from(limit).unwrap_or(1000))
    };

    let mut xml = Xml::new();
    let root = if head.is_oss() {
        "ListBucketResult"
    } else {
        "ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""
    };
    xml.element(root, |xml| {
        xml.text("Name", name);
        xml.text("Prefix", &spell(prefix));
        xml.text("MaxKeys", &limit.to_string());
        xml.text("Delimiter", &spell(delimiter));
        xml.text("IsTruncated", if more { "true" } else { "false" });
        if url {
            xml.text("EncodingType", "url");
        }
        if second {
            xml.text("KeyCount", &entries.len().to_string());
            xml.text("StartAfter", &spell(query("start-after")));
            if let Some(token) = head.query.get("continuation-token") {
                xml.text("ContinuationToken", token);
            }
            if let Some(last) = entries.last().filter(|_| more) {
                xml.text("NextContinuationToken", &token(last));
            }
        } else {
            xml.text("Marker", &spell(query("marker")));
            // S3 leaves the next marker out without a delimiter: the last key is it.
            if let Some(last) = entries.last().filter(|_| more && (head.is_oss() || !delimiter.is_empty())) {
                xml.text("NextMarker", &spell(last.text()));
            }
        }
        for entry in &entries {
            match entry {
                Entry::Key(key) => {
                    let object = made_up.get(key).unwrap_or_else(|| &bucket.objects[key]);
                    contents(xml, head.dialect, &spell(key), object);
                }
                Entry::Prefix(_) => {}
            }
        }
        for entry in &entries {
            if let Entry::Prefix(prefix) = entry {
                xml.element("CommonPrefixes", |xml| xml.text("Prefix", &spell(prefix)));
            }
        }
    });
    Ok(Reply::document(xml))
}

fn contents(xml: &mut Xml, dialect: Dialect, key: &str, object: &Object) {
    xml.element("Contents", |xml| {
        xml.text("Key", key);
        xml.text("LastModified", &super::time::iso(object.modified));
        xml.text("ETag", &quoted(&object.etag));
        if dialect == Dialect::Oss {
            xml.text("Type", object.kind.as_str());
        }
        xml.text("Size", &object.content.len().to_string());
        let class = match (dialect, object.archived) {
            (Dialect::Oss, true) => "Archive",
            (Dialect::Oss, false) => "Standard",
            (Dialect::S3, true) => "GLACIER",
            (Dialect::S3, false) => "STANDARD",
        };
        xml.text("StorageClass", class);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(keys: &[&str]) -> BTreeMap<String, ()> {
        keys.iter().map(|key| ((*key).to_owned(), ())).collect()
    }

    fn text(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(Entry::text).collect()
    }

    #[test]
    fn prefixes_count_as_entries() {
        let objects = keys(&["a", "b/1", "b/2", "b0", "c/1"]);
        let (entries, more) = page(&objects, "", "/", &Start::Beginning, 2);
        assert_eq!((text(&entries), more), (vec!["a", "b/"], true));
        let (entries, more) = page(&objects, "", "/", &Start::Past("b/".into()), 2);
        assert_eq!((text(&entries), more), (vec!["b0", "c/"], false));
        assert_eq!(text(&page(&objects, "b", "", &Start::After("b/1".into()), 9).0), ["b/2", "b0"]);
        assert_eq!(text(&page(&objects, "b/", "/", &Start::After("a".into()), 9).0), ["b/1", "b/2"]);
    }

    #[test]
    fn a_token_carries_any_key() {
        for entry in [Entry::Key("a\n数/".into()), Entry::Prefix("/".into()), Entry::Key(String::new())] {
            let start = match &entry {
                Entry::Key(key) => Start::After(key.clone()),
                Entry::Prefix(prefix) => Start::Past(prefix.clone()),
            };
            assert_eq!(read_token(&token(&entry)), Some(start));
        }
        assert_eq!(read_token("nope"), None);
    }

    proptest! {
        /// Pages of any size, put together, are the whole listing, which is what grouping all keys gives.
        #[test]
        fn pages_are_the_whole(
            keys in proptest::collection::btree_set("[ab/]{1,5}", 0..30),
            prefix in "[ab/]{0,2}",
            delimiter in "/?",
            limit in 1_usize..5,
        ) {
            let objects: BTreeMap<String, ()> = keys.iter().map(|key| (key.clone(), ())).collect();
            let mut whole: Vec<Entry> = keys.iter().filter(|key| key.starts_with(&prefix)).map(|key| {
                match key[prefix.len()..].split_once('/').filter(|_| !delimiter.is_empty()) {
                    Some((head, _)) => Entry::Prefix(format!("{prefix}{head}/")),
                    None => Entry::Key(key.clone()),
                }
            }).collect();
            whole.dedup();
            let (mut paged, mut start) = (Vec::new(), Start::Beginning);
            loop {
                let (entries, more) = page(&objects, &prefix, &delimiter, &start, limit);
                prop_assert!(entries.len() <= limit);
                if let Some(last) = entries.last() {
                    start = read_token(&token(last)).unwrap();
                }
                paged.extend(entries);
                if !more {
                    break;
                }
            }
            prop_assert_eq!(paged, whole);
        }
    }
}
