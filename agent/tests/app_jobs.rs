//! App jobs: a template and its values become the job they describe; what is wrong with either is said exactly.

#![expect(clippy::unwrap_used, reason = "a test whose data cannot be built has failed")]

use std::time::Duration;

use batch_agent::job::ImageSource;
use batch_agent::job::check::{Abilities, Report};
use batch_agent::job::{Format, JobDescription, Task, read, read_with_app};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The App of the service's guide, as its example creates it.
fn app() -> Value {
    json!({
        "Name": "DemoApp_vm",
        "Daemonize": false,
        "VM": {"ECSImageId": "img-ubuntu-vpc"},
        "CommandLine": "/bin/bash -c 'cp -r ${inputparam1} ${output} && echo ${inputparam2} && echo $env1'",
        "InputParameters": {
            "inputparam1": {"Description": "", "Type": "String", "Default": "", "LocalPath": "/home/input/"},
            "inputparam2": {"Description": "", "Type": "String", "Default": "", "LocalPath": ""},
        },
        "OutputParameters": {"output": {"Description": "", "Type": "String", "LocalPath": "/home/output/"}},
        "Config": {
            "ResourceType": {"Default": "OnDemand", "Overwritable": true},
            "InstanceType": {"Description": "", "Default": "ecs.c5.large", "Overwritable": true},
            "InstanceCount": {"Description": "", "Default": 1, "Overwritable": true},
            "MinDiskSize": {"Description": "", "Default": 40, "Overwritable": true},
            "DiskType": {"Description": "", "Default": "cloud_efficiency", "Overwritable": true},
            "MaxRetryCount": {"Description": "", "Default": 0, "Overwritable": true},
            "Timeout": {"Description": "", "Default": 86400, "Overwritable": true},
        },
        "EnvVars": {"env1": "abcd"},
    })
}

/// And the job that its example submits.
fn job() -> Value {
    json!({
        "Name": "App_demo_test_job",
        "Description": "Test of create app job.",
        "Type": "App",
        "App": {
            "AppName": "DemoApp_vm",
            "Config": {"InstanceType": "ecs.sn2.medium"},
            "Inputs": {"inputparam1": "oss://bucket-name/bc_test/input/", "inputparam2": "abcd1234"},
            "Outputs": {"output": "oss://bucket-name/bc_test/output/"},
            "Logging": {"StdoutPath": "oss://bucket-name/bc_test/log/", "StderrPath": "oss://bucket-name/bc_test/error/"},
        },
    })
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}

fn with(mut value: Value, extra: Value) -> Value {
    merge(&mut value, extra);
    value
}

fn both(app: &Value, job: &Value) -> Result<(JobDescription, Vec<String>), Vec<String>> {
    let read = read_with_app(job.to_string().as_bytes(), Format::Json, Some(app.to_string().as_bytes()));
    read.map(|(job, warnings)| (job, warnings.iter().map(ToString::to_string).collect()))
        .map_err(|problems| problems.findings().iter().map(ToString::to_string).collect())
}

fn good(app: &Value, job: &Value) -> Task {
    let (job, warnings) = both(app, job).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(warnings, [] as [&str; 0]);
    job.tasks.into_iter().next().unwrap()
}

#[track_caller]
fn assert_problem(app: &Value, job: &Value, problem: &str) {
    match both(app, job) {
        Ok((job, _)) => panic!("accepted as {job:?}"),
        Err(problems) => assert_eq!(problems, [problem]),
    }
}

#[track_caller]
fn assert_warning(app: &Value, job: &Value, warning: &str) -> Task {
    let (job, warnings) = both(app, job).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(warnings, [warning]);
    job.tasks.into_iter().next().unwrap()
}

#[test]
fn the_guides_example_is_one_task() {
    let task = good(&app(), &job());
    assert_eq!(
        task.command,
        ["/bin/bash", "-c", "cp -r /home/input/ /home/output/ && echo abcd1234 && echo $env1"],
        "a parameter with a local path is that path, another one its value, and the rest is the shell's"
    );
    assert_eq!(task.name, "app");
    let mapped: Vec<_> = task.inputs.iter().map(|input| (input.source.to_string(), input.target.clone())).collect();
    assert_eq!(mapped, [("oss://bucket-name/bc_test/input/".to_owned(), "/home/input".into())]);
    let mapped: Vec<_> = task.outputs.iter().map(|output| (output.source.clone(), output.target.to_string())).collect();
    assert_eq!(mapped, [("/home/output".into(), "oss://bucket-name/bc_test/output/".to_owned())]);
    let variables: Vec<_> = task.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        variables,
        [("env1", "abcd"), ("inputparam1", "/home/input/"), ("inputparam2", "abcd1234"), ("output", "/home/output/")]
    );
    assert_eq!(task.stdout.unwrap().to_string(), "oss://bucket-name/bc_test/log/");
    assert_eq!(task.stderr.unwrap().to_string(), "oss://bucket-name/bc_test/error/");
    assert_eq!((task.instances, task.max_retries), (1, 0));
    assert_eq!(task.timeout, Some(Duration::from_secs(86_400)));
    assert!(!task.reserve_on_fail && task.container.is_none());
}

