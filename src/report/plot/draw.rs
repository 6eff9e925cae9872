//! Draws a plot as SVG with plotters. Its backend supports only whole pixels, so everything is drawn [`FINE`] times as
//! large, and the picture's `viewBox` shrinks it again: lines stay smooth at any zoom.

use crate::report::plot::pen::{
    Drawn, FINE, LETTER_WIDTH, LETTERS, Sheet, coloured, letters, rgb, size_of, stroke,
};
use std::ops::Range;

use maud::{PreEscaped, html};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::plot::axis::Axis;
use crate::report::plot::figure::{Mark, Plot, WIDTH};
use crate::report::plot::legend;
use crate::report::plot::palette::{GRID, INK, MUTED, PAPER};
use crate::{Error, Result};

const MARGIN: i32 = 6;
const TITLE: i32 = 22;

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Ruled, Ruled>>;

/// An axis for plotters: positions, with the ticks and labels of the axis.
struct Ruled {
    ends: Range<f64>,
    ticks: Vec<(f64, String)>,
}

impl Ruled {
    /// Wraps an axis; `bare` omits its ticks.
    fn of(axis: &Axis, bare: bool) -> Ruled {
        let ticks = if bare { Vec::new() } else { axis.ticks.clone() };
        Ruled { ends: axis.ends.0..axis.ends.1, ticks }
    }
}

impl Ranged for Ruled {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (at - self.ends.start) / (self.ends.end - self.ends.start);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Plotters asks twice, for the fine and the coarse grid; there is only a coarse one.
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(at, _)| *at).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.ends.clone()
    }
}

impl ValueFormatter<f64> for Ruled {
    fn format_ext(&self, at: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| tick == at).map_or(String::new(), |(_, label)| label.clone())
    }
}

/// A plot's SVG elements, without the enclosing `svg`.
pub struct Picture {
    height: u32,
    inside: String,
}

impl Picture {
    /// Draws `plot`.
    ///
    /// # Errors
    /// Only errors of plotters; no input causes one.
    pub fn of(plot: &Plot) -> Result<Picture> {
        let mut text = String::new();
        draw(plot, &mut text).map_err(|e| {
            Error::unexpected(format!("cannot draw the plot {}", plot.id)).because(e.to_string())
        })?;
        // The content between the tags that the backend writes around everything.
        let inside = text.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>"));
        let inside = inside.map_or("", |(inside, _)| inside.trim());
        // Safe to replace: quotes that come from names are escaped.
        let inside = inside.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
        Ok(Picture { height: plot.height, inside })
    }

    /// The picture as part of a page: labelled for screen readers, coloured by the page's rules.
    pub fn inline(&self, plot: &Plot, see: &str) -> PreEscaped<String> {
        let (title, desc) = (format!("{}-title", plot.id), format!("{}-desc", plot.id));
        html! {
            svg id=(plot.id) viewBox=(self.view_box()) role="img" aria-labelledby=(format!("{title} {desc}"))
                font-family="sans-serif" {
                title id=(title) { (plot.title) }
                desc id=(desc) { (see) }
                (PreEscaped(&self.inside))
            }
        }
    }

    /// The picture as a separate file, in the light colours.
    pub fn file(&self, plot: &Plot, see: &str) -> String {
        let markup = html! {
            svg xmlns="http://www.w3.org/2000/svg" width=(WIDTH) height=(self.height) viewBox=(self.view_box())
                role="img" font-family="sans-serif" {
                title { (plot.title) }
                desc { (see) }
                (PreEscaped(&self.inside))
            }
        };
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", markup.into_string())
    }

    fn view_box(&self) -> String {
        format!("0 0 {} {}", WIDTH * FINE as u32, self.height * FINE as u32)
    }
}

/// Width of the longest label in pixels.
fn widest(axis: &Axis) -> i32 {
    axis.ticks.iter().map(|(_, label)| label.chars().count() as i32 * LETTER_WIDTH).max().unwrap_or(0)
}

/// Whether the labels below the plot would overlap unless they are rotated.
fn turned(axis: &Axis, width: i32) -> bool {
    !axis.grid && axis.ticks.len() as i32 * (widest(axis) + 6) > width
}

