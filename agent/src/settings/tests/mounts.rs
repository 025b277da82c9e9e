//! What is mounted where, and what stands in the way of what.

use super::*;

#[test]
fn mounts_are_judged_by_their_kind() {
    let mount = |more: &str| format!("mounts: [{{target: /home/x, {more}}}]");
    for (text, message) in [
        (
            mount("source: 'smb://h/d'"),
            "mounts[0].source: \"smb://h/d\" is a mount for Windows, and this node runs Linux (line 1 of n.yaml); write nas://HOST:/DIRECTORY/ for NFS",
        ),
        (
            mount("source: 'nas://h:/d!'"),
            "mounts[0].source: \"nas://h:/d!\" is a mount for Windows, and this node runs Linux (line 1 of n.yaml); write nas://HOST:/DIRECTORY/ for NFS",
        ),
        (
            mount("source: 'E:'"),
            "mounts[0].source: \"E:\" is a mount for Windows, and this node runs Linux (line 1 of n.yaml); write nas://HOST:/DIRECTORY/ for NFS",
        ),
        (
            "mounts: [{source: oss://b/d/, target: 'E:'}]".to_owned(),
            "mounts[0].target: the local path \"E:\" is of the Windows form, and this node runs Linux (line 1 of n.yaml); \
             write an absolute path such as /home/data/",
        ),
        (
            mount("source: ossa://b/d/"),
            "mounts[0].source: \"ossa://b/d/\" is not in object storage: its scheme is unknown (line 1 of n.yaml); did you mean \
             oss://?",
        ),
        (
            mount("source: oss://b/d/, version: 3"),
            "mounts[0].version: means nothing for object storage (line 1 of n.yaml); remove it",
        ),
        (
            mount("source: 'lustre://h@tcp:/x', version: 3"),
            "mounts[0].version: means nothing for Lustre (line 1 of n.yaml); remove it",
        ),
        (
            mount("source: 'nas://h:/d', options: ['a,b']"),
            "mounts[0].options[0]: the mount option \"a,b\" holds a comma; give each option by itself (line 1 of n.yaml)",
        ),
        (
            mount("source: 'nas://h:/d', version: 4.1, options: [vers=4.2]"),
            "mounts[0].options[0]: \"vers=4.2\" is said by version already (line 1 of n.yaml); remove one of them",
        ),
        (
            mount("source: 'nas://h:/d', options: [rw]"),
            "mounts[0].options[0]: the mount option \"rw\" is not given here; set `writable` to true or false (line 1 of n.yaml)",
        ),
        (
            "mounts: [{source: oss://b/k, target: /home/x/}]".to_owned(),
            "mounts[0].target: \"oss://b/k\" is one object, but the local path \"/home/x/\" is a directory (line 1 of n.yaml); \
             end both in '/' for a directory, or neither for one file",
        ),
    ] {
        assert_eq!(problems(&text), [message], "{text}");
    }
    for target in
        ["/proc/x", "/sys", "/dev/shm", "/run/batch-agent/x", "/var/lib/batch-agent", "/etc/batch-agent", "/usr", "/"]
    {
        let problem = problems(&format!("mounts: [{{source: oss://b/d/, target: {target}}}]"));
        assert!(problem[0].starts_with("mounts[0].target: the local path"), "{problem:?}");
    }
}

#[test]
fn things_in_each_others_way_are_named() {
    let nas = "{source: 'nas://h:/d', target: T, writable: true}";
    let object = "{source: oss://b/d/, target: T}";
    let view = "{source: oss://b/d/, target: T, writable: true}";
    let file = "{source: oss://b/k, target: T}";
    let at = |kind: &str, target: &str| kind.replace('T', target);
    let mounts = |list: &[String]| format!("mounts: [{}]\n", list.join(", "));
    let volume = |mount: &str| format!("disks: {{volumes: [{{what: instance-store, mount: {mount}}}]}}\n");
    let output = |source: &str| format!("outputs: [{{source: {source}, target: oss://b/out/}}]\n");
    for (text, expected) in [
        (
            mounts(&[at(nas, "/a"), at(object, "/a")]),
            "\"/a\" is taken already, by the mount of \"nas://h:/d\" (mounts[0].target)",
        ),
        (
            mounts(&[at(object, "/a")]) + &volume("/a"),
            "\"/a\" is taken already, by a volume of disks (disks.volumes[0].mount)",
        ),
        (
            "disks: {volumes: [{what: instance-store, mount: /a}, {what: only-empty, mount: /a/}]}".to_owned(),
            "disks.volumes[1]: two volumes have this mount point; give each its own",
        ),
        (mounts(&[at(object, "/a")]) + &volume("/a/b"), "which is mounted later and would hide it"),
        (mounts(&[at(object, "/a"), at(nas, "/a/b")]), "which is mounted later and would hide it"),
        (
            mounts(&[at(file, "/a"), at(object, "/a/b")]),
            "\"/a/b\" lies inside the mount of \"oss://b/k\" (mounts[0].target), which is one file",
        ),
        (mounts(&[at(object, "/a")]) + &output("/a/b"), "where nothing can be written"),
        (mounts(&[at(object, "/a")]) + &output("/a"), "where nothing can be written"),
        (
            mounts(&[at(view, "/a")]) + "outputs: [{source: /a, target: oss://b/d/}]",
            "would be uploaded to where it is read from",
        ),
        (
            "outputs: [{source: /a, target: oss://b/x/}, {source: /a/b, target: oss://b/y/}]".to_owned(),
            "would be uploaded twice",
        ),
        (
            "outputs: [{source: /a, target: oss://b/x/}, {source: /a, target: oss://b/y/}]".to_owned(),
            "is taken already, by an output",
        ),
        (mounts(&[at(view, "/a")]) + "scratch: /a/s", "where nothing that is written lasts"),
        (mounts(&[at(nas, "/a")]) + "cache: {directory: /a/c}", "which other nodes use, too"),
        (mounts(&[at(nas, "/s")]) + "scratch: /s", "which other nodes use, too"),
        (mounts(&[at(nas, "/s/tasks/x")]) + "scratch: /s", "in a part that belongs to the agent"),
        ("scratch: /s\ncache: {directory: /s}".to_owned(), "where other things are, too"),
        // Where scratch is when nothing is said of it.
        (
            volume("/data") + &mounts(&[at(object, "/data/batch-agent")]),
            "is also the scratch directory (disks.volumes[0].mount), which belongs to the agent",
        ),
        (volume("/data") + &mounts(&[at(nas, "/data/batch-agent/tasks/x")]), "in a part that belongs to the agent"),
        (
            "disks: {volumes: [{what: instance-store, mount: /data, each: true}]}\n".to_owned()
                + &mounts(&[at(object, "/data/0/batch-agent")]),
            "which belongs to the agent",
        ),
    ] {
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.contains(expected)), "{text}: {found:?}");
    }
    for text in [
        mounts(&[at(nas, "/a"), at(object, "/a/b"), at(view, "/a/b/c"), at(file, "/a/f")]) + &output("/a/out"),
        mounts(&[at(view, "/a")]) + &output("/a/out"),
        volume("/data") + "scratch: /data\ncache: {directory: /data/cache}",
        volume("/data") + "scratch: /data/scratch\n" + &mounts(&[at(object, "/data/input")]),
        volume("/data") + "scratch: /s\n" + &mounts(&[at(object, "/data/batch-agent")]),
        "scratch: /var/lib/batch-agent/scratch".to_owned(),
    ] {
        assert!(settings(&text).is_ok(), "{text}: {}", settings(&text).unwrap_err());
    }
}
