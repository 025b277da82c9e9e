//! Where secrets are in settings, and where one has got to that no longer looks like one.

use super::shape;
use super::tree::{Node, Value};
use crate::job::finding::{Findings, Place};

/// The keys of secrets in a job description that the settings may hold.
const OF_JOBS: [&str; 2] = ["AccessKeySecret", "SecurityToken"];

/// Those, and the settings' own.
const ALL: [&str; 5] = ["access_key_secret", "security_token", "registry_password", OF_JOBS[0], OF_JOBS[1]];

/// Whether a secret belongs at this path.
pub(super) fn is_secret(path: &[&str]) -> bool {
    let in_job = path.starts_with(&["task", "job"]);
    shape::is_secret(path) || (in_job && path.last().is_some_and(|key| OF_JOBS.contains(key)))
}

/// Whether there are secrets in the value, which is at `path`.
pub(super) fn are_in(path: &[&str], node: &Node) -> bool {
    match &node.value {
        Value::Nothing | Value::Scalar { .. } => false,
        Value::List(items) => items.iter().any(|item| are_in(path, item)),
        Value::Map(entries) => entries.iter().any(|entry| {
            let mut path = path.to_vec();
            path.push(&entry.key);
            let is_given = matches!(&entry.node.value, Value::Scalar { text, .. } if !text.is_empty());
            (is_given && is_secret(&path)) || are_in(&path, &entry.node)
        }),
    }
}

/// Finds keys and texts that have a secret's key in the middle of them. A quote that is not closed makes one text of all that
/// follows it, secrets included, and messages that say what was written would then tell them to the log. Says whether there
/// was one; nothing else should be said of such settings.
pub(super) fn swallowed(node: &Node, place: &Place, findings: &mut Findings) -> bool {
    let before = findings.error_count();
    let mut complain = |place: &Place, node: &Node| {
        let path = place.to_string();
        let path = if path.is_empty() { path } else { format!("{path}: ") };
        // The line is said here, because it is not that of the place when a key is the text.
        findings.error_with(
            &Place::root(),
            format!("{path}a text holds the key of a secret ({})", node.origin),
            "close the quote or bracket that is still open there; a program gets a secret from a file",
        );
    };
    match &node.value {
        Value::Scalar { text, .. } if names_secret(text) => complain(place, node),
        Value::Nothing | Value::Scalar { .. } => {}
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                swallowed(item, &place.index(index), findings);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                if names_secret(&entry.key) {
                    // The key itself must not be shown.
                    complain(place, &entry.node);
                }
            }
            for entry in entries.iter().filter(|entry| !names_secret(&entry.key)) {
                swallowed(&entry.node, &place.key(&entry.key), findings);
            }
        }
    }
    findings.error_count() > before
}

/// Whether the text holds a secret's key with a colon or equals sign behind it.
fn names_secret(text: &str) -> bool {
    ALL.iter().any(|key| {
        text.match_indices(key).any(|(at, _)| {
            let rest = text.get(at + key.len()..).unwrap_or_default();
            rest.trim_start_matches(['"', '\'', ' ', '\t', '\n']).starts_with([':', '='])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tree;

    fn node(text: &str) -> Node {
        tree::parse(text, &"f".into(), 0, &mut Findings::default()).unwrap()
    }

    #[test]
    fn secrets_are_found_where_they_belong() {
        for (text, secret) in [
            ("storage: {oss: {access_key_secret: x}}", true),
            ("storage: {s3: {security_token: x}}", true),
            ("containers: {registries: [{host: x, registry_password: x}]}", true),
            ("containers: {registries: [{host: x, username: x}]}", false),
            ("storage: {s3: {security_token: ''}}", false),
            ("storage: {s3: {access_key_id: x}}", false),
            ("task: {job: {a: [{AccessKeySecret: x}]}}", true),
            ("environment: {AccessKeySecret: x}", false),
        ] {
            assert_eq!(are_in(&[], &node(text)), secret, "{text}");
        }
    }

    #[test]
    fn a_quote_that_is_not_closed_shows_nothing() {
        for text in [
            "scratch: 'x, storage: {oss: {access_key_secret: hunter2}}'\n",
            "{'identity: {region: x}, storage: {oss: {access_key_secret: hunter2}}': 1}",
            "mounts: [{source: 'a, \"AccessKeySecret\" : \"hunter2\"'}]",
        ] {
            let mut findings = Findings::default();
            assert!(swallowed(&node(text), &Place::root(), &mut findings), "{text}");
            let message = findings.finish().unwrap_err().to_string();
            assert!(message.contains("(line 1 of f); close the quote") && !message.contains("hunter2"), "{message}");
        }
        let fine = "storage: {oss: {access_key_secret: 'a:b=c'}}\nbootstrap: {command: echo access_key_secret}";
        assert!(!swallowed(&node(fine), &Place::root(), &mut Findings::default()));
    }
}
