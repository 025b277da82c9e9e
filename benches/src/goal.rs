//! What a case must reach, and whether it has. Pure.
//!
//! Ratios are to a *yardstick*: the lower of the limits that bound the case, measured in the same run. What is asked beside that is
//! a multiple of the best peer, an absolute figure, or a number of requests. A goal that is missed is said in words and fails
//! nothing.

use serde::Serialize;

use crate::figures::{Unit, float};

/// One demand on our own mount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// This share of the yardstick.
    Share(f64),
    /// This many times as good as the best peer.
    Peers(f64),
    /// At most the processor time per GiB of the peer that needs least.
    PeersCpu,
    /// This figure or a better one, at full scale.
    Figure(f64),
    /// At most this much more than the yardstick, in the case's unit.
    Above(f64),
    /// At most so many requests of any kind.
    Requests(u64),
    /// At most so many requests for objects; listings are free.
    ObjectRequests(u64),
    /// At most so many bytes fetched per operation.
    FetchedPerOperation(u64),
}

/// What there is to judge by. Anything may be missing, because it was not measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    /// Our median.
    pub figure: Option<f64>,
    /// The yardstick's.
    pub yardstick: Option<f64>,
    /// The best peer's.
    pub best_peer: Option<f64>,
    /// Our processor seconds per GiB.
    pub cpu: Option<f64>,
    /// The least of any peer.
    pub least_cpu: Option<f64>,
    /// The most of any of our samples.
    pub requests: Option<f64>,
    /// The same of requests for objects.
    pub object_requests: Option<f64>,
    /// Bytes.
    pub fetched_per_operation: Option<f64>,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What was demanded.
    pub goal: String,
    /// What was found; "not measured" when there was nothing to compare.
    pub found: String,
    /// Absent when there was nothing to compare.
    pub reached: Option<bool>,
}

impl Goal {
    /// Compares. `yardstick` is the name of what ratios refer to.
    pub fn judge(self, unit: Unit, yardstick: &str, evidence: &Evidence) -> Verdict {
        let lower = |value: f64, most: u64, show: &dyn Fn(f64) -> String| (show(value), value <= float(most));
        let count = |value: f64| format!("{value:.0}");
        let (goal, found) = match self {
            Self::Share(least) => {
                let ratio = evidence.figure.zip(evidence.yardstick).map(|(figure, of)| unit.share(figure, of));
                (
                    format!("at least {least:.2} of {yardstick}"),
                    ratio.map(|ratio| (format!("{ratio:.2}"), at_least(ratio, least))),
                )
            }
            Self::Peers(times) => {
                let ratio = evidence.figure.zip(evidence.best_peer).map(|(figure, of)| unit.share(figure, of));
                let goal = if times > 1.0 {
                    format!("at least {times} x the best peer")
                } else {
                    "ahead of every peer".to_owned()
                };
                let digits = if times.fract() > 0.0 { 2 } else { 1 };
                (goal, ratio.map(|ratio| (format!("{ratio:.digits$} x"), at_least(ratio, times))))
            }
            Self::PeersCpu => (
                "no more CPU per GiB than any peer".to_owned(),
                evidence.cpu.zip(evidence.least_cpu).map(|(cpu, least)| {
                    (format!("{cpu:.2} to {least:.2} s"), at_least(Unit::Seconds.share(cpu, least), 1.0))
                }),
            ),
            Self::Figure(bound) => {
                let good = |figure: f64| at_least(unit.share(figure, bound), 1.0);
                let word = if unit.share(1.0, 2.0) < 1.0 { "at least" } else { "at most" };
                (
                    format!("{word} {} {}", unit.show(bound), unit.name()),
                    evidence.figure.map(|figure| (format!("{} {}", unit.show(figure), unit.name()), good(figure))),
                )
            }
            Self::Above(most) => {
                let more = evidence.figure.zip(evidence.yardstick).map(|(figure, of)| figure - of);
                let show = |more: f64| {
                    format!("{}{} {}", if more < 0.0 { "-" } else { "" }, unit.show(more.abs()), unit.name())
                };
                (
                    format!("at most {} {} more than {yardstick}", unit.show(most), unit.name()),
                    more.map(|more| (show(more), more <= most)),
                )
            }
            Self::Requests(most) => (
                if most == 0 { "no request".to_owned() } else { format!("at most {most} requests") },
                evidence.requests.map(|requests| lower(requests, most, &count)),
            ),
            Self::ObjectRequests(most) => (
                if most == 0 {
                    "no object asked for".to_owned()
                } else {
                    format!("at most {most} requests for objects")
                },
                evidence.object_requests.map(|requests| lower(requests, most, &count)),
            ),
            Self::FetchedPerOperation(most) => (
                format!("at most {} KiB fetched per read", most >> 10),
                evidence
                    .fetched_per_operation
                    .map(|bytes| lower(bytes, most, &|bytes| format!("{:.0} KiB", bytes / 1024.0))),
            ),
        };
        match found {
            Some((found, reached)) => Verdict { goal, found, reached: Some(reached) },
            None => Verdict { goal, found: "not measured".to_owned(), reached: None },
        }
    }
}

