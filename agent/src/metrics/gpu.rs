//! Graphics processors, as NVIDIA's own tool shows them. Pure but for [`ask`].

use std::time::Duration;

use nvme_setup::command::Command;

use super::reading::float;
use super::sample::{Gpu, Level};
use crate::programs::Programs;

/// How long the tool may take. It takes a second where the driver is not kept loaded.
const LIMIT: Duration = Duration::from_secs(10);

/// What is asked for.
const QUERY: &str = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total";

/// How the tool is run, where it is there.
pub(super) fn command(programs: &Programs) -> Option<Command> {
    programs.command("nvidia-smi", LIMIT).map(|command| command.args([QUERY, "--format=csv,noheader,nounits"]))
}

/// Asks it.
pub(super) fn ask(command: &Command) -> Vec<Gpu> {
    match command.run() {
        Ok(output) if output.code() == Some(0) => parse(&String::from_utf8_lossy(&output.stdout)),
        Ok(output) => {
            tracing::debug!(error = %output.failed(), "graphics processors cannot be asked");
            Vec::new()
        }
        Err(error) => {
            tracing::debug!(%error, "graphics processors cannot be asked");
            Vec::new()
        }
    }
}

/// A line is `0, NVIDIA A10, 35, 1024, 23028`: percent and MiB. What a device does not know is `[N/A]`.
fn parse(text: &str) -> Vec<Gpu> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(',').map(str::trim).collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
        let name: String = words.get(1)?.chars().filter(|c| !c.is_control()).take(80).collect();
        Some(Gpu {
            index: u32::try_from(number(0)?).ok()?,
            name,
            used: Level::of(float(number(2).unwrap_or(0).min(100)) / 100.0),
            memory_used: Level::of(float(number(3).unwrap_or(0) << 20)),
            memory_total: number(4).unwrap_or(0) << 20,
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_table_is_read() {
        let gpus = parse("0, NVIDIA A10, 35, 1024, 23028\n1, Tesla T4, [N/A], [N/A], 15360\nUnable to determine\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!((gpus[0].name.as_str(), gpus[0].used), ("NVIDIA A10", Level::of(0.35)));
        assert_eq!((gpus[0].memory_used, gpus[0].memory_total), (Level::of(1_073_741_824.0), 23028 << 20));
        assert_eq!((gpus[1].index, gpus[1].used), (1, Level::of(0.0)));
    }
}
