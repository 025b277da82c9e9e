//! `batch-agent run`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fuse_oss::{ByteSize, ServeSettings};
use oss::transfer::TransferBudget;
use oss::{Location, Settings, Stores};
use tokio::signal::unix::{SignalKind, signal};

use super::node::NodeArguments;
use super::programs::ProgramArguments;
use super::recipients::Recipients;
use crate::console::Console;
use crate::container::{Containers, Logins};
use crate::durable;
use crate::events::Events;
use crate::exit;
use crate::identity::{self, Sources};
use crate::instance::{
    Context, EarlyUpload, MountPoints, Mounter, NetworkMounter, OnStart, Place, Reason, StopSignal, Stopper, reserve,
    retry,
};
use crate::job::{self, JobDescription, names::JobId};
use crate::metrics::{Metrics, Watched};
use crate::node::Node;
use crate::outcome::{Cause, Failure, JobOutcome, State};
use crate::report::Timeline;
use crate::run::{Part, RunError};
use crate::settings::Identity;
use crate::spot;

/// What `batch-agent run` can be told.
#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The job description: BatchCompute JSON, or YAML (see `batch-agent schema`).
    job: PathBuf,

    /// The description of the App that an App job is made from: JSON, or the same in YAML.
    #[arg(long, value_name = "FILE")]
    app: Option<PathBuf>,

    /// Run one instance of this task only, whatever it depends on.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,

    /// Which instance of --task, from 0.
    #[arg(long, value_name = "N", requires = "task", default_value_t = 0)]
    instance: u32,

    /// The id of this run: letters, digits, '.', '_' and '-', at most 64. Log objects are named after it. Made up and
    /// printed when absent.
    #[arg(long, value_name = "ID")]
    job_id: Option<JobId>,

    /// How many instances run at once; as many as there are processors when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    parallel: Option<u32>,

    /// How long a program may take to end after SIGTERM before it is killed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,

    /// How long the mounts and directories of a failed instance stay, if its job asks for that (ReserveOnFail), in seconds. See
    /// `batch-agent enter` and `batch-agent release`.
    #[arg(long, value_name = "SECONDS", default_value_t = reserve::LIMIT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    reserve_for: u64,

    /// How often an instance is tried again after a fault that is not the job's (a mount, storage, the machine), with growing pauses.
    /// These do not count as retries of the job's own. A program that has run is run again only if its job allows retries.
    #[arg(long, value_name = "N", default_value_t = retry::FAULTS, env = "BATCH_AGENT_FAULT_RETRIES", value_parser = clap::value_parser!(u32).range(..=100))]
    fault_retries: u32,

    /// Write the outcome here as well as to standard output.
    #[arg(long, value_name = "FILE")]
    outcome: Option<PathBuf>,

    /// The endpoint for oss:// (or for SCHEME://), over OSS_ENDPOINT and AWS_ENDPOINT_URL. May be given for each scheme.
    #[arg(long, value_name = "[SCHEME=]URL")]
    endpoint: Vec<String>,

    /// The region for oss:// (or for SCHEME://), over OSS_REGION and AWS_REGION. May be given for each scheme.
    #[arg(long, value_name = "[SCHEME=]REGION")]
    region: Vec<String>,

    /// How long storage may be silent in the middle of a request before the request is given up and tried again, in
    /// seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    read_timeout: Option<u64>,

    #[command(flatten)]
    node: NodeArguments,

    /// How much the object cache may hold, such as 50GiB; a fifth of the scratch disk when absent.
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,

    /// How much memory mounted objects may take, such as 512MiB; a quarter of the machine's, at most 2 GiB, when absent.
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,

    /// How long mounting each of a task's network file systems (NAS, Lustre) may take, in seconds, retries included.
    #[arg(long, value_name = "SECONDS", default_value_t = NetworkMounter::DEADLINE.as_secs())]
    mount_deadline: u64,

    /// How large outputs are sent while the task runs, as parts that nobody sees: on, off, or some of
    /// bandwidth=64MiB,cpu=0.1,quiet=5s,from=16MiB (bytes a second, processors, how long a file must not have changed, its least length).
    #[arg(long, value_name = "HOW", default_value = "on", env = "BATCH_AGENT_EARLY_UPLOAD")]
    early_upload: EarlyUpload,

    /// The socket of the container engine, Docker or Podman. [default: /run/docker.sock, else /run/podman/podman.sock]
    #[arg(long, value_name = "FILE", env = "BATCH_AGENT_ENGINE_SOCKET")]
    engine_socket: Option<PathBuf>,

    /// A file with logins for registries of images, as `docker login` writes it (~/.docker/config.json). It must be readable by root
    /// only; nothing of it is passed on but the login that a pull needs.
    #[arg(long, value_name = "FILE")]
    registry_logins: Option<PathBuf>,

    /// How long pulling a task's image may take, in seconds, retries included.
    #[arg(long, value_name = "SECONDS", default_value_t = Containers::PULL_DEADLINE.as_secs())]
    pull_timeout: u64,

    #[command(flatten)]
    programs: ProgramArguments,

    /// The directory in object storage that receives what happens, as events.ID.jsonl.
    #[arg(long, value_name = "LOCATION")]
    pub(super) report: Option<Location>,

    /// Tell a server what happens: one POST per event, as the Standard Webhooks specification has it.
    #[arg(long, value_name = "URL", env = "BATCH_AGENT_WEBHOOK", hide_env_values = true)]
    pub(super) webhook: Option<String>,

    /// The file with the secret that requests to --webhook are signed with: whsec_ and base64, or any text of at least 16 bytes.
    #[arg(long, value_name = "FILE", requires = "webhook")]
    pub(super) webhook_secret: Option<PathBuf>,

    /// An event that --webhook is told; may be given several times. All when absent.
    #[arg(long = "webhook-event", value_name = "NAME", requires = "webhook")]
    pub(super) webhook_events: Vec<String>,

    /// How long to wait at the end for those who are to be told, in seconds. What they have not taken then is told by the next
    /// run that tells the same ones.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    report_wait: u64,

    /// What the task is told as BATCH_COMPUTE_CLUSTER_ID.
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,

    /// What the task is told as BATCH_COMPUTE_WORKER_ID.
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,
}

