//! What is wrong with a job description: every finding at once, each with its place.
//!
//! A person who has to fix a description wants the whole list and not the first item of it. So reading goes on after an
//! error wherever the rest still makes sense, and collects [`Finding`]s: errors, which end as [`Problems`], and warnings.
//! Descriptions are hostile input: what they say is escaped and cut short before it gets into a message, and the number
//! of findings kept is bounded.

use std::fmt;

/// How many errors, and how many warnings, are kept. The rest is counted.
const KEPT: usize = 100;

/// How many characters of a foreign text get into a message.
const SHOWN: usize = 100;

/// What findings are about, unless it is said.
const JOB: &str = "the job description";

/// Where in the description something is, as a person would write it: `DAG.Tasks.count.Timeout`.
///
/// Keys that are not plain words are quoted and escaped, so a place is always one line: `InputMapping["oss://b/in/"]`.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Place(String);

impl Place {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The value of `key` in the object at this place.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let plain = !key.is_empty()
            && key.len() <= SHOWN
            && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$'));
        Self(match (plain, self.0.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.0),
            (false, _) => format!("{}[{}]", self.0, quoted(key)),
        })
    }

    /// The item at `index`, from 0, of the list at this place.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The place that is called `path` in the document at this place.
    #[must_use]
    pub fn inner(&self, path: &str) -> Self {
        match (self.0.is_empty(), path.is_empty(), path.starts_with('[')) {
            (_, true, _) => self.clone(),
            (true, false, _) => Self(path.to_owned()),
            (false, false, true) => Self(format!("{}{path}", self.0)),
            (false, false, false) => Self(format!("{}.{path}", self.0)),
        }
    }

    /// A place that is written down already, such as one that comes from a parser.
    pub fn written(text: &str) -> Self {
        Self(visible(text))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    /// Where it was written.
    pub place: Place,
    /// What was written.
    pub value: T,
}

impl<T> At<T> {
    /// Ties a value to its place.
    pub fn new(place: Place, value: T) -> Self {
        Self { place, value }
    }
}

/// One thing to say about a description: where, what is wrong, and what to do about it.
///
/// `Display` is one line without control characters.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The place, such as `DAG.Tasks.count.Timeout`; empty for the document as a whole.
    pub path: String,
    /// What is wrong.
    pub cause: String,
    /// What to do about it, where that is not plain from the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.cause)?;
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// A [`Finding`] that does not keep the job from running.
pub type Warning = Finding;

/// Everything that is wrong with a description that cannot run. Never empty.
///
/// `Display` is one line for one problem, and a headed list for several.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problems {
    /// What the problems are problems of, as a sentence begins with it.
    #[serde(skip)]
    subject: &'static str,
    findings: Vec<Finding>,
    /// How many more there were than are kept.
    more: usize,
    /// What was odd besides, because it may be the reason: a misspelt key is a warning, and the missing one an error.
    warnings: Vec<Warning>,
}

impl Problems {
    /// A description that could not even be looked into.
    pub(crate) fn single(place: &Place, cause: impl Into<String>, remedy: &str) -> Self {
        let mut findings = Findings::default();
        findings.error_with(place, cause, remedy);
        Self { subject: JOB, findings: findings.errors, more: 0, warnings: Vec::new() }
    }

