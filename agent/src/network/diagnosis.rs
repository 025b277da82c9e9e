//! What a mount command means by what it prints.
//!
//! Exit statuses say next to nothing: `mount` and `mount.nfs` answer 32 to everything, `mount.lustre` an error number. The
//! words say more. They are those of util-linux 2.23 to 2.40, nfs-utils 1.3 to 2.8 and Lustre 2.10 to 2.16, printed in the C
//! locale; newer ones add `for SOURCE on TARGET` to what older ones print, so everything here looks for the part that all
//! have. Order matters: the more particular is asked first.

use nvme_setup::printable;

use super::error::Cause;
use super::packages::System;
use crate::settings::NetworkFileSystem;

/// How many of the last lines are kept.
const LINES: usize = 5;

/// How much of a message is kept, in characters.
const LENGTH: usize = 600;

/// The server's port: that of NFS unless the option `port` says another, and that of Lustre over TCP.
pub(super) fn port(what: &NetworkFileSystem) -> u16 {
    let given = what.more_options().iter().rev().find_map(|option| option.strip_prefix("port=")?.parse().ok());
    match what {
        NetworkFileSystem::Nfs { .. } => given.unwrap_or(2049),
        NetworkFileSystem::Lustre { .. } => 988,
    }
}

/// The last lines of what a program printed, as one, and safe to show.
pub(super) fn said(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .map(str::trim)
        // util-linux adds this to everything.
        .filter(|line| !line.is_empty() && !line.starts_with("dmesg(1) may have"))
        .collect();
    if lines.is_empty() {
        return "it printed nothing".to_owned();
    }
    let from = lines.len().saturating_sub(LINES);
    let text = lines[from..].iter().map(|line| printable(line)).collect::<Vec<_>>().join(" / ");
    if text.chars().count() <= LENGTH { text } else { text.chars().take(LENGTH).chain(['…']).collect() }
}

