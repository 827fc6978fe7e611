//! A directory with one folder of images a class.

use super::arrays::from_f32s;
use super::augment::{Augment, told};
use super::resize::resize;
use super::wanted::{ImageLayout, Slot, Target, Wanted};
use super::{DataOptions, Dataset};
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use image::{DynamicImage, ImageReader};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Suffixes of files that can be decoded.
const SUFFIXES: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];
/// Folders below a class's are searched to this depth.
const DEEPEST: usize = 8;
/// Images that are decoded before the first step; of the rest only the header and the length are looked at.
const DECODED: usize = 20_000;
/// Bytes of decoded images that are kept.
const KEPT: usize = 1 << 29;
/// Mean and deviation of ImageNet's channels, with which nearly all image networks were trained.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// A data set of image files.
pub(super) struct ImageSet {
    path: PathBuf,
    classes: Vec<String>,
    /// Files with the number of their class.
    files: Vec<(PathBuf, usize)>,
    /// Their pixels, where they are few enough to be kept.
    kept: Vec<Vec<u8>>,
    slot: Slot,
    layout: ImageLayout,
    size: [usize; 2],
    target: Option<Slot>,
    augment: Option<Augment>,
    notices: Vec<String>,
}

pub(super) fn holds_folders(dir: &Path) -> Result<bool, Failure> {
    Ok(entries(dir)?.iter().any(|p| p.is_dir()))
}

/// The entries of a directory, sorted, without hidden files.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e: std::io::Error| Failure::input(format!("cannot be read: {e}")).at(dir);
    let listed = std::fs::read_dir(dir).map_err(fail)?.map(|e| e.map(|e| e.path()));
    let mut all: Vec<PathBuf> = listed.collect::<Result<_, _>>().map_err(fail)?;
    all.retain(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| !n.starts_with('.')));
    all.sort();
    Ok(all)
}

impl ImageSet {
    /// Lists the images and checks the folders against the model.
    pub(super) fn open(path: &Path, wanted: &Wanted, o: &DataOptions) -> Result<ImageSet, Failure> {
        let (slot, layout) = image_input(wanted).map_err(|e| e.at(path))?;
        let size = size(slot, layout, o).map_err(|e| e.at(path))?;
        let target = wanted.only_target("folders of images").map_err(|e| e.at(path))?;
        if let Some(target) = target.filter(|t| !t.slot.shape.is_empty() || t.slot.dtype.is_float()) {
            let what = format!(
                "folders of images give one class label a sample, and the loss {} reads {}",
                target.loss,
                target.slot.text()
            );
            return Err(Failure::input(what).at(path).help("give arrays (.npz), or rewrite with --loss cross-entropy"));
        }
        let folders: Vec<PathBuf> = entries(path)?.into_iter().filter(|p| p.is_dir()).collect();
        let name = |p: &Path| p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        let own: Vec<String> = folders.iter().map(|p| name(p)).collect();
        let classes = o.classes.clone().unwrap_or_else(|| own.clone());
        check_classes(&own, &classes, target).map_err(|e| e.at(path))?;
        let mut files = Vec::new();
        let mut others = 0;
        for (folder, class) in folders.iter().zip(&own) {
            let number = classes.iter().position(|c| c == class).unwrap_or_default();
            let before = files.len();
            collect(folder, number, DEEPEST, &mut files, &mut others)?;
            if files.len() == before {
                let what = format!("the folder of class `{class}` holds no image ({})", SUFFIXES.join(", "));
                return Err(Failure::input(what).at(path).help("add images to it or remove the folder"));
            }
        }
        let mut notices = Vec::new();
        if others > 0 {
            notices.push(format!("{others} files that are no images ({}) were left aside", SUFFIXES.join(", ")));
        }
        let (mean, std, said) = normalisation(layout, wanted, o);
        notices.extend(said);
        let o = DataOptions { mean, std, ..o.clone() };
        let augment = Augment::new(layout, &slot.name, &o)?;
        let (slot, target) = (slot.clone(), target.map(|t| t.slot.clone()));
        let (path, kept) = (path.to_path_buf(), Vec::new());
        let mut set = ImageSet { path, classes, files, kept, slot, layout, size, target, augment, notices };
        set.look_at_all(o.skip_bad.unwrap_or(0))?;
        Ok(set)
    }

