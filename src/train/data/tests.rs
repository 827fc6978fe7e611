//! Every form of a data set, and every refusal.

use super::*;
use crate::io::feed::Normalises;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::DType;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzWriter, WriteNpyExt};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

fn slot(name: &str, dtype: DType, shape: &[i64]) -> Slot {
    let shape = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    Slot { name: name.into(), dtype, shape, batched: true }
}

fn wanted(inputs: Vec<Slot>, target: Slot, classes: Option<usize>, loss: &str) -> Wanted {
    let target = Target { slot: target, classes, loss: loss.into(), ignore_index: None };
    Wanted { inputs, targets: vec![target], masks: vec![], batch: None, normalises: None }
}

/// A classifier of two features.
fn classifier() -> Wanted {
    wanted(vec![slot("x", DType::F32, &[2])], slot("labels", DType::I64, &[]), Some(3), "cross-entropy")
}

/// A classifier of images.
fn images(shape: [i64; 3], classes: usize) -> Wanted {
    wanted(vec![slot("x", DType::F32, &shape)], slot("labels", DType::I64, &[]), Some(classes), "cross-entropy")
}

/// A language model of 50 tokens.
fn language_model(length: i64) -> Wanted {
    let inputs = ["input_ids", "attention_mask", "position_ids", "token_type_ids"];
    let inputs = inputs.iter().map(|n| slot(n, DType::I64, &[length])).collect();
    wanted(inputs, slot("labels", DType::I64, &[length]), Some(50), "next-token")
}

enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}
use Values::*;

