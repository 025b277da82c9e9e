//! The mount's worker is killed over and over, runs out of memory, is replaced by another program; and nobody who reads from the mounts
//! or writes into a view ever sees an error or a wrong byte.
//!
//! The objects are larger than the cache and the store is slow, so that at any moment somebody waits for it. How long an operation took
//! at most is printed and not judged: only what takes two minutes hangs.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

mod cgroup;
mod readers;
mod server;
mod siege;
mod writers;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tests::bucket::Bucket;
use tests::mounts::{alive, wait_until};

use cgroup::MemoryGroup;
use server::Server;
use siege::{Load, Siege};

const FULL: Load = Load { readers: 32, writers: 8 };
const LIGHT: Load = Load { readers: 8, writers: 2 };

/// Kills the worker so often; every fifth time its successor too, while it is starting.
fn killed(times: usize) {
    let siege = Siege::lay(FULL);
    let mut longest = Duration::ZERO;
    siege.run(|siege, sandbox| {
        for time in 0..times {
            std::thread::sleep(Duration::from_millis(fastrand::u64(..150)));
            let before = Server::of(sandbox);
            let begun = Instant::now();
            before.kill_worker();
            if time % 5 == 4 {
                let next = before.next_worker();
                std::thread::sleep(Duration::from_millis(fastrand::u64(..15)));
                server::kill(next);
            }
            let after = before.wait_for_another(sandbox);
            longest = longest.max(begun.elapsed());
            assert_eq!(after.keeper, before.keeper, "the keeper stays");
            siege.wait_for_progress();
            if !siege.is_well() {
                break;
            }
        }
    });
    println!("survival: {times} kills; the next worker answered after {longest:?} at most; {}", siege.account());
    siege.end();
}

#[test]
fn a_worker_that_is_killed_fifty_times_is_not_missed() {
    killed(50);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_a_worker_that_is_killed_450_times_is_not_missed() {
    killed(450);
}

#[test]
fn a_worker_that_runs_out_of_memory_is_not_missed() {
    let siege = Siege::lay(LIGHT);
    siege.run(|siege, sandbox| {
        for _ in 0..3 {
            let before = Server::of(sandbox);
            // What it had before is not counted: it fails when it takes so much more.
            let group = MemoryGroup::new("fuse-oss-survival", 4 << 20);
            group.add(before.worker);
            wait_until("it has been killed for want of memory", || !alive(before.worker) || !siege.is_well());
            if !siege.is_well() {
                break;
            }
            assert!(group.kills() > 0, "something else has ended it");
            let after = before.wait_for_another(sandbox);
            assert_eq!(after.keeper, before.keeper);
            siege.wait_for_progress();
        }
    });
    println!("survival: out of memory; {}", siege.account());
    siege.end();
}

#[test]
fn a_program_that_takes_over_is_not_noticed() {
    let siege = Siege::lay(LIGHT);
    siege.run(|siege, sandbox| {
        for _ in 0..10 {
            let before = Server::of(sandbox);
            let begun = Instant::now();
            sandbox.run(["serve", "--replace"]).succeeded();
            println!("survival: replaced in {:?}", begun.elapsed());
            let after = before.wait_for_another(sandbox);
            assert_eq!(after.keeper, before.keeper, "whoever watches the process sees no difference");
            siege.wait_for_progress();
        }
    });
    println!("survival: replaced; {}", siege.account());
    siege.end();
}

#[test]
fn a_program_whose_worker_cannot_start_leaves_the_one_before_in_charge() {
    let siege = Siege::lay(LIGHT);
    siege.run(|siege, sandbox| {
        // All that is wrong with it is that its worker does not know one of the options that its keeper gives it.
        let bad = sandbox.path("fuse-oss");
        let mut program = fs::read(tests::programs::path("fuse-oss")).unwrap();
        let (name, other) = (b"link-fd", b"lonk-fd");
        let places: Vec<usize> =
            (0..program.len() - name.len()).filter(|at| program[*at..].starts_with(name)).collect();
        assert!(!places.is_empty(), "the option is called something else by now");
        places.into_iter().for_each(|at| program[at..at + other.len()].copy_from_slice(other));
        fs::write(&bad, program).unwrap();
        tests::tools::done(Command::new("chmod").arg("755").arg(&bad));
        tests::tools::done(Command::new(&bad).args(["keeper", "--understands"]));

        let before = Server::of(sandbox);
        let _guard = EndedIfBad(before.keeper, &bad);
        let mut replace = Command::new(&bad);
        let same = sandbox.command();
        same.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(replace.env(name, value)),
            None => drop(replace.env_remove(name)),
        });
        let ran = tests::mounts::Ran::from(replace.args(["serve", "--replace"]).stdin(Stdio::null()).output().unwrap());
        assert_ne!(ran.code, Some(0), "{ran:?}");
        let after = before.wait_for_another(sandbox);
        let program = fs::read_link(format!("/proc/{}/exe", after.worker)).unwrap();
        assert_eq!(program, tests::programs::path("fuse-oss"), "{ran:?}");
        assert_eq!(after.keeper, before.keeper);
        siege.wait_for_progress();
        // And can be replaced later.
        sandbox.run(["serve", "--replace"]).succeeded();
        siege.wait_for_progress();
    });
    println!("survival: replaced badly; {}", siege.account());
    siege.end();
}

/// Ends a keeper that is still the bad program when the test is over: what cleans up knows only the good one.
struct EndedIfBad<'a>(Pid, &'a Path);

impl Drop for EndedIfBad<'_> {
    fn drop(&mut self) {
        if fs::read_link(format!("/proc/{}/exe", self.0)).is_ok_and(|program| program == self.1) {
            server::kill(self.0);
        }
    }
}

#[test]
fn on_sigterm_a_mount_in_use_is_named_waited_for_and_detached() {
    let bucket = Bucket::new();
    bucket.put("object", tests::bucket::sample(1, 100_000));
    bucket.mount();
    let sandbox = &bucket.sandbox;
    let server = Server::of(sandbox);
    let mut inside = Command::new("sleep").arg("600").current_dir(sandbox.mnt()).stdin(Stdio::null()).spawn().unwrap();
    server::signal(server.keeper, Signal::SIGTERM);
    // It is waited for.
    std::thread::sleep(Duration::from_secs(2));
    let waited = alive(server.keeper) && sandbox.mounts().len() == 1;
    let begun = Instant::now();
    while alive(server.keeper) && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert!(waited, "a mount in use was not waited for: {}", sandbox.log());
    assert!(!alive(server.keeper) && !alive(server.worker), "{}", sandbox.log());
    assert!(sandbox.mounts().is_empty(), "{:?}", sandbox.mounts());
    let named = format!("process {} (sleep)", inside.id());
    assert!(sandbox.log().contains(&named), "{named} is missing in {}", sandbox.log());
}

#[test]
fn when_the_user_of_a_mount_goes_in_time_sigterm_ends_it_cleanly() {
    let bucket = Bucket::new();
    bucket.mount();
    let sandbox = &bucket.sandbox;
    let server = Server::of(sandbox);
    let mut inside = Command::new("sleep").arg("600").current_dir(sandbox.mnt()).stdin(Stdio::null()).spawn().unwrap();
    server::signal(server.keeper, Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    inside.kill().unwrap();
    inside.wait().unwrap();
    wait_until("the server has ended", || !alive(server.keeper));
    assert!(sandbox.mounts().is_empty());
    assert!(!sandbox.log().contains("detaching"), "{}", sandbox.log());
}
