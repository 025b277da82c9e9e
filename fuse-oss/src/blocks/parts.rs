//! Bytes on their way out, as they lie in memory.

use bytes::Bytes;

/// Bytes in order, in as many parts as they came.
#[derive(Debug)]
pub struct Parts(pub(super) Vec<Bytes>);

impl Parts {
    /// Hands `answer` all of them in one piece.
    pub fn whole<T>(&self, answer: impl FnOnce(&[u8]) -> T) -> T {
        if let [only] = self.0.as_slice() {
            return answer(only);
        }
        scratch(self.0.iter().map(Bytes::len).sum(), |buffer| {
            let mut at = 0;
            for part in &self.0 {
                buffer[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            answer(buffer)
        })
    }
}

/// Lends a buffer that the thread uses again and again: fresh memory would cost a page fault per 4 KiB.
pub(super) fn scratch<T>(len: usize, with: impl FnOnce(&mut [u8]) -> T) -> T {
    use std::cell::RefCell;
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        with(&mut buffer[..len])
    })
}
