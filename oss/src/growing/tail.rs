//! What is known to have arrived of a growing object, and what to send next. No I/O.
//!
//! The caller hands over bytes; if that fails it hands over the same bytes again, perhaps with more behind them. Between
//! the two a request may have arrived, or may still be under way. The rules that make this exact:
//!
//! 1. A request is *in doubt* from before it is sent until its answer, or a look at the object, has told its fate.
//! 2. While something is in doubt nothing else is sent; the object's length is asked for.
//! 3. The length must lie between what is known to have arrived and what was offered, and the bytes between must be the
//!    offered ones, by checksum. Then they have arrived, and the rest is sent from there.
//! 4. A request that arrives after it was found not to have (it was under way) is harmless: all requests for one position
//!    carry a prefix of the same bytes, the store takes only the first, and the others fail for their position, which
//!    leads back to 2.
//! 5. A process that goes on after another knows what that one has written down, and not what it sent after that. So it
//!    looks first. What it finds there beyond what is known is *claimed*: it must be the beginning of what is offered now, by
//!    checksum, and is not sent again.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::crc::{crc64, crc64_combine};

/// An object's length and CRC-64/XZ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Extent {
    pub(super) size: u64,
    pub(super) crc64: u64,
}

/// An object that will not grow any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    #[serde(flatten)]
    pub(super) extent: Extent,
    /// Something else has changed it, so it is not what was sent.
    #[serde(default)]
    pub(super) abandoned: bool,
}

/// What is written down for a process that goes on after this one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct TailMark {
    sealed: Vec<Sealed>,
    present: Extent,
}

impl TailMark {
    /// How many bytes it covers.
    pub(super) fn len(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.extent.size).sum::<u64>() + self.present.size
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look how long the present object is.
    Ask,
    /// Append these of the offered bytes at this position.
    Send { position: u64, bytes: Range<usize> },
    /// All that was offered has arrived.
    Done,
}

/// How long the object was found to be, and by what its content can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) crc64: FoundCrc,
}

/// A checksum of what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundCrc {
    /// Of the whole object.
    Whole(u64),
    /// Of the bytes behind those known to have arrived.
    Behind(u64),
}

/// Why it cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("append was called again with other bytes than those whose fate is unknown")]
    OtherBytes,
    #[error("the object is {found} bytes long, although {known} had arrived: something else has replaced it")]
    Shorter { known: u64, found: u64 },
    #[error(
        "the object is {found} bytes long, although only {known} were sent: something else writes to it under the same name"
    )]
    Longer { known: u64, found: u64 },
    #[error("what arrived is not what was sent, by checksum")]
    Corrupt,
}

/// What a process before this one may have sent beyond what it has written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing.
    Nothing,
    /// Whoever looks will know.
    Unknown,
    /// The present object was found like this; of what it holds beyond what was known, so much has been offered since.
    Claimed { found: Found, offered: Extent },
}

/// Sealed objects and the present one, all with a size limit.
#[derive(Debug)]
pub(super) struct Tail {
    /// No object becomes longer than this.
    limit: u64,
    /// No request carries more than this.
    piece: usize,
    sealed: Vec<Sealed>,
    present: Extent,
    before: Before,
    /// Whether a request of a process before this one may still be under way.
    is_heir: bool,
    /// What of the bytes being offered has arrived.
    done: Extent,
    /// The request whose fate is unknown.
    in_doubt: Option<Extent>,
}

impl Tail {
    /// Nothing yet, in objects of at most `limit` bytes by requests of at most `piece`.
    pub(super) fn new(limit: u64, piece: usize) -> Self {
        let (limit, piece) = (limit.max(1), piece.max(1));
        let (present, done) = (Extent::default(), Extent::default());
        Self {
            limit,
            piece,
            sealed: Vec::new(),
            present,
            before: Before::Nothing,
            is_heir: false,
            done,
            in_doubt: None,
        }
    }

