//! Telling that a large object is about to be copied into an upper layer.
//!
//! A program that appends one byte to an object of 500 GB waits until all of it is fetched and written to the local disk, and nothing
//! tells it so: hence a line in the log, when that begins. What the mount below sees of it is an open for reading and then reads, just as
//! for a reader: the flags are the same (measured on Linux 6.18: both carry `O_NOATIME`). What tells them apart is what the process
//! is doing at that moment, waiting for our answer: a reader is inside an open(2) for reading or an execve(2), everything else that
//! overlayfs opens the content of a file for is a copy. So for large objects, and only those, `/proc/<thread>/syscall` is asked.
//!
//! Overlays that others have put over a mount of ours are seen in the same way. Who reads without an overlay is never taken for a
//! copier: a file of a mount that only shows cannot be opened for writing.

use std::fs;

/// Copying up more than this is worth a line in the log, in bytes.
pub const LARGE: u64 = 1 << 30;

/// Whether a large file of a lower layer is opened, with these flags, because it will be copied.
pub fn begins(size: u64, flags: i32, tid: u32) -> bool {
    // Without that flag overlayfs opens a file to read its attributes, which it does for every copy as well.
    size > LARGE && flags & libc::O_NOATIME != 0 && is_under_way(tid) == Some(true)
}

/// Whether the thread `tid`, which waits for a file of a lower layer to be opened, is about to have it copied: `None` when the
/// system does not say.
fn is_under_way(tid: u32) -> Option<bool> {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    Call::parse(&text)?.copies()
}

/// What a thread has asked of the kernel.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    number: i64,
    arguments: Vec<u64>,
}

impl Call {
    /// Reads `257 0xffffff9c 0x7ffe6f60fa87 0x0 ...`; `running` and `-1 ...` are no call.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
        let arguments =
            words.map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).take(6).collect();
        Some(Self { number, arguments })
    }

    fn copies(&self) -> Option<bool> {
        let flags_at = match self.number {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => Some(1),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat => return Some(true),
            libc::SYS_openat | libc::SYS_open_by_handle_at => Some(2),
            // Its flags are in the caller's memory. That may lie in a file of this very mount, so looking there could wait for
            // ourselves.
            libc::SYS_openat2 => return None,
            libc::SYS_execve | libc::SYS_execveat => None,
            // A read through a file that is open already, or its pages: the kernel may open what is below anew.
            libc::SYS_read
            | libc::SYS_pread64
            | libc::SYS_readv
            | libc::SYS_preadv
            | libc::SYS_preadv2
            | libc::SYS_sendfile
            | libc::SYS_splice
            | libc::SYS_mmap
            | libc::SYS_io_uring_enter => None,
            _ => return Some(true),
        };
        match flags_at {
            Some(at) => Some(is_for_writing(*self.arguments.get(at)?)),
            None => Some(false),
        }
    }
}

/// Whether open(2) with these flags makes an overlay copy the file. With `O_TRUNC` it copies no content.
fn is_for_writing(flags: u64) -> bool {
    let has = |mask: i32| u64::try_from(mask).is_ok_and(|mask| flags & mask != 0);
    has(libc::O_ACCMODE) && !has(libc::O_TRUNC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copies(number: i64, arguments: &[u64]) -> Option<bool> {
        Call { number, arguments: arguments.to_vec() }.copies()
    }

    #[test]
    fn readers_and_copiers_are_told_apart() {
        let flags = |flags: i32| u64::try_from(flags).unwrap();
        assert_eq!(copies(libc::SYS_openat, &[0, 1, flags(libc::O_RDONLY | libc::O_CLOEXEC)]), Some(false));
        assert_eq!(copies(libc::SYS_openat, &[0, 1, flags(libc::O_WRONLY | libc::O_APPEND)]), Some(true));
        assert_eq!(copies(libc::SYS_openat, &[0, 1, flags(libc::O_RDWR)]), Some(true));
        assert_eq!(copies(libc::SYS_openat, &[0, 1, flags(libc::O_RDWR | libc::O_TRUNC)]), Some(false));
        assert_eq!(copies(libc::SYS_execve, &[1, 2, 3]), Some(false));
        assert_eq!(copies(libc::SYS_truncate, &[1, 100]), Some(true));
        assert_eq!(copies(libc::SYS_openat, &[0]), None);
        assert_eq!(copies(libc::SYS_openat2, &[0, 1, 2, 24]), None);
    }

    proptest! {
        #[test]
        fn whatever_the_system_says_is_survived(text in "\\PC*", call in "[0-9]{1,3}( 0x[0-9a-f]{0,17}){0,9}") {
            let _ = Call::parse(&text).and_then(|call| call.copies());
            let _ = Call::parse(&call).and_then(|call| call.copies());
        }
    }

    #[test]
    fn the_system_says_what_a_thread_waits_in() {
        let call = Call::parse("257 0xffffff9c 0x7ffe 0x441 0x1b6 0x0 0x20 0x7ffcf1d5ca70 0x7ff14e61b011\n").unwrap();
        assert_eq!(call, Call { number: 257, arguments: vec![0xffff_ff9c, 0x7ffe, 0x441, 0x1b6, 0, 0x20] });
        assert_eq!(Call::parse("running\n"), None);
        assert_eq!(Call::parse("-1 0x7ffe 0x7fff\n"), None);
        assert_eq!(is_under_way(u32::MAX), None);
    }
}
