//! The life of a node, from power-on to poweroff.
//!
//! [`Boot::live`] is what happens, one line per phase. Each phase is told as it begins and as it ends (see [`story`]), has a deadline, and
//! can be done again: an agent that was killed, upgraded or restarted is followed by one that begins at the top, finds disks and
//! mounts in place, waits for a start-up script or a task that is still running, and skips what is over. So nothing here asks where
//! its predecessor stopped; it asks what there is.
//!
//! Nothing is done after a phase that failed: a node that lacks a disk or a mount would only produce wrong results.

mod bootstrap;
mod disks;
mod mounts;
mod news;
pub mod phase;
pub mod service;
pub mod story;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use oss::Stores;

use crate::console::Console;
use crate::events::Event;
use crate::identity::{self, Sources};
use crate::instance::{Reason, StopSignal, Stopper};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::outcome::{Cause, Failure, InstanceOutcome};
use crate::programs::Programs;
use crate::settings::{AtEnd, Identity, NodeSettings};
use crate::spot;
use phase::{Broken, Came, Phase};
use service::Milestone;
use story::Teller;

/// How long finding out who the node is may take.
const IDENTITY_LIMIT: Duration = Duration::from_secs(60);

/// How much longer than its mounts' own deadlines a phase of mounts may take.
const MOUNT_MARGIN: Duration = Duration::from_secs(15);

/// How long sending the node's own story may take.
const REPORT_LIMIT: Duration = Duration::from_secs(120);

/// What a boot is given from outside.
#[derive(Debug)]
pub struct Boot {
    /// Tells what happens.
    pub teller: Arc<Teller>,
    /// State and runtime directories; where scratch is turns out on the way.
    pub node: Node,
    /// Whether the settings leave it to us where scratch is.
    pub scratch_is_free: bool,
    /// Where the system's programs are.
    pub programs: Programs,
    /// The `fuse-oss` program.
    pub fuse_oss: std::path::PathBuf,
    /// What the user sees.
    pub console: Console,
    /// Is asked for the end of the task.
    pub stop: StopSignal,
    /// Asks for it when the cloud takes the instance back.
    pub stopper: Arc<Stopper>,
    /// When this agent began.
    pub began: Instant,
}

/// How a life ended.
#[derive(Debug)]
pub enum End {
    /// The task ended, or there was none to run.
    Through {
        /// How, if there was one.
        outcome: Option<Box<InstanceOutcome>>,
        /// What to do now.
        at_end: AtEnd,
        /// Why the node's own story could not be sent, if it could not.
        unreported: Option<Broken>,
    },
    /// A phase before that failed.
    Broken(Broken),
}

/// What later phases know of earlier ones.
#[derive(Debug)]
struct Known {
    settings: NodeSettings,
    identity: Identity,
    node: Node,
    stores: Arc<Stores>,
    metrics: Metrics,
}

impl Known {
    /// What its objects are named after: the instance's id, or the machine's name where no cloud has given one.
    fn name(&self) -> String {
        let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let name = self.identity.instance_id.clone().or_else(host).unwrap_or_else(|| "node".to_owned());
        name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect()
    }

    /// The endpoint of OSS, as programs are told.
    fn oss_host(&self) -> Option<String> {
        let oss = &self.stores.settings().oss;
        let of_region = || oss.region.as_ref().map(|region| format!("https://oss-{region}.aliyuncs.com"));
        oss.endpoint.clone().or_else(of_region)
    }
}

impl Boot {
    /// Lives.
    pub async fn live(&self, settings: impl Future<Output = Result<NodeSettings, Failure>>) -> End {
        let end = self.phases(settings).await.unwrap_or_else(End::Broken);
        match &end {
            End::Through { unreported: None, .. } => service::reached(Milestone::Ended, &self.programs).await,
            End::Through { unreported: Some(broken), .. } | End::Broken(broken) => {
                service::failed(broken, &self.programs).await;
            }
        }
        end
    }

    async fn phases(&self, settings: impl Future<Output = Result<NodeSettings, Failure>>) -> Result<End, Broken> {
        let teller = &*self.teller;
        teller.events().to_journal();
        let settings = teller.phase(Phase::Settings, None, async { Ok(Came::To(settings.await?, None)) }).await?;
        let identity = teller.phase(Phase::Identity, Some(IDENTITY_LIMIT), self.identify(&settings)).await?;
        self.watch_for_reclaim(&settings, &identity);
        teller.phase(Phase::Disks, None, disks::prepare(&settings, &identity, self)).await?;
        let mut known = self.know(settings, identity);
        news::begin(&known, self);
        news::measure(&mut known, self);
        mounts::expect(&known.settings, teller);
        let (network, objects) = tokio::join!(
            teller.phase(
                Phase::NetworkMounts,
                mounts::network_limit(&known.settings).map(|limit| limit + MOUNT_MARGIN),
                mounts::network(&known.settings, &self.programs, teller)
            ),
            teller.phase(
                Phase::ObjectMounts,
                mounts::object_limit(&known.settings).map(|limit| limit + MOUNT_MARGIN),
                mounts::objects(&known.settings, &known.node, &self.fuse_oss, &self.programs, teller)
            ),
        );
        Broken::of_both(network, objects, teller)?;
        service::reached(Milestone::Mounts, &self.programs).await;
        teller.phase(Phase::Bootstrap, None, bootstrap::run(&known, self)).await?;
        service::reached(Milestone::Ready, &self.programs).await;
        news::active(&known, self);
        let outcome = teller.phase(Phase::Task, None, task::run(&known, self)).await?;
        let reported =
            teller.phase(Phase::Report, Some(REPORT_LIMIT), task::report(&known, self, outcome.as_ref())).await;
        let (outcome, at_end) = (outcome.map(Box::new), known.settings.at_end);
        Ok(End::Through { outcome, at_end, unreported: reported.err() })
    }

