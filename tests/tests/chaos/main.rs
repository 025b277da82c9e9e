//! Chaos: agents are killed at random moments while they run small tasks of every kind, and started again; and every task comes to
//! exactly one end, the right one, with every byte of its logs and outputs in storage and nothing of it left on the machine.
//!
//! A round is one task on one node: agents are started for it and killed (SIGKILL) one after the other, some after a random time,
//! some right after they have said what they do now, and the last one is left to bring it to its end. Several nodes do this side by side, each
//! with one task after the other, so that what an agent leaves meets the next task. Times and kinds come from a seed, which is printed;
//! `CHAOS_SEED` takes it. What the machine does meanwhile is its own, so a seed makes a failure likely again and not certain.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

mod killing;
mod round;
mod work;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tests::double::{Double, DoubleConfig};

use killing::Kills;
use round::{ChaosNode, Round};
use work::Kind;

/// How many nodes work side by side: most of the time they wait for their tasks.
const NODES: usize = 10;

/// Has no task begun any more when it is dropped: a round has panicked, and the test has failed.
struct Failing<'a> {
    next: &'a AtomicUsize,
    tasks: usize,
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.next.store(self.tasks, Ordering::Relaxed);
    }
}

/// Runs `tasks` tasks, of all kinds in turn, and kills their agents.
fn chaos(tasks: usize) {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("chaos: seed {seed} (set CHAOS_SEED to use it again)");
    let began = Instant::now();
    let double = Double::start(DoubleConfig::default());
    let next = AtomicUsize::new(0);
    let kills = std::thread::scope(|scope| {
        let works = |number: usize| {
            let (double, next) = (&double, &next);
            move || {
                let node = ChaosNode::new(double, number);
                let mut kills = Kills::default();
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= tasks {
                        node.assert_nothing_left();
                        return kills;
                    }
                    let round = Round::new(&node, task, Kind::ALL[task % Kind::ALL.len()], seed);
                    let guard = Failing { next, tasks };
                    kills.add(round.run());
                    std::mem::forget(guard);
                }
            }
        };
        let threads: Vec<_> = (0..NODES.min(tasks)).map(|number| scope.spawn(works(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Kills::default(), |mut all, kills| {
            all.add(kills);
            all
        })
    });
    println!("chaos: {tasks} tasks in {:.0?}: {kills}", began.elapsed());
    // A test in which nobody was killed would prove nothing.
    assert!(kills.agents() > tasks / 2 && kills.while_it_ran() > tasks / 6, "only {kills}");
}

#[test]
fn sixty_tasks_whose_agents_are_killed() {
    chaos(60);
}

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_a_thousand_tasks_whose_agents_are_killed() {
    chaos(1000);
}
