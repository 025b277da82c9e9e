//! Trouble on demand: which requests it meets and what happens to them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::log::Request;
use super::operation::Operation;

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// 500 InternalError; nothing was done.
    InternalError,
    /// 503 SlowDown, with a Retry-After if there is a time; nothing was done.
    SlowDown {
        /// What Retry-After says, in whole seconds.
        retry_after: Option<Duration>,
    },
    /// The connection is reset when the head of the request has arrived; nothing was done.
    ResetEarly,
    /// The connection is reset when all of the request has arrived; nothing was done.
    ResetLate,
    /// The request was done in full, then the connection is reset instead of answering.
    LoseReply,
    /// The request is read and never answered; nothing was done.
    Stall,
    /// The body of the request is not read and there is no answer; nothing was done. Only requests with a body are met.
    StallUpload,
    /// The answer stops after so many bytes of its body; the connection stays open.
    StallBody {
        /// Bytes of the body that still come.
        after: u64,
    },
    /// The body of the answer trickles.
    Slow {
        /// Its speed.
        bytes_per_second: u64,
    },
    /// The body of the answer ends halfway and the connection closes.
    Truncate,
    /// One byte of the object is wrong on its way to the client. Only GETs of objects that have bytes are met.
    WrongByte,
    /// One byte of the request's body is wrong on its way to the store. Only requests with a body are met.
    WrongUpload,
    /// 200 with an error document in the body, which S3 sends when a copy or completion fails late; nothing was done.
    /// Only copies and completions are met.
    ErrorInside200,
    /// The request is handled this much later. Goes together with other faults.
    Latency(Duration),
}

impl Fault {
    /// Whether the fault can happen to this request at all.
    fn fits(&self, request: &Request) -> bool {
        match self {
            Self::WrongByte => request.operation == Operation::GetObject,
            Self::WrongUpload | Self::StallUpload => {
                matches!(request.operation, Operation::PutObject | Operation::UploadPart | Operation::AppendObject)
            }
            Self::ErrorInside200 => {
                matches!(request.operation, Operation::CopyObject | Operation::CopyPart | Operation::CompleteUpload)
            }
            _ => true,
        }
    }
}

type Condition = Arc<dyn Fn(&Request) -> bool + Send + Sync>;

/// Which requests a fault meets.
#[derive(Clone, Default)]
pub struct When(Vec<Condition>);

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "When({} conditions)", self.0.len())
    }
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Also: the closure says so.
    #[must_use]
    pub fn that(mut self, condition: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Self {
        self.0.push(Arc::new(condition));
        self
    }

    /// Also: it is this operation.
    #[must_use]
    pub fn operation(self, operation: Operation) -> Self {
        self.that(move |request| request.operation == operation)
    }

    /// Also: it has this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        let method = method.to_owned();
        self.that(move |request| request.method == method)
    }

    /// Also: it is about this key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        let key = key.to_owned();
        self.that(move |request| request.key == key)
    }

    /// Also: its key begins so.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        self.that(move |request| request.key.starts_with(&prefix))
    }

    /// Also: it has this query parameter, such as `append`.
    #[must_use]
    pub fn query(self, name: &str) -> Self {
        let name = name.to_owned();
        self.that(move |request| request.query.iter().any(|(known, _)| *known == name))
    }

    /// Also: it has a Range header, or has none.
    #[must_use]
    pub fn ranged(self, ranged: bool) -> Self {
        self.that(move |request| request.range.is_some() == ranged)
    }

    fn holds(&self, request: &Request) -> bool {
        self.0.iter().all(|condition| condition(request))
    }
}

/// How often a fault happens to the requests that it meets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Often {
    /// To the next so many of them.
    Next(u64),
    /// To all of them.
    Always,
    /// To each of them with this probability.
    Chance(f64),
}

/// Names a fault that was switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Rule {
    id: FaultId,
    fault: Fault,
    when: When,
    often: Often,
    happened: u64,
}

/// What happens to one request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) fault: Option<Fault>,
}

/// All faults that are switched on, and the dice.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    dice: fastrand::Rng,
    next_id: u64,
    /// Counts of rules that were removed.
    past: BTreeSet<(u64, u64)>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), dice: fastrand::Rng::with_seed(seed), next_id: 0, past: BTreeSet::new() }
    }

    pub(crate) fn add(&mut self, fault: Fault, when: When, often: Often) -> FaultId {
        self.next_id += 1;
        let id = FaultId(self.next_id);
        self.rules.push(Rule { id, fault, when, often, happened: 0 });
        id
    }

    pub(crate) fn remove(&mut self, id: FaultId) {
        self.past.extend(self.rules.iter().filter(|rule| rule.id == id).map(|rule| (rule.id.0, rule.happened)));
        self.rules.retain(|rule| rule.id != id);
    }

    pub(crate) fn clear(&mut self) {
        self.past.extend(self.rules.drain(..).map(|rule| (rule.id.0, rule.happened)));
    }

    /// How often a fault has happened.
    pub(crate) fn happened(&self, id: FaultId) -> u64 {
        let live = self.rules.iter().find(|rule| rule.id == id).map(|rule| rule.happened);
        live.or_else(|| self.past.iter().find(|(past, _)| *past == id.0).map(|(_, count)| *count)).unwrap_or(0)
    }

    /// What happens to this request. Delays add up; of everything else the rule that was switched on first wins.
    pub(crate) fn plan(&mut self, request: &Request) -> Plan {
        let mut plan = Plan::default();
        for rule in &mut self.rules {
            let is_delay = matches!(rule.fault, Fault::Latency(_));
            if (plan.fault.is_some() && !is_delay) || !rule.fault.fits(request) || !rule.when.holds(request) {
                continue;
            }
            let now = match &mut rule.often {
                Often::Always => true,
                Often::Next(left) => {
                    let now = *left > 0;
                    *left = left.saturating_sub(1);
                    now
                }
                Often::Chance(chance) => self.dice.f64() < *chance,
            };
            if !now {
                continue;
            }
            rule.happened += 1;
            match &rule.fault {
                Fault::Latency(delay) => plan.delay += *delay,
                fault => plan.fault = Some(fault.clone()),
            }
        }
        plan
    }
}