    /// Behind what another process has written down.
    pub(super) fn resume(limit: u64, piece: usize, mark: TailMark) -> Self {
        let TailMark { sealed, present } = mark;
        Self { sealed, present, before: Before::Unknown, is_heir: true, ..Self::new(limit, piece) }
    }

    /// What is to be written down. What has arrived of bytes whose call failed is not in it.
    pub(super) fn mark(&self) -> Option<TailMark> {
        let is_certain = self.is_settled() && self.before == Before::Nothing;
        is_certain.then(|| TailMark { sealed: self.sealed.clone(), present: self.present })
    }

    /// Whether what a process before this one has sent is all accounted for.
    pub(super) fn has_caught_up(&self) -> bool {
        self.before == Before::Nothing
    }

    /// The longest that the present object can be found to be while `offered` is being sent.
    pub(super) fn longest(&self, offered: &[u8]) -> u64 {
        if self.is_heir { u64::MAX } else { self.present.size + offered.len() as u64 }
    }

    /// Leaves the present object as something else has made it, and goes on in the next. So many bytes must be offered again that
    /// were accepted because it was thought to hold them.
    pub(super) fn abandon(&mut self) -> u64 {
        let back = match self.before {
            Before::Claimed { offered, .. } => offered.size,
            _ => 0,
        };
        self.sealed.push(Sealed { extent: std::mem::take(&mut self.present), abandoned: true });
        self.in_doubt = None;
        self.before = Before::Nothing;
        back
    }

    /// How many objects are full; the number of the present one.
    pub(super) fn number(&self) -> usize {
        self.sealed.len()
    }

    /// What is known of the present object.
    pub(super) fn present(&self) -> Extent {
        self.present
    }

    /// All objects in their order, an empty present one left out.
    pub(super) fn all(&self) -> impl Iterator<Item = Sealed> {
        let present = (self.present.size > 0).then_some(Sealed { extent: self.present, abandoned: false });
        self.sealed.iter().copied().chain(present)
    }

    /// Whether all that was ever offered has arrived.
    pub(super) fn is_settled(&self) -> bool {
        self.done.size == 0 && self.in_doubt.is_none()
    }

