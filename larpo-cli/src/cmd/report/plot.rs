//! Charts as SVG, drawn by plotters. It writes colours as attributes, so charts are drawn in stand-in colours that the
//! page's style sheet replaces by its own, for a light and for a dark page. Titles and legends are HTML, which wraps.

use super::html::escape;
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::fmt::Write;
use std::ops::Range;

/// Drawn at twice the size at which it is mostly seen, because plotters knows whole pixels only.
const SIZE: (u32, u32) = (840, 480);
/// Size of labels; plotters writes it over 1.24.
const FONT: f64 = 28.0 * 1.24;
/// Stand-ins for colours of the style sheet.
const TEXT: RGBColor = RGBColor(10, 0, 0);
const GRID: RGBColor = RGBColor(11, 0, 0);
/// Colours of series that the style sheet has.
pub const COLOURS: usize = 6;

/// Both axes linear.
type Plane = Cartesian2d<RangedCoordf64, RangedCoordf64>;

fn colour(series: usize) -> RGBColor {
    RGBColor((series % COLOURS) as u8 + 1, 0, 0)
}

/// A line of a chart.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), by x.
    pub points: Vec<(f64, f64)>,
    /// (x, low, high): 95 % intervals.
    pub intervals: Vec<(f64, f64, f64)>,
}

/// What the horizontal axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum X {
    /// Iterations or samples: few, with a mark at every point.
    Few,
    /// Updates: many.
    Steps,
}

/// A chart of lines.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Heading.
    pub title: String,
    /// What stands below the heading.
    pub caption: String,
    /// The horizontal axis.
    pub x: X,
    /// Whether values are shares, shown in per cent from 0 on.
    pub share: bool,
    /// The lines.
    pub series: Vec<Series>,
    /// Where vertical lines stand.
    pub marks: Vec<f64>,
}

impl Chart {
    /// The chart as a `figure`; `None` without a point.
    ///
    /// # Errors
    /// What plotters reports.
    pub fn figure(&self) -> Result<Option<String>> {
        let series: Vec<&Series> = self.series.iter().filter(|s| !s.points.is_empty()).collect();
        if series.is_empty() {
            return Ok(None);
        }
        let mut svg = String::new();
        self.draw(&series, &mut svg).map_err(|error| failed(&self.title, &*error))?;
        let names: Vec<&str> = series.iter().map(|s| s.name.as_str()).collect();
        Ok(Some(figure(&self.title, &self.caption, &names, &svg)))
    }

    fn draw(&self, series: &[&Series], svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let points = series.iter().flat_map(|s| &s.points);
        let ends = series.iter().flat_map(|s| &s.intervals).flat_map(|&(_, low, high)| [low, high]);
        let y = padded(points.clone().map(|p| p.1).chain(ends), self.share);
        let x = match self.x {
            X::Few => {
                let bounds = bounds(points.map(|p| p.0));
                bounds.start - 0.5..bounds.end + 0.5
            }
            // From the first update on, logged or not; the last point does not touch the border.
            X::Steps => 0.0..1.03 * bounds(points.map(|p| p.0)).end.max(1.0),
        };
        let y_step = (y.end - y.start) / 6.0;
        let y_label =
            |v: &f64| if self.share { format!("{} %", tick(100.0 * v, 100.0 * y_step)) } else { tick(*v, y_step) };
        let whole = |v: &f64| if v.fract().abs() < 1e-9 { format!("{v:.0}") } else { String::new() };
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = axes(&root, (x.clone(), y.clone()), (8, 6), (&whole, &y_label))?;
        let vertical = |x: f64| PathElement::new(vec![(x, y.start), (x, y.end)], GRID.stroke_width(2));
        chart.draw_series(self.marks.iter().map(|&x| vertical(x)))?;
        // Lines with intervals, and single points, stand a little beside each other and do not cover one another.
        let beside = |i: usize| match self.x {
            X::Few => (i as f64 - (series.len() - 1) as f64 / 2.0) * 0.014 * (x.end - x.start),
            X::Steps => 0.0,
        };
        for (i, one) in series.iter().enumerate() {
            let style = colour(i).stroke_width(4);
            let alone = series.iter().all(|s| s.points.len() == 1);
            let shift = if one.intervals.is_empty() && !alone { 0.0 } else { beside(i) };
            let bar =
                |&(x, low, high): &(f64, f64, f64)| PathElement::new(vec![(x + shift, low), (x + shift, high)], style);
            chart.draw_series(one.intervals.iter().map(bar))?;
            let points: Vec<(f64, f64)> = one.points.iter().map(|&(x, y)| (x + shift, y)).collect();
            // A line does not cross a mark: what follows began anew.
            let stretch = |x: f64| self.marks.iter().filter(|&&mark| mark < x).count();
            let stretches = points.chunk_by(|a, b| stretch(a.0) == stretch(b.0));
            chart.draw_series(stretches.map(|points| PathElement::new(points.to_vec(), style)))?;
            if points.len() <= 40 {
                let dot = |&point: &(f64, f64)| Circle::new(point, 7, colour(i).filled());
                chart.draw_series(points.iter().map(dot))?;
            }
        }
        root.present()?;
        Ok(())
    }
}