    /// Decodes every image, or looks at it where there are too many; takes out up to `most` that cannot be read.
    fn look_at_all(&mut self, most: usize) -> Result<(), Failure> {
        let decodes = self.files.len() <= DECODED;
        let keeps = decodes && self.files.len() * self.size[0] * self.size[1] * self.layout.channels <= KEPT;
        let of = |i: usize| {
            let file = &self.files[i].0;
            if !decodes {
                return looks_whole(file).map(|()| Vec::new());
            }
            self.decode(file).map(|pixels| if keeps { pixels } else { Vec::new() })
        };
        let looked_at = in_parallel(self.files.len(), of);
        let bad: Vec<&Failure> = looked_at.iter().filter_map(|r| r.as_ref().err()).collect();
        if bad.len() > most {
            let more = match bad.len() {
                1 => String::new(),
                n => format!(" (one of {n} such images)"),
            };
            return Err(Failure::input(format!("{}{more}", bad[0].what)).help(format!(
                "replace or remove what cannot be decoded, or leave it aside with --skip-bad {}",
                bad.len()
            )));
        }
        if let Some(first) = bad.first() {
            let n = bad.len();
            self.notices.push(format!("{n} images that cannot be decoded are left aside, the first one: {}", first.what));
        }
        let files = std::mem::take(&mut self.files);
        for (file, pixels) in files.into_iter().zip(looked_at) {
            if let Ok(pixels) = pixels {
                self.files.push(file);
                if keeps {
                    self.kept.push(pixels);
                }
            }
        }
        match (0..self.classes.len()).find(|c| !self.files.iter().any(|(_, of)| of == c)) {
            Some(empty) if most > 0 => {
                let what = format!("no image of class `{}` can be decoded", self.classes[empty]);
                Err(Failure::input(what).at(&self.path))
            }
            _ => Ok(()),
        }
    }

    /// Pixels of one file, resized, channels last.
    fn decode(&self, file: &Path) -> Result<Vec<u8>, Failure> {
        let fail = |e: String| {
            Failure::input(format!("cannot be decoded: {e}"))
                .at(file)
                .help("replace the image or remove it from the data set")
        };
        let reader = ImageReader::open(file).and_then(ImageReader::with_guessed_format).map_err(|e| fail(e.to_string()))?;
        let image = reader.decode().map_err(|e| fail(e.to_string()))?;
        let (from, channels) = ([image.height() as usize, image.width() as usize], self.layout.channels);
        Ok(resize(channels_of(image, channels), from, self.size, channels))
    }

    /// Bytes as the input takes them: in its layout, 0 to 1.
    fn floats(&self, bytes: &[u8]) -> Vec<f32> {
        let scaled = |at: usize| f32::from(bytes[at]) / 255.0;
        let (channels, plane) = (self.layout.channels, self.size[0] * self.size[1]);
        if self.layout.last {
            return (0..bytes.len()).map(scaled).collect();
        }
        (0..bytes.len()).map(|i| scaled(i % plane * channels + i / plane)).collect()
    }
}

/// Results of a function of 0 to n - 1, by as many threads as there are cores.
fn in_parallel<T: Send>(n: usize, of: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    (0..n).into_par_iter().map(of).collect()
}

/// Has a file an image's header, and the end that its format has?
fn looks_whole(file: &Path) -> Result<(), Failure> {
    let fail = |e: String| Failure::input(format!("cannot be decoded: {e}")).at(file);
    let reader = ImageReader::open(file).and_then(ImageReader::with_guessed_format).map_err(|e| fail(e.to_string()))?;
    let format = reader.format();
    reader.into_dimensions().map_err(|e| fail(e.to_string()))?;
    let bytes = crate::io::arrays::map(file)?;
    let tail = &bytes[bytes.len().saturating_sub(64)..];
    let has = |end: &[u8]| tail.windows(end.len()).any(|w| w == end);
    match format {
        Some(image::ImageFormat::Png) if !has(b"IEND") => Err(fail("its end is missing".into())),
        Some(image::ImageFormat::Jpeg) if !has(&[0xff, 0xd9]) => Err(fail("its end is missing".into())),
        _ => Ok(()),
    }
}

