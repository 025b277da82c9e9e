//! What clients upload: taken as it comes, counted, and of each piece a few bytes kept, by which its content is judged when the time is
//! over. Nothing is hashed and nothing stored, so that a store costs what receiving costs.
//!
//! Bodies may be framed in the way that AWS clients call `aws-chunked`: each chunk behind a line with its length and perhaps a signature,
//! and behind the last one perhaps trailers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::content::{Object, World};

/// So many bytes of each piece that is read from a connection are kept.
const KEPT: usize = 32;

/// The longest text that is taken whole: the list of an upload's 10,000 parts.
const LONGEST_TEXT: usize = 4 << 20;

/// The longest line of a frame: a length and a signature.
const LONGEST_LINE: usize = 1 << 10;

/// Some bytes and where they were.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    offset: u64,
    bytes: [u8; KEPT],
}

/// What has come of one body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    size: u64,
    kept: Vec<Kept>,
}

impl Taken {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes in the bytes that follow.
    fn add(&mut self, piece: &[u8]) {
        let room = piece.len().saturating_sub(KEPT);
        let at = fastrand::usize(..=room);
        if let Some(bytes) = piece.get(at..).and_then(|rest| rest.first_chunk()) {
            self.kept.push(Kept { offset: self.size + length(at), bytes: *bytes });
        }
        self.size += length(piece.len());
    }

    /// Adds the part that follows.
    fn then(&mut self, part: &Self) {
        self.kept.extend(part.kept.iter().map(|kept| Kept { offset: self.size + kept.offset, bytes: kept.bytes }));
        self.size += part.size;
    }

    /// Whether this can have been the object: its length, and all bytes that were kept.
    pub fn is(&self, world: &World, object: Object) -> bool {
        let right = |kept: &Kept| world.matches(object, kept.offset, &kept.bytes);
        self.size == object.size && self.kept.iter().all(right) && (self.size < length(KEPT) || !self.kept.is_empty())
    }
}

/// A body on its way in.
#[derive(Debug)]
pub struct Body {
    frame: Frame,
    taken: Taken,
    /// The bytes themselves, where they are a text that has to be understood.
    text: Option<Vec<u8>>,
}

/// Where in the frame the next byte lies.
#[derive(Debug)]
enum Frame {
    /// There is none.
    Plain,
    /// In the line before a chunk.
    Line(Vec<u8>),
    /// In a chunk, with so much of it to come, the end of its line included.
    Chunk(u64),
    /// Behind the last chunk.
    Over,
}

impl Body {
    /// One that begins.
    pub fn new(framed: bool, is_text: bool) -> Self {
        let frame = if framed { Frame::Line(Vec::new()) } else { Frame::Plain };
        Self { frame, taken: Taken::default(), text: is_text.then(Vec::new) }
    }

    /// Takes what came. False when it is no frame, or too long a text.
    #[must_use]
    pub fn add(&mut self, mut piece: &[u8]) -> bool {
        while !piece.is_empty() {
            match &mut self.frame {
                Frame::Plain => {
                    self.content(piece);
                    break;
                }
                Frame::Line(line) => {
                    let end = piece.iter().position(|byte| *byte == b'\n').map_or(piece.len(), |at| at + 1);
                    let (head, rest) = piece.split_at(end);
                    line.extend_from_slice(head);
                    piece = rest;
                    if line.ends_with(b"\n") {
                        match chunk_length(line) {
                            Some(0) => self.frame = Frame::Over,
                            Some(size) => self.frame = Frame::Chunk(size + 2),
                            None => return false,
                        }
                    } else if line.len() > LONGEST_LINE {
                        return false;
                    }
                }
                Frame::Chunk(rest) => {
                    let of_frame = rest.saturating_sub(2).min(length(piece.len()));
                    let all = (*rest).min(length(piece.len()));
                    *rest -= all;
                    let is_over = *rest == 0;
                    // Both are at most the length of the piece.
                    let (content, all) = (usize::try_from(of_frame).unwrap_or(0), usize::try_from(all).unwrap_or(0));
                    if content > 0 {
                        self.content(&piece[..content]);
                    }
                    piece = &piece[all..];
                    if is_over {
                        self.frame = Frame::Line(Vec::new());
                    }
                }
                // Trailers.
                Frame::Over => break,
            }
        }
        self.text.as_ref().is_none_or(|text| text.len() <= LONGEST_TEXT)
    }

    fn content(&mut self, piece: &[u8]) {
        self.taken.add(piece);
        if let Some(text) = &mut self.text {
            text.extend_from_slice(piece);
        }
    }

    /// What has come, and the text if it was one.
    pub fn finish(self) -> (Taken, String) {
        (self.taken, String::from_utf8(self.text.unwrap_or_default()).unwrap_or_default())
    }
}

/// The length in a line before a chunk: `1f4;chunk-signature=...`.
fn chunk_length(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    u64::from_str_radix(text.split(';').next()?, 16).ok()
}

/// All that was uploaded and not yet forgotten.
#[derive(Debug, Default)]
pub struct Uploads(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: u64,
    /// By their names.
    open: HashMap<String, Open>,
    done: HashMap<String, Taken>,
}

