//! Reading through a memory mapping without two risks. Where a plain access would end the process with SIGBUS, because the page
//! cannot be had any more, this gives EFAULT. And while the kernel waits for a page it may hold the lock on a process's memory; the store
//! that the page comes from is a part of the test's own process, needs that lock for its own memory, and both would wait
//! for each other. So the mapping is in a process of its own, which does nothing else.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// How much is sent at a time: a packet that every socket has room for.
const PACKET: usize = 64 << 10;

/// A file, mapped for reading.
#[derive(Debug)]
pub struct Mapped {
    reader: Pid,
    socket: Mutex<OwnedFd>,
    len: NonZeroUsize,
}

impl Mapped {
    /// Maps the first `len` bytes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn new(file: &File, len: NonZeroUsize) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the child makes system calls only and never returns, so it meets no lock that another thread held.
        let reader = match unsafe { fork() }? {
            ForkResult::Child => serve(file.as_raw_fd(), theirs.as_raw_fd(), len.get()),
            ForkResult::Parent { child } => child,
        };
        drop(theirs);
        let mapped = Self { reader, socket: Mutex::new(ours), len };
        let mut errno = [0; 4];
        mapped.receive(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(mapped),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Copies what is mapped at `offset`, up to the end of the mapping; how much that was.
    ///
    /// # Errors
    /// `EFAULT` when a page cannot be had.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(self.len.get().saturating_sub(offset));
        let mut done = 0;
        while done < wanted {
            let end = wanted.min(done + PACKET);
            let [mut from, mut count] = [[0; 8]; 2];
            from.copy_from_slice(&(offset + done).to_ne_bytes());
            count.copy_from_slice(&(end - done).to_ne_bytes());
            let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
            send(socket.as_raw_fd(), [from, count].as_flattened(), MsgFlags::MSG_NOSIGNAL)?;
            match recv(socket.as_raw_fd(), &mut buffer[done..end], MsgFlags::empty())? {
                // An empty packet.
                0 => return Err(Errno::EFAULT.into()),
                count => done += count,
            }
        }
        Ok(done)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty())? {
            count if count == buffer.len() => Ok(()),
            _ => Err(io::Error::other("the process with the mapping has ended")),
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // It may be waiting for a page that never comes.
        let _ = kill(self.reader, Signal::SIGKILL);
        let _ = waitpid(self.reader, None);
    }
}

/// Maps the file, says how that went, and sends what is asked for until nobody asks any more.
fn serve(file: RawFd, socket: RawFd, len: usize) -> ! {
    // Nothing else of the test's may be kept open from here: a mount could not be unmounted.
    // SAFETY: system calls on descriptors and memory of this process, which has no other thread; the mapping is new and stays for good.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        let errno = if start == libc::MAP_FAILED { *libc::__errno_location() } else { 0 };
        if libc::dup2(socket, 3) != 3 && socket != 3 {
            libc::_exit(1);
        }
        libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0);
        let said = errno.to_ne_bytes();
        libc::send(3, said.as_ptr().cast::<c_void>(), said.len(), libc::MSG_NOSIGNAL);
        let mut request = [0_usize; 2];
        let size = size_of_val(&request).cast_signed();
        while errno == 0 && libc::recv(3, request.as_mut_ptr().cast::<c_void>(), size.cast_unsigned(), 0) == size {
            let [offset, count] = request;
            // The kernel reads our memory for us, faults included, and then gives no signal.
            if libc::send(3, start.byte_add(offset), count, libc::MSG_NOSIGNAL) < 0 {
                libc::send(3, start, 0, libc::MSG_NOSIGNAL);
            }
        }
        libc::_exit(0)
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
