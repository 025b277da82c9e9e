//! `nvme-setup`: says what block devices there are and which of them could be used.

mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use nvme_setup::{Device, Examiner, Inventory, Roots, Rules, judge};

use table::Report;

/// The command line was wrong (sysexits.h).
const USAGE: u8 = 64;
/// The system or a device failed us.
const OS: u8 = 71;

/// Finds out which disks of this machine are free and empty.
#[derive(Debug, Parser)]
#[command(
    name = "nvme-setup",
    version,
    after_help = "\
Exit status: 0 done, 64 wrong usage, 71 a device or the operating system failed."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every block device: what it is, what it carries, who uses it, whether it could be used and why not.
    Status(StatusArguments),
}

/// Shows every block device: what it is, what it carries, who uses it, whether it could be used as scratch space, and why
/// not.
///
/// Nothing is changed: devices are opened for reading only. Run it as root; without, the content of devices cannot be seen
/// and no device is called usable.
#[derive(Debug, Args)]
#[command(after_help = STATUS_HELP)]
struct StatusArguments {
    /// Print JSON, with all reasons and all names of each device.
    #[arg(long)]
    json: bool,

    /// Only these devices, and everything about them: a path, a link such as /dev/disk/by-id/..., or a name such as nvme1n1.
    /// A loop device that is named here counts as a disk.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    device: Vec<PathBuf>,
}

const STATUS_HELP: &str = "\
ROLE     root            the root file system lies on it
         cloud disk      a volume of the cloud (by model): outlives the instance
         instance store  a disk of the host (by model): empty after a stop
         data disk       any other disk
CARRIES  nothing         no signature, and zeros in every sample, both ends included
         data            no signature, but not zeros: somebody's data, or its rest
         ambiguous       several signatures: `wipefs DEVICE` lists them
         ?               it could not be looked at; `--device NAME` says why
USABLE?  yes             free and empty
         no: ...         the weightiest reason; `--device NAME` lists all

Exit status: 0 done, 64 wrong usage, 71 a device or the operating system failed.";

/// Why there is no answer, and the exit status for it.
struct Failure(u8, String);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed terminal is no reason for another error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let Command::Status(arguments) = arguments.command;
    match status(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(status, message)) => {
            eprintln!("nvme-setup: {message}");
            ExitCode::from(status)
        }
    }
}

fn status(arguments: &StatusArguments) -> Result<(), Failure> {
    let inventory = Inventory::read(&Roots::default()).map_err(|error| Failure(OS, error.to_string()))?;
    let devices = wanted(&inventory, &arguments.device)?;
    let evidence = Examiner::default().examine_all(devices.iter().copied());
    let named = !arguments.device.is_empty();
    let rules = Rules { loop_devices: named, ..Rules::default() };
    let report = Report::new(&inventory, &devices, &evidence, |device, evidence| {
        judge(&inventory, device, Some(evidence), &rules)
    });
    let text = if arguments.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|error| Failure(OS, format!("cannot write JSON: {error}")))? + "\n"
    } else {
        for note in report.notes() {
            eprintln!("nvme-setup: {note}");
        }
        report.table(named)
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure(OS, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The devices that were named, each once, or all.
fn wanted<'a>(inventory: &'a Inventory, paths: &[PathBuf]) -> Result<Vec<&'a Device>, Failure> {
    if paths.is_empty() {
        return Ok(inventory.devices().iter().collect());
    }
    let mut devices: Vec<&Device> = Vec::new();
    for path in paths {
        match inventory.find(path) {
            Some(device) if devices.iter().any(|other| other.name == device.name) => {}
            Some(device) => devices.push(device),
            None if path.exists() => {
                return Err(Failure(USAGE, format!("{} is not a block device; name one", path.display())));
            }
            None => {
                let message = format!("there is no device {}; `nvme-setup status` shows what there is", path.display());
                return Err(Failure(OS, message));
            }
        }
    }
    Ok(devices)
}