type Named = (&'static str, Vec<usize>, Values);
type Arrays<'a> = &'a [Named];

/// Writes arrays as an `.npz`.
fn npz(dir: &Path, arrays: Arrays, compressed: bool) -> PathBuf {
    let path = dir.join("set.npz");
    let file = std::fs::File::create(&path).unwrap();
    let mut npz = if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
    for (name, shape, values) in arrays {
        macro_rules! add {
            ($v:expr) => {
                npz.add_array(*name, &ArrayD::from_shape_vec(IxDyn(shape), $v.clone()).unwrap()).unwrap()
            };
        }
        match values {
            F32(v) => add!(v),
            F64(v) => add!(v),
            I64(v) => add!(v),
            I32(v) => add!(v),
            U8(v) => add!(v),
        }
    }
    npz.finish().unwrap();
    path
}

fn opened(path: &Path, wanted: &Wanted, o: &DataOptions) -> Arc<dyn Dataset> {
    open(path, wanted, o).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(path: &Path, wanted: &Wanted, o: &DataOptions, parts: &[&str]) {
    let e = match open(path, wanted, o) {
        Ok(set) => panic!("taken: {}; {parts:?} was expected", set.describe()),
        Err(e) => e,
    };
    let text = e.to_string();
    assert!(e.status == 2 && e.help.is_some() == text.contains("try:"), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

const TEN: [f32; 10] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];

#[test]
fn the_same_arrays_in_every_form_give_the_same_batch() {
    let dir = tempfile::tempdir().unwrap();
    let labels: Vec<i64> = vec![0, 1, 2, 1, 0];
    let arrays = [("x", vec![5, 2], F32(TEN.to_vec())), ("labels", vec![5], I64(labels.clone()))];
    let check = |path: &Path| {
        let set = opened(path, &classifier(), &DataOptions::default());
        let batch = set.batch(&[4, 1], 0).unwrap();
        assert_eq!((set.len(), batch["x"].shape(), batch["x"].to_f32()), (5, &[2, 2][..], vec![8.0, 9.0, 2.0, 3.0]));
        assert_eq!(batch["labels"], NpTensor::i64s(&[2], &[0, 1]).unwrap(), "{}", path.display());
        assert!(set.notices().is_empty());
    };
    check(&npz(dir.path(), &arrays, false));
    check(&npz(dir.path(), &arrays, true));

    let folder = dir.path().join("arrays");
    std::fs::create_dir(&folder).unwrap();
    let x = ArrayD::from_shape_vec(IxDyn(&[5, 2]), TEN.to_vec()).unwrap();
    x.write_npy(std::fs::File::create(folder.join("x.npy")).unwrap()).unwrap();
    let y = ArrayD::from_shape_vec(IxDyn(&[5]), labels.clone()).unwrap();
    y.write_npy(std::fs::File::create(folder.join("labels.npy")).unwrap()).unwrap();
    check(&folder);

    let path = dir.path().join("set.safetensors");
    let x: Vec<u8> = TEN.iter().flat_map(|v| v.to_le_bytes()).collect();
    let y: Vec<u8> = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
    let views = [
        ("x", TensorView::new(Dtype::F32, vec![5, 2], &x).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![5], &y).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &path).unwrap();
    check(&path);
}

/// 256 GiB in a sparse file: more than there is memory, unless it is mapped.
#[test]
#[cfg(target_os = "linux")]
fn arrays_larger_than_memory_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, columns) = (1usize << 16, 1usize << 20);
    let header = |descr: &str, shape: &str| {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut file = std::fs::File::create(dir.path().join("x.npy")).unwrap();
    let head = header("<f4", &format!("{rows}, {columns}"));
    file.write_all(&head).unwrap();
    if file.set_len((head.len() + rows * columns * 4) as u64).is_err() {
        eprintln!("skipped: the file system of {} has no sparse files of this size", dir.path().display());
        return;
    }
    let mut labels = header("<i4", &format!("{rows},"));
    labels.extend(vec![0; rows * 4]);
    std::fs::write(dir.path().join("labels.npy"), labels).unwrap();
    let wide =
        wanted(vec![slot("x", DType::F32, &[columns as i64])], slot("labels", DType::I64, &[]), Some(3), "cross-entropy");
    let set = opened(dir.path(), &wide, &DataOptions::default());
    let batch = set.batch(&[rows - 1], 0).unwrap();
    assert_eq!((set.len(), batch["x"].shape()), (rows, &[1, columns][..]));
}

#[test]
fn only_expected_conversions_are_made_and_they_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = vec![0u8, 255, 51, 102];
    let path = npz(dir.path(), &[("x", vec![1, 1, 2, 2], U8(bytes)), ("labels", vec![1, 1], I32(vec![2]))], true);
    let set = opened(&path, &images([1, 2, 2], 3), &DataOptions::default());
    let batch = set.batch(&[0], 0).unwrap();
    assert_eq!(batch["x"].to_f32(), [0.0, 1.0, 0.2, 0.4]);
    assert_eq!((batch["labels"].dtype(), batch["labels"].shape()), (DType::I64, &[1][..]));
    assert!(set.notices()[0].contains("scaled from 0 … 255 to 0 … 1"), "{:?}", set.notices());

    let o = DataOptions { mean: Some(vec![0.5]), std: Some(vec![0.25]), ..Default::default() };
    let batch = opened(&path, &images([1, 2, 2], 3), &o).batch(&[0], 0).unwrap();
    assert_eq!(batch["x"].to_f32(), [-2.0, 2.0, (0.2 - 0.5) / 0.25, (0.4 - 0.5) / 0.25]);

    let path = npz(dir.path(), &[("x", vec![1, 2], F64(vec![0.1, 2.0])), ("labels", vec![1], U8(vec![1]))], false);
    let set = opened(&path, &classifier(), &DataOptions::default());
    assert_eq!(set.batch(&[0], 0).unwrap()["x"].to_f32(), [0.1, 2.0]);
    assert!(set.notices()[0].contains("`x` is float64; it is rounded to float32"), "{:?}", set.notices());
}

#[test]
fn what_does_not_fit_is_refused_with_names_and_advice() {
    let dir = tempfile::tempdir().unwrap();
    let x = |n: usize| ("x", vec![n, 2], F32(vec![0.0; 2 * n]));
    let y = |labels: &[i64]| ("labels", vec![labels.len()], I64(labels.to_vec()));
    let none = DataOptions::default();
    let ten = |name: &'static str, shape: &[usize], v: Values| (name, shape.to_vec(), v);
    let cases: Vec<(Vec<Named>, Vec<&str>)> = vec![
        (vec![x(2)], vec!["no array for the target `labels` int64 [N]", "`x` float32 [2, 2]"]),
        (vec![ten("features", &[2, 2], F32(vec![0.0; 4])), y(&[0, 0])], vec!["input `x`", "rename `features` to `x`"]),
        (vec![ten("x", &[2, 3], F32(vec![0.0; 6])), y(&[0, 0])], vec!["`x` float32 [2, 3]", "`x` float32 [N, 2]"]),
        (vec![ten("x", &[2, 1, 2], F32(vec![0.0; 4])), y(&[0, 0])], vec!["x.reshape(-1, 2)"]),
        (vec![ten("x", &[2, 2], I64(vec![0; 4])), y(&[0, 0])], vec!["`x` int64", "x.astype('float32')"]),
        (vec![ten("x", &[2, 2], U8(vec![0; 4])), y(&[0, 0])], vec!["scaled to 0 … 1 for image inputs only"]),
        (vec![x(2), ten("labels", &[2], F32(vec![0.0; 2]))], vec!["`labels` float32", "x.astype('int64')"]),
        (vec![x(2), y(&[0, 3])], vec!["sample 1 has the label 3", "`labels` takes 0 to 2", "count from 1"]),
        (vec![x(2), y(&[9, 0])], vec!["sample 0 has the label 9", "--classes 10"]),
        (vec![x(2), y(&[0, -1])], vec!["the label -1", "--ignore-index=-1"]),
        (vec![x(2), y(&[0])], vec!["`x` has 2 samples, array `labels` has 1"]),
        (vec![x(0), y(&[])], vec!["`x` has no sample"]),
    ];
    for (arrays, parts) in cases {
        let path = npz(dir.path(), &arrays, false);
        refused(&path, &classifier(), &none, &[&["set.npz"], &parts[..]].concat());
    }
    let mut ignoring = classifier();
    ignoring.targets[0].ignore_index = Some(-1);
    opened(&npz(dir.path(), &[x(2), y(&[0, -1])], false), &ignoring, &none);
    let nhwc = npz(dir.path(), &[ten("x", &[1, 4, 5, 3], F32(vec![0.0; 60])), y(&[0])], false);
    refused(&nhwc, &images([3, 4, 5], 3), &none, &["x.transpose(0, 3, 1, 2)"]);
    let both = |loss, v: f32| {
        let w = wanted(vec![slot("x", DType::F32, &[2])], slot("target", DType::F32, &[1]), None, loss);
        (npz(dir.path(), &[x(1), ("target", vec![1], F32(vec![v]))], false), w)
    };
    let (path, w) = both("bce", 2.0);
    refused(&path, &w, &none, &["the target 2", "takes 0 to 1"]);
    let (path, w) = both("mse", 2.0);
    assert_eq!(opened(&path, &w, &none).batch(&[0], 0).unwrap()["target"].shape(), [1, 1]);
    let path = npz(dir.path(), &[x(1), ("target", vec![1, 1], I64(vec![1 << 30]))], false);
    refused(&path, &w, &none, &["holds 1073741824, which float32 cannot hold exactly"]);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let flip = DataOptions { flip: true, ..Default::default() };
    refused(dir.path(), &classifier(), &flip, &["are for images", "`x` float32 [N, 2]"]);
    let segments = wanted(vec![slot("x", DType::F32, &[3, 4, 4])], slot("y", DType::I64, &[4, 4]), None, "cross-entropy");
    refused(dir.path(), &segments, &flip, &["would have to move with them"]);
    let std = DataOptions { std: Some(vec![0.0]), ..Default::default() };
    refused(dir.path(), &images([3, 4, 4], 2), &std, &["--std positive"]);
    std::fs::write(dir.path().join("set.csv"), "1,2").unwrap();
    for name in ["set.csv", "absent.npz", ""] {
        refused(&dir.path().join(name), &classifier(), &DataOptions::default(), &["give an .npz"]);
    }
    for name in ["a.npz", "a.safetensors"] {
        std::fs::write(dir.path().join(name), "no such thing").unwrap();
        let e = open(&dir.path().join(name), &classifier(), &DataOptions::default()).map(|_| ()).unwrap_err();
        assert!(e.what.contains(name) && e.what.contains("is no readable"), "{e}");
    }
}

/// Folders of one-coloured images: class names with their colours.
fn folders(dir: &Path, classes: &[(&str, [u8; 3])]) -> PathBuf {
    let root = dir.join("images");
    for (name, colour) in classes {
        let folder = root.join(name).join("deeper");
        std::fs::create_dir_all(&folder).unwrap();
        for (file, side) in [("a.png", 4), ("b.bmp", 9)] {
            image::RgbImage::from_pixel(side, side, image::Rgb(*colour)).save(folder.join(file)).unwrap();
        }
    }
    root
}

/// Pixels as they are.
fn raw() -> DataOptions {
    DataOptions { mean: Some(vec![0.0]), ..DataOptions::default() }
}

#[test]
fn image_folders_are_classes_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = folders(dir.path(), &[("red", [255, 0, 0]), ("blue", [0, 0, 255])]);
    std::fs::write(root.join("red").join("notes.txt"), "no image").unwrap();
    let set = opened(&root, &images([3, 4, 5], 2), &raw());
    assert_eq!((set.len(), set.classes().unwrap()), (4, &["blue".to_string(), "red".to_string()][..]));
    assert!(set.notices()[0].contains("1 files that are no images"), "{:?}", set.notices());
    let batch = set.batch(&[0, 3], 0).unwrap();
    assert_eq!((batch["x"].shape(), batch["labels"].to_i64()), (&[2, 3, 4, 5][..], vec![0, 1]));
    let planes = |channels: [f32; 3]| channels.iter().flat_map(|v| vec![*v; 20]).collect::<Vec<f32>>();
    assert_eq!(batch["x"].to_f32(), [planes([0.0, 0.0, 1.0]), planes([1.0, 0.0, 0.0])].concat());

    let last = opened(&root, &images([4, 5, 3], 2), &raw()).batch(&[3], 0).unwrap();
    assert_eq!((last["x"].shape(), last["x"].to_f32()), (&[1, 4, 5, 3][..], [1.0, 0.0, 0.0].repeat(20)));
    let grey = opened(&root, &images([1, 4, 5], 2), &raw()).batch(&[3], 0).unwrap();
    assert!(grey["x"].to_f32().iter().all(|v| (0.2..0.31).contains(v)), "{:?}", grey["x"].to_f32());
    let sized = DataOptions { image_size: Some([2, 2]), ..raw() };
    assert_eq!(opened(&root, &images([3, -1, -1], 2), &sized).batch(&[0], 0).unwrap()["x"].shape(), [1, 3, 2, 2]);
}

