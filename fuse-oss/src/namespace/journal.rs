//! What a mount has taken in, on a file that outlives the process, so that another process can show exactly the same.
//!
//! The table of names is a state machine: pages of listings and single answers go in, names come out, and nothing else changes
//! what it shows. So what is written down is what goes in, in the order in which it does, under the lock under which it does:
//! taking the same in again gives the same table, inode number by inode number. That is less to write than the names with
//! all that is known of them, and nothing can be forgotten that has an influence: how far a directory has been listed, which objects
//! are held back, which names are missing. How a store calls the place where a directory's own listing is to go on is
//! kept, too; some stores have no other way to go on.
//!
//! What is not written down does not change what is shown. Which directories were asked about, the sweeps under way and what they
//! have earned decide only what is listed ahead of questions; the new process begins with none. That a file was opened before
//! (`prove`) only saves the look at the store that its first opening takes. How often content was found wrong is not the namespace's
//! to know: see [`Ledger`](crate::filesystem::ledger::Ledger). Missing names are remembered by a keyed hash; its key is in the
//! header, so that even two names of one hash stay what they were.
//!
//! A record is out, by one write(2), before the lock is let go, so before anybody can see what it brought; a killed process loses
//! nothing of what it has given to write(2), so nothing is ever synchronised. A record that was not written whole is the last one,
//! nobody has seen anything of it, and it is cut off. Anything else that is not as it was written is a refusal: rather make the
//! mount anew than show something else. Behind each record stand a few sums over the table as it was then, by which a version
//! of this program that makes something else of the same page finds that out.
//!
//! When the file cannot be written, the mount goes on without, and the file is emptied: what is left of it would be believed.

mod wire;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};
use std::time::SystemTime;

use oss::{ListPage, ObjectMeta};
use tracing::warn;

use super::table::{Dir, MOST_NAMES, Seed, Table, nanos, time};
use super::{Origin, Placed, Source};
use crate::charset::Charset;
use crate::fault::Fault;
use crate::options::MountOptions;
use wire::{Bytes, put_number, put_optional_text, put_text};

/// What the file begins with.
const MAGIC: &str = "fuse-oss names";

/// To be raised with every change of what a record looks like. That the table makes something else of it is found by [`Sums`].
const FORMAT: u64 = 2;

/// What is in front of each record, in bytes: checksum (CRC-32C of all that follows), length, number.
const FRAME: usize = 12;

/// How many records are read ahead of being taken in; a page of names takes some 200 KB.
const READ_AHEAD: usize = 4;

const HEADER: u8 = 0;
const DIRECTORY: u8 = 1;
const OBJECT: u8 = 2;
const OWN: u8 = 3;
const SWEEP: u8 = 4;
const NAME: u8 = 5;

const MISSING: u8 = 0;
const FOUND_DIRECTORY: u8 = 1;
const FOUND_OBJECT: u8 = 2;

/// What a mount keeps from its first process to its last, beside the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// When it was made, which is how old its directories are.
    pub created: SystemTime,
    /// What tells its objects that have neither version nor time from those of other mounts.
    pub salt: u64,
    /// Whose its files are.
    pub uid: u32,
    /// Which group's its files are.
    pub gid: u32,
    /// The most names it may remember.
    pub most_names: u64,
}

impl Identity {
    /// Of a mount that is made now. `salt` differs from mount to mount.
    pub fn new(salt: u64, options: &MountOptions) -> Self {
        let uid = options.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        let gid = options.gid.unwrap_or_else(|| nix::unistd::getegid().as_raw());
        let most_names = options.max_names.unwrap_or(MOST_NAMES);
        Self { created: SystemTime::now(), salt, uid, gid, most_names }
    }
}

/// What the first record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the mount keeps.
    pub identity: Identity,
    /// The key under which missing names are remembered.
    pub seed: Seed,
    /// How many entries the mount has.
    pub entries: u64,
}

/// Something the table took in.
#[derive(Debug)]
pub enum Input {
    /// An entry of the mount that is a directory. Its first page follows as one of its own listing.
    Directory {
        /// Which of the entries.
        entry: u64,
        /// Where it is put.
        at: String,
        /// The character set its names are shown in.
        charset: Charset,
        /// Its keys' prefix.
        prefix: String,
    },
    /// An entry of the mount that is an object.
    Object {
        /// Which of the entries.
        entry: u64,
        /// Where it is put.
        at: String,
        /// The character set of made-up directories around it.
        charset: Charset,
        /// What HEAD said.
        meta: ObjectMeta,
    },
    /// See [`Table::absorb_own`].
    Own {
        /// The directory's place.
        dir: u64,
        /// Behind which key the page begins.
        from: Option<String>,
        /// The store was asked to go on.
        continued: bool,
        /// The page.
        page: ListPage,
    },
    /// See [`Table::absorb_sweep`].
    Sweep {
        /// The base's place.
        base: u64,
        /// Behind which key the page begins.
        from: Option<String>,
        /// The page.
        page: ListPage,
    },
    /// One name that was asked for by itself.
    Name {
        /// The place of the directory it is in.
        dir: u64,
        /// The name.
        name: String,
        /// What the store said.
        found: Found,
    },
}

