//! One page of a listing, read in one pass.
//!
//! A walk over a large tree is mostly this: a page has a thousand entries of a dozen elements each. So it is read event by event
//! into what callers get, without a model of the document in between. Elements are known by their path from the root; all
//! others are skipped, because every server adds some.

use std::fmt;
use std::time::SystemTime;

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, Event};

use super::call::Dialect;
use super::{is_archived, xml};
use crate::location::Key;
use crate::store::{ETag, ListPage, ObjectMeta};

/// A page as it came.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Without its continuation.
    pub entries: ListPage,
    /// Whether the store says that there are more.
    pub is_truncated: bool,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// What an element is, by its name and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Page,
    IsTruncated,
    EncodingType,
    NextContinuationToken,
    Contents,
    Key,
    LastModified,
    ETag,
    Size,
    StorageClass,
    RestoreInfo,
    CommonPrefixes,
    Prefix,
    /// Nobody knows it.
    Other,
}

impl Element {
    fn of(parent: Option<Self>, name: &str) -> Self {
        match (parent, name) {
            (None, "ListBucketResult") => Self::Page,
            (Some(Self::Page), "IsTruncated") => Self::IsTruncated,
            (Some(Self::Page), "EncodingType") => Self::EncodingType,
            (Some(Self::Page), "NextContinuationToken") => Self::NextContinuationToken,
            (Some(Self::Page), "Contents") => Self::Contents,
            (Some(Self::Page), "CommonPrefixes") => Self::CommonPrefixes,
            (Some(Self::Contents), "Key") => Self::Key,
            (Some(Self::Contents), "LastModified") => Self::LastModified,
            (Some(Self::Contents), "ETag") => Self::ETag,
            (Some(Self::Contents), "Size") => Self::Size,
            (Some(Self::Contents), "StorageClass") => Self::StorageClass,
            (Some(Self::Contents), "RestoreInfo") => Self::RestoreInfo,
            (Some(Self::CommonPrefixes), "Prefix") => Self::Prefix,
            _ => Self::Other,
        }
    }
}

/// An entry in the making. Key and size must come.
#[derive(Default)]
struct Entry {
    key: Option<String>,
    size: Option<u64>,
    etag: Option<ETag>,
    modified: Option<SystemTime>,
    archived_class: bool,
    class: String,
    restore_info: String,
}

