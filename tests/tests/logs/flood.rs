//! A scratch disk that fills up because storage is away: the program is not disturbed, the newest lines arrive, and the log says how many
//! bytes are missing.

use std::fs;
use std::time::Instant;

use serde_json::json;
use tests::agent::eventually;
use tests::disk::LoopDisk;
use tests::double::{DoubleConfig, Outage};
use tests::node::LIMIT;

use crate::place::{BUCKET, LINE, LONG, Place, STDOUT, WORDS, has_ended, line};

/// How a program fills a disk.
struct Flood {
    /// The size of the disk in bytes.
    disk: u64,
    /// It writes so many lines at once,
    lines: u64,
    /// then rests for so long in seconds,
    rest: f64,
    /// so often.
    rounds: u64,
    /// Whether the agent is killed when half of it is written.
    kill: bool,
}

impl Flood {
    fn bytes(&self) -> u64 {
        self.lines * self.rounds * LINE
    }

    fn run(&self) {
        let config = DoubleConfig { spill: Some("/var/tmp".into()), ..DoubleConfig::default() };
        let place = Place::new("oss", config);
        let disk = LoopDisk::ext4(self.disk);
        let scratch = disk.mounted();
        // All that is to be written, and then an end that can be waited for.
        let go = place.node.path("go");
        let (lines, rest, rounds) = (self.lines, self.rest, self.rounds);
        let command = format!(
            "for i in $(seq 0 {}); do seq -f '%012.0f {WORDS}' $((i*{lines})) $((i*{lines}+{lines}-1)) || exit 9; sleep {rest}; done; \
             while [ ! -e {} ]; do sleep 0.1; done",
            rounds - 1,
            go.display()
        );
        place.settings_of_node(&command, &json!({}), &json!({"storage": place.storage(), "scratch": scratch}));
        let mut agent = place.node.boot();
        eventually("the log has begun to arrive", LIMIT, || place.double.object(BUCKET, STDOUT).is_some());
        place.double.outage(Outage::Refuse);
        let began = Instant::now();
        let file = scratch.join("tasks/job-1.only.0/logs/stdout");
        let is_written = |bytes| fs::metadata(&file).is_ok_and(|file| file.len() >= bytes);
        if self.kill {
            eventually("half of it is written", LONG, || is_written(self.bytes() / 2));
            agent.kill().expect("it is ours");
            agent.wait().expect("it is ours");
            agent = place.node.boot();
        }
        eventually("everything is written", LONG, || is_written(self.bytes()));
        let wrote = began.elapsed();
        place.double.restore();
        fs::write(&go, "").expect("it is written");
        eventually("the task and its log are over", LONG, || has_ended(&mut agent));
        assert_eq!(place.node.status()["outcome"]["exit_code"], 0, "{}", place.node.log());
        let missing = self.check(&place);
        eprintln!(
            "a disk of {} MB: {} MB written in {wrote:?}, {} MB of them dropped",
            self.disk / 1_000_000,
            self.bytes() / 1_000_000,
            missing / 1_000_000
        );
    }

    /// Every byte is there or counted as missing; the newest are there. How many are missing.
    fn check(&self, place: &Place) -> u64 {
        let log = String::from_utf8(place.stored(STDOUT)).expect("it is text");
        let notes: Vec<&str> = log.lines().filter(|line| line.starts_with("[batch-agent: ")).collect();
        assert!(!notes.is_empty(), "nothing was dropped");
        let count = |note: &&str| note.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok()).expect("a count");
        let missing: u64 = notes.iter().map(count).sum();
        // Each note is a line of its own, with a line break before it.
        let ours: usize = notes.iter().map(|note| note.len() + 2).sum();
        assert_eq!(log.len() as u64 - ours as u64 + missing, self.bytes(), "{notes:?}");
        assert!(log.ends_with(&line(self.lines * self.rounds - 1)), "the newest lines are there");
        let whole = log.lines().filter(|line| line.len() as u64 == LINE - 1 && !line.starts_with("[batch-agent: "));
        let numbers = whole.map(|whole| whole.split(' ').next().and_then(|number| number.parse::<u64>().ok()));
        assert!(numbers.is_sorted_by(|a, b| a < b), "what is there is in order");
        assert!(place.logs(&["only"]).stdout == log, "the reader says what the objects say");
        missing
    }
}

#[test]
fn a_disk_that_fills_up_costs_the_oldest_lines_and_the_log_says_so() {
    Flood { disk: 400 << 20, lines: 60_000, rest: 0.1, rounds: 100, kill: false }.run();
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_a_writer_at_full_speed_never_finds_the_disk_full() {
    Flood { disk: 5 << 30, lines: 1_000_000, rest: 0.0, rounds: 80, kill: true }.run();
}
