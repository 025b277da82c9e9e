//! Between this process's standard streams and a program in a container: what `batch-agent enter` does while the program runs.
//!
//! One loop that waits for all of them at once. What the program does not take yet must not keep its output from being shown, or both
//! would wait for each other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::http::Answer;
use super::output::{Frames, Stream};

/// The most that is read at once, in bytes.
const PIECE: usize = 16 << 10;

/// How a program is talked to.
pub(super) struct Relay<'a> {
    /// Whether a person sits at a terminal, and the program is to see one.
    pub terminal: bool,
    /// Is told the terminal's rows and columns, whenever they change.
    pub resize: &'a dyn Fn((u16, u16)),
    /// Ends the program, because this process is to end.
    pub end: &'a dyn Fn(),
}

/// Whether standard input and output are a terminal.
pub(super) fn is_terminal() -> bool {
    use std::io::IsTerminal;
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal as the program sees it: keys go to the program as they are. Dropped, it is as it was.
struct Raw(Termios);

impl Raw {
    fn new() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

impl Relay<'_> {
    /// Passes everything on until the program closes its end.
    ///
    /// # Errors
    /// When the connection breaks, or a stream of ours does.
    pub(super) fn run(&self, mut program: Answer) -> io::Result<()> {
        let signals = signals()?;
        let _raw = self.terminal.then(Raw::new).flatten();
        let mut to_program = program.connection()?;
        to_program.set_read_timeout(None)?;
        to_program.set_nonblocking(true)?;
        let (mut frames, mut pending, mut input_is_over) = (Frames::default(), Vec::new(), false);
        self.tell_size();
        loop {
            let has_more = program.has_more();
            let from_program =
                if pending.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
            let stdin = io::stdin();
            let mut polled =
                vec![PollFd::new(to_program.as_fd(), from_program), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if pending.is_empty() && !input_is_over {
                polled.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            let _ = poll(&mut polled, if has_more { PollTimeout::ZERO } else { PollTimeout::NONE });
            let happened: Vec<bool> = polled.iter().map(|polled| polled.any().unwrap_or(false)).collect();
            drop(polled);
            if happened[1] {
                while let Ok(Some(signal)) = signals.read_signal() {
                    if signal.ssi_signo == Signal::SIGWINCH as u32 { self.tell_size() } else { (self.end)() }
                }
            }
            if happened.get(2) == Some(&true) {
                let mut piece = vec![0; PIECE];
                // Not through a buffer: polling does not show what is in one.
                match nix::unistd::read(&stdin, &mut piece) {
                    Ok(0) | Err(nix::Error::EIO) => input_is_over = true,
                    Ok(count) => pending.extend_from_slice(&piece[..count]),
                    Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                    Err(errno) => return Err(errno.into()),
                }
                if input_is_over {
                    let _ = to_program.shutdown(Shutdown::Write);
                }
            }
            send(&mut to_program, &mut pending);
            if (happened[0] || has_more) && self.show(&mut program, &mut frames)? {
                return Ok(());
            }
        }
    }

    /// Shows a piece of what the program prints. Says whether that was the end.
    fn show(&self, program: &mut Answer, frames: &mut Frames) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let count = match program.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            // It has hung up.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error),
        };
        let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
        if self.terminal {
            // There is one stream, and no frames around it.
            stdout.write_all(&piece[..count])?;
        } else {
            let mut shown = Ok(());
            let taken = frames.take(&piece[..count], |stream, content| {
                let written = match stream {
                    Stream::Stdout => stdout.write_all(content),
                    Stream::Stderr => stderr.write_all(content),
                };
                if written.is_err() {
                    shown = written;
                }
            });
            shown?;
            taken.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "what comes from it is not understood"))?;
        }
        stdout.flush()?;
        Ok(false)
    }

    fn tell_size(&self) {
        if !self.terminal {
            return;
        }
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointer is to a live variable of the type that this request writes.
        if unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) } == 0 && size.ws_row > 0 {
            (self.resize)((size.ws_row, size.ws_col));
        }
    }
}

/// Sends what the other end takes now. One that takes nothing any more gets nothing any more.
fn send(to: &mut UnixStream, pending: &mut Vec<u8>) {
    while !pending.is_empty() {
        match to.write(pending) {
            Ok(count) => drop(pending.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => pending.clear(),
        }
    }
}

/// What ends this process, and what says that its terminal has changed, as a descriptor.
fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
