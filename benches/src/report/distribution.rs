//! The latencies of one group: a histogram for each series, one below the other, on one logarithmic axis.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::histogram::buckets;
use super::plot::{Area, DOT, DrawError, INK, LIMIT};
use crate::row::Row;
use crate::samples::{Series, digits};

const WIDTH: i32 = 1100;
const LEFT: i32 = 30;
const RIGHT: i32 = 30;
const TOP: i32 = 56;
const BOTTOM: i32 = 56;
/// Of a series: its name, and its bars.
const NAME: i32 = 26;
const BARS: i32 = 84;

/// The series of a group whose distribution is shown.
pub(super) fn shown(row: &Row) -> Vec<&Series> {
    let all = row.series.iter();
    all.filter(|one| one.distribution && one.samples.n() > 0)
        .collect()
}

/// The picture; `None` if the group shows no distribution.
pub(super) fn draw(title: &str, row: &Row) -> Result<Option<String>> {
    let series = shown(row);
    if series.is_empty() {
        return Ok(None);
    }
    let height = TOP + i32::try_from(series.len())? * (NAME + BARS) + BOTTOM;
    let mut text = String::new();
    {
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        paint(&area, title, &series, height).map_err(|error| anyhow!("draw {title}: {error}"))?;
    }
    text.push('\n');
    Ok(Some(text))
}

fn paint(area: &Area<'_>, title: &str, series: &[&Series], height: i32) -> Result<(), DrawError> {
    area.fill(&WHITE)?;
    let text = |size: i32, color: &RGBColor, pos: Pos| ("sans-serif", size).into_font().color(color).pos(pos);
    let left = Pos::new(HPos::Left, VPos::Center);
    let heading = format!("{title}. Bars: samples; black: p50, p95 and p99; red: what the median must reach");
    area.draw_text(&heading, &text(17, &INK, left), (12, 20))?;

    let axis = Axis::of(series, LEFT, WIDTH - RIGHT);
    let x = |value: f64| axis.x(value);
    axis.draw(area, TOP - 12, height - BOTTOM)?;

    for (one, top) in series
        .iter()
        .zip((TOP..).step_by((NAME + BARS).unsigned_abs() as usize))
    {
        let name = format!("{}: {}, n = {}", one.name, one.thirds(), one.samples.n());
        area.draw_text(&name, &text(15, &INK, left), (LEFT + 4, top + NAME / 2))?;
        let foot = top + NAME + BARS - 6;
        let bars = buckets(&one.samples);
        let most = bars.iter().map(|bar| bar.count).max().unwrap_or_default().max(1);
        for bar in bars.iter().filter(|bar| bar.count > 0) {
            let tall = (f64::from(BARS - 10) * bar.count as f64 / most as f64).max(1.0) as i32;
            let corners = [(x(bar.low), foot - tall), (x(bar.high) - 1, foot)];
            area.draw(&Rectangle::new(corners, DOT.mix(0.6).filled()))?;
        }
        let stroke = |value: f64, color: RGBColor, up: i32| {
            area.draw(&PathElement::new(
                [(x(value), foot - up), (x(value), foot + 4)],
                color.stroke_width(2),
            ))
        };
        for (value, up) in [
            (one.samples.p50(), BARS - 10),
            (one.samples.p95(), BARS / 2),
            (one.samples.p99(), BARS / 4),
        ] {
            stroke(value, INK, up)?;
        }
        if let Some(limit) = one.limit {
            stroke(limit, LIMIT, BARS - 10)?;
            let limit_text = digits(limit);
            area.draw_text(
                &limit_text,
                &text(13, &LIMIT, left),
                (x(limit) + 4, top + NAME + 4),
            )?;
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::draw;
    use crate::plan::Which;
    use crate::row::Row;
    use crate::samples::Series;

    #[test]
    fn a_group_has_a_picture_if_it_has_distributions() {
        let mut row = Row::new(Which::Claims);
        row.series.push(Series::wait("a wait", None));
        assert!(draw("Claims", &row).is_ok_and(|picture| picture.is_none()));
        let mut series = Series::latency("claim -> Ready", Some(25.0));
        for value in [8.0, 12.0, 13.0, 90.0] {
            series.push(value);
        }
        row.series.push(series);
        let picture = draw("Claims", &row).ok().flatten().unwrap_or_default();
        assert!(picture.starts_with("<svg"), "{picture}");
        // Three bars and the background.
        assert_eq!(picture.matches("<rect").count(), 4, "{picture}");
        assert!(picture.contains("claim -&gt; Ready"), "{picture}");
    }
}
