//! Charts as inline SVG: bars, points and histograms, coloured by classes of the page's style sheet so
//! that they follow its light and dark scheme. Every mark carries a `<title>`, which a browser shows and
//! a screen reader reads.

use std::fmt::Write as _;

use super::Histogram;

/// Colours that the style sheet has, `c0` and on.
pub(super) const COLOURS: usize = 9;
/// The grey one, for what matters less.
pub(super) const GREY: usize = 8;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 40.0;

/// Escapes text for element content and attribute values; control characters, which XML forbids,
/// become the replacement character.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// A bar of a [`bars`] chart.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// What it stands for.
    pub(super) label: String,
    /// Its height.
    pub(super) value: f64,
    /// Its value in words.
    pub(super) shown: String,
    /// Colour, below [`COLOURS`].
    pub(super) colour: usize,
}

/// A mark of a [`points`] chart.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// Place along the horizontal axis.
    pub(super) x: f64,
    /// Place along the vertical axis.
    pub(super) y: f64,
    /// What it stands for.
    pub(super) label: String,
    /// Colour, below [`COLOURS`].
    pub(super) colour: usize,
    /// Whether it is drawn large.
    pub(super) strong: bool,
}

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// Evenly.
    Linear,
    /// By their decimal logarithm; values that are not positive are left out.
    Log,
}

/// An interval of an axis and where it lies on the page.
struct Scale {
    lo: f64,
    hi: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Covers the values, and some room when they are all one.
    fn over(values: impl Iterator<Item = f64>, zero: bool, from: f64, to: f64) -> Self {
        let (mut lo, mut hi) = if zero {
            (0.0, 0.0)
        } else {
            (f64::MAX, f64::MIN)
        };
        for value in values.filter(|value| value.is_finite()) {
            (lo, hi) = (lo.min(value), hi.max(value));
        }
        if lo > hi {
            (lo, hi) = (0.0, 1.0);
        }
        if lo == hi {
            let room = if lo == 0.0 { 1.0 } else { lo.abs() * 0.1 };
            (lo, hi) = if zero {
                (lo, hi + room)
            } else {
                (lo - room, hi + room)
            };
        }
        Scale { lo, hi, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.lo) / (self.hi - self.lo) * (self.to - self.from)
    }

    /// Round values inside, about five.
    fn ticks(&self) -> Vec<f64> {
        let raw = (self.hi - self.lo) / 5.0;
        let unit = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|factor| factor * unit)
            .into_iter()
            .find(|step| *step >= raw)
            .unwrap_or(raw);
        let first = (self.lo / step).ceil();
        (0..12)
            .map(|index| (first + f64::from(index)) * step)
            .take_while(|tick| *tick <= self.hi + step * 1e-9)
            .collect()
    }
}

/// A figure of an axis, as short as it can be told.
fn figure(value: f64, axis: Axis) -> String {
    if axis == Axis::Log {
        return format!("1e{value:.1}").replace(".0", "");
    }
    let text = if value != 0.0 && (value.abs() >= 1e5 || value.abs() < 1e-3) {
        format!("{value:.1e}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if text == "-0" { "0".to_owned() } else { text }
}

fn open(width: f64, height: f64, title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {width} {height}\"><title>{title}</title>\n"
    )
}

fn vertical(svg: &mut String, scale: &Scale, axis: Axis, name: &str) {
    for tick in scale.ticks() {
        let y = scale.at(tick);
        _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            figure(tick, axis)
        );
    }
    let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
    _ = writeln!(
        svg,
        "<text class=\"mid\" transform=\"translate(13 {middle:.1}) rotate(-90)\">{}</text>",
        escape(name)
    );
}

fn horizontal_name(svg: &mut String, name: &str) {
    _ = writeln!(
        svg,
        "<text class=\"mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0,
        escape(name)
    );
}

/// Upright bars side by side.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let mut svg = open(WIDTH, HEIGHT, title);
    let floor = HEIGHT - BOTTOM;
    let values = bars.iter().map(|bar| bar.value);
    let scale = Scale::over(values, true, floor, TOP);
    vertical(&mut svg, &scale, Axis::Linear, unit);
    let pitch = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
    let zero = scale.at(0.0);
    for (index, bar) in bars.iter().enumerate() {
        if !bar.value.is_finite() {
            continue;
        }
        let y = scale.at(bar.value);
        _ = writeln!(
            svg,
            "<rect class=\"c{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{}: {}</title></rect>",
            bar.colour % COLOURS,
            LEFT + pitch * (index as f64 + 0.1),
            y.min(zero),
            pitch * 0.8,
            (y - zero).abs().max(0.5),
            escape(&bar.label),
            escape(&bar.shown)
        );
    }
    horizontal_name(&mut svg, "layers, first to last");
    svg.push_str("</svg>\n");
    svg
}

