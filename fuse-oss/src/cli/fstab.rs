//! The forms in which mount(8) and fstab call us.
//!
//! mount(8) with type `fuse.fuse-oss` looks for the helpers `/sbin/mount.fuse.fuse-oss` and `/sbin/mount.fuse`. The second, part
//! of libfuse's `fuse3` package, runs `fuse-oss LOCATION DIR -o OPTIONS` through a shell, with `dev` and `suid` added. The
//! first may be a link to this program and is called as `LOCATION DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`. Both
//! forms, and `mount.fuse-oss`, become `fuse-oss mount` here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_oss::keeper::ServerSettings;
use fuse_oss::{CacheUse, ErrorKind, MountEntry, MountError, MountOptions, ServeSettings, Writable};
use oss::{CredentialSource, Scheme, Settings, StoreSettings};

use super::arguments::{MountArguments, addressing, octal};

/// Options that are not for us but for mount(8), systemd or the kernel's generic part, and ask for nothing that a read-only
/// mount would have to refuse.
const IGNORED: &[&str] = &[
    "ro",
    "rw",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "defaults",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "async",
    "sync",
    "dirsync",
    "silent",
    "loud",
    "mand",
    "nomand",
    "default_permissions",
    "big_writes",
];

/// Turns the forms of mount(8) into ours.
///
/// # Errors
/// [`ErrorKind::Usage`] for flags that mount(8) does not pass.
pub fn rewrite(arguments: Vec<OsString>) -> Result<Vec<OsString>, MountError> {
    let program = arguments.first().map(PathBuf::from).unwrap_or_default();
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let helper = matches!(name, "mount.fuse-oss" | "mount.fuse.fuse-oss");
    let bare = arguments.get(1).and_then(|first| first.to_str()).is_some_and(|first| first.contains("://"));
    if !helper && !bare {
        return Ok(arguments);
    }
    let usage = |text: String| MountError::new(ErrorKind::Usage, text);
    let mut out: Vec<OsString> = vec![arguments.first().cloned().unwrap_or_default(), "mount".into()];
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        let Some(text) = argument.to_str() else {
            out.push(argument);
            continue;
        };
        match text {
            "-t" | "-N" if helper => {
                let value = rest.next().ok_or_else(|| usage(format!("{text} needs a value")))?;
                if text == "-N" && !value.is_empty() {
                    return Err(usage(
                        "mounting in another namespace (-N) is not possible; enter it first (nsenter)".to_owned(),
                    ));
                }
            }
            flags if helper && is_flags(flags) => {
                if flags.contains('f') {
                    out.push("--fake".into());
                }
                if flags.contains('v') {
                    out.push("-v".into());
                }
            }
            _ => out.push(argument),
        }
    }
    Ok(out)
}

/// `-s`, `-f`, `-n`, `-v` and combinations.
fn is_flags(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|flags| !flags.is_empty() && flags.chars().all(|flag| "sfnv".contains(flag)))
}

/// The command line of a mount with its `-o` options worked in.
#[derive(Debug)]
pub struct Wanted {
    /// What to mount at the top; with nothing there, the entries are all there is.
    pub location: Option<String>,
    /// Where.
    pub directory: PathBuf,
    /// Only check.
    pub fake: bool,
    exec: bool,
    arguments: MountArguments,
}

/// Works the `-o` options in. They stand for the long options of the same name, with `_` and `-` alike.
///
/// # Errors
/// [`ErrorKind::Usage`] for an option that does not exist or whose value makes no sense.
pub fn apply(arguments: &MountArguments) -> Result<Wanted, MountError> {
    let mut wanted = Wanted {
        location: arguments.location.clone(),
        directory: arguments.directory.clone(),
        fake: arguments.helper.fake,
        exec: true,
        arguments: arguments.clone(),
    };
    for option in arguments.fstab_options.iter().flat_map(|options| options.split(',')) {
        wanted.set(option)?;
    }
    wanted.check_writable(arguments)?;
    Ok(wanted)
}

