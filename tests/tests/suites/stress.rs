//! stress-ng's stressors for file systems, one after the other, in the view.
//!
//! `STRESS_SECONDS` sets how long each takes (20).

use std::path::Path;

use tests::bucket::Bucket;
use tests::tools;
use tests::view::View;

/// Those of the class that say nothing about the view, with the reason.
const NOT_FOR_A_VIEW: [(&str, &str); 6] = [
    ("bind-mount", "fills the machine's mount table; stress-ng itself leaves it out"),
    ("binderfs", "mounts a file system of its own"),
    ("eventfd", "uses no file"),
    ("ioprio", "sets priorities of processes"),
    ("procfs", "reads /proc"),
    ("verity", "fs-verity is not switched on in the file systems below"),
];

/// Some stressors use every file system that is mounted. Those of tests that run beside this one are taken out of their sight.
const ALONE: &str = r#"
here=$1; temporary=$2; shift 2
while read -r _ target type _; do
    case $type:$target in
    fuse.fuse-oss:"$here"* | overlay:"$here"*) ;;
    fuse.fuse-oss:"$temporary"* | overlay:"$temporary"*) umount -l "$target" ;;
    esac
done < /proc/self/mounts
exec "$@"
"#;

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_stress_ng_finds_nothing() {
    let program = tools::system("stress-ng", "stress-ng");
    let seconds: u64 = std::env::var("STRESS_SECONDS").map_or(20, |text| text.parse().unwrap());
    // It says which there are, and calls it an error that it was only asked.
    let listed = tools::limited(60, &program).args(["--class", "filesystem?"]).output().unwrap();
    let listed = tools::said(&listed);
    let all: Vec<&str> = listed.split_once("stressors: ").unwrap().1.split_whitespace().collect();
    assert!(all.len() > 35, "{listed}");
    for (name, reason) in NOT_FOR_A_VIEW {
        println!("SKIPPED {name}: {reason}");
    }

    let view = View::of(Bucket::new());
    view.mount();
    let mut failed = Vec::new();
    for name in all.into_iter().filter(|name| NOT_FOR_A_VIEW.iter().all(|(skipped, _)| skipped != name)) {
        let mut command = tools::limited(seconds * 3 + 120, "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ALONE, "sh"]);
        command.arg(view.root()).arg(std::env::temp_dir()).arg(&program).args([
            format!("--{name}"),
            "2".to_owned(),
            "--timeout".to_owned(),
            format!("{seconds}s"),
        ]);
        command.args(["--verify", "--temp-path"]).arg(view.root()).current_dir(Path::new("/"));
        let output = command.output().unwrap();
        let said = tools::said(&output);
        // 3 and 4: it had not what it needs. Then it does not belong on the list of what is run.
        let fine = output.status.success() && !said.contains("skipping stress") && !said.contains("stress-ng: fail");
        println!("stress-ng --{name}: {}", if fine { "passed" } else { "FAILED" });
        if !fine {
            failed.push(format!("{name}: {}\n{said}", output.status));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    view.unmount();
}
