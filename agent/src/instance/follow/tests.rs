use std::io::Write;

use oss::Key;
use oss::growing::GrownReader;
use oss::memory::{Fault, MemoryStore, Operation};

use super::*;

/// Bytes that tell where they come from.
fn lines(from: usize, to: usize) -> Vec<u8> {
    (from..to).flat_map(|number| format!("line {number} of a log that somebody writes\n").into_bytes()).collect()
}

struct Place {
    directory: tempfile::TempDir,
    model: Arc<MemoryStore>,
}

impl Place {
    fn new(model: MemoryStore) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, model: Arc::new(model) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn append(&self, name: &str, bytes: &[u8]) {
        open_log(&self.path(name)).unwrap().write_all(bytes).unwrap();
    }

    fn follow(&self, origin: Origin) -> Follower {
        let target = self.model.root().with_key(Key::new("log"));
        Follower::start(Followed { origin, store: self.model.clone(), target, sent: Some(self.path("sent")) })
    }

    fn own(&self) -> Follower {
        self.follow(Origin::Own(self.path("log")))
    }

    fn theirs(&self) -> Follower {
        self.follow(Origin::Theirs { root: self.directory.path().to_owned(), path: "dir/log".into() })
    }

    async fn text(&self) -> Vec<u8> {
        let mut reader = GrownReader::new(self.model.clone(), Key::new("log"));
        let mut text = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
        text
    }