impl Wanted {
    fn set(&mut self, option: &str) -> Result<(), MountError> {
        let usage = |text: String| MountError::new(ErrorKind::Usage, text);
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if option.is_empty()
            || IGNORED.contains(&option)
            || name.starts_with("x-")
            || name.starts_with("X-")
            || name == "comment"
        {
            return Ok(());
        }
        let needed = || {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| usage(format!("-o {name} needs a value: {name}=VALUE")))
        };
        let bad = |error: &dyn std::fmt::Display| usage(format!("-o {name}: {error}"));
        let number = || needed()?.parse::<u64>().map_err(|error| bad(&error));
        let id = || needed()?.parse::<u32>().map_err(|error| bad(&error));
        let size = || needed()?.parse().map_err(|error: fuse_oss::ByteSizeError| bad(&error));
        let arguments = &mut self.arguments;
        match name.replace('-', "_").as_str() {
            "allow_other" => arguments.allow_other = true,
            "nonempty" => arguments.nonempty = true,
            "anonymous" => arguments.anonymous = true,
            "noexec" => self.exec = false,
            "endpoint" => arguments.endpoint = Some(needed()?.to_owned()),
            "region" => arguments.region = Some(needed()?.to_owned()),
            "addressing" => arguments.addressing = Some(addressing(needed()?).map_err(|error| bad(&error))?),
            "uid" => arguments.uid = Some(id()?),
            "gid" => arguments.gid = Some(id()?),
            "file_mode" => arguments.file_mode = octal(needed()?).map_err(|error| bad(&error))?,
            "dir_mode" => arguments.dir_mode = octal(needed()?).map_err(|error| bad(&error))?,
            "locale" => arguments.locale = needed()?.parse().map_err(|error: fuse_oss::CharsetError| bad(&error))?,
            "writable" => arguments.writable = true,
            "upper" => arguments.upper = Some(needed()?.into()),
            "upper_size" => arguments.upper_size = Some(size()?),
            "mount_cache_size" => arguments.mount_cache_size = Some(size()?),
            "max_names" => arguments.max_names = Some(number()?),
            "fetch_size" => arguments.fetch_size = Some(size()?),
            "prefetch" => arguments.prefetch = needed()?.parse().map_err(|error: String| bad(&error))?,
            "connect_timeout" => arguments.connect_timeout = Some(number()?),
            "read_timeout" => arguments.read_timeout = Some(number()?),
            "total_timeout" => arguments.total_timeout = Some(number()?),
            "cache_dir" => arguments.cache.cache_dir = needed()?.into(),
            "runtime_dir" => arguments.cache.runtime_dir = needed()?.into(),
            "cache_size" => arguments.cache.cache_size = Some(size()?),
            "memory_limit" => arguments.cache.memory_limit = Some(size()?),
            _ => {
                return Err(usage(format!(
                    "unknown mount option {name:?}; fuse-oss mount --help lists the options (written in fstab without dashes)"
                )));
            }
        }
        if value.is_some() && matches!(name, "allow_other" | "nonempty" | "anonymous" | "noexec" | "writable") {
            return Err(usage(format!("-o {name} takes no value")));
        }
        Ok(())
    }

    /// Options that only make sense together.
    fn check_writable(&mut self, given: &MountArguments) -> Result<(), MountError> {
        let usage = |text: &str| Err(MountError::new(ErrorKind::Usage, text));
        let arguments = &mut self.arguments;
        if !arguments.writable && (arguments.upper.is_some() || arguments.upper_size.is_some()) {
            return usage("-o upper and -o upper-size say where what is written goes: they need -o writable as well");
        }
        let read_only = given.fstab_options.iter().flat_map(|options| options.split(',')).any(|option| option == "ro");
        if arguments.writable && read_only {
            return usage("-o ro and a writable mount contradict each other: leave one of them out");
        }
        // The server works in another directory.
        arguments.upper = arguments.upper.take().map(|upper| std::path::absolute(&upper).unwrap_or(upper));
        Ok(())
    }

    /// How the mount looks.
    pub fn options(&self) -> MountOptions {
        let writable =
            || Writable { upper: self.arguments.upper.clone(), size: self.arguments.upper_size, whole_files: false };
        MountOptions {
            file_mode: self.arguments.file_mode,
            dir_mode: self.arguments.dir_mode,
            uid: self.arguments.uid,
            gid: self.arguments.gid,
            allow_other: self.arguments.allow_other,
            exec: self.exec,
            nonempty: self.arguments.nonempty,
            prefetch: self.arguments.prefetch,
            max_names: self.arguments.max_names,
            cache: CacheUse { limit: self.arguments.mount_cache_size, fetch: self.arguments.fetch_size },
            writable: self.arguments.writable.then(writable),
        }
    }

    /// What is to be where.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when there is nothing, or the location is none.
    pub fn entries(&self) -> Result<Vec<MountEntry>, MountError> {
        let usage = |text: &dyn std::fmt::Display| MountError::new(ErrorKind::Usage, text);
        let directory = self.directory.to_string_lossy();
        let is_nowhere = self.location.is_none() && (self.arguments.entries.is_empty() || directory.contains("://"));
        if is_nowhere {
            return Err(usage(&format_args!(
                "{directory:?} alone does not say what is to be mounted where: write fuse-oss mount LOCATION DIRECTORY"
            )));
        }
        let mut entries = Vec::new();
        if let Some(location) = &self.location {
            let location = location.parse().map_err(|error: oss::LocationError| usage(&error))?;
            entries.push(MountEntry::new("", location));
        }
        entries
            .extend(self.arguments.entries.iter().map(|(at, location)| MountEntry::new(at.as_str(), location.clone())));
        for entry in &mut entries {
            entry.locale = self.arguments.locale;
        }
        Ok(entries)
    }

    /// How the stores are reached: the environment, and what was written for the scheme that is mounted.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the environment makes no sense; [`ErrorKind::Usage`] when an option would be meant for several schemes.
    pub fn stores(&self, entries: &[MountEntry]) -> Result<Settings, MountError> {
        // Looked up here because the server's environment has nothing of this.
        let mut settings = Settings::from_env()
            .map_err(|error| MountError::new(ErrorKind::Invalid, format_args!("in the environment: {error}")))?;
        let has = |scheme| entries.iter().any(|entry| entry.location.scheme() == scheme);
        let (oss, s3) = (has(Scheme::Oss), has(Scheme::S3));
        let arguments = &self.arguments;
        let is_of_one = arguments.endpoint.is_some() || arguments.region.is_some() || arguments.addressing.is_some();
        if oss && s3 && is_of_one {
            return Err(MountError::new(
                ErrorKind::Usage,
                "--endpoint, --region and --addressing cannot be meant for oss:// and s3:// at once; give them in the environment \
                 (OSS_ENDPOINT, OSS_REGION, AWS_ENDPOINT_URL, AWS_REGION)",
            ));
        }
        if oss {
            self.override_store(&mut settings.oss);
        }
        if s3 {
            self.override_store(&mut settings.s3);
        }
        Ok(settings)
    }

    fn override_store(&self, store: &mut StoreSettings) {
        let arguments = &self.arguments;
        if let Some(endpoint) = &arguments.endpoint {
            store.endpoint = Some(endpoint.clone());
        }
        if let Some(region) = &arguments.region {
            store.region = Some(region.clone());
        }
        if let Some(addressing) = arguments.addressing {
            store.addressing = addressing;
        }
        if arguments.anonymous {
            store.credentials = CredentialSource::Anonymous;
        }
        let timeouts = &mut store.timeouts;
        for (given, timeout) in [
            (arguments.connect_timeout, &mut timeouts.connect),
            (arguments.read_timeout, &mut timeouts.read),
            (arguments.total_timeout, &mut timeouts.total),
        ] {
            if let Some(seconds) = given {
                *timeout = Duration::from_secs(seconds);
            }
        }
    }

    /// The server that is to serve the mount.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when this program cannot find itself.
    pub fn serve_settings(&self) -> Result<ServeSettings, MountError> {
        let cache = &self.arguments.cache;
        Ok(ServeSettings {
            binary: own_path()?,
            cache_dir: cache.cache_dir.clone(),
            cache_size: cache.cache_size,
            memory_limit: cache.memory_limit,
            runtime_dir: cache.runtime_dir.clone(),
        })
    }

    /// The same, for a server in this process.
    pub fn server_settings(&self, log: Vec<String>) -> ServerSettings {
        super::serve::server_settings(&self.arguments.cache, log)
    }
}

