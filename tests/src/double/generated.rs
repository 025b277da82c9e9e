//! Objects that nobody has put anywhere: a directory of a million keys, or of keys without end, made up while it is listed.

use super::content::Content;

/// What a directory that is made up holds: keys of a prefix and a number of fixed width, in order.
#[derive(Debug, Clone)]
pub struct Generated {
    /// What all keys begin with.
    pub prefix: String,
    /// How many there are. Their sizes are their numbers, modulo 10.
    pub count: u64,
    /// Every page ends with the same token, and going on from there gives the same page.
    pub stuck: bool,
}

/// Digits of a key.
const WIDTH: usize = 12;

impl Generated {
    /// The key of a number.
    pub fn key(&self, number: u64) -> String {
        format!("{}{number:0width$}", self.prefix, width = WIDTH)
    }

    /// The number of a key.
    pub fn number(&self, key: &str) -> Option<u64> {
        let number = key.strip_prefix(&self.prefix)?.parse().ok().filter(|number| *number < self.count)?;
        (self.key(number) == key).then_some(number)
    }

    /// What an object holds.
    pub fn content(number: u64) -> Content {
        let len = usize::try_from(number % 10).unwrap_or(0);
        Content::from(vec![b'x'; len])
    }

    /// Whether a listing of `prefix` is about these keys only.
    pub(crate) fn covers(&self, prefix: &str) -> bool {
        prefix.starts_with(&self.prefix)
    }

    /// Up to `limit` numbers whose keys begin with `prefix` and come after `after`, and whether there are more.
    pub(crate) fn page(&self, prefix: &str, after: &str, limit: u64) -> (std::ops::Range<u64>, bool) {
        let first = |is_before: &dyn Fn(&str) -> bool| {
            let (mut low, mut high) = (0, self.count);
            while low < high {
                let middle = low + (high - low) / 2;
                if is_before(&self.key(middle)) { low = middle + 1 } else { high = middle }
            }
            low
        };
        let start = first(&|key| key <= after || key < prefix);
        let end = first(&|key| key < prefix || key.starts_with(prefix)).max(start);
        let stop = end.min(start + limit);
        (start..stop, stop < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_of_numbers_in_order() {
        let generated = Generated { prefix: "d/".to_owned(), count: 2500, stuck: false };
        assert_eq!(generated.page("d/", "", 1000), (0..1000, true));
        assert_eq!(generated.page("d/", &generated.key(1999), 1000), (2000..2500, false));
        assert_eq!(generated.page("d/", "d/", 3), (0..3, true));
        assert_eq!(generated.page("d/0000000012", "", 1000), (1200..1300, false));
        assert_eq!(generated.page("d/000000000007/", "", 1), (8..8, false));
        assert_eq!(generated.page("d/zzz", "", 1), (2500..2500, false));
        assert_eq!(
            (generated.number("d/000000000007"), generated.number("d/7"), generated.number("d/000000002500")),
            (Some(7), None, None)
        );
    }
}
