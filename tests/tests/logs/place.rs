//! A node whose storage is a double, and a log whose every line says which it is.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};
use tests::double::{Double, DoubleConfig};
use tests::mounts::Ran;
use tests::node::BootNode;

pub const BUCKET: &str = "test-bucket";

/// Where a task's standard output goes.
pub const STDOUT: &str = "logs/stdout.job-1.only.0";

/// How long a whole log may take on a machine that is busy with other tests.
pub const LONG: Duration = Duration::from_secs(300);

/// A node whose storage is a double.
pub struct Place {
    pub node: BootNode,
    pub double: Double,
    pub scheme: &'static str,
}

impl Place {
    pub fn new(scheme: &'static str, config: DoubleConfig) -> Self {
        Self { node: BootNode::new(), double: Double::start(config), scheme }
    }

    pub fn location(&self, key: &str) -> String {
        format!("{}://{BUCKET}/{key}", self.scheme)
    }

    pub fn storage(&self) -> Value {
        let store = json!({
            "endpoint": self.double.endpoint(), "region": "cn-test",
            "access_key_id": "test-key", "access_key_secret": "test-secret",
        });
        json!({ self.scheme: store })
    }

    /// Settings for a task that runs this line in a shell.
    pub fn settings(&self, line: &str, more: &Value) {
        self.settings_of_node(line, more, &json!({"storage": self.storage()}));
    }

    /// The same, with these of the node, which must say how storage is reached.
    pub fn settings_of_node(&self, line: &str, more: &Value, node: &Value) {
        let mut task = json!({
            "command": ["bash", "-c", line], "stdout": self.location("logs/"), "stderr": self.location("logs/"),
        });
        tests::agent::merge(&mut task, more);
        let job = json!({"version": 1, "name": "a job", "tasks": {"only": task}});
        let mut settings = json!({"task": {"job": job, "job_id": "job-1"}});
        tests::agent::merge(&mut settings, node);
        self.node.settings(&settings);
    }

    /// `batch-agent logs`.
    pub fn logs(&self, arguments: &[&str]) -> Ran {
        let config = self.node.path("node.yaml");
        let config = config.to_string_lossy();
        self.node.run(&[&["logs", "--config", &config][..], arguments].concat())
    }

    /// The file of a stream while the task runs.
    pub fn file(&self, stream: &str) -> PathBuf {
        self.node.path("state/scratch/tasks/job-1.only.0/logs").join(stream)
    }

    /// How many bytes of the task's standard output are in storage.
    pub fn arrived(&self) -> u64 {
        let objects = self.double.objects(BUCKET);
        objects.iter().filter(|(name, _)| name.starts_with(STDOUT)).map(|(_, object)| object.content.len()).sum()
    }

    /// The log as its objects have it, without `batch-agent logs`.
    pub fn stored(&self, key: &str) -> Vec<u8> {
        let part = |number: usize| if number == 0 { key.to_owned() } else { format!("{key}.part-{number}") };
        (0..).map_while(|number| self.double.get(BUCKET, &part(number))).collect::<Vec<_>>().concat()
    }
}

/// What follows the number in a line.
pub const WORDS: &str = "the quick brown fox jumps over the lazy dog and comes back again to do it once more an";

/// What [`writer`] writes, line by line.
pub fn line(number: u64) -> String {
    format!("{number:012} {WORDS}\n")
}

pub const LINE: u64 = 100;

/// A shell line that writes lines `from..to` as quickly as it can.
pub fn writer(from: u64, to: u64) -> String {
    format!("seq -f '%012.0f {WORDS}' {from} {}", to - 1)
}

/// A shell line that writes so many `lines` at once and then about ten times a second `step`, until there is a file `end`. Then it notes
/// how many there were.
pub fn steady_writer(lines: u64, step: u64, end: &Path, count: &Path) -> String {
    format!(
        "{}; n={lines}; while [ ! -e {} ]; do seq -f '%012.0f {WORDS}' $n $((n + {step} - 1)); n=$((n + {step})); sleep 0.1; done; \
         echo $n > {}",
        writer(0, lines),
        end.display(),
        count.display()
    )
}

/// That these bytes are the lines `0..lines`.
#[track_caller]
pub fn assert_lines(chunks: impl IntoIterator<Item = bytes::Bytes>, lines: u64) {
    let (mut at, mut rest) = (0, Vec::new());
    let words = line(0).split_off(12);
    for chunk in chunks {
        rest.extend_from_slice(&chunk);
        let whole = rest.len() / 100 * 100;
        for found in rest[..whole].chunks(100) {
            // Quicker than to make the line.
            let number = found[..12]
                .iter()
                .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')));
            let is_right = number == Some(at) && found[12..] == *words.as_bytes();
            assert!(is_right, "line {at} is {:?}", String::from_utf8_lossy(found));
            at += 1;
        }
        rest.drain(..whole);
    }
    assert!(rest.is_empty() && at == lines, "{at} of {lines} lines, and {} bytes", rest.len());
}

/// Whether a process that we have started has ended.
pub fn has_ended(process: &mut Child) -> bool {
    process.try_wait().expect("it is ours").is_some()
}

/// All chunks of a log's objects in order.
pub fn chunks(place: &Place, key: &str) -> Vec<bytes::Bytes> {
    let part = |number: usize| if number == 0 { key.to_owned() } else { format!("{key}.part-{number}") };
    let objects = (0..).map_while(|number| place.double.object(BUCKET, &part(number)));
    objects.flat_map(|object| object.content.chunks(0..object.content.len())).collect()
}

#[test]
fn a_line_is_what_the_writer_writes() {
    assert_eq!(line(7).len() as u64, LINE);
    let written = std::process::Command::new("bash").arg("-c").arg(writer(3, 6)).output().expect("bash is there");
    assert_eq!(String::from_utf8_lossy(&written.stdout), [3, 4, 5].map(line).concat());
}