/// What kept `what` from being mounted, by what the mount command printed.
pub(super) fn diagnose(what: &NetworkFileSystem, options: &str, output: &str, system: &System) -> Cause {
    let lustre = matches!(what, NetworkFileSystem::Lustre { .. });
    let text = output.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let said = said(output);
    if has(&["you might need a /sbin/mount.", "missing codepage or helper program"]) {
        let program = format!("mount.{}", what.fs_type());
        let install = if lustre { system.lustre_client() } else { system.nfs_client() };
        return Cause::HelperMissing { program, install };
    }
    if has(&["no such device", "unknown filesystem type", "modules loaded?"]) {
        let (module, install) = if lustre { ("lustre", system.lustre_client()) } else { ("nfs", system.nfs_module()) };
        return Cause::ModuleMissing { module, kernel: system.kernel.clone(), said, install };
    }
    if has(&["rpc.statd is not running"]) {
        return Cause::LockService { said };
    }
    if has(&[
        "failed to resolve",
        "name or service not known",
        "name resolution",
        "no address associated",
        "unknown host",
        "can't get address for",
        "can't parse nid",
        "cannot resolve hostname",
        // What nfs-utils makes of a name server that cannot be reached.
        "resource temporarily unavailable",
    ]) {
        return Cause::NameUnknown { said };
    }
    if has(&["connection refused"]) {
        return Cause::Refused { said };
    }
    if has(&["stale file handle", "stale nfs file handle"]) {
        return Cause::Stale { said };
    }
    if has(&[
        "requested nfs version or transport protocol is not supported",
        "protocol not supported",
        "program not registered",
        "program not available",
        "program/version mismatch",
        "prog. not avail",
        "is not supported",
    ]) && !lustre
    {
        // "Protocol not supported" is the answer of a server of version 4 that knows other minor versions; the rest is what a port
        // mapper says, which is there before the file service is.
        return Cause::VersionUnsupported { said, may_be_starting: !has(&["protocol not supported"]) };
    }
    if has(&[
        "timed out",
        "no route to host",
        "network is unreachable",
        "network is down",
        "host is down",
        "connection reset",
        "unable to receive",
        "unable to send",
        "portmap query failed",
        "port mapper failure",
        "is the mgs running?",
        "transport endpoint",
    ]) || (lustre && has(&["input/output error"]))
    {
        return Cause::Unreachable { said, port: port(what) };
    }
    if has(&["access denied", "permission denied", "operation not permitted", "security flavor"]) {
        return Cause::Denied { said };
    }
    // Of the file system, the server says it; a target that is missing is the only other thing, and we have made that.
    if has(&["no such file or directory", "mgs specification correct?"]) && !has(&["mount point"]) {
        return Cause::NoSuchExport { said, lustre };
    }
    if has(&["is not a directory", "not a directory"]) && !lustre {
        return Cause::NoSuchExport { said, lustre };
    }
    if has(&[
        "incorrect mount option",
        "invalid argument",
        "bad option",
        "unsupported nfs mount option",
        "bad nfs mount parameter",
        "can't parse options",
        "parsing error",
        "invalid value for",
        "option parsing error",
        "wrong fs type",
    ]) {
        return Cause::BadOption { said, options: options.to_owned() };
    }
    Cause::Other { said }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(cause: &Cause) -> String {
        let debug = format!("{cause:?}");
        debug[..debug.find([' ', '(', '{']).unwrap_or(debug.len())].to_owned()
    }

    #[test]
    fn words_of_real_programs_mean_what_they_say() {
        let nfs = NetworkFileSystem::parse("nas://h:/d").unwrap();
        let lustre = NetworkFileSystem::parse("h@tcp:/name").unwrap();
        let system = System::here();
        let nfs_words = [
            ("mount.nfs: Failed to resolve server h: Name or service not known", "NameUnknown"),
            ("mount.nfs: Failed to resolve server h: Temporary failure in name resolution", "NameUnknown"),
            ("mount.nfs: Failed to resolve server h: No address associated with hostname", "NameUnknown"),
            ("mount.nfs: Resource temporarily unavailable", "NameUnknown"),
            ("mount.nfs: Resource temporarily unavailable for h:/d on /t", "NameUnknown"),
            ("mount.nfs: DNS resolution failed for h: Name or service not known", "NameUnknown"),
            ("mount.nfs: Connection refused", "Refused"),
            ("mount.nfs: Connection refused for h:/d on /t", "Refused"),
            ("mount.nfs: mount to NFS server 'h' failed: System Error: Connection refused", "Refused"),
            ("mount.nfs: Connection timed out", "Unreachable"),
            ("mount.nfs: Connection timed out for h:/d on /t", "Unreachable"),
            ("mount.nfs: mount to NFS server 'h' failed: timed out, giving up", "Unreachable"),
            ("mount.nfs: mount to NFS server 'h' failed: RPC Error: Timed out", "Unreachable"),
            ("mount.nfs: No route to host", "Unreachable"),
            ("mount.nfs: Network is unreachable", "Unreachable"),
            (
                "mount.nfs: portmap query failed: RPC: Unable to receive; errno = Connection reset by peer",
                "Unreachable",
            ),
            ("mount.nfs: portmap query failed: RPC: Remote system error - Connection refused", "Refused"),
            ("mount.nfs: access denied by server while mounting h:/d", "Denied"),
            ("mount.nfs: access denied by server while mounting (null)", "Denied"),
            ("mount.nfs: Operation not permitted", "Denied"),
            ("mount.nfs: Operation not permitted for h:/d on /t", "Denied"),
            ("mount.nfs: h:/d failed, reason given by server: Permission denied", "Denied"),
            ("mount.nfs: mounting h:/d failed, reason given by server: No such file or directory", "NoSuchExport"),
            ("mount.nfs: mounting h:/d failed, reason given by server:\n  No such file or directory", "NoSuchExport"),
            ("mount.nfs: mount spec h:/d or point /t is not a directory", "NoSuchExport"),
            ("mount.nfs: requested NFS version or transport protocol is not supported", "VersionUnsupported"),
            ("mount.nfs: requested NFS version or transport protocol is not supported for /t", "VersionUnsupported"),
            ("mount.nfs: Protocol not supported for h:/d on /t", "VersionUnsupported"),
            ("mount.nfs: portmap query failed: RPC: Program not registered", "VersionUnsupported"),
            ("mount.nfs: RPC Error: Program/version mismatch", "VersionUnsupported"),
            ("mount.nfs: Stale file handle", "Stale"),
            ("mount.nfs: Stale NFS file handle", "Stale"),
            ("mount.nfs: an incorrect mount option was specified", "BadOption"),
            ("mount.nfs: an incorrect mount option was specified for /t", "BadOption"),
            ("mount.nfs: Unsupported nfs mount option: foo", "BadOption"),
            ("mount.nfs: Invalid argument for h:/d on /t", "BadOption"),
            ("mount.nfs: parsing error on 'vers=' option", "BadOption"),
            (
                "mount.nfs: rpc.statd is not running but is required for remote locking.\nmount.nfs: Either use '-o nolock' \
                 to keep locks local, or start statd.\nmount.nfs: an incorrect mount option was specified",
                "LockService",
            ),
            ("mount.nfs: No such device", "ModuleMissing"),
            ("mount: /t: unknown filesystem type 'nfs'.\n       dmesg(1) may have more information", "ModuleMissing"),
            (
                "mount: /t: bad option; for several filesystems (e.g. nfs, cifs) you might need a /sbin/mount.<type> \
                 helper program.",
                "HelperMissing",
            ),
            (
                "mount: wrong fs type, bad option, bad superblock on h:/d,\n       missing codepage or helper program, or \
                 other error",
                "HelperMissing",
            ),
            ("mount.nfs: mount system call failed", "Other"),
            ("", "Other"),
        ];
        for (words, expected) in nfs_words {
            assert_eq!(name(&diagnose(&nfs, "", words, &system)), expected, "{words}");
        }
        let failed = |errno: &str, more: &str| format!("mount.lustre: mount h@tcp:/name at /t failed: {errno}\n{more}");
        let lustre_words = [
            (failed("Input/output error", "Is the MGS running?"), "Unreachable"),
            (failed("Cannot send after transport endpoint shutdown", ""), "Unreachable"),
            (failed("Connection timed out", ""), "Unreachable"),
            (
                failed(
                    "No such device",
                    "Are the lustre modules loaded?\n Check /etc/modprobe.conf and /proc/filesystems",
                ),
                "ModuleMissing",
            ),
            (
                failed(
                    "No such file or directory",
                    "Is the MGS specification correct?\nIs the filesystem name correct?",
                ),
                "NoSuchExport",
            ),
            (
                failed(
                    "Invalid argument",
                    "This may have multiple causes.\nIs 'name' the correct filesystem name?\nAre the mount options correct?",
                ),
                "BadOption",
            ),
            (failed("Permission denied", ""), "Denied"),
            ("mount.lustre: Can't parse NID 'h@tcp:/name'\n".to_owned(), "NameUnknown"),
            ("mount: /t: unknown filesystem type 'lustre'.".to_owned(), "ModuleMissing"),
        ];
        for (words, expected) in lustre_words {
            assert_eq!(name(&diagnose(&lustre, "", &words, &system)), expected, "{words}");
        }
    }

    #[test]
    fn the_port_that_is_asked_for_is_the_one_that_is_named() {
        let mut nfs = NetworkFileSystem::parse("nas://h:/d").unwrap();
        assert_eq!((port(&nfs), port(&NetworkFileSystem::parse("h@tcp:/name").unwrap())), (2049, 988));
        if let NetworkFileSystem::Nfs { options, .. } = &mut nfs {
            options.push("port=2051".to_owned());
        }
        assert_eq!(port(&nfs), 2051);
    }

    #[test]
    fn a_server_that_may_be_starting_is_told_from_one_that_will_never_do() {
        let nfs = NetworkFileSystem::parse("nas://h:/d").unwrap();
        for (words, expected) in [
            ("mount.nfs: requested NFS version or transport protocol is not supported", true),
            ("mount.nfs: Protocol not supported for h:/d on /t", false),
        ] {
            let cause = diagnose(&nfs, "", words, &System::here());
            let Cause::VersionUnsupported { may_be_starting, .. } = cause else { panic!("{cause:?}") };
            assert_eq!(may_be_starting, expected, "{words}");
        }
    }

    #[test]
    fn what_a_server_says_cannot_forge_lines_and_is_bounded() {
        assert_eq!(
            said("a\n\n b\x1b[31m\ndmesg(1) may have more information after failed mount system call.\n"),
            "a / b\\u{1b}[31m"
        );
        assert_eq!(said(&"x".repeat(5000)).chars().count(), LENGTH + 1);
        assert_eq!(said(" \n"), "it printed nothing");
    }
}
