//! What this node has left on a device that is not empty: the mark of an unfinished file system, and whether there is
//! anything that is *not* this node's.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::identity::{PREFIX, Uuid};
use crate::mark;
use crate::sample::nonzero_blocks;

/// Traces of this node on a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// The mark: a file system with this UUID was begun here, on an empty device, and has never been mounted.
    pub mark: Option<Uuid>,
    /// The UUIDs of this node that were found in the samples, without that in the mark.
    pub uuids: BTreeSet<Uuid>,
    /// The first block of the samples that is not zero and carries no UUID of this node: somebody else's, or a file's.
    pub stranger_at: Option<u64>,
    /// The member of an array that the device says to be.
    pub member: Option<Member>,
    /// Whether it is an ext4 whose superblock says that everything has been written.
    pub clean_ext4: bool,
    /// Whether the kernel keeps the device for somebody: a `mkfs` that still runs.
    pub claimed: bool,
}

/// What the superblock of a member of an array says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The array.
    pub array: Uuid,
    /// How many members it has.
    pub disks: u32,
}

impl Traces {
    /// Whether every block that was read and is not zero carries this UUID, or is the mark.
    pub fn only(&self, uuid: Uuid) -> bool {
        self.stranger_at.is_none() && self.uuids.iter().all(|found| *found == uuid)
    }
}

/// Looks for traces of the node whose UUIDs begin like this.
pub(crate) fn trace(file: &File, size: u64, prefix: &[u8; PREFIX]) -> io::Result<Traces> {
    let mut traces = Traces { member: member(file)?, clean_ext4: clean_ext4(file)?, ..Traces::default() };
    traces.mark = mark::read(file, size)?.filter(|uuid| uuid.as_bytes().starts_with(prefix));
    let marked = traces.mark.map(|_| mark::position(size));
    nonzero_blocks(file, size, |at, block| {
        if Some(at) == marked {
            return true;
        }
        let found = uuids(block, prefix);
        if found.is_empty() {
            traces.stranger_at = Some(at);
            return false;
        }
        traces.uuids.extend(found);
        true
    })?;
    Ok(traces)
}

/// The UUIDs of a node in a block.
fn uuids(block: &[u8], prefix: &[u8; PREFIX]) -> Vec<Uuid> {
    let windows = block.windows(16).filter(|window| window.starts_with(prefix));
    windows.filter_map(|window| window.try_into().ok().map(Uuid::from_bytes)).collect()
}

/// The superblock of `md`, version 1.2: at 4 KiB, little-endian. See `struct mdp_superblock_1` of the kernel.
fn member(file: &File) -> io::Result<Option<Member>> {
    let mut block = [0; 256];
    file.read_exact_at(&mut block, 4096)?;
    let number = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if number(0) != 0xA92B_4EFC || number(4) != 1 {
        return Ok(None);
    }
    let mut array = [0; 16];
    array.copy_from_slice(&block[16..32]);
    Ok(Some(Member { array: Uuid::from_bytes(array), disks: number(92) }))
}

/// Whether the superblock is that of an ext4 whose `s_state` says "unmounted cleanly". `mke2fs` writes that last.
fn clean_ext4(file: &File) -> io::Result<bool> {
    let mut block = [0; 128];
    file.read_exact_at(&mut block, 1024)?;
    Ok(block[56..58] == [0x53, 0xEF] && block[58] & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Made, Node};

    const SIZE: u64 = 300 << 20;

    #[test]
    fn what_is_ours_is_told_from_what_is_not() {
        let node = Node::new("i-1");
        let (ours, other) = (node.uuid("/data", Made::FileSystem), Node::new("i-2").uuid("/data", Made::FileSystem));
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let look = || trace(&file, SIZE, node.prefix()).unwrap();
        assert_eq!(look(), Traces::default());
        mark::write(&file, SIZE, ours).unwrap();
        file.write_all_at(ours.as_bytes(), 32).unwrap();
        file.write_all_at(ours.as_bytes(), SIZE / 4 + 4096 - 16).unwrap();
        let traces = look();
        assert_eq!((traces.mark, traces.stranger_at), (Some(ours), None));
        assert_eq!(traces.uuids, BTreeSet::from([ours]));
        assert!(traces.only(ours) && !traces.only(node.uuid("/data", Made::Array)));
        // Another node's, and a byte of a file.
        file.write_all_at(other.as_bytes(), SIZE - 4096).unwrap();
        assert_eq!(look().stranger_at, Some(SIZE - 4096));
        file.write_all_at(&[0; 16], SIZE - 4096).unwrap();
        file.write_all_at(&[1], 8192).unwrap();
        assert_eq!(look().stranger_at, Some(8192));
        assert!(!look().only(ours));
    }

    #[test]
    fn the_superblock_of_a_member() {
        let uuid = Node::new("i-1").uuid("/data", Made::Array);
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(&0xA92B_4EFC_u32.to_le_bytes(), 4096).unwrap();
        file.write_all_at(&1_u32.to_le_bytes(), 4100).unwrap();
        file.write_all_at(uuid.as_bytes(), 4112).unwrap();
        file.write_all_at(&3_u32.to_le_bytes(), 4096 + 92).unwrap();
        assert_eq!(member(&file).unwrap(), Some(Member { array: uuid, disks: 3 }));
        file.write_all_at(&[0], 4096).unwrap();
        assert_eq!(member(&file).unwrap(), None);
    }
}
