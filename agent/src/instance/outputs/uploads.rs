//! The uploads in parts that are open, as they are written down: who comes after a crash goes on with them, or gives them up.
//!
//! One file for each, in a directory of the attempt's own (or of one `push`): a line that says which upload of which file it is, then a
//! line for each part that has arrived. The first is on the disk before the upload is used; the others need not be, because a part
//! that nobody remembers is sent again. Before an upload is begun there is a file without one: should its sender be killed before the
//! answer comes, its successor knows what to look for.
//!
//! Only what is written down here is ever given up, with one exception, that lost answer. Then an upload is ours if it is to the very object,
//! no more were begun from the moment of our request on than we have asked for, and nothing of it has arrived although it is older than a
//! minute: whoever else had begun one would have sent something.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use jiff::Timestamp;
use oss::transfer::{OpenUpload, SentPart, UploadJournal};
use oss::{ErrorKind, Location, Store, Stores, UploadId, UploadMeta};
use serde::{Deserialize, Serialize};

use crate::durable::{self, FileError};
use crate::instance::record::{Record, file_name};
use crate::node::Node;

/// The version of the files.
const VERSION: u32 = 1;

const EXTENSION: &str = "upload";

/// How many uploads are given up at once.
const AT_ONCE: usize = 8;

/// How long giving one up may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An upload of which nothing has arrived for so long has nobody who sends.
const DESERTED: Duration = Duration::from_secs(60);

/// How far the store's clock may be behind ours: it tells whole seconds.
const CLOCKS: Duration = Duration::from_secs(2);

/// The first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    version: u32,
    target: Location,
    /// When the upload was asked for.
    at: Timestamp,
    /// Without its parts; absent until the store has answered.
    upload: Option<OpenUpload>,
}

/// An upload as it was read.
#[derive(Debug, Clone)]
pub struct Written {
    path: PathBuf,
    /// The object it is to become.
    pub target: Location,
    at: Timestamp,
    /// The upload, if it is known to have begun.
    pub upload: Option<OpenUpload>,
}

/// The uploads of one attempt.
#[derive(Debug, Clone)]
pub struct UploadBook {
    directory: PathBuf,
    outlives: bool,
}

impl UploadBook {
    /// That of an attempt, by its id. Uploads that are dropped stay for the next agent.
    pub fn of_attempt(node: &Node, id: &str) -> Self {
        Self { directory: node.uploads().join(file_name(id)), outlives: true }
    }

    /// One in a directory that is the caller's alone. Uploads that are dropped are given up.
    pub fn in_directory(directory: PathBuf) -> Self {
        Self { directory, outlives: false }
    }

    /// What is written down. What cannot be read is left where it is, and said. Blocking.
    pub fn read(&self) -> Vec<Written> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    let directory = self.directory.display();
                    tracing::warn!(%error, "what was being uploaded cannot be read from {directory}");
                }
                return Vec::new();
            }
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION)).filter_map(read).collect()
    }

    /// A journal for an upload to `target`, of which `written` was begun before.
    pub fn journal(&self, target: &Location, written: Option<&Written>) -> Arc<dyn UploadJournal> {
        Arc::new(Journal {
            book: self.clone(),
            target: target.clone(),
            place: Mutex::new(written.map(|written| Place { path: written.path.clone(), file: None, at: written.at })),
        })
    }

    /// Gives up whatever is written down, and says whether nothing is left. What cannot be given up now stays written down.
    pub async fn give_up_all(&self, stores: &Stores) -> bool {
        let book = self.clone();
        let Ok(all) = tokio::task::spawn_blocking(move || book.read()).await else { return false };
        self.give_up_these(all, stores).await
    }

    async fn give_up_these(&self, all: Vec<Written>, stores: &Stores) -> bool {
        let known = &Known {
            ids: all.iter().filter_map(|written| Some(written.upload.as_ref()?.id.clone())).collect(),
            asked: all.iter().filter(|written| written.upload.is_none()).fold(HashMap::new(), |mut asked, written| {
                *asked.entry(written.target.clone()).or_default() += 1;
                asked
            }),
        };
        let given_up = futures_util::stream::iter(all).map(|written| async move {
            let target = written.target.escaped();
            let done = tokio::time::timeout(PATIENCE + DESERTED, give_up(&written, known, stores)).await;
            match done.unwrap_or_else(|_| Err("the store did not answer in time".to_owned())) {
                Ok(()) => durable::remove(&written.path).is_ok(),
                Err(why) => {
                    tracing::warn!(
                        "the parts of an upload to {target} stay in the bucket until an agent is started here that can reach it, or its \
                         lifecycle rule for unfinished uploads removes them: {why}"
                    );
                    false
                }
            }
        });
        let all_gone = given_up.buffer_unordered(AT_ONCE).all(|gone| async move { gone }).await;
        all_gone && remove_empty(&self.directory)
    }
}

