//! The line between keeper and worker: messages with descriptors attached.
//!
//! A SEQPACKET socket pair: each message is one JSON object, comes whole or not at all, and what was sent before the sender died is
//! still received. That is what makes a mount safe to hand over: once [`Link::send`] has returned, the descriptors are the kernel's
//! to deliver, whatever happens to the worker.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, sendmsg, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, in bytes: a path and some numbers.
const LONGEST: usize = 32 << 10;

/// The most descriptors one message carries.
pub const MOST_DESCRIPTORS: usize = 8;

/// How long a message may wait for the other end to read the ones before it.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// One end of the line.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// A line and its two ends.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::from(one), Self::from(other)))
    }

    /// The line to whoever listens at this path.
    ///
    /// # Errors
    /// When nobody does.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self::from(socket))
    }

    /// From now on, to wait longer than that for a message is an error.
    pub fn give_up_after(&self, limit: Duration) {
        // Without it an end that hangs would be waited for, and nothing else would be different.
        let _ = setsockopt(&self.socket, sockopt::ReceiveTimeout, &time_val(limit));
    }

    /// Sends a message; the descriptors are duplicated for the other end.
    ///
    /// # Errors
    /// `EPIPE` when the other end is gone, `EAGAIN` when it has not read for ten seconds.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > LONGEST || descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&text)], control, MsgFlags::MSG_NOSIGNAL, None)
            {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for the next message; none when the other end is gone.
    ///
    /// # Errors
    /// When what came is no message.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let (len, truncated, descriptors) = loop {
            let mut parts = [IoSliceMut::new(&mut text)];
            let received =
                recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
            let received = match received {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => return Ok(None),
                other => other?,
            };
            let mut descriptors = Vec::new();
            for control in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made these descriptors for us, and nobody else knows of them.
                    descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let truncated = received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
            break (received.bytes, truncated, descriptors);
        };
        if len == 0 {
            return Ok(None);
        }
        if truncated {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message did not come whole"));
        }
        Ok(Some((serde_json::from_slice(&text[..len])?, descriptors)))
    }
}

impl From<OwnedFd> for Link {
    fn from(socket: OwnedFd) -> Self {
        // Without the limit a send to an end that hangs would take for ever, and nothing else would be different.
        let _ = setsockopt(&socket, sockopt::SendTimeout, &time_val(SEND_LIMIT));
        Self { socket }
    }
}

fn time_val(limit: Duration) -> TimeVal {
    TimeVal::seconds(i64::try_from(limit.as_secs()).unwrap_or(i64::MAX))
}

/// Waits at a path for the other end of a line.
#[derive(Debug)]
pub struct LinkListener {
    socket: OwnedFd,
}

impl LinkListener {
    /// At this path, where only we and root can come. For the owner of the directory: what is there is left from one that has died.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(path);
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let bound = bind(socket.as_raw_fd(), &UnixAddr::new(path)?);
        nix::sys::stat::umask(mask);
        bound?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(Self { socket })
    }

    /// Takes the one that has come.
    ///
    /// # Errors
    /// When it has gone again.
    pub fn accept(&self) -> io::Result<Link> {
        let accepted = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Link::from(unsafe { OwnedFd::from_raw_fd(accepted) }))
    }
}

impl AsFd for LinkListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    #[test]
    fn descriptors_arrive_after_the_sender_has_gone() {
        let (one, other) = Link::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"held").unwrap();
        one.send(&("a", 1), &[file.as_fd(), file.as_fd()]).unwrap();
        one.send(&("b", 2), &[]).unwrap();
        drop((one, file));
        let (message, descriptors) = other.receive::<(String, u32)>().unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (("a".to_owned(), 1), 2));
        let mut file = File::from(descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "held");
        assert!(nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0);
        let (message, descriptors) = other.receive::<(String, u32)>().unwrap().unwrap();
        assert_eq!((message.1, descriptors.len()), (2, 0));
        assert!(other.receive::<(String, u32)>().unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let (one, other) = Link::pair().unwrap();
        let error = one.send(&"x".repeat(LONGEST), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        drop(other);
        assert_eq!(one.send(&"x", &[]).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
}
