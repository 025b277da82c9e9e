//! Getting the image a task runs in: the engine has it, pulls it, or is given it.
//!
//! An image that has come once stays with the engine: the next task finds it there. What a node's disk cannot hold is the node's to
//! remove; the agent never removes an image, because it cannot know who else uses it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use oss::Location;
use serde_json::Value;

use super::Containers;
use super::archive::{self, Blob, Contents, SavedImage};
use super::engine::{Engine, Image};
use super::error::{EngineError, ImageError, is_disk_full};
use super::http::Hangup;
use super::manifest::{self, Digest, Document, Manifest};
use super::reference::Reference;
use super::tree::Tree;
use crate::job::{Container, ImageSource, PullPolicy};

/// How long a pull may make no progress before it is begun anew.
const SILENCE: Duration = Duration::from_secs(180);

/// The pauses between attempts; the last one is used again and again.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(30)];

/// How often progress is said.
const TELL: Duration = Duration::from_secs(10);

/// What has to be free where the engine keeps images before one is pulled whose size is not known, in bytes.
const LEAST_SPACE: u64 = 256 << 20;

/// How deep lists of manifests may lie in one another.
const MAX_LISTS: usize = 4;

/// Work of a thread that somebody waits for, who may give up.
#[derive(Debug, Clone, Default)]
pub(super) struct Abort(Arc<Mutex<(bool, Option<Hangup>)>>);

impl Abort {
    /// Ends the work: what it waits for from the engine comes to an end, and nothing new is begun.
    pub(super) fn now(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        if let Some(hangup) = state.1.take() {
            hangup.hang_up();
        }
    }

    fn is_asked(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits, but not for long once the end is asked for.
    fn sleep(&self, pause: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_asked() {
            std::thread::sleep(STEP);
        }
    }

    fn register(&self, hangup: Hangup) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 { hangup.hang_up() } else { state.1 = Some(hangup) }
    }
}

/// Where files of an image in object storage are mounted, and where there is room for more.
#[derive(Debug)]
pub(super) struct Files {
    pub mount: PathBuf,
    pub scratch: PathBuf,
}

/// Makes sure that the engine has the image of `container`, and answers with it.
pub(super) fn get(
    containers: &Containers,
    engine: &Engine,
    container: &Container,
    files: &Files,
    abort: &Abort,
) -> Result<Image, ImageError> {
    let image = &container.image;
    match &container.source {
        ImageSource::Registry => {
            if container.pull == PullPolicy::Missing
                && let Some(found) = engine.image(&image.to_string())?
            {
                tracing::debug!(%image, id = found.id, "the engine has the image already");
                return Ok(found);
            }
            pull(containers, engine, image, abort)?;
            engine.image(&image.to_string())?.ok_or_else(|| not_there(image))
        }
        ImageSource::Tree(location) => {
            let broken = |problem| ImageError::Broken { location: location.clone(), problem };
            let unreadable = |source| ImageError::Unreadable { location: location.clone(), source };
            let tree = Tree::new(&files.mount);
            let top = tree.resolve(image).map_err(unreadable)?.map_err(broken)?;
            let find = |digest: &Digest| tree.blob(digest).map(Some).or_else(absent);
            let parts = take_apart(image, location, &find, Start::Digest(top))?;
            load_parts(engine, image, location, parts, abort)
        }
        ImageSource::Archive(location) => load_archive(engine, image, location, files, abort),
    }
}

fn not_there(image: &Reference) -> ImageError {
    let (image, message) = (image.to_string(), "the engine has pulled it and does not have it".to_owned());
    ImageError::NotFound { image, message }
}

fn absent(error: io::Error) -> io::Result<Option<Blob>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

fn pull(containers: &Containers, engine: &Engine, image: &Reference, abort: &Abort) -> Result<(), ImageError> {
    check_space(engine, image, LEAST_SPACE)?;
    let began = Instant::now();
    let login = containers.logins.header(&image.registry);
    let mut attempts = 0;
    loop {
        attempts += 1;
        tracing::info!(%image, attempt = attempts, "pulling the image");
        let mut layers = Layers::new(image);
        let name = image.name();
        let result = engine.pull(
            (&name, image.version()),
            login.as_ref().map(oss::Secret::expose),
            SILENCE,
            &|hangup| abort.register(hangup),
            &mut |said| layers.hear(said),
        );
        let Err(error) = result else {
            tracing::info!(%image, elapsed_ms = began.elapsed().as_millis(), "the image is there");
            return Ok(());
        };
        let pause = PAUSES[usize::try_from(attempts - 1).unwrap_or(usize::MAX).min(PAUSES.len() - 1)];
        let error = classify(engine, image, error);
        let again =
            matches!(error, ImageError::Unavailable { .. } | ImageError::Engine(EngineError::Unreachable { .. }));
        if !again || abort.is_asked() || began.elapsed() + pause >= containers.pull_deadline {
            return Err(match error {
                ImageError::Unavailable { image, message, .. } => {
                    ImageError::Unavailable { image, message, attempts, seconds: began.elapsed().as_secs() }
                }
                other => other,
            });
        }
        tracing::warn!(%error, "trying again in {} s", pause.as_secs());
        abort.sleep(pause);
    }
}