/// Removes the book of an attempt that is over. Something that cannot be read stays.
fn remove_empty(directory: &Path) -> bool {
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// What attempts have left that nobody goes on with: an agent that was killed, or storage that could not be reached in the end.
#[derive(Debug)]
pub struct LeftBehind(Vec<(UploadBook, Vec<Written>)>);

impl LeftBehind {
    /// Looks for it. To be done before an attempt is begun, which may have the name of one that was killed. Blocking, short.
    pub fn find(node: &Node) -> Self {
        let find = || -> Result<Vec<(UploadBook, Vec<Written>)>, FileError> {
            let directory = node.uploads();
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(FileError::on("read", &directory)(error)),
            };
            // Read before the records are: who begins an attempt writes its record first.
            let books: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            let used: HashSet<PathBuf> =
                Record::all(node)?.into_iter().map(|record| directory.join(file_name(&record.id))).collect();
            let left = books.into_iter().filter(|book| !used.contains(book));
            Ok(left
                .map(|directory| UploadBook { directory, outlives: true })
                .map(|book| (book.clone(), book.read()))
                .collect())
        };
        Self(find().unwrap_or_else(|error| {
            tracing::warn!(%error, "parts that a killed agent has left in the bucket are not looked for");
            Vec::new()
        }))
    }

    /// Gives it up. What cannot be given up now is found again by the next agent.
    pub async fn give_up(self, stores: &Stores) {
        for (book, written) in self.0 {
            book.give_up_these(written, stores).await;
        }
    }
}

/// What a book says of all its uploads.
struct Known {
    ids: HashSet<UploadId>,
    /// To which objects uploads were asked for without an answer, and how many.
    asked: HashMap<Location, usize>,
}

async fn give_up(written: &Written, known: &Known, stores: &Stores) -> Result<(), String> {
    let text = |error: oss::Error| error.to_string();
    let store = stores.open(&written.target).map_err(text)?;
    let key = written.target.key();
    if let Some(upload) = &written.upload {
        return store.abort_multipart(key, &upload.id).await.map_err(text);
    }
    loop {
        let uploads = match open_uploads(&*store, key).await {
            Ok(uploads) => uploads,
            // Without the right to look, or where that cannot be asked, it cannot be told from others'.
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) => return Ok(()),
            Err(error) => return Err(text(error)),
        };
        let now = SystemTime::now();
        let asked = known.asked.get(&written.target).copied().unwrap_or(1);
        match lost(&uploads, &known.ids, (written.at.into(), asked), now) {
            Lost::Nothing => return Ok(()),
            Lost::Perhaps(wait) => tokio::time::sleep(wait).await,
            Lost::Deserted(ids) => {
                for id in ids {
                    match store.list_parts(key, id, 0).await {
                        Ok(page) if page.parts.is_empty() => store.abort_multipart(key, id).await.map_err(text)?,
                        Err(error) if !error.is_not_found() => return Err(text(error)),
                        // Somebody is at work on it, or it has been completed.
                        _ => {}
                    }
                }
                return Ok(());
            }
        }
    }
}

/// All uploads to this very object.
async fn open_uploads(store: &dyn Store, key: &oss::Key) -> oss::Result<Vec<UploadMeta>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.list_uploads(key.as_str(), after.as_ref()).await?;
        let is_behind = page.uploads.last().is_some_and(|upload| upload.key != *key);
        found.extend(page.uploads.into_iter().filter(|upload| upload.key == *key));
        match page.continuation {
            Some(next) if !is_behind => after = Some(next),
            _ => return Ok(found),
        }
    }
}

/// Which uploads may be those whose beginning nobody has heard of.
#[derive(Debug, PartialEq, Eq)]
enum Lost<'a> {
    /// None: the request had not come through, or it cannot be told which one it is.
    Nothing,
    /// There are some; it can be told after this time.
    Perhaps(Duration),
    /// These, if nothing of them has arrived.
    Deserted(Vec<&'a UploadId>),
}

/// Pure: `uploads` are those to the object, `known` all that are written down, and so many were asked for without an answer from `at` on.
fn lost<'a>(
    uploads: &'a [UploadMeta],
    known: &HashSet<UploadId>,
    (at, asked): (SystemTime, usize),
    now: SystemTime,
) -> Lost<'a> {
    let since = at.checked_sub(CLOCKS).unwrap_or(at);
    let is_candidate = |upload: &&UploadMeta| {
        !known.contains(&upload.id) && upload.initiated.is_some_and(|initiated| initiated >= since)
    };
    let candidates: Vec<&UploadMeta> = uploads.iter().filter(is_candidate).collect();
    if candidates.is_empty() || candidates.len() > asked {
        return Lost::Nothing;
    }
    // A clock that is ahead of ours makes it wait, and not hurry.
    let age = |upload: &&UploadMeta| now.duration_since(upload.initiated?).ok();
    let youngest = candidates.iter().map(|upload| age(upload).unwrap_or_default()).min().unwrap_or_default();
    match DESERTED.checked_sub(youngest) {
        Some(left) if !left.is_zero() => Lost::Perhaps(left),
        _ => Lost::Deserted(candidates.into_iter().map(|upload| &upload.id).collect()),
    }
}