/// As it is printed: 0.80 of 0.80 is reached, whatever the third digit.
fn at_least(ratio: f64, least: f64) -> bool {
    ratio >= least - 0.005
}

impl Verdict {
    /// In words.
    pub fn outcome(&self) -> &'static str {
        match self.reached {
            Some(true) => "reached",
            Some(false) => "SHORT",
            None => "not judged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVIDENCE: Evidence = Evidence {
        figure: Some(2.0),
        yardstick: Some(4.0),
        best_peer: Some(0.5),
        cpu: Some(0.5),
        least_cpu: Some(0.4),
        requests: Some(21.0),
        object_requests: Some(0.0),
        fetched_per_operation: Some(4096.0),
    };

    fn judge(goal: Goal, unit: Unit) -> (String, Option<bool>) {
        let verdict = goal.judge(unit, "the lower of a and b", &EVIDENCE);
        (format!("{}: {}, {}", verdict.goal, verdict.found, verdict.outcome()), verdict.reached)
    }

    #[test]
    fn goals_are_judged_and_said() {
        for (goal, unit, said) in [
            (Goal::Share(0.5), Unit::GibPerSecond, "at least 0.50 of the lower of a and b: 0.50, reached"),
            (Goal::Share(0.8), Unit::GibPerSecond, "at least 0.80 of the lower of a and b: 0.50, SHORT"),
            (Goal::Share(0.8), Unit::Seconds, "at least 0.80 of the lower of a and b: 2.00, reached"),
            (Goal::Peers(8.0), Unit::PerSecond, "at least 8 x the best peer: 4.0 x, SHORT"),
            (Goal::Peers(1.0), Unit::PerSecond, "ahead of every peer: 4.0 x, reached"),
            (Goal::Peers(1.2), Unit::PerSecond, "at least 1.2 x the best peer: 4.00 x, reached"),
            (Goal::PeersCpu, Unit::GibPerSecond, "no more CPU per GiB than any peer: 0.50 to 0.40 s, SHORT"),
            (Goal::Figure(1.3), Unit::Seconds, "at most 1.30 s: 2.00 s, SHORT"),
            (Goal::Figure(1.3), Unit::GibPerSecond, "at least 1.30 GiB/s: 2.00 GiB/s, reached"),
            (Goal::Above(0.3), Unit::Seconds, "at most 0.30 s more than the lower of a and b: -2.00 s, reached"),
            (Goal::Requests(20), Unit::Seconds, "at most 20 requests: 21, SHORT"),
            (Goal::ObjectRequests(0), Unit::Seconds, "no object asked for: 0, reached"),
            (Goal::FetchedPerOperation(4096), Unit::PerSecond, "at most 4 KiB fetched per read: 4 KiB, reached"),
        ] {
            assert_eq!(judge(goal, unit).0, said);
        }
        let nothing = Goal::Peers(2.0).judge(Unit::Seconds, "", &Evidence::default());
        assert_eq!((nothing.reached, nothing.outcome()), (None, "not judged"));
    }

    proptest! {
        /// Being better never turns a goal that was reached into one that is not.
        #[test]
        fn better_is_never_worse(figure in 0.01_f64..100.0, gain in 1.0_f64..10.0, least in 0.1_f64..3.0, seconds: bool) {
            let unit = if seconds { Unit::Seconds } else { Unit::PerSecond };
            let better = if seconds { figure / gain } else { figure * gain };
            // So much more at most is asked of a time only.
            let above = seconds.then_some(Goal::Above(least));
            for goal in [Goal::Share(least), Goal::Peers(least), Goal::Figure(least)].into_iter().chain(above) {
                let reached = |figure| goal.judge(unit, "", &Evidence { figure: Some(figure), ..EVIDENCE }).reached.unwrap();
                prop_assert!(!reached(figure) || reached(better));
            }
        }
    }
}
