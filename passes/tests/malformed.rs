//! Operators with attributes and operands that fit nothing: an error that says what is wrong, never a panic and never memory
//! that an extent of the file's decides.

#![allow(clippy::unwrap_used)]

use ancre_passes::text::parse;
use ancre_passes::transform::fold::fold_constants;

const CONSTANTS: &str = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[2] pair = {1, 2}, \
     int64[1] least = {-9223372036854775808}, int64[1] most = {9223372036854775807}, int64[2] free = {-1, -1}, \
     int64[2] negative = {-2, 8}, int64 first = {-9223372036854775807}, int64 last = {9223372036854775807}, int64 each = {1}, \
     int64[4] pads = {9223372036854775807, 0, 9223372036854775807, 0}, int64[1, 2] at = {0, 1}, float[1, 1, 2, 2] w = {0, …}";

fn text(body: &str) -> String {
    format!("g (float[4, 4] x, float[1, 1, 4, 4] image) => (y) <{CONSTANTS}> {{ {body} }}")
}

#[test]
fn what_fits_nothing_is_refused() {
    for (body, says) in [
        ("y = Transpose <perm = [0, 0]> (x)", "permutes other axes"),
        ("y = Transpose <perm = [0, 2]> (x)", "permutes other axes"),
        ("y = Transpose <perm = [0]> (x)", "permutes other axes"),
        ("y = Slice (x, zero, two, zero, zero)", "a step is 0"),
        ("y = Slice (x, pair, two)", "differ in number"),
        ("y = Slice (x, zero, two, pair)", "do not fit the axes"),
        ("y = Slice (x, zero, two, zero, pair)", "differ in number"),
        ("y = Split <num_outputs = 9223372036854775807> (x)", "too many"),
        ("y = MaxPool <kernel_shape = [9223372036854775807, 2]> (image)", "must lie in"),
        ("y = MaxPool <kernel_shape = [2, 2], strides = [0, 1]> (image)", "must lie in"),
        ("y = MaxPool <kernel_shape = [2, 2], pads = [9223372036854775807, 0, 1, 0]> (image)", "pads"),
        ("y = ConvTranspose <output_shape = [8]> (image, w)", "`output_shape` has 1 entries where 2 are needed"),
        ("y = Reshape (x, free)", "is no shape"),
        ("y = Reshape (x, negative)", "is no shape"),
        ("y = GatherND <batch_dims = 9223372036854775807> (x, at)", "do not fit"),
        ("y = GatherND <batch_dims = 1> (x, at)", "do not fit"),
        ("y = DepthToSpace <blocksize = 0> (image)", "`blocksize` is 0"),
        ("y = SpaceToDepth <blocksize = -1> (image)", "`blocksize` is -1"),
        ("y = Range (first, last, each)", "too many"),
    ] {
        let e = parse(&text(body)).map(|_| ()).expect_err(body).to_string();
        assert!(e.contains(says), "{body}: {e}");
    }
}

#[test]
fn extremes_that_an_engine_takes_are_no_panic() {
    for body in [
        "y = Slice (x, most, least, zero, least)",
        "y = Slice (x, least, most, zero, most)",
        "y = Pad (x, pads)",
        "y = Split <num_outputs = 9> (x)",
    ] {
        parse(&text(body)).unwrap_or_else(|e| panic!("{body}: {e}"));
    }
}

#[test]
fn folding_takes_constants_without_elements() {
    for body in [
        "a = Constant <value = int64[0] {}> () y = ConstantOfShape (a)",
        "a = Constant <value = int64[0] {}> () y = Range (a, each, each)",
        "y = ConstantOfShape <value = float[0] {}> (pair)",
        "y = Where (pair, one, zero)",
    ] {
        if let Ok(mut g) = parse(&text(body)) {
            fold_constants(&mut g);
        }
    }
}