    /// What of `offered` has not arrived, if its beginning is what has.
    fn left<'a>(&self, offered: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let done = usize::try_from(self.done.size).ok()?;
        let (arrived, left) = offered.split_at_checked(done)?;
        (crc64(arrived) == self.done.crc64).then_some((done, left))
    }

    /// What to do about `offered`, which begins behind the last bytes that were accepted.
    pub(super) fn next(&mut self, offered: &[u8]) -> Result<Step, Broken> {
        loop {
            let (done, left) = self.left(offered).ok_or(Broken::OtherBytes)?;
            if let Some(sent) = self.in_doubt {
                let same = usize::try_from(sent.size).ok().and_then(|size| left.get(..size)).map(crc64);
                return if same == Some(sent.crc64) { Ok(Step::Ask) } else { Err(Broken::OtherBytes) };
            }
            match self.before {
                Before::Unknown => return Ok(Step::Ask),
                Before::Claimed { found, offered: so_far } => {
                    self.claim(found, so_far, left)?;
                    if matches!(self.before, Before::Claimed { .. }) {
                        // All that was offered is part of it.
                        self.done = Extent::default();
                        return Ok(Step::Done);
                    }
                    continue;
                }
                Before::Nothing => {}
            }
            if left.is_empty() {
                self.done = Extent::default();
                return Ok(Step::Done);
            }
            self.seal_if_full();
            let room = usize::try_from(self.limit - self.present.size).unwrap_or(usize::MAX);
            let bytes = done..done + left.len().min(room).min(self.piece);
            return Ok(Step::Send { position: self.present.size, bytes });
        }
    }

    /// The store lets the present object grow no more although it is shorter than was thought to be allowed. Whether that can be,
    /// and it goes on in the next one.
    pub(super) fn refused_to_grow(&mut self) -> bool {
        if self.present.size == 0 {
            return false;
        }
        self.limit = self.present.size;
        self.in_doubt = None;
        self.seal_if_full();
        if self.is_heir {
            // The process before this one has gone on there as well.
            self.before = Before::Unknown;
        }
        true
    }

    fn seal_if_full(&mut self) {
        if self.present.size >= self.limit {
            self.sealed.push(Sealed { extent: std::mem::take(&mut self.present), abandoned: false });
        }
    }

    /// Takes from `left` what the present object was found to hold already.
    fn claim(&mut self, found: Found, offered: Extent, left: &[u8]) -> Result<(), Broken> {
        let more = usize::try_from(found.size - self.present.size).unwrap_or(usize::MAX);
        let again = Extent::of(&left[..left.len().min(more)]);
        let (present, offered) = (self.present.then(again), offered.then(again));
        let right = match found.crc64 {
            _ if present.size < found.size => true,
            FoundCrc::Whole(crc) => crc == present.crc64,
            FoundCrc::Behind(crc) => crc == offered.crc64,
        };
        if !right {
            return Err(Broken::Corrupt);
        }
        self.advance(again);
        self.before = Before::Claimed { found, offered };
        if present.size < found.size {
            return Ok(());
        }
        // One that is full may have been followed by another.
        let is_full = found.size >= self.limit;
        self.before = if is_full { Before::Unknown } else { Before::Nothing };
        if is_full {
            self.seal_if_full();
        }
        Ok(())
    }

    /// These bytes are about to be sent.
    pub(super) fn sending(&mut self, bytes: &[u8]) {
        self.in_doubt = Some(Extent::of(bytes));
    }

    /// The store says that they are there: the object's length now, and its checksum if it told. If that is another length
    /// than it must be, the answer is not believed: the request stays in doubt.
    pub(super) fn answered(&mut self, size: u64, whole: Option<u64>) -> Result<(), Broken> {
        let Some(sent) = self.in_doubt else { return Ok(()) };
        let now = self.present.then(sent);
        if size != now.size {
            return Ok(());
        }
        if whole.is_some_and(|crc| crc != now.crc64) {
            return Err(Broken::Corrupt);
        }
        self.advance(sent);
        Ok(())
    }

    /// The object was looked at while `offered` was being sent.
    pub(super) fn found(&mut self, offered: &[u8], found: Found) -> Result<(), Broken> {
        let known = self.present.size;
        let Some(more) = found.size.checked_sub(known) else {
            return Err(Broken::Shorter { known, found: found.size });
        };
        if self.before == Before::Unknown {
            self.before = Before::Claimed { found, offered: Extent::default() };
            return Ok(());
        }
        let (_, left) = self.left(offered).ok_or(Broken::OtherBytes)?;
        let bytes = usize::try_from(more).ok().and_then(|more| left.get(..more));
        if bytes.is_none() && self.is_heir && more - left.len() as u64 <= self.piece as u64 {
            // The last request of the process before this one has arrived only now.
            self.in_doubt = None;
            self.before = Before::Claimed { found, offered: Extent::default() };
            return Ok(());
        }
        let Some(bytes) = bytes else {
            return Err(Broken::Longer { known: known + left.len() as u64, found: found.size });
        };
        let arrived = Extent::of(bytes);
        let right = match found.crc64 {
            FoundCrc::Whole(crc) => crc == self.present.then(arrived).crc64,
            FoundCrc::Behind(crc) => crc == arrived.crc64,
        };
        if !right {
            return Err(Broken::Corrupt);
        }
        self.advance(arrived);
        Ok(())
    }

    fn advance(&mut self, arrived: Extent) {
        self.present = self.present.then(arrived);
        self.done = self.done.then(arrived);
        self.in_doubt = None;
    }
}