/// What an engine's words about a pull mean. They are those of the registry, through the engine, and no status comes with them.
fn classify(engine: &Engine, image: &Reference, error: EngineError) -> ImageError {
    let EngineError::Refused { message, status, .. } = error else { return ImageError::Engine(error) };
    let words = message.to_ascii_lowercase();
    let has = |list: &[&str]| list.iter().any(|word| words.contains(word));
    let name = image.to_string();
    if is_disk_full(&words) {
        let root = engine.root().unwrap_or_default();
        return ImageError::NoSpace { image: name, root, problem: message };
    }
    if has(&["no matching manifest", "no image found in manifest list", "no image found in image index"]) {
        return ImageError::Platform { image: name, here: manifest::architecture().to_owned(), there: message };
    }
    // Docker's registry says "denied" of what does not exist, so that nobody can find out what does.
    if has(&["manifest unknown", "not found", "name unknown", "does not exist", "repository name not known"])
        || status == 404
    {
        return ImageError::NotFound { image: name, message };
    }
    if has(&[
        "denied",
        "unauthorized",
        "authentication required",
        "no basic auth credentials",
        "incorrect username",
        "forbidden",
    ]) {
        return ImageError::Denied { image: name, registry: image.registry.clone(), message };
    }
    ImageError::Unavailable { image: name, attempts: 1, seconds: 0, message }
}

/// How far a pull is, told now and then.
struct Layers<'a> {
    image: &'a Reference,
    layers: BTreeMap<String, (u64, u64)>,
    told: Instant,
}

impl<'a> Layers<'a> {
    fn new(image: &'a Reference) -> Self {
        Self { image, layers: BTreeMap::new(), told: Instant::now() }
    }

    fn hear(&mut self, said: &Value) {
        const MOST: usize = 1000;
        let (Some(id), Some(status)) = (said["id"].as_str(), said["status"].as_str()) else { return };
        let detail = &said["progressDetail"];
        if status == "Downloading"
            && let (Some(current), Some(total)) = (detail["current"].as_u64(), detail["total"].as_u64())
            && (self.layers.len() < MOST || self.layers.contains_key(id))
        {
            self.layers.insert(id.to_owned(), (current, total));
        } else if status == "Download complete"
            && let Some((current, total)) = self.layers.get_mut(id)
        {
            *current = *total;
        }
        if self.told.elapsed() >= TELL && !self.layers.is_empty() {
            self.told = Instant::now();
            let (current, total) = self.layers.values().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            tracing::info!(image = %self.image, "pulling the image: {} of {} MiB so far known", current >> 20, total >> 20);
        }
    }
}

/// Where looking for an image among blobs begins.
enum Start {
    Digest(Digest),
    /// The index of an OCI archive.
    Text(Vec<u8>),
}

/// What an image is made of, found.
struct Parts {
    manifest: Manifest,
    config: Vec<u8>,
    blobs: BTreeMap<Digest, Blob>,
}

/// Follows manifests down to one image for this machine. `find` knows where a blob is.
fn take_apart(
    image: &Reference,
    location: &Location,
    find: &dyn Fn(&Digest) -> io::Result<Option<Blob>>,
    start: Start,
) -> Result<Parts, ImageError> {
    let broken = |problem: String| ImageError::Broken { location: location.clone(), problem };
    let unreadable = |source: io::Error| ImageError::Unreadable { location: location.clone(), source };
    let blob = |digest: &Digest| {
        let found = find(digest).map_err(unreadable)?;
        found.ok_or_else(|| broken(format!("{digest} of the image {image} is missing in it; push the image again")))
    };
    let document = |digest: &Digest| {
        let content = blob(digest)?.document().map_err(unreadable)?;
        let found = Digest::of(&content);
        let damaged =
            || broken(format!("{digest} of the image {image} is damaged (it is {found}); push the image again"));
        if found == *digest { Ok(content) } else { Err(damaged()) }
    };
    let architecture = manifest::architecture();
    let for_others =
        |there: String| ImageError::Platform { image: image.to_string(), here: architecture.to_owned(), there };
    let mut text = match start {
        Start::Digest(digest) => document(&digest)?,
        Start::Text(text) => text,
    };
    for _ in 0..MAX_LISTS {
        match manifest::parse(&text, architecture, image.tag.as_deref()).map_err(broken)? {
            Document::ForUs(digest) => text = document(&digest)?,
            Document::ForOthers(there) => return Err(for_others(there.join(", "))),
            Document::Image(manifest) => {
                let config = document(&manifest.config)?;
                if let Some(there) = manifest::foreign(&config, architecture) {
                    return Err(for_others(there));
                }
                let mut blobs = BTreeMap::new();
                for (digest, _) in &manifest.layers {
                    blobs.insert(digest.clone(), blob(digest)?);
                }
                return Ok(Parts { manifest, config, blobs });
            }
        }
    }
    Err(broken("its lists of manifests lead to one another without end".to_owned()))
}

