//! The command line of `batch-agent`.

mod boot;
mod cancel;
mod check;
mod enter;
mod logs;
mod mount;
mod node;
mod programs;
mod pull;
mod push;
mod recipients;
mod run;
mod schema;
mod status;
mod storage;
mod transfer;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::console::{Console, LogFormat};
use crate::exit;
use crate::outcome::Failure;

/// Runs batch jobs on this machine: fetches the package, mounts the inputs, runs the program, shows its output in
/// object storage while it runs, uploads the results, and says how it ended.
#[derive(Debug, Parser)]
#[command(name = "batch-agent", version, after_help = AFTER_HELP)]
struct Arguments {
    /// How messages are written to standard error.
    #[arg(long, global = true, display_order = 100, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// Say more; twice, say everything.
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit status of `run`: the program's own with one instance (128+N for signal N); of a whole job 0 when everything has \
finished, else that of the first instance that failed. Failures of the agent's own: 64 usage, 65 bad job description or \
package, 66 input missing, 69 storage unavailable, 70 internal error, 71 mount, disk or operating system, 74 upload \
failed, 77 denied by storage, 78 bad settings. The outcome JSON on standard output says which it was.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job, or one instance of it, in the foreground.
    Run(Box<run::RunArguments>),
    /// Say what a job, or a node with its settings, would do and what is wrong with it. Touches nothing.
    Check(check::CheckArguments),
    /// Prepare this node and run its task: disks, mounts, start-up script, task. The daemon.
    Boot(Box<boot::BootArguments>),
    /// Show how far the node is.
    Status(status::StatusArguments),
    /// Wait until the node is so far, for units and scripts that need it.
    Wait(status::WaitArguments),
    /// Look into a task that runs, or that has failed and is reserved: a shell, or a command, with its mounts and variables.
    Enter(enter::EnterArguments),
    /// Take away now what a failed task has left that is reserved.
    Release(enter::ReleaseArguments),
    /// Print what a task has written, on its node or from where its log is.
    Logs(logs::LogsArguments),
    /// Send a directory, or a file, to object storage: in parallel, verified, and only what is not there already.
    Push(push::PushArguments),
    /// Fetch a directory, or an object, from object storage: in parallel, verified, and only what is not here already.
    Pull(pull::PullArguments),
    /// Stop a running task: SIGTERM, the grace, SIGKILL. What it has left is still uploaded, and its outcome is `cancelled`.
    Cancel(cancel::CancelArguments),
    /// Mount a NAS (NFS) or Lustre file system as the agent does, or say why it cannot be.
    Mount(mount::MountArguments),
    /// Print the JSON Schema of the YAML job format, or of a node's settings.
    Schema(schema::SchemaArguments),
    /// Write manual pages and shell completions below a directory, as they go below /usr/share. For packages.
    #[command(hide = true)]
    Manual {
        /// Where.
        directory: PathBuf,
    },
    /// The process between the agent and a task. Started by the agent only.
    #[command(hide = true)]
    Shim {
        /// What to do.
        spec: PathBuf,
    },
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let status = match arguments.command {
        // Before anything that could start a thread.
        Command::Shim { spec } => return crate::shim::main(&spec),
        Command::Run(run) => run::run(&run, Console::start(arguments.log_format, arguments.verbose)),
        Command::Check(check) => check::check(&check),
        Command::Boot(boot) => boot::boot(&boot, Console::start(arguments.log_format, arguments.verbose)),
        Command::Status(status) => status::status(&status),
        Command::Wait(wait) => status::wait(&wait),
        Command::Enter(enter) => enter::enter(&enter),
        Command::Release(release) => enter::release(&release),
        Command::Logs(logs) => logs::logs(&logs),
        Command::Push(push) => push::push(&push, &Console::start(arguments.log_format, arguments.verbose)),
        Command::Pull(pull) => pull::pull(&pull, &Console::start(arguments.log_format, arguments.verbose)),
        Command::Cancel(cancel) => cancel::cancel(&cancel),
        Command::Mount(mount) => {
            Console::start(arguments.log_format, arguments.verbose);
            mount::mount(&mount)
        }
        Command::Schema(schema) => schema::print(&schema),
        Command::Manual { directory } => manual::write(Arguments::command(), &directory)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::platform(format!("cannot write below {}: {error}", directory.display()))),
    };
    status.unwrap_or_else(|failure| {
        eprintln!("batch-agent: {}", failure.message);
        ExitCode::from(failure.exit_status)
    })
}
