//! `bench`: measures `fuse-oss` beside other mounts, `batch-agent push` and `pull` beside other programs that copy, and all beside the
//! limit of disk and wire, on a store of its own.
//!
//! From the top down: a [`case`] says what is done and what bounds it; a [`mounter`] is a program that mounts, a [`copier`] one
//! that copies; [`server`] is the
//! store, with made-up [`content`]; [`raw`] and [`files`] do the reading; [`figures`] and [`report`] are what comes out.
//! [`cleanup`] sees to it that nothing stays behind.

mod case;
mod chart;
mod child;
mod cleanup;
mod cli;
mod content;
mod copier;
mod daemon;
mod disk;
mod figures;
mod files;
mod goal;
mod machine;
mod mounter;
mod page_cache;
mod raw;
mod report;
mod server;
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser as _;

use case::{Case, Limit, Sample, Scale, Stage};
use cli::Arguments;
use copier::{Aws, BatchAgent, Copier, RcloneCopy};
use mounter::{FuseOss, MountS3, Mounter, Rclone, S3fs};
use report::{CaseReport, Program, Report, Row};

/// When one sample of a peer, with all that goes with it, takes longer than this, it is the only one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same for limits and for our own mount, which are to be known well.
const MORE_PATIENCE: Duration = Duration::from_secs(40);

/// A sample that takes longer than this has failed.
const GIVEN_UP: Duration = Duration::from_secs(240);

/// The mount that is judged.
const OURS: &str = "fuse-oss";

/// The program that is judged where directories are copied.
const COPIER: &str = "batch-agent";

