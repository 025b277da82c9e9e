//! The order of a job's tasks.

use std::collections::{BTreeSet, HashMap};

use crate::job::draft::{DraftTask, Edge};
use crate::job::finding::{Findings, Place, nearest, quoted};

/// The tasks in an order in which each comes after those it waits for, and what each waits for.
///
/// Tasks that could swap places stay in the author's order. `None` when an error was reported: a task that is not there,
/// one that waits for itself, or a circle, which is named from one end to the other.
pub(super) fn order(tasks: &[DraftTask], edges: &[Edge], place: &Place, findings: &mut Findings) -> Option<Order> {
    let numbers: HashMap<&str, usize> =
        tasks.iter().enumerate().map(|(number, task)| (task.name.as_str(), number)).collect();
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); tasks.len()];
    let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); tasks.len()];
    let mut good = true;
    for edge in edges {
        let mut number = |name: &str| {
            let number = numbers.get(name).copied();
            if number.is_none() && !findings.is_full() {
                let cause = format!("there is no task {}", quoted(name));
                match nearest(name, tasks.iter().map(|task| task.name.as_str())) {
                    Some(near) => findings.error_with(&edge.place, cause, format!("did you mean {}?", quoted(near))),
                    None => findings.error_with(&edge.place, cause, "name tasks of this job"),
                }
            }
            number
        };
        match (number(&edge.before), number(&edge.after)) {
            (Some(first), Some(second)) if first == second => {
                let cause = format!("the task {} waits for itself", quoted(&edge.after));
                findings.error_with(&edge.place, cause, "remove the dependency");
                good = false;
            }
            // The same dependency twice is one: `bcs` writes it so for `deps=a->b;a->b`.
            (Some(first), Some(second)) => {
                after[first].insert(second);
                before[second].insert(first);
            }
            _ => good = false,
        }
    }
    if !good {
        return None;
    }

    let mut waiting: Vec<usize> = before.iter().map(BTreeSet::len).collect();
    let mut ready: BTreeSet<usize> = (0..tasks.len()).filter(|task| waiting[*task] == 0).collect();
    let mut sequence = Vec::with_capacity(tasks.len());
    while let Some(task) = ready.pop_first() {
        sequence.push(task);
        for &next in &after[task] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.insert(next);
            }
        }
    }
    if sequence.len() < tasks.len() {
        let circle = circle(&before, &waiting);
        let mut names: Vec<_> = circle.iter().take(20).map(|task| tasks[*task].name.as_str()).collect();
        if circle.len() > names.len() {
            names.push("...");
        }
        names.extend(names.first().copied());
        findings.error_with(
            place,
            format!("tasks wait for each other in a circle: {}", names.join(" → ")),
            "remove one of these dependencies",
        );
        return None;
    }
    Some(Order { sequence, before })
}

/// The result of ordering: task numbers are places in the author's list.
pub(super) struct Order {
    /// All tasks, each after those it waits for.
    pub sequence: Vec<usize>,
    /// For each task, those it waits for.
    pub before: Vec<BTreeSet<usize>>,
}

