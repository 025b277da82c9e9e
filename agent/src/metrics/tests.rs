use std::os::unix::fs::PermissionsExt;

use super::*;

/// The processor time that this process has used.
fn used() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(value.tv_sec() * 1_000_000 + value.tv_usec()).unwrap())
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn watched() -> Watched {
    Watched { places: vec![("/".into(), Role::System), ("/tmp".into(), Role::Data)], ..Watched::default() }
}

#[test]
fn a_sample_costs_little() {
    const SAMPLES: u32 = 100;
    let metrics = Metrics::start(watched());
    let recording = metrics.record("a", None);
    recording.program_started(TaskSource { shim: 1, group: PathBuf::from("/nowhere"), container: None }, false);
    let shared = metrics.shared().unwrap();
    let before = used();
    for _ in 0..SAMPLES {
        shared.tick();
    }
    let each = (used() - before) / SAMPLES;
    println!("a sample of {} processes takes {each:?} of processor time", Processes::default().count());
    // 0.5 % of one core: processor time, which a busy machine does not change much; and this is not an optimised build.
    assert!(each * 200 <= INTERVAL, "a sample takes {each:?}");
}

#[test]
fn a_task_is_recorded_from_its_beginning_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = file(directory.path());
    let metrics = Metrics::start(watched());
    let mut recording = metrics.record("job.task.0", Some(&file));
    let mut child =
        std::process::Command::new("/bin/sh").args(["-c", "/bin/sh -c 'while :; do :; done' & wait"]).spawn().unwrap();
    let shim = i32::try_from(std::process::id()).unwrap();
    recording.program_started(TaskSource { shim, group: directory.path().join("group.json"), container: None }, false);
    let end = Instant::now() + Duration::from_secs(60);
    let is_seen = || {
        let latest = metrics.latest().unwrap();
        latest.tasks.get("job.task.0").and_then(|sample| sample.task).is_some_and(|task| task.cpu.mean > 0.0)
    };
    while !is_seen() {
        assert!(Instant::now() < end, "{:?}", metrics.latest());
        thread::sleep(Duration::from_millis(50));
    }
    let mut processes = Processes::default();
    processes.signal_below(i32::try_from(child.id()).unwrap());
    let _ = child.kill();
    child.wait().unwrap();
    recording.program_ended(Duration::from_secs(3), Duration::from_secs(2), 5 << 40);
    let recorded = recording.finish();
    let program = recorded.program.unwrap();
    // What the shim says counts, because samples miss what is between them.
    let cpu = program.task.unwrap().cpu;
    assert_eq!(program.task.unwrap().memory.peak, 5.0 * f64::from(1 << 20) * f64::from(1 << 20));
    assert!((cpu.mean - 1.5).abs() < 1e-9 && cpu.peak >= cpu.mean, "{program:?}");
    assert!(program.disk(Role::System).is_some_and(|disk| disk.size > 0), "{program:?}");
    assert!(recorded.series.samples().len() >= 2);
    // The lines, and another agent that goes on.
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let again = metrics.record("job.task.0", Some(&file)).finish();
    assert!(again.series.whole().unwrap().seconds >= recorded.series.whole().unwrap().seconds);
    assert!(metrics.latest().is_some_and(|latest| latest.node.cpu.cores > 0));
}

#[test]
fn what_the_node_uses_is_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.json");
    assert_eq!(read(&path), None);
    let metrics = Metrics::start(Watched { latest: Some(path.clone()), ..watched() });
    let shared = metrics.shared().unwrap();
    shared.tick();
    shared.report();
    assert!(read(&path).unwrap().node.memory.total > 0);
    // The thread that takes samples may just be writing another one.
    let end = Instant::now() + Duration::from_secs(60);
    while path.with_extension("json.new").exists() {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn graphics_processors_are_asked_where_their_tool_is() {
    let directory = tempfile::tempdir().unwrap();
    let tool = directory.path().join("nvidia-smi");
    let script = "#!/bin/sh\n[ \"$2\" = --format=csv,noheader,nounits ] && echo '0, NVIDIA A10, 50, 1024, 23028'\n";
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let programs = Programs::new([directory.path().to_owned()]);
    let metrics = Metrics::start(Watched { programs, ..watched() });
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        metrics.shared().unwrap().tick();
        let gpus = metrics.latest().unwrap().node.gpus;
        if let [gpu] = &gpus[..] {
            assert_eq!((gpu.used, gpu.name.as_str()), (Level::of(0.5), "NVIDIA A10"));
            return;
        }
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(50));
    }
}
