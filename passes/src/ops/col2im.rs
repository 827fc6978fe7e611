//! `Col2Im`: the sum of overlapping blocks. A transposed convolution has each block's elements as channels; a unit kernel for each
//! channel puts it in its place.

use super::*;

pub(super) const COL2IM: Row = Row {
    name: "Col2Im",
    // [N, channels · block, blocks] to [N, channels, image…].
    infer: |cx| {
        let x = cx.ty(0)?;
        let computed = || TypeError("its image or its block is computed in the graph".into());
        let (image, block) = (cx.ints(1).ok_or_else(computed)?, cx.ints(2).ok_or_else(computed)?);
        cx.require(x.rank() == 3, || format!("{x} is not [batch, channels · block, blocks]"))?;
        let size = block.iter().fold(Dim::from(1), |n, d| &n * &Dim::from(*d));
        let channels = x.shape[1].div_exact(&size).unwrap_or_else(|| unknown_dim("channels"));
        let image = image.into_iter().map(Dim::from);
        let shape: Vec<Dim> = [x.shape[0].clone(), channels].into_iter().chain(image).collect();
        Ok(vec![TensorType::new(x.dtype, shape)])
    },
    derivative: Derivative::Decompose("ConvTranspose by the unit kernels; of known sizes"),
    decompose: image_of,
    samples: || {
        let of = |attrs: Attrs, x: &[i64]| sample(attrs, vec![floats(x), ints(&[5, 5]), ints(&[2, 3])]);
        vec![
            of(Attrs::new(), &[2, 12, 12]),
            of(Attrs::new().with("strides", vec![2, 1]).with("pads", vec![0, 1, 1, 1]), &[1, 6, 15]),
        ]
    },
    ..ROW
};

fn image_of(b: &mut Builder, s: &Source) -> Decomposed {
    let x = s.need(0)?;
    let ty = type_of(b, x)?;
    let (image, block) = (constant(b, s.need(1)?)?, constant(b, s.need(2)?)?);
    let rank = block.len();
    let of = |name: &str, each: i64, count: usize| s.op.attrs.ints(name).map_or(vec![each; count], <[i64]>::to_vec);
    let (strides, dilations, pads) = (of("strides", 1, rank), of("dilations", 1, rank), of("pads", 0, 2 * rank));
    let taps = eval::places::count(&block, MOST_ELEMENTS).and_then(|n| i64::try_from(n).ok());
    let Some(size) = taps else { return Err(unfit(format!("takes no blocks of {block:?}"))) };
    let (channels, places) = (extent(b, x, 1)?, extent(b, x, 2)?);
    let listed = image.len() == rank && strides.len() == rank && dilations.len() == rank && pads.len() == 2 * rank;
    let whole = listed && ty.rank() == 3 && size > 0 && channels % size == 0 && strides.iter().all(|s| *s > 0);
    refuse_if(!whole, unfit(format!("takes no {ty} for blocks of {block:?} in an image of {image:?}")))?;
    let channels = channels / size;
    // Numbers of a damaged file may be of any size.
    let span = |i: usize| {
        let reach = dilations[i].checked_mul(block[i].checked_sub(1)?)?.checked_add(1)?;
        reach.checked_sub(pads[i])?.checked_sub(pads[i + rank]).filter(|span| image[i].checked_sub(*span).is_some())
    };
    let spans: Option<Vec<i64>> = (0..rank).map(span).collect();
    let Some(spans) = spans else {
        return Err(unfit(format!("takes no {ty} for dilations {dilations:?} and pads {pads:?}")));
    };
    let counts: Vec<i64> = (0..rank).map(|i| ((image[i] - spans[i]) / strides[i]).saturating_add(1)).collect();
    let fit = counts.iter().all(|n| *n >= 1) && Some(places) == eval::places::count(&counts, usize::MAX).map(|n| n as i64);
    refuse_if(!fit, unfit(format!("has {places} blocks where its attributes make {counts:?}")))?;
    let rest: Vec<i64> = (0..rank).map(|i| image[i] - spans[i] - strides[i] * (counts[i] - 1)).collect();
    let dims =
        |first: &[Dim], more: &[i64]| first.iter().cloned().chain(more.iter().map(|n| Dim::from(*n))).collect::<Vec<_>>();
    let images = &ty.shape[0] * &Dim::from(channels);
    let flat = b.reshape(x, &[&[-1, size], counts.as_slice()].concat(), &dims(&[images, Dim::from(size)], &counts))?;
    let unit: Vec<f64> = (0..size * size).map(|i| f64::from(u8::from(i / size == i % size))).collect();
    let kernels = b.constant("unit", Tensor::floats(ty.dtype, &[&[size, 1], block.as_slice()].concat(), &unit));
    let attrs = Attrs::new()
        .with("strides", strides)
        .with("dilations", dilations)
        .with("pads", pads)
        .with("output_padding", rest)
        .with("kernel_shape", block);
    let y = b.op_with("ConvTranspose", attrs, &[flat, kernels])?;
    let y = b.reshape(
        y,
        &[&[-1, channels], image.as_slice()].concat(),
        &dims(&ty.shape[..1], &[&[channels], image.as_slice()].concat()),
    )?;
    Ok(vec![y])
}
