//! Bytes that need no memory: for tests with more of them than the machine has.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use bytes::Bytes;

/// Bodies that are shorter stay in memory.
const LEAST: usize = 256 << 10;

/// A file that is mapped for reading until this is dropped. It has no name, so nothing else can change it.
#[derive(Debug)]
struct Mapped {
    address: *mut libc::c_void,
    length: usize,
}

// SAFETY: the memory is only ever read, and belongs to this value alone until it is dropped.
unsafe impl Send for Mapped {}
// SAFETY: as above; reading from several threads at once changes nothing.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new(file: &File, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { address, length }) }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `length` bytes are mapped there, of a file of that length that nobody can cut off, until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length and not unmapped before. If it fails, the memory stays mapped.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// The same bytes, on the disk instead of in memory.
pub(crate) fn spill(bytes: Bytes, directory: &Path) -> io::Result<Bytes> {
    if bytes.len() < LEAST {
        return Ok(bytes);
    }
    let mut file = tempfile::tempfile_in(directory)?;
    file.write_all(&bytes)?;
    Ok(Bytes::from_owner(Mapped::new(&file, bytes.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spilled_bytes_are_the_same() {
        let bytes = Bytes::from((0..LEAST + 5).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
        let spilled = spill(bytes.clone(), &std::env::temp_dir()).unwrap();
        assert!(spilled == bytes && spilled.as_ptr() != bytes.as_ptr());
        assert!(spilled.slice(7..) == bytes.slice(7..));
    }
}
