//! Ordinary programs that read many files, or one in unordinary ways: the same bytes come out of a mount as of a disk.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use md5::{Digest as _, Md5};
use tests::bucket::sample;
use tests::tools;

use super::places::{Files, Places, tree};

#[test]
fn md5sum_agrees_about_five_thousand_files() {
    let mut files = Files::new();
    let mut sums = String::new();
    for number in 0..5_000_u64 {
        let name = format!("{:02}/file-{number}", number % 37);
        let bytes = sample(number, (number * number) % 9_001);
        writeln!(sums, "{}  {name}", hex::encode(Md5::digest(&bytes))).unwrap();
        files.insert(name, bytes);
    }
    files.insert("MD5SUMS".to_owned(), sums.into());
    let places = Places::with(&files);
    let (printed, _) = places.same("sums", &[], "cd \"$IN\" && md5sum -c --strict MD5SUMS | grep -c ': OK$'");
    assert_eq!(printed.trim(), "5000");
    places.end();
}

#[test]
fn zip_and_unzip_see_what_is_on_a_disk() {
    tools::system("zip", "zip");
    tools::system("unzip", "unzip");
    let mut files: Files =
        (0..200_u64).map(|number| (format!("d{}/{number}.bin", number % 7), sample(number, number * 997))).collect();
    files.insert("text/repeated.txt".to_owned(), Bytes::from("the same line\n".repeat(200_000)));
    let places = Places::with(&files);
    let (_, made) = places.same(
        "zip",
        &[],
        "(cd \"$IN\" && find d? text -type f | LC_ALL=C sort) > names
         (cd \"$IN\" && zip -q -X - -@) < names > all.zip
         unzip -tqq all.zip
         mkdir out && unzip -q all.zip -d out
         find out -type f -printf '%P %s %m %T@\\n' | LC_ALL=C sort",
    );
    assert_eq!(made.len(), 2 * files.len() - files.len() + 2);
    places.end();

    let places = Places::with(&[("all.zip".to_owned(), made["all.zip"].clone())].into());
    let (_, made) =
        places.same("unzip", &[], "unzip -q \"$IN/all.zip\" && unzip -p \"$IN/all.zip\" d3/199.bin | md5sum");
    for (name, bytes) in &files {
        assert!(made[name] == bytes, "{name}");
    }
    places.end();
}

/// What Python itself comes with and what is made up: packages within packages, relative imports.
fn packages() -> Files {
    let said = tools::done(Command::new("python3").args(["-c", "import json; print(json.__file__)"]));
    let library = String::from_utf8(said.stdout).unwrap();
    let library = Path::new(library.trim()).ancestors().nth(2).unwrap();
    let mut files = Files::new();
    for name in ["email", "json", "xml", "unittest", "asyncio"] {
        for (file, bytes) in tree(&library.join(name)) {
            files.insert(format!("lib/{name}/{file}"), bytes);
        }
    }
    for package in 0..20 {
        for module in 0..15 {
            let text = if module == 0 {
                format!("VALUE = {package}\n")
            } else {
                format!("from .m{} import VALUE as before\nVALUE = before * 31 % 1000003 + {module}\n", module - 1)
            };
            files.insert(format!("lib/made/p{package}/m{module}.py"), text.into());
        }
        files.insert(format!("lib/made/p{package}/__init__.py"), "from . import m14\nVALUE = m14.VALUE\n".into());
    }
    files.insert("lib/made/__init__.py".to_owned(), Bytes::new());
    files
}

const IMPORT: &str = "import importlib, os, sys
place = os.environ['IN'] + '/lib/'
total = 0
for package in range(20):
    total += importlib.import_module(f'made.p{package}').VALUE
import asyncio, email.mime.text, json, unittest, xml.dom.minidom, xml.etree.ElementTree as tree
for module in (asyncio, email, json, unittest, tree, sys.modules['made.p3.m7']):
    assert module.__file__.startswith(place), module.__file__
print(total, json.dumps([1, {'a': None}]), tree.fromstring('<a><b/></a>')[0].tag, email.mime.text.MIMEText('x').as_string())
print(asyncio.run(asyncio.sleep(0, 'slept')))
";

#[test]
fn python_imports_from_a_mount_and_keeps_its_byte_code_in_a_view() {
    let files = packages();
    let places = Places::with(&files);
    let script = format!("export PYTHONPATH=\"$IN/lib\"\npython3 -s - <<'END'\n{IMPORT}END");
    let (printed, _) = places.same("import", &[], &script);
    assert!(printed.contains("slept"), "{printed}");
    // In the view the byte code has been written beside the sources, and is used the next time.
    let view = places.view();
    let compiled = view.path("lib/made/p3/__pycache__");
    assert!(std::fs::read_dir(&compiled).unwrap().count() == 16, "{}", compiled.display());
    let root = view.root();
    let variables = [("IN", root.as_os_str())];
    let verbose = script.replace("python3 -s", "python3 -s -v 2>&1");
    let second = tools::shell(Path::new("/"), &variables, &verbose);
    let used = compiled.join("m7.cpython");
    assert!(second.contains(&format!("# code object from '{}", used.display())), "byte code was not used:\n{second}");
    places.end();
}

#[test]
fn a_mapping_shows_the_same_bytes() {
    let mut files = Files::new();
    files.insert("large".to_owned(), sample(7, 40_000_003));
    files.insert("small".to_owned(), sample(8, 4_097));
    let places = Places::with(&files);
    let script = "python3 - <<'END'
import hashlib, mmap, os, random
random.seed(5)
for name in ('large', 'small'):
    with open(os.environ['IN'] + '/' + name, 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        digest = hashlib.sha256()
        for _ in range(500):
            at = random.randrange(len(mapped))
            digest.update(mapped[at:at + random.randrange(1, 30000)])
        print(name, len(mapped), digest.hexdigest(), hashlib.sha256(mapped).hexdigest(), mapped.rfind(b'abc'))
END";
    let (printed, _) = places.same("mapped", &[], script);
    assert!(printed.starts_with("large 40000003 "), "{printed}");
    places.end();
}
