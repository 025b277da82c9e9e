//! What `nvme-setup status` shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use nvme_setup::{
    Content, Device, Evidence, Inventory, Kind, Node, Owner, Uuid, Verdict, VolumeStatus, human_size, printable,
};
use serde::Serialize;

/// The version of the JSON document. It rises when a reader would have to change.
const FORMAT: u32 = 1;

/// A device with all that is known about it.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    #[serde(flatten)]
    device: &'a Device,
    content: &'a Content,
    claimed: bool,
    /// Whose it is, when it was made by this program.
    made_by: Option<Owner>,
    verdict: Verdict,
}

/// All rows, and what is to be said about them as a whole.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    format: u32,
    devices: Vec<Row<'a>>,
    volumes: Vec<VolumeStatus>,
    notes: Vec<String>,
}

impl<'a> Report<'a> {
    /// A report on some devices, each with its evidence and verdict.
    pub fn new(
        inventory: &'a Inventory,
        devices: &[&'a Device],
        evidence: &'a BTreeMap<String, Evidence>,
        node: Option<&Node>,
        judge: impl Fn(&Device, &Evidence) -> Verdict,
    ) -> Self {
        let mut notes = inventory.notes().to_vec();
        let rows: Vec<Row<'_>> = devices
            .iter()
            .filter_map(|device| {
                let found = evidence.get(&device.name)?;
                let verdict = judge(device, found);
                let made_by = node.and_then(|node| node.owner(uuid(&found.content)?));
                Some(Row { device, content: &found.content, claimed: found.claimed, made_by, verdict })
            })
            .collect();
        let unknown: Vec<&str> = rows.iter().filter(|row| row.is_unknown()).map(|row| &*row.device.name).collect();
        if !unknown.is_empty() {
            let root = if nix::unistd::geteuid().is_root() { "" } else { "; this was not run as root" };
            notes.push(format!("could not look at the content of {}{root}", unknown.join(", ")));
        }
        Self { format: FORMAT, devices: rows, volumes: Vec::new(), notes }
    }

    /// Adds the volumes that are on these devices.
    pub fn add(&mut self, volumes: Vec<VolumeStatus>) {
        self.volumes = volumes;
    }

    /// The table of volumes, with an empty line before it; nothing where there are none.
    pub fn volumes(&self) -> String {
        if self.volumes.is_empty() {
            return String::new();
        }
        let mut cells = vec![["VOLUME", "STATE", "DEVICES", "FILE SYSTEM", "LABEL"].map(str::to_owned)];
        cells.extend(self.volumes.iter().map(volume_cells));
        format!("\n{}", aligned(&cells))
    }

    /// What is to be said, for standard error.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The table. `in_full` adds everything that is known about each device.
    pub fn table(&self, in_full: bool) -> String {
        let shown: Vec<&Row<'_>> = self.devices.iter().filter(|row| in_full || !row.is_vacant()).collect();
        let mut cells = vec![["DEVICE", "SIZE", "ROLE", "CARRIES", "USED BY", "USABLE?"].map(str::to_owned)];
        cells.extend(shown.iter().map(|row| row.cells()));
        let mut text = aligned(&cells);
        let vacant = self.devices.len() - shown.len();
        if vacant > 0 {
            let plural = if vacant == 1 { "device" } else { "devices" };
            text.push_str(&format!(
                "({vacant} {plural} of size 0 not shown: drives and loop devices with nothing in them)\n"
            ));
        }
        if in_full {
            for row in shown {
                row.describe(&mut text);
            }
        }
        text
    }
}

impl Row<'_> {
    /// Whether its content could not be found out though there is some.
    fn is_unknown(&self) -> bool {
        matches!(self.content, Content::Unknown { .. })
            && !self.is_vacant()
            && !matches!(self.device.kind, Kind::Optical | Kind::Floppy)
    }

    fn is_vacant(&self) -> bool {
        self.device.size == 0
    }

