//! From the start of the mount command, with no server running, to the first byte of a small file.

use std::io::Read as _;
use std::time::Instant;

use super::{Case, Done, Limit, Sample, Stage};
use crate::content::World;
use crate::figures::Unit;
use crate::files::open;
use crate::goal::Goal;
use crate::mounter::{Mounted, Mounter};
use crate::raw::Connection;

const KEY: &str = "first/run.sh";
const SIZE: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub struct FirstByte;

impl Case for FirstByte {
    fn name(&self) -> &'static str {
        "first-byte"
    }

    fn about(&self) -> String {
        "from the start of the mount command, with no server running, to the first byte of a file of 4 KiB".to_owned()
    }

    fn unit(&self) -> Unit {
        Unit::Seconds
    }

    fn prepare(&self, world: &mut World) {
        world.add(KEY, SIZE);
    }

    /// Connecting and one request.
    fn limits(&self) -> &[Limit] {
        &[Limit::Raw(1)]
    }

    fn yardstick(&self) -> &[Limit] {
        &[]
    }

    fn goals(&self) -> Vec<Goal> {
        vec![Goal::Figure(0.060)]
    }

    fn limit(&self, stage: &Stage, _limit: Limit) -> anyhow::Result<Sample> {
        stage.measure(self.unit(), None, || {
            Connection::open(stage.server.port())?.fetch(KEY, None, &mut Vec::new())?;
            Ok(Done { operations: 1, bytes: SIZE, seconds: None })
        })
    }

    /// The time ends where the byte is there; asking a server that was left behind for its number comes after.
    fn mounted(&self, stage: &Stage, mounter: &dyn Mounter, _check: bool) -> anyhow::Result<Sample> {
        let lot = stage.lot()?;
        let place = stage.place(&lot, None);
        let mut first = [0];
        let mut mounted = None;
        let mut sample = stage.measure(self.unit(), None, || {
            let begun = Instant::now();
            let mut seconds = 0.0;
            let read = |target: &std::path::Path| {
                open(&target.join(KEY))?.read_exact(&mut first)?;
                seconds = begun.elapsed().as_secs_f64();
                Ok(())
            };
            mounted = Some(Mounted::start_as_people_do(mounter, &place, read)?);
            Ok(Done { operations: 1, bytes: SIZE, seconds: Some(seconds) })
        })?;
        if let Some(usage) = mounted.as_ref().map(Mounted::usage) {
            sample.cpu = Some(usage.cpu);
            sample.peak_memory = Some(usage.peak_memory);
        }
        let world = stage.server.world();
        anyhow::ensure!(world.matches(world.object(KEY)?, 0, &first), "WRONG BYTE at the beginning of {KEY}");
        Ok(sample)
    }
}
