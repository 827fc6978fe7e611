//! Pixels of another size, as Pillow's bilinear filter computes them, to the bit: a model is judged where it is deployed, and there
//! Pillow resizes. No crate was found that rounds as it does. (Pillow 13 takes columns first for some shapes, which moves a pixel by one
//! level at most.)
//!
//! The filter is a triangle, as wide as the step between the target's pixels (antialiasing) or the source's, whichever is wider. Rows
//! come first, then columns; after each the pixels are rounded to bytes. Weights are integers of 22 bits behind the point.

const BITS: u32 = 22;

/// Resizes bytes with the channels last. Where there are four channels the last one is opacity, by which the others are weighed.
pub(super) fn resize(mut pixels: Vec<u8>, from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<u8> {
    if from == to {
        return pixels;
    }
    if channels == 4 {
        pixels.as_chunks_mut::<4>().0.iter_mut().for_each(|p| (0..3).for_each(|c| p[c] = product(p[c], p[3])));
    }
    // Along a row a pixel is followed by the next one, along a column by the one a row further.
    let rows = along(&pixels, [from[0], from[1], channels], to[1]);
    let mut done = along(&rows, [1, from[0], to[1] * channels], to[0]);
    if channels == 4 {
        let whole = |c: u8, a: u8| if a == 0 { c } else { (255 * u32::from(c) / u32::from(a)).min(255) as u8 };
        done.as_chunks_mut::<4>().0.iter_mut().for_each(|p| (0..3).for_each(|c| p[c] = whole(p[c], p[3])));
    }
    done
}

/// A product of parts of 255, rounded.
fn product(a: u8, b: u8) -> u8 {
    let t = u32::from(a) * u32::from(b) + 128;
    (((t >> 8) + t) >> 8) as u8
}

/// Resizes the middle axis of three.
fn along(pixels: &[u8], [outer, extent, inner]: [usize; 3], to: usize) -> Vec<u8> {
    if extent == to {
        return pixels.to_vec();
    }
    let weights: Vec<(usize, Vec<i64>)> = (0..to).map(|at| weights(at, extent, to)).collect();
    let mut done = Vec::with_capacity(outer * to * inner);
    for o in 0..outer {
        for (first, weights) in &weights {
            for i in 0..inner {
                let at = (o * extent + first) * inner + i;
                let sum: i64 = weights.iter().enumerate().map(|(k, w)| w * i64::from(pixels[at + k * inner])).sum();
                done.push(((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8);
            }
        }
    }
    done
}

/// The first pixel of the source that a pixel of the target reads, and the weights from there on.
fn weights(at: usize, extent: usize, to: usize) -> (usize, Vec<i64>) {
    let scale = extent as f64 / to as f64;
    let support = scale.max(1.0);
    let centre = (at as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let last = ((centre + support + 0.5) as usize).min(extent);
    let triangle = |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
    let all: Vec<f64> = (first..last).map(triangle).collect();
    let sum: f64 = all.iter().sum();
    (first, all.iter().map(|w| (w / sum * f64::from(1 << BITS) + 0.5) as i64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern resized, as FNV-1a of the bytes that Pillow 11 gives:
    /// `i = numpy.arange(h * w * c, dtype="uint64"); Image.fromarray(((i*i*31 + i*7 + (i//13)*101) % 251).astype("uint8")…).resize((w, h), Image.BILINEAR)`.
    #[test]
    fn images_are_resized_as_pillow_does_it_to_the_bit() {
        let cases: [([usize; 2], [usize; 2], usize, u64); 8] = [
            ([20, 30], [7, 11], 4, 0x0862f212adbc7d4a),
            ([7, 5], [3, 4], 3, 0x40f9df07618a38bb),
            ([3, 4], [6, 5], 3, 0x4513621861564ba2),
            ([73, 100], [32, 32], 3, 0xe1332dcd3f155378),
            ([97, 41], [64, 64], 1, 0x380875b77e6c2de5),
            ([500, 331], [28, 28], 3, 0xa8b7ae9660261ae2),
            ([30, 40], [30, 17], 3, 0x92c3d887b655e523),
            ([9, 9], [224, 224], 1, 0x86d2df116b6283a9),
        ];
        for (from, to, channels, expected) in cases {
            let pixel = |i: u64| ((i * i * 31 + i * 7 + i / 13 * 101) % 251) as u8;
            let pixels = (0..(from[0] * from[1] * channels) as u64).map(pixel).collect();
            let small = resize(pixels, from, to, channels);
            let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
            let hash = small.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
            assert_eq!(hash, expected, "{from:?} to {to:?}, {channels} channels");
        }
    }
}
