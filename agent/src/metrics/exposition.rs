//! What the node uses in the text format that Prometheus scrapes (version 0.0.4), and where it is asked for.
//!
//! Names begin with `batch_agent_`; sizes are in bytes, and all are gauges over the last sample. The endpoint answers `GET /metrics` over
//! HTTP/1.1, one request per connection, to this machine only.

use std::convert::Infallible;
use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::sample::{Disk, Gpu, Sample};
use super::{Latest, Metrics};

/// The media type of [`text`].
const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections that are answered at once.
const PLACES: usize = 8;

/// How long a client may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes.
const HEAD_LIMIT: usize = 16 << 10;

/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers scrapers at `address` for ever.
///
/// # Errors
/// When nobody can listen there.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(address).await?;
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= PLACES {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(talk(stream, metrics.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a client that asks for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, metrics: Metrics) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &metrics);
        async { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false).half_close(true).header_read_timeout(LIMIT / 2);
    http.max_buf_size(HEAD_LIMIT);
    // Errors are the client's: too slow, or gone.
    let _ = tokio::time::timeout(LIMIT, http.serve_connection(TokioIo::new(stream), service)).await;
}

fn answer(method: &Method, path: &str, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (code, media, body) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, MEDIA_TYPE, text(metrics.latest().as_ref())),
        (&Method::GET, "/") => (StatusCode::OK, PLAIN, "batch-agent: metrics are at /metrics\n".to_owned()),
        (_, "/metrics" | "/") => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET is answered here\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, PLAIN, "there is nothing here; metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// What is used, in Prometheus' text format.
pub fn text(latest: Option<&Latest>) -> String {
    let mut out = Exposition(String::with_capacity(4096));
    out.family("info", "Always 1; its label says which agent this is.");
    out.sample("info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(latest) = latest {
        out.node(&latest.node);
        out.tasks(latest);
    }
    out.0
}

struct Exposition(String);

impl Exposition {
    /// Begins the samples of a name. `help` is ours and holds neither a backslash nor a line end.
    fn family(&mut self, name: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP batch_agent_{name} {help}\n# TYPE batch_agent_{name} gauge");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // As in family().
        let _ = writeln!(self.0, "batch_agent_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help);
        self.sample(name, &[], value);
    }

    fn node(&mut self, node: &Sample) {
        self.gauge("cpu_cores", "Processors there are.", node.cpu.cores);
        self.gauge("cpu_used_cores", "Processors that were busy.", node.cpu.used.mean);
        self.gauge("memory_size_bytes", "Memory there is.", node.memory.total);
        self.gauge("memory_used_bytes", "Memory that cannot be given to others.", node.memory.used.mean);
        if let Some(pressure) = node.pressure {
            self.family("pressure_ratio", "Share of the time in which something waited.");
            for (what, level) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
                self.sample("pressure_ratio", &[("resource", what)], level.mean);
            }
        }
        self.disks("disk_size_bytes", "What the file system can hold.", &node.disks, |disk| disk.size.to_string());
        self.disks("disk_used_bytes", "What it holds.", &node.disks, |disk| disk.used.mean.to_string());
        self.disks("disk_read_bytes_per_second", "Read from its device.", &node.disks, |disk| {
            disk.read.mean.to_string()
        });
        self.disks("disk_written_bytes_per_second", "Written to its device.", &node.disks, |disk| {
            disk.written.mean.to_string()
        });
        self.disks("disk_busy_ratio", "Share of the time in which its device was busy.", &node.disks, |disk| {
            disk.busy.mean.to_string()
        });
        self.disks("disk_stuck", "1 if it does not answer.", &node.disks, |disk| u8::from(disk.is_stuck).to_string());
        let network = node.network;
        self.gauge("network_received_bytes_per_second", "What came in.", network.received.mean);
        self.gauge("network_sent_bytes_per_second", "What went out.", network.sent.mean);
        self.gpus("gpu_used_ratio", "How busy it was.", &node.gpus, |gpu| gpu.used.mean.to_string());
        self.gpus("gpu_memory_size_bytes", "Its memory.", &node.gpus, |gpu| gpu.memory_total.to_string());
        self.gpus("gpu_memory_used_bytes", "How much of it was used.", &node.gpus, |gpu| {
            gpu.memory_used.mean.to_string()
        });
        if let Some(objects) = node.objects {
            self.gauge("objects_fetched_bytes_per_second", "Fetched by object mounts.", objects.fetched.mean);
            self.gauge("objects_cached_bytes", "In the object cache on disk.", objects.cached.mean);
            self.gauge("objects_memory_bytes", "Blocks of objects in memory.", objects.memory.mean);
            self.gauge("objects_reads_per_second", "Reads answered by object mounts.", objects.reads.mean);
        }
    }

    fn disks(&mut self, name: &str, help: &str, disks: &[Disk], value: impl Fn(&Disk) -> String) {
        self.family(name, help);
        for disk in disks {
            let roles = disk.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",");
            self.sample(name, &[("path", &disk.path), ("device", &disk.device), ("role", &roles)], value(disk));
        }
    }

    fn gpus(&mut self, name: &str, help: &str, gpus: &[Gpu], value: impl Fn(&Gpu) -> String) {
        if gpus.is_empty() {
            return;
        }
        self.family(name, help);
        for gpu in gpus {
            self.sample(name, &[("index", &gpu.index.to_string()), ("name", &gpu.name)], value(gpu));
        }
    }

    fn tasks(&mut self, latest: &Latest) {
        let used = || latest.tasks.iter().filter_map(|(name, sample)| Some((name, sample.task?)));
        self.family("task_cpu_used_cores", "Processors that the task kept busy.");
        for (name, task) in used() {
            self.sample("task_cpu_used_cores", &[("task", name)], task.cpu.mean);
        }
        self.family("task_memory_used_bytes", "Memory of the task's processes.");
        for (name, task) in used() {
            self.sample("task_memory_used_bytes", &[("task", name)], task.memory.mean);
        }
    }
}

/// A label's value. Paths can hold anything.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_sample_has_a_family_and_no_two_are_the_same() {
        let mut node = sample(5, 5.0, 1.5);
        node.disks[0].path = "/a \"b\"\n\\".to_owned();
        node.gpus.push(Gpu { index: 0, name: "A10".to_owned(), ..Gpu::default() });
        node.pressure = Some(super::super::sample::Pressure::default());
        node.objects = Some(super::super::sample::Objects::default());
        let tasks =
            BTreeMap::from([("job.a.0".to_owned(), sample(5, 5.0, 1.0)), ("job.a.1".to_owned(), sample(5, 5.0, 1.0))]);
        let text = text(Some(&Latest { node, tasks }));
        let mut seen = std::collections::HashSet::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family, "{line}");
                assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "{line}");
                line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
            }
        }
        assert!(
            text.contains(r#"batch_agent_disk_used_bytes{path="/a \"b\"\n\\",device="vda",role="system"} "#),
            "{text}"
        );
        assert!(text.contains(r#"batch_agent_task_cpu_used_cores{task="job.a.1"} 0.5"#), "{text}");
    }

    #[test]
    fn only_metrics_are_answered() {
        let metrics = Metrics::default();
        assert_eq!(answer(&Method::GET, "/metrics", &metrics).status(), 200);
        assert_eq!(answer(&Method::POST, "/metrics", &metrics).status(), 405);
        assert_eq!(answer(&Method::GET, "/metrics/../etc", &metrics).status(), 404);
    }
}
