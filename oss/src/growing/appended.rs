//! Growing by append.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::tail::{Broken, Extent, Found, FoundCrc, Sealed, Step, Tail, TailMark};
use super::{GrowingOptions, GrownObject, GrownPart, Names};
use crate::crc::Crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::location::Key;
use crate::store::{Checksum, GetOptions, PutMode, Store};

/// How often a call tries before it fails. The store itself does not repeat an append, because it must be looked first.
const ATTEMPTS: u32 = 6;
/// What a store says to an append that would make the object longer than it may be.
const TOO_LARGE: &str = "EntityTooLarge";
/// How often the store may refuse a position that it has just named. More than one request can be under way, but not many.
const CONTRADICTIONS: u32 = 10;
/// The pause before the second attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// An object that grows by append.
#[derive(Debug)]
pub(super) struct Appended {
    store: Arc<dyn Store>,
    names: Names,
    tail: Tail,
    interval: Duration,
    piece: usize,
    /// Once the object is not what was sent, it stays so.
    broken: Option<Broken>,
}

impl Appended {
    pub(super) fn new(store: Arc<dyn Store>, names: Names, options: &GrowingOptions) -> Self {
        let tail = Tail::new(limit(&*store, options), options.piece);
        Self { store, names, tail, interval: options.shortest_interval, piece: options.piece, broken: None }
    }

    /// Goes on behind `mark`.
    pub(super) fn resume(store: Arc<dyn Store>, names: Names, options: &GrowingOptions, mark: TailMark) -> Self {
        let tail = Tail::resume(limit(&*store, options), options.piece, mark);
        Self { tail, ..Self::new(store, names, options) }
    }

    pub(super) fn mark(&self) -> Option<TailMark> {
        if self.broken.is_some() { None } else { self.tail.mark() }
    }

    pub(super) fn has_caught_up(&self) -> bool {
        self.tail.has_caught_up()
    }

    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    pub(super) fn abandon(&mut self) -> u64 {
        self.broken = None;
        self.tail.abandon()
    }

    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    fn key(&self) -> Key {
        self.names.part(self.tail.number())
    }