fn read(path: PathBuf) -> Option<Written> {
    let text = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(%error, "an upload that was begun cannot be read from {}", path.display());
            return None;
        }
    };
    let mut lines = text.split(|byte| *byte == b'\n');
    let header: Option<Header> = lines.next().and_then(|line| serde_json::from_slice(line).ok());
    let Some(Header { version: VERSION, target, at, mut upload }) = header else {
        tracing::warn!(
            "{} is damaged or of another version; the upload it tells of is left to the bucket",
            path.display()
        );
        return None;
    };
    if let Some(upload) = &mut upload {
        // One that is torn was being written when its writer was killed.
        upload.parts.extend(lines.filter_map(|line| serde_json::from_slice::<SentPart>(line).ok()));
    }
    Some(Written { path, target, at, upload })
}

/// What was begun before, by the objects it is to become. Of two for one object the later counts, and the other is given up in the end.
pub fn by_target(all: Vec<Written>) -> HashMap<Location, Written> {
    let sorted: BTreeMap<_, _> = all.into_iter().map(|written| ((written.at, written.path.clone()), written)).collect();
    sorted.into_values().filter(|written| written.upload.is_some()).map(|w| (w.target.clone(), w)).collect()
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    file: Option<File>,
    at: Timestamp,
}

/// Writes one upload down.
#[derive(Debug)]
struct Journal {
    book: UploadBook,
    target: Location,
    place: Mutex<Option<Place>>,
}

impl Journal {
    fn write(&self, place: &Place, upload: Option<OpenUpload>) -> io::Result<()> {
        let header = Header { version: VERSION, target: self.target.clone(), at: place.at, upload };
        let mut line = serde_json::to_vec(&header)?;
        line.push(b'\n');
        durable::replace(&place.path, &line).map_err(|error| error.source)
    }
}

impl UploadJournal for Journal {
    fn beginning(&self) -> io::Result<()> {
        // A new name: what was begun before, and could not be given up, stays written down.
        let name = format!("{:016x}.{EXTENSION}", fastrand::u64(..));
        let place = Place { path: self.book.directory.join(name), file: None, at: Timestamp::now() };
        durable::private_directory(&self.book.directory).map_err(|error| error.source)?;
        if self.write(&place, None).is_err() {
            // Whoever has given up the last upload of a book of that name may just have taken it away.
            durable::private_directory(&self.book.directory).map_err(|error| error.source)?;
            self.write(&place, None)?;
        }
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        Ok(())
    }

