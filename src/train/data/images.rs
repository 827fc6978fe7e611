//! A directory with one folder of images a class.

use super::arrays::from_f32s;
use super::augment::Augment;
use super::wanted::{ImageLayout, Slot, Wanted};
use super::{DataOptions, Dataset};
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use std::path::{Path, PathBuf};

/// Suffixes of files that can be decoded.
const SUFFIXES: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "webp"];
/// Folders below a class's are searched to this depth.
const DEEPEST: usize = 8;

/// A data set of image files.
pub(super) struct ImageSet {
    path: PathBuf,
    classes: Vec<String>,
    /// Files with the number of their class.
    files: Vec<(PathBuf, usize)>,
    slot: Slot,
    layout: ImageLayout,
    size: [usize; 2],
    target: Slot,
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
        if !wanted.target.shape.is_empty() || wanted.target.dtype.is_float() {
            let what = format!(
                "folders of images give one class label a sample, and the loss {} reads {}",
                wanted.loss,
                wanted.target.text()
            );
            return Err(Failure::input(what).at(path).help("give arrays (.npz), or rewrite with --loss cross-entropy"));
        }
        let folders: Vec<PathBuf> = entries(path)?.into_iter().filter(|p| p.is_dir()).collect();
        let name = |p: &Path| p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        let own: Vec<String> = folders.iter().map(|p| name(p)).collect();
        let classes = o.classes.clone().unwrap_or_else(|| own.clone());
        check_classes(&own, &classes, wanted).map_err(|e| e.at(path))?;
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
        let augment = Augment::new(layout, &slot.name, o)?;
        let (slot, target) = (slot.clone(), wanted.target.clone());
        Ok(ImageSet { path: path.to_path_buf(), classes, files, slot, layout, size, target, augment, notices })
    }

    /// Pixels of one file in the input's layout, 0 to 1.
    fn decode(&self, file: &Path) -> Result<Vec<f32>, Failure> {
        let fail = |e: String| {
            Failure::input(format!("cannot be decoded: {e}"))
                .at(file)
                .help("replace the image or remove it from the data set")
        };
        let reader = ImageReader::open(file).and_then(ImageReader::with_guessed_format).map_err(|e| fail(e.to_string()))?;
        let image = reader.decode().map_err(|e| fail(e.to_string()))?;
        let [height, width] = self.size;
        let (w, h) = (width as u32, height as u32);
        let image =
            if (image.width(), image.height()) == (w, h) { image } else { image.resize_exact(w, h, FilterType::Triangle) };
        let bytes = channels_of(image, self.layout.channels);
        let scaled = |at: usize| f32::from(bytes[at]) / 255.0;
        let channels = self.layout.channels;
        Ok(if self.layout.last {
            (0..bytes.len()).map(scaled).collect()
        } else {
            let plane = height * width;
            (0..bytes.len()).map(|i| scaled(i % plane * channels + i / plane)).collect()
        })
    }
}

/// Bytes with the channels last.
fn channels_of(image: DynamicImage, channels: usize) -> Vec<u8> {
    match channels {
        1 => image.into_luma8().into_raw(),
        4 => image.into_rgba8().into_raw(),
        _ => image.into_rgb8().into_raw(),
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

fn check_classes(own: &[String], classes: &[String], wanted: &Wanted) -> Result<(), Failure> {
    let listed = |all: &[String]| match all {
        [a, b, c, .., last] if all.len() > 5 => format!("{a}, {b}, {c}, … {last}"),
        _ => all.join(", "),
    };
    if let Some(strange) = own.iter().find(|c| !classes.contains(c)) {
        let what = format!("class folder `{strange}` is not among the classes of the training set: {}", listed(classes));
        return Err(Failure::input(what).help("name the folders alike in both sets"));
    }
    match wanted.classes {
        Some(n) if n != classes.len() => {
            let what = format!(
                "{} class folders ({}) do not fit a model of {n} classes (`{}`)",
                classes.len(),
                listed(classes),
                wanted.target.name
            );
            let help = format!("give the model a head for them: ancre-rewrite MODEL --classes {}", classes.len());
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
        for row in rows {
            let (file, class) = &self.files[*row];
            let mut sample = self.decode(file)?;
            if let Some(augment) = &self.augment {
                augment.apply(&mut sample, &shape, *row, epoch);
            }
            pixels.extend(sample);
            labels.push(*class as f64);
        }
        let fault = || Failure::input("images do not fill their input").at(&self.path);
        let images = from_f32s(self.slot.dtype, &[&[rows.len()], &shape[..]].concat(), &pixels).ok_or_else(fault)?;
        let labels = NpTensor::from_f64s(self.target.dtype, &[rows.len()], &labels).ok_or_else(fault)?;
        Ok(Tensors::from([(self.slot.name.clone(), images), (self.target.name.clone(), labels)]))
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn classes(&self) -> Option<&[String]> {
        Some(&self.classes)
    }
}
