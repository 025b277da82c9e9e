//! Programs that change files in ways of their own, in the view: git, SQLite, tar, rsync, a C build.

use std::fmt::Write as _;
use std::fs;

use bytes::Bytes;
use tests::bucket::{Bucket, sample};
use tests::tools;
use tests::view::View;

use super::places::{Files, Places, differences, tree};

/// A tree with text, binaries, depth, and a name that needs quoting.
fn a_tree() -> Files {
    let mut files = Files::new();
    for number in 0..300_u64 {
        let name = format!("src/d{}/e{}/file-{number}.dat", number % 11, number % 3);
        files.insert(name, sample(number, number * 211));
    }
    for number in 0..100 {
        let text: String = (0..number * 3).fold(String::new(), |mut text, line| {
            writeln!(text, "line {line} of {number}").unwrap();
            text
        });
        files.insert(format!("doc/{number}.txt"), text.into());
    }
    files.insert("doc/a name with 'quotes' and ümlauts".to_owned(), Bytes::from_static(b"x"));
    files.insert("large".to_owned(), sample(1, 5_000_000));
    files
}

#[test]
fn git_works_on_a_tree_from_the_store() {
    tools::system("git", "git");
    let places = Places::with(&a_tree());
    let view = places.view();
    let script = "export HOME=$PWD/.. GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
        export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
        git init -q -b main .
        git config core.fileMode false
        git add -A && git commit -q -m first
        test -z \"$(git status --porcelain)\"
        git rev-parse 'HEAD^{tree}'
        git checkout -q -b other
        echo more >> doc/50.txt
        git mv doc/51.txt doc/moved.txt
        git rm -q -r src/d3
        git commit -q -a -m second
        git checkout -q main
        test -e src/d3 -a ! -e doc/moved.txt
        git merge -q --no-edit other
        git checkout -q HEAD~1 -- src/d3
        git stash -q && git stash pop -q
        git commit -q -a -m third
        git gc -q --aggressive --prune=now
        git fsck --full --strict
        git clone -q . ../$CLONE
        git -C ../$CLONE rev-parse HEAD
        git worktree add -q ../$CLONE.tree main~1 && git -C ../$CLONE.tree status --porcelain
        git worktree remove ../$CLONE.tree
        rm -rf .git";
    // Beside the view and beside the local copy, and within the view.
    let local = places.copy();
    let on_disk = tools::shell(&local, &[("CLONE", "clone-local".as_ref())], script);
    let in_view = tools::shell(&view.root(), &[("CLONE", "clone-view".as_ref())], script);
    assert_eq!(on_disk, in_view);
    assert!(on_disk.lines().count() >= 2, "{on_disk}");
    assert_eq!(differences(&tree(&local), &tree(&view.root())), [""; 0]);
    let inside = tools::shell(
        &view.root(),
        &[],
        "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
         git clone -q \"$PWD/../clone-view\" within 2>/dev/null && git -C within fsck --full && git -C within status --porcelain",
    );
    assert_eq!(inside, "");
    places.end();
}

/// Several processes write to one database; each transaction takes from one account and gives to another.
const SQLITE: &str = "import os, sqlite3, subprocess, sys
path, mode = sys.argv[1], sys.argv[2]
def connect():
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute('pragma synchronous=normal')
    return connection
