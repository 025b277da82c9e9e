//! Views against a host that is only described.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

struct Fake(BTreeMap<PathBuf, Kind>);

impl Fake {
    fn with(paths: &[(&str, Kind)]) -> Self {
        let mut map: BTreeMap<PathBuf, Kind> = paths.iter().map(|(p, k)| (PathBuf::from(p), *k)).collect();
        map.insert("/".into(), Directory);
        Self(map)
    }
}

impl Host for Fake {
    fn resolve(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
    fn kind(&self, path: &Path) -> Option<Kind> {
        self.0.get(path).copied()
    }
}

use Kind::{Directory, File};

fn input(source: &str, target: &str, kind: Kind, writable: bool) -> InputView {
    InputView { source: source.into(), target: target.into(), kind, writable }
}

fn plan_for(host: &Fake, inputs: &[InputView], outputs: &[(&str, Kind)]) -> Result<View, ViewError> {
    plan_with(host, inputs, &[], outputs)
}

fn network(source: &str, target: &str, writable: bool) -> NetworkView {
    NetworkView { source: source.into(), target: target.into(), writable }
}

fn plan_with(
    host: &Fake,
    inputs: &[InputView],
    networks: &[NetworkView],
    outputs: &[(&str, Kind)],
) -> Result<View, ViewError> {
    let outputs: Vec<_> = outputs.iter().map(|(p, k)| (PathBuf::from(p), *k)).collect();
    let workdir = (Path::new("/s/work"), Path::new("/batchcompute/workdir"));
    plan(&Request { scratch: Path::new("/s"), workdir, inputs, networks, outputs: &outputs, in_image: false }, host)
}

fn bind(source: &str, target: &str, read_only: bool) -> Step {
    Step::Bind { source: source.into(), target: target.into(), read_only }
}

#[test]
fn a_plain_job_makes_one_directory_per_missing_tree_on_the_host() {
    let host = Fake::with(&[("/home", Directory)]);
    let view = plan_for(
        &host,
        &[input("/m/0", "/home/input", Directory, false)],
        &[("/home/output", Directory), ("/data/deep/result.txt", File)],
    )
    .unwrap();
    let made: Vec<_> = view.mount_points.iter().map(|(p, _)| p.to_str().unwrap()).collect();
    assert_eq!(made, ["/batchcompute", "/home/input", "/home/output", "/data"]);
    assert!(view.steps.contains(&bind("/s/work", "/batchcompute/workdir", false)));
    assert!(view.steps.contains(&bind("/m/0", "/home/input", true)));
    assert!(view.outputs[0].starts_with("/s"));
    assert!(view.outputs[1].ends_with("deep/result.txt") && view.outputs[1].starts_with("/s"));
}

#[test]
fn outputs_under_one_made_up_parent_share_a_mount_so_that_hard_links_work() {
    let host = Fake::with(&[]);
    let view = plan_for(&host, &[], &[("/root1/call/glob", Directory), ("/root1/call/rc", File)]).unwrap();
    assert_eq!(view.outputs[0].parent(), view.outputs[1].parent());
    assert_eq!(view.steps.iter().filter(|s| matches!(s, Step::Bind { .. })).count(), 3);
}

#[test]
fn a_file_in_a_directory_of_the_host_goes_into_an_overlay_over_it() {
    let host = Fake::with(&[("/tmp", Directory), ("/tmp/old", File)]);
    let view =
        plan_for(&host, &[input("/m/0/g.fa", "/tmp/g.fa", File, false)], &[("/tmp/new", File), ("/tmp/old", File)])
            .unwrap();
    let overlays = view.steps.iter().filter(|s| matches!(s, Step::Overlay { lower: None, .. })).count();
    assert_eq!(overlays, 1, "{:?}", view.steps);
    assert!(view.outputs.iter().all(|path| path.starts_with("/s")), "{:?}", view.outputs);
}

#[test]
fn an_output_inside_an_input_is_found_in_its_upper() {
    let host = Fake::with(&[("/in", Directory)]);
    let view = plan_for(&host, &[input("/m/0", "/in", Directory, true)], &[("/in/out", Directory)]).unwrap();
    let Some(Step::Overlay { upper, whole_files, .. }) = view.steps.iter().find(|s| matches!(s, Step::Overlay { .. }))
    else {
        panic!("{:?}", view.steps)
    };
    assert!(whole_files, "metadata-only copies would upload as zeros");
    assert_eq!(view.outputs[0], upper.join("out"));
    let same = plan_for(&host, &[input("/m/0", "/in", Directory, true)], &[("/in", Directory)]).unwrap();
    assert!(same.outputs[0].file_name().unwrap().to_str().unwrap().starts_with("upper"));
}

#[test]
fn a_file_mapped_inside_a_read_only_input_is_sealed_afterwards() {
    let host = Fake::with(&[("/in", Directory)]);
    let inputs = [input("/m/0", "/in", Directory, false), input("/m/1/x", "/in/sub/x", File, false)];
    let view = plan_for(&host, &inputs, &[]).unwrap();
    assert_eq!(view.steps.last(), Some(&Step::Seal { target: "/in".into() }));
}

#[test]
fn a_network_file_system_is_bound_as_it_is() {
    let host = Fake::with(&[("/in", Directory), ("/nas", Directory)]);
    let networks =
        [network("/m/0", "/nas", true), network("/m/1", "/in/shared", false), network("/m/2", "/new/x", true)];
    let view = plan_with(&host, &[input("/i/0", "/in", Directory, false)], &networks, &[("/out", Directory)]).unwrap();
    for (source, target, read_only) in
        [("/m/0", "/nas", false), ("/m/1", "/in/shared", true), ("/m/2", "/new/x", false)]
    {
        assert!(view.steps.contains(&bind(source, target, read_only)), "{:?}", view.steps);
    }
    let overlays = view.steps.iter().filter(|step| matches!(step, Step::Overlay { .. })).count();
    assert_eq!(overlays, 1, "only the input, to make a mount point in it: {:?}", view.steps);
    assert!(view.mount_points.iter().all(|(path, _)| !path.starts_with("/nas")));
}

#[test]
fn nothing_is_made_in_a_network_file_system() {
    let host = Fake::with(&[("/nas", Directory)]);
    for writable in [true, false] {
        let nas = [network("/m/0", "/nas", writable)];
        let inside = plan_with(&host, &[input("/i/0", "/nas/in", Directory, true)], &nas, &[]).unwrap_err();
        assert!(
            matches!(&inside, ViewError::InsideNetwork { network, .. } if network == Path::new("/nas")),
            "{inside}"
        );
        for (output, kind) in [("/nas", Directory), ("/nas/out", Directory), ("/nas/deep/file", File)] {
            let error = plan_with(&host, &[], &nas, &[(output, kind)]).unwrap_err();
            assert!(matches!(error, ViewError::OutputInNetwork { .. }), "{error}");
        }
        let other = [network("/m/0", "/nas", writable), network("/m/1", "/nas/x", writable)];
        assert!(matches!(plan_with(&host, &[], &other, &[]), Err(ViewError::InsideNetwork { .. })));
    }
}

#[test]
fn contradictions_are_named() {
    let host = Fake::with(&[("/f", File), ("/d", Directory)]);
    let wrong = plan_for(&host, &[input("/m/0", "/f", Directory, false)], &[]).unwrap_err();
    assert!(wrong.to_string().contains("/f cannot be a directory"), "{wrong}");
    let through = plan_for(&host, &[input("/m/0", "/f/x", Directory, false)], &[]).unwrap_err();
    assert!(matches!(through, ViewError::ThroughFile { .. }));
    assert!(matches!(plan_for(&host, &[], &[("/x", File)]), Err(ViewError::OutputInRoot { .. })));
    let read_only = plan_for(&host, &[input("/m/0/x", "/d/x", File, false)], &[("/d/x", File)]);
    assert!(matches!(read_only, Err(ViewError::OutputIsReadOnlyInput { .. })), "{read_only:?}");
    let twice = [input("/m/0", "/d/x", Directory, false), input("/m/1", "/d/x", Directory, false)];
    assert!(plan_for(&host, &twice, &[]).is_ok(), "what is mounted first is covered, and so writable underneath");
    let twice = [input("/m/0", "/d/x", File, false), input("/m/1", "/d/x", File, false)];
    assert!(matches!(plan_for(&host, &twice, &[]), Err(ViewError::Covered { .. })));
}

proptest! {
    /// Whatever is mapped where: outputs are found on the scratch disk and nowhere else, no two at one place, and the
    /// host gets nothing but mount points that were missing.
    #[test]
    fn outputs_stay_on_the_scratch_disk(
        inputs in prop::collection::vec(("/[ab](/[ab]){0,3}", any::<bool>(), any::<bool>()), 0..5),
        outputs in prop::collection::btree_map("/[abc](/[abc]){0,3}", any::<bool>(), 0..5),
        existing in prop::collection::vec("/[abc](/[abc]){0,2}", 0..4),
    ) {
        let mut host = Fake::with(&[]);
        for path in &existing {
            for ancestor in Path::new(path).ancestors() {
                host.0.insert(ancestor.to_owned(), Directory);
            }
        }
        let kind = |directory| if directory { Directory } else { File };
        let inputs: Vec<_> = inputs.iter().enumerate()
            .map(|(n, (target, dir, writable))| input(&format!("/m/{n}/x"), target, kind(*dir), *writable))
            .collect();
        let outputs: Vec<_> = outputs.iter().map(|(path, dir)| (path.as_str(), kind(*dir))).collect();
        if let Ok(view) = plan_for(&host, &inputs, &outputs) {
            let mut seen = BTreeSet::new();
            for path in &view.outputs {
                prop_assert!(path.starts_with("/s"), "{:?}", path);
                prop_assert!(seen.insert(path.clone()));
            }
            for (path, _) in &view.mount_points {
                prop_assert!(host.kind(path).is_none());
                prop_assert_eq!(host.kind(path.parent().unwrap()), Some(Directory));
            }
        }
    }
}