    fn begun(&self, upload: &OpenUpload) -> io::Result<()> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place.as_mut().ok_or(io::ErrorKind::NotFound)?;
        place.file = None;
        self.write(place, Some(upload.clone()))
    }

    fn sent(&self, part: &SentPart) -> io::Result<()> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let file = match &mut place.file {
            Some(file) => file,
            none => {
                let mut file = OpenOptions::new().append(true).open(&place.path)?;
                // What another writer has left of its last line ends here.
                file.write_all(b"\n")?;
                none.insert(file)
            }
        };
        let mut line = serde_json::to_vec(part)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    fn ended(&self) {
        let Some(place) = self.place.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if let Err(error) = durable::remove(&place.path) {
            tracing::warn!(%error, "an upload that has ended cannot be forgotten");
        }
    }

    fn outlives_its_future(&self) -> bool {
        self.book.outlives
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oss::Key;
    use oss::transfer::FileStamp;

    fn upload(id: &str) -> OpenUpload {
        let stamp = FileStamp { device: 1, inode: 2, size: 3, modified: (4, 5), changed: (6, 7) };
        OpenUpload { id: UploadId(id.to_owned()), stamp, part_size: 1, parts: Vec::new() }
    }

    fn part(number: u32) -> SentPart {
        let receipt = serde_json::json!({"number": number, "etag": "\"e\"", "size": 1, "crc64": 9});
        serde_json::from_value(serde_json::json!({"receipt": receipt, "nvme": 7})).unwrap()
    }

    #[test]
    fn what_is_written_down_is_read_again_whatever_was_torn() {
        let directory = tempfile::tempdir().unwrap();
        let book = UploadBook::in_directory(directory.path().join("book"));
        assert!(book.read().is_empty());
        let target: Location = "oss://bucket/a \"b\"\n/c".parse().unwrap();
        let journal = book.journal(&target, None);
        journal.beginning().unwrap();
        let [asked] = &book.read()[..] else { panic!("one") };
        assert!(asked.upload.is_none() && asked.target == target && by_target(book.read()).is_empty());
        journal.begun(&upload("u")).unwrap();
        journal.sent(&part(1)).unwrap();
        journal.sent(&part(2)).unwrap();
        let path = book.read()[0].path.clone();
        let whole = fs::read(&path).unwrap();
        for cut in whole.len() - 20..whole.len() - 1 {
            fs::write(&path, &whole[..cut]).unwrap();
            let written = by_target(book.read()).remove(&target).unwrap();
            assert_eq!(written.upload.as_ref().unwrap().parts, [part(1)]);
            let next = book.journal(&target, Some(&written));
            next.sent(&part(3)).unwrap();
            assert_eq!(book.read()[0].upload.as_ref().unwrap().parts, [part(1), part(3)]);
        }
        // One that could not be given up stays beside its successor.
        let written = book.read().remove(0);
        let next = book.journal(&target, Some(&written));
        next.beginning().unwrap();
        next.begun(&upload("v")).unwrap();
        assert_eq!(book.read().len(), 2);
        assert_eq!(by_target(book.read())[&target].upload.as_ref().unwrap().id.0, "v");
        next.ended();
        next.ended();
        assert_eq!(book.read()[0].upload.as_ref().unwrap().id.0, "u");
        book.journal(&target, Some(&written)).ended();
        assert!(book.read().is_empty());
        fs::write(&path, "{").unwrap();
        assert!(book.read().is_empty() && path.exists());
    }

    #[test]
    fn only_what_nobody_else_can_have_begun_is_taken_for_ours() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let upload = |id: &str, seconds: i64| UploadMeta {
            key: Key::new("k"),
            id: UploadId(id.to_owned()),
            initiated: at
                .checked_add(Duration::from_secs(1000))
                .and_then(|later| later.checked_sub(Duration::from_secs(u64::try_from(1000 - seconds).unwrap()))),
        };
        let later = |seconds| at + Duration::from_secs(seconds);
        let none = HashSet::new();
        assert_eq!(lost(&[], &none, (at, 1), later(500)), Lost::Nothing);
        // Begun before we asked.
        assert_eq!(lost(&[upload("old", -10)], &none, (at, 1), later(500)), Lost::Nothing);
        let ours = [upload("old", -10), upload("ours", 1)];
        assert_eq!(lost(&ours, &none, (at, 1), later(500)), Lost::Deserted(vec![&ours[1].id]));
        assert_eq!(lost(&ours, &none, (at, 1), later(31)), Lost::Perhaps(Duration::from_secs(30)));
        assert_eq!(lost(&ours, &none, (at, 1), at), Lost::Perhaps(DESERTED));
        // Two: one of them is somebody else's, and nobody knows which.
        assert_eq!(lost(&[upload("a", 1), upload("b", 2)], &none, (at, 1), later(500)), Lost::Nothing);
        let known = HashSet::from([UploadId("a".to_owned())]);
        let two = [upload("a", 1), upload("b", 2)];
        assert_eq!(lost(&two, &known, (at, 1), later(500)), Lost::Deserted(vec![&two[1].id]));
        // Both are ours if we have asked for two.
        assert_eq!(lost(&two, &none, (at, 2), later(500)), Lost::Deserted(vec![&two[0].id, &two[1].id]));
        let unknown = [UploadMeta { initiated: None, ..upload("x", 1) }];
        assert_eq!(lost(&unknown, &none, (at, 1), later(500)), Lost::Nothing);
    }

    #[tokio::test]
    async fn what_is_given_up_is_forgotten_and_what_cannot_be_stays() {
        let (directory, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let book = UploadBook::in_directory(directory.path().join("book"));
        let stores = Stores::new(oss::Settings::default());
        let target: Location = format!("file://{}/x", data.path().display()).parse().unwrap();
        for _ in 0..3 {
            let journal = book.journal(&target, None);
            journal.beginning().unwrap();
            journal.begun(&upload("gone")).unwrap();
        }
        assert!(book.give_up_all(&stores).await);
        assert!(!directory.path().join("book").exists());
        // OSS without a region or endpoint cannot be reached.
        let journal = book.journal(&"oss://bucket/x".parse().unwrap(), None);
        journal.beginning().unwrap();
        journal.begun(&upload("there")).unwrap();
        assert!(!book.give_up_all(&stores).await);
        assert_eq!(book.read().len(), 1);
    }
}