/// Gives the engine an image, unless it has it already.
fn load_parts(
    engine: &Engine,
    image: &Reference,
    location: &Location,
    parts: Parts,
    abort: &Abort,
) -> Result<Image, ImageError> {
    let Parts { manifest, config, blobs } = parts;
    let id = manifest.config.to_string();
    let tag = image.tag.as_deref();
    let name = tag.map(|tag| format!("{}:{tag}", image.name()));
    if let Some(found) = known(engine, image, &id)? {
        return Ok(found);
    }
    let size: u64 = blobs.values().map(|blob| blob.size).sum();
    check_space(engine, image, size)?;
    tracing::info!(%image, from = location.escaped(), bytes = size, "loading the image");
    let saved = SavedImage::new(name.as_deref(), &manifest, config, &blobs);
    load(engine, image, saved, size, abort)?;
    loaded(engine, image, location, &id)
}

/// The image of that id, if the engine has it; it gets the name, if it does not have that yet.
fn known(engine: &Engine, image: &Reference, id: &str) -> Result<Option<Image>, ImageError> {
    let Some(found) = engine.image(id)? else { return Ok(None) };
    if let Some(tag) = image.tag.as_deref()
        && engine.image(&format!("{}:{tag}", image.name()))?.is_none_or(|named| named.id != found.id)
    {
        engine.tag(&found.id, (&image.name(), tag))?;
    }
    tracing::debug!(%image, id, "the engine has the image already");
    Ok(Some(found))
}

fn loaded(engine: &Engine, image: &Reference, location: &Location, id: &str) -> Result<Image, ImageError> {
    if let Some(found) = known(engine, image, id)? {
        return Ok(found);
    }
    // Some engines know images by the digest of their manifest.
    let named = engine.image(&image.to_string())?;
    let lost = || "the engine has taken it and does not have the image".to_owned();
    named.ok_or_else(|| ImageError::Broken { location: location.clone(), problem: lost() })
}

/// Sends an archive of about `size` bytes and says now and then how far it is.
fn load(engine: &Engine, image: &Reference, archive: impl Read, size: u64, abort: &Abort) -> Result<(), ImageError> {
    let mut counted = Counted { source: archive, image, sent: 0, size, told: Instant::now(), failed: None };
    let result = engine.load(&mut counted, &|hangup| abort.register(hangup), &mut |_| ());
    let failed = counted.failed;
    result.map_err(|error| match (&error, failed) {
        (EngineError::Refused { message, .. }, _) if is_disk_full(message) => {
            let root = engine.root().unwrap_or_default();
            ImageError::NoSpace { image: image.to_string(), root, problem: message.clone() }
        }
        (EngineError::Unreachable { socket, .. }, Some(source)) => {
            ImageError::Engine(EngineError::Unreachable { socket: socket.clone(), source })
        }
        _ => ImageError::Engine(error),
    })
}

struct Counted<'a, R> {
    source: R,
    image: &'a Reference,
    sent: u64,
    size: u64,
    told: Instant,
    /// Why reading failed: the connection only shows that it was cut off.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(into).inspect_err(|error| {
            self.failed = Some(io::Error::new(error.kind(), error.to_string()));
        })?;
        self.sent += count as u64;
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            tracing::info!(image = %self.image, "loading the image: {} of {} MiB", self.sent >> 20, self.size >> 20);
        }
        Ok(count)
    }
}