/// A bar chart: a count for every bin, labelled below.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Heading.
    pub title: String,
    /// What stands below it.
    pub caption: String,
    /// Labels and heights, in shares of all.
    pub bins: Vec<(String, f64)>,
    /// Height of the axis, the same for charts that are compared.
    pub highest: f64,
}

impl Bars {
    /// The chart as a `figure`.
    ///
    /// # Errors
    /// What plotters reports.
    pub fn figure(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| failed(&self.title, &*error))?;
        Ok(figure(&self.title, &self.caption, &[], &svg))
    }

    fn draw(&self, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let n = self.bins.len();
        let root = SVGBackend::with_string(svg, (SIZE.0, SIZE.1 * 3 / 4)).into_drawing_area();
        let top = if self.highest > 0.0 { 1.05 * self.highest } else { 1.0 };
        // As many labels as have room side by side.
        let widest = self.bins.iter().map(|b| b.0.chars().count()).max().unwrap_or(1);
        let every = (n * (widest + 2)).div_ceil(40).max(1);
        let label = |v: &f64| {
            let whole = v.fract().abs() < 1e-9 && *v >= 0.0 && (*v as usize).is_multiple_of(every);
            self.bins.get(*v as usize).filter(|_| whole).map(|b| b.0.clone()).unwrap_or_default()
        };
        // A single bar does not fill the whole width.
        let beside = if n == 1 { 1.0 } else { 0.0 };
        let x = -0.5 - beside..n as f64 - 0.5 + beside;
        let percent = |v: &f64| format!("{} %", tick(100.0 * v, 100.0 * top / 5.0));
        let mut chart = axes(&root, (x, 0.0..top), (2 * n + 1, 5), (&label, &percent))?;
        let bar = |(i, (_, height)): (usize, &(String, f64))| {
            Rectangle::new([(i as f64 - 0.42, 0.0), (i as f64 + 0.42, *height)], colour(0).filled())
        };
        chart.draw_series(self.bins.iter().enumerate().map(bar))?;
        root.present()?;
        Ok(())
    }
}

/// How a value is written at an axis.
type Label<'a> = &'a dyn Fn(&f64) -> String;

/// Axes over the two ranges, with about so many labels each, and horizontal lines behind what is drawn.
fn axes<'a>(
    root: &DrawingArea<SVGBackend<'a>, Shift>,
    (x, y): (Range<f64>, Range<f64>),
    (x_labels, y_labels): (usize, usize),
    (x_label, y_label): (Label, Label),
) -> std::result::Result<ChartContext<'a, SVGBackend<'a>, Plane>, Box<dyn std::error::Error>> {
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_top(24)
        .margin_right(32)
        .x_label_area_size(44)
        .y_label_area_size(122)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", FONT).into_font().color(&TEXT))
        .x_labels(x_labels)
        .y_labels(y_labels)
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label)
        .draw()?;
    Ok(chart)
}

fn failed(title: &str, error: &dyn std::error::Error) -> Error {
    Error::request(format!("cannot draw the chart {title:?}: {error}"))
}

fn figure(title: &str, caption: &str, legend: &[&str], svg: &str) -> String {
    let mut keys = String::new();
    // The title may name a single line, but for its N.
    let named = |name: &str| title.to_lowercase().contains(&name.to_lowercase().replace('_', " "));
    if legend.len() > 1 || legend.iter().any(|name| !named(name)) {
        for (i, name) in legend.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = write!(keys, "<span class=\"key k{}\">{}</span>", i % COLOURS + 1, escape(name));
        }
    }
    let label = format!("<svg role=\"img\" aria-label=\"{}\" ", escape(title));
    format!(
        "<figure><figcaption><b>{}</b><small>{}</small><span class=\"legend\">{keys}</span></figcaption>{}</figure>",
        escape(title),
        escape(caption),
        svg.replacen("<svg ", &label, 1)
    )
}

fn bounds(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    low..high
}

