//! Which instance runs next: the order of a job as a state machine, without clocks or processes.
//!
//! An instance is started when every task that its own task depends on has finished, and when one of the slots is free.
//! With [`Job::stop_on_failure`](crate::job::JobDescription) the first failure ends everything; without it the rest runs on, and only what
//! depends on a failed task, directly or not, is never started.

use std::collections::BTreeMap;

/// An instance, by the index of its task and its own number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceIndex {
    /// The task's index in the order it was given in.
    pub task: usize,
    /// The instance's number, from 0.
    pub instance: u32,
}

/// A task as the schedule sees it.
#[derive(Debug, Clone)]
pub struct TaskShape {
    /// How many instances it has.
    pub instances: u32,
    /// The indices of the tasks that must have finished before.
    pub after: Vec<usize>,
}

/// How an instance ended, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It succeeded.
    Finished,
    /// It failed, with all its retries.
    Failed,
    /// It was stopped before it could do either.
    Stopped,
}

#[derive(Debug, Clone)]
struct TaskProgress {
    shape: TaskShape,
    next: u32,
    running: u32,
    finished: u32,
    failed: bool,
}

impl TaskProgress {
    fn is_finished(&self) -> bool {
        self.finished == self.shape.instances
    }
}

/// The state of a whole job.
#[derive(Debug, Clone)]
pub struct Schedule {
    tasks: Vec<TaskProgress>,
    slots: u32,
    stop_on_failure: bool,
    stopping: bool,
}

impl Schedule {
    /// A job of which at most `slots` instances (at least one) run at once.
    pub fn new(tasks: Vec<TaskShape>, slots: u32, stop_on_failure: bool) -> Self {
        let tasks = tasks
            .into_iter()
            .map(|shape| TaskProgress { shape, next: 0, running: 0, finished: 0, failed: false })
            .collect();
        Self { tasks, slots: slots.max(1), stop_on_failure, stopping: false }
    }

    /// The next instance to start now, if any. It counts as running from here on.
    pub fn start_next(&mut self) -> Option<InstanceIndex> {
        if self.stopping || self.running() >= self.slots {
            return None;
        }
        let task = (0..self.tasks.len()).find(|index| self.is_ready(*index))?;
        let progress = &mut self.tasks[task];
        let instance = progress.next;
        progress.next += 1;
        progress.running += 1;
        Some(InstanceIndex { task, instance })
    }

    fn is_ready(&self, task: usize) -> bool {
        let progress = &self.tasks[task];
        progress.next < progress.shape.instances
            && progress.shape.after.iter().all(|before| self.tasks[*before].is_finished())
    }

    /// Takes note of how an instance ended.
    pub fn ended(&mut self, index: InstanceIndex, how: Ended) {
        let progress = &mut self.tasks[index.task];
        progress.running -= 1;
        match how {
            Ended::Finished => progress.finished += 1,
            Ended::Failed => {
                progress.failed = true;
                self.stopping |= self.stop_on_failure;
            }
            Ended::Stopped => self.stopping = true,
        }
    }

    /// Starts nothing more.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether what is running ought to be stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// How many instances are running.
    pub fn running(&self) -> u32 {
        self.tasks.iter().map(|task| task.running).sum()
    }

    /// The instances that were never started. Meaningful once nothing runs and nothing can start.
    pub fn never_started(&self) -> BTreeMap<usize, std::ops::Range<u32>> {
        let left = self.tasks.iter().enumerate().filter(|(_, task)| task.next < task.shape.instances);
        left.map(|(index, task)| (index, task.next..task.shape.instances)).collect()
    }

    /// Whether all instances of `task` have succeeded.
    pub fn is_finished(&self, task: usize) -> bool {
        self.tasks[task].is_finished()
    }

    /// Whether an instance of `task` has failed for good.
    pub fn has_failed(&self, task: usize) -> bool {
        self.tasks[task].failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(instances: u32, after: &[usize]) -> TaskShape {
        TaskShape { instances, after: after.to_vec() }
    }

    #[test]
    fn a_chain_runs_in_order_and_in_parallel_within() {
        let mut schedule = Schedule::new(vec![shape(1, &[]), shape(3, &[0]), shape(1, &[1])], 2, true);
        let split = schedule.start_next().unwrap();
        assert_eq!(schedule.start_next(), None, "count waits for split");
        schedule.ended(split, Ended::Finished);
        let first = schedule.start_next().unwrap();
        schedule.start_next().unwrap();
        assert_eq!(schedule.start_next(), None, "two slots");
        schedule.ended(first, Ended::Finished);
        assert_eq!(schedule.start_next(), Some(InstanceIndex { task: 1, instance: 2 }));
    }

    #[test]
    fn without_stop_on_failure_only_dependants_are_left_out() {
        let mut schedule = Schedule::new(vec![shape(1, &[]), shape(1, &[0]), shape(1, &[])], 8, false);
        let failing = schedule.start_next().unwrap();
        schedule.ended(failing, Ended::Failed);
        assert_eq!(schedule.start_next(), Some(InstanceIndex { task: 2, instance: 0 }));
        assert_eq!(schedule.start_next(), None);
        assert_eq!(schedule.never_started().into_keys().collect::<Vec<_>>(), [1]);
    }

    proptest! {
        /// Whatever fails: nothing starts before its dependencies, never more than the slots, everything once, and the
        /// run comes to an end.
        #[test]
        fn every_run_ends_and_keeps_the_order(
            tasks in prop::collection::vec((1u32..4, prop::collection::vec(any::<prop::sample::Index>(), 0..3)), 1..7),
            slots in 1u32..4,
            stop in any::<bool>(),
            picks in prop::collection::vec((any::<prop::sample::Index>(), 0u8..10), 64),
        ) {
            let shapes: Vec<_> = tasks.iter().enumerate().map(|(index, (instances, after))| TaskShape {
                instances: *instances,
                after: if index == 0 { vec![] } else { after.iter().map(|pick| pick.index(index)).collect() },
            }).collect();
            let mut schedule = Schedule::new(shapes.clone(), slots, stop);
            let (mut running, mut done, mut seen) = (Vec::new(), BTreeMap::<usize, u32>::new(), std::collections::HashSet::new());
            let mut picks = picks.into_iter();
            let mut failures = 0;
            loop {
                while let Some(index) = schedule.start_next() {
                    prop_assert!(seen.insert(index));
                    for before in &shapes[index.task].after {
                        prop_assert_eq!(done.get(before).copied(), Some(shapes[*before].instances));
                    }
                    running.push(index);
                    prop_assert!(running.len() <= slots as usize);
                }
                if running.is_empty() { break; }
                let (pick, fate) = picks.next().unwrap();
                let index = running.swap_remove(pick.index(running.len()));
                if fate == 0 {
                    failures += 1;
                    schedule.ended(index, Ended::Failed);
                } else {
                    *done.entry(index.task).or_default() += 1;
                    schedule.ended(index, Ended::Finished);
                }
            }
            prop_assert_eq!(schedule.never_started().is_empty() && failures == 0, (0..shapes.len()).all(|t| schedule.is_finished(t)));
        }
    }
}