#[test]
fn a_class_keeps_its_number_in_the_validation_set() {
    let dir = tempfile::tempdir().unwrap();
    let root = folders(dir.path(), &[("red", [255, 0, 0])]);
    let classes =
        |names: &[&str]| DataOptions { classes: Some(names.iter().map(|n| n.to_string()).collect()), ..Default::default() };
    let set = opened(&root, &images([3, 4, 4], 2), &classes(&["blue", "red"]));
    assert_eq!(set.batch(&[0], 0).unwrap()["labels"].to_i64(), [1]);
    refused(&root, &images([3, 4, 4], 2), &classes(&["blue", "green"]), &["`red` is not among", "blue, green"]);
}

#[test]
fn image_folders_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = folders(dir.path(), &[("red", [255, 0, 0]), ("blue", [0, 0, 255])]);
    let none = DataOptions::default();
    refused(&root, &images([3, 4, 4], 1000), &none, &["2 class folders (blue, red)", "1000 classes", "--classes 2"]);
    refused(&root, &images([3, -1, -1], 2), &none, &["leaves the size of its images open", "--image-size"]);
    let sized = DataOptions { image_size: Some([2, 2]), ..Default::default() };
    refused(&root, &images([3, 4, 4], 2), &sized, &["--image-size 2x2 does not fit"]);
    refused(&root, &classifier(), &none, &["`x` float32 [N, 2]", "arrays named like the inputs"]);
    let mean = DataOptions { mean: Some(vec![0.5, 0.5]), ..Default::default() };
    refused(&root, &images([3, 4, 4], 2), &mean, &["--mean has 2 numbers", "3 channels"]);
    std::fs::create_dir(root.join("empty")).unwrap();
    refused(&root, &images([3, 4, 4], 3), &none, &["class `empty` holds no image"]);

    std::fs::remove_dir(root.join("empty")).unwrap();
    let damaged = root.join("red").join("deeper").join("a.png");
    let half = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &half[..half.len() / 2]).unwrap();
    refused(&root, &images([3, 4, 4], 2), &none, &["a.png: cannot be decoded", "--skip-bad 1"]);
    let skips = DataOptions { skip_bad: Some(1), ..Default::default() };
    let set = opened(&root, &images([3, 4, 4], 2), &skips);
    assert!(set.len() == 3 && set.notices().iter().any(|n| n.contains("a.png: cannot be decoded")), "{:?}", set.notices());
    assert_eq!(set.batch(&[0, 1, 2], 0).unwrap()["labels"].to_i64(), [0, 0, 1]);
    let inner = root.join("red");
    refused(&inner, &images([3, 4, 4], 2), &skips, &["1 class folders (deeper)", "the directory above"]);
}

