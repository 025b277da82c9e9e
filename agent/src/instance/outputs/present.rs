//! What is in storage already of what is to be sent.
//!
//! One listing of the place tells the lengths of all that is there, so that an upload that is run again asks only for the checksums
//! of objects that may be the same, and a first one asks for none.

use std::collections::HashMap;

use oss::{ListRequest, Location, Store, Stores};

use super::{Job, Source};

/// Marks the files whose objects are there with the same length. Without the right to list, none are: then all are sent.
pub(super) async fn mark(sources: &[Source], stores: &Stores, jobs: &mut [Job]) {
    let mut wanted: HashMap<Location, Vec<usize>> = HashMap::new();
    for (number, job) in jobs.iter().enumerate() {
        wanted.entry(job.target.clone()).or_default().push(number);
    }
    for target in sources.iter().map(|source| &source.output.target) {
        if !target.is_directory() {
            for number in wanted.get(target).into_iter().flatten() {
                jobs[*number].may_be_there = true;
            }
            continue;
        }
        // One that cannot be opened has failed already.
        let Ok(store) = stores.open(target) else { continue };
        if let Err(error) = list(&*store, target, &wanted, jobs).await {
            tracing::warn!("what is there already is not known, so all of it is sent: {error}");
        }
    }
}

async fn list(
    store: &dyn Store,
    directory: &Location,
    wanted: &HashMap<Location, Vec<usize>>,
    jobs: &mut [Job],
) -> oss::Result<()> {
    let mut request = ListRequest { prefix: directory.key().to_string(), ..ListRequest::default() };
    loop {
        let page = store.list(request.clone()).await?;
        for object in page.objects {
            for number in wanted.get(&directory.with_key(object.key)).into_iter().flatten() {
                jobs[*number].may_be_there |= jobs[*number].size == object.size;
            }
        }
        let Some(next) = page.continuation else { return Ok(()) };
        request.continuation = Some(next);
    }
}
