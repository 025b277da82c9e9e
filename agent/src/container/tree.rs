//! The storage tree of a registry (version 2, of Docker's `registry` program), read as files.
//!
//! ```text
//! docker/registry/v2/
//!   repositories/NAME/_manifests/tags/TAG/current/link       the digest of a manifest, as text
//!   repositories/NAME/_manifests/revisions/sha256/HEX/link   there when the repository has that manifest
//!   blobs/sha256/HE/HEX/data                                 manifests, configurations and layers
//! ```
//!
//! BatchCompute starts a registry over such a tree and has Docker pull from it. Reading the tree itself needs no registry
//! program, no port that may be taken, and no engine that has to be told to trust a registry without TLS; and of an image that the
//! engine has already, nothing but its manifest is read.

use std::io;
use std::path::{Path, PathBuf};

use super::archive::Blob;
use super::manifest::Digest;
use super::reference::Reference;

/// Where a registry keeps its files below its root directory.
const BELOW: &str = "docker/registry/v2";

/// A link file holds one digest.
const MAX_LINK: u64 = 1024;

/// A registry's tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree below a registry's root directory.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.join(BELOW) }
    }

    /// The manifest that a name stands for; `Err` says what there is instead.
    pub(super) fn resolve(&self, image: &Reference) -> io::Result<Result<Digest, String>> {
        if !self.root.is_dir() {
            return Ok(Err(format!("there is no {BELOW}/ in it, so it is not a registry's directory")));
        }
        // The name's first part is where the registry would listen, and not part of the repository.
        let repository = self.root.join("repositories").join(&image.repository);
        if !repository.is_dir() {
            let known = self.names("repositories")?;
            return Ok(Err(format!("it has no repository {}; it has {known}", image.repository)));
        }
        let link = match (&image.digest, &image.tag) {
            (Some(digest), _) => {
                let hex = digest.trim_start_matches("sha256:");
                repository.join("_manifests/revisions/sha256").join(hex).join("link")
            }
            (None, tag) => {
                let tag = tag.as_deref().unwrap_or("latest");
                repository.join("_manifests/tags").join(tag).join("current/link")
            }
        };
        let blob = match Blob::of(link) {
            Ok(blob) => blob,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let tags = self.names(&format!("repositories/{}/_manifests/tags", image.repository))?;
                return Ok(Err(format!(
                    "its repository {} has no {}; it has the tags {tags}",
                    image.repository,
                    image.version()
                )));
            }
            Err(error) => return Err(error),
        };
        if blob.size > MAX_LINK {
            return Ok(Err(format!("its link for {} is no link", image.version())));
        }
        let text = blob.document()?;
        let digest = std::str::from_utf8(&text).ok().and_then(Digest::parse);
        Ok(digest.ok_or_else(|| format!("its link for {} names no SHA-256", image.version())))
    }

    /// A manifest, a configuration or a layer.
    pub(super) fn blob(&self, digest: &Digest) -> io::Result<Blob> {
        let hex = digest.hex();
        Blob::of(self.root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data"))
    }

    /// The names in a directory, for messages.
    fn names(&self, below: &str) -> io::Result<String> {
        const SHOWN: usize = 10;
        let mut names: Vec<String> = std::fs::read_dir(self.root.join(below))?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        Ok(if names.is_empty() { "none".to_owned() } else { format!("{}{more}", names.join(", ")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_lead_to_digests_and_mistakes_to_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::new(directory.path());
        let image = |text: &str| text.parse::<Reference>().unwrap();
        let resolve = |text: &str| tree.resolve(&image(text)).unwrap();
        assert!(resolve("localhost:5000/a/b:1").unwrap_err().contains("not a registry's directory"));
        let digest = Digest::of(b"manifest");
        let write = |path: String, content: &str| {
            let path = directory.path().join(BELOW).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("repositories/a/b/_manifests/tags/1/current/link".to_owned(), &digest.to_string());
        write("repositories/a/b/_manifests/tags/bad/current/link".to_owned(), "sha256:../../../etc/passwd");
        write(format!("repositories/a/b/_manifests/revisions/sha256/{}/link", digest.hex()), &digest.to_string());
        write(format!("blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex()), "manifest");
        assert_eq!(resolve("localhost:5000/a/b:1"), Ok(digest.clone()));
        assert_eq!(resolve(&format!("localhost:5000/a/b@{digest}")), Ok(digest.clone()));
        assert!(resolve("localhost:5000/a/b:2").unwrap_err().contains("the tags 1, bad"));
        assert!(resolve("localhost:5000/a/b:bad").unwrap_err().contains("no SHA-256"));
        assert!(resolve("localhost:5000/c").unwrap_err().contains("it has a"));
        assert_eq!(tree.blob(&digest).unwrap().document().unwrap(), b"manifest");
        assert!(tree.blob(&Digest::of(b"other")).is_err());
    }
}
