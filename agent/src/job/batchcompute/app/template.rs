//! An App's command line: what is put into it, and where a shell will read it again.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Parameter, Side};
use crate::job::batchcompute::object::Object;
use crate::job::command_line;
use crate::job::draft::{DraftCommand, DraftTask};
use crate::job::environment;
use crate::job::finding::{At, Findings, Place, nearest, quoted};
use crate::job::validate::warn_of_shell_syntax;

/// Shells that read a word of the command line again.
const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "ksh", "zsh"];

/// An App's command line, and what is known of the names in it.
pub(super) struct Template<'a> {
    pub(super) place: &'a Place,
    pub(super) app: &'a Object<'a>,
    /// Those that have a value.
    pub(super) parameters: &'a [Parameter],
    pub(super) draft: &'a DraftTask,
}

impl Template<'_> {
    /// Puts the parameters into the command line: splits it first.
    pub(super) fn fill(&self, line: String, findings: &mut Findings) -> DraftCommand {
        // What is wrong with it is said where all command lines are checked.
        let Ok(words) = command_line::split(&line) else { return DraftCommand::Line(line) };
        let named = |name: &str| self.parameters.iter().find(|parameter| parameter.name == name);
        // Parameters are not the shell's.
        warn_of_shell_syntax(self.place, &replace(&line, |name| named(name).map(|_| "_")), findings);
        let script = script(&words);
        let mut in_script = BTreeSet::new();
        let mut filled = Vec::with_capacity(words.len());
        for (index, word) in words.iter().enumerate() {
            let is_script = script == Some(index);
            filled.push(replace(word, |name| {
                let Some(parameter) = named(name) else {
                    self.unknown(name, is_script, findings);
                    return None;
                };
                if is_script {
                    in_script.insert(name.to_owned());
                }
                Some(parameter.value.value.as_str())
            }));
        }
        for parameter in self.parameters.iter().filter(|parameter| in_script.contains(&parameter.name)) {
            warn_of_shell(parameter, findings);
        }
        DraftCommand::Words(filled)
    }

    /// Objects to a name that stands for nothing. In a script it may be a variable of the shell's.
    fn unknown(&self, name: &str, is_script: bool, findings: &mut Findings) {
        let declared = [Side::Input, Side::Output].map(|side| self.app.raw(side.declared()).and_then(Value::as_object));
        let declared: Vec<&str> =
            declared.into_iter().flatten().flat_map(|map| map.keys().map(String::as_str)).collect();
        // One whose value was objected to.
        if declared.contains(&name) {
            return;
        }
        let near = nearest(name, declared).map(|near| format!("did you mean ${{{near}}}?"));
        let shown = quoted(&format!("${{{name}}}"));
        if is_script {
            let is_variable = environment::OWN.contains(&name)
                || self.draft.environment.iter().any(|variable| variable.value.0 == name);
            if let (Some(near), false) = (near, is_variable) {
                let cause = format!("{shown} is no parameter of the App and is left to the shell");
                findings.warn(self.place, cause, near);
            }
        // `${x:-y}` and the like are a shell's, and were warned of.
        } else if name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
            let remedy = near.unwrap_or_else(|| {
                "declare it in InputParameters or OutputParameters; variables are replaced by shells only (/bin/bash -c '...')"
                    .to_owned()
            });
            findings.error_with(self.place, format!("{shown} is no parameter of the App"), remedy);
        }
    }
}

/// Replaces every `${name}` for which there is something, once: what is put in is not looked at again.
fn replace<'v>(text: &str, mut value: impl FnMut(&str) -> Option<&'v str>) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        replaced.push_str(before);
        let inner = &from[2..];
        let found = inner.find('}').map(|end| (&inner[..end], &inner[end + 1..]));
        match found.and_then(|(name, after)| Some((value(name)?, after))) {
            Some((value, after)) => {
                replaced.push_str(value);
                rest = after;
            }
            None => {
                replaced.push_str("${");
                rest = inner;
            }
        }
    }
    replaced.push_str(rest);
    replaced
}

/// Which of the words a shell will read as a script, if one does: `bash -c SCRIPT`, `/usr/bin/env sh -ec SCRIPT`.
fn script(words: &[String]) -> Option<usize> {
    let is_shell = |word: &String| SHELLS.contains(&word.rsplit('/').next().unwrap_or_default());
    let mut at = words.iter().position(is_shell)? + 1;
    let mut reads_script = false;
    while let Some(option) = words.get(at).filter(|word| word.starts_with(['-', '+']) && word.len() > 1) {
        at += 1;
        if option == "--" {
            break;
        }
        reads_script |= !option.starts_with("--") && option.contains('c');
        // Its argument is a word of its own.
        if !option.starts_with("--") && option.ends_with(['o', 'O']) {
            at += 1;
        }
    }
    (reads_script && at < words.len()).then_some(at)
}

/// Warns of a value that a shell will read, and not as the value that it is.
fn warn_of_shell(parameter: &Parameter, findings: &mut Findings) {
    let At { place, value } = &parameter.value;
    // What no shell takes for anything else, wherever in a word it is.
    let is_plain =
        |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ',' | ':' | '=' | '@' | '%' | '+');
    let odd: BTreeSet<char> = value.chars().filter(|c| !is_plain(c)).collect();
    let why = match (value.is_empty(), odd.is_empty()) {
        (true, _) => "is empty".to_owned(),
        (false, false) => format!("holds {}", quoted(&odd.into_iter().collect::<String>())),
        (false, true) => return,
    };
    findings.warn(
        place,
        format!("{why} and is put into the script that the App's command line gives to a shell, which acts on it"),
        format!("write \"${}\" in the script: the value is a variable of that name, too", parameter.name),
    );
}
