//! Logs for whoever wants to read them: which there are on this node ([`LogBook`]), and their text, wherever it is now ([`LogText`]).
//!
//! While a task runs, the end of its log is in a file on the scratch disk, and the beginning may be in storage only. Afterwards all of it is
//! in storage. A reader does not notice the difference.

mod book;
mod text;

pub use book::{Entry, LogBook, LogPlace};
pub use text::{LogText, TextError};
