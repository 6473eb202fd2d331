//! Every wait as a dot, on one logarithmic axis; medians and limits as strokes.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use crate::row::Row;
use crate::samples::{Series, digits};

const WIDTH: i32 = 1100;
const LABELS: i32 = 330;
const VALUES: i32 = 130;
const LINE: i32 = 22;
const TOP: i32 = 56;
const BOTTOM: i32 = 56;

pub(super) const DOT: RGBColor = RGBColor(60, 110, 180);
pub(super) const LIMIT: RGBColor = RGBColor(190, 60, 50);
pub(super) const GRID: RGBColor = RGBColor(220, 220, 220);
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);

pub(super) fn draw(rows: &[Row]) -> Result<String> {
    let series: Vec<&Series> = rows
        .iter()
        .flat_map(|row| &row.series)
        .filter(|one| one.plotted && one.samples.n() > 0)
        .collect();
    let lines = i32::try_from(series.len())?;
    let height = TOP + lines.max(1) * LINE + BOTTOM;
    let mut text = String::new();
    {
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        paint(&area, &series, height).map_err(|error| anyhow!("draw the plot: {error}"))?;
    }
    text.push('\n');
    Ok(text)
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub(super) type DrawError = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;

fn paint(area: &Area<'_>, series: &[&Series], height: i32) -> Result<(), DrawError> {
    area.fill(&WHITE)?;
    let text = |size: i32, color: &RGBColor, pos: Pos| ("sans-serif", size).into_font().color(color).pos(pos);
    let left = Pos::new(HPos::Left, VPos::Center);
    let right = Pos::new(HPos::Right, VPos::Center);
    area.draw_text(
        "Waits on one node. A dot: one sample; black: the median; red: its limit; at the right: p50 / p95",
        &text(17, &INK, left),
        (12, 20),
    )?;

    let axis = Axis::of(series, LABELS, WIDTH - VALUES);
    let x = |value: f64| axis.x(value);
    axis.draw(area, TOP - 12, height - BOTTOM)?;

    for (one, y) in series
        .iter()
        .zip((TOP + LINE / 2..).step_by(LINE.unsigned_abs() as usize))
    {
        area.draw_text(&one.name, &text(15, &INK, right), (LABELS - 10, y))?;
        for sample in &one.samples.0 {
            area.draw(&Circle::new((x(*sample), y), 3, DOT.mix(0.35).filled()))?;
        }
        let stroke = |value: f64, color: RGBColor, half: i32| {
            PathElement::new(
                [(x(value), y - half), (x(value), y + half)],
                color.stroke_width(2),
            )
        };
        area.draw(&stroke(one.samples.p50(), INK, 7))?;
        if let Some(limit) = one.limit {
            area.draw(&stroke(limit, LIMIT, 9))?;
        }
        let halves = format!("{} / {}", digits(one.samples.p50()), digits(one.samples.p95()));
        area.draw_text(&halves, &text(15, &INK, left), (WIDTH - VALUES + 10, y))?;
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn nothing_to_draw_is_a_plot_too() {
        assert!(draw(&[]).is_ok_and(|text| text.starts_with("<svg")));
    }
}
