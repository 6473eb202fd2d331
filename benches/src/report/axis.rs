//! The logarithmic axis that pictures of waits have below them.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plot::{Area, DrawError, GRID, INK};
use crate::samples::Series;

/// Where values are, from left to right.
pub(super) struct Axis {
    low: i32,
    high: i32,
    left: i32,
    span: f64,
}

impl Axis {
    /// One for all samples and limits of these, between two places of the picture.
    pub(super) fn of(series: &[&Series], left: i32, right: i32) -> Self {
        let values = series
            .iter()
            .flat_map(|one| one.samples.0.iter().copied().chain(one.limit))
            .filter(|value| *value > 0.0);
        let (low, high) = decades(values);
        let span = f64::from(right - left);
        Self {
            low,
            high,
            left,
            span,
        }
    }

    /// Where a value is; within the picture whatever it is.
    pub(super) fn x(&self, value: f64) -> i32 {
        let share = (value.max(1e-9).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.left + (share.clamp(0.0, 1.0) * self.span) as i32
    }

    /// Draws it, with a line for each power of ten.
    pub(super) fn draw(&self, area: &Area<'_>, top: i32, bottom: i32) -> Result<(), DrawError> {
        let middle = Pos::new(HPos::Center, VPos::Center);
        let text = ("sans-serif", 15).into_font().color(&INK).pos(middle);
        for decade in self.low..=self.high {
            let value = 10f64.powi(decade);
            let x = self.x(value);
            area.draw(&PathElement::new([(x, top), (x, bottom)], GRID.stroke_width(1)))?;
            area.draw_text(&tick(value), &text, (x, bottom + 14))?;
        }
        let middle = self.left + (self.span / 2.0) as i32;
        area.draw_text("ms, logarithmic", &text, (middle, bottom + 34))
    }
}

/// The powers of ten around the values; some, whatever the values are.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    // A hundredth of a millisecond to 17 minutes: nothing that is measured here lies outside.
    let low = if low == f64::MAX {
        0
    } else {
        low.log10().floor().clamp(-2.0, 5.0) as i32
    };
    let high = (high.log10().ceil().clamp(-2.0, 6.0) as i32).max(low + 1);
    (low, high)
}

fn tick(value: f64) -> String {
    if value >= 1000.0 {
        format!("{:.0} s", value / 1000.0)
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::decades;

    #[test]
    fn the_axis_is_bounded_whatever_is_on_it() {
        assert_eq!(decades([].into_iter()), (0, 1));
        assert_eq!(decades([f64::NAN, f64::INFINITY].into_iter()), (0, 1));
        assert_eq!(decades([0.5, 250.0].into_iter()), (-1, 3));
        assert_eq!(decades([0.0, 1e300].into_iter()), (-2, 6));
    }
}
