//! `batch-agent schema`.

use std::process::ExitCode;

use clap::Args;

use crate::outcome::Failure;
use crate::{job, settings};

/// What `batch-agent schema` can be told.
#[derive(Debug, Args)]
pub(super) struct SchemaArguments {
    /// The settings of a node, node.yaml, instead of the job format.
    #[arg(long)]
    node: bool,
}

/// Prints the JSON Schema of the YAML job format, or of a node's settings.
pub(super) fn print(arguments: &SchemaArguments) -> Result<ExitCode, Failure> {
    let schema = if arguments.node { settings::json_schema() } else { job::schema::json_schema() };
    super::run::print(schema.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