/// A circle among the tasks that never became ready, in running order. Every one of them waits for another one of them, so
/// walking backwards must come to a task a second time.
fn circle(before: &[BTreeSet<usize>], waiting: &[usize]) -> Vec<usize> {
    let Some(mut task) = waiting.iter().position(|count| *count > 0) else { return Vec::new() };
    let mut walked: Vec<usize> = Vec::new();
    let mut seen = vec![None; before.len()];
    loop {
        if let Some(start) = seen[task] {
            let mut circle = walked.split_off(start);
            circle.reverse();
            // Begin with the one that was written first, so that the message does not depend on the walk.
            let first = circle.iter().enumerate().min_by_key(|(_, task)| **task).map_or(0, |(index, _)| index);
            circle.rotate_left(first);
            return circle;
        }
        seen[task] = Some(walked.len());
        walked.push(task);
        match before[task].iter().find(|earlier| waiting[**earlier] > 0) {
            Some(earlier) => task = *earlier,
            None => return Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tasks(names: &[&str]) -> Vec<DraftTask> {
        names.iter().map(|name| DraftTask { name: (*name).to_owned(), ..DraftTask::default() }).collect()
    }

    fn edges(pairs: &[(&str, &str)]) -> Vec<Edge> {
        pairs
            .iter()
            .map(|(before, after)| Edge {
                place: Place::root().key("Dependencies").key(before),
                before: (*before).to_owned(),
                after: (*after).to_owned(),
            })
            .collect()
    }

    fn ordered(names: &[&str], pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let (tasks, edges) = (tasks(names), edges(pairs));
        let mut findings = Findings::default();
        let order = order(&tasks, &edges, &Place::root().key("Dependencies"), &mut findings);
        match order {
            Some(order) => Ok(order.sequence.iter().map(|task| tasks[*task].name.clone()).collect()),
            None => Err(findings.finish().unwrap_err().to_string()),
        }
    }

    #[test]
    fn tasks_come_after_those_they_wait_for_and_else_in_the_authors_order() {
        assert_eq!(ordered(&["b", "a"], &[]).unwrap(), ["b", "a"]);
        assert_eq!(
            ordered(
                &["merge", "count2", "count1", "split"],
                &[
                    ("split", "count1"),
                    ("split", "count2"),
                    ("count1", "merge"),
                    ("count2", "merge"),
                    ("count2", "merge"),
                ]
            )
            .unwrap(),
            ["split", "count2", "count1", "merge"]
        );
    }

    #[test]
    fn impossible_orders_are_refused_and_named() {
        for (names, pairs, message) in [
            (
                &["a", "b", "c", "d"] as &[&str],
                &[("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")] as &[(&str, &str)],
                "Dependencies: tasks wait for each other in a circle: b → c → b; remove one of these dependencies",
            ),
            (&["a"], &[("a", "a")], "Dependencies.a: the task \"a\" waits for itself; remove the dependency"),
            (
                &["split", "count"],
                &[("split", "cuont")],
                "Dependencies.split: there is no task \"cuont\"; did you mean \"count\"?",
            ),
            (&["a"], &[("zzz", "a")], "Dependencies.zzz: there is no task \"zzz\"; name tasks of this job"),
        ] {
            assert_eq!(ordered(names, pairs).unwrap_err(), message);
        }
    }

    #[test]
    fn a_long_circle_is_cut_short() {
        let names: Vec<String> = (0..5000).map(|number| format!("t{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pairs: Vec<_> = (0..5000).map(|number| (names[number], names[(number + 1) % 5000])).collect();
        let message = ordered(&names, &pairs).unwrap_err();
        assert!(message.contains("t0 → t1 → ") && message.contains("t19 → ... → t0;"), "{message}");
    }

    proptest! {
        #[test]
        fn any_graph_is_ordered_or_has_a_circle(pairs in prop::collection::vec((0usize..7, 0usize..7), 0..16)) {
            let names = ["a", "b", "c", "d", "e", "f", "g"];
            let pairs: Vec<_> =
                pairs.iter().filter(|(a, b)| a != b).map(|(a, b)| (names[*a], names[*b])).collect();
            match ordered(&names, &pairs) {
                Ok(sequence) => {
                    let at = |name: &str| sequence.iter().position(|other| other == name).unwrap();
                    prop_assert_eq!(sequence.len(), names.len());
                    for (before, after) in pairs {
                        prop_assert!(at(before) < at(after));
                    }
                }
                Err(message) => {
                    let circle = message.split("circle: ").nth(1).unwrap().split(';').next().unwrap();
                    let circle: Vec<&str> = circle.split(" → ").collect();
                    prop_assert!(circle.len() > 2 && circle.first() == circle.last());
                    for step in circle.windows(2) {
                        prop_assert!(pairs.contains(&(step[0], step[1])), "{}", message);
                    }
                }
            }
        }
    }
}
