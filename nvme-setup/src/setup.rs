//! Looks, plans and does, until everything is there.
//!
//! Nothing is remembered from one round to the next, or from one run to the next. A run that is interrupted anywhere is
//! taken up by looking again; the last round finds nothing to do, and that is the proof that everything is there.

mod applied;
mod hand;
mod release;
mod swap;

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::command::CommandError;
use crate::examine::Examiner;
use crate::identity::Node;
use crate::inventory::InventoryError;
use crate::lock::Lock;
use crate::plan::plan;
use crate::request::Request;
use crate::step::{Plan, Planned, Refusal, Settled, Step};
use crate::sysfs::Roots;
use crate::tools::Tools;
use crate::world::World;

pub use applied::Applied;
pub use release::Released;

/// How often what is there is planned from: an array that is cleared, made, formatted and mounted takes four rounds.
const ROUNDS: u32 = 8;
/// How long to sleep before looking again for a disk that is not there.
const PAUSE: Duration = Duration::from_millis(500);
/// How long another run, or a program that it has left behind, is waited for at least.
const OTHERS: Duration = Duration::from_secs(60);

/// Prepares the volumes of a node.
#[derive(Debug, Clone)]
pub struct Setup {
    node: Node,
    roots: Roots,
    examiner: Examiner,
    tools: Tools,
    lock: PathBuf,
}

/// What happens while volumes are being prepared.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something is not there yet, and is waited for. Told once for each different state.
    Waiting {
        /// What for.
        refusals: &'a [Refusal],
    },
    /// A step begins.
    Begin(&'a Planned),
    /// A step has been done.
    Done {
        /// Which one.
        planned: &'a Planned,
        /// How long it took.
        took: Duration,
    },
}

/// What has been done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The steps, in order.
    pub done: Vec<Planned>,
    /// All volumes, as they are now, in the order of the request.
    pub settled: Vec<Settled>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why the volumes are not there.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The machine could not be looked at.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Something is refused. Nothing has been done in this round; what was done before is whole.
    #[error("{}", refusals(.0))]
    Refused(Plan),
    /// A step failed. Running again takes it up.
    #[error("{}: cannot {}: {source}", planned.volume.display(), planned.step)]
    Step {
        /// Which one.
        planned: Box<Planned>,
        /// Why.
        source: Box<StepError>,
    },
    /// The caller has stopped it.
    #[error("stopped before: {}", .0.step)]
    Stopped(Box<Planned>),
    /// Another run is at work.
    #[error(
        "another nvme-setup, or a program that it has started, has been at work for {waited:?}; wait for its end \
         (`fuser -v {}` shows who it is)", path.display()
    )]
    Busy {
        /// How long it was waited for.
        waited: Duration,
        /// The lock file.
        path: PathBuf,
    },
    /// The lock cannot be had.
    #[error("cannot lock {}: {source}; run this as root", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something could not be taken away.
    #[error("cannot {what}: {source}")]
    Release {
        /// What was tried.
        what: String,
        /// Why not.
        source: Box<StepError>,
    },
    /// Doing the steps does not lead to an end.
    #[error(
        "after {ROUNDS} rounds there is still something to do ({0}); something else changes the disks at the same time"
    )]
    Endless(Box<Step>),
}

