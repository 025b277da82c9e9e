//! What the keeper keeps of a mount: descriptors, and how they travel between processes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

/// What is kept of a mount, in the order in which it travels.
#[derive(Debug)]
pub struct Files {
    /// The request it was made from, in memory; see [`Kept`](crate::server::keeping::Kept).
    pub request: OwnedFd,
    /// The connection to the kernel.
    pub device: OwnedFd,
    /// Its open files.
    pub ledger: OwnedFd,
    /// The names it has shown; none when there was no room for it.
    pub journal: Option<OwnedFd>,
    /// The lock on what is written to it, where it can be written to.
    pub upper: Option<OwnedFd>,
}

/// Which of those that a mount need not have there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// A journal.
    pub journal: bool,
    /// The lock of an upper layer.
    pub upper: bool,
}

impl Files {
    /// To be sent.
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        let always = [&self.request, &self.device, &self.ledger];
        always.into_iter().chain(&self.journal).chain(&self.upper).map(AsFd::as_fd).collect()
    }

    /// The same once more.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let optional = |file: &Option<OwnedFd>| file.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self {
            request: self.request.try_clone()?,
            device: self.device.try_clone()?,
            ledger: self.ledger.try_clone()?,
            journal: optional(&self.journal)?,
            upper: optional(&self.upper)?,
        })
    }

    /// Which there are.
    pub fn parts(&self) -> Parts {
        Parts { journal: self.journal.is_some(), upper: self.upper.is_some() }
    }

    /// As they were received; none when there are too few.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>, parts: Parts) -> Option<Self> {
        let mut rest = descriptors.into_iter();
        Some(Self {
            request: rest.next()?,
            device: rest.next()?,
            ledger: rest.next()?,
            journal: if parts.journal { Some(rest.next()?) } else { None },
            upper: if parts.upper { Some(rest.next()?) } else { None },
        })
    }
}