/// What a store said about one name.
#[derive(Debug, Clone)]
pub enum Found {
    /// It has no such key and none below it.
    Missing,
    /// There is something below it.
    Directory,
    /// It is an object.
    Object(ObjectMeta),
}

/// A few numbers that differ when tables do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    names: u64,
    hidden: u64,
    bytes: u64,
}

impl Sums {
    /// Of a table as it is.
    pub fn of(table: &Table) -> Self {
        Self { names: u64::try_from(table.len()).unwrap_or(u64::MAX), hidden: table.hidden, bytes: table.bytes }
    }
}

/// A record in the making.
#[derive(Debug)]
pub struct Record(Vec<u8>);

impl Record {
    fn new(kind: u8, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(FRAME + 64 + room);
        bytes.extend_from_slice(&[0; FRAME]);
        bytes.push(kind);
        Self(bytes)
    }

    fn header(header: &Header) -> Self {
        let mut record = Self::new(HEADER, 0);
        let bytes = &mut record.0;
        put_text(bytes, MAGIC);
        put_number(bytes, FORMAT);
        let Identity { created, salt, uid, gid, most_names } = header.identity;
        bytes.extend_from_slice(&nanos(Some(created)).to_le_bytes());
        bytes.extend_from_slice(&salt.to_le_bytes());
        bytes.extend_from_slice(&uid.to_le_bytes());
        bytes.extend_from_slice(&gid.to_le_bytes());
        bytes.extend_from_slice(&header.seed.0);
        put_number(bytes, most_names);
        put_number(bytes, header.entries);
        record
    }

    /// An entry of the mount.
    pub fn entry(entry: u64, placed: &Placed) -> Self {
        let Placed { at, charset, source } = placed;
        let kind = match source {
            Source::Directory { .. } => DIRECTORY,
            Source::Object { .. } => OBJECT,
        };
        let mut record = Self::new(kind, 0);
        put_number(&mut record.0, entry);
        put_text(&mut record.0, at);
        put_text(&mut record.0, charset.name());
        match source {
            Source::Directory { prefix, .. } => put_text(&mut record.0, prefix),
            Source::Object { meta, .. } => wire::put_object(&mut record.0, meta),
        }
        record
    }

    /// A page of a directory's own listing.
    pub fn own(dir: Dir, from: Option<&str>, continued: bool, page: &ListPage) -> Self {
        let mut record = Self::new(OWN, wire::room(page));
        put_number(&mut record.0, dir.number());
        put_optional_text(&mut record.0, from);
        record.0.push(u8::from(continued));
        wire::put_page(&mut record.0, page, true);
        record
    }

    /// A page of a sweep.
    pub fn sweep(base: Dir, from: Option<&str>, page: &ListPage) -> Self {
        let mut record = Self::new(SWEEP, wire::room(page));
        put_number(&mut record.0, base.number());
        put_optional_text(&mut record.0, from);
        wire::put_page(&mut record.0, page, false);
        record
    }

    /// One name.
    pub fn name(dir: Dir, name: &str, found: &Found) -> Self {
        let mut record = Self::new(NAME, name.len());
        put_number(&mut record.0, dir.number());
        put_text(&mut record.0, name);
        match found {
            Found::Missing => record.0.push(MISSING),
            Found::Directory => record.0.push(FOUND_DIRECTORY),
            Found::Object(meta) => {
                record.0.push(FOUND_OBJECT);
                wire::put_object(&mut record.0, meta);
            }
        }
        record
    }

    /// Fills in what is in front; none when it is too long to be one.
    fn framed(&mut self, number: u32) -> Option<&[u8]> {
        let len = u32::try_from(self.0.len() - FRAME).ok()?;
        self.0[4..8].copy_from_slice(&len.to_le_bytes());
        self.0[8..FRAME].copy_from_slice(&number.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&self.0[4..]);
        self.0[..4].copy_from_slice(&crc.to_le_bytes());
        Some(&self.0)
    }
}

/// The file, to be written on.
#[derive(Debug)]
pub struct Journal {
    /// None when there is none, or none any more.
    file: Option<File>,
    end: u64,
    /// How many records there are.
    records: u32,
    label: String,
}

