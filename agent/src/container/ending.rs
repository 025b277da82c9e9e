//! Why a container did not start, read from the engine's words.
//!
//! Engines give one HTTP status for everything that goes wrong at the start, so their words are all there is to tell a program that
//! is missing (a user's mistake, 127), one that cannot be executed (126) and a failure of the engine's own (125).

use crate::shim::StartFailure;

/// The engine failed, and not the program.
const ENGINE: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// What a refusal to start the container means for `program`.
pub(super) fn start_failure(program: &str, image: &str, said: &str) -> StartFailure {
    let about_program = said.contains("exec: ")
        || said.contains("executable file")
        || said.contains("a command that was not found")
        || said.contains("exec user process");
    let has = |words: &[&str]| words.iter().any(|words| said.contains(words));
    let (exit_code, by_platform, why) = if !about_program {
        (ENGINE, true, format!("the container of {image} could not be started: {said}"))
    } else if has(&["permission denied", "is a directory", "exec format error"]) {
        let why = if said.contains("exec format error") {
            "is not a program for this machine, or a script without an interpreter line"
        } else {
            "may not be executed in the image; run: chmod +x on it"
        };
        (NOT_EXECUTABLE, false, format!("program {program:?} {why} ({said})"))
    } else if has(&["not found", "no such file or directory", "not a directory"]) {
        let why = format!(
            "was not found in the image {image}; install it there, or name it with its path (./{program} for one in the package)"
        );
        (NOT_FOUND, false, format!("program {program:?} {why} ({said})"))
    } else {
        (ENGINE, true, format!("the container of {image} could not be started: {said}"))
    };
    StartFailure { exit_code, message: why, by_platform }
}

/// The engine would not even make the container, or lost it.
pub(super) fn engine_failure(message: String) -> StartFailure {
    StartFailure { exit_code: ENGINE, message, by_platform: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words are those of Docker 20.10 and 28 with runc 1.1, and of Podman 4.3 with runc and crun.
    #[test]
    fn the_engines_failures_are_told_from_the_programs() {
        let docker = "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: \
                      unable to start container process: ";
        for (said, exit_code) in [
            (format!("{docker}exec: \"nope\": executable file not found in $PATH: unknown"), 127),
            (format!("{docker}exec: \"./nope\": stat ./nope: no such file or directory: unknown"), 127),
            (format!("{docker}exec: \"/etc/passwd\": permission denied: unknown"), 126),
            (format!("{docker}exec: \"/etc\": is a directory: unknown"), 126),
            (format!("{docker}exec: \"./worker\": exec format error: unknown"), 126),
            ("runc: runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH: OCI \
              runtime attempted to invoke a command that was not found".to_owned(), 127),
            ("crun: executable file `nope` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that \
              was not found".to_owned(), 127),
            ("error while creating mount source path '/run/x': mkdir /run/x: permission denied".to_owned(), 125),
            (format!("{docker}error during container init: error mounting \"/run/x\" to rootfs at \"/y\": no such file or directory"), 125),
            ("cgroups: cannot find cgroup mount destination: unknown".to_owned(), 125),
        ] {
            let failure = start_failure("nope", "registry.example/x:1", &said);
            assert_eq!((failure.exit_code, failure.by_platform), (exit_code, exit_code == 125), "{said}");
            assert!(failure.message.contains(&said));
        }
    }
}
