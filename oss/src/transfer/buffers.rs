//! Memory for the parts of one upload, used again and again.
//!
//! A fresh buffer of several MiB comes from the kernel page by page, each filled with zeros when it is first touched, and goes back
//! when it is dropped: a quarter of what it costs to read a part into it. So each is kept for the parts that follow, as many as are
//! under way at once, until the upload is over.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// The buffers of an upload that are not in use.
#[derive(Debug, Default, Clone)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// Has `fill` write to a buffer of this length, whose content is anything, and gives it as bytes. When they are dropped the buffer is
    /// free again.
    pub(super) fn fill<E>(&self, length: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut filled = Filled { buffer: free.unwrap_or_default(), length, home: self.clone() };
        if filled.buffer.len() < length {
            filled.buffer = vec![0; length];
        }
        fill(&mut filled.buffer[..length])?;
        Ok(Bytes::from_owner(filled))
    }
}

/// A buffer in use.
struct Filled {
    buffer: Vec<u8>,
    length: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_shows_only_what_was_written() {
        let buffers = Buffers::default();
        let write = |length: usize, byte: u8| {
            let bytes = buffers.fill(length, |buffer| {
                buffer.fill(byte);
                Ok::<(), ()>(())
            });
            bytes.unwrap()
        };
        let first = write(100, 1);
        let address = first.as_ptr();
        assert_eq!(first, vec![1; 100]);
        let kept = first.slice(1..3);
        drop(first);
        // Still in use by somebody.
        assert_ne!(write(50, 2).as_ptr(), address);
        assert_eq!(kept, [1, 1][..]);
        drop(kept);
        let again = write(50, 3);
        assert_eq!((again.as_ptr(), again.len()), (address, 50));
        assert_eq!(again, vec![3; 50]);
        assert_eq!(buffers.fill(10, |_| Err("no")), Err("no"));
    }
}
