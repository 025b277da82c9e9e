//! Damage to the files of a cache directory, as a dying disk or a machine that lost its power does it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// Damages so many files below `cache`, chosen and hurt at random, and says what was done. The lock file is not one of them.
///
/// # Errors
/// When a file cannot be read or written.
pub fn damage(cache: &Path, times: u8, seed: u64) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    collect(cache, &mut files)?;
    files.retain(|file| *file != cache.join("lock"));
    // The order of a directory is the file system's, and the same seed is to hit the same files.
    files.sort();
    let mut rng = Rng::with_seed(seed);
    let mut done = Vec::new();
    for _ in 0..times {
        if files.is_empty() {
            break;
        }
        let path = files.swap_remove(rng.usize(0..files.len()));
        let name = path.strip_prefix(cache).unwrap_or(&path).display();
        done.push(format!("{name}: {}", hurt(&path, &mut rng)?));
    }
    Ok(done)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn hurt(path: &Path, rng: &mut Rng) -> io::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    if len == 0 {
        file.write_all_at(b"something", 0)?;
        return Ok("written to, having been empty".to_owned());
    }
    let at = rng.u64(0..len);
    Ok(match rng.u32(0..8) {
        0 => {
            file.set_len(at)?;
            format!("cut from {len} to {at} bytes")
        }
        1 => {
            file.set_len(at)?;
            file.set_len(len)?;
            format!("zeros from {at} to its end")
        }
        2 => {
            let zeros = vec![0; usize::try_from((len - at).min(4096)).unwrap_or(4096)];
            file.write_all_at(&zeros, at)?;
            format!("{} zeros at {at} of {len}", zeros.len())
        }
        3 => {
            // One piece where another belongs: each is right in itself.
            let from = rng.u64(0..len);
            let mut piece = vec![0; usize::try_from((len - from.max(at)).min(64 << 10)).unwrap_or(4096)];
            file.read_exact_at(&mut piece, from)?;
            file.write_all_at(&piece, at)?;
            format!("{} bytes from {from} at {at} of {len}", piece.len())
        }
        4 => {
            fs::remove_file(path)?;
            "removed".to_owned()
        }
        _ => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            byte[0] ^= 1 << rng.u32(0..8);
            file.write_all_at(&byte, at)?;
            format!("one bit at {at} of {len}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_cache_are_hurt_and_the_same_ones_every_time() {
        let mut before = None;
        for _ in 0..2 {
            let cache = tempfile::tempdir().unwrap();
            fs::create_dir(cache.path().join("objects")).unwrap();
            fs::write(cache.path().join("lock"), "lock").unwrap();
            for name in 0..5 {
                fs::write(cache.path().join(format!("objects/{name}")), vec![7; 100_000]).unwrap();
            }
            let done = damage(cache.path(), 3, 5).unwrap();
            assert_eq!(done.len(), 3);
            assert_eq!(fs::read(cache.path().join("lock")).unwrap(), b"lock");
            assert!(before.replace(done.clone()).is_none_or(|before| before == done), "{done:?}");
        }
        assert_eq!(damage(tempfile::tempdir().unwrap().path(), 3, 5).unwrap(), Vec::<String>::new());
    }
}
