//! Reading what has grown, or is still growing, as one text.
//!
//! The parts are read one after the other. A part that is followed by another does not grow any more; so where one ends and the next is
//! there, it is looked at once more before it is left behind.
//!
//! Segments may be put together while they are being read. Then the first one's name suddenly stands for the whole, and the others
//! vanish, the last first. The copy of the first segment, which lies aside for so long, tells the one from the other; and
//! whoever misses a part goes on in the whole, at the same place of the text.

use std::sync::Arc;

use bytes::Bytes;

use super::Names;
use super::compose::Index;
use crate::error::{ErrorKind, Result};
use crate::location::Key;
use crate::store::{GetOptions, ObjectMeta, Store};

/// The most that one call reads, in bytes.
const CHUNK: u64 = 8 << 20;
/// The longest index that is read, in bytes; it is some 150 bytes per part.
const MAX_INDEX: u64 = 64 << 20;

/// Reads a grown object from its beginning.
#[derive(Debug)]
pub struct GrownReader {
    store: Arc<dyn Store>,
    names: Names,
    plan: Plan,
    /// How many bytes of the text are behind us.
    position: u64,
    /// Of these, how many in the present part.
    in_part: u64,
    /// How many bytes of what follows are not wanted.
    skip: u64,
}

/// What makes the text.
#[derive(Debug)]
enum Plan {
    /// Not yet known.
    Unknown,
    /// Parts that follow each other by number; this is the present one.
    Parts(usize),
    /// The object alone, whatever parts there are.
    Whole,
    /// What an index lists, and the present entry of it.
    Listed(Vec<Key>, usize),
}

impl GrownReader {
    /// Reads the object `key` and what belongs to it.
    pub fn new(store: Arc<dyn Store>, key: Key) -> Self {
        Self::at(store, key, 0)
    }

    /// The same from the byte `position` of the text on.
    pub fn at(store: Arc<dyn Store>, key: Key, position: u64) -> Self {
        let names = Names { root: store.root().clone(), key };
        Self { store, names, plan: Plan::Unknown, position: 0, in_part: 0, skip: position }
    }

    /// Where in the text the next bytes are.
    pub fn position(&self) -> u64 {
        self.position + self.skip
    }

