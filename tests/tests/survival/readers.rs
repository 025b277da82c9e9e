//! Those who read unmodified remote files: by `read` or through a mapping, in order or anywhere.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use tests::bucket::forget_pages;
use tests::mapped::Mapped;

use super::siege::{Kind, Watch, difference};

/// How much of a file is read before the kernel has to forget it: what it remembers, nobody is asked for.
const READS: usize = 24;

/// One of them.
#[derive(Debug)]
pub struct Reader {
    /// Its number.
    pub who: usize,
    /// By page faults.
    pub mapped: bool,
    /// From some place on, or at random.
    pub in_order: bool,
    /// Where the objects are.
    pub folder: PathBuf,
}

impl Reader {
    /// Reads until it is over or something is wrong.
    pub fn work(&self, watch: &Watch, objects: &[Bytes]) {
        while watch.goes_on() {
            let number = fastrand::usize(..objects.len());
            if let Err(error) = self.read(watch, number, &objects[number]) {
                watch.wrong(format!("{self:?}: object {number}: {error}"));
            }
        }
    }

    fn read(&self, watch: &Watch, number: usize, object: &Bytes) -> io::Result<()> {
        let path = self.folder.join(number.to_string());
        let file = watch.timed(self.who, Kind::Read, || File::open(path))?;
        let len = NonZeroUsize::new(object.len()).expect("objects are not empty");
        let mapped = if self.mapped { Some(Mapped::new(&file, len)?) } else { None };
        let mut buffer = vec![0; if self.in_order { 128 << 10 } else { 4096 }];
        let mut at = fastrand::usize(..object.len() - READS * buffer.len());
        for _ in 0..READS {
            if !watch.goes_on() {
                break;
            }
            watch.timed(self.who, Kind::Read, || match &mapped {
                Some(mapped) => mapped.read_at(at, &mut buffer).map(drop),
                None => file.read_exact_at(&mut buffer, u64::try_from(at).expect("files are smaller")),
            })?;
            let wanted = &object[at..at + buffer.len()];
            if buffer != wanted {
                return Err(io::Error::other(difference(&format!("read at {at}"), &buffer, wanted)));
            }
            // Nothing left of it can be taken for the next answer.
            buffer.fill(0xA5);
            at = if self.in_order { at + buffer.len() } else { fastrand::usize(..object.len() - buffer.len()) };
        }
        drop(mapped);
        forget_pages(&file)?;
        Ok(())
    }
}
