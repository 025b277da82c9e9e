//! Something to be done in another thread while the keeper keeps.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{ErrorKind, MountError};

/// Something to be done once the server answers (a foreground mount); its failure ends the server.
pub type Errand = Box<dyn FnOnce() -> Result<(), MountError> + Send>;

/// Does errands, and says when one is done.
#[derive(Debug)]
pub struct Errands {
    wake: EventFd,
    sender: mpsc::Sender<Result<(), MountError>>,
    results: mpsc::Receiver<Result<(), MountError>>,
}

impl Errands {
    /// None so far.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when there are no descriptors left.
    pub fn new() -> Result<Self, MountError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| {
            MountError::new(ErrorKind::System, format_args!("cannot make an eventfd: {}", errno.desc()))
        })?;
        let (sender, results) = mpsc::channel();
        Ok(Self { wake, sender, results })
    }

    /// Begins one.
    pub fn begin(&self, errand: Errand) {
        let sender = self.sender.clone();
        let wake = self.wake.as_fd().try_clone_to_owned();
        let run = move || {
            // A keeper that is not there any more needs no answer.
            let _ = sender.send(errand());
            if let Ok(wake) = wake {
                let _ = nix::unistd::write(wake, &1_u64.to_ne_bytes());
            }
        };
        if let Err(error) = std::thread::Builder::new().name("errand".to_owned()).spawn(run) {
            let error = MountError::new(ErrorKind::System, format_args!("cannot start a thread: {error}"));
            let _ = self.sender.send(Err(error));
            let _ = self.wake.write(1);
        }
    }

    /// How one has ended, if one has.
    pub fn ended(&self) -> Option<Result<(), MountError>> {
        // Only there to wake us; how often it did does not matter.
        let _ = self.wake.read();
        self.results.try_recv().ok()
    }
}

impl AsFd for Errands {
    /// Readable when one has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn the_end_of_one_is_seen_by_whoever_polls() {
        let errands = Errands::new().unwrap();
        assert!(errands.ended().is_none());
        errands.begin(Box::new(|| Err(MountError::new(ErrorKind::NotFound, "it is not there"))));
        let mut waited = [PollFd::new(errands.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut waited, PollTimeout::from(5000_u16)).unwrap(), 1);
        assert_eq!(errands.ended().unwrap().unwrap_err().kind, ErrorKind::NotFound);
        assert!(errands.ended().is_none());
    }
}
