//! Settings on the command line: `--set cache.size=200GB`.
//!
//! A key is a path of keys with dots between them, and a value is YAML, so that `--set 'mounts=[{source: ..., target: ...}]'` works. A
//! list is given as a whole. Secrets are refused: every user of a machine can read every command line.

use std::sync::Arc;

use super::secrets;
use super::tree::{self, Entry, Node, Origin, Value};
use crate::job::finding::{Findings, Place, quoted};

/// Lays the overrides over the tree, in their order.
pub(super) fn apply(root: &mut Node, overrides: &[String], first: usize, findings: &mut Findings) {
    for (index, text) in overrides.iter().enumerate() {
        if let Some(node) = one(text, first + index, findings) {
            root.merge(node);
        }
    }
}

/// `a.b=c` as the document it stands for.
fn one(text: &str, order: usize, findings: &mut Findings) -> Option<Node> {
    let root = Place::root();
    let Some((path, value)) = text.split_once('=') else {
        // Not shown: what was meant can be a secret.
        findings.error_with(&root, "a --set has no \"=\"", "write --set KEY=VALUE, such as --set cache.size=200GB");
        return None;
    };
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        let cause = format!("--set {}: there is an empty key", quoted(path));
        findings.error_with(&root, cause, "write keys with dots between them, such as cache.size");
        return None;
    }
    let place = keys.iter().fold(root, |place, key| place.key(key));
    if secrets::is_secret(&keys) {
        return seen(&place, findings);
    }
    let source: Arc<str> = format!("--set {path}").into();
    let origin = Origin { order, line: 0, source: Arc::clone(&source) };
    let mut node = tree::parse_value(value, &source, order, findings)?;
    if secrets::are_in(&keys, &node) {
        return seen(&place, findings);
    }
    relocate(&mut node, &origin);
    for key in keys.iter().rev() {
        let entry = Entry { key: (*key).to_owned(), origin: origin.clone(), node };
        node = Node { origin: origin.clone(), value: Value::Map(vec![entry]) };
    }
    Some(node)
}

fn seen<T>(place: &Place, findings: &mut Findings) -> Option<T> {
    findings.error_with(
        place,
        "a secret was given with --set, where every user of the machine can read it",
        "put it into a file that only root can read, and give the node another key: this one has been seen",
    );
    None
}

/// A command line has no lines worth naming.
fn relocate(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Nothing | Value::Scalar { .. } => {}
        Value::List(items) => items.iter_mut().for_each(|item| relocate(item, origin)),
        Value::Map(entries) => {
            for entry in entries {
                entry.origin = origin.clone();
                relocate(&mut entry.node, origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overridden(base: &str, overrides: &[&str]) -> Result<String, String> {
        let mut findings = Findings::default();
        let mut root = tree::parse(base, &"f".into(), 0, &mut findings).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        apply(&mut root, &overrides, 1, &mut findings);
        findings.finish().map_err(|problems| problems.to_string()).map(|_| root.plain_json().to_string())
    }

    #[test]
    fn values_are_yaml_and_are_laid_over_the_files() {
        let base = "cache: {size: 1GB, memory: 1GB}\nscratch: /a\nmounts: [{source: x}]\n";
        for (given, expected) in [
            (
                &["cache.size=2GB"][..],
                r#"{"cache":{"size":"2GB","memory":"1GB"},"scratch":"/a","mounts":[{"source":"x"}]}"#,
            ),
            (&["cache=", "scratch=null", "mounts=[]"], r#"{"cache":null,"scratch":null,"mounts":[]}"#),
            (
                &["mounts=[{source: a, target: 'b, c'}]", "cache={}", "scratch=a=b, c"],
                r#"{"cache":{"size":"1GB","memory":"1GB"},"scratch":"a=b, c","mounts":[{"source":"a","target":"b, c"}]}"#,
            ),
        ] {
            assert_eq!(overridden(base, given).as_deref(), Ok(expected), "{given:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_no_secret_is_shown() {
        for (given, expected) in [
            ("hunter2", "a --set has no \"=\"; write --set KEY=VALUE, such as --set cache.size=200GB"),
            ("a..b=1", "--set \"a..b\": there is an empty key; write keys with dots between them, such as cache.size"),
            ("a=[1", "line 1, column 1 of --set a is no YAML"),
            ("a=!x 1", "has a tag (!...) (line 1 of --set a)"),
            ("storage.oss.access_key_secret=hunter2", "storage.oss.access_key_secret: a secret was given with --set"),
            ("storage={oss: {security_token: hunter2}}", "storage: a secret was given with --set"),
            ("task.job={DAG: {Mounts: {OSS: {AccessKeySecret: hunter2}}}}", "task.job: a secret was given with --set"),
        ] {
            let problem = overridden("{}", &[given]).unwrap_err();
            assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{given}: {problem}");
        }
    }
}
