//! The tasks, and what each of them must come to.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use fastrand::Rng;
use serde_json::{Value, json};
use tests::agent::package;

/// What a task is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Finishes,
    ExitsWithACode,
    DiesOfASignal,
    RunsOutOfTime,
    RunsOutOfMemory,
    IsCancelled,
    HasOutputs,
    SucceedsAtLast,
    FailsForGood,
    LacksItsInterpreter,
    LacksItsProgram,
    LacksItsInput,
    LeavesChildren,
    ReadsInputs,
    SaysMuch,
    WritesALogOfItsOwn,
    IsReserved,
    HasAPackage,
}

impl Kind {
    pub(super) const ALL: [Self; 18] = [
        Self::Finishes,
        Self::ExitsWithACode,
        Self::DiesOfASignal,
        Self::RunsOutOfTime,
        Self::RunsOutOfMemory,
        Self::IsCancelled,
        Self::HasOutputs,
        Self::SucceedsAtLast,
        Self::FailsForGood,
        Self::LacksItsInterpreter,
        Self::LacksItsProgram,
        Self::LacksItsInput,
        Self::LeavesChildren,
        Self::ReadsInputs,
        Self::SaysMuch,
        Self::WritesALogOfItsOwn,
        Self::IsReserved,
        Self::HasAPackage,
    ];
}

/// Where a task finds and leaves things.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    /// A directory on the node for this task alone; it is there.
    pub(super) directory: &'a Path,
    /// Paths that are nowhere, for mappings, begin with this.
    pub(super) mapped: String,
    /// A directory in object storage.
    pub(super) store: String,
    /// A number that no other task has, for `sleep`.
    pub(super) seconds: usize,
}

impl Place<'_> {
    /// A line is added here whenever the program begins.
    pub(super) fn runs(&self) -> String {
        self.directory.join("runs").display().to_string()
    }
}

/// How a task must end.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) state: &'static str,
    pub(super) cause: Option<&'static str>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) exit_status: u8,
    /// How often the program runs, one attempt each; there is one attempt if it never does.
    pub(super) runs: u32,
    /// What each attempt prints; of a program that cannot be started only the beginning of its stderr is known.
    pub(super) logs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Objects below the task's directory beside those that every task leaves.
    pub(super) objects: BTreeMap<String, Vec<u8>>,
    /// Whether it stays until it is released.
    pub(super) is_reserved: bool,
}

/// A task.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// Its description.
    pub(super) task: Value,
    /// Objects that it reads, below its directory.
    pub(super) inputs: BTreeMap<String, Vec<u8>>,
    pub(super) expected: Expected,
}

/// Lines of numbers, as `seq` prints them.
fn lines(from: u32, to: u32) -> Vec<u8> {
    let mut text = String::new();
    (from..=to).for_each(|number| writeln!(text, "{number}").unwrap());
    text.into_bytes()
}

fn noise(dice: &mut Rng, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| dice.u8(..)).take(length).collect()
}

