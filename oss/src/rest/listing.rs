//! Listings.

use std::sync::{Mutex, PoisonError};

use http::Method;

use super::RestStore;
use super::call::{Call, Reply};
use super::fault::Fault;
use super::page::{self, Page};
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{ListPage, ListRequest};

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
        // A page that was cut off on the way is asked for again.
        let parsed = Mutex::new(None);
        let check = |reply: &Reply| {
            let page = page::parse(&reply.bytes, channel.dialect());
            let page = page.map_err(|why| Fault::in_answer(ErrorKind::Unavailable, why))?;
            *parsed.lock().unwrap_or_else(PoisonError::into_inner) = Some(page);
            Ok(())
        };
        channel.run(&call, channel.deadline(), &check).await.map_err(|failure| failure.error)?;
        let Page { entries: mut page, is_truncated, next } =
            parsed.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();

        page.continuation = next.filter(|token| is_truncated && !token.is_empty());
        if is_truncated && (page.continuation.is_none() || page.continuation == request.continuation) {
            // Going on would never end, and stopping would hide what is there.
            let why = "the store says there is more and not where";
            let prefix = Key::new(request.prefix.as_str());
            return Err(channel.error(ErrorKind::Unavailable, "LIST", Some(&prefix), why));
        }
        if let Some(after) = request.behind() {
            // Servers differ in whether the prefix that the place lies in is behind it.
            page.prefixes.retain(|prefix| prefix.as_str() > after);
        }
        Ok(page)
    }
}
