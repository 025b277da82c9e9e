//! `nvme-setup`: says what block devices there are, and makes mounted volumes of those that are free and empty.

mod options;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use nvme_setup::{
    Device, Event, Evidence, Examiner, Inventory, Node, Plan, Request, Roots, Rules, Setup, SetupError, judge, volumes,
};
use serde::Serialize;
use serde_json::json;

use options::{Options, Wrong};
use table::Report;

/// The command line was wrong (sysexits.h).
const USAGE: u8 = 64;
/// The system or a device failed us, or a disk is refused.
const OS: u8 = 71;
/// The settings file was wrong.
const SETTINGS: u8 = 78;

/// The version of the JSON documents. It rises when a reader would have to change.
const FORMAT: u32 = 1;

/// Finds the disks of this machine that are free and empty, and makes mounted volumes of them.
#[derive(Debug, Parser)]
#[command(
    name = "nvme-setup",
    version,
    after_help = "\
Exit status: 0 done, 64 wrong usage, 71 a disk is refused, or a device or the operating system failed, 78 wrong settings."
)]
struct Arguments {
    /// Where the lock is, and what was applied in this boot: a directory that only root can write, and that a boot empties.
    #[arg(
        long,
        global = true,
        display_order = 100,
        value_name = "DIR",
        default_value = "/run",
        env = "NVME_SETUP_RUNTIME_DIR"
    )]
    runtime_dir: PathBuf,

    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// For a command that is to be told all: the name is the one that is given, else the machine's.
    fn setup(&self, node: Option<&str>) -> Result<Setup, Failure> {
        let node = match node.map(str::trim) {
            Some("") => return Err(Failure(USAGE, "--node is empty".to_owned())),
            Some(name) => Node::new(name),
            None => Node::of_machine(&Roots::default()).map_err(|error| Failure(OS, error.to_string()))?,
        };
        Ok(Setup::new(node).with_lock(self.runtime_dir.join("nvme-setup.lock")))
    }

    /// For one that goes on with what was applied: the name is the one that the node had then.
    fn setup_as_applied(&self, node: Option<&str>) -> Result<Setup, Failure> {
        let any = Setup::new(Node::new("")).with_lock(self.runtime_dir.join("nvme-setup.lock"));
        let applied = any.applied().map(|applied| applied.node);
        self.setup(node.or(applied.as_deref()))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every block device (what it is, what it carries, who uses it, whether it could be used and why not) and every volume.
    Status(StatusArguments),
    /// Show what `apply` would do, why, and what it found. Changes nothing.
    Plan(ChangeArguments),
    /// Prepare volumes: find their disks, make file systems on those that are empty, mount them.
    Apply(ApplyArguments),
    /// Take volumes away: swap off, unmount, stop arrays. Never wipes anything.
    Release(ChangeArguments),
    /// Give freed space back to the disks of the mounted volumes that ask for it (`trim: periodic`): of those that are named, or of
    /// all that `apply` has prepared in this boot. nvme-setup-trim.timer runs it every day.
    Trim(ChangeArguments),
    /// Write manual pages and shell completions below a directory, as they go below /usr/share. For packages.
    #[command(hide = true)]
    Manual {
        /// Where.
        directory: PathBuf,
    },
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

    /// What this node is called, instead of how `apply` called it in this boot, or what its firmware says; see `apply --help`.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
}

#[derive(Debug, Args)]
struct ChangeArguments {
    #[command(flatten)]
    options: Options,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// What this node is called, instead of its instance id or the UUID of its firmware. It must never change while the node
    /// lives, and no other node may have it: volumes are known by it.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
}

/// Prepares volumes: finds their disks, makes file systems on those that are empty, mounts them.
///
/// A disk is used only when it is proved to be empty (no signature of any kind, zeros wherever it is read, nobody uses it), or
/// when it carries the volume that this node made on it. Anything else is refused, with the cause and the command that a person
/// would run. Nothing is done when anything is refused. Running it again does nothing, and after an interruption it goes on.
#[derive(Debug, Args)]
#[command(after_help = APPLY_HELP)]
struct ApplyArguments {
    #[command(flatten)]
    change: ChangeArguments,

    /// Show what would be done, why, and what was found. Changes nothing.
    #[arg(long)]
    dry_run: bool,
}