#[test]
fn an_app_may_be_yaml_and_name_a_container() {
    let app = "Name: x\nCommandLine: render ${frame}\nDocker: {Image: 'localhost:5000/r:1', RegistryOSSPath: oss://b/dockers}\n\
               InputParameters: {frame: {Type: Number}}\n";
    let job = json!({"Type": "App", "App": {"AppName": "x", "Inputs": {"frame": 7}}}).to_string();
    let (job, warnings) = read_with_app(job.as_bytes(), Format::Json, Some(app.as_bytes())).unwrap();
    assert_eq!(warnings, []);
    let container = job.tasks[0].container.as_ref().unwrap();
    assert_eq!(container.image.to_string(), "localhost:5000/r:1");
    assert_eq!(container.source, ImageSource::Tree("oss://b/dockers/".parse().unwrap()));
    assert_eq!(job.tasks[0].command, ["render", "7"]);
    let nowhere = Report::new(&job, &[], Abilities { network_mounts: true, containers: false });
    assert!(!nowhere.is_runnable());
}

#[test]
fn the_job_configures_what_the_app_allows() {
    let wanted =
        json!({"App": {"Config": {"InstanceCount": 3, "MaxRetryCount": 2, "Timeout": 600, "ReserveOnFail": true}}});
    let task = good(&app(), &with(job(), wanted));
    assert_eq!((task.instances, task.max_retries, task.timeout), (3, 2, Some(Duration::from_secs(600))));
    assert!(task.reserve_on_fail);

    let fixed = with(app(), json!({"Config": {"Timeout": {"Default": 60, "Overwritable": false}}}));
    assert_eq!(good(&fixed, &job()).timeout, Some(Duration::from_secs(60)));
    let same = with(job(), json!({"App": {"Config": {"Timeout": 60}}}));
    assert_eq!(good(&fixed, &same).timeout, Some(Duration::from_secs(60)), "what it is anyway");
    assert_problem(
        &fixed,
        &with(job(), json!({"App": {"Config": {"Timeout": 61}}})),
        "App.Config.Timeout: the App does not let a job change it (Overwritable is false); remove it",
    );
    // What the App does not say is the service's own default.
    let mut silent = app();
    silent["Config"] = json!({});
    assert_eq!(good(&silent, &job()).timeout, Some(Duration::from_secs(86_400)));
}

