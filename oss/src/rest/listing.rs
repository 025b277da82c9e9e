//! Listings.

use http::Method;

use super::call::{Call, Dialect, Reply};
use super::fault::Fault;
use super::xml::{self, Listing};
use super::{RestStore, is_archived, parse_time};
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{ETag, ListPage, ListRequest, ObjectMeta};

/// The most keys on a page, by either vendor's limit.
const PAGE: u32 = 1000;

impl RestStore {
    /// One page.
    pub(super) async fn list_page(&self, request: ListRequest) -> Result<ListPage> {
        let channel = &self.channel;
        // Keys come URL-encoded: XML cannot hold every character that a key can.
        let mut call = Call::new("LIST", Method::GET, None).query("list-type", "2").query("encoding-type", "url");
        if !request.prefix.is_empty() {
            call = call.query("prefix", request.prefix.as_str());
        }
        if request.delimiter {
            call = call.query("delimiter", "/");
        }
        if let Some(token) = &request.continuation {
            call = call.query("continuation-token", token.as_str());
        }
        if let Some(after) = request.behind() {
            call = call.query("start-after", after);
        }
        // Said always: OSS gives a hundred when it is not asked for more.
        call = call.query("max-keys", request.max_keys.unwrap_or(PAGE).clamp(1, PAGE).to_string());
        let parse = |reply: &Reply| xml::parse::<Listing>(&reply.bytes, "listing");
        // A page that was cut off on the way is asked for again.
        let check =
            |reply: &Reply| parse(reply).map(|_| ()).map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why));
        let prefix = Key::new(request.prefix.as_str());
        let failed = |why: String| channel.error(ErrorKind::Unavailable, "LIST", Some(&prefix), why);
        let reply = channel.run(&call, channel.deadline(), &check).await.map_err(|failure| failure.error)?;
        let listing = parse(&reply).map_err(failed)?;

        let continuation =
            listing.next_continuation_token.clone().filter(|token| listing.is_truncated && !token.is_empty());
        if listing.is_truncated && (continuation.is_none() || continuation == request.continuation) {
            // Going on would never end, and stopping would hide what is there.
            return Err(failed("the store says there is more and not where".to_owned()));
        }
        let mut page = page(listing, channel.dialect(), continuation);
        if let Some(after) = request.behind() {
            // Servers differ in whether the prefix that the place lies in is behind it.
            page.prefixes.retain(|prefix| prefix.as_str() > after);
        }
        Ok(page)
    }
}

/// Turns a parsed listing into what callers see. Keys that are not UTF-8 are left out and said.
fn page(listing: Listing, dialect: Dialect, continuation: Option<String>) -> ListPage {
    let encoded = listing.encoding_type.eq_ignore_ascii_case("url");
    let decode = |text: String| {
        if !encoded {
            return Some(text);
        }
        let decoded = xml::decode_key(&text, dialect == Dialect::S3);
        if decoded.is_none() {
            tracing::warn!(key = text, "a key in the bucket is not UTF-8 and cannot be used");
        }
        decoded
    };
    let objects = listing.contents.into_iter().filter_map(|entry| {
        Some(ObjectMeta {
            key: Key::new(decode(entry.key)?),
            size: entry.size,
            etag: Some(ETag(entry.etag)).filter(|etag| !etag.0.is_empty()),
            modified: parse_time(&entry.last_modified),
            checksum: None,
            archived: is_archived(&entry.storage_class, &entry.restore_info),
        })
    });
    let objects = objects.collect();
    let prefixes = listing.common_prefixes.into_iter().filter_map(|entry| decode(entry.prefix)).collect();
    ListPage { objects, prefixes, continuation }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let parse = |text: &str| xml::parse::<Listing>(text.as_bytes(), "listing").unwrap();
        let oss = page(parse(&url), Dialect::Oss, None);
        assert_eq!(oss.objects.iter().map(|o| o.key.as_str()).collect::<Vec<_>>(), ["a+b+c"]);
        assert_eq!((oss.prefixes, oss.objects[0].archived), (vec!["d//".to_owned()], true));
        assert_eq!(page(parse(&url), Dialect::S3, None).objects[0].key.as_str(), "a+b c");
        let raw = page(parse(&body("")), Dialect::S3, None);
        assert_eq!(raw.objects.len(), 2);
        assert_eq!(raw.objects[0].key.as_str(), "a%2Bb+c");
    }
}