const APPLY_HELP: &str = "\
Examples:
  nvme-setup apply --mount /data                                all instance-store disks as one volume
  nvme-setup apply --mount /data --each                         one volume for each, at /data/0, /data/1, ...
  nvme-setup apply --mount /ref --volume-id vol-0a1b --existing mount what is on a cloud disk
  nvme-setup apply --config /etc/disks.yaml --dry-run

Exit status: 0 done, 64 wrong usage, 71 a disk is refused, or a device or the operating system failed, 78 wrong settings.";

const STATUS_HELP: &str = "\
ROLE     root            the root file system lies on it
         cloud disk      a volume of the cloud (by model): outlives the instance
         instance store  a disk of the host (by model): empty after a stop
         data disk       any other disk
CARRIES  nothing         no signature, and zeros in every sample, both ends included
         data            no signature, but not zeros: somebody's data, or its rest
         ambiguous       several signatures: `wipefs DEVICE` lists them
         ?               it could not be looked at; `--device NAME` says why
         ..., a volume of this node's (or another node's): it was made by `nvme-setup apply`
USABLE?  yes             free and empty
         no: ...         the weightiest reason; `--device NAME` lists all

VOLUME   where it is mounted, or its label
STATE    mounted         it is there
         not mounted     it is complete: `apply` mounts it
         unfinished      an interrupted run has left it: `apply` goes on with it
         not assembled   its array is not put together: `apply` does that
         incomplete      disks of its array are missing, and with them what was on it
         another node's  it was made by `nvme-setup apply` on another node, and is not touched

Exit status: 0 done, 64 wrong usage, 71 a device or the operating system failed.";

/// Why there is no answer, and the exit status for it.
struct Failure(u8, String);

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self(OS, error.to_string())
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Usage(text) => Self(USAGE, text),
            Wrong::Settings(text) => Self(SETTINGS, text),
        }
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed terminal is no reason for another error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let all = &arguments;
    let result = match &arguments.command {
        Command::Status(arguments) => status(arguments, all),
        Command::Plan(change) => show_plan(change, all),
        Command::Apply(arguments) if arguments.dry_run => show_plan(&arguments.change, all),
        Command::Apply(arguments) => apply(&arguments.change, all),
        Command::Release(change) => release(change, all),
        Command::Trim(change) => trim(change, all),
        Command::Manual { directory } => manual::write(Arguments::command(), directory)
            .map_err(|error| Failure(OS, format!("cannot write below {}: {error}", directory.display()))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(status, message)) => {
            for line in message.lines() {
                eprintln!("nvme-setup: {line}");
            }
            ExitCode::from(status)
        }
    }
}

fn status(arguments: &StatusArguments, all: &Arguments) -> Result<(), Failure> {
    let inventory = Inventory::read(&Roots::default()).map_err(|error| Failure(OS, error.to_string()))?;
    let devices = wanted(&inventory, &arguments.device)?;
    let evidence = Examiner::default().examine_all(devices.iter().copied());
    let named = !arguments.device.is_empty();
    let rules = Rules { loop_devices: named, ..Rules::default() };
    // Without a name nothing can be told to be this node's; all else can be shown.
    let setup = all.setup_as_applied(arguments.node.as_deref()).ok();
    let node = setup.as_ref().map(Setup::node);
    let mut report = Report::new(&inventory, &devices, &evidence, node, |device, evidence| {
        judge(&inventory, device, Some(evidence), &rules)
    });
    if let Some(node) = node {
        let traces = Examiner::default().traces_all(devices.iter().copied(), &evidence, node);
        report.add(volumes(&inventory, &evidence, &traces, node));
    }
    if arguments.json {
        return print_json(&report);
    }
    for note in report.notes() {
        eprintln!("nvme-setup: {note}");
    }
    print(&(report.table(named) + &report.volumes()))
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

/// What is asked for; a command that changes something has to be told.
fn request(change: &ChangeArguments) -> Result<Request, Failure> {
    let request = change.options.request()?;
    request.ok_or_else(|| Failure(USAGE, "say what to prepare: --mount DIR (see --help), or --config FILE".to_owned()))
}

fn show_plan(change: &ChangeArguments, all: &Arguments) -> Result<(), Failure> {
    let request = request(change)?;
    let setup = all.setup(change.node.as_deref())?;
    let world = setup.observe(&request)?;
    let plan = nvme_setup::plan(&world, &request, setup.node());
    let evidence: &BTreeMap<String, Evidence> = &world.evidence;
    let devices: Vec<&Device> = world.inventory.devices().iter().collect();
    let rules = Rules::default();
    let report = Report::new(&world.inventory, &devices, evidence, Some(setup.node()), |device, evidence| {
        let named = world.named.values().any(|name| *name == device.name);
        judge(&world.inventory, device, Some(evidence), &Rules { loop_devices: named, ..rules })
    });
    if change.json {
        print_json(&json!({ "format": FORMAT, "node": setup.node().id(), "plan": plan, "evidence": report }))?;
    } else {
        print(&format!("{}\n{}", report.table(false), describe(&plan)))?;
    }
    if plan.refusals.is_empty() { Ok(()) } else { Err(Failure(OS, "nothing would be done".to_owned())) }
}

/// A plan for people.
fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for settled in &plan.settled {
        line(format!("{}: there already, on {}", settled.volume.display(), settled.device));
    }
    for planned in &plan.steps {
        line(format!("{}: {}", planned.volume.display(), planned.step));
        line(format!("    because: {}", planned.because));
    }
    for note in &plan.notes {
        line(format!("note: {note}"));
    }
    for refusal in &plan.refusals {
        line(format!("refused: {refusal}"));
    }
    if plan.is_done() {
        line("nothing to do".to_owned());
    }
    text
}