#[test]
fn images_of_three_channels_are_normalised_unless_the_model_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = folders(dir.path(), &[("red", [255, 0, 0]), ("blue", [0, 0, 255])]);
    let pixel = |wanted: &Wanted, o: &DataOptions| {
        let set = opened(&root, wanted, o);
        let pixels = set.batch(&[3], 0).unwrap()["x"].to_f32();
        (
            [pixels[0], pixels[16], pixels[32]].map(|v| (v * 1e4).round() / 1e4),
            set.preprocessing().unwrap(),
            set.notices().join("\n"),
        )
    };
    let mut wanted = images([3, 4, 4], 2);
    let (seen, how, said) = pixel(&wanted, &DataOptions::default());
    assert_eq!(seen, [2.2489, -2.0357, -1.8044]);
    assert_eq!(
        (how["mean"][1].as_f64(), how["size"][0].as_u64(), how["mode"].as_str()),
        (Some(0.456), Some(4), Some("RGB"))
    );
    assert!(said.contains("ImageNet"), "{said}");
    assert_eq!(pixel(&wanted, &raw()).0, [1.0, 0.0, 0.0]);
    wanted.normalises = Some(Normalises { node: "norm".into(), bytes: false });
    let (seen, _, said) = pixel(&wanted, &DataOptions::default());
    assert!(seen == [1.0, 0.0, 0.0] && said.contains("itself (norm)"), "{said}");
    wanted.normalises = Some(Normalises { node: "rescale".into(), bytes: true });
    assert_eq!(pixel(&wanted, &DataOptions::default()).0, [255.0, 0.0, 0.0]);
}