/// The range of the values with room around it, never empty; from 0 on where they are shares, or all the same.
fn padded(values: impl Iterator<Item = f64>, from_zero: bool) -> Range<f64> {
    let Range { start, end } = bounds(values);
    let highest = start.abs().max(end.abs());
    // Noise of rounding around a constant is no course, nor is that around 0.
    let noise = highest <= 1e-9;
    let constant = noise || end - start <= 1e-9 * highest;
    let start = if from_zero || constant { start.min(0.0) } else { start };
    let end = match constant {
        true if noise => 1.0,
        true => end.max(0.0),
        false => end,
    };
    let room = 0.06 * (end - start);
    // A point at 0 stands above the axis and its labels.
    if from_zero { start - 0.04 * (end + room - start)..end + room } else { start - room..end + room }
}

/// A label of an axis whose labels are `step` apart.
fn tick(value: f64, step: f64) -> String {
    let decimals = (-step.abs().log10()).ceil().max(0.0) as usize;
    match value {
        v if v.abs() < 1e-9 * step.abs() => "0".into(),
        v if v.abs() >= 1e5 => format!("{v:.1e}"),
        v if decimals > 4 => format!("{v:.1e}"),
        v => {
            let text = format!("{v:.decimals$}");
            match decimals {
                0 => text,
                _ => text.trim_end_matches('0').trim_end_matches('.').to_string(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "a<b".into(), points, intervals: vec![] }];
        Chart { title: "t<".into(), caption: "c&".into(), x: X::Few, share: false, series, marks: vec![1.5] }
    }

    #[test]
    fn a_chart_is_a_figure_without_foreign_colours() {
        let figure = chart(vec![(1.0, 0.5), (2.0, 0.75), (3.0, 0.25)]).figure().expect("draws").expect("points");
        assert!(figure.contains("aria-label=\"t&lt;\"") && figure.contains("c&amp;"), "{figure}");
        assert!(figure.contains("#010000") && figure.contains("polyline"), "{figure}");
        // Everything drawn is in a colour that the style sheet replaces.
        for (at, _) in figure.match_indices("=\"#") {
            let code = &figure[at + 3..at + 9];
            assert!(["010000", "0A0000", "0B0000"].contains(&code), "{code}");
        }
        assert_eq!(figure.matches("<circle").count(), 3);
    }

    #[test]
    fn odd_values_are_drawn_too() {
        assert_eq!(chart(vec![]).figure().expect("nothing to draw"), None);
        for y in [0.0, -3.0, 1e-12, 1e12] {
            let figure = chart(vec![(1.0, y), (2.0, y)]).figure().expect("draws").expect("points");
            assert!(!figure.contains("NaN") && !figure.contains("inf"), "{y}: {figure}");
        }
        let bins = (0..16).map(|i| (format!("{}", i as f64 / 16.0), 1.0 / 16.0)).collect();
        let bars = Bars { title: "b".into(), caption: String::new(), bins, highest: 1.0 / 16.0 };
        assert_eq!(bars.figure().expect("draws").matches("<rect").count(), 16);
        // All samples have one reward: a bar with its label and room beside it.
        let bars = Bars { title: "b".into(), caption: String::new(), bins: vec![("0.5".into(), 1.0)], highest: 1.0 };
        let figure = bars.figure().expect("draws");
        let (_, rect) = figure.split_once("<rect").expect("a bar");
        let width = rect.split_once("width=\"").expect("a width").1.split('"').next().expect("a number");
        assert!(width.parse::<u32>().expect("pixels") < SIZE.0 / 3, "{rect}");
        assert_eq!(figure.matches("\n0.5\n").count(), 1, "{figure}");
    }

    #[test]
    fn the_axis_of_a_constant_begins_at_nought() {
        let range = |values: &[f64]| {
            let range = padded(values.iter().copied(), false);
            [range.start, range.end].map(|end| (end * 1e4).round() / 1e4)
        };
        assert_eq!(range(&[2.0, 2.0 + 1e-12]), [-0.12, 2.12]);
        assert_eq!(range(&[-2.0]), [-2.12, 0.12]);
        assert_eq!(range(&[1e-12, -3e-13]), [-0.06, 1.06], "noise around 0");
        assert_eq!(range(&[1.0, 2.0]), [0.94, 2.06]);
        assert_eq!(padded([0.0, 0.0].into_iter(), true).end, 1.06, "of all");
    }

    #[test]
    fn labels_of_an_axis_are_short_and_distinct() {
        let labels = |range: Range<f64>| {
            let step = (range.end - range.start) / 5.0;
            (0..5).map(|i| tick(range.start + i as f64 * step, step)).collect::<Vec<_>>()
        };
        for range in [0.0..1.0, 0.0..0.01, -1e-7..1e-7, 1000.0..1010.0, 0.0..3e6] {
            let labels = labels(range.clone());
            let mut distinct = labels.clone();
            distinct.dedup();
            assert!(labels == distinct && labels.iter().all(|l| l.len() <= 8), "{range:?}: {labels:?}");
        }
    }
}
