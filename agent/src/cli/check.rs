//! `batch-agent check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::exit;
use crate::job::check::Report;
use crate::outcome::{Cause, Failure};
use crate::run::ABILITIES;
use crate::settings::{self, SettingsReport, SettingsSource};

/// What `batch-agent check` can be told.
#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The job description: BatchCompute JSON, or YAML (see `batch-agent schema`).
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    job: Option<PathBuf>,

    /// The description of the App that an App job is made from: JSON, or the same in YAML.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    app: Option<PathBuf>,

    /// Check the settings of the node instead: this file, or without one /etc/batch-agent/node.yaml with
    /// node.yaml.d/*.yaml merged over it. See `batch-agent schema --node`.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    config: Option<Option<PathBuf>>,

    /// A setting that counts more than those of the files, such as cache.size=200GB. The value is YAML. May be given
    /// several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "config", conflicts_with = "job")]
    set: Vec<String>,

    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints what the job or the node would do here. A job that is valid but needs what this version lacks is told so and
/// accepted.
pub(super) fn check(arguments: &CheckArguments) -> Result<ExitCode, Failure> {
    match (&arguments.config, &arguments.job) {
        (Some(file), _) => {
            let source = file.clone().map_or_else(SettingsSource::default, SettingsSource::File);
            let (settings, warnings) = settings::read(&source, &arguments.set)
                .map_err(|error| Failure::new(Cause::User, exit::BAD_SETTINGS, error.to_string()))?;
            print(&SettingsReport::new(&settings, &warnings), arguments.json)
        }
        (None, Some(job)) => {
            let (job, warnings) = super::run::read(job, arguments.app.as_deref())?;
            print(&Report::new(&job, &warnings, ABILITIES), arguments.json)
        }
        (None, None) => Err(Failure::new(Cause::User, exit::USAGE, "name a job description, or --config")),
    }
}

fn print(report: &(impl Serialize + ToString), json: bool) -> Result<ExitCode, Failure> {
    let text = if json {
        serde_json::to_string_pretty(report)
            .map_err(|error| Failure::new(Cause::Platform, exit::INTERNAL, error.to_string()))?
    } else {
        report.to_string()
    };
    super::run::print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