if len(sys.argv) == 3:
    connection = connect()
    got = connection.execute(f'pragma journal_mode={mode}').fetchone()[0]
    assert got == mode, got
    connection.execute('create table if not exists account (id integer primary key, amount integer, note text)')
    connection.execute('create table if not exists log (id integer primary key, who integer, n integer, unique(who, n))')
    connection.executemany('insert or ignore into account values (?, 1000, ?)', [(i, 'x' * 300) for i in range(200)])
    before = connection.execute('select sum(amount), count(*) from account').fetchone()
    writers = [subprocess.Popen([sys.executable, __file__, path, mode, str(who)]) for who in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert connection.execute('select sum(amount), count(*) from account').fetchone() == before, before
    assert connection.execute('select count(*) from log').fetchone()[0] == 4 * 150
    connection.execute('delete from log where n % 3 = 0')
    connection.execute('vacuum')
    assert connection.execute('pragma integrity_check').fetchall() == [('ok',)]
    connection.close()
    print(mode, before, sorted(name for name in os.listdir(os.path.dirname(path)) if name.startswith(os.path.basename(path) + '-')))
else:
    who, connection = int(sys.argv[3]), connect()
    for n in range(150):
        connection.execute('begin immediate')
        source, target = (who * 37 + n) % 200, (who * 91 + n * 7) % 200
        connection.execute('update account set amount = amount - 5 where id = ?', (source,))
        connection.execute('update account set amount = amount + 5 where id = ?', (target,))
        connection.execute('insert into log (who, n) values (?, ?)', (who, n))
        if n % 10 == 9:
            connection.execute('rollback')
            connection.execute('begin immediate')
            connection.execute('insert into log (who, n) values (?, ?)', (who, n))
        connection.execute('commit')
";

#[test]
fn sqlite_keeps_its_promises_in_the_view() {
    let view = View::of(Bucket::new());
    let script = view.bucket.sandbox.path("writers.py");
    fs::write(&script, SQLITE).unwrap();
    // One that comes from the store and is copied up by its first transaction.
    let made = view.bucket.sandbox.path("made.db");
    let make = "import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute('create table account (id integer primary key, amount integer, note text)')
connection.executemany('insert into account values (?, 7, ?)', [(i, 'stored' * 100) for i in range(2000)])
connection.commit()";
    tools::done(tools::limited(60, "python3").args(["-c", make]).arg(&made));
    view.bucket.put("stored/wal.db", fs::read(&made).unwrap().into());
    view.bucket.put("stored/delete.db", fs::read(&made).unwrap().into());
    view.mount();
    for (name, mode, accounts) in [
        ("new-wal.db", "wal", "(200000, 200)"),
        ("new-delete.db", "delete", "(200000, 200)"),
        ("new-truncate.db", "truncate", "(200000, 200)"),
        ("stored/wal.db", "wal", "(14000, 2000)"),
        ("stored/delete.db", "delete", "(14000, 2000)"),
    ] {
        let output = tools::done(tools::limited(120, "python3").arg(&script).arg(view.path(name)).arg(mode));
        let said = tools::said(&output);
        assert!(said.starts_with(&format!("{mode} {accounts}")), "{name}: {said}");
    }
    view.unmount();
}

#[test]
fn tar_and_rsync_copy_a_view_and_into_it() {
    tools::system("rsync", "rsync");
    let files = a_tree();
    let places = Places::with(&files);
    let (_, made) = places.same(
        "tar",
        &[],
        "tar --sort=name --format=gnu -cf all.tar -C \"$IN\" src doc large --owner=0 --group=0 --mode=u=rwX,go= --mtime=@0
         mkdir out && tar -xf all.tar -C out && tar -df all.tar -C out
         tar --sort=name --format=gnu -cf again.tar -C out src doc large
         rsync -a --checksum out/ copy/
         test -z \"$(rsync -a --checksum --itemize-changes --dry-run out/ copy/)\"
         rm -rf copy/src/d5 && echo changed > copy/doc/7.txt && touch copy/new
         rsync -a --delete --checksum out/ copy/
         test -z \"$(rsync -a --checksum --delete --itemize-changes --dry-run out/ copy/)\"
         cmp all.tar again.tar",
    );
    assert_eq!(made.len(), 2 * files.len() + 2);
    // Both ways, with times: what came from the view and goes back is the same to rsync, as is what was changed meanwhile.
    let beside = places.copy();
    let view = places.view();
    let root = view.root();
    let variables = [("VIEW", root.as_os_str())];
    tools::shell(
        &beside,
        &variables,
        "rsync -a --checksum --exclude 'tar.out' \"$VIEW/\" there/
         test -z \"$(rsync -ac --exclude tar.out --itemize-changes --dry-run \"$VIEW/\" there/)\"
         chmod -R u+w there
         echo changed >> there/doc/5.txt && rm there/src/d1/e1/*1.dat && mkdir -p there/new/deep && echo x > there/new/deep/file
         mv there/src/d2 there/src/moved && ln -s ../large there/new/link && ln there/large there/new/hard
         rsync -aH --delete --checksum --exclude tar.out there/ \"$VIEW/\"
         test -z \"$(rsync -aHc --delete --exclude tar.out --itemize-changes --dry-run there/ \"$VIEW/\")\"
         test \"$(stat -c %h \"$VIEW/large\")\" = 2
         test \"$(readlink \"$VIEW/new/link\")\" = ../large
         rm -rf \"$VIEW/tar.out\"",
    );
    assert_eq!(differences(&tree(&beside.join("there")), &tree(&root)), [""; 0]);
    places.end();
}

/// A program of several units that share headers.
fn a_program() -> Files {
    let mut files = Files::new();
    let mut declarations = String::new();
    let mut calls = String::new();
    for unit in 0..12 {
        let header = if unit % 2 == 0 { "even.h" } else { "odd.h" };
        let text = format!("#include \"{header}\"\nint unit{unit}(void) {{ return {unit} * FACTOR; }}\n");
        files.insert(format!("project/unit{unit}.c"), text.into());
        writeln!(declarations, "int unit{unit}(void);").unwrap();
        write!(calls, " + unit{unit}()").unwrap();
    }
    let main =
        format!("#include <stdio.h>\n{declarations}int main(void) {{ printf(\"%d\\n\", 0{calls}); return 0; }}\n");
    files.insert("project/main.c".to_owned(), main.into());
    files.insert("project/even.h".to_owned(), "#define FACTOR 2\n".into());
    files.insert("project/odd.h".to_owned(), "#define FACTOR 3\n".into());
    let makefile = "OBJECTS = $(patsubst %.c,%.o,$(sort $(wildcard *.c)))
program: $(OBJECTS)
\t$(CC) -o $@ $^
%.o: %.c
\t@echo compiling $<
\t@$(CC) -MMD -c -o $@ $<
-include $(wildcard *.d)
";
    files.insert("project/Makefile".to_owned(), makefile.into());
    files
}

#[test]
fn a_c_build_in_the_view_rebuilds_what_has_changed_and_nothing_else() {
    tools::system("gcc", "gcc");
    tools::system("make", "make");
    let places = Places::with(&a_program());
    let view = places.view();
    let run = |script: &str| tools::shell(&view.path("project"), &[], script);
    let compiled = |said: &str| said.lines().filter(|line| line.starts_with("compiling ")).count();
    let evens: i32 = (0..12).filter(|unit| unit % 2 == 0).sum();
    let odds: i32 = (0..12).filter(|unit| unit % 2 == 1).sum();

    assert_eq!(compiled(&run("make -j2")), 13);
    assert_eq!(run("./program").trim(), (evens * 2 + odds * 3).to_string());
    assert!(run("make").contains("up to date"));
    // A header of the store, changed here: it is copied up, and only what includes it is older.
    assert_eq!(compiled(&run("sleep 0.05; sed -i 's/2/5/' even.h && make")), 6);
    assert_eq!(run("./program").trim(), (evens * 5 + odds * 3).to_string());
    assert_eq!(compiled(&run("sleep 0.05; touch unit7.c && make")), 1);
    // Only its metadata changes, and it stays as old as it was.
    assert!(run("chmod 644 unit3.c && make").contains("up to date"));
    assert_eq!(compiled(&run("rm unit4.o && make")), 1);
    assert!(run("cp -a program saved && mv program moved && mv moved program && make").contains("up to date"));
    assert_eq!(compiled(&run("cp -a . ../copy && cd ../copy && sleep 0.05 && touch odd.h && make -j2")), 6);
    assert_eq!(run("../copy/program").trim(), (evens * 5 + odds * 3).to_string());
    places.end();
}