/// The path of this program, by which a server is started: never a name that PATH would be searched for.
fn own_path() -> Result<PathBuf, MountError> {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .or_else(|| Some(Path::new("/proc/self/exe").to_owned()).filter(|path| path.exists()))
        .ok_or_else(|| MountError::new(ErrorKind::Internal, "cannot find this program's own file"))
}

#[cfg(test)]
mod tests {
    use super::super::arguments::{Arguments, Command};
    use super::*;
    use clap::Parser;
    use fuse_oss::{ByteSize, Prefetch};

    fn parse(line: &[&str]) -> Result<Wanted, MountError> {
        let arguments = rewrite(line.iter().map(OsString::from).collect())?;
        match Arguments::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).command {
            Command::Mount(arguments) => apply(&arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_helper_forms_become_a_mount() {
        let options = "rw,dev,suid,nofail,_netdev,x-systemd.automount,endpoint=http://127.0.0.1:1,allow_other,file_mode=0444,cache-size=10GB";
        for line in [
            &["fuse-oss", "oss://b/p/", "/mnt", "-o", options][..],
            &["/sbin/mount.fuse-oss", "oss://b/p/", "/mnt", "-o", options],
            &["/sbin/mount.fuse.fuse-oss", "oss://b/p/", "/mnt", "-nsv", "-o", options, "-t", "fuse.fuse-oss"],
        ] {
            let wanted = parse(line).unwrap();
            assert_eq!(
                (wanted.location.as_deref(), wanted.directory.as_path()),
                (Some("oss://b/p/"), Path::new("/mnt"))
            );
            assert_eq!(
                wanted.stores(&wanted.entries().unwrap()).unwrap().oss.endpoint.as_deref(),
                Some("http://127.0.0.1:1")
            );
            let looks = wanted.options();
            assert!(looks.allow_other && looks.exec && looks.file_mode == 0o444 && !wanted.fake);
            assert_eq!(wanted.serve_settings().unwrap().cache_size.unwrap().bytes(), 10_000_000_000);
        }
        assert!(parse(&["mount.fuse-oss", "oss://b/p/", "/mnt", "-f", "-o", "ro"]).unwrap().fake);
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        for (options, hint) in [
            ("ro,colour=red", "unknown mount option \"colour\""),
            ("region", "region=VALUE"),
            ("uid=root", "-o uid"),
            ("file_mode=999", "no octal mode"),
            ("allow_other=yes", "takes no value"),
            ("prefetch=everything", "write none, metadata or all"),
            ("upper=/scratch", "-o writable"),
            ("upper_size=1GiB", "-o writable"),
            ("ro,writable", "contradict"),
            ("writable=yes", "takes no value"),
            ("writable,upper-size=big", "is not a size"),
            ("locale=UTF-16", "common character sets are UTF-8, GBK"),
            ("entry=a=oss://b/", "unknown mount option \"entry\""),
        ] {
            let error = parse(&["fuse-oss", "oss://b/p/", "/mnt", "-o", options]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(hint), "{error}");
        }
        let ahead = |line: &[&str]| parse(line).unwrap().options().prefetch;
        assert_eq!(ahead(&["fuse-oss", "oss://b/p/", "/mnt", "-o", "ro,prefetch=all"]), Prefetch::All);
        assert_eq!(ahead(&["fuse-oss", "mount", "oss://b/p/", "/mnt", "--prefetch=metadata"]), Prefetch::Metadata);
        assert_eq!(ahead(&["fuse-oss", "oss://b/p/", "/mnt"]), Prefetch::None);
        assert!(!parse(&["fuse-oss", "oss://b/p/", "/mnt", "-o", "noexec"]).unwrap().options().exec);
    }

    #[test]
    fn what_is_written_goes_where_it_is_told() {
        let writable = |line: &[&str]| parse(line).unwrap().options().writable;
        let upper = |upper: Option<&str>, size: Option<u64>| {
            Some(Writable { upper: upper.map(Into::into), size: size.map(ByteSize::new), whole_files: false })
        };
        assert_eq!(writable(&["fuse-oss", "oss://b/p/", "/mnt", "-o", "rw"]), None);
        assert_eq!(writable(&["fuse-oss", "oss://b/p/", "/mnt", "-o", "rw,writable"]), upper(None, None));
        let line = ["fuse-oss", "oss://b/p/", "/mnt", "-o", "writable,upper=/scratch,upper-size=1GiB"];
        assert_eq!(writable(&line), upper(Some("/scratch"), Some(1 << 30)));
        let line = ["fuse-oss", "mount", "oss://b/p/", "/mnt", "--writable", "--upper", "here", "--upper-size=1GiB"];
        let here = std::env::current_dir().unwrap().join("here");
        assert_eq!(writable(&line), upper(here.to_str(), Some(1 << 30)), "the server works elsewhere");
    }

    #[test]
    fn several_locations_have_their_places() {
        let line = [
            "fuse-oss",
            "mount",
            "oss://b/p/",
            "/mnt",
            "--entry",
            "a=b/c=oss://b/x",
            "--entry=d=s3://c/y/",
            "--locale=gbk",
        ];
        let wanted = parse(&line).unwrap();
        let entries = wanted.entries().unwrap();
        let shown: Vec<_> = entries.iter().map(|entry| (entry.at.as_str(), entry.location.to_string())).collect();
        let expected = [("", "oss://b/p/"), ("a=b/c", "oss://b/x"), ("d", "s3://c/y/")];
        assert_eq!(shown, expected.map(|(at, location)| (at, location.to_owned())));
        assert!(entries.iter().all(|entry| entry.locale.name() == "GBK"));
        wanted.stores(&entries).unwrap();
        let wanted = parse(&[&line[..], &["--region", "cn-x"]].concat()).unwrap();
        assert!(wanted.stores(&entries).unwrap_err().message.contains("oss:// and s3:// at once"));
        let wanted = parse(&["fuse-oss", "mount", "/mnt", "--entry=a=oss://b/x"]).unwrap();
        assert_eq!((wanted.entries().unwrap().len(), wanted.directory.as_path()), (1, Path::new("/mnt")));
        for line in [&["fuse-oss", "mount", "oss://b/x"][..], &["fuse-oss", "mount", "oss://b/", "--entry=a=oss://b/x"]]
        {
            assert!(parse(line).unwrap().entries().unwrap_err().message.contains("LOCATION DIRECTORY"));
        }
        for entry in ["oss://b/x", "a:oss://b/x", "a=b", "a=oss://"] {
            assert!(Arguments::try_parse_from(["fuse-oss", "mount", "/mnt", "--entry", entry]).is_err(), "{entry}");
        }
    }

    #[test]
    fn our_own_commands_are_left_alone() {
        for line in [&["fuse-oss", "status"][..], &["fuse-oss", "mount", "oss://b/", "/mnt", "-v"], &["fuse-oss"]] {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            assert_eq!(rewrite(line.clone()).unwrap(), line);
        }
    }
}