#[test]
fn defaults_and_numbers() {
    let app = with(
        app(),
        json!({
            "CommandLine": "tool ${n} ${mode} ${inputparam1} '${inputparam2}' ${n}${mode}",
            "InputParameters": {"n": {"Type": "Number", "Default": 1.5}, "mode": {"Default": "fast"}},
        }),
    );
    assert_eq!(
        good(&app, &with(job(), json!({"App": {"Inputs": {"inputparam2": null}}}))).command,
        ["tool", "1.5", "fast", "/home/input/", "", "1.5fast"],
        "an empty text is a default"
    );
    for (number, text) in [(json!(3), "3"), (json!(-2.5), "-2.5"), (json!("1e3"), "1e3"), (json!("007x"), "")] {
        let job = with(job(), json!({"App": {"Inputs": {"n": number, "inputparam2": ""}}}));
        if text.is_empty() {
            let problem = "App.Inputs.n: expected a number, got \"007x\"; write digits";
            assert_problem(&app, &job, problem);
        } else {
            assert_eq!(good(&app, &job).command[1], text);
        }
    }
    // A place in object storage cannot be empty.
    let problem =
        "App.Inputs.inputparam1: is missing, and the App has no default for it; give the input parameter a value";
    assert_problem(&app, &with(job(), json!({"App": {"Inputs": {"inputparam1": ""}}})), problem);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let app_with = |extra| with(app(), extra);
    let job_with = |extra| with(job(), json!({ "App": extra }));
    for (app, job, problem) in [
        (
            app(),
            job_with(json!({"Inputs": {"inputparm2": "x"}})),
            "App.Inputs.inputparm2: the App has no input parameter \"inputparm2\"; did you mean inputparam2?",
        ),
        (
            app(),
            job_with(json!({"Inputs": {"output": "x"}})),
            "App.Inputs.output: the App has no input parameter \"output\"; it is an output parameter; give its value in Outputs",
        ),
        (
            app(),
            job_with(json!({"Outputs": {"output": null}})),
            "App.Outputs.output: is missing, and the App has no default for it; give the output parameter a value",
        ),
        (app(), job_with(json!({"Outputs": "x"})), "App.Outputs: expected an object, got \"x\""),
        (
            app(),
            job_with(json!({"Inputs": {"inputparam2": 5}})),
            "App.Inputs.inputparam2: expected text, got a number; put the value in quotes",
        ),
        (
            app(),
            job_with(json!({"Inputs": {"inputparam1": "bucket/x"}})),
            "App.Inputs.inputparam1: \"bucket/x\" is not a storage location: write oss://, s3://, gs://, az:// or file:// in front of it",
        ),
        (
            app(),
            job_with(json!({"AppName": "Other"})),
            "App.AppName: the job wants the App \"Other\", and the description is of \"DemoApp_vm\"; give the description of the \
             App it wants",
        ),
        (app(), job_with(json!({"Config": {"Timeout": "soon"}})), "App.Config.Timeout: expected seconds, got \"soon\""),
        (
            app_with(json!({"InputParameters": {"inputparam2": {"Type": "Strng"}}})),
            job(),
            "AppDescription.InputParameters.inputparam2.Type: expected String or Number, got \"Strng\"; did you mean String?",
        ),
        (
            app_with(json!({"InputParameters": {"inputparam1": {"LocalPath": "home/in/"}}})),
            job(),
            "AppDescription.InputParameters.inputparam1.LocalPath: the local path \"home/in/\" is not absolute; write it from the root, \
             such as /home/data/",
        ),
        (
            app_with(json!({"InputParameters": {"inputparam2": {"Type": "Number", "LocalPath": "/x"}}})),
            job(),
            "AppDescription.InputParameters.inputparam2.LocalPath: a number is no place in object storage; remove it, or make \
             the type String",
        ),
        (
            app_with(json!({"CommandLine": "cp ${inputparam3} /x"})),
            job(),
            "AppDescription.CommandLine: \"${inputparam3}\" is no parameter of the App; did you mean ${inputparam2}?",
        ),
        (
            app_with(json!({"CommandLine": "cp ${env1} /x"})),
            job(),
            "AppDescription.CommandLine: \"${env1}\" is no parameter of the App; declare it in InputParameters or \
             OutputParameters; variables are replaced by shells only (/bin/bash -c '...')",
        ),
        (
            app_with(json!({"CommandLine": null})),
            job(),
            "AppDescription.CommandLine: is missing; an App needs a program to run, such as \"python main.py ${input}\"",
        ),
        (
            app_with(json!({"CommandLine": "echo 'oops"})),
            job(),
            "AppDescription.CommandLine: the single quote that opens at character 6 is never closed; close it, or put a backslash \
             before it",
        ),
        (
            app_with(json!({"OutputParameters": {"inputparam2": {}}})),
            with(job(), json!({"App": {"Outputs": {"inputparam2": "y"}}})),
            "App.Outputs.inputparam2: \"inputparam2\" is an input parameter, too; give one of them another name",
        ),
        (
            app_with(json!({"Config": {"InstanceCount": {"Default": "many"}}})),
            job(),
            "AppDescription.Config.InstanceCount.Default: expected a whole number, got \"many\"",
        ),
        (
            app_with(json!({"InputParameters": {"a}b": {"Default": "x"}}})),
            job(),
            "AppDescription.InputParameters[\"a}b\"]: \"a}b\" cannot be a parameter's name; use letters, digits and '_'",
        ),
        (json!([]), job(), "AppDescription: expected an object with the App's keys, got a list"),
        (
            app(),
            json!({"Type": "App"}),
            "App: is missing; an App job names its App and gives the parameters' values there",
        ),
    ] {
        assert_problem(&app, &job, problem);
    }
    let problem =
        |app: &[u8]| read_with_app(job().to_string().as_bytes(), Format::Json, Some(app)).unwrap_err().to_string();
    assert!(problem(b"{\"Name\"").starts_with("AppDescription: is not JSON: EOF"), "{}", problem(b"{\"Name\""));
    assert!(problem(b"\xff").starts_with("AppDescription: is not UTF-8 text"));
    assert!(problem(b"{\"Name\": \"a\", \"Name\": \"b\"}").contains("AppDescription.Name: is given twice"));
    assert_eq!(
        read(job().to_string().as_bytes(), Format::Json).unwrap_err().to_string(),
        "App: the App's description is not there, and the job says only what goes into it; give it with --app FILE (in a node's \
         settings: task.app, task.app_file or task.app_object)"
    );
}

