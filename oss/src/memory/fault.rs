//! What can be made to go wrong.

use std::ops::Range;

use crate::error::ErrorKind;
use crate::location::Key;

/// The methods of [`Store`](crate::Store) that would send a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are the methods of the trait")]
pub enum Operation {
    Head,
    Get,
    Put,
    CreateMultipart,
    PutPart,
    CopyPart,
    CompleteMultipart,
    AbortMultipart,
    ListParts,
    ListUploads,
    List,
    Delete,
    Copy,
    Append,
}

/// What a hook is told about a call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which method.
    pub operation: Operation,
    /// Of which object (of a listing: the prefix; of a copy: the destination).
    pub key: Key,
    /// The bytes asked for, of a get.
    pub range: Option<Range<u64>>,
    /// How many bytes came with it, of a write.
    pub len: usize,
}

/// What shall happen to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It works.
    None,
    /// It fails and has changed nothing.
    Before(ErrorKind),
    /// It takes effect, and fails: the reply was lost. As `Before` where there is no effect.
    After(ErrorKind),
    /// It fails, and takes effect all the same, but only just before the second call after it: the request was still under
    /// way when its sender gave it up. Puts and appends only; others are as `Before`.
    Late(ErrorKind),
    /// One byte is changed on the way, unnoticed: of what a get answers or of what a write stores.
    WrongByte,
}

/// What checksum the store keeps of whole objects and tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// None.
    Nothing,
    /// CRC-64/XZ, as OSS.
    Crc64,
    /// CRC-64/NVME, as S3.
    Crc64Nvme,
    /// MD5, of objects put in one piece.
    Md5,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Head => "HEAD",
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::CreateMultipart => "CREATE UPLOAD",
            Self::PutPart => "PUT PART",
            Self::CopyPart => "COPY PART",
            Self::CompleteMultipart => "COMPLETE UPLOAD",
            Self::AbortMultipart => "ABORT UPLOAD",
            Self::ListParts => "LIST PARTS",
            Self::ListUploads => "LIST UPLOADS",
            Self::List => "LIST",
            Self::Delete => "DELETE",
            Self::Copy => "COPY",
            Self::Append => "APPEND",
        }
    }
}
