//! The mark: how a file system that is still being made is told from somebody's data.
//!
//! `mkfs` that is killed half-way leaves a disk that is not empty and carries no label. To know it again, a block is
//! written before `mkfs` starts, onto a disk that has just been proved empty, and taken away when `mkfs` has succeeded and
//! before the file system is mounted for the first time. It lies 1 MiB before the end, where neither `mkfs.xfs` (which
//! clears the last 128 KiB) nor `mkfs.ext4` (which clears the last sectors) writes.
//!
//! The mark alone permits nothing. What lies on a marked disk is cleared only when every block that was read and is not
//! zero carries the UUID of the very file system that was being made: `mkfs.xfs` writes it into every block it writes.
//! So nothing is lost but a file system that has never been mounted; whatever a person may have put there since
//! is without that UUID, and is refused. `mkfs.ext4` writes blocks without it, so an unfinished ext4 is refused, too, and the
//! message says what it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::identity::Uuid;

/// The size of the mark in bytes: the largest sector of a disk.
pub(crate) const LENGTH: usize = 4096;

/// How far before the end of the device it lies, in bytes.
const BEFORE_END: u64 = 1 << 20;

const MAGIC: &[u8; 16] = b"nvme-setup mark\n";

/// The version of the form.
const VERSION: u32 = 1;

/// Where the mark lies on a device of `size` bytes, which must be larger than 2 MiB.
pub(crate) fn position(size: u64) -> u64 {
    (size - BEFORE_END) & !4095
}

/// The mark for a file system on a device of `size` bytes.
fn encode(uuid: Uuid, size: u64) -> [u8; LENGTH] {
    let mut block = [0; LENGTH];
    block[..16].copy_from_slice(MAGIC);
    block[16..20].copy_from_slice(&VERSION.to_le_bytes());
    block[24..32].copy_from_slice(&size.to_le_bytes());
    block[32..48].copy_from_slice(uuid.as_bytes());
    let digest = Sha256::digest(&block[..64]);
    block[64..96].copy_from_slice(&digest);
    block
}

/// The UUID in a block, when the block is a mark for a device of `size` bytes, to the last bit.
fn decode(block: &[u8; LENGTH], size: u64) -> Option<Uuid> {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&block[32..48]);
    let uuid = Uuid::from_bytes(uuid);
    (encode(uuid, size) == *block).then_some(uuid)
}

/// The mark on a device.
pub(crate) fn read(file: &File, size: u64) -> io::Result<Option<Uuid>> {
    let mut block = [0; LENGTH];
    file.read_exact_at(&mut block, position(size))?;
    Ok(decode(&block, size))
}

/// Writes it, and returns when it is on the disk.
pub(crate) fn write(file: &File, size: u64, uuid: Uuid) -> io::Result<()> {
    file.write_all_at(&encode(uuid, size), position(size))?;
    file.sync_all()
}

/// Takes it away, if it is there and of this file system; anything else is left as it is.
pub(crate) fn remove(file: &File, size: u64, uuid: Uuid) -> io::Result<()> {
    if read(file, size)? == Some(uuid) {
        file.write_all_at(&[0; LENGTH], position(size))?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_where_it_was_written_and_nowhere_else() {
        let uuid = Uuid::from_bytes([7; 16]);
        for size in [300 << 20, (300 << 20) + 512, 1_000_000_000_512] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            assert_eq!(read(&file, size).unwrap(), None);
            write(&file, size, uuid).unwrap();
            assert_eq!(read(&file, size).unwrap(), Some(uuid));
            assert_eq!(position(size) % 4096, 0);
            // A disk that has grown or shrunk since is another disk.
            assert_eq!(decode(&encode(uuid, size), size + 512), None);
            remove(&file, size, Uuid::from_bytes([8; 16])).unwrap();
            assert_eq!(read(&file, size).unwrap(), Some(uuid));
            remove(&file, size, uuid).unwrap();
            let mut block = [1; LENGTH];
            file.read_exact_at(&mut block, position(size)).unwrap();
            assert_eq!(block, [0; LENGTH]);
        }
    }

    #[test]
    fn every_bit_counts() {
        let block = encode(Uuid::from_bytes([7; 16]), 1 << 30);
        for at in [0, 17, 20, 25, 33, 50, 70, 100, 4095] {
            let mut torn = block;
            torn[at] ^= 1;
            assert_eq!(decode(&torn, 1 << 30), None, "{at}");
        }
    }
}