fn refusals(plan: &Plan) -> String {
    plan.refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A program failed, or is not there.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The machine could not be looked at.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// What the plan was made from is no longer so. Nothing has been changed by this step.
    #[error("{what} {why}; nothing was changed; look at it with `nvme-setup status` and run this again")]
    Changed {
        /// The device or path.
        what: String,
        /// What is different.
        why: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Setup {
    /// For a node, with this machine's devices and programs.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            roots: Roots::default(),
            examiner: Examiner::default(),
            tools: Tools::default(),
            lock: PathBuf::from("/run/nvme-setup.lock"),
        }
    }

    /// One that looks for programs in this directory first.
    #[must_use]
    pub fn with_programs(mut self, directory: impl Into<PathBuf>) -> Self {
        self.tools.first = Some(directory.into());
        self
    }

    /// One with another lock file. Only one run at a time has it. What was applied is written down beside it.
    #[must_use]
    pub fn with_lock(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock = path.into();
        self
    }

    /// One that looks at devices in another way.
    #[must_use]
    pub fn with_examiner(mut self, examiner: Examiner) -> Self {
        self.examiner = examiner;
        self
    }

    /// What was applied in this boot, if anything was.
    pub fn applied(&self) -> Option<Applied> {
        Applied::read(&self.record())
    }

    /// Where that is written down: beside the lock.
    fn record(&self) -> PathBuf {
        self.lock.with_extension("json")
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Looks at the machine. Devices are opened for reading only.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn observe(&self, request: &Request) -> Result<World, SetupError> {
        Ok(World::observe(&self.roots, &self.examiner, &self.node, request)?)
    }

    /// What would be done. Changes nothing and waits for nothing.
    ///
    /// # Errors
    /// When the machine cannot be looked at. That something is refused is a plan.
    pub fn plan(&self, request: &Request) -> Result<Plan, SetupError> {
        Ok(plan(&self.observe(request)?, request, &self.node))
    }

    /// Does it. `watch` is told what happens, and can stop everything before a step begins.
    ///
    /// When anything is refused, nothing is done, for the other volumes neither: a node with half of its disks is no
    /// node.
    ///
    /// # Errors
    /// As the variants of [`SetupError`] say. Running it again is always safe.
    pub fn apply(
        &self,
        request: &Request,
        watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Report, SetupError> {
        let wait = Duration::from_secs(request.wait);
        let lock = self.locked(wait)?;
        let start = Instant::now();
        let mut report = Report::default();
        let mut told: Vec<Refusal> = Vec::new();
        let mut rounds = 0;
        loop {
            let plan = self.plan(request)?;
            if !plan.refusals.is_empty() {
                if plan.refusals.iter().any(|refusal| !refusal.may_pass) || start.elapsed() >= wait {
                    return Err(SetupError::Refused(plan));
                }
                if told != plan.refusals {
                    told.clone_from(&plan.refusals);
                    // Nothing to be stopped has begun.
                    let _ = watch(Event::Waiting { refusals: &plan.refusals });
                }
                thread::sleep(PAUSE.min(wait.saturating_sub(start.elapsed())));
                continue;
            }
            let Some(first) = plan.steps.first() else {
                report.settled = plan.settled;
                report.notes = plan.notes;
                if let Err(error) = Applied::add(&self.record(), &self.node, request) {
                    let path = self.record();
                    report.notes.push(format!(
                        "cannot write {}: {error}; `nvme-setup trim` has to be told what to trim",
                        path.display()
                    ));
                }
                return Ok(report);
            };
            if rounds == ROUNDS {
                return Err(SetupError::Endless(Box::new(first.step.clone())));
            }
            rounds += 1;
            for planned in plan.steps {
                self.step(&lock, &planned, watch)?;
                if planned.step != Step::LookAgain {
                    report.done.push(planned);
                }
            }
        }
    }

    pub(crate) fn locked(&self, wait: Duration) -> Result<Lock, SetupError> {
        let limit = wait.max(OTHERS);
        let lock =
            Lock::take(&self.lock, limit).map_err(|source| SetupError::Lock { path: self.lock.clone(), source })?;
        lock.ok_or_else(|| SetupError::Busy { waited: limit, path: self.lock.clone() })
    }

    fn step(
        &self,
        lock: &Lock,
        planned: &Planned,
        watch: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), SetupError> {
        if watch(Event::Begin(planned)).is_break() {
            return Err(SetupError::Stopped(Box::new(planned.clone())));
        }
        let start = Instant::now();
        self.perform(lock, &planned.step)
            .map_err(|source| SetupError::Step { planned: Box::new(planned.clone()), source: Box::new(source) })?;
        // It has been done already.
        let _ = watch(Event::Done { planned, took: start.elapsed() });
        Ok(())
    }
}
