//! The legend, in rows above a plot.

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use crate::report::plot::figure::{Legend, Swatch, WIDTH};
use crate::report::plot::palette::{Colour, INK};
use crate::report::plot::pen::{Drawn, FINE, LETTER_WIDTH, LETTERS, Sheet, letters, ramp, rgb, stroke};

const LEFT: i32 = 6;
const ROW: i32 = 16;
const SWATCH: i32 = 18;

/// Draws the legend below `top` and returns its height in pixels.
pub fn draw<'a>(
    root: &Sheet<'a>,
    legend: &Legend,
    top: i32,
) -> Result<i32, DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    match legend {
        Legend::Keys(keys) => {
            let (mut x, mut y) = (LEFT, top);
            for (swatch, colour, name) in keys {
                let wide = SWATCH + 6 + name.chars().count() as i32 * LETTER_WIDTH + 8;
                if x > LEFT && x + wide > WIDTH as i32 {
                    (x, y) = (LEFT, y + ROW);
                }
                draw_swatch(root, *swatch, *colour, x, y + ROW / 2)?;
                root.draw_text(name, &letters(LETTERS, INK), ((x + SWATCH + 5) * FINE, (y + 2) * FINE))?;
                x += wide;
            }
            Ok(y + ROW - top)
        }
        Legend::Ramp(name, ends) => {
            root.draw_text(name, &letters(LETTERS, INK), (LEFT * FINE, (top + 1) * FINE))?;
            draw_ramp(root, ends, top + ROW)?;
            Ok(2 * ROW + 2)
        }
    }
}

fn draw_swatch<'a>(root: &Sheet<'a>, swatch: Swatch, colour: Colour, x: i32, y: i32) -> Drawn<'a> {
    let (left, right, y) = (x * FINE, (x + SWATCH) * FINE, y * FINE);
    let middle = ((left + right) / 2, y);
    match swatch {
        Swatch::Line => root.draw(&PathElement::new(vec![(left, y), (right, y)], stroke(colour, 20))),
        Swatch::Dashed => {
            let ends = [(left, y), (right, y)];
            root.draw(&DashedPathElement::new(ends, 5 * FINE, 4 * FINE, stroke(colour, 16)))
        }
        Swatch::Dot => root.draw(&Circle::new(middle, 4 * FINE, stroke(colour, 10).filled())),
        Swatch::Area => {
            let corners = [(left, y - 5 * FINE), (right, y + 5 * FINE)];
            root.draw(&Rectangle::new(corners, rgb(colour).mix(0.22).filled()))
        }
        Swatch::Ring => root.draw(&Circle::new(middle, 4 * FINE, stroke(colour, 18))),
    }
}

fn draw_ramp<'a>(root: &Sheet<'a>, ends: &[String; 2], y: i32) -> Drawn<'a> {
    const STEPS: i32 = 40;
    const STEP: i32 = 4;
    let style = letters(LETTERS, INK);
    let from = LEFT + ends[0].chars().count() as i32 * LETTER_WIDTH + 8;
    root.draw_text(&ends[0], &style, (LEFT * FINE, (y + 1) * FINE))?;
    for step in 0..STEPS {
        let left = (from + step * STEP) * FINE;
        let corners = [(left, (y + 2) * FINE), (left + STEP * FINE, (y + 13) * FINE)];
        let share = f64::from(step) / f64::from(STEPS - 1);
        root.draw(&Rectangle::new(corners, ramp(share).filled()))?;
    }
    root.draw_text(&ends[1], &style, ((from + STEPS * STEP + 6) * FINE, (y + 1) * FINE))
}