    fn cells(&self) -> [String; 6] {
        let device = self.device;
        let indent = if device.kind == Kind::Partition { "  " } else { "" };
        let verdict = match self.verdict.reasons() {
            [] => "yes".to_owned(),
            [only] => format!("no: {only}"),
            [first, rest @ ..] => format!("no: {first} (and {} more)", rest.len()),
        };
        [
            format!("{indent}{}", printable(&device.name)),
            human_size(device.size),
            device.role.to_string(),
            match self.made_by {
                Some(Owner::ThisNode) => format!("{}, a volume of this node's", carries(self.content)),
                Some(Owner::AnotherNode) => format!("{}, a volume of another node's", carries(self.content)),
                None => carries(self.content),
            },
            self.used_by(),
            verdict,
        ]
    }

    fn used_by(&self) -> String {
        let device = self.device;
        let mut users: Vec<String> = device.mounts.iter().map(|mount| printable(&mount.at.to_string_lossy())).collect();
        if device.swap {
            users.push("swap".to_owned());
        }
        users.extend(device.holders.iter().map(|name| printable(name)));
        match device.partitions.len() {
            0 => {}
            1 => users.push("1 partition".to_owned()),
            count => users.push(format!("{count} partitions")),
        }
        if self.claimed {
            users.push("somebody".to_owned());
        }
        if users.is_empty() { "-".to_owned() } else { users.join(", ") }
    }

    fn describe(&self, text: &mut String) {
        let device = self.device;
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "  {name:<12}{}", printable(value));
            }
        };
        line("", "");
        line("device", &format!("{} ({}), {}", device.path.display(), device.number, device.kind));
        line("model", device.model.as_deref().unwrap_or_default());
        line("serial", device.serial.as_deref().unwrap_or_default());
        line("wwid", device.wwid.as_deref().unwrap_or_default());
        line("size", &format!("{} bytes, sectors of {}", device.size, device.logical_sector_size));
        for link in &device.by_id {
            line("by id", &link.to_string_lossy());
        }
        if let Some(file) = &device.backing_file {
            line("file", &file.to_string_lossy());
        }
        line("lies on", &device.parents.iter().cloned().collect::<Vec<_>>().join(", "));
        match self.verdict.reasons() {
            [] => line("verdict", &self.verdict.to_string()),
            reasons => {
                for reason in reasons {
                    line("not usable", &reason.to_string());
                }
            }
        }
        if let Some(command) = self.verdict.erase_command() {
            line("to erase it", &format!("{command}    (only if nothing on it is needed)"));
        }
    }
}

fn volume_cells(volume: &VolumeStatus) -> [String; 5] {
    let name = |path: &PathBuf| printable(path.strip_prefix("/dev").unwrap_or(path).to_string_lossy().as_ref());
    let disks = volume.devices.iter().map(name).collect::<Vec<_>>().join(", ");
    let mounted = volume.mounted_at.iter().map(|at| printable(at)).collect::<Vec<_>>().join(", ");
    let or_dash = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| printable(text));
    let label = or_dash(volume.label.as_ref());
    [
        if mounted.is_empty() { label.clone() } else { mounted },
        match volume.made_by {
            Owner::ThisNode => volume.state.to_string(),
            Owner::AnotherNode => format!("another node's, {}", volume.state),
        },
        match &volume.array {
            Some(array) => format!("{disks} as {}", name(array)),
            None => disks,
        },
        or_dash(volume.fs.as_ref()),
        label,
    ]
}

/// Lines of cells, each column as wide as its widest.
fn aligned<const COLUMNS: usize>(cells: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for line in cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in cells {
        let padded: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The UUID of what a device carries, when it has the form of ours.
fn uuid(content: &Content) -> Option<Uuid> {
    match content {
        Content::Signature(signature) => signature.uuid.as_deref()?.parse().ok(),
        _ => None,
    }
}

/// What a device carries, in few words.
fn carries(content: &Content) -> String {
    match content {
        Content::Empty { .. } => "nothing".to_owned(),
        Content::Signature(signature) => signature.to_string(),
        Content::Data { .. } => "data".to_owned(),
        Content::Ambiguous => "ambiguous".to_owned(),
        Content::Unknown { .. } => "?".to_owned(),
    }
}