/// An upload in parts that is not completed.
#[derive(Debug, Default)]
struct Open {
    key: String,
    parts: BTreeMap<u32, Taken>,
}

impl Uploads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole object has come.
    pub fn put(&self, key: &str, taken: Taken) {
        self.state().done.insert(key.to_owned(), taken);
    }

    /// Begins an upload in parts and names it.
    pub fn begin(&self, key: &str) -> String {
        let mut state = self.state();
        state.begun += 1;
        let name = format!("upload-{}", state.begun);
        state.open.insert(name.clone(), Open { key: key.to_owned(), parts: BTreeMap::new() });
        name
    }

    /// A part has come. False when there is no such upload.
    pub fn part(&self, name: &str, number: u32, taken: Taken) -> bool {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(name) else { return false };
        open.parts.insert(number, taken);
        true
    }

    /// Puts the listed parts together. False when there is no such upload or part.
    pub fn complete(&self, name: &str, list: &str) -> bool {
        let mut state = self.state();
        let Some(open) = state.open.remove(name) else { return false };
        let numbers = list.split("<PartNumber>").skip(1).map(|rest| rest.split('<').next()?.trim().parse::<u32>().ok());
        let mut whole = Taken::default();
        for number in numbers {
            let Some(part) = number.and_then(|number| open.parts.get(&number)) else { return false };
            whole.then(part);
        }
        state.done.insert(open.key, whole);
        true
    }

    /// Gives an upload up.
    pub fn abort(&self, name: &str) {
        self.state().open.remove(name);
    }

    /// The length of an object that has come.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.state().done.get(key).map(Taken::size)
    }

    /// Whether something is begun and neither completed nor given up.
    pub fn is_open(&self) -> bool {
        !self.state().open.is_empty()
    }

    /// All objects that have come since this was asked last; they are gone from the store.
    pub fn take(&self) -> HashMap<String, Taken> {
        std::mem::take(&mut self.state().done)
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn world() -> (World, Object) {
        let mut world = World::new();
        world.add("x", 300_000);
        let object = world.get("x").unwrap();
        (world, object)
    }

    fn bytes(world: &World, object: Object) -> Vec<u8> {
        let mut bytes = Vec::new();
        while length(bytes.len()) < object.size {
            bytes.extend_from_slice(world.bytes(object, length(bytes.len()), object.size - length(bytes.len())));
        }
        bytes
    }

    proptest! {
        #[test]
        fn content_is_the_same_in_every_frame_and_however_it_comes(chunk in 1_usize..70_000, read in 1_usize..70_000, framed: bool) {
            let (world, object) = world();
            let content = bytes(&world, object);
            let wire = if framed {
                let mut wire = Vec::new();
                for chunk in content.chunks(chunk) {
                    wire.extend_from_slice(format!("{:x};chunk-signature=00ff\r\n", chunk.len()).as_bytes());
                    wire.extend_from_slice(chunk);
                    wire.extend_from_slice(b"\r\n");
                }
                wire.extend_from_slice(b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
                wire
            } else {
                content
            };
            let mut body = Body::new(framed, false);
            for piece in wire.chunks(read) {
                prop_assert!(body.add(piece));
            }
            prop_assert!(body.finish().0.is(&world, object));
        }
    }

    #[test]
    fn parts_make_the_object_in_the_order_of_their_numbers() {
        let (world, object) = world();
        let content = bytes(&world, object);
        let uploads = Uploads::default();
        let part = |piece: &[u8]| {
            let mut body = Body::new(false, false);
            assert!(body.add(piece));
            body.finish().0
        };
        for (parts, right) in [([1, 2], true), ([2, 1], false)] {
            let name = uploads.begin("k");
            assert!(uploads.part(&name, parts[1], part(&content[100_000..])));
            assert!(uploads.part(&name, parts[0], part(&content[..100_000])));
            assert!(uploads.part(&name, 9, part(b"not listed")));
            assert!(uploads.is_open() && !uploads.part("other", 1, part(b"")));
            let list = "<X><Part><PartNumber>1</PartNumber></Part><Part><PartNumber>2</PartNumber></Part></X>";
            assert!(uploads.complete(&name, list) && !uploads.is_open());
            assert_eq!(uploads.size("k"), Some(object.size));
            assert_eq!(uploads.take()["k"].is(&world, object), right);
        }
        let name = uploads.begin("k");
        assert!(!uploads.complete(&name, "<PartNumber>1</PartNumber>") && uploads.take().is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused_and_wrong_bytes_are_seen() {
        assert!(!Body::new(true, false).add(b"hello\r\n"));
        assert!(!Body::new(true, false).add(&[b'a'; LONGEST_LINE + 1]));
        assert!(!Body::new(false, true).add(&vec![b'a'; LONGEST_TEXT + 1]));
        let (world, object) = world();
        let mut content = bytes(&world, object);
        content.rotate_left(1);
        let mut body = Body::new(false, false);
        assert!(body.add(&content));
        assert!(!body.finish().0.is(&world, object));
    }
}