fn apply(change: &ChangeArguments, all: &Arguments) -> Result<(), Failure> {
    let request = request(change)?;
    let setup = all.setup(change.node.as_deref())?;
    let mut watch = |event: Event<'_>| {
        match event {
            Event::Waiting { refusals } => {
                for refusal in refusals {
                    eprintln!("nvme-setup: waiting: {refusal}");
                }
            }
            Event::Begin(planned) => eprintln!("nvme-setup: {}: {}", planned.volume.display(), planned.step),
            Event::Done { .. } => {}
        }
        ControlFlow::Continue(())
    };
    let result = setup.apply(&request, &mut watch);
    if change.json {
        let refusals = match &result {
            Err(SetupError::Refused(plan)) => &*plan.refusals,
            _ => &[],
        };
        let error = result.as_ref().err().map(ToString::to_string);
        let report = result.as_ref().ok();
        print_json(&json!({ "format": FORMAT, "report": report, "refusals": refusals, "error": error }))?;
    }
    let report = result?;
    if !change.json {
        let mut text = String::new();
        for settled in &report.settled {
            let did = report.done.iter().any(|planned| planned.volume == settled.volume);
            let how = if did { "ready" } else { "there already" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}: {how}, on {}", settled.volume.display(), settled.device);
        }
        for note in &report.notes {
            let _ = writeln!(text, "note: {note}");
        }
        print(&text)?;
    }
    Ok(())
}

fn release(change: &ChangeArguments, all: &Arguments) -> Result<(), Failure> {
    let request = change.options.request()?;
    let setup = all.setup_as_applied(change.node.as_deref())?;
    let released = setup.release(request.as_ref())?;
    if change.json {
        return print_json(&json!({ "format": FORMAT, "released": released }));
    }
    let mut text = String::new();
    for (what, paths) in [
        ("swapped off", &released.swapped_off),
        ("unmounted", &released.unmounted),
        ("stopped the array", &released.stopped),
    ] {
        for path in paths {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what} {}", path.display());
        }
    }
    if text.is_empty() {
        text.push_str("nothing to release\n");
    }
    print(&text)
}

fn trim(change: &ChangeArguments, all: &Arguments) -> Result<(), Failure> {
    let setup = all.setup_as_applied(change.node.as_deref())?;
    let applied = || setup.applied().map(|applied| applied.request).unwrap_or_default();
    let request = change.options.request()?.unwrap_or_else(applied);
    let trimmed = setup.trim(&request)?;
    if change.json {
        return print_json(&json!({ "format": FORMAT, "trimmed": trimmed }));
    }
    let lines: Vec<String> = trimmed.iter().map(|at| format!("trimmed {}\n", at.display())).collect();
    print(if lines.is_empty() { "nothing to trim\n".to_owned() } else { lines.concat() }.as_str())
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value);
    print(&(json.map_err(|error| Failure(OS, format!("cannot write JSON: {error}")))? + "\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure(OS, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
