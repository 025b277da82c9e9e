//! Whose a file system or an array is, told from its UUID.
//!
//! Everything that is made here gets a UUID that is computed and not drawn: two bytes that say "made by this program", six
//! that stand for the node, eight that stand for the node, the volume and what is made (file system or array). So what is
//! ours is decided from the disk alone: no file that remembers, which could be stale, in an image, or on the disk
//! that it is about. A label would do as well, had xfs more than twelve bytes for it.
//!
//! The form is that of RFC 9562, version 8. It proves nothing against somebody who wants to be taken for us: whoever can
//! write a whole disk can have it mounted, as with any other label. Nothing is ever erased because of a UUID alone.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::sysfs::Roots;

/// How every UUID of ours begins.
const TAG: [u8; 2] = [0xBA, 0x7C];

/// How many bytes are the same in all UUIDs of a node: the tag and the node.
pub(crate) const PREFIX: usize = 8;

/// A UUID of a file system or an array.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// The sixteen bytes in the order in which they are written, which is that on the disk.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The sixteen bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// As `mdadm` writes it: four groups with colons between.
    pub fn for_mdadm(&self) -> String {
        let words: Vec<String> = self.0.chunks(4).map(hex).collect();
        words.join(":")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |range: std::ops::Range<usize>| hex(&self.0[range]);
        write!(f, "{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = ();

    /// Reads 32 hexadecimal digits with dashes or colons anywhere between them, as blkid and mdadm print them.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 16];
        let mut digits = text.bytes().filter(|byte| !matches!(byte, b'-' | b':'));
        let mut digit = || char::from(digits.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        for byte in &mut bytes {
            let (Some(high), Some(low)) = (digit(), digit()) else { return Err(()) };
            *byte = high << 4 | low;
        }
        if digits.next().is_some() { Err(()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a UUID is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// A file system.
    FileSystem,
    /// A RAID array.
    Array,
}

/// Whose a UUID is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Made by this program on this node.
    ThisNode,
    /// Made by this program on another node.
    AnotherNode,
}

/// The machine that volumes belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    id: String,
    prefix: [u8; PREFIX],
}

/// Nothing tells this machine from others.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine has no identity: no instance id or UUID in its firmware and nothing in /etc/machine-id; \
     name it with --node, or run systemd-machine-id-setup"
)]
pub struct Nameless;

impl Node {
    /// A node with an identity that never changes while the node lives, and that no other node has: an instance id.
    /// Letters count; white space at the ends does not.
    pub fn new(id: &str) -> Self {
        let id = id.trim().to_owned();
        let digest = Sha256::new().chain_update(b"nvme-setup node\0").chain_update(id.as_bytes()).finalize();
        let mut prefix = [0; PREFIX];
        prefix.copy_from_slice(&digest[..PREFIX]);
        prefix[..2].copy_from_slice(&TAG);
        // Version 8.
        prefix[6] = prefix[6] & 0x0F | 0x80;
        Self { id, prefix }
    }

    /// This machine: the instance id that Amazon's firmware has, else the UUID of the firmware, else `/etc/machine-id`.
    /// None of these needs the network, and all of them stay the same over a reboot and over stop and start.
    ///
    /// # Errors
    /// When there is none of them.
    pub fn of_machine(roots: &Roots) -> Result<Self, Nameless> {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let dmi = roots.sys.join("class/dmi/id");
        Self::from_sources(
            &read(&dmi.join("board_asset_tag")),
            &read(&dmi.join("product_uuid")),
            &read(Path::new("/etc/machine-id")),
        )
    }

    fn from_sources(asset_tag: &str, product_uuid: &str, machine_id: &str) -> Result<Self, Nameless> {
        // "Not Specified" and the like are what other firmware says there.
        if asset_tag.trim().starts_with("i-") {
            return Ok(Self::new(asset_tag));
        }
        if let Ok(uuid) = product_uuid.trim().parse::<Uuid>() {
            // Firmware without one says all zeros, all ones, or the example of the SMBIOS specification.
            let same = uuid.0.iter().all(|&byte| byte == uuid.0[0]);
            if !same && !product_uuid.trim().to_lowercase().starts_with("03000200-0400-0500-0006-000700080009") {
                return Ok(Self::new(&product_uuid.trim().to_lowercase()));
            }
        }
        let machine_id = machine_id.trim();
        // "uninitialized" is what systemd writes into an image.
        if machine_id.parse::<Uuid>().is_ok() { Ok(Self::new(machine_id)) } else { Err(Nameless) }
    }

