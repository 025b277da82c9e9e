//! Figures: units, medians, ratios. Pure.

use serde::Serialize;

/// What a case measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// 2^30 bytes per second; more is better.
    #[serde(rename = "GiB/s")]
    GibPerSecond,
    /// Operations per second; more is better.
    #[serde(rename = "op/s")]
    PerSecond,
    /// Seconds; less is better.
    #[serde(rename = "s")]
    Seconds,
    /// 2^20 bytes of memory; less is better.
    #[serde(rename = "MiB")]
    Mib,
}

impl Unit {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::GibPerSecond => "GiB/s",
            Self::PerSecond => "op/s",
            Self::Seconds => "s",
            Self::Mib => "MiB",
        }
    }

    /// How much of `limit` a figure reaches: 1 is all of it, more is better whatever the unit.
    pub fn share(self, value: f64, limit: f64) -> f64 {
        match self {
            Self::GibPerSecond | Self::PerSecond => value / limit,
            Self::Seconds | Self::Mib => limit / value,
        }
    }

    /// The worse of two.
    pub fn worse(self, a: f64, b: f64) -> f64 {
        if self.better(a, b) == a { b } else { a }
    }

    /// The better of two.
    pub fn better(self, a: f64, b: f64) -> f64 {
        match self {
            Self::GibPerSecond | Self::PerSecond => a.max(b),
            Self::Seconds | Self::Mib => a.min(b),
        }
    }

    /// With as many digits as mean something.
    pub fn show(self, value: f64) -> String {
        let digits = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else if value >= 0.1 {
            2
        } else if value >= 0.01 {
            3
        } else {
            4
        };
        format!("{value:.digits$}")
    }
}

/// Repeated measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Spread {
    /// Of at least one number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max, count: values.len() })
    }
}

/// `bytes` as a rate over `seconds`.
pub fn gib_per_second(bytes: u64, seconds: f64) -> f64 {
    float(bytes) / float(1 << 30) / seconds
}

/// A count as a number with a fraction. Exact below 2^53, beyond which nothing here comes.
#[expect(clippy::cast_precision_loss, reason = "counts and sizes of benchmarks are far below 2^53")]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn half_are_above_and_half_below(values in prop::collection::vec(0.0_f64..1e9, 1..20)) {
            let spread = Spread::of(values.clone()).unwrap();
            prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
            let below = values.iter().filter(|value| **value < spread.median).count();
            let above = values.iter().filter(|value| **value > spread.median).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
        }
    }

    #[test]
    fn shares_grow_with_what_is_better() {
        assert!(Spread::of([]).is_none());
        assert!((Unit::GibPerSecond.share(1.0, 2.0) - 0.5).abs() < 1e-9);
        assert!((Unit::Seconds.share(4.0, 2.0) - 0.5).abs() < 1e-9);
        assert!((Unit::Seconds.better(4.0, 2.0) - 2.0).abs() < 1e-9);
        assert_eq!(
            [0.0123, 0.5, 12.34, 1234.5].map(|value| Unit::Seconds.show(value)),
            ["0.012", "0.50", "12.3", "1234"]
        );
        assert!((gib_per_second(3 << 29, 3.0) - 0.5).abs() < 1e-9);
    }
}
