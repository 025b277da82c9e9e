//! How a key becomes a name, and when a name is certain. Pure.
//!
//! Two things make this more than splitting strings.
//!
//! *Odd keys.* A key may have segments that no file system can show: empty ones (`a//b`, `/a`), `.` and `..`, names with a NUL
//! or of more than 255 bytes. They are counted and left out. Nothing can loop or escape, because a name that is shown
//! is always exactly one segment, and a directory's prefix always its parent's plus one name and a slash.
//!
//! *`x` beside `x/y`.* A bucket can hold both; a directory cannot. The directory keeps the name, because it leads
//! to more, and the object is counted as hidden. In key order other keys stand between the two (`x`, `x-1`, `x.log`, `x/y`),
//! possibly on another page, and a name that was once shown must not change its nature. So an object is held back until the
//! listing has passed the place where its directory would have come. At most one object per level of a chain of
//! prefixes (`x`, `x-`, `x-1`) is held at a time.
//!
//! A directory's names come from listings of its own and from listings of whole subtrees, in turns. What joins them is the key
//! up to which everything has been seen: a page that begins at or before it carries on from there, whoever asked for it.

use oss::ObjectMeta;

/// The longest name Linux shows, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Whether a segment of a key can be a file's name if it is not too long; [`Charset::shows`](crate::charset::Charset::shows) says that.
pub fn is_name(segment: &str) -> bool {
    !segment.is_empty() && segment != "." && segment != ".." && !segment.contains(['/', '\0'])
}

/// How far a directory has been listed.
#[derive(Debug, Default)]
pub enum Listing {
    /// Nothing of it has been seen.
    #[default]
    Fresh,
    /// Everything up to a key.
    Partial(Box<Partial>),
    /// Everything.
    Complete,
}

/// A directory's listing in progress.
#[derive(Debug, Default)]
pub struct Partial {
    /// All keys up to this one have been seen. A common prefix `x/` stands for all keys below it. Empty when none has.
    pub reached: String,
    /// All keys up to this one were taken for seen, until the store turned out not to list in order. What was not among them may have
    /// been shown as missing.
    missed: Option<Box<str>>,
    held: Vec<ObjectMeta>,
}

impl Listing {
    /// Whether nothing has been seen.
    pub fn is_fresh(&self) -> bool {
        matches!(self, Self::Fresh)
    }

    /// Whether everything has been seen.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }

    /// The key up to which everything has been seen, where something has and there is more.
    pub fn reached(&self) -> Option<&str> {
        match self {
            Self::Partial(partial) if !partial.reached.is_empty() => Some(&partial.reached),
            _ => None,
        }
    }

    /// Up to where names that have not been seen are missing for good: as far as everything `is_ordered`, or was taken to be.
    pub fn missing_up_to(&self, is_ordered: bool) -> Option<&str> {
        match self {
            Self::Partial(partial) if !is_ordered => partial.missed.as_deref(),
            _ => self.reached(),
        }
    }

    /// The store does not list in order after all.
    pub fn lose_order(&mut self) {
        if let Self::Partial(partial) = self
            && !partial.reached.is_empty()
        {
            partial.missed.get_or_insert_with(|| partial.reached.as_str().into());
        }
    }

    /// Whether a page that holds everything behind `from` (from the very beginning when absent) leaves no gap in the listing of the
    /// directory with this prefix.
    pub fn continues(&self, prefix: &str, from: Option<&str>) -> bool {
        let Some(from) = from else { return !self.is_complete() };
        match self {
            Self::Complete => false,
            Self::Fresh => from <= prefix,
            Self::Partial(partial) => {
                let reached = partial.reached.as_str();
                // The directory's own marker is a key and stands for nothing below it.
                let is_below = reached.ends_with('/') && reached != prefix && from.starts_with(reached);
                from <= prefix || from <= reached || is_below
            }
        }
    }

    /// What has been gathered so far, begun if there was nothing; none when everything has been seen.
    pub fn partial(&mut self) -> Option<&mut Partial> {
        if matches!(self, Self::Fresh) {
            *self = Self::Partial(Box::default());
        }
        match self {
            Self::Partial(partial) => Some(partial),
            _ => None,
        }
    }
}

impl Partial {
    /// Holds an object back until it is certain that no directory has its name.
    pub fn hold(&mut self, meta: ObjectMeta) {
        self.held.push(meta);
    }

    /// Takes out all objects that are held back.
    pub fn take_held(&mut self) -> Vec<ObjectMeta> {
        std::mem::take(&mut self.held)
    }

    /// Takes out one object that is certain now that the listing has come as far as `entry`.
    pub fn release(&mut self, entry: &str) -> Option<ObjectMeta> {
        let at = self.held.iter().position(|meta| passes(entry, meta.key.as_str()))?;
        Some(self.held.remove(at))
    }

    /// Takes out the object whose name the directory at `prefix` has.
    pub fn shadowed_by(&mut self, prefix: &str) -> Option<ObjectMeta> {
        let key = prefix.strip_suffix('/')?;
        let at = self.held.iter().position(|meta| meta.key.as_str() == key)?;
        Some(self.held.remove(at))
    }
}

/// What a sweep that comes to the keys from `from` on begins behind. A prefix counts as not seen itself: its own key, a marker, is
/// wanted. There is no string just before `x/`; this leaves some keys in between, which do no harm.
pub fn behind(from: &str) -> String {
    from.strip_suffix('/').map_or_else(|| from.to_owned(), |name| format!("{name}.~"))
}

/// Whether a listing that has come as far as `reached` has passed the place of `key + "/"`.
pub fn passes(reached: &str, key: &str) -> bool {
    match reached.strip_prefix(key) {
        // Below `key`: past its directory when what follows sorts after a slash.
        Some(rest) => rest.as_bytes().first().is_some_and(|&next| next > b'/'),
        None => reached > key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_certain_when_its_directory_cannot_come_any_more() {
        for (reached, certain) in
            [("x", false), ("x-", false), ("x.log", false), ("x/", false), ("x/a", false), ("x0", true), ("y", true)]
        {
            assert_eq!(passes(reached, "x"), certain, "{reached}");
        }
        assert!(!passes("w", "x"));
    }

    #[test]
    fn a_sweep_begins_before_the_marker() {
        assert_eq!(behind("d/x/"), "d/x.~");
        assert!(behind("d/x/").as_str() < "d/x/" && behind("d/x/").as_str() > "d/x.log");
        assert_eq!(behind("d/x"), "d/x");
    }

    #[test]
    fn pages_join_where_they_leave_no_gap() {
        let fresh = Listing::Fresh;
        assert!(fresh.continues("d/", None) && fresh.continues("d/", Some("c")) && fresh.continues("d/", Some("d/")));
        assert!(!fresh.continues("d/", Some("d/a")));
        let mut partial = Listing::Fresh;
        partial.partial().unwrap().reached = "d/m/".to_owned();
        for (from, joins) in [("c", true), ("d/a", true), ("d/m/", true), ("d/m/zz", true), ("d/m0", false)] {
            assert_eq!(partial.continues("d/", Some(from)), joins, "{from}");
        }
        partial.partial().unwrap().reached = "d/".to_owned();
        assert!(partial.continues("d/", Some("d/")) && !partial.continues("d/", Some("d/b/")));
        assert!(!Listing::Complete.continues("d/", None));
    }
}
