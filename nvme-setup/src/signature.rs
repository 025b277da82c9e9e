//! What a device carries, and how `blkid` is understood.
//!
//! `blkid -p` exits with 0 when it knows what is there, 8 when several things are, 4 for wrong usage, and 2 "when nothing
//! was found". That 2 proves nothing: blkid also exits with 2, and in some versions prints nothing, when the device
//! cannot be opened, when reading it fails half-way, and when libblkid has decided not to look (a private volume of LVM).
//! So 2 only means "no signature is known", and the device has then to be read (see [`crate::sample`]).

use serde::Serialize;

use crate::command::Output;
use crate::text::printable;

/// What a device carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Content {
    /// No signature, and every sample reads as zeros.
    Empty {
        /// How many bytes were read, both ends included.
        sampled: u64,
    },
    /// Something that is known by name.
    Signature(Signature),
    /// Nothing that is known by name, and yet something.
    Data {
        /// Where the first byte is that is not zero, of those that were looked at; in bytes from the beginning.
        first_nonzero_at: u64,
    },
    /// Several signatures that contradict each other.
    Ambiguous,
    /// It could not be found out.
    Unknown {
        /// Why not, as a sentence without a full stop.
        why: String,
    },
}

/// A file system, a member of an array, a swap area, a partition table, ...
///
/// Text from the device, such as the label, is as blkid prints it: what is not printable ASCII is shown as `^A` and `M-A`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// `ext4`, `xfs`, `swap`, `LVM2_member`, `linux_raid_member`, `crypto_LUKS`, ...
    pub kind: Option<String>,
    /// `filesystem`, `raid`, `crypto`, `other`.
    pub usage: Option<String>,
    /// Its label.
    pub label: Option<String>,
    /// Its UUID, in the form of its kind.
    pub uuid: Option<String>,
    /// The kind of partition table: `gpt`, `dos`.
    pub partition_table: Option<String>,
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            self.kind.as_deref().map(printable),
            self.label.as_deref().map(|label| format!("labelled {label:?}")),
            self.partition_table.as_deref().map(|table| format!("{} partition table", printable(table))),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

/// What blkid found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probed {
    Signature(Signature),
    Ambiguous,
    /// No signature that it knows; see the top of this file for what that does not mean.
    Nothing,
    /// It failed, or said something that is not understood.
    Unknown(String),
}

/// Understands what `blkid -p -o export DEVICE` did.
pub(crate) fn understand(output: Output) -> Probed {
    match output.code() {
        Some(0) => match tags(&output.stdout) {
            Ok(probed) => probed,
            Err(line) => Probed::Unknown(format!("blkid printed what is not understood: {}", printable(&line))),
        },
        Some(2) if output.stdout.is_empty() && output.stderr.is_empty() => Probed::Nothing,
        Some(8) => Probed::Ambiguous,
        _ => Probed::Unknown(output.failed().to_string()),
    }
}

/// Reads lines of `NAME=value`. An error is a line that is none.
fn tags(stdout: &[u8]) -> Result<Probed, String> {
    let mut signature = Signature::default();
    let mut other = None;
    let text = String::from_utf8_lossy(stdout);
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once('=').ok_or_else(|| line.to_owned())?;
        let value = Some(unescape(value));
        match name {
            "TYPE" => signature.kind = value,
            "USAGE" => signature.usage = value,
            "LABEL" => signature.label = value,
            "UUID" => signature.uuid = value,
            "PTTYPE" => signature.partition_table = value,
            // What it was asked about, and what the disk's partition table says of a partition: not what is in it.
            _ if name == "DEVNAME" || name.starts_with("PART_ENTRY_") => {}
            _ => other = Some(line.to_owned()),
        }
    }
    Ok(match (signature.kind.is_some() || signature.partition_table.is_some(), other) {
        (true, _) => Probed::Signature(signature),
        (false, None) if signature == Signature::default() && !text.trim().is_empty() => Probed::Nothing,
        (false, other) => return Err(other.unwrap_or_else(|| "values of nothing".to_owned())),
    })
}

/// Undoes blkid's `\` before spaces, quotes and the like.
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        out.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::command::Command;

    /// What is made of a program that ends and prints like this.
    fn after(status: i32, stdout: &str, stderr: &str) -> Probed {
        let script = r#"printf %s "$1"; printf %s "$2" >&2; exit "$3""#;
        let command = Command::at("/bin/sh", Duration::from_secs(30)).args([
            "-c",
            script,
            "sh",
            stdout,
            stderr,
            &status.to_string(),
        ]);
        understand(command.run().unwrap())
    }

    #[test]
    fn a_signature_with_all_its_tags() {
        let text = "DEVNAME=/dev/x\nLABEL=my\\ \\\\disk\\=1\nUUID=84-9a\nVERSION=1.0\nTYPE=ext4\nUSAGE=filesystem\n";
        let Probed::Signature(signature) = after(0, text, "") else { panic!() };
        assert_eq!(
            signature,
            Signature {
                kind: Some("ext4".into()),
                usage: Some("filesystem".into()),
                label: Some("my \\disk=1".into()),
                uuid: Some("84-9a".into()),
                partition_table: None,
            }
        );
        assert_eq!(signature.to_string(), "ext4 labelled \"my \\\\disk=1\"");
    }

    #[test]
    fn a_partition_table_is_a_signature_and_an_entry_of_one_is_not() {
        let Probed::Signature(signature) = after(0, "DEVNAME=/dev/x\nPTUUID=1\nPTTYPE=gpt\n", "") else { panic!() };
        assert_eq!(signature.to_string(), "gpt partition table");
        let entry = "DEVNAME=/dev/x1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_NUMBER=1\n";
        assert_eq!(after(0, entry, ""), Probed::Nothing);
        assert!(matches!(after(0, &format!("{entry}TYPE=xfs\n"), ""), Probed::Signature(_)));
    }

    #[test]
    fn only_a_silent_2_is_nothing() {
        assert_eq!(after(2, "", ""), Probed::Nothing);
        assert_eq!(after(8, "", "x: ambivalent result"), Probed::Ambiguous);
        for (status, stdout, stderr) in [
            (2, "", "blkid: error: /dev/x: Permission denied\n"),
            (2, "DEVNAME=/dev/x\n", ""),
            (4, "", "usage"),
            (1, "", ""),
            (127, "", ""),
            (0, "", ""),
            (0, "no tag at all", ""),
            (0, "DEVNAME=/dev/x\nNEWTAG=1\n", ""),
            (0, "DEVNAME=/dev/x\nLABEL=1\n", ""),
        ] {
            let probed = after(status, stdout, stderr);
            assert!(matches!(probed, Probed::Unknown(_)), "{status} {stdout:?} {stderr:?}: {probed:?}");
        }
        let Probed::Unknown(why) = after(2, "", "blkid: error: /dev/x: Permission denied\n") else { panic!() };
        assert!(why.ends_with("exit status: 2: blkid: error: /dev/x: Permission denied"), "{why}");
    }
}
