//! What a container prints, on its way into the task's two log files.
//!
//! An engine sends both streams through one connection, in frames: one byte that says which stream (1 or 2), three that
//! mean nothing, four for the length, then so many bytes of it. Nothing here waits for object storage: that is brought up from
//! the files, as for every task.

use std::fs::File;
use std::io::{self, Read, Write};

use super::kept::{Place, Seam};

/// The length of a frame's head, in bytes.
const HEAD: usize = 8;

/// Takes frames apart, however they are cut into pieces.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD],
    /// How much of the head is there.
    filled: usize,
    /// How much of the content is to come.
    left: usize,
}

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The bytes are not frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotFrames;

impl Frames {
    /// Takes a piece in and hands on what it holds of each stream, in order.
    pub(super) fn take(&mut self, mut piece: &[u8], mut each: impl FnMut(Stream, &[u8])) -> Result<(), NotFrames> {
        while !piece.is_empty() {
            if self.left == 0 {
                let count = piece.len().min(HEAD - self.filled);
                self.head[self.filled..self.filled + count].copy_from_slice(&piece[..count]);
                self.filled += count;
                piece = &piece[count..];
                if self.filled < HEAD {
                    continue;
                }
                let [which, _, _, _, a, b, c, d] = self.head;
                self.filled = if which > 2 { return Err(NotFrames) } else { 0 };
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| NotFrames)?;
                // What follows is this stream's, until the head is overwritten.
                continue;
            }
            let count = piece.len().min(self.left);
            let stream = if self.head[0] == 2 { Stream::Stderr } else { Stream::Stdout };
            each(stream, &piece[..count]);
            self.left -= count;
            piece = &piece[count..];
        }
        Ok(())
    }
}

/// One of the two log files.
#[derive(Debug)]
struct Sink {
    file: File,
    /// How many bytes that are to come it has already.
    has: u64,
}

impl Sink {
    fn new(file: File) -> Self {
        Self { file, has: 0 }
    }

    fn take(&mut self, content: &[u8]) {
        let left_out = usize::try_from(self.has).unwrap_or(usize::MAX).min(content.len());
        self.has -= left_out as u64;
        let _ = self.file.write_all(&content[left_out..]);
    }
}

/// The two log files.
#[derive(Debug)]
pub(super) struct Output {
    frames: Frames,
    stdout: Sink,
    stderr: Sink,
}

impl Output {
    /// Appends to these files.
    pub(super) fn new(stdout: File, stderr: File) -> Self {
        Self { frames: Frames::default(), stdout: Sink::new(stdout), stderr: Sink::new(stderr) }
    }

    /// Writes down a piece of what the engine has sent. What a full disk has no room for is lost, as a program's own writes would be:
    /// the program must not be blocked for it.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), NotFrames> {
        let Self { frames, stdout, stderr } = self;
        frames.take(piece, |stream, content| match stream {
            Stream::Stdout => stdout.take(content),
            Stream::Stderr => stderr.take(content),
        })
    }

    /// Begins anew with another connection, on which everything comes that the engine has `kept`: what the files have of that is left
    /// out. What is not there any more is said.
    ///
    /// # Errors
    /// When a file or what was kept cannot be read.
    pub(super) fn go_on(&mut self, mut kept: impl Read) -> io::Result<()> {
        const PIECE: usize = 64 << 10;
        let seam = |sink: &Sink| sink.file.try_clone().and_then(Seam::of);
        let (mut stdout, mut stderr) = (seam(&self.stdout)?, seam(&self.stderr)?);
        let (mut frames, mut piece) = (Frames::default(), vec![0; PIECE]);
        loop {
            let count = match kept.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let taken = frames.take(&piece[..count], |stream, content| match stream {
                Stream::Stdout => stdout.take(content),
                Stream::Stderr => stderr.take(content),
            });
            taken.map_err(|NotFrames| io::Error::from(io::ErrorKind::InvalidData))?;
        }
        self.frames = Frames::default();
        for (sink, seam, name) in [(&mut self.stdout, stdout, "stdout"), (&mut self.stderr, stderr, "stderr")] {
            sink.has = match seam.place() {
                Place::After(has) => has,
                Place::Lost => {
                    remark(
                        sink,
                        &format!(
                            "a part of the program's {name} is missing here: the container engine has not kept it"
                        ),
                    );
                    0
                }
            };
        }
        Ok(())
    }

    /// A line of the agent's own in the task's stderr.
    pub(super) fn remark(&mut self, text: &str) {
        remark(&mut self.stderr, text);
    }
}

fn remark(sink: &mut Sink, text: &str) {
    let _ = sink.file.write_all(format!("batch-agent: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(which: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![which, 0, 0, 0];
        frame.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        frame.extend(content);
        frame
    }

    #[test]
    fn what_is_not_frames_is_noticed() {
        assert_eq!(Frames::default().take(b"plain text", |_, _| ()), Err(NotFrames));
    }

    proptest! {
        #[test]
        fn streams_come_apart_however_they_are_cut(
            frames in proptest::collection::vec((1_u8..=2, proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
            cuts in proptest::collection::vec(1_usize..20, 1..40),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(which, content)| frame(*which, content)).collect();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (mut taken, mut rest) = (Frames::default(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                rest = more;
                taken.take(piece, |stream, content| match stream {
                    Stream::Stdout => out.extend_from_slice(content),
                    Stream::Stderr => err.extend_from_slice(content),
                }).unwrap();
            }
            let of = |wanted| frames.iter().filter(|(which, _)| *which == wanted).flat_map(|(_, c)| c.clone()).collect::<Vec<u8>>();
            prop_assert_eq!((out, err), (of(1), of(2)));
        }
    }
}
