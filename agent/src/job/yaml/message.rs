//! The YAML parser's errors, in our words.

use crate::job::finding::{Place, Problems, nearest, quoted};

/// What the parser has to say, with the place and without any of the document's values but the offending one.
pub(super) fn problem(error: &serde_saphyr::Error, path: &str) -> Problems {
    use serde_saphyr::Error;

    let error = error.without_snippet();
    // The parser of paths writes `.` for the root and `?` for what it did not get to see.
    let place = Place::written(path.trim_end_matches(['.', '?']));
    let at = error.location().map(|location| format!(" (line {}, column {})", location.line(), location.column()));
    let at = at.unwrap_or_default();
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let remedy = match nearest(field, expected.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here are {}", expected.join(", ")),
            };
            Problems::single(&place, format!("the key {} is not known{at}", quoted(field)), &remedy)
        }
        Error::SerdeMissingField { field, .. } => {
            Problems::single(&place, format!("the key {field} is missing{at}"), "add it")
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => Problems::single(
            &place,
            format!("{} is not known{at}", quoted(variant)),
            &format!("write one of {}", expected.join(", ")),
        ),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            Problems::single(&place, format!("expected {expected}, got {unexpected}{at}"), "correct the value")
        }
        Error::Unexpected { expected, .. } => {
            let expected = match *expected {
                "mapping start" => "a map",
                "sequence start" => "a list",
                "string scalar" => "text",
                other => other,
            };
            Problems::single(&place, format!("expected {expected}{at}"), "correct the value")
        }
        Error::InvalidScalar { ty, .. } => {
            let expected = match *ty {
                "bool" => "true or false",
                number if number.starts_with(['i', 'u']) => "a whole number",
                other => other,
            };
            Problems::single(&place, format!("expected {expected}{at}"), "correct the value")
        }
        Error::NullIntoString { .. } => {
            Problems::single(&place, format!("expected text, got nothing{at}"), "write \"\" for an empty text")
        }
        Error::Message { msg, .. } => Problems::single(&place, format!("{msg}{at}"), "correct the value"),
        Error::Eof { .. } => Problems::single(
            &place,
            "the job description is empty or cut off",
            "see `batch-agent schema` for the format",
        ),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(quoted).unwrap_or_default();
            Problems::single(&place, format!("the key {key} is given twice{at}"), "remove one of them")
        }
        other => Problems::single(&place, format!("the job description cannot be read: {other}"), "correct it there"),
    }
}
