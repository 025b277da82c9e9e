//! What the agent itself costs a task: `batch-agent run` of a job that does nothing and maps nothing, from the start of the command to
//! its end. Records, log files, mount namespace, control group, the program, logs and manifest in their place, everything removed.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, bail, ensure};

use super::{Case, Done, Limit, Sample, Stage};
use crate::content::World;
use crate::figures::Unit;
use crate::goal::Goal;
use crate::mounter::{Mounter, clean};

/// See the module.
#[derive(Debug)]
pub struct NoOp;

impl Case for NoOp {
    fn name(&self) -> &'static str {
        "no-op-task"
    }

    fn about(&self) -> String {
        "batch-agent run of a job whose program is true, without mounts, from the start of the command to its end"
            .to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn prepare(&self, _world: &mut World) {}

    fn limits(&self) -> &[Limit] {
        &[]
    }

    fn yardstick(&self) -> &[Limit] {
        &[]
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Figure(0.050)]
    }

    fn ours_only(&self) -> bool {
        true
    }

    fn limit(&self, _stage: &Stage, limit: Limit) -> anyhow::Result<Sample> {
        bail!("{} is no limit of a task", limit.name())
    }

    /// Nothing is mounted; the agent is the one beside the mount's program.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let root = lot.cache();
        let (job, logs) = (root.join("job.json"), root.join("logs"));
        let at = format!("file://{}/", logs.display());
        let description = serde_json::json!({
            "version": 1,
            "tasks": {"task": {"command": "true", "stdout": at, "stderr": at}},
        });
        fs::write(&job, description.to_string()).context("cannot write the job")?;
        let program = mounter.program().with_file_name("batch-agent");
        let mut run = clean(&program);
        run.arg("run").arg(&job).args(["--job-id", "no-op"]);
        run.arg("--state-dir").arg(root.join("state")).arg("--runtime-dir").arg(root.join("run"));
        run.stdin(Stdio::null());
        // Once before the time runs: directories are made, and the program is in memory.
        for _ in 0..2 {
            let output = run.output().with_context(|| format!("cannot run {}", program.display()))?;
            ensure!(output.status.success(), "the job failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        stage.measure(self.unit(), None, || {
            let status = run.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot run the agent")?;
            ensure!(status.success(), "the job failed");
            Ok(Done { operations: 1, bytes: 0, seconds: None })
        })
    }
}
