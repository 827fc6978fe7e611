//! What is done to an image's pixels: normalise, crop, flip.

use super::DataOptions;
use super::batches::mixed;
use super::wanted::{ImageLayout, Slot};
use crate::error::Failure;
use serde_json::{Value, json};

/// Treatment of the images of one input.
#[derive(Clone, Debug)]
pub(super) struct Augment {
    layout: ImageLayout,
    mean: Vec<f32>,
    std: Vec<f32>,
    flip: bool,
    crop: bool,
    seed: u64,
}

impl Augment {
    /// The treatment that the options ask for; `None` when they ask for none.
    pub(super) fn new(layout: ImageLayout, input: &str, o: &DataOptions) -> Result<Option<Augment>, Failure> {
        if !(o.flip || o.crop || o.mean.is_some() || o.std.is_some()) {
            return Ok(None);
        }
        let channels = layout.channels;
        let each = |given: &Option<Vec<f32>>, flag: &str, none: f32| match given.as_deref() {
            None => Ok(vec![none; channels]),
            Some([one]) => Ok(vec![*one; channels]),
            Some(all) if all.len() == channels => Ok(all.to_vec()),
            Some(all) => {
                Err(Failure::input(format!("{flag} has {} numbers, input `{input}` has {channels} channels", all.len()))
                    .help(format!("give one number, or {channels} separated by commas")))
            }
        };
        let (mean, std) = (each(&o.mean, "--mean", 0.0)?, each(&o.std, "--std", 1.0)?);
        Ok(Some(Augment { layout, mean, std, flip: o.flip, crop: o.crop, seed: o.seed }))
    }

    /// Does it change pixels of an image that is not moved?
    pub(super) fn normalises(&self) -> bool {
        self.mean.iter().any(|m| *m != 0.0) || self.std.iter().any(|s| *s != 1.0)
    }

    /// Treats the pixels of one sample, of the given shape. A crop pads by an eighth with zeros, which after normalisation is
    /// the mean, and cuts out the old size at a random place.
    pub(super) fn apply(&self, pixels: &mut [f32], shape: &[usize], sample: usize, epoch: u64) {
        let channels = self.layout.channels;
        let (height, width) = if self.layout.last { (shape[0], shape[1]) } else { (shape[1], shape[2]) };
        // Offsets of channel, row and column.
        let (c, y, x) = if self.layout.last { (1, width * channels, channels) } else { (height * width, width, 1) };
        for channel in 0..channels {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            for at in (0..height * width).map(|i| channel * c + i / width * y + i % width * x) {
                pixels[at] = (pixels[at] - mean) / std;
            }
        }
        let random = mixed(self.seed, epoch, sample as u64);
        let flipped = self.flip && random & 1 == 1;
        let shift = |bits: u64, extent: usize| {
            let pad = if self.crop { extent.div_ceil(8) } else { 0 };
            (bits % (2 * pad as u64 + 1)) as isize - pad as isize
        };
        let (down, right) = (shift(random >> 1 & 0x7fff_ffff, height), shift(random >> 32, width));
        if !flipped && down == 0 && right == 0 {
            return;
        }
        let source = pixels.to_vec();
        let within = |v: isize, extent: usize| usize::try_from(v).ok().filter(|v| *v < extent);
        for row in 0..height {
            let from_row = within(row as isize + down, height);
            for column in 0..width {
                let mirrored = if flipped { width - 1 - column } else { column };
                let from = from_row.zip(within(mirrored as isize + right, width));
                for channel in 0..channels {
                    let value = from.map_or(0.0, |(r, k)| source[channel * c + r * y + k * x]);
                    pixels[channel * c + row * y + column * x] = value;
                }
            }
        }
    }
}

/// How an image becomes the input, as the deployed model's metadata tell it: (pixel / scale - mean) / std, a mean and a deviation for
/// each channel. `size` is height and width.
pub(super) fn told(slot: &Slot, layout: ImageLayout, size: [usize; 2], scale: u32, augment: Option<&Augment>) -> Value {
    // As many digits as the number has as float32.
    let numbers = |v: &[f32]| v.iter().map(|x| x.to_string().parse::<f64>().unwrap_or_default()).collect::<Vec<f64>>();
    let (mean, std) = match augment {
        Some(a) => (numbers(&a.mean), numbers(&a.std)),
        None => (vec![0.0; layout.channels], vec![1.0; layout.channels]),
    };
    let order = if layout.last { "NHWC" } else { "NCHW" };
    json!({"input": slot.name, "size": size, "layout": order, "scale": scale, "mean": mean, "std": std})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn treated(last: bool, o: &DataOptions, sample: usize, epoch: u64) -> Vec<f32> {
        // Two rows, three columns, three channels: 100 c + 10 y + x.
        let layout = ImageLayout { channels: 3, last };
        let mut pixels = vec![0.0; 18];
        let shape = if last { [2, 3, 3] } else { [3, 2, 3] };
        for (c, y, x) in (0..3).flat_map(|c| (0..2).flat_map(move |y| (0..3).map(move |x| (c, y, x)))) {
            let at = if last { (y * 3 + x) * 3 + c } else { (c * 2 + y) * 3 + x };
            pixels[at] = (100 * c + 10 * y + x) as f32;
        }
        Augment::new(layout, "x", o).unwrap().unwrap().apply(&mut pixels, &shape, sample, epoch);
        // In the order c, y, x.
        let at = |c: usize, y: usize, x: usize| if last { (y * 3 + x) * 3 + c } else { (c * 2 + y) * 3 + x };
        (0..18).map(|i| pixels[at(i / 6, i / 3 % 2, i % 3)]).collect()
    }

    #[test]
    fn both_layouts_are_treated_alike() {
        let o = DataOptions { flip: true, crop: true, mean: Some(vec![0.0, 100.0, 200.0]), seed: 3, ..Default::default() };
        for sample in 0..20 {
            assert_eq!(treated(false, &o, sample, 1), treated(true, &o, sample, 1), "sample {sample}");
        }
    }

    #[test]
    fn a_flip_mirrors_and_normalisation_is_by_channel() {
        let o = DataOptions { flip: true, mean: Some(vec![0.0, 100.0, 200.0]), std: Some(vec![2.0]), ..Default::default() };
        let plane = [0.0, 0.5, 1.0, 5.0, 5.5, 6.0];
        let mirrored = [1.0, 0.5, 0.0, 6.0, 5.5, 5.0];
        let all: Vec<Vec<f32>> = (0..64).map(|sample| treated(false, &o, sample, 0)).collect();
        assert!(all.iter().all(|v| *v == plane.repeat(3) || *v == mirrored.repeat(3)));
        let count = all.iter().filter(|v| **v == mirrored.repeat(3)).count();
        assert!((16..48).contains(&count), "{count} of 64 are mirrored");
        assert!((0..64).any(|s| treated(false, &o, s, 0) != treated(false, &o, s, 1)), "every epoch is the same");
    }

    #[test]
    fn a_crop_shifts_by_at_most_an_eighth_and_fills_with_zeros() {
        let o = DataOptions { crop: true, ..Default::default() };
        let shifted = (0..64).map(|s| treated(false, &o, s, 0)).filter(|v| v[6] == 0.0 && v[11] == 0.0).count();
        assert!(shifted > 0);
        // Away from the border the middle column of three is one of the three columns, or padding.
        for v in (0..64).map(|s| treated(false, &o, s, 0)) {
            assert!([0.0, 100.0, 101.0, 102.0, 110.0, 111.0, 112.0].contains(&v[7]), "{v:?}");
        }
    }
}
