//! Listings, version 1 and 2. Pure: a sorted map and a query go in, XML comes out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Bound;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::content::Object;

/// The most names on a page, as with S3.
const PAGE: usize = 1000;
const MODIFIED: &str = "2026-01-01T00:00:00.000Z";
const URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What a request for a listing asks.
#[derive(Debug, Default)]
pub struct Query {
    /// It is not a listing but `?location`.
    pub location: bool,
    second: bool,
    prefix: String,
    delimiter: bool,
    after: String,
    max: Option<usize>,
    url: bool,
}

/// The names of one page.
#[derive(Debug, PartialEq, Eq)]
struct Page<'a> {
    keys: Vec<(&'a str, Object)>,
    prefixes: Vec<&'a str>,
    /// The last name, when there is more after it.
    next: Option<&'a str>,
}

impl Query {
    /// Reads a query string. Unknown parameters are ignored.
    pub fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "location" => query.location = true,
                "list-type" => query.second = value == "2",
                "prefix" => query.prefix = value,
                "delimiter" => query.delimiter = value == "/",
                "marker" | "start-after" if query.after.is_empty() => query.after = value,
                // Tokens are the last name of the page before.
                "continuation-token" => query.after = value,
                "max-keys" => query.max = value.parse().ok(),
                "encoding-type" => query.url = value == "url",
                _ => {}
            }
        }
        query
    }

    fn page<'a>(&self, objects: &'a BTreeMap<String, Object>) -> Page<'a> {
        let max = self.max.unwrap_or(PAGE).clamp(1, PAGE);
        let mut page = Page { keys: Vec::new(), prefixes: Vec::new(), next: None };
        let mut last = None;
        let mut from: Bound<String> = if self.after < self.prefix {
            Bound::Included(self.prefix.clone())
        } else if self.delimiter && self.after.len() > self.prefix.len() && self.after.ends_with('/') {
            beyond(&self.after)
        } else {
            Bound::Excluded(self.after.clone())
        };
        'again: loop {
            for (key, object) in objects.range((from.clone(), Bound::Unbounded)) {
                let Some(rest) = key.strip_prefix(&self.prefix) else { return page };
                if page.keys.len() + page.prefixes.len() == max {
                    page.next = last;
                    return page;
                }
                if self.delimiter
                    && let Some(slash) = rest.find('/')
                {
                    let prefix = &key[..self.prefix.len() + slash + 1];
                    page.prefixes.push(prefix);
                    last = Some(prefix);
                    from = beyond(prefix);
                    continue 'again;
                }
                page.keys.push((key, *object));
                last = Some(key);
            }
            return page;
        }
    }

    /// The page as XML.
    pub fn listing(&self, objects: &BTreeMap<String, Object>) -> String {
        let page = self.page(objects);
        let text = |name: &str| {
            if self.url {
                utf8_percent_encode(name, URL).to_string()
            } else {
                name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
            }
        };
        let mut out = String::with_capacity(256 * (page.keys.len() + page.prefixes.len()) + 512);
        let truncated = page.next.is_some();
        let count = page.keys.len() + page.prefixes.len();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name><Prefix>{}</Prefix>\
             <MaxKeys>{}</MaxKeys><IsTruncated>{truncated}</IsTruncated>",
            super::BUCKET,
            text(&self.prefix),
            self.max.unwrap_or(PAGE),
        );
        if self.url {
            out.push_str("<EncodingType>url</EncodingType>");
        }
        if self.delimiter {
            out.push_str("<Delimiter>/</Delimiter>");
        }
        if self.second {
            let _ = write!(out, "<KeyCount>{count}</KeyCount>");
        }
        if let Some(next) = page.next {
            let name = if self.second { "NextContinuationToken" } else { "NextMarker" };
            let _ = write!(out, "<{name}>{}</{name}>", if self.second { escape(next) } else { text(next) });
        }
        for (key, object) in page.keys {
            let _ = write!(
                out,
                "<Contents><Key>{}</Key><LastModified>{MODIFIED}</LastModified><ETag>{}</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                text(key),
                object.etag().replace('"', "&quot;"),
                object.size,
            );
        }
        for prefix in page.prefixes {
            let _ = write!(out, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", text(prefix));
        }
        out.push_str("</ListBucketResult>");
        out
    }
}

/// Tokens are never URL-encoded.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Where the keys begin that come after all those beginning with `prefix`, which ends in a slash.
fn beyond(prefix: &str) -> Bound<String> {
    // '0' is the character after '/'.
    Bound::Included(format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::World;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn all(world: &World, prefix: &str, delimiter: bool, max: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let query = Query { prefix: prefix.to_owned(), delimiter, after, max: Some(max), ..Query::default() };
            let page = query.page(world.objects());
            assert!(page.keys.len() + page.prefixes.len() <= max);
            found.extend(page.keys.iter().map(|(key, _)| (*key).to_owned()));
            found.extend(page.prefixes.iter().map(|prefix| (*prefix).to_owned()));
            match page.next {
                Some(next) => after = next.to_owned(),
                None => return found,
            }
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_all_names_once(
            keys in prop::collection::btree_set("[ab/0]{1,5}", 0..40), prefix in "[ab/]{0,2}", delimiter: bool, max in 1_usize..5
        ) {
            let mut world = World::new();
            for key in &keys {
                world.add(key.clone(), 1);
            }
            let expected: BTreeSet<String> = keys.iter().filter_map(|key| {
                let rest = key.strip_prefix(&prefix)?;
                let slash = rest.find('/').filter(|_| delimiter);
                Some(slash.map_or(key.clone(), |slash| key[..=prefix.len() + slash].to_owned()))
            }).collect();
            let mut found = all(&world, &prefix, delimiter, max);
            found.sort();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query =
            Query::parse("list-type=2&prefix=a%20b%2F&delimiter=%2F&max-keys=7&continuation-token=x%26y&start-after=q");
        assert!(query.second && query.delimiter && !query.url && !query.location);
        assert_eq!((query.prefix.as_str(), query.after.as_str(), query.max), ("a b/", "x&y", Some(7)));
        assert!(Query::parse("location").location);
    }
}
