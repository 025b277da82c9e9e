//! `batch-agent check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::exit;
use crate::job::check::Report;
use crate::outcome::Failure;
use crate::run::ABILITIES;

/// What `batch-agent check` can be told.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The job description: BatchCompute JSON, or YAML (see `batch-agent schema`).
    job: PathBuf,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints what the job would do here. A job that is valid but needs what this version lacks is told so and accepted.
pub(super) fn check(arguments: &CheckArguments) -> Result<ExitCode, Failure> {
    let (job, warnings) = super::run::read(&arguments.job)?;
    let report = Report::new(&job, &warnings, ABILITIES);
    let text = if arguments.json {
        serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::new(crate::outcome::Cause::Platform, exit::INTERNAL, error.to_string()))?
    } else {
        report.to_string()
    };
    super::run::print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
