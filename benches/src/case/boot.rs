//! From the start of `batch-agent boot` to the first instruction of its task: an empty disk becomes a volume, a directory of the store is
//! mounted, the start-up script runs, then the task. Beside it the same by hand: `mkfs.xfs`, `mount`, `fuse-oss mount`, the script.
//!
//! So what is left is all that the agent adds, in every phase: settings, finding disks and proving that they are empty, its records, the
//! shims, the task's workspace and namespace.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;

use super::{Case, Done, Limit, Lot, Sample, Stage};
use crate::cleanup::Served;
use crate::content::World;
use crate::disk::{Disk, run};
use crate::figures::Unit;
use crate::files::compare;
use crate::goal::Goal;
use crate::mounter::{Mounted, Mounter, Place, clean};
use crate::server::BUCKET;

const KEY: &str = "boot/input";
const SIZE: u64 = 4096;

/// How much longer than by hand it may take, in seconds.
const MORE: f64 = 0.3;

/// How long a boot may take before it is given up.
const GIVEN_UP: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Boot;

/// What a node of the benchmark has where.
struct Node {
    place: Place,
    /// The volume.
    data: PathBuf,
    script: PathBuf,
    /// Where the task says when it began.
    began: PathBuf,
}

impl Node {
    fn new(stage: &Stage, lot: &Lot) -> anyhow::Result<Self> {
        let place = stage.place(lot, None);
        let (data, script, began) = (place.work.join("data"), place.work.join("script"), place.work.join("began"));
        std::fs::write(&script, "#!/bin/sh\nexit 0\n").context("cannot write a script")?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).context("cannot write a script")?;
        Ok(Self { place, data, script, began })
    }

    /// Writes the settings of a node that has this disk.
    fn settings(&self, disk: &Disk) -> anyhow::Result<PathBuf> {
        let output = format!("file://{}/", self.place.work.join("out").display());
        let line = format!("echo $EPOCHREALTIME > {}", self.began.display());
        let task = json!({"command": ["/bin/bash", "-c", line], "stdout": output, "stderr": output});
        // The server looks at no signature.
        let store = json!({
            "endpoint": self.place.endpoint(), "region": "us-east-1", "addressing": "path",
            "access_key_id": "bench", "access_key_secret": "bench",
        });
        let settings = json!({
            "identity": {"cloud": "none", "instance_id": "i-bench"},
            "disks": {"volumes": [{"what": {"device": disk.path()}, "mount": self.data}]},
            "mounts": [{"source": format!("s3://{BUCKET}/boot/"), "target": self.place.target}],
            "storage": {"s3": store},
            "bootstrap": {"command": [self.script]},
            "task": {"job": {"version": 1, "name": "bench", "tasks": {"only": task}}},
        });
        let path = self.place.work.join("node.yaml");
        std::fs::write(&path, settings.to_string()).context("cannot write settings")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("cannot write settings")?;
        Ok(path)
    }

    fn agent(&self, program: &Path) -> Command {
        let mut command = clean(program);
        let work = &self.place.work;
        command
            .env("BATCH_AGENT_STATE_DIR", work.join("state"))
            .env("BATCH_AGENT_RUNTIME_DIR", work.join("run"))
            .env("FUSE_OSS_RUNTIME_DIR", work);
        command
    }

    /// When the task began, once it has.
    fn task_began(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(&self.began).ok()?;
        // A line that is not whole has not been written yet.
        let (seconds, micros) = text.strip_suffix('\n')?.split_once('.')?;
        Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
    }
}

/// Waits for the file that the task writes.
fn first_instruction(node: &Node, served: &mut Served, log: &Path) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + GIVEN_UP;
    loop {
        if let Some(began) = node.task_began() {
            return Ok(began);
        }
        let ended = served.ended();
        if ended.is_some() || Instant::now() >= deadline {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("batch-agent did not start its task ({ended:?}): {}", said.trim());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Case for Boot {
    fn name(&self) -> &'static str {
        "boot"
    }

    fn about(&self) -> String {
        "from the start of batch-agent to the first instruction of its task: an empty disk, an object mount, a start-up script".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn prepare(&self, world: &mut World) {
        world.add(KEY, SIZE);
    }

    fn limits(&self) -> &[Limit] {
        &[Limit::ByHand]
    }

    fn yardstick(&self) -> &[Limit] {
        self.limits()
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Above(MORE)]
    }

    fn ours_only(&self) -> bool {
        true
    }

    fn limit(&self, stage: &Stage, _limit: Limit) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let node = Node::new(stage, &lot)?;
        let mut disk = Disk::new(&node.place.work)?;
        disk.will_be_at(node.data.clone())?;
        let place = Place { cache: node.data.join("cache"), ..node.place.clone() };
        let mut mounted = None;
        let mounter = stage.ours()?;
        stage.measure(self.unit(), None, || {
            let begun = Instant::now();
            run(Command::new("mkfs.xfs").args(["-q", "-K"]).arg(disk.path()))?;
            run(Command::new("mount").args(["-t", "xfs", "-o", "noatime"]).arg(disk.path()).arg(&node.data))?;
            let mut seconds = 0.0;
            let ready = |_: &Path| {
                run(&mut Command::new(&node.script))?;
                seconds = begun.elapsed().as_secs_f64();
                Ok(())
            };
            mounted = Some(Mounted::start_as_people_do(mounter, &place, ready)?);
            Ok(Done { operations: 1, bytes: 0, seconds: Some(seconds) })
        })
    }

    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, check: bool) -> anyhow::Result<Sample> {
        let program = mounter.program().with_file_name("batch-agent");
        ensure!(program.is_file(), "there is no {}; cargo build --release -p batch-agent builds it", program.display());
        let lot = stage.lot()?;
        let node = Node::new(stage, &lot)?;
        let mut disk = Disk::new(&node.place.work)?;
        disk.will_be_at(node.data.clone())?;
        let settings = node.settings(&disk)?;
        let log = node.place.work.join("log");
        let sink = std::fs::File::create(&log).context("cannot make a log file")?;
        let mut command = node.agent(&program);
        command.args(["boot", "--config"]).arg(settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(sink);
        let mut agent = None;
        let sample = stage.measure(self.unit(), None, || {
            let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
            let served = agent.insert(Served::start(command, &node.place.target)?);
            let began = first_instruction(&node, served, &log)?;
            let seconds = began.checked_sub(begun).context("the clock was put back")?.as_secs_f64();
            Ok(Done { operations: 1, bytes: 0, seconds: Some(seconds) })
        });
        // What the agent has left running goes before the disk.
        let server = Mounted::left_behind(mounter, &node.place);
        let sample = sample?;
        let mut agent = agent.context("it was started")?;
        ensure!(agent.ends_within(GIVEN_UP), "batch-agent did not end with its task");
        if check {
            let world = stage.server.world();
            let name = Path::new(KEY).file_name().context("it has a name")?;
            compare(&node.place.target.join(name), world, world.object(KEY)?)?;
        }
        drop(server?);
        Ok(sample)
    }
}