/// Reads a page. The error says what was expected and not what was there, which can be anything.
pub(crate) fn parse(body: &[u8], dialect: Dialect) -> Result<Page, String> {
    let bad = |why: &dyn fmt::Display| format!("the store's listing cannot be read: {why}");
    let text = std::str::from_utf8(body).map_err(|_| "the store's listing is not UTF-8".to_owned())?;
    let mut reader = Reader::from_str(text.trim_start());
    let mut page = Page::default();
    let mut encoding = String::new();
    let mut path: Vec<Element> = Vec::with_capacity(8);
    let mut entry = Entry::default();
    let mut value = String::new();
    let mut whole = false;
    loop {
        match reader.read_event().map_err(|error| bad(&error))? {
            Event::Start(start) => {
                path.push(Element::of(path.last().copied(), start.local_name().as_ref()));
                if path == [Element::Other] {
                    return Err(bad(&"it is another document"));
                }
                value.clear();
            }
            Event::Text(text) => {
                if wants_text(&path) {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::CData(text) => {
                if wants_text(&path) {
                    value.push_str(&text.xml10_content());
                }
            }
            Event::GeneralRef(reference) => {
                if wants_text(&path) {
                    push_reference(&mut value, &reference)
                        .ok_or_else(|| bad(&"it refers to what it does not define"))?;
                }
            }
            Event::End(_) => {
                let ended = path.pop();
                match ended.unwrap_or(Element::Other) {
                    Element::IsTruncated => {
                        page.is_truncated = match value.trim() {
                            "true" | "1" => true,
                            "false" | "0" | "" => false,
                            _ => return Err(bad(&"whether there is more is neither true nor false")),
                        };
                    }
                    Element::EncodingType => encoding.push_str(value.trim()),
                    Element::NextContinuationToken => page.next = Some(std::mem::take(&mut value)),
                    Element::Key => entry.key = Some(std::mem::take(&mut value)),
                    Element::Size => {
                        let size = value.trim().parse().map_err(|_| bad(&"a size is no number"))?;
                        entry.size = Some(size);
                    }
                    Element::ETag => {
                        entry.etag =
                            Some(value.trim()).filter(|etag| !etag.is_empty()).map(|etag| ETag(etag.to_owned()));
                    }
                    Element::LastModified => entry.modified = super::parse_time(&value),
                    Element::StorageClass => {
                        // Hardly any is; only those are kept for when it is known whether they were restored.
                        entry.archived_class = is_archived(value.trim(), "");
                        if entry.archived_class {
                            value.trim().clone_into(&mut entry.class);
                        }
                    }
                    Element::RestoreInfo => value.clone_into(&mut entry.restore_info),
                    Element::Contents => {
                        let object = std::mem::take(&mut entry).finish();
                        page.entries.objects.push(object.ok_or_else(|| bad(&"an entry has no key or no size"))?);
                    }
                    Element::Prefix => page.entries.prefixes.push(std::mem::take(&mut value)),
                    Element::Page => whole = true,
                    Element::CommonPrefixes | Element::Other => {}
                }
                value.clear();
            }
            Event::Empty(start) => {
                // Without a value, which is none for all that may be missing.
                match Element::of(path.last().copied(), start.local_name().as_ref()) {
                    Element::Page if path.is_empty() => whole = true,
                    Element::Key => entry.key = Some(String::new()),
                    Element::Contents => return Err(bad(&"an entry has no key or no size")),
                    _ => {}
                }
            }
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
    if !whole || !path.is_empty() {
        return Err(bad(&"it breaks off"));
    }
    if encoding.eq_ignore_ascii_case("url") {
        decode(&mut page.entries, dialect);
    }
    Ok(page)
}

/// Whether text here is the value of an element and not the space between elements.
fn wants_text(path: &[Element]) -> bool {
    !matches!(path.last(), None | Some(Element::Page | Element::Contents | Element::CommonPrefixes | Element::Other))
}

fn push_reference(value: &mut String, reference: &BytesRef<'_>) -> Option<()> {
    match reference.resolve_char_ref().ok()? {
        Some(character) => value.push(character),
        None => value.push_str(resolve_predefined_entity(reference)?),
    }
    Some(())
}

impl Entry {
    fn finish(self) -> Option<ObjectMeta> {
        Some(ObjectMeta {
            key: Key::new(self.key?),
            size: self.size?,
            etag: self.etag,
            modified: self.modified,
            checksum: None,
            archived: self.archived_class && is_archived(&self.class, &self.restore_info),
        })
    }
}

/// Turns keys and prefixes from what a URL can hold into what they are. Those that are not UTF-8 are left out and said.
fn decode(entries: &mut ListPage, dialect: Dialect) {
    let plain = |text: &str| !text.contains(['%', '+']);
    let decoded = |text: &str| {
        let decoded = xml::decode_key(text, dialect == Dialect::S3);
        if decoded.is_none() {
            tracing::warn!(key = text, "a key in the bucket is not UTF-8 and cannot be used");
        }
        decoded
    };
    entries.objects.retain_mut(|object| {
        if plain(object.key.as_str()) {
            return true;
        }
        decoded(object.key.as_str()).map(|key| object.key = Key::new(key)).is_some()
    });
    entries.prefixes.retain_mut(|prefix| plain(prefix) || decoded(prefix).map(|text| *prefix = text).is_some());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_listing_with_unknown_elements() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>not this</Prefix>
            <KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>
            <Contents><Key>a%20b%0A</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;abc&#34;</ETag>
            <ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><Size>5</Size><StorageClass>STANDARD</StorageClass>
            <Owner><ID>x</ID><Key>nor this</Key><Size>nor that</Size></Owner></Contents>
            <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes><!-- <Contents> -->
            <Contents><Key><![CDATA[e<f]]></Key><Size> 0 </Size><ETag/></Contents>
            <EncodingType>url</EncodingType><NextContinuationToken>tok=</NextContinuationToken></ListBucketResult>"#;
        let page = parse(body, Dialect::S3).unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next.as_deref(), Some("tok="));
        let [first, second] = &page.entries.objects[..] else { panic!("{page:?}") };
        assert_eq!((first.key.as_str(), first.size), ("a b\n", 5));
        assert_eq!(first.etag, Some(ETag("\"abc\"".into())));
        assert_eq!(first.modified, super::super::parse_time("2026-01-02T03:04:05Z"));
        assert_eq!((second.key.as_str(), second.size, &second.etag, second.modified), ("e<f", 0, &None, None));
        assert_eq!(page.entries.prefixes, ["d/"]);
        for empty in ["<ListBucketResult></ListBucketResult>", " \n<ListBucketResult/>"] {
            let page = parse(empty.as_bytes(), Dialect::Oss).unwrap();
            assert!(page.entries.objects.is_empty() && !page.is_truncated && page.next.is_none());
        }
    }

    #[test]
    fn what_is_no_whole_page_is_refused() {
        let entry = |inside: &str| format!("<ListBucketResult><Contents>{inside}</Contents></ListBucketResult>");
        assert!(parse(entry("<Key>k</Key><Size>1</Size>").as_bytes(), Dialect::S3).is_ok());
        for bad in [
            String::new(),
            "<html>welcome to the hotel</html>".to_owned(),
            "<ListBucketResult>".to_owned(),
            "<ListBucketResult><IsTruncated>perhaps</IsTruncated></ListBucketResult>".to_owned(),
            "<ListBucketResult><Contents/></ListBucketResult>".to_owned(),
            entry("<Key>k</Key>"),
            entry("<Size>1</Size>"),
            entry("<Key>k</Key><Size>-1</Size>"),
            entry("<Key>k&nonsense;</Key><Size>1</Size>"),
            entry("<Key>k</Size><Size>1</Key>"),
        ] {
            let why = parse(bad.as_bytes(), Dialect::S3).unwrap_err();
            assert!(why.contains("cannot be read"), "{bad}: {why}");
        }
        assert!(parse(b"<ListBucketResult>\xff</ListBucketResult>", Dialect::S3).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn a_page_is_decoded_by_its_own_word() {
        let body = |encoding: &str| {
            format!(
                "<ListBucketResult>{encoding}<Contents><Key>a%2Bb+c</Key><Size>1</Size>\
                 <StorageClass>Archive</StorageClass></Contents><Contents><Key>%FF</Key><Size>1</Size></Contents>\
                 <CommonPrefixes><Prefix>d%2F/</Prefix></CommonPrefixes></ListBucketResult>"
            )
        };
        let url = body("<EncodingType>url</EncodingType>");
        let read = |text: &str, dialect| parse(text.as_bytes(), dialect).unwrap().entries;
        let oss = read(&url, Dialect::Oss);
        assert_eq!(oss.objects.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), ["a+b+c"]);
        assert_eq!((oss.prefixes, oss.objects[0].archived), (vec!["d//".to_owned()], true));
        assert_eq!(read(&url, Dialect::S3).objects[0].key.as_str(), "a+b c");
        let raw = read(&body(""), Dialect::S3);
        assert_eq!(raw.objects.len(), 2);
        assert_eq!(raw.objects[0].key.as_str(), "a%2Bb+c");
    }

    #[test]
    fn what_was_restored_can_be_read() {
        let body = "<ListBucketResult><Contents><Key>k</Key><Size>1</Size><RestoreInfo>ongoing-request=\"false\"\
                    </RestoreInfo><StorageClass>ColdArchive</StorageClass></Contents></ListBucketResult>";
        assert!(!parse(body.as_bytes(), Dialect::Oss).unwrap().entries.objects[0].archived);
    }

    proptest! {
        #[test]
        fn every_key_comes_through_and_a_cut_page_never_does(
            keys in proptest::collection::vec(any::<String>(), 0..5), cut in 0.0_f64..1.0
        ) {
            let mut body = "<ListBucketResult><EncodingType>url</EncodingType>".to_owned();
            for key in &keys {
                let key = crate::sign::encode_path(key);
                body.push_str(&format!("<Contents><Key>{key}</Key><Size>7</Size></Contents>"));
            }
            body.push_str("</ListBucketResult>");
            let page = parse(body.as_bytes(), Dialect::Oss).unwrap();
            prop_assert!(page.entries.objects.iter().map(|object| object.key.as_str()).eq(keys.iter().map(String::as_str)));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place to cut at")]
            let cut = (body.len() as f64 * cut) as usize;
            prop_assert!(parse(&body.as_bytes()[..cut], Dialect::Oss).is_err());
        }

        #[test]
        fn anything_at_all_is_an_answer_or_an_error(body in any::<Vec<u8>>(), text in "[<>/&;a-zA-Z \"!\\[\\]-]{0,60}") {
            let _ = parse(&body, Dialect::S3);
            let _ = parse(format!("<ListBucketResult>{text}").as_bytes(), Dialect::S3);
        }
    }
}
