//! `batch-agent schema`.

use std::process::ExitCode;

use crate::job;
use crate::outcome::Failure;

/// Prints the JSON Schema of the YAML job format.
pub(super) fn print() -> Result<ExitCode, Failure> {
    super::run::print(&job::schema::json_schema())?;
    Ok(ExitCode::SUCCESS)
}
