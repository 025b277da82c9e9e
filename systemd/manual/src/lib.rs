//! Manual pages and shell completions of a program, made from its command line.
//!
//! Each program writes its own (`PROGRAM manual DIRECTORY`, hidden from `--help`), so what its package says is what that very program
//! does. The directory receives what a package puts below `/usr/share`:
//!
//! ```text
//! man/man1/PROGRAM.1, man/man1/PROGRAM-COMMAND.1, ...
//! bash-completion/completions/PROGRAM
//! zsh/site-functions/_PROGRAM
//! fish/vendor_completions.d/PROGRAM.fish
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::{Generator, Shell, generate};
use clap_mangen::Man;

/// Writes the pages and completions of a program below `directory`, which is made.
///
/// # Errors
/// When files cannot be written there.
pub fn write(command: Command, directory: &Path) -> io::Result<()> {
    let pages = directory.join("man/man1");
    fs::create_dir_all(&pages)?;
    let mut command = command.disable_help_subcommand(true);
    // Gives subcommands the names that their pages have.
    command.build();
    write_pages(&command, &pages)?;
    let name = command.get_name().to_owned();
    for (shell, place, file) in [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (Shell::Zsh, "zsh/site-functions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ] {
        let place = directory.join(place);
        fs::create_dir_all(&place)?;
        fs::write(place.join(file), completion(shell, &command, &name))?;
    }
    Ok(())
}

fn completion(shell: impl Generator, command: &Command, name: &str) -> Vec<u8> {
    let mut text = Vec::new();
    generate(shell, &mut command.clone(), name, &mut text);
    text
}

fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, directory)?;
    }
    let man = Man::new(command.clone()).manual("User Commands");
    let mut page = fs::File::create(directory.join(man.get_filename()))?;
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|subcommand| !subcommand.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        page.write_all(verbatim("NOTES", &text.to_string()).as_bytes())?;
    }
    Ok(())
}

/// A section whose lines stay as they are: examples and tables are in it.
fn verbatim(title: &str, text: &str) -> String {
    let mut section = format!(".SH {title}\n.nf\n");
    for line in text.trim_end().lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins so would be an instruction.
        if line.starts_with(['.', '\'']) {
            section.push_str("\\&");
        }
        section.push_str(&line);
        section.push('\n');
    }
    section.push_str(".fi\n");
    section
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn every_visible_command_has_a_page_and_every_shell_its_completions() {
        let command = Command::new("tool")
            .version("1.2.3")
            .about("Does things")
            .after_help("Example:\n  tool run --fast\n.not an instruction\n'nor this\\n")
            .subcommand(Command::new("run").about("Run it").arg(Arg::new("fast").long("fast").help("Be quick")))
            .subcommand(Command::new("inner").hide(true));
        let directory = tempfile::tempdir().unwrap();
        write(command, directory.path()).unwrap();
        let read = |path: &str| fs::read_to_string(directory.path().join(path)).unwrap();
        let page = read("man/man1/tool.1");
        assert!(page.contains("tool 1.2.3") && page.contains("Does things"), "{page}");
        assert!(page.contains("\n  tool run \\-\\-fast\n\\&.not an instruction\n\\&'nor this\\en\n"), "{page}");
        assert!(read("man/man1/tool-run.1").contains("Be quick"));
        assert!(!directory.path().join("man/man1/tool-inner.1").exists());
        assert!(read("bash-completion/completions/tool").contains("--fast"));
        assert!(read("zsh/site-functions/_tool").contains("Be quick"));
        assert!(read("fish/vendor_completions.d/tool.fish").contains("fast"));
    }
}
