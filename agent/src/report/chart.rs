//! Curves over time, as SVG that stands in a page. Pure.
//!
//! The drawing is the `plotters` library's. It writes colours as attributes, which a style sheet overrides: the page's own maps each of
//! [`Ink`] to a colour for light, for dark and for paper, so that one drawing serves all.

use std::ops::Range;

use plotters::prelude::*;

/// Width and height in pixels; the page scales it.
const SIZE: (u32, u32) = (560, 190);

/// What a line is drawn in. The page's style sheet knows the colours by their attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// The first quantity.
    First,
    /// The second.
    Second,
    /// The third.
    Third,
    /// What there is at most.
    Limit,
}

const GRID: RGBColor = RGBColor(0xD0, 0xD7, 0xDE);
const TEXT: RGBColor = RGBColor(0x57, 0x60, 0x6A);

impl Ink {
    const fn colour(self) -> RGBColor {
        match self {
            Self::First => RGBColor(0x0B, 0x5C, 0xAD),
            Self::Second => RGBColor(0xE0, 0x82, 0x14),
            Self::Third => RGBColor(0x2D, 0x8A, 0x4E),
            Self::Limit => RGBColor(0x8C, 0x95, 0x9F),
        }
    }
}

/// A quantity: pairs of seconds since the beginning and value.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub ink: Ink,
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Whether what is below it is filled.
    pub filled: bool,
}

/// What values are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Processors.
    Cores,
    /// Bytes, with binary prefixes.
    Bytes,
    /// Bytes per second.
    Rate,
    /// Shares of one, as percent.
    Share,
}

impl Unit {
    /// A value for people.
    pub(super) fn shown(self, value: f64) -> String {
        match self {
            Self::Cores => format!("{}", Short(value)),
            Self::Bytes => bytes(value),
            Self::Rate => format!("{}/s", bytes(value)),
            Self::Share => format!("{} %", Short(value * 100.0)),
        }
    }

    /// What one of the units is in which a scale up to `highest` is written.
    fn base(self, highest: f64) -> f64 {
        match self {
            Self::Cores => 1.0,
            Self::Share => 0.01,
            Self::Bytes | Self::Rate => 1024f64.powf(highest.max(1.0).log(1024.0).floor()),
        }
    }

    /// A top of the scale that ends in a round number.
    fn top(self, highest: f64) -> f64 {
        let least = match self {
            Self::Cores => 0.1,
            Self::Bytes | Self::Rate => 1024.0,
            Self::Share => 0.05,
        };
        let highest = highest.max(least) * 1.05;
        let base = self.base(highest);
        let scaled = highest / base;
        let decade = 10f64.powf(scaled.log10().floor());
        let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
        let step = steps.into_iter().find(|step| step * decade >= scaled).unwrap_or(10.0);
        step * decade * base
    }
}

