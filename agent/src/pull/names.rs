//! From the names of objects to those of files. No I/O.

use std::collections::HashSet;

use oss::Key;

/// The longest name in a directory that Linux's file systems take, in bytes.
const MAX_NAME: usize = 255;

/// An object, and its name relative to what is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) name: String,
    pub(super) size: u64,
}

/// An object that becomes a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) key: Key,
    /// The names from the directory down to the file; at least one.
    pub(super) parts: Vec<String>,
    pub(super) size: u64,
}

/// What becomes of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) files: Vec<Planned>,
    /// What markers stand for.
    pub(super) directories: Vec<Vec<String>>,
    /// What cannot be had here, with the reasons.
    pub(super) refused: Vec<(Key, String)>,
}

/// Plans where `objects` go.
pub(super) fn plan(objects: Vec<Object>) -> Plan {
    let mut plan = Plan::default();
    // Every directory that something is in, by its name with a slash at the end.
    let mut directories: HashSet<String> = HashSet::new();
    for Object { key, name, size } in objects {
        let path = match name.strip_suffix('/') {
            // The marker of what is fetched itself.
            _ if name.is_empty() && size == 0 => continue,
            Some(_) if size > 0 => {
                Err("a name that ends in a slash is a directory, and this object has content".into())
            }
            Some(directory) => parts(directory),
            None => parts(&name),
        };
        let parts = match path {
            Ok(parts) => parts,
            Err(reason) => {
                plan.refused.push((key, reason));
                continue;
            }
        };
        for (at, _) in name.match_indices('/') {
            if !directories.contains(&name[..=at]) {
                directories.insert(name[..=at].to_owned());
            }
        }
        if name.ends_with('/') {
            plan.directories.push(parts);
        } else {
            plan.files.push(Planned { key, parts, size });
        }
    }
    let (files, hidden) =
        plan.files.into_iter().partition(|file| !directories.contains(&format!("{}/", file.parts.join("/"))));
    plan.files = files;
    let both = "there are objects below that name, too, and no file can be a directory: fetch it by itself";
    plan.refused.extend(hidden.into_iter().map(|file: Planned| (file.key, both.to_owned())));
    plan
}

/// The names that a path is made of, or why it is none.
fn parts(path: &str) -> Result<Vec<String>, String> {
    if path.contains('\0') {
        return Err("its name holds a zero byte, which no file's can".to_owned());
    }
    let parts: Vec<_> = path.split('/').collect();
    match parts.iter().find(|part| matches!(**part, "" | "." | "..") || part.len() > MAX_NAME) {
        None => Ok(parts.into_iter().map(str::to_owned).collect()),
        Some(&"") => Err("an empty name between two slashes is no file's".to_owned()),
        Some(part) if part.len() > MAX_NAME => {
            Err(format!("a name of {} bytes is longer than a file's can be ({MAX_NAME})", part.len()))
        }
        Some(part) => Err(format!("{part:?} is no file's name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(name: &str, size: u64) -> Object {
        Object { key: Key::new(format!("in/{name}")), name: name.to_owned(), size }
    }

    #[test]
    fn hostile_and_impossible_names_are_refused_and_the_rest_is_not() {
        let long = "n".repeat(256);
        let bad = ["../up", "a/../../up", "/etc/passwd", "a//b", ".", "a/.", "..", "a\0b", &long, "//", "../", "/"];
        let good = ["a/b", "..a", "...", "a b", "new\nline", "\u{4e2d}", "C:\\x", "~", "-rf", &long[1..]];
        let all = bad.iter().chain(&good).map(|name| object(name, 0)).collect();
        let plan = plan(all);
        assert_eq!(plan.refused.iter().map(|(key, _)| &key.as_str()[3..]).collect::<Vec<_>>(), bad);
        assert_eq!(plan.files.iter().map(|file| file.parts.join("/")).collect::<Vec<_>>(), good);
        assert!(plan.directories.is_empty());
    }

    #[test]
    fn markers_are_directories_and_what_is_in_the_way_is_refused() {
        let all = [("", 0), ("empty/", 0), ("x", 1), ("x/y", 2), ("d", 3), ("d/", 0), ("full/", 4)];
        let plan = plan(all.map(|(name, size)| object(name, size)).to_vec());
        assert_eq!(plan.directories, [vec!["empty"], vec!["d"]]);
        assert_eq!(plan.files.iter().map(|file| file.parts.join("/")).collect::<Vec<_>>(), ["x/y"]);
        let refused: Vec<_> = plan.refused.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(refused, ["in/full/", "in/x", "in/d"]);
    }

    proptest! {
        #[test]
        fn no_name_leads_outside_and_none_is_lost(names in proptest::collection::hash_set("[a./]{0,8}|\\PC{0,6}", 0..20)) {
            let objects: Vec<_> = names.iter().map(|name| object(name, 0)).collect();
            let roots = names.iter().filter(|name| name.is_empty()).count();
            let plan = plan(objects);
            prop_assert_eq!(plan.files.len() + plan.directories.len() + plan.refused.len() + roots, names.len());
            for parts in plan.files.iter().map(|file| &file.parts).chain(&plan.directories) {
                prop_assert!(!parts.is_empty());
                for part in parts {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']));
                }
            }
            // No file is in the way of another, or of a directory.
            for file in &plan.files {
                let others = plan.files.iter().filter(|other| other.key != file.key).map(|other| &other.parts);
                prop_assert!(others.chain(&plan.directories).all(|parts| !parts.starts_with(&file.parts)));
            }
        }
    }
}