    /// Its identity.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How all UUIDs of this node begin.
    pub(crate) fn prefix(&self) -> &[u8; PREFIX] {
        &self.prefix
    }

    /// The UUID of what is made for a volume.
    pub(crate) fn uuid(&self, volume: &str, made: Made) -> Uuid {
        let role: &[u8] = match made {
            Made::FileSystem => b"file system\0",
            Made::Array => b"array\0",
        };
        let digest = Sha256::new()
            .chain_update(b"nvme-setup volume\0")
            .chain_update(role)
            .chain_update(self.id.as_bytes())
            .chain_update(b"\0")
            .chain_update(volume.as_bytes())
            .finalize();
        let mut bytes = [0; 16];
        bytes[..PREFIX].copy_from_slice(&self.prefix);
        bytes[PREFIX..].copy_from_slice(&digest[..16 - PREFIX]);
        // The variant.
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Uuid(bytes)
    }

    /// Whose a UUID is; `None` for one that was not made by this program.
    pub fn owner(&self, uuid: Uuid) -> Option<Owner> {
        match () {
            () if uuid.0.starts_with(&self.prefix) => Some(Owner::ThisNode),
            () if uuid.0.starts_with(&TAG) && uuid.0[6] >> 4 == 8 => Some(Owner::AnotherNode),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_tells_node_volume_and_what_was_made() {
        let (one, two) = (Node::new("i-0123"), Node::new("i-0124"));
        let uuid = one.uuid("/data", Made::FileSystem);
        assert_eq!(uuid, Node::new(" i-0123\n").uuid("/data", Made::FileSystem));
        for other in
            [one.uuid("/data", Made::Array), one.uuid("/data2", Made::FileSystem), two.uuid("/data", Made::FileSystem)]
        {
            assert_ne!(uuid, other);
        }
        assert_eq!(one.owner(one.uuid("/other", Made::Array)), Some(Owner::ThisNode));
        assert_eq!(one.owner(two.uuid("/data", Made::FileSystem)), Some(Owner::AnotherNode));
        assert_eq!(one.owner("c8b5b2da-0000-4000-8000-000000000001".parse().unwrap()), None);
        // Version and variant: tools that check them take it.
        assert_eq!((uuid.0[6] >> 4, uuid.0[8] >> 6), (8, 2));
    }

    #[test]
    fn uuids_are_read_as_blkid_and_mdadm_print_them() {
        let uuid = Node::new("x").uuid("v", Made::Array);
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert_eq!(uuid.for_mdadm().parse(), Ok(uuid));
        assert_eq!(uuid.to_string().to_uppercase().parse(), Ok(uuid));
        assert_eq!(uuid.to_string().len(), 36);
        for bad in ["", "84-9a", "c8b5b2da-0000-4000-8000-00000000000g", "c8b5b2da-0000-4000-8000-0000000000011"] {
            assert_eq!(bad.parse::<Uuid>(), Err(()), "{bad}");
        }
    }

    #[test]
    fn the_identity_is_the_first_that_says_anything() {
        let machine = "3d1219c7c4c5404aaa1f6d2a48adfda4\n";
        let product = "EC2F3A1B-0001-0002-0003-000400050006\n";
        let id = |tag, product, machine| Node::from_sources(tag, product, machine).map(|node| node.id);
        assert_eq!(id("i-0abc\n", product, machine).unwrap(), "i-0abc");
        assert_eq!(id("Not Specified\n", product, machine).unwrap(), "ec2f3a1b-0001-0002-0003-000400050006");
        for useless in ["", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "none"] {
            assert_eq!(id("", useless, machine).unwrap(), machine.trim());
        }
        assert!(id("", "", "uninitialized\n").is_err());
        assert!(id("", "", "").is_err());
    }
}