    pub(super) async fn append(&mut self, offered: Bytes) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        let mut contradictions = 0;
        loop {
            let result = match self.next(&offered)? {
                Step::Done => return Ok(()),
                Step::Ask => self.look(&offered).await,
                Step::Send { position, bytes } => {
                    let result = self.send(position, offered.slice(bytes)).await;
                    if result.is_ok() {
                        (attempt, pause, contradictions) = (1, FIRST_PAUSE, 0);
                    }
                    result
                }
            };
            match result {
                Ok(()) => {}
                // The store's limit is another one than is documented.
                Err(error) if error.code() == Some(TOO_LARGE) && self.tail.refused_to_grow() => {}
                // An earlier request has arrived after all: looking at once tells what of it.
                Err(error) if matches!(error.kind(), ErrorKind::PositionMismatch { .. }) => {
                    contradictions += 1;
                    if contradictions > CONTRADICTIONS {
                        let message = "the store names another length whenever it is asked";
                        return Err(self.names.error(ErrorKind::Unavailable, message).with_source(error));
                    }
                }
                Err(error) if attempt < ATTEMPTS && is_passing(error.kind()) => {
                    tracing::debug!("{error}; looking at the object in {pause:?}");
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                    pause *= 2;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn next(&mut self, offered: &[u8]) -> Result<Step> {
        if let Some(broken) = self.broken {
            return Err(self.breaks(broken));
        }
        self.tail.next(offered).map_err(|broken| self.breaks(broken))
    }

    async fn send(&mut self, position: u64, bytes: Bytes) -> Result<()> {
        self.tail.sending(&bytes);
        let answer = self.store.append(&self.key(), position, bytes).await?;
        self.tail.answered(answer.next_position, answer.crc64).map_err(|broken| self.breaks(broken))?;
        let next = answer.next_position;
        if self.tail.present().size == next {
            return Ok(());
        }
        let message = format!("the store says that the object is now {next} bytes long, which it cannot be");
        Err(self.names.error(ErrorKind::PositionMismatch { next: Some(next) }, message))
    }

    /// Finds out what has become of a request.
    async fn look(&mut self, offered: &[u8]) -> Result<()> {
        let known = self.tail.present();
        let found = match self.store.head(&self.key()).await {
            Ok(meta) => match meta.checksum {
                Some(Checksum::Crc64(crc)) => Found { size: meta.size, crc64: FoundCrc::Whole(crc) },
                _ => self.read_behind(known, meta.size, self.tail.longest(offered)).await?,
            },
            Err(error) if error.is_not_found() => Found { size: 0, crc64: FoundCrc::Whole(0) },
            Err(error) => return Err(error),
        };
        self.tail.found(offered, found).map_err(|broken| self.breaks(broken))
    }

    /// The checksum of the bytes behind those known, where the store keeps none.
    async fn read_behind(&self, known: Extent, size: u64, longest: u64) -> Result<Found> {
        let mut crc = Crc64::new();
        // A length that cannot be right is refused without reading.
        if size > known.size && size <= longest {
            let options = GetOptions { range: Some(known.size..size), if_match: None };
            let mut body = self.store.get(&self.key(), options).await?.body;
            while let Some(bytes) = body.next().await.transpose()? {
                crc.update(&bytes);
            }
        }
        Ok(Found { size, crc64: FoundCrc::Behind(crc.value()) })
    }

    pub(super) async fn finish(&mut self) -> Result<GrownObject> {
        if let Some(broken) = self.broken {
            return Err(self.breaks(broken));
        }
        if !self.tail.has_caught_up() {
            // Nothing more is to come: what the process before this one has sent must be known by now.
            self.append(Bytes::new()).await?;
        }
        if !self.tail.has_caught_up() {
            let known = self.tail.present().size;
            return Err(self.breaks(Broken::Longer { known, found: known + 1 }));
        }
        if !self.tail.is_settled() {
            let message = "the last append has failed; it must be repeated before the object is finished";
            return Err(self.names.error(ErrorKind::Invalid, message));
        }
        let extents: Vec<_> = self.tail.all().collect();
        if extents.is_empty() {
            self.store.put(&self.names.key, Bytes::new(), PutMode::Overwrite).await?;
            let part = GrownPart { key: self.names.key.clone(), size: 0, crc64: 0 };
            return Ok(GrownObject { parts: vec![part], size: 0, crc64: 0, index: None });
        }
        let mut parts = Vec::new();
        let mut whole = Extent::default();
        for (number, Sealed { extent, abandoned }) in extents.into_iter().enumerate() {
            let key = self.names.part(number);
            if !abandoned {
                self.verify(&key, extent).await?;
            }
            whole = whole.then(extent);
            parts.push(GrownPart { key, size: extent.size, crc64: extent.crc64 });
        }
        Ok(GrownObject { parts, size: whole.size, crc64: whole.crc64, index: None })
    }

    async fn verify(&mut self, key: &Key, extent: Extent) -> Result<()> {
        let meta = match self.store.head(key).await {
            // Who may write only has to take the store's answers to the appends for the truth.
            Err(error) if *error.kind() == ErrorKind::Denied => return Ok(()),
            result => result?,
        };
        let (known, found) = (extent.size, meta.size);
        if found < known {
            return Err(self.breaks(Broken::Shorter { known, found }));
        }
        if found > known {
            return Err(self.breaks(Broken::Longer { known, found }));
        }
        match meta.checksum {
            Some(Checksum::Crc64(crc)) if crc != extent.crc64 => Err(self.breaks(Broken::Corrupt)),
            _ => Ok(()),
        }
    }

    fn breaks(&mut self, broken: Broken) -> Error {
        let kind = match broken {
            // The caller's mistake, which it can mend.
            Broken::OtherBytes => return self.names.error(ErrorKind::Invalid, broken.to_string()),
            Broken::Shorter { .. } | Broken::Longer { .. } => ErrorKind::Changed,
            Broken::Corrupt => ErrorKind::Corrupt,
        };
        self.broken = Some(broken);
        self.names.error(kind, format!("{broken}; write the object again from the beginning"))
    }
}

/// No object becomes longer than this.
fn limit(store: &dyn Store, options: &GrowingOptions) -> u64 {
    store.capabilities().max_append_size.min(options.max_append_size)
}

fn is_passing(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Throttled { .. })
}
