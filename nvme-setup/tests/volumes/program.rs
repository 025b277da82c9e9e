//! The command line.

use std::fs;
use std::process::{Command, Output};

use crate::common::{Disk, SIZE, run};
use crate::place::Place;

/// Runs our program.
pub fn program(place: &Place, arguments: &[&str]) -> Output {
    unnamed(place, &[arguments, &["--node", &place.node]].concat())
}

/// The same without saying what the node is called.
fn unnamed(place: &Place, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvme-setup"));
    command.env("NVME_SETUP_RUNTIME_DIR", place.at("")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_program_plans_applies_and_releases() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let at = place.at("data");
    let arguments = ["--device", disk.path(), "--mount", at.to_str().unwrap()];
    let call = |verb: &[&str], more: &[&str]| program(&place, &[verb, &arguments[..], more].concat());
    disk.remember();
    for verb in [&["plan"][..], &["apply", "--dry-run"]] {
        let output = call(verb, &[]);
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for part in ["CARRIES", "make xfs on /dev/loop", "because: usable: free, no signature, zeros in all"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
    let json: serde_json::Value = serde_json::from_slice(&call(&["plan"], &["--json"]).stdout).unwrap();
    assert_eq!((&json["format"], &json["plan"]["steps"][0]["step"]), (&1.into(), &"mark".into()));
    disk.is_as_remembered();
    let output = call(&["apply"], &["--label", "scratch"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains(": ready, on /dev/loop"), "{output:?}");
    let output = call(&["apply"], &["--label", "scratch", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["report"]["done"], &json["error"]), (&serde_json::json!([]), &serde_json::Value::Null));
    let shown = text(&program(&place, &["status", "--device", disk.path()]).stdout);
    assert!(shown.contains("xfs labelled \"scratch\", a volume of this node's"), "{shown}");
    for part in ["VOLUME", "mounted", at.to_str().unwrap()] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // Whoever comes later need not be told what the node was called, or what was asked for.
    let json: serde_json::Value =
        serde_json::from_slice(&unnamed(&place, &["status", "--json", "--device", disk.path()]).stdout).unwrap();
    let volume = &json["volumes"][0];
    let expected = serde_json::json!([[disk.path()], [at], "mounted", "xfs", "scratch", "this_node"]);
    let keys = ["devices", "mounted_at", "state", "fs", "label", "made_by"];
    assert_eq!(keys.map(|key| volume[key].clone()).to_vec(), *expected.as_array().unwrap(), "{json}");
    assert_eq!(text(&unnamed(&place, &["trim"]).stdout), "nothing to trim\n");
    let output = call(&["apply"], &["--label", "scratch", "--trim", "periodic"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&unnamed(&place, &["trim"]).stdout), format!("trimmed {}\n", at.display()));
    // Another volume on the same disk: refused, and said in JSON.
    let output = call(&["apply"], &["--json", "--wait", "0"]);
    assert_eq!(output.status.code(), Some(71), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["refusals"][0]["why"].as_str().unwrap().contains("is mounted at"), "{json}");
    let output = call(&["release"], &["--label", "scratch"]);
    assert_eq!(text(&output.stdout), format!("unmounted {}\n", at.display()), "{output:?}");
    let shown = text(&unnamed(&place, &["status", "--device", disk.path()]).stdout);
    assert!(shown.contains("scratch  not mounted"), "{shown}");
    assert_eq!(text(&unnamed(&place, &["trim"]).stdout), "nothing to trim\n");
    assert_eq!(text(&call(&["release"], &["--label", "scratch"]).stdout), "nothing to release\n");
}

#[test]
fn settings_from_a_file_and_exit_codes() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let file = place.at("disks.yaml");
    let write = |yaml: &str| fs::write(&file, yaml).unwrap();
    let apply = || program(&place, &["apply", "--config", file.to_str().unwrap()]);
    let mount = place.at("data");
    write(&format!(
        "wait: 0\nvolumes:\n  - what: {{device: {}}}\n    mount: {}\n    fs: ext4\n    options: [noatime, nodev]\n",
        disk.path(),
        mount.display()
    ));
    let output = apply();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(run("findmnt", "util-linux", &["-n", "-o", "OPTIONS", mount.to_str().unwrap()]).contains("nodev"));
    for (yaml, expected) in [
        ("volumes:\n  - {what: instance-store, mount: /data, force: true}\n", "force"),
        ("volumes:\n  - {what: instance-store, mount: data}\n", "must be an absolute path"),
        ("volumes: [", "disks.yaml"),
    ] {
        write(yaml);
        let output = apply();
        assert_eq!(output.status.code(), Some(78), "{yaml}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
    for (arguments, code, expected) in [
        (&["apply"][..], 64, "say what to prepare"),
        (&["apply", "--fs", "xfs"], 64, "--mount DIR"),
        (&["apply", "--mount", "relative"], 64, "must be an absolute path"),
        (&["apply", "--mount", "/data", "--fs", "zfs"], 64, "zfs"),
        (&["apply", "--config", "/nonexistent"], 78, "cannot read /nonexistent"),
        (
            &["apply", "--mount", "/nonexistent/x", "--device", "/dev/nonexistent", "--wait", "0"],
            71,
            "there is no device",
        ),
    ] {
        let output = program(&place, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains(expected), "{output:?}");
    }
}
