//! What the store holds: objects made up from one buffer of random bytes, so that a terabyte costs nothing to keep and no time
//! to serve, and every byte of it can be checked.

use std::collections::BTreeMap;

use anyhow::Context as _;
use oss::crc::Crc64Nvme;

/// Length of the repeating buffer. Not a multiple of any block size, so that a block served from the wrong place shows.
const PERIOD: usize = (8 << 20) + 4099;

/// The largest piece handed out at once.
const PIECE: usize = 1 << 20;

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Its length in bytes.
    pub size: u64,
    /// Where in the buffer it begins.
    seed: u64,
}

impl Object {
    /// The object of that length and seed, in another process.
    pub fn from_parts(size: u64, seed: u64) -> Self {
        Self { size, seed }
    }

    /// See [`Self::from_parts`].
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Its entity tag, quoted. The dash says that it is no MD5 sum.
    pub fn etag(&self) -> String {
        format!("\"{:016x}{:016x}-1\"", self.seed, self.size)
    }
}

/// All objects of the bucket.
#[derive(Debug)]
pub struct World {
    buffer: Vec<u8>,
    objects: BTreeMap<String, Object>,
    /// CRC-64/NVME of those whose readers shall be able to verify them.
    sums: BTreeMap<String, u64>,
}

impl World {
    /// An empty bucket. The bytes are the same in every run.
    pub fn new() -> Self {
        let mut buffer = vec![0; PERIOD];
        fastrand::Rng::with_seed(0x0bea_5717).fill(&mut buffer);
        Self { buffer, objects: BTreeMap::new(), sums: BTreeMap::new() }
    }

    /// Adds an object of `size` bytes; one that is there already must have the same size.
    pub fn add(&mut self, key: impl Into<String>, size: u64) {
        let seed = fastrand::Rng::with_seed(u64::try_from(self.objects.len()).unwrap_or(0)).u64(..);
        self.objects.entry(key.into()).or_insert(Object { size, seed });
    }

    /// The same with a checksum, which takes as long as reading it.
    pub fn add_summed(&mut self, key: impl Into<String>, size: u64) {
        let key = key.into();
        self.add(key.clone(), size);
        let Some(object) = self.get(&key).filter(|_| !self.sums.contains_key(&key)) else { return };
        let mut sum = Crc64Nvme::new();
        let mut offset = 0;
        while offset < object.size {
            let piece = self.bytes(object, offset, object.size - offset);
            sum.update(piece);
            offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        self.sums.insert(key, sum.value());
    }

    /// The CRC-64/NVME of the object of that key, if it has one.
    pub fn sum(&self, key: &str) -> Option<u64> {
        self.sums.get(key).copied()
    }

    /// The object of that key.
    pub fn get(&self, key: &str) -> Option<Object> {
        self.objects.get(key).copied()
    }

    /// The same for what has to be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn object(&self, key: &str) -> anyhow::Result<Object> {
        self.get(key).with_context(|| format!("the case has not prepared {key}"))
    }

    /// All objects by key.
    pub fn objects(&self) -> &BTreeMap<String, Object> {
        &self.objects
    }

    /// Some of the object's bytes from `offset` on: at least one and at most `max`, as many as lie in one piece. Nothing is
    /// copied.
    pub fn bytes(&self, object: Object, offset: u64, max: u64) -> &[u8] {
        let period = u64::try_from(PERIOD).unwrap_or(u64::MAX);
        let from = usize::try_from((object.seed % period + offset % period) % period).unwrap_or(0);
        let wanted = usize::try_from(max).unwrap_or(usize::MAX).min(PIECE);
        &self.buffer[from..PERIOD.min(from + wanted)]
    }

    /// Whether `bytes` are those of the object at `offset`.
    pub fn matches(&self, object: Object, mut offset: u64, mut bytes: &[u8]) -> bool {
        let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if offset + length(bytes) > object.size {
            return false;
        }
        while !bytes.is_empty() {
            let piece = self.bytes(object, offset, length(bytes));
            let (head, rest) = bytes.split_at(piece.len());
            if head != piece {
                return false;
            }
            offset += length(piece);
            bytes = rest;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_object_and_a_wrong_byte_is_seen() {
        let mut world = World::new();
        world.add("a", 20 << 20);
        world.add("b", 20 << 20);
        let (a, b) = (world.get("a").unwrap(), world.get("b").unwrap());
        assert_ne!(a.etag(), b.etag());
        let from = (7 << 20) + 13;
        let mut bytes = Vec::new();
        while bytes.len() < 3 << 20 {
            bytes.extend_from_slice(world.bytes(a, from + bytes.len() as u64, u64::MAX));
        }
        assert!(world.matches(a, from, &bytes));
        // The same bytes in another object, a block further on, or with one bit changed are not the object's.
        assert!(!world.matches(b, from, &bytes));
        assert!(!world.matches(a, from + (1 << 20), &bytes));
        assert!(!world.matches(a, from - (1 << 20), &bytes));
        bytes[1_234_567] ^= 1;
        assert!(!world.matches(a, from, &bytes));
        assert!(!world.matches(a, (20 << 20) - 1, &[0, 0]));
    }
}