/// Mean and deviation of an image input: as asked for; none where the model normalises itself; else ImageNet's for three channels.
fn normalisation(
    layout: ImageLayout,
    wanted: &Wanted,
    o: &DataOptions,
) -> (Option<Vec<f32>>, Option<Vec<f32>>, Option<String>) {
    let (mean, std) = (o.mean.clone(), o.std.clone());
    if mean.is_some() || std.is_some() {
        return (mean, std, None);
    }
    match &wanted.normalises {
        Some(n) if n.bytes => {
            let said = format!("images go in as 0 … 255: the model scales them itself ({})", n.node);
            (None, Some(vec![1.0 / 255.0]), Some(said))
        }
        Some(n) => (None, None, Some(format!("images go in as 0 … 1: the model normalises them itself ({})", n.node))),
        None if layout.channels == 3 => {
            let said =
                "images are normalised with ImageNet's mean and deviation; --mean and --std give others (--mean 0: none)";
            (Some(IMAGENET.0.to_vec()), Some(IMAGENET.1.to_vec()), Some(said.into()))
        }
        None => (None, None, None),
    }
}

/// Bytes with the channels last. Grey is what Pillow's `convert("L")` gives (ITU-R 601).
fn channels_of(image: DynamicImage, channels: usize) -> Vec<u8> {
    match (channels, image) {
        (1, DynamicImage::ImageLuma8(grey)) => grey.into_raw(),
        (1, image) => {
            let grey =
                |p: &[u8; 3]| (19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 0x8000) >> 16;
            image.into_rgb8().into_raw().as_chunks::<3>().0.iter().map(|p| grey(p) as u8).collect()
        }
        (4, image) => image.into_rgba8().into_raw(),
        (_, image) => image.into_rgb8().into_raw(),
    }
}

fn image_input(wanted: &Wanted) -> Result<(&Slot, ImageLayout), Failure> {
    let help = "give arrays named like the inputs instead (.npz, .safetensors, a directory of .npy files)";
    match &wanted.inputs[..] {
        [slot] => slot.image().map(|layout| (slot, layout)).ok_or_else(|| {
            let what = format!(
                "images feed a float input [N, C, H, W] or [N, H, W, C] of 1, 3 or 4 channels; the model reads {}",
                slot.text()
            );
            Failure::input(what).help(help)
        }),
        _ => Err(Failure::input(format!("images feed a model of one input; this one reads {}", wanted.listed())).help(help)),
    }
}

fn size(slot: &Slot, layout: ImageLayout, o: &DataOptions) -> Result<[usize; 2], Failure> {
    let dims = if layout.last { &slot.shape[..2] } else { &slot.shape[1..] };
    let own = dims.iter().copied().collect::<Option<Vec<usize>>>().map(|d| [d[0], d[1]]);
    let fits = |asked: &[usize; 2]| dims.iter().zip(asked).all(|(d, a)| d.is_none_or(|d| d == *a) && *a > 0);
    match (own, o.image_size) {
        (_, Some(asked)) if !fits(&asked) => {
            Err(Failure::input(format!("--image-size {}x{} does not fit input {}", asked[0], asked[1], slot.text()))
                .help("leave it away: images are resized to the input's size"))
        }
        (_, Some(asked)) => Ok(asked),
        (Some(own), None) => Ok(own),
        (None, None) => Err(Failure::input(format!("input {} leaves the size of its images open", slot.text()))
            .help("say what to resize them to: --image-size HxW")),
    }
}

