//! POSIX as pjdfstest has it, in full but for character devices.
//!
//! overlayfs keeps the character device 0:0 for its own use, as the mark of what was deleted, and so refuses to make it (EPERM):
//! the tests that are named `::char` use that very device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tests::bucket::{Bucket, sample};
use tests::tools;
use tests::view::View;

/// Those of the `::char` tests that make another device than 0:0, or in whose course none has to be made.
const CHAR_BUT_WORKING: [&str; 2] = ["mknod::changed_times_success::char", "mknod::device_files::char"];

/// What pjdfstest itself leaves out here, with the reason.
const SKIPPED: [(&str, &str); 1] =
    [("link::link_count_max", "the C library knows no limit of hard links for overlayfs, so there is none to reach")];

/// What Linux file systems have. `chflags`, NFSv4 access control lists and snapshot flags are BSD's.
const FEATURES: [&str; 5] = ["posix_fallocate", "rename_ctime", "stat_st_birthtime", "utime_now", "utimensat"];

/// Longer than the kernel's clock for time stamps takes for a tick at 100 Hz.
const NAP: f64 = 0.02;

/// Two users that the suite acts for; they exist in the suite's own mount namespace only.
const USERS: [(&str, u32); 2] = [("tests", 64_901), ("pjdfstest", 64_902)];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    Failed(String),
}

#[test]
fn posix_holds() {
    let view = View::of(Bucket::new());
    view.bucket.put("an object", sample(1, 100_000));
    view.mount();
    // Tests for read-only file systems mount the view read-only and so cannot do with what failed tests have left open.
    let (remounting, most) = (run(&view, true, &["erofs"]), run(&view, false, &[]));
    view.unmount();

    assert!(remounting.len() >= 13, "{remounting:?}");
    let mut outcomes = most;
    outcomes.extend(remounting);
    let count = |wanted: fn(&Outcome) -> bool| outcomes.values().filter(|outcome| wanted(outcome)).count();
    let passed = count(|outcome| *outcome == Outcome::Passed);
    println!("pjdfstest: {passed} of {} passed", outcomes.len());
    let mut wrong = Vec::new();
    for (name, outcome) in &outcomes {
        let skipped = SKIPPED.iter().find(|(skipped, _)| skipped == name);
        let refused = name.ends_with("::char") && !CHAR_BUT_WORKING.contains(&name.as_str());
        match outcome {
            Outcome::Passed if skipped.is_none() && !refused => {}
            Outcome::Skipped if skipped.is_some() => {
                println!("SKIPPED {name}: {}", skipped.map_or("", |(_, reason)| reason));
            }
            Outcome::Failed(why) if refused && why.contains("EPERM") => {
                println!("SKIPPED {name}: overlayfs keeps the character device 0:0 for itself");
            }
            // Also what is expected to fail and does not: then these lists are wrong.
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert!(passed >= 350, "only {passed} passed: is the suite complete?");
    for (name, _) in SKIPPED {
        assert!(outcomes.contains_key(name), "{name} is no more: see the list of what is skipped");
    }
}

/// Runs tests whose names hold one of the patterns, or all; each test's outcome.
fn run(view: &View, allow_remount: bool, patterns: &[&str]) -> BTreeMap<String, Outcome> {
    let sandbox = &view.bucket.sandbox;
    let (passwd, group) = (sandbox.path("passwd"), sandbox.path("group"));
    let extended = |path: &str, line: &dyn Fn(&str, u32) -> String| {
        let mut text = fs::read_to_string(path).unwrap();
        for (name, id) in USERS {
            if !text.lines().any(|line| line.starts_with(&format!("{name}:"))) {
                text.push_str(&line(name, id));
            }
        }
        text
    };
    fs::write(&passwd, extended("/etc/passwd", &|name, id| format!("{name}:x:{id}:{id}::/:/usr/sbin/nologin\n")))
        .unwrap();
    fs::write(&group, extended("/etc/group", &|name, id| format!("{name}:x:{id}:\n"))).unwrap();
    let settings = sandbox.path("pjdfstest.toml");
    let features: String = FEATURES.iter().map(|feature| format!("{feature} = {{}}\n")).collect();
    let users = USERS.map(|(name, _)| format!("[\"{name}\", \"{name}\"]")).join(", ");
    let text = format!(
        "[features]\n{features}[settings]\nnaptime = {NAP}\nallow_remount = {allow_remount}\n\
         [dummy_auth]\nentries = [{users}]\n"
    );
    fs::write(&settings, text).unwrap();

    // For renames and links that go too far.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let script = "mount --bind \"$1\" /etc/passwd && mount --bind \"$2\" /etc/group && shift 2 && exec \"$@\"";
    let mut command = tools::limited(300, "unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh"]).args([&passwd, &group]);
    command.arg(tools::suite("pjdfstest")).arg("--configuration-file").arg(&settings);
    command.arg("--path").arg(view.root()).arg("--secondary-fs").arg(elsewhere.path()).args(patterns);
    command.current_dir(Path::new("/")).env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
    let output = command.output().unwrap();
    let said = tools::said(&output);
    assert!(matches!(output.status.code(), Some(0 | 1)) && said.contains("Summary"), "{}\n{said}", output.status);
    outcomes(&said)
}

/// Reads `NAME  ok`, `NAME  skipped` and `NAME  FAILED`, the last with its reason on lines that are indented.
fn outcomes(said: &str) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    let mut last = None;
    for line in said.lines() {
        if line.starts_with(char::is_whitespace) {
            if let Some(Outcome::Failed(why)) = last.as_ref().and_then(|name| outcomes.get_mut(name)) {
                why.push_str(line.trim());
            }
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[name, how] = words.as_slice() else { continue };
        let outcome = match how {
            "ok" => Outcome::Passed,
            "skipped" => Outcome::Skipped,
            "FAILED" => Outcome::Failed(String::new()),
            _ => continue,
        };
        last = Some(name.to_owned());
        assert!(outcomes.insert(name.to_owned(), outcome).is_none(), "{name} came twice");
    }
    outcomes
}

#[test]
fn what_the_suite_says_is_understood() {
    let said = "chmod::eperm   ok\nlink::max  skipped\n\tno limit\nopen::x::char  FAILED\n\tan `Err` value: EPERM\nSummary: 1 failed\n";
    let outcomes = outcomes(said);
    assert_eq!(outcomes.len(), 3);
    assert_eq!(outcomes["chmod::eperm"], Outcome::Passed);
    assert_eq!(outcomes["link::max"], Outcome::Skipped);
    assert_eq!(outcomes["open::x::char"], Outcome::Failed("an `Err` value: EPERM".to_owned()));
}
