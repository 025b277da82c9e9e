//! What nodes and tasks use: where it is said, and that nothing keeps it from being said.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::agent::{Node, command, eventually, job};
use tests::double::{Double, DoubleConfig};
use tests::node::{BootNode, LIMIT};

/// A FUSE mount that nobody answers for: whoever asks it how full it is waits until it is taken away.
struct Hanging {
    target: PathBuf,
    _device: File,
}

impl Hanging {
    fn at(target: &Path) -> Self {
        std::fs::create_dir_all(target).expect("FUSE is there and we are root");
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("FUSE is there and we are root");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hanging"), target, Some("fuse.hanging"), flags, Some(options.as_str()))
            .expect("FUSE is there and we are root");
        Self { target: target.to_owned(), _device: device }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = umount2(&self.target, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port").port()
}

/// What the node says to Prometheus; empty before it listens.
fn scrape(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let mut answer = String::new();
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_node_says_what_it_uses_and_its_task() {
    let (node, port) = (BootNode::new(), free_port());
    let line = format!("while [ ! -e {} ]; do :; done", node.path("go").display());
    let task =
        json!({"command": ["bash", "-c", line], "stdout": node.location("out/"), "stderr": node.location("out/")});
    node.settings(&json!({
        "report": {"directory": node.location("out/"), "prometheus": format!("127.0.0.1:{port}")},
        "task": {"job": {"version": 1, "name": "a job", "tasks": {"only": task}}, "job_id": "job-1"},
    }));
    let mut agent = node.boot();
    let task = "batch_agent_task_cpu_used_cores{task=\"job-1.only.0\"} ";
    eventually("the task is measured", LIMIT, || {
        let text = scrape(port);
        let used = text.split_once(task).and_then(|(_, rest)| rest.lines().next()?.parse::<f64>().ok());
        used.is_some_and(|used| used > 0.0)
    });
    let text = scrape(port);
    for name in ["cpu_cores", "memory_used_bytes", "disk_size_bytes{path=\"/\"", "network_sent_bytes_per_second"] {
        assert!(text.contains(&format!("batch_agent_{name}")), "{name}: {text}");
    }
    eventually("status says it", LIMIT, || node.status()["metrics"]["node"]["memory"]["total"].is_number());
    let shown = node.run(&["status"]).stdout;
    assert!(shown.contains("processors") && shown.contains("busy") && shown.contains("memory"), "{shown}");
    std::fs::write(node.path("go"), "").unwrap();
    eventually("the agent has ended", LIMIT, || agent.try_wait().unwrap().is_some());

    // What is left beside the logs.
    let lines = node.stored("out/metrics.job-1.only.0.jsonl");
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(last["cpu"]["cores"].as_u64().unwrap() > 0 && last["disks"][0]["size"].as_u64().unwrap() > 0, "{lines}");
    let page = node.stored("out/report.job-1.only.0.html");
    for part in ["Finished", "Timeline", "<td>settings</td>", "program", "Processors", "OnInstanceActive", "<polyline"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    let outcome = &node.status()["outcome"];
    assert!(outcome["figures"]["task"]["cpu"]["mean"].as_f64().unwrap() > 0.0, "{outcome}");
}

#[test]
fn a_mount_that_hangs_keeps_nobody_from_measuring() {
    let (node, port) = (BootNode::new(), free_port());
    let hanging = Hanging::at(&node.path("hanging"));
    // It is where the object cache is to be, which is all that is known of it.
    node.settings(&json!({
        "report": {"prometheus": format!("127.0.0.1:{port}")},
        "cache": {"directory": hanging.target},
    }));
    let mut agent = node.boot();
    let stuck = format!("batch_agent_disk_stuck{{path=\"{}\"", hanging.target.display());
    eventually("it is told to be stuck", LIMIT, || {
        let text = scrape(port);
        text.lines().any(|line| line.starts_with(&stuck) && line.ends_with(" 1"))
    });
    // Everything else is sampled as before.
    let text = scrape(port);
    assert!(text.contains("batch_agent_disk_size_bytes{path=\"/\""), "{text}");
    let began = Instant::now();
    assert!(scrape(port).contains("batch_agent_memory_used_bytes") && began.elapsed() < LIMIT);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    eventually("the agent ends all the same", LIMIT, || agent.try_wait().unwrap().is_some());
    drop(hanging);
}

#[test]
fn a_run_leaves_a_report_whatever_the_task_says() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let line = "/bin/sh -c 'echo \"</pre><script>alert(1)</script>\"; echo oops >&2; exit 3'";
    let run = node.run_with(&job(&command(line)), &["--job-id", "job-1"]);
    assert_eq!(run.status, 3, "{}", run.stderr);
    let page = String::from_utf8(double.get("test-bucket", "logs/report.job-1.task.0.html").unwrap()).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !page.contains("<script"), "{page}");
    assert!(page.contains("oops") && page.contains("Failed") && page.contains("exit code 3"), "{page}");
    let figures = &run.instance("task", 0)["figures"];
    assert!(
        figures["memory"]["total"].as_u64().unwrap() > 0 && figures["seconds"].as_f64().unwrap() > 0.0,
        "{figures}"
    );
    assert!(double.get("test-bucket", "logs/metrics.job-1.task.0.jsonl").is_some());
    node.assert_clean();
}
