//! What became of a machine that has switched itself off: what it said on its console, and what `guest/epilogue.sh` found out at its end.

use serde_json::Value;

/// A boot that is over.
#[derive(Debug)]
pub struct Boot {
    /// Kernel, journal, and what programs wrote to the console.
    pub console: String,
    /// What was written to the second serial line.
    pub report: String,
    /// The node's own story, as `batch-agent status --json` tells it.
    pub story: Value,
}

impl Boot {
    /// Of what a machine has written to its two serial lines.
    ///
    /// # Panics
    /// When the report is not complete: the machine was switched off by somebody else.
    pub fn of(console: String, report: String) -> Self {
        let end = section(&report, "end");
        assert!(end.is_some(), "the machine's report has no end:\n{report}\nand its console says:\n{console}");
        let text = section(&report, "story").map_or("", |(text, _)| text);
        let story = serde_json::from_str(text).unwrap_or_else(|error| panic!("no story ({error}) in:\n{report}"));
        Self { console, report, story }
    }

    /// What a command of the report has printed, which has to have ended well.
    ///
    /// # Panics
    /// When it has not, or there is no such section, as all of these do when they do not find what they are asked for.
    #[track_caller]
    pub fn said(&self, name: &str) -> &str {
        let (text, status) = self.section(name);
        assert_eq!(status, "0", "{name} ended with {status}: {text}");
        text
    }

    /// What a command of the report has printed, and its exit status.
    #[track_caller]
    pub fn section(&self, name: &str) -> (&str, &str) {
        section(&self.report, name).unwrap_or_else(|| panic!("no section {name} in:\n{}", self.report))
    }

    /// The state of a phase.
    #[track_caller]
    pub fn state(&self, phase: &str) -> &str {
        self.step(phase)["state"].as_str().unwrap_or_default()
    }

    /// A phase, as the story has it.
    #[track_caller]
    pub fn step(&self, phase: &str) -> &Value {
        let mut steps = self.story["steps"].as_array().into_iter().flatten();
        steps.find(|step| step["phase"] == phase).unwrap_or_else(|| panic!("no phase {phase} in {:#}", self.story))
    }

    /// The agent failed in this phase with a message that has all of `words`, with this exit status, did nothing after it, and was not
    /// started again; the service and all that waits for the node have failed with it. The message.
    #[track_caller]
    pub fn broke(&self, phase: &str, status: u8, words: &[&str]) -> &str {
        let states = (self.state(phase), self.state("bootstrap"), self.state("task"));
        assert_eq!(states, ("failed", "waiting", "waiting"), "{}\n{}", self.report, self.console);
        let message = self.story["trouble"]["message"].as_str().unwrap_or_default();
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
        let (said, exit) = self.section("wait");
        assert!(exit == "1" && said.contains(message), "{exit}: {said}");
        assert_eq!(self.section("targets").0, "inactive\ninactive\n", "what waits for the node does not go on");
        let service = self.said("service");
        let expected = format!("ExecMainStatus={status}");
        assert!(service.lines().any(|line| line == expected), "{service}");
        assert!(service.lines().any(|line| line == "NRestarts=0"), "{service}");
        message
    }

    /// The node was prepared and its task has ended well.
    #[track_caller]
    pub fn finished(&self) {
        let (outcome, trouble) = (&self.story["outcome"], &self.story["trouble"]);
        assert_eq!(
            (&outcome["state"], trouble),
            (&"Finished".into(), &Value::Null),
            "{}\n{}",
            self.report,
            self.console
        );
        assert_eq!(self.section("wait").1, "0", "{}", self.report);
        assert_eq!(self.state("report"), "done", "{}", self.report);
    }
}

fn section<'a>(report: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let begin = format!("== {name}\n");
    let at = if report.starts_with(&begin) { 0 } else { report.find(&format!("\n{begin}"))? + 1 };
    let (text, rest) = report[at + begin.len()..].split_once("== exit status ")?;
    Some((text, rest.lines().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
== wait
batch-agent: disks failed: there is no disk
== exit status 1
== service
ExecMainStatus=71
NRestarts=0
== exit status 0
== targets
inactive
inactive
== exit status 3
== story
{\"trouble\": {\"message\": \"there is no disk\"}, \"outcome\": null, \"steps\": [{\"phase\": \"disks\", \"state\": \"failed\"},
{\"phase\": \"bootstrap\", \"state\": \"waiting\"}, {\"phase\": \"task\", \"state\": \"waiting\"}]}
== exit status 0
== end
== exit status 0
";

    #[test]
    fn a_node_that_broke_says_where_and_why() {
        let boot = Boot::of(String::new(), REPORT.to_owned());
        assert_eq!(boot.broke("disks", 71, &["no disk"]), "there is no disk");
        assert_eq!(boot.section("targets"), ("inactive\ninactive\n", "3"));
        assert!(std::panic::catch_unwind(|| boot.broke("disks", 78, &[])).is_err(), "another exit status");
        assert!(std::panic::catch_unwind(|| boot.finished()).is_err());
        assert!(std::panic::catch_unwind(|| boot.said("targets")).is_err());
    }

    #[test]
    fn a_report_without_an_end_is_none() {
        let cut = REPORT[..REPORT.len() - 20].to_owned();
        assert!(std::panic::catch_unwind(|| Boot::of(String::new(), cut)).is_err());
    }
}