fn main() -> ExitCode {
    let own: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome = match child::Task::of(&own) {
        Ok(Some(task)) => task.run().map(|()| ExitCode::SUCCESS),
        Ok(None) => run(&Arguments::parse()),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let cases = chosen(arguments)?;
    if arguments.list {
        for case in cases {
            println!("{:<18} {}", case.name(), case.about());
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark mounts file systems and so must run as root");
    // Before any thread: they inherit which signals are blocked.
    cleanup::guard()?;

    let ours = ours(arguments)?;
    let copies = cases.iter().any(|case| case.ours() == COPIER);
    let mounts = cases.iter().any(|case| case.ours() == OURS);
    let (mounters, mut programs) = if mounts { mounters(arguments, &ours)? } else { Default::default() };
    let (copiers, others) = if copies { copiers(arguments, &ours)? } else { Default::default() };
    programs.extend(others);
    let machine = machine::Machine::look(&arguments.dir);
    if machine::file_system(&arguments.dir) == "tmpfs" {
        eprintln!(
            "bench: {} is in memory, so nothing here says anything about disks; use --dir",
            arguments.dir.display()
        );
    }
    let mut world = content::World::new();
    cases.iter().for_each(|case| case.prepare(&mut world));
    let stage = Stage::new(server::Server::start(world)?, cleanup::Scratch::new(&arguments.dir)?).with_ours(ours);

    let mut report =
        Report { format: 2, machine, load_at_end: String::new(), programs, scale: arguments.scale, cases: Vec::new() };
    println!("{}", report.head());
    let begun = Instant::now();
    for case in &cases {
        let result = measure(&stage, case.as_ref(), (&mounters, &copiers), arguments.repeat);
        if cleanup::is_ending() {
            // What failed just now failed because of that; the thread that cleans up ends the program.
            loop {
                std::thread::park();
            }
        }
        println!("{}", result.table());
        report.cases.push(result);
    }
    println!("{}", report.summary());
    report.load_at_end = machine::load();
    println!("{} s, load at the end {}", begun.elapsed().as_secs(), report.load_at_end);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report).context("cannot write JSON")?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, chart::chart(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.failed(&[OURS, COPIER]) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn chosen(arguments: &Arguments) -> anyhow::Result<Vec<Box<dyn Case>>> {
    let mut cases = case::all(Scale(arguments.scale));
    for wanted in &arguments.cases {
        if !cases.iter().any(|case| case.name().contains(wanted.as_str())) {
            bail!("no case has {wanted:?} in its name; --list shows them");
        }
    }
    cases.retain(|case| {
        arguments.cases.is_empty() || arguments.cases.iter().any(|wanted| case.name().contains(wanted.as_str()))
    });
    Ok(cases)
}

/// Programs that can be measured.
type Mounters = Vec<Box<dyn Mounter>>;

/// How a peer is made of its program's path.
type Peer = fn(PathBuf) -> Box<dyn Mounter>;

/// Our mount.
fn ours(arguments: &Arguments) -> anyhow::Result<FuseOss> {
    let program = match &arguments.fuse_oss {
        Some(path) => path.clone(),
        None => beside_us()?,
    };
    let program = program.canonicalize().with_context(|| {
        format!(
            "there is no {}; cargo build --release -p fuse-oss builds it, --fuse-oss names another",
            program.display()
        )
    })?;
    Ok(FuseOss { program })
}

/// Our mount and the peers that are here, and what is said about each.
fn mounters(arguments: &Arguments, ours: &FuseOss) -> anyhow::Result<(Mounters, Vec<Program>)> {
    let mut mounters: Mounters = vec![Box::new(ours.clone())];
    let mut programs = Vec::new();
    let peers: [(&str, Peer); 3] = [
        ("s3fs", |program| Box::new(S3fs { program })),
        ("rclone", |program| Box::new(Rclone { program })),
        ("mount-s3", |program| Box::new(MountS3 { program })),
    ];
    for (name, make) in peers.into_iter().filter(|_| !arguments.alone) {
        // Mountpoint has no package on most systems, and so can be named.
        let named = std::env::var_os("MOUNT_S3").filter(|_| name == "mount-s3").map(PathBuf::from);
        match named.or_else(|| mounter::on_path(name)) {
            Some(program) => mounters.push(make(program)),
            None => programs.push(Program { name: name.to_owned(), version: "not installed".to_owned() }),
        }
    }
    let here = mounters.iter().map(|mounter| {
        let version = mounter::version(mounter.version())?;
        Ok(Program { name: mounter.name().to_owned(), version })
    });
    let here = here.collect::<anyhow::Result<Vec<_>>>()?;
    programs.splice(0..0, here);
    Ok((mounters, programs))
}

/// Programs that copy.
type Copiers = Vec<Box<dyn Copier>>;

/// Ours and the peers that are here, each by default and with its best settings, and what is said about each.
fn copiers(arguments: &Arguments, ours: &FuseOss) -> anyhow::Result<(Copiers, Vec<Program>)> {
    let program = ours.program.with_file_name(COPIER);
    ensure!(program.is_file(), "there is no {}; cargo build --release -p batch-agent builds it", program.display());
    let mut copiers: Copiers = vec![Box::new(BatchAgent { program })];
    let mut missing = Vec::new();
    for name in ["rclone", "aws"].into_iter().filter(|_| !arguments.alone) {
        match (mounter::on_path(name), name) {
            (Some(program), "aws") => {
                copiers.push(Box::new(Aws { program: program.clone(), best: false }));
                copiers.push(Box::new(Aws { program, best: true }));
            }
            (Some(program), _) => {
                copiers.push(Box::new(RcloneCopy { program: program.clone(), best: false }));
                copiers.push(Box::new(RcloneCopy { program, best: true }));
            }
            (None, _) => missing.push(Program { name: name.to_owned(), version: "not installed".to_owned() }),
        }
    }
    let here = copiers.iter().map(|copier| {
        let version = format!("{}; {}", mounter::version(copier.version())?, copier.settings());
        Ok(Program { name: copier.name().to_owned(), version })
    });
    let mut programs = here.collect::<anyhow::Result<Vec<_>>>()?;
    programs.append(&mut missing);
    Ok((copiers, programs))
}

fn beside_us() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program does not know where it is")?;
    Ok(own.with_file_name("fuse-oss"))
}

/// What a row is about.
enum Subject<'a> {
    Limit(Limit),
    Mount(&'a dyn Mounter),
    Copy(&'a dyn Copier),
}

impl Subject<'_> {
    fn name(&self) -> String {
        match self {
            Self::Limit(limit) => limit.name(),
            Self::Mount(mounter) => mounter.name().to_owned(),
            Self::Copy(copier) => copier.name().to_owned(),
        }
    }

    fn is_limit(&self) -> bool {
        matches!(self, Self::Limit(_))
    }
}

/// Measures everything in a case, in turns, so that a change in the machine's load hits all alike.
fn measure(stage: &Stage, case: &dyn Case, (mounters, copiers): (&Mounters, &Copiers), repeat: u32) -> CaseReport {
    let ours = case.ours();
    let limits = case.limits().iter().map(|limit| Subject::Limit(*limit));
    let mounters = mounters.iter().filter(|_| ours == OURS).map(|mounter| Subject::Mount(mounter.as_ref()));
    let copiers = copiers.iter().filter(|_| ours == COPIER).map(|copier| Subject::Copy(copier.as_ref()));
    let measured = mounters.chain(copiers).filter(|subject| !case.ours_only() || subject.name() == ours);
    let subjects: Vec<_> = limits.chain(measured).collect();
    let mut results: Vec<(Vec<Sample>, Option<String>, bool)> = subjects.iter().map(|_| Default::default()).collect();
    stage.server.set_conditions(case.conditions());
    for round in 0..repeat {
        for (subject, (samples, error, enough)) in subjects.iter().zip(&mut results) {
            if *enough {
                continue;
            }
            let begun = Instant::now();
            let sample = cleanup::Watch::start(GIVEN_UP).and_then(|_watch| match subject {
                Subject::Limit(limit) => case.limit(stage, *limit),
                Subject::Mount(mounter) => case.mounted(stage, *mounter, round == 0),
                Subject::Copy(copier) => case.copied(stage, *copier, round == 0),
            });
            match sample {
                Ok(sample) => {
                    samples.push(sample);
                    let peer = !subject.is_limit() && subject.name() != ours;
                    *enough = begun.elapsed() >= if peer { PATIENCE } else { MORE_PATIENCE };
                }
                Err(failure) => {
                    *error = Some(format!("{failure:#}"));
                    *enough = true;
                }
            }
        }
    }
    let unit = case.unit();
    let rows = subjects
        .iter()
        .zip(results)
        .map(|(subject, (samples, error, _))| Row::new(subject.name(), subject.is_limit(), unit, &samples, error));
    let rows = rows.collect();
    let yardstick: Vec<String> = case.yardstick().iter().map(|limit| limit.name()).collect();
    CaseReport::new((case.name().to_owned(), case.about(), unit), rows, &yardstick, &case.goals(), ours)
}
