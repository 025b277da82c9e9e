//! Splitting a command line into words.
//!
//! A task's command line is a program and its arguments; no shell ever sees it. It is split by the quoting rules of a
//! POSIX shell and by nothing else: no variables, no wildcards, no redirection, no comments. Whoever wants a shell calls one
//! (`/bin/bash -c '...'`), as the BatchCompute guide asks. Because people forget that, [`shell_syntax`] finds what a
//! shell would have understood and we will not.

use std::fmt;

/// Why a command line cannot be split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// A quote is opened and never closed.
    #[error("the {quote} that opens at character {position} is never closed")]
    UnterminatedQuote {
        /// Which kind of quote.
        quote: Quote,
        /// Which character it is, counted from 1.
        position: usize,
    },
    /// The line ends in a backslash, which has nothing to quote.
    #[error("the backslash at character {position} is the last, so there is nothing for it to quote")]
    TrailingBackslash {
        /// Which character it is, counted from 1.
        position: usize,
    },
}

/// A kind of quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quote {
    /// `'`: everything up to the next one is literal.
    Single,
    /// `"`: literal but for backslashes before `$`, `` ` ``, `"`, `\` and a line's end.
    Double,
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single quote",
            Self::Double => "double quote",
        })
    }
}

/// A word of a command line, and the first piece of unquoted shell syntax in it.
struct Word {
    text: String,
    syntax: Option<String>,
}

/// Splits a line into words.
///
/// Words are separated by spaces, tabs and line ends. `'...'` is literal; in `"..."` a backslash quotes `$`, `` ` ``,
/// `"` and `\` and is literal otherwise; outside quotes it quotes any character; before a line's end it joins the lines.
/// `#` is an ordinary character: the service never had comments, and frame patterns hold it.
///
/// # Errors
/// A quote without its end, a backslash without anything behind it.
///
/// ```
/// use batch_agent::job::command_line::split;
/// assert_eq!(split(r#"python main.py arg1 'arg 2' "a\"b" """#).unwrap(), ["python", "main.py", "arg1", "arg 2", "a\"b", ""]);
/// assert_eq!(split("echo 'oops").unwrap_err().to_string(), "the single quote that opens at character 6 is never closed");
/// ```
pub fn split(line: &str) -> Result<Vec<String>, SplitError> {
    Ok(words(line)?.into_iter().map(|word| word.text).collect())
}

/// The first piece of syntax in the line that only a shell would understand: an unquoted `|`, `>`, `&&`, `;`, `*`, a `$NAME`
/// or a backtick. Variables and backticks count inside double quotes, too, because a shell would act on them there.
///
/// Nothing for a line that cannot be split.
pub fn shell_syntax(line: &str) -> Option<String> {
    words(line).ok()?.into_iter().find_map(|word| word.syntax)
}

fn words(line: &str) -> Result<Vec<Word>, SplitError> {
    let chars: Vec<char> = line.chars().collect();
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote: Option<(Quote, usize)> = None;
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        let here = at;
        at += 1;
        match (quote.map(|(quote, _)| quote), c) {
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, '\'') => {
                quote = Some((Quote::Single, here + 1));
                word.get_or_insert_with(Word::empty);
            }
            (None, '"') => {
                quote = Some((Quote::Double, here + 1));
                word.get_or_insert_with(Word::empty);
            }
            (Some(Quote::Single), '\'') | (Some(Quote::Double), '"') => quote = None,
            (None, '\\') => {
                at += 1;
                match next {
                    None => return Err(SplitError::TrailingBackslash { position: here + 1 }),
                    Some('\n') => {}
                    Some(c) => word.get_or_insert_with(Word::empty).text.push(c),
                }
            }
            (Some(Quote::Double), '\\') => match next {
                Some('\n') => at += 1,
                Some(c @ ('$' | '`' | '"' | '\\')) => {
                    at += 1;
                    word.get_or_insert_with(Word::empty).text.push(c);
                }
                _ => word.get_or_insert_with(Word::empty).text.push('\\'),
            },
            (quoting, c) => {
                let starts_word = word.is_none();
                let word = word.get_or_insert_with(Word::empty);
                word.text.push(c);
                if word.syntax.is_none() {
                    word.syntax = match quoting {
                        Some(Quote::Single) => None,
                        Some(Quote::Double) => expansion(c, &chars[at..]),
                        None => expansion(c, &chars[at..]).or_else(|| operator(c, starts_word, next)),
                    };
                }
            }
        }
    }
    if let Some((quote, position)) = quote {
        return Err(SplitError::UnterminatedQuote { quote, position });
    }
    words.extend(word);
    Ok(words)
}

impl Word {
    fn empty() -> Self {
        Self { text: String::new(), syntax: None }
    }
}

