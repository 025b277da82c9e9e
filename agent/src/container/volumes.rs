//! From a planned view to a container's volumes. Pure.
//!
//! A plain task's view is built in a mount namespace of its own, which an engine cannot see. So for a container the same steps are
//! carried out below a directory of the attempt, the *stage*, on the host: what the plan puts at `/home/in` is put at
//! `STAGE/home/in`, and the engine is told to show that at `/home/in`.
//!
//! A mount inside of another one is told as well: not every engine takes along what is mounted inside (Podman 4.3 does not).

use std::path::{Path, PathBuf};

use super::spec::Volume;
use crate::instance::view::{Kind, Step, View};

/// What there is to do on the host, and what the engine is told then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staged {
    pub steps: Vec<Step>,
    pub volumes: Vec<Volume>,
}

/// Puts the plan for an image below `stage`. What it does on the `scratch` disk stays there.
pub(super) fn stage(view: &View, scratch: &Path, stage: &Path) -> Staged {
    let staged = |path: &Path| if path.starts_with(scratch) { path.to_owned() } else { below(stage, path) };
    let mut steps = Vec::new();
    for (place, kind) in &view.mount_points {
        let path = below(stage, place);
        steps.push(match kind {
            Kind::Directory => Step::MakeDirectory { path },
            Kind::File => Step::MakeFile { path },
        });
    }
    steps.extend(view.steps.iter().map(|step| match step {
        Step::MakeDirectory { path } => Step::MakeDirectory { path: staged(path) },
        Step::MakeFile { path } => Step::MakeFile { path: staged(path) },
        Step::Bind { source, target, read_only } => {
            Step::Bind { source: source.clone(), target: staged(target), read_only: *read_only }
        }
        Step::Overlay { lower, upper, work, target, whole_files } => Step::Overlay {
            lower: lower.clone(),
            upper: upper.clone(),
            work: work.clone(),
            target: staged(target),
            whole_files: *whole_files,
        },
        Step::Seal { target } => Step::Seal { target: staged(target) },
    }));
    let is_sealed =
        |place: &Path| view.steps.iter().any(|step| matches!(step, Step::Seal { target } if target == place));
    let volume = |step: &Step| {
        let (target, read_only) = match step {
            Step::Bind { target, read_only, .. } => (target, *read_only),
            Step::Overlay { target, .. } => (target, is_sealed(target)),
            Step::MakeDirectory { .. } | Step::MakeFile { .. } | Step::Seal { .. } => return None,
        };
        let is_shown = !target.starts_with(scratch);
        is_shown.then(|| Volume {
            source: below(stage, target),
            target: target.clone(),
            read_only,
            follows_host: false,
        })
    };
    // Parents first, as the plan has them.
    Staged { steps, volumes: view.steps.iter().filter_map(volume).collect() }
}

fn below(stage: &Path, path: &Path) -> PathBuf {
    stage.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::view::{Host, InputView, Request, plan};
    use proptest::prelude::*;

    struct Image;

    impl Host for Image {
        fn resolve(&self, path: &Path) -> PathBuf {
            path.to_owned()
        }
        fn kind(&self, path: &Path) -> Option<Kind> {
            ["/", "/home", "/tmp"].contains(&path.to_str().unwrap()).then_some(Kind::Directory)
        }
    }

    fn staged(inputs: &[InputView], outputs: &[(PathBuf, Kind)]) -> (View, Staged) {
        let request = Request {
            scratch: Path::new("/s"),
            workdir: (Path::new("/s/work"), Path::new("/batchcompute/workdir")),
            inputs,
            networks: &[],
            outputs,
            in_image: true,
        };
        let view = plan(&request, &Image).unwrap();
        let staged = stage(&view, Path::new("/s"), Path::new("/run/stage"));
        (view, staged)
    }

    fn input(target: &str, kind: Kind, writable: bool) -> InputView {
        InputView { source: "/run/inputs/0".into(), target: target.into(), kind, writable }
    }

    #[test]
    fn nothing_of_the_image_is_covered_but_what_is_mapped() {
        let inputs = [input("/home/in", Kind::Directory, false), input("/home/ref.fa", Kind::File, false)];
        let outputs =
            [("/home/out".into(), Kind::Directory), ("/tmp/rc".into(), Kind::File), ("/new/rc".into(), Kind::File)];
        let (view, staged) = staged(&inputs, &outputs);
        let mut targets: Vec<(&str, bool)> =
            staged.volumes.iter().map(|volume| (volume.target.to_str().unwrap(), volume.read_only)).collect();
        targets.sort_unstable();
        assert_eq!(
            targets,
            [
                ("/batchcompute", false),
                ("/batchcompute/workdir", false),
                ("/home/in", true),
                ("/home/out", false),
                ("/home/ref.fa", true),
                ("/new", false)
            ]
        );
        assert_eq!(view.fetched.len(), 1);
        assert_eq!((view.fetched[0].source.to_str(), view.fetched[0].was_there), (Some("/tmp/rc"), false));
        assert_eq!(view.outputs[1], view.fetched[0].target);
    }

    proptest! {
        #[test]
        fn every_step_is_on_the_stage_or_on_the_scratch_disk(
            wanted in proptest::collection::btree_map("(/home|/tmp|/new|/a)(/[xyz]){1,3}", (any::<bool>(), 0..3_u8), 0..6)
        ) {
            let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
            for (path, (is_file, what)) in &wanted {
                let kind = if *is_file { Kind::File } else { Kind::Directory };
                match what {
                    0 => outputs.push((PathBuf::from(path), kind)),
                    writable => inputs.push(input(path, kind, *writable == 1)),
                }
            }
            let request = Request {
                scratch: Path::new("/s"),
                workdir: (Path::new("/s/work"), Path::new("/batchcompute/workdir")),
                inputs: &inputs,
                networks: &[],
                outputs: &outputs,
                in_image: true,
            };
            if let Ok(view) = plan(&request, &Image) {
                let staged = stage(&view, Path::new("/s"), Path::new("/run/stage"));
                for step in &staged.steps {
                    let (Step::MakeDirectory { path: at } | Step::MakeFile { path: at } | Step::Bind { target: at, .. }
                        | Step::Overlay { target: at, .. } | Step::Seal { target: at }) = step;
                    let is_over_image = matches!(step, Step::Overlay { lower: None, .. });
                    prop_assert!((at.starts_with("/run/stage") || at.starts_with("/s")) && !is_over_image, "{:?}", step);
                }
                // An engine makes mount points only among the image's own files.
                for (index, volume) in staged.volumes.iter().enumerate() {
                    let is_top = view.mount_points.iter().any(|(place, _)| *place == volume.target);
                    let is_inside = staged.volumes[..index].iter().any(|other| volume.target.starts_with(&other.target));
                    prop_assert!(is_top != is_inside, "{:?}", volume);
                }
            }
        }
    }
}
