//! What the engine has kept of a container's output, and where in it the log files end.
//!
//! A shim that is killed, or an engine that is started anew, breaks the connection on which output comes. The engine keeps the last of it
//! ([`KEPT`] bytes, on its own disk), so whoever goes on reads that from its beginning and leaves out what the log files have already.
//! Usually that is so many bytes from the beginning. Where the engine has dropped the oldest, the end of the file is looked for in
//! what it has. Where that is not in it either, something is lost for certain.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of a container's output the engine is to keep at least, in bytes. It may be twice as much.
pub(super) const KEPT: u64 = 16 << 20;

/// How much of a file's end is looked for, in bytes.
const TAIL: usize = 4096;

/// Looks for the end of a log file in what was kept of its stream.
#[derive(Debug)]
pub(super) struct Seam {
    file: File,
    /// The file's length.
    have: u64,
    tail: Vec<u8>,
    /// The last of what was kept, as far as it was looked through: as long as the tail.
    window: Vec<u8>,
    /// How much that was in all.
    seen: u64,
    is_exact: bool,
    /// Behind the last place that looks like the file's end.
    found: Option<u64>,
}

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// So many bytes of what was kept are in the file.
    After(u64),
    /// Nobody knows: what lies between the file and what was kept is lost.
    Lost,
}

impl Seam {
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let have = file.metadata()?.len();
        let length = usize::try_from(have).map_or(TAIL, |have| have.min(TAIL));
        let mut tail = vec![0; length];
        file.read_exact_at(&mut tail, have - length as u64)?;
        Ok(Self { file, have, tail, window: Vec::new(), seen: 0, is_exact: have == 0, found: None })
    }

    /// Looks through the next piece of what was kept.
    pub(super) fn take(&mut self, piece: &[u8]) {
        let Some(last) = self.tail.last() else { return };
        let before = self.window.len();
        self.window.extend_from_slice(piece);
        for end in before + 1..=self.window.len() {
            if self.window[end - 1] == *last && self.window[..end].ends_with(&self.tail) {
                let at = self.seen + (end - before) as u64;
                self.is_exact |= at == self.have;
                self.found = Some(at);
            }
        }
        self.seen += piece.len() as u64;
        let more = self.window.len().saturating_sub(self.tail.len());
        self.window.drain(..more);
    }

    /// Says where to go on, when all of it has been looked through.
    pub(super) fn place(&self) -> Place {
        if self.is_exact || self.is_ahead() {
            return Place::After(self.have);
        }
        self.found.map_or(Place::Lost, Place::After)
    }

    /// Whether the file has all that was kept and more: engines keep whole lines, and files get what there is of one.
    fn is_ahead(&self) -> bool {
        let mut end = vec![0; self.window.len()];
        let from = self.seen.saturating_sub(self.window.len() as u64);
        self.seen <= self.have && self.file.read_exact_at(&mut end, from).is_ok() && end == self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn place(file: &[u8], kept: &[u8], cut: usize) -> Place {
        let mut written = tempfile::tempfile().unwrap();
        written.write_all(file).unwrap();
        let mut seam = Seam::of(written).unwrap();
        kept.chunks(cut).for_each(|piece| seam.take(piece));
        seam.place()
    }

    #[test]
    fn the_oldest_may_be_missing() {
        assert_eq!(place(b"one\ntwo\n", b"one\ntwo\nthree\n", 3), Place::After(8));
        assert_eq!(place(b"", b"one\n", 3), Place::After(0));
        // Half a line has come, and was not kept yet.
        assert_eq!(place(b"one\ntw", b"one\n", 3), Place::After(6));
        assert_eq!(place(b"one", b"", 3), Place::After(3));
        let whole: Vec<u8> = (0..5000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
        assert_eq!(place(&whole[..15_000], &whole[6_000..], 1000), Place::After(9_000));
        assert_eq!(place(&whole[..5_000], &whole[6_000..], 1000), Place::Lost);
    }

    proptest! {
        #[test]
        fn what_is_left_out_is_what_is_there(
            bytes in proptest::collection::vec(0_u8..3, 0..300),
            have in 0_usize..300,
            kept in 0_usize..300,
            cut in 1_usize..50,
        ) {
            let (have, kept) = (have.min(bytes.len()), kept.min(bytes.len()));
            // Nothing was dropped: whatever the bytes are, the place is certain.
            prop_assert_eq!(place(&bytes[..have], &bytes[..kept], cut), Place::After(have as u64));
        }
    }
}