    /// The next bytes, at most 8 MiB. None when there are no more now; more may come while the object grows, and it may
    /// not even exist yet.
    ///
    /// # Errors
    /// The store's own. It may be called again after any.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if matches!(self.plan, Plan::Unknown) {
                self.plan = self.find_plan().await?;
            }
            let Some(key) = self.key() else { return Ok(None) };
            let Some(meta) = self.find(&key).await? else {
                if self.turn_to_whole().await? {
                    continue;
                }
                if self.position == 0 {
                    // What is there at first may be another thing altogether than what is there later.
                    self.plan = Plan::Unknown;
                }
                return Ok(None);
            };
            if meta.size > self.in_part {
                let unwanted = self.skip.min(meta.size - self.in_part);
                self.skip -= unwanted;
                self.step(unwanted);
                if self.in_part == meta.size {
                    continue;
                }
                return self.read(&key, meta.size).await;
            }
            if !self.turn_to_next(&key).await? {
                return Ok(None);
            }
        }
    }

    fn step(&mut self, bytes: u64) {
        self.position += bytes;
        self.in_part += bytes;
    }

    /// The object that is being read.
    fn key(&self) -> Option<Key> {
        match &self.plan {
            Plan::Unknown => None,
            Plan::Parts(number) => Some(self.names.part(*number)),
            Plan::Whole => Some(self.names.key.clone()),
            Plan::Listed(keys, at) => keys.get(*at).cloned(),
        }
    }

    async fn find(&self, key: &Key) -> Result<Option<ObjectMeta>> {
        match self.store.head(key).await {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.is_not_found() => Ok(None),
            // Without the right to list, S3 answers so for what is absent, too.
            Err(error) if *error.kind() == ErrorKind::Denied && *key != self.names.key => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn find_plan(&self) -> Result<Plan> {
        if let Some(keys) = self.index().await? {
            return Ok(Plan::Listed(keys, 0));
        }
        let is_whole = self.is_whole().await?;
        Ok(if is_whole { Plan::Whole } else { Plan::Parts(0) })
    }

    async fn index(&self) -> Result<Option<Vec<Key>>> {
        let key = self.names.index();
        let Some(meta) = self.find(&key).await? else { return Ok(None) };
        if meta.size > MAX_INDEX {
            return Err(self.names.error(ErrorKind::Invalid, format!("{key} is too long to be an index")));
        }
        let bytes = match self.store.get(&key, GetOptions::default()).await {
            Ok(answer) => answer.bytes().await?,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| {
            self.names.error(ErrorKind::Invalid, format!("{key} is not an index of parts: {error}")).with_source(error)
        })?;
        Ok(Some(index.parts.into_iter().map(|part| Key::new(part.key)).collect()))
    }

    /// Whether the object is the whole although there are still segments: their copy of the first is then shorter.
    async fn is_whole(&self) -> Result<bool> {
        let Some(aside) = self.find(&self.names.first_copy()).await? else { return Ok(false) };
        Ok(self.find(&self.names.key).await?.is_some_and(|first| first.size > aside.size))
    }

    /// A later part is gone, or the last one is read: goes on in the object itself if that has become the whole.
    async fn turn_to_whole(&mut self) -> Result<bool> {
        if !matches!(self.plan, Plan::Parts(1..)) {
            return Ok(false);
        }
        let has_grown = self.find(&self.names.key).await?.is_some_and(|whole| whole.size > self.position);
        if has_grown {
            self.plan = Plan::Whole;
            self.in_part = self.position;
        }
        Ok(has_grown)
    }

    /// The present object, `key`, is read to its end: goes on if something follows.
    async fn turn_to_next(&mut self, key: &Key) -> Result<bool> {
        let number = match &mut self.plan {
            Plan::Listed(keys, at) => {
                // The last one stays the present one.
                let more = *at + 1 < keys.len();
                if more {
                    *at += 1;
                    self.in_part = 0;
                }
                return Ok(more);
            }
            Plan::Parts(number) => *number,
            Plan::Unknown | Plan::Whole => return Ok(false),
        };
        if self.find(&self.names.part(number + 1)).await?.is_none() {
            return self.turn_to_whole().await;
        }
        if number == 0 {
            // It may have become the whole since it was first looked at.
            if self.is_whole().await? {
                self.plan = Plan::Whole;
                return Ok(true);
            }
            if self.index().await?.is_some() {
                (self.plan, self.skip) = (Plan::Unknown, self.position + self.skip);
                (self.position, self.in_part) = (0, 0);
                return Ok(true);
            }
        }
        match self.find(key).await? {
            // It had not been at its end after all.
            Some(meta) if meta.size > self.in_part => {}
            Some(_) => (self.plan, self.in_part) = (Plan::Parts(number + 1), 0),
            None => return self.turn_to_whole().await,
        }
        Ok(true)
    }

    async fn read(&mut self, key: &Key, size: u64) -> Result<Option<Bytes>> {
        let range = self.in_part..size.min(self.in_part + CHUNK);
        let options = GetOptions { range: Some(range), if_match: None };
        let bytes = match self.store.get(key, options).await {
            Ok(answer) => answer.bytes().await?,
            // Put together or put again meanwhile: the next look tells.
            Err(error) if error.is_not_found() || *error.kind() == ErrorKind::Invalid => return Ok(None),
            Err(error) => return Err(error),
        };
        self.step(bytes.len() as u64);
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GrowingObject, GrowingOptions};
    use super::*;
    use crate::conformance::sample;
    use crate::memory::{Fault, Keeps, MemoryStore, Operation};

    fn small() -> GrowingOptions {
        GrowingOptions { max_append_size: 70, segment_size: 50, piece: 30, ..GrowingOptions::default() }
    }

    fn like_s3() -> MemoryStore {
        MemoryStore::s3().with_checksum(Keeps::Crc64Nvme).with_capabilities(|can| can.min_part_size = 50)
    }

    async fn drain(reader: &mut GrownReader, text: &mut Vec<u8>) {
        while let Some(bytes) = reader.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
    }

    /// Readers that begin at every stage, and one that follows from the beginning, read the same.
    #[tokio::test]
    async fn it_is_read_as_it_grows_and_after_it_was_put_together() {
        let never_removed = like_s3();
        never_removed.hook(|call| match call.operation {
            Operation::Delete if !call.key.as_str().ends_with("part-2") => Fault::Before(ErrorKind::Denied),
            _ => Fault::None,
        });
        let models =
            [MemoryStore::oss(), like_s3(), like_s3().with_capabilities(|can| can.copy_part = false), never_removed];
        for model in models {
            let store: Arc<dyn Store> = Arc::new(model);
            let bytes = sample(170, 1);
            let mut follower = GrownReader::new(Arc::clone(&store), Key::new("log"));
            let mut followed = Vec::new();
            drain(&mut follower, &mut followed).await;
            let mut grow = GrowingObject::create(Arc::clone(&store), Key::new("log"), small()).await.unwrap();
            let mut readers = Vec::new();
            for end in [10, 49, 50, 51, 99, 101, 130, 170] {
                grow.append(bytes.slice(usize::try_from(grow.len()).unwrap()..end)).await.unwrap();
                if end != 101 {
                    drain(&mut follower, &mut followed).await;
                    assert_eq!(followed, bytes[..end]);
                }
                let (mut reader, mut read) = (GrownReader::new(Arc::clone(&store), Key::new("log")), Vec::new());
                drain(&mut reader, &mut read).await;
                assert_eq!(read, bytes[..end]);
                readers.push((reader, read));
            }
            grow.finish().await.unwrap();
            readers.push((follower, followed));
            readers.push((GrownReader::new(Arc::clone(&store), Key::new("log")), Vec::new()));
            for (mut reader, mut read) in readers {
                drain(&mut reader, &mut read).await;
                assert_eq!(read, bytes);
            }
            for from in [0, 1, 50, 77, 100, 169, 170] {
                let mut reader = GrownReader::at(Arc::clone(&store), Key::new("log"), from as u64);
                let mut read = Vec::new();
                drain(&mut reader, &mut read).await;
                assert_eq!((reader.position(), read), (170, bytes[from..].to_vec()));
            }
        }
    }
}
