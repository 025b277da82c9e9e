//! Images, from all the places they can come from.

use std::io::Write;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tests::docker::{Registry, oci_archive};
use tests::tools::system;

use crate::site::{BUCKET, Site, assert_failed, own, task};

/// Images that are not there, and from all the places they can come from.
pub(crate) fn images(site: &Site) {
    let registry = Registry::start();
    let name = format!("{}/team/tool:1", registry.host());
    site.engine.import(&name, &["ENV WHO=tool"]);
    registry.push(&site.engine, &name);
    for (path, content) in registry.tree() {
        site.double.put(BUCKET, &format!("dockers/{path}"), content);
    }
    let tar = site.node.path().join("image.tar");
    site.engine.client(&["save", "--output", tar.to_str().unwrap(), &name]);
    site.double.put(BUCKET, "image.tar.gz", gzipped(&std::fs::read(&tar).unwrap()));
    let forget = || site.engine.client(&["rmi", "--force", &name]);
    let line = "/bin/sh -c 'echo $WHO'";
    forget();

    // From the registry, whose password nobody but it and the engine come to know.
    let docker = json!({"Parameters": {"Command": {"Docker": {"Image": name}}}});
    let refused = site.run(&task(line, docker.clone()));
    assert_failed(&refused, 77, "storage", &[&name, "login"]);
    let logins = format!("--registry-logins={}", registry.logins().display());
    let pulled = site.run_with(&task(line, docker.clone()), &[&logins, "-v"]);
    assert_eq!((pulled.status, site.log("stdout", &pulled).as_str()), (0, "tool\n"), "{pulled:#?}");
    assert!(!format!("{pulled:?}").contains(Registry::PASSWORD));
    let absent = format!("{}/team/other:1", registry.host());
    let absent =
        site.run_with(&task(line, json!({"Parameters": {"Command": {"Docker": {"Image": absent}}}})), &[&logins]);
    assert_failed(&absent, 66, "user", &["team/other:1"]);
    forget();

    // From the files of a registry that nobody runs.
    let variables = json!({"Parameters": {"Command": {"Docker": {"Image": ""}, "EnvVars": {
        "BATCH_COMPUTE_DOCKER_IMAGE": name, "BATCH_COMPUTE_DOCKER_REGISTRY_OSS_PATH": "oss://test-bucket/dockers",
    }}}});
    for _ in ["taken in", "known"] {
        let run = site.run(&task(line, variables.clone()));
        assert_eq!((run.status, site.log("stdout", &run).as_str()), (0, "tool\n"), "{run:#?}\n{}", site.engine.log());
    }
    let mut other = variables;
    other["Parameters"]["Command"]["EnvVars"]["BATCH_COMPUTE_DOCKER_IMAGE"] = json!("localhost:5000/team/tool:2");
    assert_failed(&site.run(&task(line, other)), 65, "user", &["has no 2", "the tags 1"]);
    forget();

    // From an archive.
    let archive = json!({"command": ["/bin/sh", "-c", "echo $WHO"],
        "container": {"image": name, "archive": "oss://test-bucket/image.tar.gz"}});
    let run = site.run(&own(archive));
    assert_eq!((run.status, site.log("stdout", &run).as_str()), (0, "tool\n"), "{run:#?}");

    // Nobody listens there.
    let nowhere = json!({"Parameters": {"Command": {"Docker": {"Image": "127.0.0.1:1/x:1"}}}});
    assert_failed(&site.run(&task(line, nowhere)), 69, "storage", &["127.0.0.1:1/x:1", "could not be pulled"]);
    site.assert_clean();
}

pub(crate) fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn zstandard(content: &[u8]) -> Vec<u8> {
    let mut zstd = Command::new(system("zstd", "zstd"));
    let mut zstd = zstd.args(["-q", "-1", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, content) = (zstd.stdin.take().unwrap(), content.to_vec());
    let writer = std::thread::spawn(move || to.write_all(&content));
    let output = zstd.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// OCI archives, whose layers may be compressed in two ways, and which may be compressed as a whole.
pub(crate) fn oci_archives(site: &Site) {
    let archive =
        |kind: &str, compress: fn(&[u8]) -> Vec<u8>| oci_archive("1", &[&format!("WHO={kind}")], kind, compress);
    let whole = gzipped(&oci_archive("1", &["WHO=whole"], "gzip", gzipped));
    for (kind, content) in [("gzip", archive("gzip", gzipped)), ("zstd", archive("zstd", zstandard)), ("whole", whole)]
    {
        site.double.put(BUCKET, &format!("{kind}.oci"), content);
        let job = |path: &str| {
            own(json!({"command": ["/bin/sh", "-c", "echo $WHO"],
                "container": {"image": format!("registry.example/{kind}:1"), "archive": format!("oss://test-bucket/{path}")}}))
        };
        let run = site.run(&job(&format!("{kind}.oci")));
        assert_eq!(run.status, 0, "{kind}: {run:#?}\n{}", site.engine.log());
        assert_eq!(site.log("stdout", &run), format!("{kind}\n"));
    }
    site.double.put(BUCKET, "none.oci", "PK\x03\x04 something else");
    let nothing =
        own(json!({"command": "/bin/true", "container": {"image": "x:1", "archive": "oss://test-bucket/none.oci"}}));
    assert_failed(&site.run(&nothing), 65, "user", &["none.oci", "no archive of an image"]);
    site.assert_clean();
}
