//! Drawings as shapes: written as SVG, or painted (`png`).

use std::fmt::Write;

/// Width of an average letter over the letters' size, more than any usual typeface has: text that is measured so never overlaps.
const LETTER: f64 = 0.62;
/// The text's colour.
pub(crate) const INK: Colour = [0x22, 0x22, 0x22];
pub(crate) const GREY: Colour = [0x5c, 0x63, 0x6e];
pub(crate) const WHITE: Colour = [0xff; 3];

/// Red, green, blue.
pub(crate) type Colour = [u8; 3];

/// A line's look.
#[derive(Clone, Debug)]
pub(crate) struct Stroke {
    pub(crate) colour: Colour,
    pub(crate) width: f64,
    /// Lengths of dashes and gaps; none is a solid line.
    pub(crate) dashes: Vec<f64>,
}

impl Stroke {
    pub(crate) fn new(colour: Colour, width: f64) -> Stroke {
        Stroke { colour, width, dashes: Vec::new() }
    }

    pub(crate) fn dashed(self, dashes: &[f64]) -> Stroke {
        Stroke { dashes: dashes.to_vec(), ..self }
    }
}

/// A part of a path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Move(f64, f64),
    Line(f64, f64),
    /// A cubic Bézier curve: both control points and the end.
    Curve([f64; 6]),
}

/// Where a text stands from its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Path(Vec<Part>, Stroke),
    Rect { x: f64, y: f64, width: f64, height: f64, fill: Colour, stroke: Option<Stroke> },
    Circle { x: f64, y: f64, radius: f64, fill: Colour, stroke: Option<Stroke> },
    Text { x: f64, y: f64, size: f64, anchor: Anchor, colour: Colour, text: String },
}

/// A shape, and what a reader who points at it is told.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) shape: Shape,
    pub(crate) tip: String,
}

/// A drawing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scene {
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) items: Vec<Item>,
}

impl Scene {
    pub(crate) fn add(&mut self, shape: Shape) {
        self.tell(shape, String::new());
    }

    pub(crate) fn tell(&mut self, shape: Shape, tip: String) {
        self.items.push(Item { shape, tip });
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: Stroke) {
        self.add(Shape::Path(vec![Part::Move(from.0, from.1), Part::Line(to.0, to.1)], stroke));
    }

    pub(crate) fn text(&mut self, at: (f64, f64), size: f64, anchor: Anchor, colour: Colour, text: impl Into<String>) {
        self.add(Shape::Text { x: at.0, y: at.1, size, anchor, colour, text: text.into() });
    }

    /// Puts another drawing below this one.
    pub(crate) fn below(&mut self, other: Scene) {
        let top = self.height;
        self.place(other, 0.0, top);
    }

    /// Puts drawings below this one in rows of this width, side by side where they fit.
    pub(crate) fn flow(&mut self, drawings: Vec<Scene>, width: f64) {
        let (mut x, mut top) = (0.0, self.height);
        for drawing in drawings {
            if x > 0.0 && x + drawing.width > width {
                (x, top) = (0.0, self.height);
            }
            let taken = drawing.width;
            self.place(drawing, x, top);
            x += taken;
        }
    }

    /// Puts another drawing at a place of this one, which grows as far as it must.
    pub(crate) fn place(&mut self, other: Scene, dx: f64, dy: f64) {
        self.width = self.width.max(dx + other.width);
        self.height = self.height.max(dy + other.height);
        self.items.extend(other.items.into_iter().map(|mut item| {
            match &mut item.shape {
                Shape::Path(parts, _) => parts.iter_mut().for_each(|p| p.shift(dx, dy)),
                Shape::Rect { x, y, .. } | Shape::Circle { x, y, .. } | Shape::Text { x, y, .. } => {
                    *x += dx;
                    *y += dy;
                }
            }
            item
        }));
    }