#[test]
fn byte_arrays_tell_what_was_done_to_their_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let set = |shape: &[usize], wanted: &Wanted, o: &DataOptions| {
        let n = shape.iter().product();
        let path = npz(
            dir.path(),
            &[("x", shape.to_vec(), U8((0..n).map(|i| i as u8).collect())), ("labels", vec![2], U8(vec![0, 1]))],
            false,
        );
        let set = opened(&path, wanted, o);
        let pixel = f64::from(set.batch(&[0], 0).unwrap()["x"].to_f32()[1]);
        (set.preprocessing(), (pixel * 1e6).round() / 1e6)
    };
    let last = images([4, 5, 3], 2);
    let (how, pixel) = set(&[2, 4, 5, 3], &last, &DataOptions::default());
    let plain = json!({"input": "x", "size": [4, 5], "layout": "NHWC", "scale": 255, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]});
    assert_eq!((how, pixel), (Some(plain), 0.003922));
    let o = DataOptions { mean: Some(vec![0.5, 0.1, 0.2]), std: Some(vec![0.25]), ..Default::default() };
    let (how, pixel) = set(&[2, 3, 4, 5], &images([3, 4, 5], 2), &o);
    let how = how.unwrap();
    assert_eq!((&how["layout"], &how["size"]), (&json!("NCHW"), &json!([4, 5])));
    assert_eq!((&how["mean"], &how["std"]), (&json!([0.5, 0.1, 0.2]), &json!([0.25, 0.25, 0.25])));
    assert_eq!(pixel, -1.984314);
    // A model that divides by 255 itself gets bytes, as it does from files.
    let model = Wanted { normalises: Some(Normalises { node: "rescale".into(), bytes: true }), ..last };
    let (how, pixel) = set(&[2, 4, 5, 3], &model, &DataOptions::default());
    assert_eq!((&how.unwrap()["scale"], pixel), (&json!(1), 1.0));
    // Floats go in as they are.
    let floats = npz(dir.path(), &[("x", vec![1, 3, 1, 1], F32(vec![0.5; 3])), ("labels", vec![1], U8(vec![0]))], false);
    assert_eq!(opened(&floats, &images([3, 1, 1], 2), &DataOptions::default()).preprocessing(), None);
}