impl Extent {
    /// Of these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, crc64: crc64(bytes) }
    }

    /// With the other behind it.
    pub(super) fn then(self, next: Self) -> Self {
        Self { size: self.size + next.size, crc64: crc64_combine(self.crc64, next.crc64, next.size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lost_reply_is_found_out_either_way() {
        let mut tail = Tail::new(100, 100);
        assert_eq!(tail.next(b"abc"), Ok(Step::Send { position: 0, bytes: 0..3 }));
        tail.sending(b"abc");
        // The call fails here. More has come since.
        assert_eq!(tail.next(b"abcdef"), Ok(Step::Ask));
        tail.found(b"abcdef", Found { size: 0, crc64: FoundCrc::Whole(0) }).unwrap();
        assert_eq!(tail.next(b"abcdef"), Ok(Step::Send { position: 0, bytes: 0..6 }));
        tail.sending(b"abcdef");
        // The first request was still under way and was faster.
        tail.found(b"abcdef", Found { size: 3, crc64: FoundCrc::Behind(crc64(b"abc")) }).unwrap();
        assert_eq!(tail.next(b"abcdef"), Ok(Step::Send { position: 3, bytes: 3..6 }));
        tail.sending(b"def");
        tail.answered(6, Some(crc64(b"abcdef"))).unwrap();
        assert_eq!(tail.next(b"abcdef"), Ok(Step::Done));
        assert_eq!(tail.present(), Extent { size: 6, crc64: crc64(b"abcdef") });
    }

    #[test]
    fn whoever_else_writes_is_noticed() {
        let started = || {
            let mut tail = Tail::new(100, 100);
            tail.sending(b"abc");
            tail.answered(3, None).unwrap();
            assert_eq!(tail.next(b"abc"), Ok(Step::Done));
            tail.sending(b"de");
            tail
        };
        let found = |size, text: &[u8]| started().found(b"de", Found { size, crc64: FoundCrc::Whole(crc64(text)) });
        assert_eq!(found(5, b"abcde"), Ok(()));
        assert_eq!(found(4, b"abcd"), Ok(()));
        assert_eq!(found(5, b"abcdX"), Err(Broken::Corrupt));
        assert_eq!(found(3, b"abX"), Err(Broken::Corrupt));
        assert_eq!(found(2, b"ab"), Err(Broken::Shorter { known: 3, found: 2 }));
        assert_eq!(found(6, b"abcdef"), Err(Broken::Longer { known: 5, found: 6 }));
        assert_eq!(started().answered(5, Some(1)), Err(Broken::Corrupt));
        assert_eq!(started().next(b"dX"), Err(Broken::OtherBytes));
        assert_eq!(started().next(b"d"), Err(Broken::OtherBytes));
    }

    proptest! {
        /// A store that loses requests and replies and lets requests arrive late, in a few lines.
        #[test]
        fn never_a_gap_never_a_duplicate(
            calls in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..10),
            fates in proptest::collection::vec(0..5_u8, 0..60),
            limit in 1_u64..30, piece in 1_usize..15, with_crc in any::<bool>()
        ) {
            let mut tail = Tail::new(limit, piece);
            let mut objects: Vec<Vec<u8>> = vec![Vec::new()];
            let mut under_way: Vec<(usize, u64, Vec<u8>)> = Vec::new();
            let mut fates = fates.into_iter();
            let take = |objects: &mut Vec<Vec<u8>>, number: usize, position: u64, bytes: &[u8]| {
                objects.resize_with(objects.len().max(number + 1), Vec::new);
                let object = &mut objects[number];
                (object.len() as u64 == position).then(|| object.extend_from_slice(bytes))
            };
            for offered in &calls {
                let mut steps = 0;
                loop {
                    steps += 1;
                    prop_assert!(steps < 1000);
                    match tail.next(offered).unwrap() {
                        Step::Done => break,
                        Step::Ask => {
                            let number = tail.number();
                            let object = objects.get(number).cloned().unwrap_or_default();
                            let known = usize::try_from(tail.present().size).unwrap();
                            let crc64 = if with_crc {
                                FoundCrc::Whole(crc64(&object))
                            } else {
                                FoundCrc::Behind(crc64(&object[known..]))
                            };
                            tail.found(offered, Found { size: object.len() as u64, crc64 }).unwrap();
                            // Afterwards, so that the look did not see it.
                            for (number, position, bytes) in std::mem::take(&mut under_way) {
                                take(&mut objects, number, position, &bytes);
                            }
                        }
                        Step::Send { position, bytes } => {
                            let (number, bytes) = (tail.number(), &offered[bytes]);
                            prop_assert!(position + bytes.len() as u64 <= limit && bytes.len() <= piece);
                            tail.sending(bytes);
                            match fates.next().unwrap_or(0) {
                                1 => {}
                                2 => { take(&mut objects, number, position, bytes); }
                                3 => under_way.push((number, position, bytes.to_vec())),
                                _ => if take(&mut objects, number, position, bytes).is_some() {
                                    let object = &objects[number];
                                    tail.answered(object.len() as u64, with_crc.then(|| crc64(object))).unwrap();
                                }
                            }
                        }
                    }
                }
            }
            let whole: Vec<u8> = calls.concat();
            prop_assert_eq!(objects.concat(), whole);
            let sizes: Vec<_> = tail.all().map(|sealed| sealed.extent.size).collect();
            prop_assert!(sizes.iter().rev().skip(1).all(|size| *size == limit));
        }

        /// The same with processes that are killed and followed by others, which know only what was written down.
        #[test]
        fn nor_when_the_process_is_killed(
            stream in proptest::collection::vec(any::<u8>(), 0..120),
            fates in proptest::collection::vec(0..7_u8, 0..80), marks in proptest::collection::vec(any::<bool>(), 1..5),
            limit in 1_u64..30, piece in 1_usize..15, chunk in 1_usize..40, with_crc in any::<bool>()
        ) {
            let (mut tail, mut mark) = (Tail::new(limit, piece), TailMark::default());
            let mut objects: Vec<Vec<u8>> = vec![Vec::new()];
            let mut under_way: Vec<(usize, u64, Vec<u8>)> = Vec::new();
            let (mut fates, mut marks) = (fates.into_iter(), marks.into_iter().cycle());
            let take = |objects: &mut Vec<Vec<u8>>, number: usize, position: u64, bytes: &[u8]| {
                objects.resize_with(objects.len().max(number + 1), Vec::new);
                let object = &mut objects[number];
                (object.len() as u64 == position).then(|| object.extend_from_slice(bytes))
            };
            let (mut at, mut steps) = (0, 0);
            while at < stream.len() || !tail.has_caught_up() {
                steps += 1;
                prop_assert!(steps < 2000);
                let offered = &stream[at..stream.len().min(at + chunk.max(piece))];
                match tail.next(offered).unwrap() {
                    Step::Done => {
                        at += offered.len();
                        if let Some(now) = tail.mark().filter(|_| marks.next() == Some(true)) {
                            prop_assert_eq!(now.len(), at as u64);
                            mark = now;
                        }
                    }
                    Step::Ask => {
                        let object = objects.get(tail.number()).cloned().unwrap_or_default();
                        let known = usize::try_from(tail.present().size).unwrap();
                        let crc64 = if with_crc {
                            FoundCrc::Whole(crc64(&object))
                        } else {
                            FoundCrc::Behind(crc64(&object[known..]))
                        };
                        tail.found(offered, Found { size: object.len() as u64, crc64 }).unwrap();
                        for (number, position, bytes) in std::mem::take(&mut under_way) {
                            take(&mut objects, number, position, &bytes);
                        }
                    }
                    Step::Send { position, bytes } => {
                        let (number, bytes) = (tail.number(), &offered[bytes]);
                        tail.sending(bytes);
                        let fate = fates.next().unwrap_or(0);
                        match fate {
                            1 => {}
                            2 | 4 => { take(&mut objects, number, position, bytes); }
                            3 | 5 => under_way.push((number, position, bytes.to_vec())),
                            _ => if take(&mut objects, number, position, bytes).is_some() {
                                let object = &objects[number];
                                tail.answered(object.len() as u64, with_crc.then(|| crc64(object))).unwrap();
                            }
                        }
                        if fate >= 4 {
                            tail = Tail::resume(limit, piece, mark.clone());
                            at = usize::try_from(mark.len()).unwrap();
                        }
                    }
                }
            }
            prop_assert_eq!(objects.concat(), stream);
        }
    }
}
