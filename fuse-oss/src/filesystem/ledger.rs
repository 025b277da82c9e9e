//! stub
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[derive(Debug)]
pub struct Ledger(OwnedFd);
impl Ledger {
    pub fn create() -> std::io::Result<Self> {
        Ok(Self(nix::sys::memfd::memfd_create(c"l", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?))
    }
    pub fn from_fd(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self(fd))
    }
}
impl AsFd for Ledger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