#[test]
fn a_directory_of_train_and_val_is_both_sets_and_a_part_can_be_held_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = folders(dir.path(), &[("train/a", [255, 0, 0]), ("train/b", [0; 3]), ("val/a", [9; 3]), ("val/b", [9; 3])]);
    assert_eq!(parts(&root).unwrap(), Some((root.join("train"), Some(root.join("val")))));
    assert_eq!(parts(&root.join("train")).unwrap(), None);
    std::fs::create_dir(root.join("other")).unwrap();
    assert_eq!(parts(&root).unwrap(), None);

    let open = || opened(&root.join("train"), &images([3, 4, 4], 2), &raw());
    let (train, back) = split(open(), open(), 0.25).unwrap();
    assert_eq!((train.len(), back.len()), (3, 1));
    let all =
        [train.batch(&[0, 1, 2], 0).unwrap()["labels"].to_i64(), back.batch(&[0], 0).unwrap()["labels"].to_i64()].concat();
    assert_eq!(all.iter().sum::<i64>(), 2);
    assert!(split(open(), open(), 0.99).is_err());
    let text = tokens(dir.path(), &(0..40).collect::<Vec<_>>());
    let open = || opened(&text, &language_model(4), &DataOptions::default());
    let (train, back) = split(open(), open(), 0.2).unwrap();
    assert_eq!(train.batch(&[7], 0).unwrap()["input_ids"].to_i64(), [28, 29, 30, 31]);
    assert_eq!(back.batch(&[0], 0).unwrap()["input_ids"].to_i64(), [32, 33, 34, 35]);
}

