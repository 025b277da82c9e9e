//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measure fuse-oss beside other mounts and beside the limit of disk and wire, on a store in this process. Needs root: it mounts
/// file systems. Leaves nothing behind.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub struct Arguments {
    /// How often each thing is measured; medians are shown.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Multiplies the sizes of everything: 0.1 for a quick look.
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    pub scale: f64,
    /// Only the cases whose names contain one of these.
    #[arg(value_name = "CASE")]
    pub cases: Vec<String>,
    /// Only fuse-oss, no peers.
    #[arg(long)]
    pub alone: bool,
    /// List the cases and stop.
    #[arg(long)]
    pub list: bool,
    /// Also write the results here.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also draw the ratios here.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Where caches and local copies are, on the disk that is to be measured: a few GiB, removed at the end.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// The fuse-oss program [default: the one beside this program].
    #[arg(long, value_name = "FILE")]
    pub fuse_oss: Option<PathBuf>,
}

fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse::<f64>().ok().filter(|scale| (0.001..=100.0).contains(scale));
    scale.ok_or_else(|| format!("{text:?} is no number between 0.001 and 100"))
}