fn load_archive(
    engine: &Engine,
    image: &Reference,
    location: &Location,
    files: &Files,
    abort: &Abort,
) -> Result<Image, ImageError> {
    let broken = |problem: String| ImageError::Broken { location: location.clone(), problem };
    let unreadable = |source: io::Error| ImageError::Unreadable { location: location.clone(), source };
    let path = unpacked(&files.mount, &files.scratch).map_err(unreadable)?;
    let contents = Contents::of(&path).map_err(|error| match error.raw_os_error() {
        Some(_) => unreadable(error),
        None => {
            broken(format!("it is no archive of an image ({error}); make one with docker save, or as an OCI archive"))
        }
    })?;
    if let Some(description) = contents.get("manifest.json") {
        let images = archive::saved(&description.document().map_err(unreadable)?).map_err(broken)?;
        let has_name = |saved: &&archive::Saved| {
            saved.names.iter().any(|name| name.parse::<Reference>().is_ok_and(|name| name == *image))
        };
        let wanted = match (images.iter().find(has_name), images.as_slice()) {
            (Some(named), _) => named,
            (None, [only]) => only,
            (None, several) => {
                let names: Vec<&str> = several.iter().flat_map(|saved| &saved.names).map(String::as_str).collect();
                return Err(broken(format!("it has no image {image}; it has {}", names.join(", "))));
            }
        };
        let config =
            contents.get(&wanted.config).ok_or_else(|| broken("it lacks the image's configuration".to_owned()))?;
        let config = config.document().map_err(unreadable)?;
        let architecture = manifest::architecture();
        if let Some(there) = manifest::foreign(&config, architecture) {
            return Err(ImageError::Platform { image: image.to_string(), here: architecture.to_owned(), there });
        }
        let id = Digest::of(&config).to_string();
        if let Some(found) = known(engine, image, &id)? {
            return Ok(found);
        }
        let file = File::open(&path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        check_space(engine, image, size)?;
        tracing::info!(%image, from = location.escaped(), bytes = size, "loading the image");
        load(engine, image, file, size, abort)?;
        return loaded(engine, image, location, &id);
    }
    let Some(index) = contents.get("index.json") else {
        return Err(broken(
            "it holds neither a manifest.json nor an index.json; make it with docker save, or as an OCI archive"
                .to_owned(),
        ));
    };
    let start = Start::Text(index.document().map_err(unreadable)?);
    let find = |digest: &Digest| Ok(contents.blob(digest).cloned());
    let parts = take_apart(image, location, &find, start)?;
    load_parts(engine, image, location, parts, abort)
}

/// The archive as one that can be looked through: itself, or what it is the gzip of.
fn unpacked(path: &Path, scratch: &Path) -> io::Result<PathBuf> {
    let mut magic = [0; 2];
    let mut file = File::open(path)?;
    let count = file.read(&mut magic)?;
    if count < 2 || magic != [0x1f, 0x8b] {
        return Ok(path.to_owned());
    }
    let plain = scratch.join("image.tar");
    let mut unpacked = flate2::read::MultiGzDecoder::new(File::open(path)?);
    io::copy(&mut unpacked, &mut File::create(&plain)?)?;
    Ok(plain)
}

/// Refuses an image that cannot fit. One that may not fit is tried.
fn check_space(engine: &Engine, image: &Reference, least: u64) -> Result<(), ImageError> {
    let root = engine.root()?;
    // An engine in another mount namespace keeps its files where we cannot see them.
    let Ok(stat) = nix::sys::statvfs::statvfs(&root) else { return Ok(()) };
    let free = stat.blocks_available() * stat.fragment_size();
    if free >= least {
        return Ok(());
    }
    let problem = format!("{} MiB are free, and it takes {} at the least", free >> 20, least.div_ceil(1 << 20));
    Err(ImageError::NoSpace { image: image.to_string(), root, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_words_are_told_apart() {
        let engine: Engine =
            serde_json::from_value(serde_json::json!({ "socket": "/nowhere", "maker": "docker", "version": "/v1.41" }))
                .unwrap();
        let image: Reference = "registry.example/a/b:1".parse().unwrap();
        let said = |message: &str| {
            let error = EngineError::Refused { action: "pull".to_owned(), status: 500, message: message.to_owned() };
            classify(&engine, &image, error)
        };
        for words in [
            "manifest for registry.example/a/b:1 not found: manifest unknown: manifest unknown",
            "pull access denied for a, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
        ] {
            assert!(matches!(said(words), ImageError::NotFound { .. }), "{words}");
        }
        for words in [
            "Get \"https://registry.example/v2/\": unauthorized: authentication required",
            "Head \"https://registry.example/v2/a/b/manifests/1\": no basic auth credentials",
        ] {
            assert!(matches!(said(words), ImageError::Denied { .. }), "{words}");
        }
        for words in [
            "Get \"https://registry.example/v2/\": dial tcp 10.0.0.1:443: connect: connection refused",
            "Get \"https://registry.example/v2/\": net/http: TLS handshake timeout",
            "toomanyrequests: You have reached your pull rate limit",
            "received unexpected HTTP status: 503 Service Unavailable",
        ] {
            assert!(matches!(said(words), ImageError::Unavailable { .. }), "{words}");
        }
        assert!(matches!(said("write /var/lib/docker/tmp/x: no space left on device"), ImageError::NoSpace { .. }));
        let other = "no matching manifest for linux/amd64 in the manifest list entries";
        assert!(matches!(said(other), ImageError::Platform { .. }));
    }
}