/// Runs the job and prints its outcome.
pub(super) fn run(arguments: &RunArguments, console: Console) -> Result<ExitCode, Failure> {
    let (job, warnings) = read(&arguments.job, arguments.app.as_deref())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Cause::Platform,
            exit::DENIED,
            "running a job mounts storage and needs root; try: sudo batch-agent run ...",
        ));
    }
    let part = match &arguments.task {
        Some(task) => Part::One { task: task.clone(), instance: arguments.instance },
        None => Part::Whole { parallel: arguments.parallel.unwrap_or_else(processors) },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::platform(format!("cannot start: {error}")))?;
    let recipients = Recipients::new(arguments, &job, &part)?;
    let mut context = context(arguments, console)?;
    if arguments.job_id.is_none() {
        tracing::info!("this run's job id is {}", context.job);
    }
    let outcome = runtime.block_on(async {
        let stop = listen(context.stores.settings())?;
        let news = recipients.start(&context)?;
        context.events = news.events.clone();
        context.metrics =
            Metrics::start(Watched::of(&context.node, context.mounter.settings(), arguments.programs.programs()));
        let ended = crate::run::run(Arc::new(context), Arc::new(job), part, stop).await;
        news.finish(Duration::from_secs(arguments.report_wait)).await;
        ended.map_err(|error| {
            let exit_status = match error {
                RunError::NoSuchTask { .. } | RunError::NoSuchInstance { .. } => exit::USAGE,
                RunError::Unsupported { .. } => exit::BAD_DATA,
                RunError::File(_) => exit::OS,
            };
            Failure::new(Cause::Platform, exit_status, error.to_string())
        })
    })?;
    report(arguments, &outcome)?;
    Ok(ExitCode::from(outcome.exit_status))
}

/// Reads a job description, for `run` and `check` alike.
pub(super) fn read(path: &Path, app: Option<&Path>) -> Result<(JobDescription, Vec<job::Warning>), Failure> {
    job::read_file_with_app(path, app).map_err(|error| {
        let exit_status = match error {
            job::ReadError::File { .. } | job::ReadError::App { .. } => exit::INPUT_MISSING,
            job::ReadError::Invalid { .. } => exit::BAD_DATA,
        };
        Failure::new(Cause::User, exit_status, error.to_string())
    })
}

fn processors() -> u32 {
    std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()).unwrap_or(1)
}