fn check_classes(own: &[String], classes: &[String], target: Option<&Target>) -> Result<(), Failure> {
    let listed = |all: &[String]| match all {
        [a, b, c, .., last] if all.len() > 5 => format!("{a}, {b}, {c}, … {last}"),
        _ => all.join(", "),
    };
    if let Some(strange) = own.iter().find(|c| !classes.contains(c)) {
        let what = format!("class folder `{strange}` is not among the classes of the training set: {}", listed(classes));
        return Err(Failure::input(what).help("name the folders alike in both sets"));
    }
    let Some(target) = target else { return Ok(()) };
    match target.classes {
        Some(n) if n != classes.len() => {
            let what = format!(
                "{} class folders ({}) do not fit a model of {n} classes (`{}`)",
                classes.len(),
                listed(classes),
                target.slot.name
            );
            let help = match classes.len() {
                0 => "give a directory with one folder of images for each class".to_string(),
                1 => format!(
                    "`{}` is the only folder in it: give the directory above the class folders, or the one below it",
                    classes[0]
                ),
                more => format!(
                    "rewrite the model with a head for them (ancre-rewrite MODEL --classes {more}), or give the directory whose folders are the model's {n} classes"
                ),
            };
            Err(Failure::input(what).help(help))
        }
        _ => Ok(()),
    }
}

fn collect(
    dir: &Path,
    class: usize,
    depth: usize,
    files: &mut Vec<(PathBuf, usize)>,
    others: &mut usize,
) -> Result<(), Failure> {
    for path in entries(dir)? {
        let suffix = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if path.is_dir() {
            if depth > 0 {
                collect(&path, class, depth - 1, files, others)?;
            }
        } else if suffix.is_some_and(|s| SUFFIXES.contains(&s.as_str())) {
            files.push((path, class));
        } else {
            *others += 1;
        }
    }
    Ok(())
}

impl Dataset for ImageSet {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn describe(&self) -> String {
        let [h, w] = self.size;
        format!(
            "{} images of {} classes in {}, resized to {h} x {w}",
            self.files.len(),
            self.classes.len(),
            self.path.display()
        )
    }

    fn batch(&self, rows: &[usize], epoch: u64) -> Result<Tensors, Failure> {
        let [height, width] = self.size;
        let channels = self.layout.channels;
        let shape = if self.layout.last { [height, width, channels] } else { [channels, height, width] };
        let mut pixels = Vec::with_capacity(rows.len() * height * width * channels);
        let mut labels = Vec::with_capacity(rows.len());
        let decoded =
            if self.kept.is_empty() { in_parallel(rows.len(), |i| self.decode(&self.files[rows[i]].0)) } else { Vec::new() };
        let mut decoded = decoded.into_iter();
        for row in rows {
            let class = &self.files[*row].1;
            let mut sample = match decoded.next() {
                Some(bytes) => self.floats(&bytes?),
                None => self.floats(&self.kept[*row]),
            };
            if let Some(augment) = &self.augment {
                augment.apply(&mut sample, &shape, *row, epoch);
            }
            pixels.extend(sample);
            labels.push(*class as f64);
        }
        let fault = || Failure::input("images do not fill their input").at(&self.path);
        let images = from_f32s(self.slot.dtype, &[&[rows.len()], &shape[..]].concat(), &pixels).ok_or_else(fault)?;
        let mut feeds = Tensors::from([(self.slot.name.clone(), images)]);
        if let Some(target) = &self.target {
            let labels = NpTensor::from_f64s(target.dtype, &[rows.len()], &labels).ok_or_else(fault)?;
            feeds.insert(target.name.clone(), labels);
        }
        Ok(feeds)
    }

    fn values(&self, name: &str, rows: &[usize]) -> Result<Option<NpTensor>, Failure> {
        match &self.target {
            Some(target) if target.name == name => {
                let labels: Vec<f64> = rows.iter().map(|row| self.files[*row].1 as f64).collect();
                Ok(NpTensor::from_f64s(target.dtype, &[rows.len()], &labels))
            }
            _ => Ok(self.batch(rows, 0)?.swap_remove(name)),
        }
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn classes(&self) -> Option<&[String]> {
        Some(&self.classes)
    }

    fn preprocessing(&self) -> Option<Value> {
        let mut how = told(&self.slot, self.layout, self.size, 255, self.augment.as_ref());
        how["mode"] = ["", "L", "", "RGB", "RGBA"][self.layout.channels.min(4)].into();
        how["resize"] = "bilinear, antialiased (PIL.Image.BILINEAR)".into();
        Some(how)
    }
}
