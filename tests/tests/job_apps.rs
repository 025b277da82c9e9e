//! App jobs, run: parameters with places in object storage are mapped, the others are values, and both are variables.

#![expect(clippy::unwrap_used, reason = "a failed check is a panic, in helpers too")]

use std::fs;

use serde_json::{Value, json};
use tests::agent::Node;
use tests::double::{Double, DoubleConfig};

const BUCKET: &str = "test-bucket";

fn write(node: &Node, name: &str, content: &Value) -> String {
    let path = node.path().join(name);
    fs::write(&path, content.to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

/// The App of the service's guide, with paths of this test's own, and one parameter more.
fn app(node: &Node) -> Value {
    json!({
        "Name": "DemoApp_vm",
        "Daemonize": false,
        "VM": {"ECSImageId": "img-ubuntu-vpc"},
        "CommandLine": "/bin/bash -c 'cp -r ${inputparam1}. ${output} && echo ${inputparam2} && echo $env1 && echo \"$odd\"'",
        "InputParameters": {
            "inputparam1": {"Type": "String", "Default": "", "LocalPath": node.mapped("input/")},
            "inputparam2": {"Type": "Number", "Default": 7},
            "odd": {},
        },
        "OutputParameters": {"output": {"Type": "String", "LocalPath": node.mapped("output/")}},
        "Config": {"InstanceCount": {"Default": 1, "Overwritable": true}, "Timeout": {"Default": 600}},
        "EnvVars": {"env1": "abcd"},
    })
}

fn job() -> Value {
    json!({
        "Name": "demo",
        "Type": "App",
        "App": {
            "AppName": "DemoApp_vm",
            "Inputs": {"inputparam1": "oss://test-bucket/in/", "odd": "a  b; $HOME 'c"},
            "Outputs": {"output": "oss://test-bucket/out/"},
            "Logging": {"StdoutPath": "oss://test-bucket/logs/", "StderrPath": "oss://test-bucket/logs/"},
        },
    })
}

#[test]
fn the_guides_app_runs() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    double.put(BUCKET, "in/deep/a.txt", "alpha");
    let app = write(&node, "app.json", &app(&node));
    let run = node.run_with(&job(), &["--app", &app, "--job-id=j"]);
    assert_eq!(run.status, 0, "{run:#?}");
    assert_eq!(double.get(BUCKET, "out/deep/a.txt").unwrap(), b"alpha");
    let stdout = double.get(BUCKET, "logs/stdout.j.app.0").unwrap();
    assert_eq!(String::from_utf8(stdout).unwrap(), "7\nabcd\na  b; $HOME 'c\n");
    assert!(!run.stderr.contains("acts on it"), "what is quoted as a variable is not warned of: {}", run.stderr);
    node.assert_clean();
}

#[test]
fn check_and_run_say_what_is_wrong_with_an_app() {
    let double = Double::start(DoubleConfig::default());
    let node = Node::with_double(&double.endpoint());
    let mut hostile = app(&node);
    hostile["CommandLine"] = json!("/bin/sh -c 'echo ${odd}'");
    let hostile = write(&node, "hostile.json", &hostile);
    let job_file = write(&node, "job.json", &job());
    let check = |more: &[&str]| {
        let output = node.agent().arg("check").arg(&job_file).args(more).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (status, text) = check(&["--app", &hostile]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("App.Inputs.odd: holds \" $';\" and is put into the script"), "{text}");
    let run = node.run_with(&job(), &["--app", &hostile]);
    assert!(run.stderr.contains("App.Inputs.odd: holds"), "{run:#?}");

    let (status, text) = check(&[]);
    assert!(status == 65 && text.contains("give it with --app FILE"), "{text}");
    let (status, text) = check(&["--app", "/nonexistent/app"]);
    assert!(status == 66 && text.contains("cannot read the App description /nonexistent/app"), "{text}");
    let mut strange = app(&node);
    strange["CommandLine"] = json!("cp ${inputparam3} /x");
    let strange = write(&node, "strange.json", &strange);
    let (status, text) = check(&["--app", &strange]);
    assert!(status == 65 && text.contains("AppDescription.CommandLine") && text.contains("did you mean"), "{text}");
    node.assert_clean();
}