    /// Looks out, for as long as the agent lives, for the cloud taking the instance back. Then the task is to end, whatever phase the
    /// node is in.
    fn watch_for_reclaim(&self, settings: &NodeSettings, identity: &Identity) {
        let Some(watch) = spot::Watch::of(identity, &Sources::with_storage(&settings.storage)) else { return };
        let (teller, stopper) = (Arc::clone(&self.teller), Arc::clone(&self.stopper));
        tokio::spawn(async move {
            let notice = watch.notice().await;
            let words = notice.text();
            tracing::warn!("{words}; the task ends now, and what it has is sent");
            teller.event(Event { event: "SpotReclaim", subject: "node", elapsed_ms: None, message: Some(&words) });
            teller.note(|story| story.reclaim = Some(notice));
            stopper.ask_for(Reason::SpotReclaim(words));
        });
    }

    async fn identify(&self, settings: &NodeSettings) -> Result<Came<Identity>, Failure> {
        let (identity, notes) = identity::discover(&settings.identity, &Sources::with_storage(&settings.storage)).await;
        for note in notes {
            if note.is_warning {
                tracing::warn!("{}", note.text);
            } else {
                tracing::info!("{}", note.text);
            }
        }
        self.teller.note(|story| story.identity = Some(identity.clone()));
        let known = [&identity.instance_id, &identity.instance_type, &identity.zone];
        let words: Vec<&str> = known.into_iter().flatten().map(String::as_str).collect();
        let message = (!words.is_empty()).then(|| words.join(", "));
        Ok(Came::To(identity, message))
    }

    /// Decides where things are, now that the disks are there.
    fn know(&self, settings: NodeSettings, identity: Identity) -> Known {
        let mut node = self.node.clone();
        if let Some(scratch) = settings.scratch.as_ref().or(settings.disks.scratch.as_ref())
            && self.scratch_is_free
        {
            node.scratch.clone_from(scratch);
        }
        let mut settings = settings;
        identity::complete_storage(&identity, &mut settings.storage);
        Known {
            stores: Arc::new(Stores::new(settings.storage.clone())),
            settings,
            identity,
            node,
            metrics: Metrics::default(),
        }
    }
}

impl End {
    /// The exit status of the agent: 0 as long as nothing of ours failed. A failed task is no failed node.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Through { unreported: None, .. } => 0,
            Self::Through { unreported: Some(broken), .. } | Self::Broken(broken) => broken.failure.exit_status,
        }
    }

    /// When the machine is to be powered off, if it is: at once when the task is over and everything of it has arrived. What has not
    /// arrived is on its disks and would be lost with it, so then after as long as the settings leave a person to save it.
    pub fn powers_off_in(&self) -> Option<Duration> {
        let Self::Through { outcome: Some(outcome), at_end: AtEnd::PowerOff { deadline }, unreported } = self else {
            return None;
        };
        let has_run = outcome.exit_code.is_some() || outcome.signal.is_some();
        let is_unsent = !outcome.outputs.failed.is_empty() || (has_run && outcome.cause == Some(Cause::Storage));
        Some(if is_unsent || unreported.is_some() { *deadline } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;
    use crate::outcome::{State, Uploaded};

    fn through(outcome: Option<InstanceOutcome>, unreported: bool) -> End {
        let failure = Failure::new(Cause::Storage, exit::UPLOAD_FAILED, "no");
        End::Through {
            outcome: outcome.map(Box::new),
            at_end: AtEnd::PowerOff { deadline: Duration::from_secs(60) },
            unreported: unreported.then_some(Broken { phase: Phase::Report, failure }),
        }
    }

    #[test]
    fn a_machine_is_powered_off_at_once_only_when_everything_has_arrived() {
        let good = InstanceOutcome {
            figures: None,
            task: "t".to_owned(),
            instance: 0,
            retries: 0,
            attempts: 1,
            state: State::Finished,
            exit_code: Some(0),
            signal: None,
            cause: None,
            message: None,
            started: jiff::Timestamp::UNIX_EPOCH,
            ended: jiff::Timestamp::UNIX_EPOCH,
            elapsed_ms: None,
            usage: None,
            stdout: None,
            stderr: None,
            outputs: Uploaded::default(),
            reserved: None,
            exit_status: 0,
        };
        let (at_once, later) = (Some(Duration::ZERO), Some(Duration::from_secs(60)));
        let failed = |cause| InstanceOutcome { state: State::Failed, cause: Some(cause), ..good.clone() };
        let unsent = Uploaded { failed: vec!["x: no".to_owned()], ..Uploaded::default() };
        for (outcome, expected) in [
            (good.clone(), at_once),
            (failed(Cause::User), at_once),
            (failed(Cause::Storage), later),
            // A package that could not be fetched leaves nothing behind.
            (InstanceOutcome { exit_code: None, ..failed(Cause::Storage) }, at_once),
            (InstanceOutcome { outputs: unsent.clone(), ..failed(Cause::User) }, later),
            (InstanceOutcome { outputs: unsent, state: State::Stopped, ..good.clone() }, later),
        ] {
            assert_eq!(through(Some(outcome.clone()), false).powers_off_in(), expected, "{outcome:?}");
            assert_eq!(through(Some(outcome), true).powers_off_in(), later);
        }
        assert_eq!(through(None, false).powers_off_in(), None, "a node for others stays");
        let stays = End::Through { outcome: Some(Box::new(good)), at_end: AtEnd::Stay, unreported: None };
        assert_eq!((stays.powers_off_in(), stays.exit_status()), (None, 0));
        assert_eq!(through(None, true).exit_status(), exit::UPLOAD_FAILED);
    }
}
