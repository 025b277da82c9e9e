//! Reading through a memory mapping without the risk: where a plain access would end the process with SIGBUS, because the
//! page cannot be had any more, this gives EFAULT.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getpid;

/// A file, mapped for reading.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: a mapping belongs to the process and not to a thread, nobody changes it, and only its destructor, which needs it
// exclusively, ends it.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn new(file: &File, len: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there; the descriptor is open.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len.get(), libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// Copies what is mapped at `offset`, up to the end of the mapping; how much that was.
    ///
    /// # Errors
    /// `EFAULT` when a page cannot be had.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(self.len.get().saturating_sub(offset));
        let mut done = 0;
        while done < wanted {
            let remote = RemoteIoVec { base: self.start.as_ptr().addr() + offset + done, len: wanted - done };
            // The kernel reads our own memory for us, faults included, and cannot be made to signal.
            match process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut buffer[done..wanted])], &[remote]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is our mapping, whole, and no reference into it exists: bytes are only ever copied out.
        unsafe { libc::munmap(self.start.as_ptr(), self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_mapped_is_what_is_in_the_file_and_what_is_gone_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&bytes).unwrap();
        let mapped = Mapped::new(&file, NonZeroUsize::new(bytes.len()).unwrap()).unwrap();
        let mut got = vec![0; 30_000];
        assert_eq!(mapped.read_at(12_345, &mut got).unwrap(), 30_000);
        assert!(got == bytes[12_345..42_345]);
        assert_eq!(mapped.read_at(79_990, &mut got).unwrap(), 10);
        assert_eq!(got[..10], bytes[79_990..]);
        assert_eq!(mapped.read_at(90_000, &mut got).unwrap(), 0);
        file.set_len(0).unwrap();
        assert_eq!(mapped.read_at(12_345, &mut got).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }
}