    async fn until(&self, what: &str, condition: impl Fn(&[u8]) -> bool) {
        for _ in 0..600 {
            if condition(&self.text().await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}; it is {:?}", String::from_utf8_lossy(&self.text().await));
    }
}

fn models() -> [MemoryStore; 2] {
    [MemoryStore::oss(), MemoryStore::s3()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_arrives_while_it_is_written() {
    for model in models() {
        let place = Place::new(model);
        place.append("log", &lines(0, 10));
        let follower = place.own();
        place.until("the first lines", |text| text == lines(0, 10)).await;
        place.append("log", &lines(10, 20));
        place.until("more lines", |text| text == lines(0, 20)).await;
        place.append("log", &lines(20, 21));
        let all = lines(0, 21);
        assert_eq!(follower.finish().await.unwrap(), Some(all.len() as u64));
        assert_eq!(place.text().await, all);
    }
}

/// Agents that are killed, a store that loses requests and replies: what arrives is what was written, and what has arrived takes no room
/// on the disk.
///
/// Each agent has a runtime of its own, which ends with it: what an agent does beside the sending ends with its process, too, and
/// never meets what the next one does.
#[test]
fn agents_that_are_killed_are_followed_by_ones_that_go_on() {
    let agent = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for model in models() {
        let place = Place::new(model);
        let mut dice = fastrand::Rng::with_seed(7);
        place.model.hook(move |call| match (call.operation, dice.u8(0..20)) {
            (Operation::Append | Operation::Put, 0) => Fault::Before(ErrorKind::Unavailable),
            (Operation::Append | Operation::Put, 1) => Fault::After(ErrorKind::Unavailable),
            (_, 2) => Fault::Before(ErrorKind::Unavailable),
            _ => Fault::None,
        });
        let mut all = Vec::new();
        place.append("log", b"");
        for round in 0..12_usize {
            let more = lines(round * 100_000, (round + 1) * 100_000);
            place.append("log", &more);
            all.extend_from_slice(&more);
            let agent = agent();
            let follower = agent.block_on(async { place.own() });
            // Killed at some point of the way.
            std::thread::sleep(Duration::from_millis(20 * (round as u64 % 5)));
            drop(follower);
            drop(agent);
        }
        let last = agent();
        let sent = last.block_on(async { place.own().finish().await }).unwrap();
        place.model.unhook();
        let text = last.block_on(place.text());
        let same = text.iter().zip(&all).take_while(|(a, b)| a == b).count();
        assert!(
            text == all,
            "the log is not what was written: {} of {} bytes, {same} of them right and then {:?}; {:?}",
            text.len(),
            all.len(),
            String::from_utf8_lossy(&text[same..text.len().min(same + 200)]),
            place.model.keys()
        );
        assert_eq!(sent, Some(all.len() as u64));
        use std::os::unix::fs::MetadataExt;
        let left = std::fs::metadata(place.path("log")).unwrap().blocks() * 512;
        assert!(left < all.len() as u64 / 2, "{left} of {} bytes are still on the disk", all.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_the_tasks_own_is_followed_whatever_becomes_of_it() {
    for model in models() {
        let place = Place::new(model);
        let follower = place.theirs();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It is made late.
        std::fs::create_dir(place.path("dir")).unwrap();
        place.append("dir/log", &lines(0, 10));
        place.until("a late file", |text| text == lines(0, 10)).await;
        // Rotated, and written to a little longer under its new name.
        std::fs::rename(place.path("dir/log"), place.path("dir/log.1")).unwrap();
        place.append("dir/log", &lines(20, 30));
        place.append("dir/log.1", &lines(10, 20));
        place.until("a file that was rotated", |text| text == lines(0, 30)).await;
        // Cut off.
        std::fs::write(place.path("dir/log"), lines(30, 35)).unwrap();
        place.until("a file that was cut off", |text| text == lines(0, 35)).await;
        // Another agent goes on, and finds what was renamed meanwhile.
        drop(follower);
        place.append("dir/log", &lines(35, 40));
        std::fs::rename(place.path("dir/log"), place.path("dir/log.2")).unwrap();
        place.append("dir/log", &lines(40, 50));
        let follower = place.theirs();
        place.until("a file that was rotated without us", |text| text == lines(0, 50)).await;
        // Removed.
        std::fs::remove_file(place.path("dir/log")).unwrap();
        place.append("dir/log", &lines(50, 60));
        follower.finish().await.unwrap();
        assert_eq!(String::from_utf8(place.text().await), String::from_utf8(lines(0, 60)));
        // None of it was touched.
        assert_eq!(std::fs::read(place.path("dir/log.2")).unwrap(), lines(30, 40));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_never_was_is_no_object() {
    let place = Place::new(MemoryStore::oss());
    assert_eq!(place.theirs().finish().await.unwrap(), None);
    // A link that leads outside is no file.
    std::fs::create_dir(place.path("dir")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", place.path("dir/log")).unwrap();
    assert_eq!(place.theirs().finish().await.unwrap(), None);
    assert!(place.model.keys().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_else_writes_to_the_object_costs_nothing() {
    let place = Place::new(MemoryStore::oss());
    place.append("log", &lines(0, 10));
    let follower = place.own();
    place.until("the first lines", |text| text == lines(0, 10)).await;
    place.model.append(&Key::new("log"), lines(0, 10).len() as u64, "theirs".into()).await.unwrap();
    place.append("log", &lines(10, 20));
    place.until("all lines, once", |text| text == lines(0, 20)).await;
    // Once its beginning is not on the disk any more, it goes on beside.
    let more = lines(20, 1_000_000);
    place.append("log", &more);
    let whole = [lines(0, 20), more].concat();
    place.until("much more", |text| text.len() == whole.len()).await;
    for _ in 0..100 {
        use std::os::unix::fs::MetadataExt;
        if std::fs::metadata(place.path("log")).unwrap().blocks() * 512 < whole.len() as u64 / 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    place.model.delete(&Key::new("log")).await.unwrap();
    place.append("log", b"the end\n");
    follower.finish().await.unwrap();
    assert!(place.model.content("log").is_none());
    let rest = place.model.content("log.part-1").unwrap();
    let rest = std::str::from_utf8(&rest).unwrap();
    assert!(
        rest.starts_with("\n[batch-agent: something else has changed this log") && rest.ends_with("]\nthe end\n"),
        "{rest}"
    );
}
