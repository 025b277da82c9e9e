//! What became of machines, for people: a table of case, state and message, printed as far as it has come whenever a case ends.

use std::sync::{Mutex, PoisonError};
use std::{fmt, thread};

/// The rows so far, of all cases of this process.
static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

#[derive(Debug, Clone)]
struct Row {
    case: &'static str,
    state: String,
    message: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, state, message } = self;
        write!(f, "| {case:<45} | {state:<23} | {message}")
    }
}

/// A case. When it ends, what became of it is printed; that it failed, too.
#[derive(Debug)]
pub struct Case {
    name: &'static str,
}

impl Case {
    /// Begins.
    pub fn begin(name: &'static str) -> Self {
        Self { name }
    }

    /// What became of the machine: the state of the node, and what it says of it.
    pub fn came_to(&self, state: &str, message: &str) {
        let row = Row { case: self.name, state: state.to_owned(), message: message.replace('\n', " ") };
        ROWS.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            self.came_to("TEST FAILED", "see its output");
        }
        println!("\n{}", table());
    }
}

fn table() -> String {
    let head = Row { case: "case", state: "state".to_owned(), message: "message".to_owned() };
    let rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<String> = [head].iter().chain(rows.iter()).map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_its_rows_and_a_broken_one_says_so() {
        let case = Case::begin("a disk is missing");
        case.came_to("disks: failed", "two lines\nof it");
        let broken = thread::spawn(|| {
            let _case = Case::begin("a machine that does not come");
            panic!("as it has to");
        });
        assert!(broken.join().is_err());
        let table = table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(lines[1].starts_with("| a disk is missing ") && lines[1].ends_with("| two lines of it"), "{table}");
        assert!(lines[2].contains("| TEST FAILED "), "{table}");
    }
}