/// Marks over two axes.
pub(super) fn points(
    title: &str,
    (x_name, x_axis): (&str, Axis),
    (y_name, y_axis): (&str, Axis),
    points: &[Point],
) -> String {
    let place = |value: f64, axis: Axis| match axis {
        Axis::Linear => value,
        Axis::Log => value.log10(),
    };
    let placed: Vec<(f64, f64, &Point)> = points
        .iter()
        .map(|point| (place(point.x, x_axis), place(point.y, y_axis), point))
        .filter(|(x, y, _)| x.is_finite() && y.is_finite())
        .collect();
    let floor = HEIGHT - BOTTOM;
    let (left, right) = (LEFT + 10.0, WIDTH - RIGHT - 10.0);
    let across = Scale::over(placed.iter().map(|(x, _, _)| *x), false, left, right);
    let up = Scale::over(
        placed.iter().map(|(_, y, _)| *y),
        false,
        floor - 8.0,
        TOP + 8.0,
    );
    let mut svg = open(WIDTH, HEIGHT, title);
    vertical(&mut svg, &up, y_axis, y_name);
    for tick in across.ticks() {
        _ = writeln!(
            svg,
            "<text class=\"mid\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            across.at(tick),
            floor + 16.0,
            figure(tick, x_axis)
        );
    }
    horizontal_name(&mut svg, x_name);
    for (x, y, point) in placed {
        let class = if point.strong { " strong" } else { "" };
        _ = writeln!(
            svg,
            "<circle class=\"c{}{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\"><title>{}</title></circle>",
            point.colour % COLOURS,
            across.at(x),
            up.at(y),
            if point.strong { 7 } else { 4 },
            escape(&point.label)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A small histogram with its ends under it.
pub(super) fn histogram(title: &str, histogram: &Histogram, colour: usize) -> String {
    let (width, height, floor) = (180.0, 84.0, 68.0);
    let mut svg = open(width, height, title);
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let pitch = width / histogram.counts.len().max(1) as f64;
    let mut path = format!("M0 {floor}");
    for (index, &count) in histogram.counts.iter().enumerate() {
        // Roots of the counts: tails of activations would not be seen otherwise.
        let y = floor - (count as f64 / most).sqrt() * (floor - 4.0);
        let (from, to) = (pitch * index as f64, pitch * (index as f64 + 1.0));
        _ = write!(path, "L{from:.1} {y:.1}L{to:.1} {y:.1}");
    }
    _ = writeln!(
        svg,
        "<path class=\"c{}\" d=\"{path}L{width} {floor}Z\"/>\
         <text x=\"0\" y=\"81\">{}</text><text class=\"end\" x=\"{width}\" y=\"81\">{}</text></svg>",
        colour % COLOURS,
        figure(histogram.lo, Axis::Linear),
        figure(histogram.hi, Axis::Linear)
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_stand_on_zero_and_are_as_high_as_their_values() {
        let bar = |value: f64| Bar {
            label: "a<b".to_owned(),
            value,
            shown: format!("{value}"),
            colour: 0,
        };
        let svg = bars("t", "bits", &[bar(8.0), bar(4.0), bar(f64::NAN)]);
        let heights: Vec<f64> = svg
            .match_indices("height=\"")
            .map(|(at, key)| {
                svg[at + key.len()..]
                    .split('"')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect();
        assert_eq!(heights.len(), 2, "{svg}");
        assert!((heights[0] - 2.0 * heights[1]).abs() <= 0.1, "{heights:?}");
        assert!(svg.contains("<title>a&lt;b: 8</title>"));
    }

    #[test]
    fn what_has_no_place_on_an_axis_is_left_out() {
        let point = |x: f64, y: f64| Point {
            x,
            y,
            label: String::new(),
            colour: 1,
            strong: false,
        };
        let marks = [point(1.0, 10.0), point(2.0, 0.0), point(f64::INFINITY, 1.0)];
        let svg = points("t", ("x", Axis::Linear), ("y", Axis::Log), &marks);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let none = points("t", ("x", Axis::Linear), ("y", Axis::Linear), &[]);
        assert!(!none.contains("NaN"), "{none}");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (lo, hi) in [(0.0, 1.0), (-3.0, 17.0), (0.71, 0.74), (1e-9, 3e-9)] {
            let scale = Scale {
                lo,
                hi,
                from: 0.0,
                to: 1.0,
            };
            let ticks = scale.ticks();
            assert!((3..=12).contains(&ticks.len()), "{ticks:?}");
            assert!(
                ticks
                    .iter()
                    .all(|t| (0.0..=1.0 + 1e-9).contains(&scale.at(*t)))
            );
        }
        assert_eq!(figure(0.72, Axis::Linear), "0.72");
        assert_eq!(figure(-2.0, Axis::Log), "1e-2");
    }
}
