//! Real descriptions with random changes, and random bytes: reading them never panics, and what is accepted keeps its promises.

use batch_agent::job::{Format, read};
use proptest::prelude::*;
use serde_json::Value;

/// Any JSON value, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["", "/", "..", "/a/", "oss://b/k", "oss://b/k/", "nas://h:/", "t", "E:"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4).prop_map(Value::from_iter),
        ]
    })
}

/// Replaces, removes or adds something at a random place of a document.
fn mutate(value: &mut Value, mut at: u32, with: &Value) {
    match value {
        Value::Object(map) if !map.is_empty() && !at.is_multiple_of(5) => {
            at /= 5;
            let count = u32::try_from(map.len()).unwrap();
            let key = map.keys().nth(usize::try_from(at % count).unwrap()).unwrap().clone();
            at /= count;
            if at % 11 == 7 {
                let inner = map.remove(&key).unwrap();
                map.insert(format!("{key}{}", at % 3), inner);
            } else if at % 11 == 8 {
                map.remove(&key);
            } else {
                mutate(&mut map[&key], at, with);
            }
        }
        Value::Array(list) if !list.is_empty() && !at.is_multiple_of(5) => {
            let index = usize::try_from(at).unwrap() % list.len();
            mutate(&mut list[index], at / 5, with);
        }
        other => *other = with.clone(),
    }
}

proptest! {
    /// Whatever is done to a real description, reading it gives a job that keeps its promises or says what is wrong.
    #[test]
    fn mutated_descriptions_never_panic(
        which in 0usize..7,
        changes in prop::collection::vec((any::<u32>(), any_json()), 1..4),
    ) {
        let texts = [
            include_str!("../fixtures/jobs/single-command.json"),
            include_str!("../fixtures/jobs/package-tarball.json"),
            include_str!("../fixtures/jobs/bcs-directory-mappings.json"),
            include_str!("../fixtures/jobs/sdk-directory-mappings.json"),
            include_str!("../fixtures/jobs/nas.json"),
            include_str!("../fixtures/jobs/multi-instance.json"),
            include_str!("../fixtures/jobs/cromwell-call.json"),
        ];
        let mut document: Value = serde_json::from_str(texts[which]).unwrap();
        for (at, with) in &changes {
            mutate(&mut document, *at, with);
        }
        for format in [Format::Json, Format::Detect, Format::Yaml] {
            match read(document.to_string().as_bytes(), format) {
                Ok((job, warnings)) => {
                    prop_assert!(!job.tasks.is_empty());
                    for task in &job.tasks {
                        prop_assert!(!task.command.is_empty() && task.instances >= 1);
                        for path in task.inputs.iter().map(|input| &input.target)
                            .chain(task.outputs.iter().map(|output| &output.source))
                        {
                            let path = path.to_str().unwrap();
                            prop_assert!(path.starts_with('/') && path.len() > 1);
                            prop_assert!(path[1..].split('/').all(|part| !matches!(part, "" | "." | "..")));
                        }
                    }
                    for warning in warnings {
                        prop_assert!(!warning.to_string().contains('\n'));
                    }
                }
                Err(problems) => {
                    prop_assert!(problems.count() > 0);
                    for finding in problems.findings() {
                        let line = finding.to_string();
                        prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
                    }
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Json, Format::Detect, Format::Yaml] {
            let _ = read(&bytes, format);
        }
    }
}