impl Journal {
    /// Without a file: the mount ends with its process.
    pub fn none() -> Self {
        Self { file: None, end: 0, records: 0, label: String::new() }
    }

    /// Begins an empty file.
    ///
    /// # Errors
    /// When it is not empty.
    pub fn begin(label: String, file: File, header: &Header) -> Result<Self, Fault> {
        let mut journal = Self { file: Some(file), end: 0, records: 0, label };
        match journal.file.as_ref().map(File::metadata) {
            Some(Ok(metadata)) if metadata.len() > 0 => {
                return Err(Fault::Internal("the file for a new mount's names is not empty".to_owned()));
            }
            Some(Err(error)) => journal.give_up(&error),
            _ => journal.put(Record::header(header)),
        }
        Ok(journal)
    }

    /// Whether another process could go on from here.
    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Writes down what the table has just taken in; under the lock under which it did. Nothing where there is no file.
    pub fn append(&mut self, mut record: Record, table: &Table) {
        let Sums { names, hidden, bytes } = Sums::of(table);
        for number in [names, hidden, bytes] {
            put_number(&mut record.0, number);
        }
        self.put(record);
    }

    fn put(&mut self, mut record: Record) {
        let Some(file) = &self.file else { return };
        let written = match record.framed(self.records) {
            Some(bytes) => file.write_all_at(bytes, self.end).map(|()| bytes.len()),
            None => Err(io::Error::new(ErrorKind::FileTooLarge, "a page of more than 4 GiB")),
        };
        match written {
            Ok(len) => {
                self.end += u64::try_from(len).unwrap_or(u64::MAX);
                self.records = self.records.wrapping_add(1);
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        let Some(file) = self.file.take() else { return };
        // On a full disk both of these can still be done; one is enough.
        let emptied = file.set_len(0);
        let spoilt = file.write_all_at(&[0; FRAME], 0);
        warn!(
            mount = self.label,
            %error,
            emptied = emptied.is_ok() || spoilt.is_ok(),
            "what this mount shows cannot be written down, so it will not outlive its process: make room where the runtime \
             directory is and mount anew"
        );
    }
}

/// The file of a process that has ended, to be taken in again.
#[derive(Debug)]
pub struct Replay {
    file: File,
    len: u64,
    end: u64,
    records: u32,
    buffer: Vec<u8>,
}

impl Replay {
    /// Begins to read a file.
    ///
    /// # Errors
    /// [`Fault::Unrecoverable`] when it does not begin as one of ours.
    pub fn open(file: File) -> Result<(Header, Self), Fault> {
        let len = file.metadata().map_err(|error| unreadable(&error))?.len();
        let mut replay = Self { file, len, end: 0, records: 0, buffer: Vec::new() };
        let Some(payload) = replay.payload()? else {
            return Err(Fault::Unrecoverable("it was given up, or never begun".to_owned()));
        };
        let mut bytes = Bytes(payload);
        let format = format(&mut bytes).ok_or_else(|| Fault::Unrecoverable("it is no record of names".to_owned()))?;
        if format != FORMAT {
            let cause = format!("it has format {format}, and this version reads {FORMAT}");
            return Err(Fault::Unrecoverable(cause));
        }
        let header = header(&mut bytes).ok_or_else(|| damaged(0))?;
        Ok((header, replay))
    }

    /// The next record's bytes; none when it is the last one and was not written whole, or there is none.
    fn payload(&mut self) -> Result<Option<&[u8]>, Fault> {
        let left = self.len - self.end;
        if left < FRAME as u64 {
            return Ok(None);
        }
        let mut frame = [0; FRAME];
        self.file.read_exact_at(&mut frame, self.end).map_err(|error| unreadable(&error))?;
        let word = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let (crc, len, number) = (word(0), word(4), word(8));
        if u64::from(len) > left - FRAME as u64 {
            return Ok(None);
        }
        let whole = 8 + len as usize;
        self.buffer.resize(whole, 0);
        self.buffer[..8].copy_from_slice(&frame[4..]);
        self.file.read_exact_at(&mut self.buffer[8..], self.end + FRAME as u64).map_err(|error| unreadable(&error))?;
        // write(2) makes the file longer piece by piece from front to back, so what is there is what was written.
        if crc_fast::crc32_iscsi(&self.buffer) != crc || number != self.records {
            return Err(damaged(self.end));
        }
        self.end += (FRAME + len as usize) as u64;
        self.records = self.records.wrapping_add(1);
        Ok(Some(&self.buffer[8..]))
    }

    /// The next thing that was taken in, and the table's sums after it.
    ///
    /// # Errors
    /// [`Fault::Unrecoverable`].
    fn next(&mut self) -> Result<Option<(Input, Sums)>, Fault> {
        let at = self.end;
        let Some(payload) = self.payload()? else { return Ok(None) };
        input(&mut Bytes(payload)).map(Some).ok_or_else(|| damaged(at))
    }

    /// Hands `take` one thing after the other that was taken in, and the table's sums after it. They are read on a thread of its own,
    /// a little ahead: a mount that waits for its names waits for all of this.
    ///
    /// # Errors
    /// [`Fault::Unrecoverable`], and whatever `take` fails with.
    pub fn each(mut self, mut take: impl FnMut(Input, Sums) -> Result<(), Fault>) -> Result<Self, Fault> {
        std::thread::scope(|scope| {
            let (send, inputs) = mpsc::sync_channel(READ_AHEAD);
            let read = move || {
                while let Some(input) = self.next()? {
                    if send.send(input).is_err() {
                        break;
                    }
                }
                Ok(self)
            };
            let reading = std::thread::Builder::new().name("names".to_owned()).spawn_scoped(scope, read);
            let reading = reading.map_err(|error| Fault::Internal(format!("no thread to read names with: {error}")))?;
            for (input, sums) in inputs {
                take(input, sums)?;
            }
            reading.join().map_err(|_| Fault::Internal("reading names has panicked".to_owned()))?
        })
    }

    /// Goes on writing behind the last whole record.
    ///
    /// # Errors
    /// [`Fault::Unrecoverable`] when the file cannot be written.
    pub fn go_on(self, label: String) -> Result<Journal, Fault> {
        self.file.set_len(self.end).map_err(|error| unreadable(&error))?;
        Ok(Journal { file: Some(self.file), end: self.end, records: self.records, label })
    }
}

fn format(bytes: &mut Bytes<'_>) -> Option<u64> {
    let ours = bytes.byte()? == HEADER && bytes.text()? == MAGIC;
    if ours { bytes.number() } else { None }
}

fn header(bytes: &mut Bytes<'_>) -> Option<Header> {
    let created = time(i64::from_le_bytes(bytes.array()?))?;
    let salt = u64::from_le_bytes(bytes.array()?);
    let (uid, gid) = (u32::from_le_bytes(bytes.array()?), u32::from_le_bytes(bytes.array()?));
    let (seed, most_names, entries) = (Seed(bytes.array()?), bytes.number()?, bytes.number()?);
    Some(Header { identity: Identity { created, salt, uid, gid, most_names }, seed, entries })
}

fn input(bytes: &mut Bytes<'_>) -> Option<(Input, Sums)> {
    let text = |text: &str| text.to_owned();
    let input = match bytes.byte()? {
        DIRECTORY => {
            let (entry, at, charset) = (bytes.number()?, text(bytes.text()?), bytes.text()?.parse().ok()?);
            Input::Directory { entry, at, charset, prefix: text(bytes.text()?) }
        }
        OBJECT => {
            let (entry, at, charset) = (bytes.number()?, text(bytes.text()?), bytes.text()?.parse().ok()?);
            Input::Object { entry, at, charset, meta: bytes.object()? }
        }
        OWN => {
            let (dir, from) = (bytes.number()?, bytes.optional_text()?.map(text));
            Input::Own { dir, from, continued: bytes.byte()? != 0, page: bytes.page()? }
        }
        SWEEP => {
            let (base, from) = (bytes.number()?, bytes.optional_text()?.map(text));
            Input::Sweep { base, from, page: bytes.page()? }
        }
        NAME => {
            let (dir, name) = (bytes.number()?, text(bytes.text()?));
            let found = match bytes.byte()? {
                MISSING => Found::Missing,
                FOUND_DIRECTORY => Found::Directory,
                FOUND_OBJECT => Found::Object(bytes.object()?),
                _ => return None,
            };
            Input::Name { dir, name, found }
        }
        _ => return None,
    };
    let sums = Sums { names: bytes.number()?, hidden: bytes.number()?, bytes: bytes.number()? };
    bytes.0.is_empty().then_some((input, sums))
}

/// The origin of an entry.
pub fn origin_of(origins: &[Arc<Origin>], entry: u64) -> Result<Arc<Origin>, Fault> {
    let origin = usize::try_from(entry).ok().and_then(|entry| origins.get(entry));
    origin.cloned().ok_or_else(|| Fault::Unrecoverable(format!("it has an entry {entry} that the mount has not")))
}

fn unreadable(error: &io::Error) -> Fault {
    Fault::Unrecoverable(error.to_string())
}

fn damaged(at: u64) -> Fault {
    Fault::Unrecoverable(format!("it is damaged at byte {at}"))
}

#[cfg(test)]
mod tests;
