//! The users of this machine, as far as a task runs as one of them.
//!
//! `/etc/passwd` and `/etc/group` are read by us and not by the C library: the programs are static, and the modules that the
//! library would load to ask directories elsewhere (LDAP, SSSD) are those of another one. Users of directories are named by their
//! numbers.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A user as a job names it: `alice`, `1000`, `alice:staff`, `1000:1000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName {
    user: String,
    group: Option<String>,
}

/// Why a text names no user. Follows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not the name or number of a user")]
pub struct UserNameError;

/// The longest name of a user (`LOGIN_NAME_MAX`), in bytes.
const MAX_NAME: usize = 256;

impl FromStr for UserName {
    type Err = UserNameError;

    fn from_str(text: &str) -> Result<Self, UserNameError> {
        let is_name = |name: &str| {
            (1..=MAX_NAME).contains(&name.len())
                && !name.starts_with('-')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '$' | '+'))
        };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if !is_name(user) || !group.is_none_or(is_name) {
            return Err(UserNameError);
        }
        Ok(Self { user: user.to_owned(), group: group.map(str::to_owned) })
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        self.group.as_ref().map_or(Ok(()), |group| write!(f, ":{group}"))
    }
}

/// A user with all that the kernel and a login want to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name; its number where it has none.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The other groups it is in.
    pub groups: Vec<u32>,
    /// Its home directory.
    pub home: PathBuf,
    /// Its shell.
    pub shell: PathBuf,
}

/// Why a user of a job is none of this machine's.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("this machine has no user {0:?} in /etc/passwd; make one in the image, or write its numbers (UID:GID)")]
    NoUser(String),
    /// There is no such group.
    #[error("this machine has no group {0:?} in /etc/group; make one in the image, or write its number")]
    NoGroup(String),
    /// A number of which nothing is known, and no group beside it.
    #[error("user {0} is not in /etc/passwd, so its group is not known; write UID:GID")]
    NoOwnGroup(u32),
    /// The number that stands for "no change" in system calls.
    #[error("{0} cannot be the number of a user or group")]
    BadNumber(u32),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Account {
    /// The user `name` of this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &UserName) -> Result<Self, AccountError> {
        let read = |path: &str| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            // A user may still be named by its numbers.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(AccountError::File { path: path.into(), source }),
        };
        Self::among(name, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    /// The user `name` of a machine with these files. Pure.
    fn among(name: &UserName, passwd: &str, group: &str) -> Result<Self, AccountError> {
        let number = |text: &str| text.parse::<u32>().ok();
        let known = entries(passwd).find(|fields| fields[0] == name.user).or_else(|| {
            let wanted = number(&name.user)?;
            entries(passwd).find(|fields| fields.get(2).and_then(|uid| number(uid)) == Some(wanted))
        });
        let field = |index: usize| known.as_ref().and_then(|fields| fields.get(index).copied());
        let uid = field(2)
            .and_then(number)
            .or_else(|| number(&name.user))
            .ok_or_else(|| AccountError::NoUser(name.user.clone()))?;
        let gid = match &name.group {
            Some(wanted) => entries(group)
                .find(|fields| fields[0] == wanted)
                .and_then(|fields| number(fields.get(2)?))
                .or_else(|| number(wanted))
                .ok_or_else(|| AccountError::NoGroup(wanted.clone()))?,
            None => field(3).and_then(number).ok_or(AccountError::NoOwnGroup(uid))?,
        };
        if let Some(bad) = [uid, gid].into_iter().find(|number| *number == u32::MAX) {
            return Err(AccountError::BadNumber(bad));
        }
        let login = field(0);
        let is_member = |fields: &Vec<&str>| {
            fields.get(3).is_some_and(|members| members.split(',').any(|member| Some(member) == login))
        };
        let groups = entries(group).filter(is_member).filter_map(|fields| number(fields.get(2)?)).collect();
        let path = |index: usize, other: &str| {
            field(index).filter(|path| path.starts_with('/')).map_or_else(|| PathBuf::from(other), PathBuf::from)
        };
        Ok(Self {
            name: login.map_or_else(|| uid.to_string(), str::to_owned),
            uid,
            gid,
            groups,
            home: path(5, "/"),
            shell: path(6, "/bin/sh"),
        })
    }

    /// Gives it everything below `directory`, which lies on one file system; links themselves and not what they lead to.
    ///
    /// # Errors
    /// When something cannot be given away.
    pub fn give(&self, directory: &Path) -> std::io::Result<()> {
        let mut queue = vec![directory.to_owned()];
        while let Some(path) = queue.pop() {
            std::os::unix::fs::lchown(&path, Some(self.uid), Some(self.gid))?;
            if path.symlink_metadata()?.is_dir() {
                for entry in fs::read_dir(&path)? {
                    queue.push(entry?.path());
                }
            }
        }
        Ok(())
    }
}

/// The lines of such a file, split. Comments, and the lines by which NIS is joined in, are not meant for us.
fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']))
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n+nis\n# no\nalice:x:1000:1001:Alice:/home/alice:/bin/zsh\nbad\n7:x:8:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nalice:x:1001:\nstaff:x:50:bob,alice\ndocker:x:99:alicex,bob\nvideo:x:44:alice\n";

    fn among(name: &str) -> Result<Account, AccountError> {
        Account::among(&name.parse().unwrap(), PASSWD, GROUP)
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let alice = among("alice").unwrap();
        assert_eq!((alice.uid, alice.gid, &alice.groups[..]), (1000, 1001, &[50, 44][..]));
        assert_eq!((alice.home.to_str(), alice.shell.to_str()), (Some("/home/alice"), Some("/bin/zsh")));
        assert_eq!(among("1000").unwrap(), alice);
        assert_eq!(among("alice:staff").unwrap().gid, 50);
        assert_eq!(among("alice:7").unwrap().gid, 7);
        // A name counts before a number.
        let seven = among("7").unwrap();
        assert_eq!((seven.uid, seven.shell.to_str()), (8, Some("/bin/sh")));
        let stranger = among("4000:4001").unwrap();
        assert_eq!((stranger.name.as_str(), stranger.uid, stranger.gid), ("4000", 4000, 4001));
        assert_eq!((stranger.groups.len(), stranger.home.to_str()), (0, Some("/")));
    }

    #[test]
    fn who_is_not_there_is_said() {
        assert!(matches!(among("bob"), Err(AccountError::NoUser(_))));
        assert!(matches!(among("alice:none"), Err(AccountError::NoGroup(_))));
        assert!(matches!(among("4000"), Err(AccountError::NoOwnGroup(4000))));
        assert!(matches!(among("bad"), Err(AccountError::NoUser(_))));
        assert!(matches!(among("4294967295:1"), Err(AccountError::BadNumber(_))));
        assert_eq!(Account::find(&"root".parse().unwrap()).unwrap().uid, 0);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for bad in ["", ":", "a:", ":a", "a b", "a:b:c", "-x", "a/b", "ä", "a\n"] {
            assert_eq!(bad.parse::<UserName>(), Err(UserNameError), "{bad:?}");
        }
        for good in ["root", "1000:1000", "svc$", "a.b@c:x"] {
            assert_eq!(good.parse::<UserName>().unwrap().to_string(), good);
        }
    }
}
