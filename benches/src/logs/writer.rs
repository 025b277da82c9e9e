//! The task: writes at a steady rate, and notes when.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};

/// Writes per second, if there are so many bytes.
const STEPS: u64 = 50;
/// Length of a line in bytes.
const LINE: usize = 100;

/// The time, in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Writes `RATE SECONDS NOTES`: bytes to standard output, and to the file after each write how many there are and the time.
///
/// # Errors
/// When something cannot be written.
pub fn write(arguments: &[String]) -> anyhow::Result<()> {
    let [rate, seconds, notes] = arguments else { bail!("three arguments are wanted") };
    let (rate, seconds) = (rate.parse::<u64>()?, seconds.parse::<u64>()?);
    let mut notes = std::fs::File::create(notes).context("cannot note")?;
    let mut lines = vec![b'x'; usize::try_from(rate / STEPS)? + LINE];
    lines.iter_mut().skip(LINE - 1).step_by(LINE).for_each(|byte| *byte = b'\n');
    let mut output = std::io::stdout();
    let begun = Instant::now();
    let mut written = 0;
    for step in 1..=STEPS * seconds {
        let due = begun + Duration::from_secs(step) / u32::try_from(STEPS)?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let end = rate * step / STEPS;
        let more = usize::try_from(end - written)?;
        if more > 0 {
            output.write_all(&lines[..more])?;
            output.flush()?;
            written = end;
            writeln!(notes, "{written} {:.6}", now())?;
        }
    }
    Ok(())
}

/// What was noted: how many bytes there were, and when.
///
/// # Errors
/// When it cannot be read.
pub fn read(notes: &Path) -> anyhow::Result<Vec<(u64, f64)>> {
    let text = std::fs::read_to_string(notes).context("the task has noted nothing")?;
    let parse = |line: &str| -> Option<(u64, f64)> {
        let (bytes, at) = line.split_once(' ')?;
        Some((bytes.parse().ok()?, at.parse().ok()?))
    };
    text.lines().map(|line| parse(line).with_context(|| format!("{line:?} is no note"))).collect()
}