fn draw<'a>(plot: &'a Plot, text: &'a mut String) -> Drawn<'a> {
    let size = (WIDTH * FINE as u32, plot.height * FINE as u32);
    let root = SVGBackend::with_string(text, size).into_drawing_area();
    root.fill(&rgb(PAPER))?;
    let bold = coloured(("sans-serif", size_of(13.0), FontStyle::Bold).into_font(), INK);
    root.draw_text(&plot.title, &bold, (MARGIN * FINE, 5 * FINE))?;
    let above = TITLE + legend::draw(&root, &plot.legend, TITLE)?;

    let left = widest(&plot.y) + 8 + if plot.y.name.is_empty() { 0 } else { 18 };
    let turned = turned(&plot.x, WIDTH as i32 - left - 2 * MARGIN);
    let below = 8 + if turned { widest(&plot.x) } else { 12 } + if plot.x.name.is_empty() { 0 } else { 16 };
    let mut chart = ChartBuilder::on(&root)
        .margin_left(MARGIN * FINE)
        .margin_right(2 * MARGIN * FINE)
        .margin_top((above + 8) * FINE)
        .margin_bottom(MARGIN * FINE)
        .x_label_area_size(below * FINE)
        .y_label_area_size(left * FINE)
        .build_cartesian_2d(Ruled::of(&plot.x, turned), Ruled::of(&plot.y, false))?;
    mesh(&mut chart, plot)?;
    if turned {
        turned_labels(&root, &chart, plot)?;
    }
    for mark in &plot.marks {
        draw_mark(&mut chart, plot, mark)?;
    }
    root.present()
}

fn mesh<'a>(chart: &mut Chart<'a>, plot: &Plot) -> Drawn<'a> {
    let mut mesh = chart.configure_mesh();
    if !plot.x.grid {
        mesh.disable_x_mesh();
    }
    if !plot.y.grid {
        mesh.disable_y_mesh();
    }
    mesh.axis_style(stroke(MUTED, 8))
        .bold_line_style(stroke(GRID, 8))
        .max_light_lines(0)
        .set_all_tick_mark_size(3 * FINE)
        .label_style(letters(LETTERS, INK))
        .axis_desc_style(letters(LETTERS, MUTED))
        .x_desc(plot.x.name.clone())
        .y_desc(plot.y.name.clone())
        .draw()
}

/// Draws rotated labels below the plot, which read upwards.
fn turned_labels<'a>(root: &Sheet<'a>, chart: &Chart<'a>, plot: &Plot) -> Drawn<'a> {
    let style =
        letters(LETTERS, INK).transform(FontTransform::Rotate270).pos(Pos::new(HPos::Right, VPos::Center));
    for (at, label) in &plot.x.ticks {
        let (x, y) = chart.backend_coord(&(*at, plot.y.ends.0));
        root.draw_text(label, &style, (x, y + 6 * FINE))?;
    }
    Ok(())
}

fn draw_mark<'a>(chart: &mut Chart<'a>, plot: &Plot, mark: &Mark) -> Drawn<'a> {
    let place = |(x, y): (f64, f64)| plot.x.at(x).zip(plot.y.at(y));
    let placed = |points: &[(f64, f64)]| points.iter().filter_map(|p| place(*p)).collect::<Vec<_>>();
    match mark {
        Mark::Line { points, colour, dashed: false } => {
            let line = PathElement::new(placed(points), stroke(*colour, 16));
            chart.draw_series([line])?;
        }
        Mark::Line { points, colour, dashed: true } => {
            let points = placed(points).into_iter();
            chart.draw_series(DashedLineSeries::new(points, 5 * FINE, 4 * FINE, stroke(*colour, 13)))?;
        }
        Mark::Band { points, colour } => {
            let upper = points.iter().filter_map(|(x, _, high)| place((*x, *high)));
            let lower = points.iter().rev().filter_map(|(x, low, _)| place((*x, *low)));
            let around: Vec<_> = upper.chain(lower).collect();
            chart.draw_series([Polygon::new(around, rgb(*colour).mix(0.22))])?;
        }
        Mark::Dots { points, colour, hollow } => {
            let style = stroke(*colour, 18);
            let style = if *hollow { style } else { style.filled() };
            chart.draw_series(placed(points).into_iter().map(|at| Circle::new(at, 4 * FINE, style)))?;
        }
        Mark::Cell { corners, colour } => {
            let corners = place(corners[0]).zip(place(corners[1])).map(|(a, b)| [a, b]);
            chart.draw_series(corners.map(|corners| Rectangle::new(corners, rgb(*colour).filled())))?;
        }
        Mark::Upright { x, colour } => {
            let ends = [(*x, plot.y.ends.0), (*x, plot.y.ends.1)];
            let ends = ends.into_iter().filter_map(|(x, y)| Some((plot.x.at(x)?, y)));
            let ends: Vec<_> = ends.collect();
            chart.draw_series(DashedLineSeries::new(ends, 2 * FINE, 3 * FINE, stroke(*colour, 12)))?;
        }
        Mark::Text { at, text, colour } => {
            let style = letters(LETTERS - 1.0, *colour).pos(Pos::new(HPos::Center, VPos::Center));
            chart.draw_series(place(*at).map(|at| Text::new(text.clone(), at, style)))?;
        }
    }
    Ok(())
}