/// What a shell would replace here, inside double quotes or outside quotes.
fn expansion(c: char, rest: &[char]) -> Option<String> {
    match (c, rest.first()) {
        ('`', _) => Some("`".to_owned()),
        ('$', Some('(')) => Some("$(".to_owned()),
        ('$', Some('{')) => {
            let name: String = rest.iter().take(40).take_while(|c| **c != '}').collect();
            Some(format!("${name}}}"))
        }
        ('$', Some(first)) if first.is_ascii_alphanumeric() || *first == '_' => {
            let name: String = rest.iter().take(40).take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
            Some(format!("${name}"))
        }
        _ => None,
    }
}

/// What a shell would take for an operator or a pattern, outside quotes.
fn operator(c: char, starts_word: bool, next: Option<char>) -> Option<String> {
    match c {
        '|' | '&' | '>' | '<' if next == Some(c) => Some(format!("{c}{c}")),
        '|' | '&' | ';' | '<' | '>' | '*' | '?' => Some(c.to_string()),
        '~' if starts_word && next.is_none_or(|next| matches!(next, '/' | ' ' | '\t')) => Some("~".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_split_as_a_shell_would() {
        for (line, expected) in [
            ("", &[] as &[&str]),
            ("  \t ", &[]),
            ("echo hello", &["echo", "hello"]),
            ("python main.py arg1 'arg 2'", &["python", "main.py", "arg1", "arg 2"]),
            ("/bin/bash -c 'cd /home/xx/ && python a.py'", &["/bin/bash", "-c", "cd /home/xx/ && python a.py"]),
            ("a\\ b c", &["a b", "c"]),
            ("a'b'\"c\"d", &["abcd"]),
            ("'' \"\"", &["", ""]),
            ("\"a\\\"b\\\\c\\$d\\e\"", &["a\"b\\c$d\\e"]),
            ("a \\\n b", &["a", "b"]),
            ("a\\\nb", &["ab"]),
            ("render frame#3 #4", &["render", "frame#3", "#4"]),
            ("分析 '数 据'", &["分析", "数 据"]),
        ] {
            assert_eq!(split(line).unwrap(), expected, "{line:?}");
        }
    }

    #[test]
    fn what_cannot_be_split_is_refused_with_its_position() {
        for (line, message) in [
            ("echo 'oops", "the single quote that opens at character 6 is never closed"),
            ("数 \"x 'y'", "the double quote that opens at character 3 is never closed"),
            ("a\\", "the backslash at character 2 is the last, so there is nothing for it to quote"),
        ] {
            assert_eq!(split(line).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn shell_syntax_is_found_where_a_shell_would_act_on_it() {
        for (line, syntax) in [
            ("ls | wc", Some("|")),
            ("make && echo", Some("&&")),
            ("a || b", Some("||")),
            ("a > b", Some(">")),
            ("a 2>&1", Some(">")),
            ("a;b", Some(";")),
            ("cat *.txt", Some("*")),
            ("echo $HOME", Some("$HOME")),
            ("echo \"$HOME\"", Some("$HOME")),
            ("echo ${HOME}/x", Some("${HOME}")),
            ("echo $(date)", Some("$(")),
            ("echo `date`", Some("`")),
            ("ls ~", Some("~")),
            ("ls ~/x", Some("~")),
            ("echo '$HOME | *' \"a;b>c\" \\$HOME \\*", None),
            ("bash -c 'a && b | c > d'", None),
            ("cost 5$ a~b $ 'unclosed", None),
            ("cost 5$ a~b $", None),
            ("python -c pass -x=1 a[1] {b}", None),
        ] {
            assert_eq!(shell_syntax(line).as_deref(), syntax, "{line:?}");
        }
    }

    proptest! {
        /// What is quoted by somebody else's quoting rules comes back word for word.
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec(any::<String>(), 0..6)) {
            prop_assert_eq!(split(&shell_words::join(&words)).unwrap(), words);
        }

        /// Lines without `#`, which we do not treat as a comment, mean what another implementation says they mean.
        #[test]
        fn agrees_with_another_implementation(line in "[a-c \t\n'\"\\\\$|]{0,24}") {
            match split(&line) {
                Ok(words) => prop_assert_eq!(words, shell_words::split(&line).unwrap()),
                Err(SplitError::UnterminatedQuote { .. }) => prop_assert!(shell_words::split(&line).is_err()),
                Err(SplitError::TrailingBackslash { position }) => prop_assert_eq!(position, line.chars().count()),
            }
        }

        #[test]
        fn never_panics(line in any::<String>()) {
            let _ = split(&line);
            let _ = shell_syntax(&line);
        }
    }
}