    /// The problems in the order of the document; at most 100 of them.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What is not wrong but odd, and may explain a problem.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// How many problems there are altogether.
    pub fn count(&self) -> usize {
        self.findings.len() + self.more
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = match (self.findings.as_slice(), self.warnings.as_slice()) {
            ([only], []) if self.more == 0 => return only.fmt(f),
            ([_], _) if self.more == 0 => "a problem".to_owned(),
            _ => format!("{} problems", self.count()),
        };
        write!(f, "{} {verb} {count}:", self.subject, verb = if self.subject.ends_with('s') { "have" } else { "has" })?;
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        for warning in &self.warnings {
            write!(f, "\n  warning: {warning}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Findings on their way to becoming a result.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    errors: Vec<Finding>,
    more_errors: usize,
    warnings: Vec<Warning>,
}

impl Findings {
    /// An error whose cause says all there is to say.
    pub fn error(&mut self, place: &Place, cause: impl Into<String>) {
        self.push_error(place, cause.into(), None);
    }

    /// An error and what to do about it.
    pub fn error_with(&mut self, place: &Place, cause: impl Into<String>, remedy: impl Into<String>) {
        self.push_error(place, cause.into(), Some(remedy.into()));
    }

    fn push_error(&mut self, place: &Place, cause: String, remedy: Option<String>) {
        if self.errors.len() < KEPT {
            self.errors.push(finding(place, cause, remedy));
        } else {
            self.more_errors += 1;
        }
    }

    /// A warning and what to do about it.
    pub fn warn(&mut self, place: &Place, cause: impl Into<String>, remedy: impl Into<String>) {
        if self.warnings.len() < KEPT {
            self.warnings.push(finding(place, cause.into(), Some(remedy.into())));
        }
    }

    /// Whether more errors would only be counted, so that costly advice need not be worked out.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= KEPT || self.warnings.len() >= KEPT
    }

    /// How many errors there are so far.
    pub fn error_count(&self) -> usize {
        self.errors.len() + self.more_errors
    }

    /// The warnings, when there were no errors.
    pub fn finish(self) -> Result<Vec<Warning>, Problems> {
        if self.errors.is_empty() {
            Ok(self.warnings)
        } else {
            Err(Problems { subject: JOB, findings: self.errors, more: self.more_errors, warnings: self.warnings })
        }
    }

    /// [`Findings::finish`] for something other than a job description.
    pub fn finish_about(self, subject: &'static str) -> Result<Vec<Warning>, Problems> {
        self.finish().map_err(|problems| Problems { subject, ..problems })
    }

    /// Takes over everything that was found about a document inside of this one, at `place`.
    pub fn adopt(&mut self, place: &Place, errors: Vec<Finding>, warnings: Vec<Warning>) {
        for error in errors {
            self.push_error(&place.inner(&error.path), error.cause, error.remedy);
        }
        let room = KEPT.saturating_sub(self.warnings.len());
        for warning in warnings.into_iter().take(room) {
            self.warnings.push(finding(&place.inner(&warning.path), warning.cause, warning.remedy));
        }
    }

    /// Brings the findings into the order of the document and lets each say where it is. `locate` tells, for the path of a
    /// finding, what to sort by and the words to add.
    pub fn locate<K: Ord>(&mut self, locate: impl Fn(&str) -> (K, String)) {
        for list in [&mut self.errors, &mut self.warnings] {
            list.sort_by_cached_key(|finding| locate(&finding.path).0);
            for finding in list {
                finding.cause.push_str(&visible(&locate(&finding.path).1));
            }
        }
    }
}

fn finding(place: &Place, cause: String, remedy: Option<String>) -> Finding {
    Finding { path: place.to_string(), cause: visible(&cause), remedy: remedy.map(|text| visible(&text)) }
}

/// The text with its control characters, and the invisible ones that turn writing around, escaped: one line that is what
/// it looks like.
pub(crate) fn visible(text: &str) -> String {
    if !text.chars().any(is_deceptive) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 16), |mut line, c| {
        if is_deceptive(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// Whether a terminal or a log could be fooled by the character: control characters, line separators, zero-width and
/// direction marks (the "Trojan Source" ones).
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A foreign text for a message: in quotes, escaped, and cut when it is long.
pub(crate) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    visible(&format!("{cut:?}"))
}

/// The one of `known` that somebody who wrote `word` most probably meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    let likeness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        // Short words that differ in one slip are alike, whatever the measure for longer ones says.
        let slip = candidate.len() > 2 && strsim::osa_distance(&lower, &candidate) <= 1;
        if slip { 1.0 } else { strsim::jaro_winkler(&lower, &candidate) }
    };
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= 64)
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_like_paths_and_quote_what_is_odd() {
        let task = Place::root().key("DAG").key("Tasks").key("count");
        assert_eq!(task.key("Timeout").to_string(), "DAG.Tasks.count.Timeout");
        assert_eq!(
            task.key("InputMapping").key("oss://b/in/").to_string(),
            "DAG.Tasks.count.InputMapping[\"oss://b/in/\"]"
        );
        assert_eq!(Place::root().key("Entries").index(2).key("Source").to_string(), "Entries[2].Source");
        assert_eq!(Place::root().key("a\nb").to_string(), "[\"a\\nb\"]");
        assert_eq!(Place::root().key("").to_string(), "[\"\"]");
    }

    #[test]
    fn messages_are_one_line_and_bounded() {
        let mut findings = Findings::default();
        for _ in 0..250 {
            findings.error_with(&Place::root().key("x"), "bad\r\nline \u{202e}", "do\tthis");
        }
        assert!(findings.is_full());
        assert_eq!(findings.error_count(), 250);
        let problems = findings.finish().unwrap_err();
        assert_eq!((problems.count(), problems.findings().len()), (250, 100));
        assert_eq!(problems.findings()[0].to_string(), "x: bad\\r\\nline \\u{202e}; do\\tthis");
        assert!(problems.to_string().ends_with("\n  and 150 more"));
        assert!(quoted(&"x".repeat(5000)).len() < 120);
    }

    #[test]
    fn warnings_are_shown_beside_the_problem_they_may_explain() {
        let mut findings = Findings::default();
        findings.warn(&Place::root().key("Dag"), "is not known", "did you mean DAG?");
        findings.error(&Place::root().key("DAG"), "is missing");
        assert_eq!(
            findings.finish().unwrap_err().to_string(),
            "the job description has a problem:\n  DAG: is missing\n  warning: Dag: is not known; did you mean DAG?"
        );
    }

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let known = ["CommandLine", "PackagePath", "EnvVars"];
        assert_eq!(nearest("commandline", known), Some("CommandLine"));
        assert_eq!(nearest("PackgePath", known), Some("PackagePath"));
        assert_eq!(nearest("DGA", ["DAG", "App"]), Some("DAG"));
        assert_eq!(nearest("Zebra", known), None);
        assert_eq!(nearest(&"C".repeat(100_000), known), None);
    }
}
