//! Whether a local file and an object hold the same, without moving either.
//!
//! Transfers of whole directories that are run again ask this of each file that is there already. What agrees in length and
//! by a checksum of all bytes need not travel; times and names of versions are never believed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use md5::{Digest, Md5};

use super::{TransferBudget, blocking, local};
use crate::error::Result;
use crate::location::{Key, Location};
use crate::store::{Checksum, ObjectMeta, Store};
use crate::sums::Sums;

const OPERATION: &str = "COMPARE";
/// How much of the file is in memory at once, in bytes.
const CHUNK: usize = 1 << 20;

/// What a comparison has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes, which have this CRC-64/XZ.
    Same(u64),
    /// Others.
    Different,
    /// The store keeps no checksum of the object that could be compared, so nobody knows.
    Unknown,
}

/// Compares the object `key` with `file`, all of it. Costs one request, and the file is read only when the lengths agree and
/// the store keeps a checksum.
///
/// # Errors
/// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound), [`ErrorKind::LocalFile`](crate::ErrorKind::LocalFile) when the file cannot
/// be read, and the store's own.
pub async fn compare(store: &Arc<dyn Store>, key: &Key, file: File, budget: &TransferBudget) -> Result<Comparison> {
    let lease = budget.lease(CHUNK as u64).await;
    let meta = store.head(key).await?;
    let location = store.root().with_key(key.clone());
    let target = location.clone();
    // The lease goes along: a caller that is gone does not end the reading.
    let compared = blocking(OPERATION, &location, move || {
        let _lease = lease;
        with(&file, &meta, &target)
    });
    compared.await?
}

/// Compares `file` with what the store says of the object. Blocking.
fn with(file: &File, meta: &ObjectMeta, location: &Location) -> Result<Comparison> {
    let unreadable = |error| local(OPERATION, location, "the local file cannot be read", error);
    if file.metadata().map_err(unreadable)?.len() != meta.size {
        return Ok(Comparison::Different);
    }
    let Some(checksum) = meta.checksum else { return Ok(Comparison::Unknown) };
    let wants_md5 = matches!(checksum, Checksum::Md5(_));
    let mut md5 = Md5::new();
    let mut sums = Sums::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match file.read_at(&mut buffer, sums.size) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        sums = sums.then(Sums::of(&buffer[..count]));
        if wants_md5 {
            md5.update(&buffer[..count]);
        }
        if sums.size > meta.size {
            // It grows under our eyes.
            return Ok(Comparison::Different);
        }
    }
    let agree = match checksum {
        Checksum::Md5(expected) => Some(md5.finalize()[..] == expected),
        other => sums.agree(Some(other)),
    };
    Ok(match agree {
        Some(true) if sums.size == meta.size => Comparison::Same(sums.crc64),
        Some(_) => Comparison::Different,
        None => Comparison::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::sample;
    use crate::crc::crc64;
    use crate::error::ErrorKind;
    use crate::memory::{Keeps, MemoryStore};
    use crate::store::PutMode;

    #[tokio::test]
    async fn the_same_is_told_from_another_by_every_checksum() {
        let directory = tempfile::tempdir().unwrap();
        let budget = TransferBudget::default();
        let path = directory.path().join("file");
        for size in [0, 1, CHUNK, CHUNK + 1] {
            let bytes = sample(size, 1);
            for keeps in [Keeps::Nothing, Keeps::Crc64, Keeps::Crc64Nvme, Keeps::Md5] {
                let store: Arc<dyn Store> = Arc::new(MemoryStore::oss().with_checksum(keeps));
                let key = Key::new("k");
                store.put(&key, bytes.clone(), PutMode::Overwrite).await.unwrap();
                let of = async |content: &[u8]| {
                    std::fs::write(&path, content).unwrap();
                    compare(&store, &key, File::open(&path).unwrap(), &budget).await.unwrap()
                };
                let known = keeps != Keeps::Nothing;
                let same = if known { Comparison::Same(crc64(&bytes)) } else { Comparison::Unknown };
                assert_eq!(of(&bytes).await, same, "{size} {keeps:?}");
                assert_eq!(of(&[&bytes[..], b"x"].concat()).await, Comparison::Different);
                if let Some((last, rest)) = bytes.split_last() {
                    let other = if known { Comparison::Different } else { Comparison::Unknown };
                    assert_eq!(of(&[rest, &[last ^ 1]].concat()).await, other, "{size} {keeps:?}");
                    assert_eq!(of(rest).await, Comparison::Different);
                }
            }
        }
        let store: Arc<dyn Store> = Arc::new(MemoryStore::oss());
        let missing = compare(&store, &Key::new("k"), File::open(&path).unwrap(), &budget).await;
        assert_eq!(*missing.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