fn tokens(dir: &Path, ids: &[u16]) -> PathBuf {
    let path = dir.join("text.bin");
    std::fs::write(&path, ids.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    path
}

#[test]
fn token_files_are_cut_into_windows() {
    let dir = tempfile::tempdir().unwrap();
    let path = tokens(dir.path(), &(0..23).collect::<Vec<u16>>());
    let window = |window, stride| DataOptions { window, stride, ..Default::default() };
    let set = opened(&path, &language_model(-1), &window(Some(5), None));
    let batch = set.batch(&[3, 0], 0).unwrap();
    assert_eq!((set.len(), batch["input_ids"].shape()), (4, &[2, 5][..]));
    assert_eq!(batch["input_ids"].to_i64(), [15, 16, 17, 18, 19, 0, 1, 2, 3, 4]);
    assert_eq!(batch["labels"], batch["input_ids"], "the graph shifts them itself");
    assert_eq!(batch["attention_mask"].to_i64(), [1; 10]);
    assert_eq!(batch["position_ids"].to_i64(), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    assert_eq!(batch["token_type_ids"].to_i64(), [0; 10]);

    // The last window of stride 2 starts at 18; the graph's own length needs no option.
    let set = opened(&path, &language_model(5), &window(None, Some(2)));
    assert_eq!((set.len(), set.batch(&[9], 0).unwrap()["input_ids"].to_i64()), (10, vec![18, 19, 20, 21, 22]));

    // Without a shift in the graph the labels are the next tokens.
    let mut plain = language_model(11);
    plain.targets[0].loss = "cross-entropy".into();
    let set = opened(&path, &plain, &DataOptions::default());
    let batch = set.batch(&[1], 0).unwrap();
    assert_eq!((set.len(), batch["input_ids"].to_i64()[0], batch["labels"].to_i64()[10]), (2, 11, 22));

    // Positions without a batch axis come once, past keys with length 0.
    let mut decoder = language_model(-1);
    decoder.inputs[2].batched = false;
    decoder.inputs.push(slot("past.0.key", DType::F32, &[2, -1, 8]));
    let batch = opened(&path, &decoder, &window(Some(4), None)).batch(&[0, 1, 2], 0).unwrap();
    assert_eq!((batch["position_ids"].shape(), batch["past.0.key"].shape()), (&[4][..], &[3, 2, 0, 8][..]));
}

#[test]
fn token_files_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let none = DataOptions::default();
    let path = tokens(dir.path(), &[1, 2, 3, 60, 4]);
    refused(&path, &language_model(3), &none, &["token 3 is 60", "`input_ids`", "0 to 49"]);
    refused(&path, &language_model(-1), &none, &["leaves the sequence length open", "--window N"]);
    refused(&path, &language_model(9), &none, &["holds 5 tokens, one sample needs 9"]);
    let window = DataOptions { window: Some(4), ..Default::default() };
    refused(&path, &language_model(3), &window, &["--window 4 does not fit", "sequence length is 3"]);
    refused(&path, &classifier(), &none, &["cannot fill input `x`"]);
    let mut sentences = language_model(3);
    sentences.targets[0].slot = slot("labels", DType::I64, &[]);
    refused(&path, &sentences, &none, &["a label for each position", "`labels` int64 [N]"]);
    std::fs::write(&path, [1, 0, 2]).unwrap();
    refused(&path, &language_model(3), &none, &["3 bytes, an odd number"]);
    std::fs::write(&path, []).unwrap();
    refused(&path, &language_model(3), &none, &["holds 0 tokens"]);
}

#[test]
fn the_data_sets_that_are_shipped_open() {
    let data = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join("data").join(name);
    let digits = Wanted { inputs: vec![slot("input", DType::F32, &[1, 8, 8])], ..images([1, 8, 8], 10) };
    for (name, count) in [("digits_train.npz", 1437), ("digits_val.npz", 360)] {
        let set = opened(&data(name), &digits, &DataOptions::default());
        let all: Vec<usize> = (0..set.len()).collect();
        let batch = set.batch(&all, 0).unwrap();
        assert_eq!((set.len(), batch["input"].shape()), (count, &[count, 1, 8, 8][..]));
        let pixels = batch["input"].to_f32();
        assert!(pixels.iter().all(|v| (0.0..=1.0).contains(v)) && pixels.contains(&1.0));
        let labels = batch["labels"].to_i64();
        assert!((0..10).all(|c| labels.iter().filter(|l| **l == c).count() * 12 > count), "{name} lacks a class");
    }
    let text =
        wanted(vec![slot("input_ids", DType::I64, &[-1])], slot("labels", DType::I64, &[-1]), Some(256), "next-token");
    let o = DataOptions { window: Some(64), ..Default::default() };
    let set = opened(&data("coriolanus_train.bin"), &text, &o);
    let start: Vec<u8> = set.batch(&[0], 0).unwrap()["input_ids"].to_i64().iter().map(|t| *t as u8).collect();
    assert!(set.len() == 1250 && start.starts_with(b"First Citizen:\n"));
}
