//! Colours that colour-blind readers can distinguish: Okabe and Ito's eight for lines (jfly.uni-koeln.de/color), and a
//! viridis-like ramp of even lightness for quantities. Plots are drawn in the light colours; CSS rules of the page
//! match exactly these values and turn them dark, so a plot that is saved by itself keeps the light colours.

use std::fmt::Write;

/// Red, green, blue.
pub type Colour = (u8, u8, u8);

/// The background.
pub const PAPER: Colour = (255, 255, 255);
/// Text and axes.
pub const INK: Colour = (27, 31, 36);
/// Muted elements: axis names, rank marks.
pub const MUTED: Colour = (87, 96, 106);
/// Grid lines.
pub const GRID: Colour = (225, 228, 232);
/// Text on a dark cell. Not quite white, so that no rule matches it as the background.
pub const ON_DARK: Colour = (254, 254, 254);
/// Text on a light cell. Not quite black, so that no rule matches it as text.
pub const ON_LIGHT: Colour = (1, 1, 1);

/// Okabe and Ito's colours without black, highest contrast first, each with its replacement on a dark page.
const LINES: [(Colour, Colour); 7] = [
    ((0, 114, 178), (88, 172, 240)),
    ((213, 94, 0), (255, 140, 66)),
    ((0, 158, 115), (38, 204, 156)),
    ((204, 121, 167), (228, 150, 192)),
    ((230, 159, 0), (245, 184, 46)),
    ((86, 180, 233), (150, 212, 250)),
    ((140, 132, 20), (240, 228, 66)),
];

/// The replacements of the other colours on a dark page.
const NEUTRALS: [(Colour, Colour); 4] =
    [(PAPER, (22, 27, 34)), (INK, (230, 233, 237)), (MUTED, (157, 167, 179)), (GRID, (48, 54, 61))];

/// Number of lines of one plot that colours can distinguish.
pub const COUNT: usize = LINES.len();

/// The colour of the line with this index.
pub fn line(index: usize) -> Colour {
    LINES[index % COUNT].0
}

/// Points of the viridis map (Smith and van der Walt 2015), evenly spaced.
const VIRIDIS: [Colour; 9] = [
    (68, 1, 84),
    (72, 40, 120),
    (62, 74, 137),
    (49, 104, 142),
    (38, 130, 142),
    (31, 158, 137),
    (74, 194, 109),
    (159, 218, 58),
    (253, 231, 37),
];

/// The colour of a quantity that is `share` of the way from the smallest to the largest.
pub fn ramp(share: f64) -> Colour {
    let at = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let below = (at as usize).min(VIRIDIS.len() - 2);
    let mix =
        |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * (at - below as f64)).round() as u8;
    let (low, high) = (VIRIDIS[below], VIRIDIS[below + 1]);
    (mix(low.0, high.0), mix(low.1, high.1), mix(low.2, high.2))
}

/// The colour of text on `cell`.
pub fn text_on(cell: Colour) -> Colour {
    let light = 0.299 * f64::from(cell.0) + 0.587 * f64::from(cell.1) + 0.114 * f64::from(cell.2);
    if light > 140.0 { ON_LIGHT } else { ON_DARK }
}

/// The colour as `#RRGGBB`, spelled exactly as in the plots.
pub fn hex((r, g, b): Colour) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// The CSS rules that turn plots dark.
pub fn dark_rules() -> String {
    let mut rules = String::new();
    for (light, dark) in NEUTRALS.iter().chain(&LINES) {
        let (light, dark) = (hex(*light), hex(*dark));
        for property in ["fill", "stroke"] {
            let _ = write!(rules, "svg [{property}=\"{light}\"]{{{property}:{dark}}}");
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_goes_from_dark_to_light() {
        assert_eq!((ramp(-1.0), ramp(2.0)), (VIRIDIS[0], VIRIDIS[8]));
        assert_eq!(ramp(0.5), VIRIDIS[4]);
        assert_eq!((text_on(ramp(0.0)), text_on(ramp(1.0))), (ON_DARK, ON_LIGHT));
    }

    #[test]
    fn colours_of_cells_are_not_turned_dark() {
        let rules = dark_rules();
        assert!(rules.contains("[fill=\"#0072B2\"]") && rules.contains("[stroke=\"#1B1F24\"]"), "{rules}");
        let cells = (0..=1000).map(|step| hex(ramp(f64::from(step) / 1000.0)));
        for cell in cells.chain([hex(ON_DARK), hex(ON_LIGHT)]) {
            assert!(!rules.contains(&format!("\"{cell}\"")), "{cell}");
        }
    }
}
