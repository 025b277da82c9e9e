//! The bytes of one range, by one request or, when that is much slower than its peers, by two.
//!
//! Object stores answer nearly all requests quickly and a few of them very late. The late ones decide how long a job takes, and
//! asking again usually helps, because another server answers. So a request whose first byte is overdue, or whose body
//! crawls, gets a competitor for what is still missing; whoever answers first is listened to from then on, and the other
//! is given up. Only one request in twenty may be raced (see [`peers`](super::peers)): when everything is slow, doubling the load
//! would make it slower.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use oss::{GetOptions, GetResponse, ObjectMeta};
use tokio::time::{Instant, Sleep, sleep_until};

use super::object::Object;
use crate::metrics::Metrics;

/// Less than this is not worth another request once a body has begun, in bytes.
const WORTH_RACING: u64 = 128 << 10;

/// A range on its way.
pub(super) struct Race {
    object: Arc<Object>,
    metrics: Arc<Metrics>,
    /// The next byte to hand out.
    at: u64,
    end: u64,
    leader: Runner,
    rival: Option<Runner>,
    began: Instant,
    overdue: Option<Pin<Box<Sleep>>>,
    /// Nothing has been raced, so the time it takes says something about the store.
    fair: bool,
}

enum Runner {
    Asked { answer: BoxFuture<'static, oss::Result<GetResponse>>, from: u64 },
    Answered { body: BoxStream<'static, oss::Result<Bytes>>, skip: u64 },
}

/// What comes out of a race.
pub(super) enum Arrived {
    /// The store has answered for the first time; bytes follow.
    Head(Box<Head>),
    /// The next bytes.
    Bytes(Bytes),
    /// Everything has come.
    End,
}

/// What an answer says before its bytes.
pub(super) struct Head {
    pub(super) meta: ObjectMeta,
    /// How the store calls the request.
    pub(super) request_id: Option<String>,
}

enum Step {
    Answer(GetResponse),
    Chunk(Bytes),
    End,
    Failed(oss::Error),
}

impl Race {
    /// Begins to ask for `at..end`.
    pub(super) fn new(object: &Arc<Object>, metrics: &Arc<Metrics>, at: u64, end: u64) -> Self {
        let began = Instant::now();
        let overdue = object.origin.peers.slow_after().map(|after| Box::pin(sleep_until(began + after)));
        Self {
            object: Arc::clone(object),
            metrics: Arc::clone(metrics),
            at,
            end,
            leader: Runner::ask(object, at, end),
            rival: None,
            began,
            overdue,
            fair: true,
        }
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> oss::Result<Arrived> {
        loop {
            let step = tokio::select! {
                biased;
                step = self.leader.step() => step,
                step = step_of(&mut self.rival) => match self.judge(step) {
                    Some(head) => return Ok(head),
                    None => continue,
                },
                () = due(&mut self.overdue) => {
                    self.challenge();
                    continue;
                }
            };
            match step {
                Step::Answer(response) => {
                    let took = self.began.elapsed();
                    if self.fair {
                        self.object.origin.peers.answered(took);
                    }
                    // The leader was quick enough; whether its body is, shows later.
                    self.rival = None;
                    self.overdue = self.body_deadline();
                    return Ok(Arrived::Head(self.leader.answered(response, self.at)));
                }
                Step::Chunk(bytes) => {
                    let Some(bytes) = self.leader.skip(bytes) else { continue };
                    self.at += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    return Ok(Arrived::Bytes(bytes));
                }
                Step::End => return Ok(Arrived::End),
                Step::Failed(error) => match self.rival.take() {
                    // Its rival is further than a new attempt would be.
                    Some(rival) => self.leader = rival,
                    None => return Err(error),
                },
            }
        }
    }

    /// Notes that all went well.
    pub(super) fn finished(&self, bytes: u64) {
        if self.fair {
            self.object.origin.peers.carried(bytes, self.began.elapsed());
        }
    }

    fn body_deadline(&self) -> Option<Pin<Box<Sleep>>> {
        let left = self.end - self.at;
        let allowed = self.object.origin.peers.slow_body(left).filter(|_| left > WORTH_RACING)?;
        Some(Box::pin(sleep_until(Instant::now() + allowed)))
    }

    /// The leader is slow: somebody else may try.
    fn challenge(&mut self) {
        self.overdue = None;
        let begun = matches!(self.leader, Runner::Answered { .. });
        if begun && self.end - self.at < WORTH_RACING {
            return;
        }
        if !self.object.origin.peers.may_race() {
            self.overdue = Some(Box::pin(sleep_until(Instant::now() + Duration::from_secs(1))));
            return;
        }
        self.metrics.raced.one();
        self.fair = false;
        self.rival = Some(Runner::ask(&self.object, self.at, self.end));
    }

    /// The rival has done something: it leads from its answer on. If it has failed, the leader goes on alone.
    fn judge(&mut self, step: Step) -> Option<Arrived> {
        let mut rival = self.rival.take()?;
        let Step::Answer(response) = step else { return None };
        let head = rival.answered(response, self.at);
        self.leader = rival;
        self.metrics.races_won.one();
        Some(Arrived::Head(head))
    }
}

impl Runner {
    fn ask(object: &Arc<Object>, at: u64, end: u64) -> Self {
        let object = Arc::clone(object);
        // Asked for as a whole, the store's client verifies the checksum of a small object itself.
        let range = (at > 0 || end < object.size).then_some(at..end);
        let options = GetOptions { range, if_match: object.etag.clone() };
        let answer = async move { object.origin.store.get(&object.key, options).await };
        Self::Asked { answer: Box::pin(answer), from: at }
    }

    async fn step(&mut self) -> Step {
        match self {
            Self::Asked { answer, .. } => match answer.await {
                Ok(response) => Step::Answer(response),
                Err(error) => Step::Failed(error),
            },
            Self::Answered { body, .. } => match body.next().await {
                Some(Ok(bytes)) => Step::Chunk(bytes),
                Some(Err(error)) => Step::Failed(error),
                None => Step::End,
            },
        }
    }

    /// Goes from the answer to its body. `at` is the byte wanted next, which may be beyond the first that was asked for.
    fn answered(&mut self, response: GetResponse, at: u64) -> Box<Head> {
        let skip = match self {
            Self::Asked { from, .. } => at - *from,
            Self::Answered { .. } => 0,
        };
        *self = Self::Answered { body: response.body, skip };
        Box::new(Head { meta: response.meta, request_id: response.request_id })
    }

    /// A chunk without the bytes that somebody else has brought already.
    fn skip(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        let Self::Answered { skip, .. } = self else { return Some(bytes) };
        if *skip > 0 {
            let drop = usize::try_from(*skip).unwrap_or(usize::MAX).min(bytes.len());
            let _ = bytes.split_to(drop);
            *skip -= u64::try_from(drop).unwrap_or(0);
        }
        (!bytes.is_empty()).then_some(bytes)
    }
}

async fn step_of(runner: &mut Option<Runner>) -> Step {
    match runner {
        Some(runner) => runner.step().await,
        None => std::future::pending().await,
    }
}

async fn due(sleep: &mut Option<Pin<Box<Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}
