//! Images as archives: what engines are given, and what people keep in object storage.
//!
//! Engines of every age take one form, that of `docker save`: a tar archive of layers and configurations, with a `manifest.json`
//! that says which belong together. An archive of that form is passed on as it is. An OCI archive, and a registry's tree, hold
//! the same parts under other names: those are put into that form on their way, part by part, and nothing is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::manifest::{Digest, Manifest};

/// The most that a manifest or a configuration may have, in bytes: what registries allow.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// The most entries of an archive that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// Tar's unit.
const BLOCK: u64 = 512;

/// A stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub path: PathBuf,
    pub offset: u64,
    pub size: u64,
}

impl Blob {
    /// All of a file.
    pub(super) fn of(path: PathBuf) -> io::Result<Self> {
        let metadata = std::fs::metadata(&path)?;
        if !metadata.is_file() {
            return Err(io::Error::other(format!("{} is not a file", path.display())));
        }
        Ok(Self { path, offset: 0, size: metadata.len() })
    }

    /// Its content, which must not be longer than [`MAX_DOCUMENT`].
    pub(super) fn document(&self) -> io::Result<Vec<u8>> {
        if self.size > MAX_DOCUMENT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a document of it has {} bytes", self.size),
            ));
        }
        let mut content = Vec::new();
        self.open()?.read_to_end(&mut content)?;
        if content.len() as u64 != self.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(content)
    }

    fn open(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.size))
    }
}

/// One entry of the archive that is made.
enum Part {
    Text(Vec<u8>),
    Blob(Blob),
}

/// An archive of the form of `docker save`, made while it is read.
pub(super) struct SavedImage {
    /// What is still to come, the next one last.
    parts: Vec<(String, Part)>,
    current: Box<dyn Read + Send>,
    /// How much of the current part is still to come, without the padding behind it.
    left: u64,
    padding: u64,
    is_over: bool,
}

impl SavedImage {
    /// The archive of one image: its configuration, its layers and where they are.
    pub(super) fn new(
        name: Option<&str>,
        manifest: &Manifest,
        config: Vec<u8>,
        blobs: &BTreeMap<Digest, Blob>,
    ) -> Self {
        let config_name = format!("{}.json", manifest.config.hex());
        let layer_name = |digest: &Digest| format!("{}/layer.tar", digest.hex());
        let layers: Vec<String> = manifest.layers.iter().map(|(digest, _)| layer_name(digest)).collect();
        let description =
            json!([{ "Config": config_name, "RepoTags": name.into_iter().collect::<Vec<_>>(), "Layers": layers }]);
        let mut parts = vec![
            ("manifest.json".to_owned(), Part::Text(description.to_string().into_bytes())),
            (config_name, Part::Text(config)),
        ];
        let mut seen = BTreeSet::new();
        for (digest, _) in &manifest.layers {
            if seen.insert(digest)
                && let Some(blob) = blobs.get(digest)
            {
                parts.push((layer_name(digest), Part::Blob(blob.clone())));
            }
        }
        parts.reverse();
        Self { parts, current: Box::new(io::empty()), left: 0, padding: 0, is_over: false }
    }