fn context(arguments: &RunArguments, console: Console) -> Result<Context, Failure> {
    let settings = storage_settings(arguments)?;
    let node = arguments.node.node()?;
    let serve = ServeSettings {
        cache_dir: node.object_cache(),
        cache_size: arguments.cache_size,
        memory_limit: arguments.memory_limit,
        runtime_dir: node.runtime.join("fuse-oss"),
        ..ServeSettings::new(arguments.node.fuse_oss())
    };
    Ok(Context {
        job: arguments.job_id.clone().unwrap_or_else(JobId::generate),
        place: Place {
            region: settings.oss.region.clone().or_else(|| settings.s3.region.clone()),
            cluster: arguments.cluster_id.clone(),
            worker: arguments.worker_id.clone(),
            path: std::env::var("PATH").ok(),
        },
        stores: Arc::new(Stores::new(settings)),
        budget: TransferBudget::default(),
        mounter: Mounter::new(serve),
        network: NetworkMounter::new(arguments.programs.programs(), Duration::from_secs(arguments.mount_deadline)),
        containers: Containers {
            socket: arguments.engine_socket.clone(),
            logins: arguments.registry_logins.as_deref().map(logins).transpose()?.unwrap_or_default(),
            pull_deadline: Duration::from_secs(arguments.pull_timeout),
            ..Containers::default()
        },
        mount_points: MountPoints::new(Path::new(Node::STATE)),
        console,
        of_the_node: false,
        on_start: OnStart::default(),
        events: Events::default(),
        metrics: Metrics::default(),
        timeline: Timeline::default(),
        early: arguments.early_upload,
        grace: Duration::from_secs(arguments.grace),
        faults: arguments.fault_retries,
        reserve: Duration::from_secs(arguments.reserve_for),
        node,
    })
}

/// The logins in a file that nobody else can read.
fn logins(path: &Path) -> Result<Logins, Failure> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let bad = |text: String| Failure::new(Cause::User, exit::BAD_SETTINGS, text);
    let unreadable = |error: std::io::Error| bad(format!("cannot read the logins in {shown}: {error}"));
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
        return Err(bad(format!("{shown} holds logins and can be read by others; run: chmod go-rwx {shown}")));
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut text).map_err(unreadable)?;
    Logins::parse(&text).map_err(|error| bad(format!("{shown}: {error}")))
}

fn storage_settings(arguments: &RunArguments) -> Result<Settings, Failure> {
    let bad = |text: String| Failure::new(Cause::User, exit::BAD_SETTINGS, text);
    let mut settings = Settings::from_env().map_err(|error| bad(error.to_string()))?;
    for (option, values) in [("--endpoint", &arguments.endpoint), ("--region", &arguments.region)] {
        for value in values {
            let (scheme, value) = match value.split_once('=') {
                Some((scheme @ ("oss" | "s3"), value)) => (scheme, value),
                Some((other, _)) if !other.contains(['/', ':', '.']) => {
                    return Err(bad(format!("{option} {value}: only oss and s3 have one, not {other:?}")));
                }
                _ => ("oss", value.as_str()),
            };
            let store = if scheme == "s3" { &mut settings.s3 } else { &mut settings.oss };
            let field = if option == "--endpoint" { &mut store.endpoint } else { &mut store.region };
            *field = Some(value.to_owned());
        }
    }
    if let Some(seconds) = arguments.read_timeout {
        for store in [&mut settings.oss, &mut settings.s3] {
            store.timeouts.read = Duration::from_secs(seconds);
        }
    }
    Ok(settings)
}

/// Turns SIGINT and SIGTERM into requests to stop, of which the first one is polite, and so the cloud's notice that it takes the instance back.
fn listen(storage: &Settings) -> Result<StopSignal, Failure> {
    let failed = |error| Failure::platform(format!("cannot listen to signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (stopper, stop) = Stopper::new();
    let stopper = Arc::new(stopper);
    tokio::spawn(watch_for_reclaim(Arc::clone(&stopper), Sources::with_storage(storage)));
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            tracing::warn!(
                "{name}: stopping; outputs and logs are still uploaded (once more: kill the program at once)"
            );
            stopper.ask();
        }
    });
    Ok(stop)
}

/// Looks out for the cloud taking the instance back. On a machine that is no cloud's it finds that out, and nobody waits for it.
async fn watch_for_reclaim(stopper: Arc<Stopper>, sources: Sources) {
    let (identity, _) = identity::discover(&Identity::default(), &sources).await;
    let Some(watch) = spot::Watch::of(&identity, &sources) else { return };
    let words = watch.notice().await.text();
    tracing::warn!("{words}; what runs ends now, and what it has is sent");
    stopper.ask_for(Reason::SpotReclaim(words));
}

fn report(arguments: &RunArguments, outcome: &JobOutcome) -> Result<(), Failure> {
    if let Some(path) = &arguments.outcome {
        durable::replace_json(path, outcome).map_err(Failure::platform)?;
    }
    let is_terminal = std::io::stdout().is_terminal();
    let text = if is_terminal { serde_json::to_string_pretty(outcome) } else { serde_json::to_string(outcome) };
    print(&text.map_err(Failure::platform)?)?;
    match outcome.state {
        State::Finished => tracing::info!("job {} finished", outcome.job_id),
        state => tracing::error!("job {}: {state:?}", outcome.job_id),
    }
    Ok(())
}

/// Prints a line on standard output; a reader that has gone away is no failure of ours.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::platform(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