impl Work {
    /// A task of this kind. Sizes and pauses are the dice's.
    pub(super) fn new(kind: Kind, place: &Place<'_>, dice: &mut Rng) -> Self {
        let mut expected = Expected {
            state: "Finished",
            cause: None,
            exit_code: Some(0),
            signal: None,
            exit_status: 0,
            runs: 1,
            logs: vec![(Vec::new(), Vec::new())],
            objects: BTreeMap::new(),
            is_reserved: false,
        };
        let mut inputs = BTreeMap::new();
        let mut more = json!({});
        let seconds = place.seconds;
        // Prints for a while: lines on both streams, and pauses between them.
        let parts = dice.u32(1..6);
        let each = dice.u32(1..400);
        let says = format!(
            "i=0; while [ $i -lt {parts} ]; do seq $((i * {each} + 1)) $(((i + 1) * {each})); seq $i $((i + 3)) >&2; \
             sleep 0.{:02}; i=$((i + 1)); done",
            dice.u32(1..15)
        );
        let said = (lines(1, parts * each), (0..parts).flat_map(|part| lines(part, part + 3)).collect::<Vec<u8>>());
        let mut fails = |cause: &'static str, code: Option<i32>, signal: Option<i32>| {
            (expected.state, expected.cause) = ("Failed", Some(cause));
            (expected.exit_code, expected.signal) = (code, signal);
            expected.exit_status = u8::try_from(code.or(signal.map(|signal| 128 + signal)).unwrap()).unwrap();
        };
        let mut line = says.clone();
        let mut command = None;
        match kind {
            Kind::Finishes => {}
            Kind::ExitsWithACode => {
                let code = dice.i32(1..=255);
                fails("user", Some(code), None);
                line += &format!("; exit {code}");
            }
            Kind::DiesOfASignal => {
                let signal = *dice.choice(&[6, 9, 11, 15]).unwrap();
                fails("user", None, Some(signal));
                line += &format!("; kill -{signal} $$; sleep {seconds}");
            }
            Kind::RunsOutOfTime => {
                fails("timeout", None, Some(libc::SIGTERM));
                more = json!({"timeout": 2});
                line += &format!("; exec sleep {seconds}");
            }
            Kind::RunsOutOfMemory => {
                fails("out-of-memory", None, Some(libc::SIGKILL));
                more = json!({"limits": {"memory": "32MiB"}});
                line += "; exec tail /dev/zero";
            }
            Kind::IsCancelled => {
                fails("cancelled", None, Some(libc::SIGTERM));
                expected.state = "Stopped";
                line += &format!("; touch {}; exec sleep {seconds}", place.directory.join("up").display());
            }
            Kind::HasOutputs => {
                let (out, one) = (format!("{}/out", place.mapped), format!("{}/one", place.mapped));
                more = json!({"outputs": [
                    {"source": out, "target": format!("{}out/", place.store)},
                    {"source": one, "target": format!("{}one", place.store)},
                ]});
                for number in 1..=dice.u32(1..12) {
                    let upto = dice.u32(1..20_000);
                    line +=
                        &format!("; mkdir -p {out}/d$(({number} % 3)); seq {upto} > {out}/d$(({number} % 3))/{number}");
                    expected.objects.insert(format!("out/d{}/{number}", number % 3), lines(1, upto));
                }
                let upto = dice.u32(1..200_000);
                line += &format!("; seq {upto} > {one}");
                expected.objects.insert("one".to_owned(), lines(1, upto));
            }
            Kind::SucceedsAtLast => {
                let failures = dice.u32(1..3);
                more = json!({"retries": 3});
                line += &format!("; [ $(wc -l < {}) -gt {failures} ] || exit 9", place.runs());
                expected.runs = failures + 1;
            }
            Kind::FailsForGood => {
                fails("user", Some(9), None);
                more = json!({"retries": 1});
                line += "; exit 9";
                expected.runs = 2;
            }
            Kind::LacksItsInterpreter => {
                fails("user", Some(127), None);
                expected.runs = 0;
                more = json!({"package": format!("{}package", place.store)});
                inputs.insert("package".to_owned(), package(&[("run", "#!/no/such/interpreter\n")]));
                command = Some(json!(["./run"]));
            }
            Kind::LacksItsProgram => {
                fails("user", Some(127), None);
                expected.runs = 0;
                command = Some(json!(["no-such-program-anywhere"]));
            }
            Kind::LacksItsInput => {
                fails("user", Some(66), None);
                (expected.runs, expected.exit_code) = (0, None);
                more = json!({"inputs": [{"source": format!("{}none", place.store), "target": format!("{}/in", place.mapped)}]});
            }
            Kind::LeavesChildren => {
                line += &format!(
                    "; setsid sh -c 'trap \"\" TERM HUP; sleep {seconds} & sleep {seconds}' & (sleep {seconds} &) & \
                     until [ $(pgrep -cfx 'sleep {seconds}') -ge 3 ]; do sleep 0.01; done; exit 0"
                );
            }
            Kind::ReadsInputs => {
                let target = format!("{}/in", place.mapped);
                more = json!({"inputs": [
                    {"source": format!("{}in/", place.store), "target": target, "writable": dice.bool()},
                ]});
                let mut read = Vec::new();
                for number in 0..dice.u32(1..4) {
                    let length = dice.usize(0..400_000);
                    let content = noise(dice, length);
                    line += &format!("; cat {target}/{number}");
                    read.extend_from_slice(&content);
                    inputs.insert(format!("in/{number}"), content);
                }
                expected.logs[0].0 = read;
            }
            Kind::SaysMuch => {
                let upto = dice.u32(100_000..600_000);
                line += &format!("; seq {upto}; sleep 0.2; seq {upto} >&2");
                expected.logs[0] = (lines(1, upto), lines(1, upto));
            }
            Kind::WritesALogOfItsOwn => {
                let file = format!("{}/log/own.log", place.mapped);
                let upto = dice.u32(1..30_000);
                more = json!({"logs": [{"source": file, "target": format!("{}own.log", place.store)}]});
                line += &format!("; seq {upto} >> {file}; sleep 0.3; seq {upto} >> {file}");
                expected.objects.insert("own.log".to_owned(), [lines(1, upto), lines(1, upto)].concat());
            }
            Kind::IsReserved => {
                fails("user", Some(4), None);
                more = json!({"reserve-on-fail": true});
                expected.is_reserved = true;
                line += "; exit 4";
            }
            Kind::HasAPackage => {
                more = json!({"package": format!("{}package", place.store)});
                let data = noise(dice, 50_000);
                // The package holds text only.
                let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
                inputs.insert("package".to_owned(), package(&[("data", &hex)]));
                line += "; cat data";
                expected.logs[0].0 = hex.into_bytes();
            }
        }
        if expected.runs == 0 {
            expected.logs = vec![(Vec::new(), b"batch-agent: ".to_vec())];
        } else {
            let (stdout, stderr) = std::mem::take(&mut expected.logs[0]);
            let each = ([said.0, stdout].concat(), [said.1, stderr].concat());
            expected.logs = vec![each; expected.runs as usize];
        }
        let line = format!("echo x >> {}; {line}", place.runs());
        let mut task = json!({
            "command": command.unwrap_or_else(|| json!(["bash", "-c", line])),
            "stdout": place.store,
            "stderr": place.store,
        });
        tests::agent::merge(&mut task, &more);
        Self { task, inputs, expected }
    }
}