    /// Goes on to the next part, whose head is read first.
    fn advance(&mut self) -> io::Result<()> {
        let Some((name, part)) = self.parts.pop() else {
            self.is_over = true;
            // Two empty blocks end an archive.
            (self.current, self.left) = (Box::new(io::repeat(0)), 2 * BLOCK);
            return Ok(());
        };
        let (content, size): (Box<dyn Read + Send>, u64) = match part {
            Part::Text(text) => {
                let size = text.len() as u64;
                (Box::new(io::Cursor::new(text)), size)
            }
            Part::Blob(blob) => (Box::new(blob.open()?), blob.size),
        };
        let mut header = tar::Header::new_ustar();
        header.set_path(&name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.current = Box::new(io::Cursor::new(header.as_bytes().to_vec()).chain(content));
        self.left = BLOCK + size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        Ok(())
    }
}

impl Read for SavedImage {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.padding > 0 {
                (self.current, self.left, self.padding) = (Box::new(io::repeat(0)), self.padding, 0);
            } else if self.is_over {
                return Ok(0);
            } else {
                self.advance()?;
            }
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let count = self.current.read(&mut into[..most])?;
        if count == 0 && most > 0 {
            // The archive has promised a length.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a part of the image is shorter than it was"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// What an archive holds, by the names of its entries.
#[derive(Debug)]
pub(super) struct Contents(BTreeMap<String, Blob>);

impl Contents {
    /// Looks through a tar archive that is not compressed.
    ///
    /// # Errors
    /// When it is no tar archive, or cannot be read.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut archive = tar::Archive::new(File::open(path)?);
        let mut found = BTreeMap::new();
        for (number, entry) in archive.entries_with_seek()?.enumerate() {
            if number >= MAX_ENTRIES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it has too many entries for an image"));
            }
            let entry = entry?;
            if entry.header().entry_type().is_file() {
                let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
                let blob = Blob { path: path.to_owned(), offset: entry.raw_file_position(), size: entry.size() };
                found.insert(name, blob);
            }
        }
        Ok(Self(found))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Blob> {
        self.0.get(name)
    }

    /// A blob of an OCI layout.
    pub(super) fn blob(&self, digest: &Digest) -> Option<&Blob> {
        self.get(&format!("blobs/sha256/{}", digest.hex()))
    }
}

/// An image in an archive of the form of `docker save`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    /// The entry that is its configuration.
    pub config: String,
    /// The names it had.
    pub names: Vec<String>,
}

/// The images that a `manifest.json` describes.
pub(super) fn saved(description: &[u8]) -> Result<Vec<Saved>, String> {
    let description: Value =
        serde_json::from_slice(description).map_err(|error| format!("its manifest.json cannot be read: {error}"))?;
    let image = |image: &Value| {
        let names = image["RepoTags"].as_array().into_iter().flatten();
        Some(Saved {
            config: image["Config"].as_str()?.to_owned(),
            names: names.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        })
    };
    let images: Vec<Saved> = description.as_array().into_iter().flatten().filter_map(image).collect();
    if images.is_empty() { Err("its manifest.json describes no image".to_owned()) } else { Ok(images) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_made_is_a_tar_archive_of_all_parts(
            layers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 0..4),
            twice in any::<bool>(),
            piece in 1_usize..700,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut blobs = BTreeMap::new();
            let mut order: Vec<(Digest, u64)> = Vec::new();
            for (number, layer) in layers.iter().enumerate() {
                let path = directory.path().join(number.to_string());
                std::fs::write(&path, layer).unwrap();
                let digest = Digest::of(layer);
                blobs.insert(digest.clone(), Blob::of(path).unwrap());
                order.push((digest, layer.len() as u64));
            }
            if twice {
                order.extend(order.first().cloned());
            }
            let config = b"{}".to_vec();
            let manifest = Manifest { config: Digest::of(&config), layers: order };
            let mut reader = SavedImage::new(Some("localhost:5000/x:1"), &manifest, config, &blobs);
            let (mut made, mut part) = (Vec::new(), vec![0; piece]);
            loop {
                let count = reader.read(&mut part).unwrap();
                if count == 0 {
                    break;
                }
                made.extend_from_slice(&part[..count]);
            }
            let path = directory.path().join("made.tar");
            std::fs::write(&path, &made).unwrap();
            let contents = Contents::of(&path).unwrap();
            let images = saved(&contents.get("manifest.json").unwrap().document().unwrap()).unwrap();
            prop_assert_eq!(&images[0].names, &["localhost:5000/x:1".to_owned()]);
            prop_assert_eq!(contents.get(&images[0].config).unwrap().document().unwrap(), b"{}");
            for (digest, size) in &manifest.layers {
                let layer = contents.get(&format!("{}/layer.tar", digest.hex())).unwrap();
                prop_assert_eq!(layer.size, *size);
                prop_assert_eq!(&Digest::of(&layer.document().unwrap()), digest);
            }
        }
    }

    #[test]
    fn a_part_that_shrinks_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let digest = Digest::of(b"x");
        let blob = Blob { path: file.path().to_owned(), offset: 0, size: 10 };
        let manifest = Manifest { config: Digest::of(b"{}"), layers: vec![(digest.clone(), 10)] };
        let mut made = SavedImage::new(None, &manifest, b"{}".to_vec(), &[(digest, blob)].into());
        assert!(io::copy(&mut made, &mut io::sink()).is_err());
        assert!(saved(b"[]").is_err() && saved(b"{").is_err());
    }
}