    /// The drawing as an SVG element.
    pub(crate) fn svg(&self, title: &str) -> String {
        let mut out = String::new();
        let (w, h) = (self.width.ceil(), self.height.ceil());
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" \
             font-family=\"Helvetica,Arial,sans-serif\"><title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            escaped(title)
        );
        for Item { shape, tip } in &self.items {
            let element = match shape {
                Shape::Path(..) => "path",
                Shape::Rect { .. } => "rect",
                Shape::Circle { .. } => "circle",
                Shape::Text { .. } => "text",
            };
            let _ = write!(out, "<{element}");
            let mut inside = if tip.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(tip)) };
            match shape {
                Shape::Path(parts, stroke) => {
                    let d: String = parts.iter().map(Part::svg).collect();
                    let _ = write!(out, " fill=\"none\" d=\"{d}\"{}", stroke_svg(Some(stroke)));
                }
                Shape::Rect { x, y, width, height, fill, stroke } => {
                    let place = format!("x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"", n(*x), n(*y), n(*width), n(*height));
                    let _ = write!(out, " {place} fill=\"{}\"{}", hex(*fill), stroke_svg(stroke.as_ref()));
                }
                Shape::Circle { x, y, radius, fill, stroke } => {
                    let place = format!("cx=\"{}\" cy=\"{}\" r=\"{}\"", n(*x), n(*y), n(*radius));
                    let _ = write!(out, " {place} fill=\"{}\"{}", hex(*fill), stroke_svg(stroke.as_ref()));
                }
                Shape::Text { x, y, size, anchor, colour, text } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    let place = format!("x=\"{}\" y=\"{}\" font-size=\"{}\"", n(*x), n(*y), n(*size));
                    let _ = write!(out, " {place} text-anchor=\"{anchor}\" fill=\"{}\"", hex(*colour));
                    inside.push_str(&escaped(text));
                }
            }
            let _ = match inside.as_str() {
                "" => writeln!(out, "/>"),
                inside => writeln!(out, ">{inside}</{element}>"),
            };
        }
        out + "</svg>\n"
    }
}

impl Part {
    fn shift(&mut self, dx: f64, dy: f64) {
        match self {
            Part::Move(x, y) | Part::Line(x, y) => (*x, *y) = (*x + dx, *y + dy),
            Part::Curve(points) => points.iter_mut().enumerate().for_each(|(i, p)| *p += if i % 2 == 0 { dx } else { dy }),
        }
    }

    fn svg(&self) -> String {
        match self {
            Part::Move(x, y) => format!("M{} {}", n(*x), n(*y)),
            Part::Line(x, y) => format!("L{} {}", n(*x), n(*y)),
            Part::Curve(p) => format!("C{}", p.map(n).join(" ")),
        }
    }
}

/// Pixels that a text takes at most.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER
}

/// The text, or as much of it as fits, with an ellipsis.
pub(crate) fn fitted(text: &str, size: f64, width: f64) -> String {
    let room = (width / (size * LETTER)) as usize;
    if text.chars().count() <= room {
        return text.into();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

pub(crate) fn escaped(text: &str) -> String {
    // What XML 1.0 cannot hold is left out.
    let held = |c: &char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    let text: String = text.chars().filter(held).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn stroke_svg(stroke: Option<&Stroke>) -> String {
    let Some(Stroke { colour, width, dashes }) = stroke else { return String::new() };
    let dashes = match dashes.as_slice() {
        [] => String::new(),
        some => format!(" stroke-dasharray=\"{}\"", some.iter().map(|d| n(*d)).collect::<Vec<_>>().join(" ")),
    };
    format!(" stroke=\"{}\" stroke-width=\"{}\"{dashes}", hex(*colour), n(*width))
}

fn hex([r, g, b]: Colour) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A coordinate, to a hundredth of a pixel.
fn n(x: f64) -> String {
    let x = (x * 100.0).round() / 100.0;
    if x == 0.0 { "0".into() } else { x.to_string() }
}
