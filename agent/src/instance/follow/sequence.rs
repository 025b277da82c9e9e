//! What a log is made of, and in which order. No I/O.
//!
//! Mostly that is one file from its beginning on. But a file may be rotated, so that another follows; bytes may have to be given up before
//! they were sent, so that a sentence follows that says so. A position in the log is then not the same as a position in a file.
//!
//! It is written down before anything of it is done, so that another agent sends the very same bytes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Which file, so that it is found again under another name and not mistaken for another that got its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// When it was made, in nanoseconds since 1970, where the file system knows.
    pub born: Option<u64>,
}

/// What comes after what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Where in the log the first of the stretches begins; what was before them need not be known any more.
    start: u64,
    /// The last one is a file that still grows.
    stretches: Vec<Stretch>,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
enum Stretch {
    /// These bytes of a file; to wherever its end will be if none is given.
    File {
        file: FileId,
        from: u64,
        to: Option<u64>,
        /// The file was cut off since: they are not there any more.
        #[serde(default)]
        gone: bool,
    },
    /// Words of ours.
    Note { text: String, dropped: u64 },
}

/// What is at a position of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// These words.
    Text(&'a str),
    /// A file from this byte on, up to the end that is given, or whatever its end is.
    File {
        /// Which.
        file: FileId,
        /// From where.
        offset: u64,
        /// Up to where.
        end: Option<u64>,
    },
}

impl Stretch {
    /// None for what still grows.
    fn len(&self) -> Option<u64> {
        match self {
            Self::File { from, to, .. } => to.map(|to| to - from),
            Self::Note { text, .. } => Some(text.len() as u64),
        }
    }

    fn dropped(bytes: u64) -> Self {
        let text = format!(
            "\n[batch-agent: {bytes} bytes of this log are missing here: the disk was full, and storage had not taken them yet]\n"
        );
        Self::Note { text, dropped: bytes }
    }
}

impl Sequence {
    /// One file, from its beginning.
    pub fn new(file: FileId) -> Self {
        Self { start: 0, stretches: vec![Stretch::File { file, from: 0, to: None, gone: false }] }
    }

    /// The file that grows.
    pub fn file(&self) -> FileId {
        self.last().0
    }

    /// All files that something is still to be read of.
    pub fn files(&self) -> Vec<FileId> {
        let mut files: Vec<FileId> = Vec::new();
        for stretch in &self.stretches {
            if let Stretch::File { file, .. } = stretch
                && !files.contains(file)
            {
                files.push(*file);
            }
        }
        files
    }

    /// The file that grows, and from which of its bytes on.
    fn last(&self) -> (FileId, u64) {
        match self.stretches.last() {
            Some(Stretch::File { file, from, .. }) => (*file, *from),
            // There is always one: every change ends with it. A document that says otherwise is refused by `is_sound`.
            _ => (FileId { device: 0, inode: 0, born: None }, 0),
        }
    }

    /// Whether it can be, for one that was read from a file.
    pub fn is_sound(&self) -> bool {
        let Some((last, others)) = self.stretches.split_last() else { return false };
        let is_closed = |stretch: &Stretch| match stretch {
            Stretch::File { from, to, .. } => to.is_some_and(|to| to >= *from),
            Stretch::Note { .. } => true,
        };
        matches!(last, Stretch::File { to: None, .. }) && others.iter().all(is_closed)
    }

    /// Whether every byte of it can still be had: it is one file from its first byte on.
    pub fn is_whole(&self) -> bool {
        self.start == 0 && matches!(&self.stretches[..], [Stretch::File { from: 0, .. }])
    }

    /// The stretch at a position with where it begins; none for what is forgotten.
    fn find(&self, position: u64) -> Option<(usize, u64)> {
        let mut begin = self.start;
        for (index, stretch) in self.stretches.iter().enumerate() {
            match stretch.len() {
                Some(len) if position >= begin + len => begin += len,
                _ => return (position >= begin).then_some((index, begin)),
            }
        }
        None
    }

