//! Paints a drawing, with a typeface of its own: the same pixels on every machine.

use super::scene::{Anchor, Colour, Item, Part, Scene, Shape, Stroke};
use epaint_default_fonts::UBUNTU_LIGHT;
use tiny_skia::{
    Color, FillRule, LineCap, Paint, Path, PathBuilder, Pixmap, PremultipliedColorU8, Rect, StrokeDash, Transform,
};
use ttf_parser::{Face, OutlineBuilder};

/// Pixels of the picture for one of the drawing.
const SCALE: f32 = 2.0;
/// Most pixels on a side; a larger drawing is painted smaller.
const MOST: f32 = 16_000.0;

/// The drawing as a PNG file.
///
/// # Errors
/// When it is too large to be painted, in words.
pub(super) fn png(scene: &Scene) -> Result<Vec<u8>, String> {
    let (width, height) = (scene.width.ceil() as f32, scene.height.ceil() as f32);
    let scale = SCALE.min(MOST / width.max(height));
    let mut map = Pixmap::new((width * scale) as u32, (height * scale) as u32).ok_or("the picture is too large")?;
    map.pixels_mut().fill(PremultipliedColorU8::from_rgba(255, 255, 255, 255).ok_or("no white")?);
    let face = Face::parse(UBUNTU_LIGHT, 0).map_err(|e| e.to_string())?;
    let at = Transform::from_scale(scale, scale);
    for Item { shape, .. } in &scene.items {
        match shape {
            Shape::Path(parts, stroke) => draw(&mut map, path(parts), None, Some(stroke), at),
            Shape::Rect { x, y, width, height, fill, stroke } => {
                let rect = Rect::from_xywh(*x as f32, *y as f32, *width as f32, *height as f32);
                draw(&mut map, rect.map(PathBuilder::from_rect), Some(*fill), stroke.as_ref(), at);
            }
            Shape::Circle { x, y, radius, fill, stroke } => {
                let circle = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32);
                draw(&mut map, circle, Some(*fill), stroke.as_ref(), at);
            }
            Shape::Text { x, y, size, anchor, colour, text } => {
                let (glyphs, advance) = outline(&face, text);
                let size = *size as f32 / f32::from(face.units_per_em());
                let left = *x as f32
                    - match anchor {
                        Anchor::Start => 0.0,
                        Anchor::Middle => advance * size / 2.0,
                        Anchor::End => advance * size,
                    };
                let place = Transform::from_row(size, 0.0, 0.0, -size, left, *y as f32).post_concat(at);
                draw(&mut map, glyphs, Some(*colour), None, place);
            }
        }
    }
    map.encode_png().map_err(|e| e.to_string())
}

fn draw(map: &mut Pixmap, path: Option<Path>, fill: Option<Colour>, stroke: Option<&Stroke>, at: Transform) {
    let Some(path) = path else { return };
    let paint = |[r, g, b]: Colour| {
        let mut paint = Paint { anti_alias: true, ..Paint::default() };
        paint.set_color(Color::from_rgba8(r, g, b, 255));
        paint
    };
    if let Some(colour) = fill {
        map.fill_path(&path, &paint(colour), FillRule::Winding, at, None);
    }
    if let Some(s) = stroke {
        let dash = StrokeDash::new(s.dashes.iter().map(|d| *d as f32).collect(), 0.0);
        let line =
            tiny_skia::Stroke { width: s.width as f32, dash, line_cap: LineCap::Butt, ..tiny_skia::Stroke::default() };
        map.stroke_path(&path, &paint(s.colour), &line, at, None);
    }
}

fn path(parts: &[Part]) -> Option<Path> {
    let mut b = PathBuilder::new();
    for part in parts {
        match *part {
            Part::Move(x, y) => b.move_to(x as f32, y as f32),
            Part::Line(x, y) => b.line_to(x as f32, y as f32),
            Part::Curve(p) => {
                let [x1, y1, x2, y2, x, y] = p.map(|v| v as f32);
                b.cubic_to(x1, y1, x2, y2, x, y);
            }
        }
    }
    b.finish()
}

/// A text's outline in the typeface's units, and its length.
fn outline(face: &Face, text: &str) -> (Option<Path>, f32) {
    let mut pen = Pen { path: PathBuilder::new(), x: 0.0 };
    for c in text.chars() {
        let glyph = face.glyph_index(c).or_else(|| face.glyph_index('?')).unwrap_or_default();
        face.outline_glyph(glyph, &mut pen);
        pen.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0));
    }
    (pen.path.finish(), pen.x)
}

struct Pen {
    path: PathBuilder,
    /// Where the glyph begins.
    x: f32,
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path.cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
