//! A line chart. Lines differ by their dashes, and each has its name at its end.

use super::scene::{Anchor, Colour, GREY, INK, Part, Scene, Shape, Stroke, WHITE, fitted, text_width};

/// Abscissa and ordinate.
type Point = (f64, f64);

/// A line of a chart.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// From left to right.
    pub(crate) points: Vec<Point>,
    pub(crate) stroke: Stroke,
    /// Has each point a mark?
    pub(crate) marked: bool,
}

/// A chart of lines, each of which has a point.
pub(crate) struct Chart<'a> {
    pub(crate) title: String,
    pub(crate) x: &'a str,
    pub(crate) series: Vec<Series>,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// Size of names and numbers.
const SIZE: f64 = 11.0;
const GRID: Colour = [0xdd, 0xe1, 0xe6];

impl Chart<'_> {
    pub(crate) fn draw(&self) -> Scene {
        let mut scene = Scene { width: self.width, height: self.height, ..Scene::default() };
        scene.text((18.0, 21.0), 13.0, Anchor::Start, INK, fitted(&self.title, 13.0, self.width - 36.0));
        let all = || self.series.iter().flat_map(|s| s.points.iter());
        let range = |of: fn(&Point) -> f64| {
            let (low, high) = all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            // A line that is level stands in the middle.
            if high > low { (low, high) } else { (low - low.abs().max(1.0) / 2.0, high + high.abs().max(1.0) / 2.0) }
        };
        let (xs, mut ys) = (range(|p| p.0), range(|p| p.1));
        let room = (ys.1 - ys.0) * 0.06;
        ys = (ys.0 - room, ys.1 + room);
        let marks = ticks(ys.0, ys.1, 5);
        let names = self.series.iter().map(|s| text_width(&s.name, SIZE)).fold(0.0, f64::max);
        let numbers = marks.iter().map(|m| text_width(m, SIZE)).fold(0.0, f64::max);
        let (left, right) = (18.0 + numbers + 6.0, self.width - names - 26.0);
        let (top, bottom) = (34.0, self.height - 42.0);
        let px = |x: f64| left + (x - xs.0) / (xs.1 - xs.0) * (right - left);
        let py = |y: f64| bottom - (y - ys.0) / (ys.1 - ys.0) * (bottom - top);
        for text in &marks {
            let y = py(text.parse().unwrap_or(ys.0));
            scene.line((left, y), (right, y), Stroke::new(GRID, 0.8));
            scene.text((left - 6.0, y + 4.0), SIZE, Anchor::End, GREY, text.replace('-', "−"));
        }
        for text in ticks(xs.0, xs.1, 5) {
            let x = px(text.parse().unwrap_or(xs.0));
            scene.line((x, bottom), (x, bottom + 4.0), Stroke::new(GREY, 0.8));
            scene.text((x, bottom + 17.0), SIZE, Anchor::Middle, GREY, text);
        }
        scene.line((left, bottom), (right, bottom), Stroke::new(GREY, 0.8));
        scene.text(((left + right) / 2.0, bottom + 32.0), SIZE, Anchor::Middle, GREY, self.x);
        for s in &self.series {
            let at = |(x, y): &(f64, f64)| (px(*x), py(*y));
            let mut parts: Vec<Part> = s.points.iter().map(at).map(|(x, y)| Part::Line(x, y)).collect();
            if let (Some(part), Some(first)) = (parts.first_mut(), s.points.first()) {
                *part = Part::Move(at(first).0, at(first).1);
            }
            scene.tell(Shape::Path(parts, s.stroke.clone()), s.name.clone());
            for (x, y) in s.points.iter().filter(|_| s.marked || s.points.len() == 1).map(at) {
                let stroke = Some(Stroke::new(s.stroke.colour, 1.4));
                scene.add(Shape::Circle { x, y, radius: 2.8, fill: WHITE, stroke });
            }
        }
        self.name(&mut scene, right, (top, bottom), &|p: &Point| (px(p.0), py(p.1)));
        scene
    }

    /// Names at the lines' ends, moved apart where they would touch.
    fn name(&self, scene: &mut Scene, right: f64, (top, bottom): (f64, f64), at: &dyn Fn(&Point) -> Point) {
        let mut ends: Vec<_> = self.series.iter().filter_map(|s| Some((s, at(s.points.last()?)))).collect();
        ends.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let mut places: Vec<f64> = Vec::new();
        for (_, (_, y)) in &ends {
            places.push(places.last().map_or(*y, |above| y.max(above + SIZE + 3.0)));
        }
        // What was pushed below the chart pushes back from its lower edge.
        let mut limit = bottom;
        for place in places.iter_mut().rev() {
            *place = place.min(limit).max(top - 8.0);
            limit = *place - SIZE - 3.0;
        }
        for ((s, (x, y)), place) in ends.iter().zip(places) {
            scene.line((*x, *y), (right + 10.0, place), Stroke::new(GRID, 1.0));
            scene.text((right + 14.0, place + 4.0), SIZE, Anchor::Start, s.stroke.colour, s.name.clone());
        }
    }
}

/// Round numbers within a range, about so many, as they are written.
fn ticks(low: f64, high: f64, about: usize) -> Vec<String> {
    let rough = (high - low) / about as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(power);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    let written = |i: i64| match digits {
        0..=5 => format!("{:.digits$}", i as f64 * step),
        _ => format!("{:e}", (i as f64 * step * 1e12).round() / 1e12),
    };
    (first..=last).map(written).map(|t| if t.parse() == Ok(0.0) { "0".into() } else { t }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(ticks(0.0, 10.0, 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(ticks(-0.13, 0.31, 5), ["-0.1", "0", "0.1", "0.2", "0.3"]);
        assert_eq!(ticks(1.0, 25.0, 5), ["5", "10", "15", "20", "25"]);
    }

    #[test]
    fn names_at_the_ends_of_lines_do_not_touch() {
        let series = |name: &str, y: f64| Series {
            name: name.into(),
            points: vec![(0.0, 0.0), (9.0, y)],
            stroke: Stroke::new(INK, 1.0),
            marked: false,
        };
        let lines = (0..6).map(|i| series(&format!("line {i}"), 1.0 + 1e-3 * f64::from(i))).collect();
        let chart = Chart { title: "c".into(), x: "step", series: lines, width: 400.0, height: 200.0 };
        let scene = chart.draw();
        let mut places: Vec<f64> = scene
            .items
            .iter()
            .filter_map(|i| match &i.shape {
                Shape::Text { y, text, .. } if text.starts_with("line") => Some(*y),
                _ => None,
            })
            .collect();
        places.sort_by(f64::total_cmp);
        assert_eq!(places.len(), 6);
        assert!(places.windows(2).all(|p| p[1] - p[0] >= SIZE), "{places:?}");
    }
}