/// A number with as many digits as help.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.0;
        let digits = if value == 0.0 || value.abs() >= 100.0 || (value - value.round()).abs() < 1e-9 {
            0
        } else if value.abs() >= 10.0 {
            1
        } else {
            2
        };
        let text = format!("{value:.digits$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        f.write_str(text)
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(value: f64) -> String {
    const PREFIXES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = value;
    let mut prefix = 0;
    while value >= 1023.5 && prefix + 1 < PREFIXES.len() {
        value /= 1024.0;
        prefix += 1;
    }
    format!("{} {}", Short(value), PREFIXES[prefix])
}

/// A time since the beginning for people.
pub(super) fn clock(seconds: f64) -> String {
    let whole = seconds.round().max(0.0);
    match seconds {
        _ if seconds < 10.0 && (seconds - seconds.round()).abs() > 0.01 => format!("{} s", Short(seconds)),
        _ if whole < 120.0 => format!("{whole} s"),
        _ if whole < 7200.0 => {
            let (minutes, rest) = ((whole / 60.0).floor(), whole % 60.0);
            if rest == 0.0 { format!("{minutes} min") } else { format!("{minutes}:{rest:02} min") }
        }
        _ => {
            let (hours, rest) = ((whole / 3600.0).floor(), (whole % 3600.0 / 60.0).floor());
            if rest == 0.0 { format!("{hours} h") } else { format!("{hours}:{rest:02} h") }
        }
    }
}

/// Draws the curves over `span` seconds. Empty when it cannot be drawn, which a page can do without.
pub(super) fn draw(curves: &[Curve], span: Range<f64>, unit: Unit) -> String {
    // What cannot be drawn would keep the library busy for ever.
    let is_drawable = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && y.abs() < 1e30;
    let mut curves = curves.to_vec();
    curves.iter_mut().for_each(|curve| curve.points.retain(is_drawable));
    let mut svg = String::new();
    match plot(&mut svg, &curves, span, unit) {
        Ok(()) => responsive(&svg),
        Err(error) => {
            tracing::debug!(error, "a chart cannot be drawn");
            String::new()
        }
    }
}

fn plot(svg: &mut String, curves: &[Curve], span: Range<f64>, unit: Unit) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let highest = curves.iter().flat_map(|curve| &curve.points).map(|(_, value)| *value).fold(0.0, f64::max);
    // The library puts its marks at round numbers, so it counts in the units that are shown.
    let top = unit.top(highest);
    let (down, across) = (unit.base(top), time_base(span.end - span.start));
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin_top(8)
        .margin_right(14)
        .x_label_area_size(24)
        .y_label_area_size(64)
        .build_cartesian_2d(span.start / across..span.end.max(span.start + 0.01) / across, 0.0..top / down)
        .map_err(|error| failed(&error))?;
    let label = ("sans-serif", 14).into_font().color(&TEXT);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|time| clock(*time * across))
        .y_label_formatter(&|value| unit.shown(*value * down))
        .label_style(label)
        .draw()
        .map_err(|error| failed(&error))?;
    for curve in curves {
        let points = || curve.points.iter().map(|(time, value)| (time / across, value / down));
        let colour = curve.ink.colour();
        if curve.filled {
            let area = AreaSeries::new(points(), 0.0, colour.mix(0.15));
            chart.draw_series(area).map_err(|error| failed(&error))?;
        }
        let line = LineSeries::new(points(), colour.stroke_width(2));
        chart.draw_series(line).map_err(|error| failed(&error))?;
    }
    area.present().map_err(|error| failed(&error))
}

/// What times are counted in on the axis of a chart of so many seconds: seconds, minutes or hours.
fn time_base(seconds: f64) -> f64 {
    match seconds {
        _ if seconds < 120.0 => 1.0,
        _ if seconds < 7200.0 => 60.0,
        _ => 3600.0,
    }
}

/// The drawing as it fits any width: without a size of its own.
fn responsive(svg: &str) -> String {
    let begin = svg.find("<svg").unwrap_or(0);
    let end = svg[begin..].find('>').map_or(svg.len(), |end| begin + end);
    let (width, height) = SIZE;
    format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\"{}", &svg[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, shown) in
            [(0.0, "0 B"), (1023.0, "1023 B"), (1024.0, "1 KiB"), (1.5e9, "1.4 GiB"), (123e9, "115 GiB")]
        {
            assert_eq!(bytes(value), shown);
        }
        assert_eq!(Unit::Share.shown(0.256), "25.6 %");
        assert_eq!(Unit::Cores.shown(1.25), "1.25");
        for (seconds, shown) in
            [(0.5, "0.5 s"), (7.0, "7 s"), (119.0, "119 s"), (150.0, "2:30 min"), (9000.0, "2:30 h")]
        {
            assert_eq!(clock(seconds), shown);
        }
    }

    #[test]
    fn scales_end_above_what_is_shown_and_near_it() {
        for unit in [Unit::Cores, Unit::Bytes, Unit::Rate, Unit::Share] {
            for highest in [0.0, 0.3, 1.0, 7.7, 63.0, 4096.0, 5e6, 3.3e9, 7e12] {
                let top = unit.top(highest);
                assert!(top >= highest && (top <= highest * 1.6 || highest < 1024.0), "{highest}: {top}");
            }
        }
    }

    #[test]
    fn a_drawing_needs_nothing_but_itself() {
        let curve = |ink, points| Curve { ink, name: "x", points, filled: true };
        let points: Vec<(f64, f64)> = (0..100).map(|x| (f64::from(x), f64::from(x) * 1e6)).collect();
        let curves = [curve(Ink::First, points), curve(Ink::Second, vec![(0.0, 1.0)]), curve(Ink::Limit, Vec::new())];
        let svg = draw(&curves, 0.0..99.0, Unit::Bytes);
        assert!(svg.starts_with("<svg viewBox") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("#0B5CAD") && svg.contains("MiB"), "{svg}");
        assert!(!svg.contains("href") && !svg.contains("<script") && !svg.contains("url("));
        // Nothing, and nonsense, are no reason to fail.
        draw(&[], 0.0..0.0, Unit::Cores);
        draw(&[curve(Ink::First, vec![(f64::NAN, f64::INFINITY)])], 0.0..1.0, Unit::Cores);
    }
}
