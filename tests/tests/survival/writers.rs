//! Those who change the view: each makes, appends to, renames and deletes files of its own, changes remote ones, and keeps a journal of
//! what it has fsynced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tests::bucket::{forget_pages, sample};

use super::siege::{Kind, Watch, difference};

/// Remote files of each.
const REMOTE: u64 = 4;
const REMOTE_LEN: u64 = 1_500_000;
/// The most files of each.
const MOST: usize = 40;
const LONGEST: usize = 150_000;

/// One of them.
#[derive(Debug)]
pub struct Writer {
    number: usize,
    /// What its directory is called at the moment.
    directory: String,
    /// What each of its files holds; all of it was fsynced, or comes from the store.
    journal: BTreeMap<String, Vec<u8>>,
    next: u64,
}

impl Writer {
    /// One whose remote files are not there yet.
    pub fn new(number: usize) -> Self {
        let remote = |file: u64| {
            let seed = 1000 + u64::try_from(number).expect("few") * REMOTE + file;
            (format!("remote-{file}"), sample(seed, REMOTE_LEN + seed).to_vec())
        };
        let journal = (0..REMOTE).map(remote).collect();
        Self { number, directory: format!("writer-{number}"), journal, next: 0 }
    }

    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// What has to be in the store.
    pub fn stored(&self) -> impl Iterator<Item = (String, Bytes)> {
        self.journal.iter().map(|(name, bytes)| (format!("{}/{name}", self.directory), bytes.clone().into()))
    }

    /// Works until it is over or something is wrong.
    pub fn work(&mut self, watch: &Watch, who: usize, root: &Path) {
        while watch.goes_on() {
            let what = fastrand::u8(..100);
            let done = watch.timed(who, Kind::Write, || self.step(what, root));
            if let Err(error) = done {
                watch.wrong(format!("writer {}: step {what}: {error}", self.number));
            }
        }
    }

    fn step(&mut self, what: u8, root: &Path) -> io::Result<()> {
        let folder = root.join(&self.directory);
        match what {
            0..30 if self.journal.len() < MOST => self.create(&folder),
            0..40 => self.append(&folder),
            40..50 => self.change(&folder),
            50..65 => self.rename(&folder),
            65..78 => self.delete(&folder),
            78..80 => self.rename_directory(root),
            _ => self.read_again(&folder),
        }
    }

    fn any(&self) -> Option<String> {
        if self.journal.is_empty() {
            return None;
        }
        self.journal.keys().nth(fastrand::usize(..self.journal.len())).cloned()
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        format!("file-{}", self.next)
    }

    fn create(&mut self, folder: &Path) -> io::Result<()> {
        let name = self.new_name();
        let bytes = sample(fastrand::u64(..), fastrand::u64(..LONGEST as u64)).to_vec();
        let mut file = File::create_new(folder.join(&name))?;
        bytes.chunks(10_000).try_for_each(|piece| file.write_all(piece))?;
        file.sync_all()?;
        // The name is on the disk too.
        File::open(folder)?.sync_all()?;
        self.journal.insert(name, bytes);
        Ok(())
    }

    fn append(&mut self, folder: &Path) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let piece = sample(fastrand::u64(..), fastrand::u64(..5000));
        let mut file = OpenOptions::new().append(true).open(folder.join(&name))?;
        file.write_all(&piece)?;
        file.sync_data()?;
        self.journal.entry(name).or_default().extend_from_slice(&piece);
        Ok(())
    }

    /// Overwrites in the middle: of a remote file, which is copied up first.
    fn change(&mut self, folder: &Path) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let file = OpenOptions::new().read(true).write(true).open(folder.join(&name))?;
        let bytes = self.journal.entry(name).or_default();
        let piece = sample(fastrand::u64(..), fastrand::u64(..20_000));
        let at = fastrand::usize(..=bytes.len());
        file.write_all_at(&piece, at as u64)?;
        file.sync_all()?;
        bytes.resize(bytes.len().max(at + piece.len()), 0);
        bytes[at..at + piece.len()].copy_from_slice(&piece);
        Ok(())
    }

    /// To a new name, or in the place of another file.
    fn rename(&mut self, folder: &Path) -> io::Result<()> {
        let Some(from) = self.any() else { return Ok(()) };
        let to = if fastrand::bool() { self.new_name() } else { self.any().unwrap_or_default() };
        fs::rename(folder.join(&from), folder.join(&to))?;
        if from != to {
            let bytes = self.journal.remove(&from).unwrap_or_default();
            self.journal.insert(to, bytes);
        }
        Ok(())
    }

    fn delete(&mut self, folder: &Path) -> io::Result<()> {
        // Some remote files stay to the end, not copied up.
        let Some(name) = self.any().filter(|name| !name.starts_with("remote") || fastrand::u8(..10) == 0) else {
            return Ok(());
        };
        fs::remove_file(folder.join(&name))?;
        self.journal.remove(&name);
        Ok(())
    }

    fn rename_directory(&mut self, root: &Path) -> io::Result<()> {
        let name = format!("writer-{}-{}", self.number, self.next);
        self.next += 1;
        fs::rename(root.join(&self.directory), root.join(&name))?;
        self.directory = name;
        Ok(())
    }

    fn read_again(&self, folder: &Path) -> io::Result<()> {
        let Some(name) = self.any() else { return Ok(()) };
        let got = fs::read(folder.join(&name))?;
        let wanted = &self.journal[&name];
        if &got == wanted { Ok(()) } else { Err(io::Error::other(difference(&name, &got, wanted))) }
    }

    /// Whether its directory holds what the journal says and nothing else, with what the kernel remembers and without.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self, root: &Path) {
        let folder = root.join(&self.directory);
        let paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let mut names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, self.journal.keys().collect::<Vec<_>>(), "writer {}", self.number);
        for (name, wanted) in &self.journal {
            let path = folder.join(name);
            for _ in 0..2 {
                let got = fs::read(&path).unwrap();
                assert!(&got == wanted, "writer {}: {}", self.number, difference(name, &got, wanted));
                forget_pages(&File::open(&path).unwrap()).unwrap();
            }
        }
    }
}