#[test]
fn what_is_odd_is_warned_of() {
    let dag = json!({"DAG": {"Tasks": {"t": {"Parameters": {"Command": {"CommandLine": "true"}}}}}});
    assert_warning(&app(), &dag, "AppDescription: is not used: the job is not made from an App; leave it out");
    let odd = with(app(), json!({"EnvVars": {"output": "x"}}));
    let task = assert_warning(
        &odd,
        &job(),
        "AppDescription.EnvVars.output: is a parameter as well, whose value is used; remove it, or use another name",
    );
    assert_eq!(task.environment["output"], "/home/output/");
    let odd = with(app(), json!({"CommandLine": "ls ${inputparam1} | wc"}));
    assert_warning(
        &odd,
        &job(),
        "AppDescription.CommandLine: | is passed to the program as it is, because this is not a shell line; for a shell, write \
         /bin/bash -c '...'",
    );
    let odd = with(app(), json!({"CommandLine": "sh -c 'echo ${inputparam3} ${HOME} ${env1} ${x:-y}'"}));
    assert_warning(
        &odd,
        &job(),
        "AppDescription.CommandLine: \"${inputparam3}\" is no parameter of the App and is left to the shell; did you mean \
         ${inputparam2}?",
    );
    let odd = with(app(), json!({"Config": {"Timout": {"Default": 5}}}));
    let warning = "AppDescription.Config.Timout: is not a setting known here and is ignored; did you mean Timeout?";
    assert_warning(&odd, &job(), warning);
}

/// A value that a shell would act on is warned of where a shell will read it, and nowhere else.
#[test]
fn values_in_scripts_are_warned_of() {
    let hostile = with(job(), json!({"App": {"Inputs": {"inputparam2": "x; rm -rf $HOME"}}}));
    for line in [
        "/bin/bash -c 'echo ${inputparam2}'",
        "sh -ec 'echo ${inputparam2}'",
        "/usr/bin/env bash --norc -x -o pipefail -c 'echo ${inputparam2}' name",
        "nice -n 5 dash -c -- 'echo ${inputparam2}'",
    ] {
        let app = with(app(), json!({ "CommandLine": line }));
        let task = assert_warning(
            &app,
            &hostile,
            "App.Inputs.inputparam2: holds \" $;\" and is put into the script that the App's command line gives to a shell, which \
             acts on it; write \"$inputparam2\" in the script: the value is a variable of that name, too",
        );
        assert!(task.command.contains(&"echo x; rm -rf $HOME".to_owned()), "{:?}", task.command);
    }
    for line in [
        "echo ${inputparam2}",
        "/bin/bash script.sh ${inputparam2} -c",
        "/bin/bash -c 'echo \"$1\" \"$inputparam2\"' bash ${inputparam2}",
        "python -c ${inputparam2}",
    ] {
        let task = good(&with(app(), json!({ "CommandLine": line })), &hostile);
        let whole = task.command.iter().any(|word| word == "x; rm -rf $HOME");
        assert!(whole, "{:?}", task.command);
    }
    let empty = with(job(), json!({"App": {"Inputs": {"inputparam2": ""}}}));
    assert_warning(
        &app(),
        &empty,
        "App.Inputs.inputparam2: is empty and is put into the script that the App's command line gives to a shell, which acts on \
         it; write \"$inputparam2\" in the script: the value is a variable of that name, too",
    );
}

proptest! {
    /// Whatever a value is, it is part of the word it was put into, as it is, once.
    #[test]
    fn values_add_no_words(value in "[^\\x00]{0,40}") {
        let app = with(app(), json!({"CommandLine": "tool a${inputparam2}b '${inputparam2}' last"}));
        let job = with(job(), json!({"App": {"Inputs": {"inputparam2": value}}}));
        let task = both(&app, &job).unwrap().0.tasks.remove(0);
        prop_assert_eq!(&task.command, &["tool".to_owned(), format!("a{value}b"), value.clone(), "last".to_owned()]);
        prop_assert_eq!(&task.environment["inputparam2"], &value);
    }

    /// A value that is not warned of is one word, itself, to a shell.
    #[test]
    fn what_is_not_warned_of_is_safe_in_a_script(value in "[ -~\\t\\n]{1,12}") {
        let job = with(job(), json!({"App": {"Inputs": {"inputparam2": value}}}));
        let (_, warnings) = both(&app(), &job).unwrap();
        if warnings.is_empty() {
            prop_assert_eq!(shell_words::split(&value).unwrap(), vec![value.clone()]);
            let acts = value.contains(['$', '`', '*', '?', '[', '~', '#', '!', '{', ';', '&', '|', '<', '>', '(', ')']);
            prop_assert!(!acts, "{value:?}");
        }
    }

    #[test]
    fn never_panics(line in ".{0,40}", name in ".{0,8}", value in ".{0,20}") {
        let app = json!({"CommandLine": line, "InputParameters": {&name: {"Default": value}}});
        let _ = both(&app, &json!({"Type": "App", "App": {}}));
    }
}
