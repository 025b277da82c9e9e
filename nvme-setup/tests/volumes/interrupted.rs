//! Runs that are stopped or killed, and taken up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nvme_setup::{Fs, SetupError, Step};

use crate::common::{Disk, SIZE, run};
use crate::place::{Place, mounts_below, steps};
use crate::program::program;

#[test]
fn a_run_that_stops_between_any_two_steps_is_taken_up() {
    for fs_name in [Fs::Xfs, Fs::Ext4] {
        let place = Place::new();
        for number in 0..20 {
            let disk = Disk::new(SIZE);
            let mut request = place.request(&disk);
            request.volumes[0].fs = Some(fs_name);
            request.volumes[0].swap = Some(16);
            let stopped = match place.apply_until(&request, number) {
                Err(SetupError::Stopped(_)) => true,
                Ok(_) => false,
                Err(error) => panic!("{number}: {error}"),
            };
            // Half of the time the machine is started again in between.
            if number % 2 == 1 {
                place.reboot();
            }
            place.apply(&request).unwrap_or_else(|error| panic!("{fs_name}, after {number} steps: {error}"));
            assert_eq!(steps(&place.apply(&request).unwrap()), Vec::<String>::new());
            place.setup.release(Some(&request)).unwrap();
            assert!(mounts_below(&place.at("data")).is_empty());
            if !stopped {
                assert!(number >= 7, "{number}");
                return_to_empty(&place);
                break;
            }
            return_to_empty(&place);
        }
    }
}

fn return_to_empty(place: &Place) {
    fs::remove_dir(place.at("data")).unwrap();
}

/// The path of a program of the system.
fn system_program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; install the package that has it"))
}

/// Makes `mkfs` die before its write with this number.
pub fn kill_mkfs_at(place: &Place, name: &str, number: u32) {
    let (strace, mkfs) = (system_program("strace"), system_program(name));
    place.program(
        name,
        &format!(
            "exec {} -f -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=SIGKILL:when={number} {} \"$@\"",
            strace.display(),
            mkfs.display()
        ),
    );
}

#[test]
fn mkfs_xfs_that_is_killed_at_any_write_is_done_again() {
    let place = Place::new();
    let (mut killed, mut cleared) = (0, 0);
    for number in (1..100).step_by(6) {
        let disk = Disk::new(SIZE);
        let request = place.request(&disk);
        kill_mkfs_at(&place, "mkfs.xfs", number);
        let result = place.apply(&request);
        place.forget_program("mkfs.xfs");
        match result {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("signal: 9"), "{error}"),
        }
        killed += 1;
        // It may happen twice.
        if number % 2 == 0 {
            kill_mkfs_at(&place, "mkfs.xfs", number / 2);
            assert!(place.apply(&request).is_err());
            place.forget_program("mkfs.xfs");
        }
        let report = place.apply(&request).unwrap_or_else(|error| panic!("killed at write {number}: {error}"));
        cleared += usize::from(report.done.iter().any(|planned| matches!(planned.step, Step::Clear { .. })));
        fs::write(place.at("data/file"), "content").unwrap();
        place.reboot();
        // Another test that looked at the device while it was unmounted has kept an old superblock in its cache.
        run("blockdev", "util-linux", &["--flushbufs", disk.path()]);
        run("xfs_repair", "xfsprogs", &["-n", disk.path()]);
    }
    assert!((6..17).contains(&killed) && cleared > 4, "{killed} {cleared}");
}

#[test]
fn an_unfinished_ext4_is_finished_or_refused_and_never_mounted() {
    let place = Place::new();
    let (mut killed, mut refusals) = (0, 0);
    for number in (1..500).step_by(53) {
        let disk = Disk::new(SIZE);
        let request = place.ext4(&disk);
        kill_mkfs_at(&place, "mkfs.ext4", number);
        let result = place.apply(&request);
        place.forget_program("mkfs.ext4");
        match result {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("signal: 9"), "{error}"),
        }
        killed += 1;
        disk.remember();
        match place.apply(&request) {
            Ok(_) => {
                place.reboot();
                run("e2fsck", "e2fsprogs", &["-f", "-n", disk.path()]);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("this node began to make and did not finish"), "{text}");
                assert!(text.contains("wipefs --all"), "{text}");
                disk.is_as_remembered();
                refusals += 1;
            }
        }
    }
    assert!((4..10).contains(&killed) && refusals > 1, "{killed} {refusals}");
}

#[test]
fn the_program_can_be_killed_at_any_moment() {
    let place = Place::new();
    let at = place.at("data");
    for round in 0..10_u32 {
        let disk = Disk::new(SIZE);
        let arguments = ["apply", "--device", disk.path(), "--mount", at.to_str().unwrap()];
        for attempt in 0..4 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_nvme-setup"))
                .args(arguments)
                .args(["--node", &place.node])
                .stderr(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(u64::from(round * 7 + attempt * 23)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = program(&place, &arguments);
        assert_eq!(output.status.code(), Some(0), "{round}: {output:?}");
        fs::write(at.join("file"), "content").unwrap();
        place.reboot();
    }
}

#[test]
fn two_runs_at_once_do_the_work_once() {
    let (place, disk) = (Place::new(), Disk::new(SIZE));
    let request = place.request(&disk);
    let done: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| place.apply(&request).unwrap().done.len())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(done, 5);
}
