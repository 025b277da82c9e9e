//! Names of a task's files in the character set that its job names.

use serde_json::{Value, json};
use tests::agent::{Node, command, job, merge};
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";

fn task(line: &str, more: Value) -> Value {
    let mut task = command(line);
    merge(&mut task, &more);
    job(&task)
}

#[test]
fn a_task_sees_and_writes_names_in_its_jobs_character_set() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let (scene, texture) = ("\u{573a}\u{666f}", "\u{8d34}\u{56fe}");
    double.put(BUCKET, &format!("in/{scene}/{texture}.png"), "a texture");
    double.put(BUCKET, "plain/one", "plain");
    let (input, output) = (node.mapped("in/"), node.mapped("out/"));
    // The directory's and the file's name in GBK, as a program that was written for it has them.
    let script = format!(
        "set -e; s=$(printf '\\263\\241\\276\\260'); t=$(printf '\\314\\371\\315\\274'); \
         cat {input}$s/$t.png; cat {plain}; mkdir {output}$s; cp {input}$s/$t.png {output}$s/$t.copy; \
         echo utf8 > {output}{scene}; printf x > {output}$(printf '\\377'); ls {input} | od -An -tx1",
        plain = node.mapped("plain"),
    );
    let run = node.run(&task(
        &format!("/bin/sh -c '{}'", script.replace('\'', "'\\''")),
        json!({
            "Parameters": {"InputMappingConfig": {"Locale": "GBK"}},
            "InputMapping": {"oss://test-bucket/in/": input, "oss://test-bucket/plain/one": node.mapped("plain")},
            "OutputMapping": {&output: "oss://test-bucket/out/"},
        }),
    ));
    // All but one of its files have gone up, and that one is named.
    assert_eq!(run.status, 74, "{run:#?}");
    assert!(run.message().contains("\\xFF") && run.message().contains("not UTF-8 and no GBK"), "{}", run.message());
    let id = run.outcome["job_id"].as_str().unwrap();
    let stdout = double.get(BUCKET, &format!("logs/stdout.{id}.task.0")).unwrap();
    assert_eq!(String::from_utf8(stdout).unwrap(), "a textureplain b3 a1 be b0 0a\n");
    assert_eq!(double.get(BUCKET, &format!("out/{scene}/{texture}.copy")).unwrap(), b"a texture");
    assert_eq!(double.get(BUCKET, &format!("out/{scene}")).unwrap(), b"utf8\n");
    node.assert_clean();
}

#[test]
fn a_job_can_limit_what_its_inputs_take_of_the_cache() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/a", "content");
    let target = node.mapped("in/");
    let run = node.run(&task(
        &format!("cat {target}a"),
        json!({"Mounts": {
            "Entries": [{"Source": "oss://test-bucket/in/", "Destination": target, "WriteSupport": false}],
            "Locale": "SHIFT-JIS", "Lock": true, "CacheSupport": false, "CacheBlockSize": 65536, "CacheTotalSize": 1 << 30,
        }}),
    ));
    assert_eq!(run.status, 0, "{run:#?}");
    node.assert_clean();
}