    /// What is at a position; none for what is forgotten.
    pub fn at(&self, position: u64) -> Option<Place<'_>> {
        let (index, begin) = self.find(position)?;
        Some(match &self.stretches[index] {
            Stretch::File { file, from, to, .. } => {
                Place::File { file: *file, offset: from + (position - begin), end: *to }
            }
            Stretch::Note { text, .. } => {
                // Texts are ASCII, but nothing depends on it.
                let skip = usize::try_from(position - begin).unwrap_or(usize::MAX);
                Place::Text(text.get(skip..).unwrap_or_default())
            }
        })
    }

    /// Where in the file that grows a position is; for one before it, where it begins.
    pub fn offset(&self, position: u64) -> u64 {
        let (_, from) = self.last();
        let begin = self.last_begin();
        from + position.saturating_sub(begin)
    }

    /// Where in the log the file that grows begins.
    fn last_begin(&self) -> u64 {
        self.start + self.stretches.iter().filter_map(Stretch::len).sum::<u64>()
    }

    /// What lies before this position need not be known any more.
    pub fn forget(&mut self, settled: u64) {
        while self.stretches.len() > 1
            && let Some(len) = self.stretches.first().and_then(Stretch::len)
            && self.start + len <= settled
        {
            self.start += len;
            self.stretches.remove(0);
        }
    }

    /// The file that grew has ended after `end` bytes, and this one follows. Words may come between the two.
    pub fn follow_with(&mut self, end: u64, text: Option<String>, next: FileId) {
        self.close(end);
        if let Some(text) = text {
            self.stretches.push(Stretch::Note { text, dropped: 0 });
        }
        self.stretches.push(Stretch::File { file: next, from: 0, to: None, gone: false });
    }

    /// The file that grows was cut off after everything up to `position` had been read. Words may come before what follows.
    pub fn cut_off(&mut self, position: u64, text: Option<String>) {
        let file = self.file();
        self.close(self.offset(position));
        for stretch in &mut self.stretches {
            if let Stretch::File { file: of, gone, .. } = stretch
                && *of == file
            {
                *gone = true;
            }
        }
        if let Some(text) = text {
            self.stretches.push(Stretch::Note { text, dropped: 0 });
        }
        self.stretches.push(Stretch::File { file, from: 0, to: None, gone: false });
    }

    /// Replaces what can be had no more by words, from `position` on: what was cut off, and what lies behind the length that a file
    /// still has.
    pub fn lose(&mut self, position: u64, len: impl Fn(FileId) -> u64) {
        let lost = |bytes: u64| Stretch::Note {
            text: format!(
                "\n[batch-agent: {bytes} bytes of this log are missing here: their file was removed or cut off]\n"
            ),
            dropped: 0,
        };
        let mut begin = self.start;
        for stretch in std::mem::take(&mut self.stretches) {
            let size = stretch.len().unwrap_or(0);
            match stretch {
                Stretch::File { file, from, to: Some(to), gone }
                    if begin + size > position && (gone || len(file) < to) =>
                {
                    // What was sent of it keeps its place.
                    let sent = from + position.saturating_sub(begin);
                    let end = if gone { sent } else { len(file).max(sent) };
                    self.stretches.push(Stretch::File { file, from, to: Some(end), gone });
                    self.stretches.push(lost(to - end));
                }
                other => self.stretches.push(other),
            }
            begin += size;
        }
    }

    /// Says something at a position that has not been sent.
    pub fn say(&mut self, position: u64, text: String) {
        let (file, _) = self.last();
        let offset = self.offset(position);
        self.close(offset);
        self.stretches.push(Stretch::Note { text, dropped: 0 });
        self.stretches.push(Stretch::File { file, from: offset, to: None, gone: false });
    }

    /// Gives up what lies between a position and the byte `to` of the file that grows, and says so. Nothing from that position on
    /// may have been sent. The bytes of the file that are given up; empty when `to` is not behind them.
    pub fn drop_until(&mut self, position: u64, to: u64) -> Range<u64> {
        let (file, from) = self.last();
        let offset = self.offset(position);
        if to <= offset {
            return offset..offset;
        }
        // The words before it are changed if nobody has seen them.
        let count = self.stretches.len();
        if let Some(Stretch::Note { text, dropped }) = count.checked_sub(2).and_then(|index| self.stretches.get(index))
            && *dropped > 0
            && position + text.len() as u64 <= self.last_begin()
        {
            let bytes = dropped + (to - from);
            self.stretches.truncate(count - 2);
            self.stretches.push(Stretch::dropped(bytes));
            self.stretches.push(Stretch::File { file, from: to, to: None, gone: false });
            return from..to;
        }
        self.close(offset);
        self.stretches.push(Stretch::dropped(to - offset));
        self.stretches.push(Stretch::File { file, from: to, to: None, gone: false });
        offset..to
    }

    /// Ends the file that grows after so many bytes.
    fn close(&mut self, end: u64) {
        if let Some(Stretch::File { from, to, .. }) = self.stretches.last_mut() {
            *to = Some(end.max(*from));
            if *to == Some(*from) {
                self.stretches.pop();
            }
        }
    }

    /// What of the file that grows nobody needs any more once everything before `settled` has arrived: the bytes before the first one
    /// that is still to be sent, and those that were given up.
    pub fn unneeded(&self, settled: u64) -> Vec<Range<u64>> {
        let (growing, _) = self.last();
        let (mut needed, mut begin) = (Vec::new(), self.start);
        for stretch in &self.stretches {
            let len = stretch.len();
            if let Stretch::File { file, from, to, .. } = stretch
                && *file == growing
                && len.is_none_or(|len| begin + len > settled)
            {
                needed.push((from + settled.saturating_sub(begin))..to.unwrap_or(u64::MAX));
            }
            begin += len.unwrap_or(0);
        }
        let mut end = 0;
        let mut unneeded = Vec::new();
        for range in needed {
            if range.start > end {
                unneeded.push(end..range.start);
            }
            end = range.end;
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(inode: u64) -> FileId {
        FileId { device: 1, inode, born: Some(inode) }
    }

    /// The log from `position` on, if these are the files.
    fn read(sequence: &Sequence, mut position: u64, files: &[Vec<u8>]) -> Vec<u8> {
        let mut text = Vec::new();
        loop {
            match sequence.at(position).unwrap() {
                Place::Text(words) => text.extend_from_slice(words.as_bytes()),
                Place::File { file, offset, end } => {
                    let bytes = &files[usize::try_from(file.inode).unwrap()];
                    let end = end.map_or(bytes.len(), |end| usize::try_from(end).unwrap());
                    text.extend_from_slice(&bytes[usize::try_from(offset).unwrap()..end]);
                    if sequence.file() == file && sequence.last_begin() <= position {
                        return text;
                    }
                }
            }
            position = sequence.start.max(position);
            let (index, begin) = sequence.find(position).unwrap();
            position = begin + sequence.stretches[index].len().unwrap();
        }
    }

    #[test]
    fn what_is_dropped_is_said_once_in_one_place() {
        let mut sequence = Sequence::new(id(0));
        let files = [b"0123456789".to_vec()];
        assert!(sequence.is_whole());
        assert_eq!(sequence.drop_until(2, 4), 2..4);
        assert_eq!(sequence.drop_until(2, 7), 4..7);
        assert_eq!(sequence.drop_until(2, 7), 7..7);
        let text = String::from_utf8(read(&sequence, 0, &files)).unwrap();
        assert!(text.starts_with("01\n[batch-agent: 5 bytes") && text.ends_with("]\n789"), "{text}");
        assert_eq!(sequence.unneeded(1), [0..1, 2..7]);
        assert_eq!(sequence.unneeded(2), vec![0..7; 1]);
        assert!(!sequence.is_whole() && sequence.is_sound());
        // What was said stays as it was said.
        let sent = text.len() as u64 - 3;
        sequence.drop_until(sent, 9);
        let text = String::from_utf8(read(&sequence, 0, &files)).unwrap();
        assert!(
            text.contains(" 5 bytes") && text.contains("]\n\n[batch-agent: 2 bytes") && text.ends_with("]\n9"),
            "{text}"
        );
        sequence.forget(sent);
        assert_eq!(sequence.unneeded(sent), vec![0..9; 1]);
    }

    #[test]
    fn what_is_gone_is_said_and_what_was_sent_stays() {
        let mut sequence = Sequence::new(id(0));
        sequence.cut_off(4, None);
        sequence.follow_with(6, None, id(1));
        let files = [b"4567zz".to_vec(), b"next".to_vec()];
        let missing = |bytes| {
            format!("\n[batch-agent: {bytes} bytes of this log are missing here: their file was removed or cut off]\n")
        };
        for (sent, len, expected) in [
            (10, 6, "next".to_owned()),
            (4, 6, "4567zznext".to_owned()),
            (1, 6, format!("{}4567zznext", missing(3))),
            (0, 5, format!("{}4567z{}next", missing(4), missing(1))),
            (5, 0, format!("{}next", missing(5))),
        ] {
            let mut sequence = sequence.clone();
            sequence.lose(sent, |file| if file == id(0) { len } else { 4 });
            assert_eq!(String::from_utf8(read(&sequence, sent, &files)).unwrap(), expected, "{sent} {len}");
        }
    }

    #[test]
    fn files_follow_each_other() {
        let files = [b"first".to_vec(), b"second".to_vec(), b"third".to_vec()];
        let mut sequence = Sequence::new(id(0));
        sequence.follow_with(5, None, id(1));
        sequence.follow_with(6, Some("!".to_owned()), id(2));
        assert_eq!(read(&sequence, 0, &files), b"firstsecond!third");
        assert_eq!(sequence.offset(13), 1);
        assert_eq!(sequence.unneeded(14), vec![0..2; 1]);
        sequence.forget(7);
        assert_eq!(read(&sequence, 7, &files), b"cond!third");
        assert!(sequence.at(3).is_none());
        let text = serde_json::to_string(&sequence).unwrap();
        assert_eq!(serde_json::from_str::<Sequence>(&text).unwrap(), sequence);
        for bad in [r#"{"start":0,"stretches":[]}"#, r#"{"start":0,"stretches":[{"is":"note","text":"","dropped":0}]}"#]
        {
            assert!(!serde_json::from_str::<Sequence>(bad).unwrap().is_sound());
        }
    }

    proptest! {
        /// Whatever is done behind what has been sent, what was sent stays the beginning of the log; every byte of the file is in the log
        /// or counted as missing; and what is not needed is never what is still to be read.
        #[test]
        fn what_was_sent_is_never_changed(
            steps in proptest::collection::vec((0..4_u8, 0_u64..40), 0..30)
        ) {
            let mut files = vec![Vec::new()];
            let mut sequence = Sequence::new(id(0));
            let mut sent: Vec<u8> = Vec::new();
            let mut settled = 0_usize;
            for (step, amount) in steps {
                let current = files.len() - 1;
                match step {
                    0 => {
                        let next = u8::try_from(files[current].len() % 26).unwrap() + b'a';
                        files[current].extend(std::iter::repeat_n(next, usize::try_from(amount).unwrap()));
                    }
                    1 => {
                        let more = read(&sequence, sent.len() as u64, &files);
                        sent.extend(more.iter().take(usize::try_from(amount).unwrap()));
                    }
                    2 => {
                        let to = sequence.offset(sent.len() as u64) + amount;
                        sequence.drop_until(sent.len() as u64, to.min(files[current].len() as u64));
                    }
                    _ if amount < 20 => {
                        settled = settled.max(sent.len().saturating_sub(usize::try_from(amount).unwrap()));
                        sequence.forget(settled as u64);
                    }
                    _ => {
                        sequence.follow_with(files[current].len() as u64, None, id(files.len() as u64));
                        files.push(Vec::new());
                    }
                }
                prop_assert!(sequence.is_sound());
                let rest = read(&sequence, settled as u64, &files);
                prop_assert_eq!(&rest[..sent.len() - settled], &sent[settled..]);
                for range in sequence.unneeded(settled as u64) {
                    let blank = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                    let last = files.len() - 1;
                    let mut punched = files.clone();
                    punched[last][blank].fill(0);
                    prop_assert_eq!(&read(&sequence, settled as u64, &punched), &rest);
                }
            }
        }
    }
}
