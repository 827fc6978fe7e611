//! Layer normalisations into which ONNX Runtime has fused the sum before them: of a skip, or of embeddings.

use super::attention::positions;
use super::rms_normalization::root_mean_square;
use super::*;

/// Operands: x, skip, scale, bias of the norm, bias of the sum. Results: the normalised sum, its mean, inverse deviation, the sum.
pub(super) const LAYER: Row = Row {
    domain: MICROSOFT,
    name: "SkipLayerNormalization",
    infer: skipped,
    derivative: Derivative::Decompose("Add, LayerNormalization"),
    decompose: |b, s| {
        let sum = skip_sum(b, s, 4)?;
        let y = layer_norm(b, sum, s.need(2)?, s.get(3), s.op.float("epsilon"))?;
        Ok(vec![y, sum, sum, sum])
    },
    samples: || {
        let operands = || vec![floats(&[2, 3, 4]), floats(&[2, 3, 4]), floats(&[4]), floats(&[4])];
        let biased = [operands(), vec![floats(&[4])]].concat();
        vec![plain(operands()), plain(biased)]
    },
    ..ROW
};

/// Operands: x, skip, scale, bias of the sum.
pub(super) const SIMPLIFIED: Row = Row {
    name: "SkipSimplifiedLayerNormalization",
    derivative: Derivative::Decompose("Add, ReduceMean, Sqrt, Div, Mul"),
    decompose: |b, s| {
        let sum = skip_sum(b, s, 3)?;
        let y = root_mean_square(b, sum, s.need(2)?, -1, s.op.float("epsilon"), 1)?;
        Ok(vec![y, sum, sum, sum])
    },
    samples: || vec![plain(vec![floats(&[2, 3, 4]), floats(&[2, 3, 4]), floats(&[4])])],
    ..LAYER
};

/// Operands: ids, segments, words, positions, segment table, scale, bias, mask, position ids. Results: the normalised
/// embedding, the number of unmasked tokens, the sum before normalisation.
pub(super) const EMBED: Row = Row {
    name: "EmbedLayerNormalization",
    infer: |cx| {
        let (ids, words) = (cx.ty(0)?, cx.ty(2)?);
        cx.require(ids.rank() == 2 && words.rank() == 2, || {
            format!("ids are {ids} and their table is {words}; both need rank 2")
        })?;
        let shape = vec![ids.shape[0].clone(), ids.shape[1].clone(), words.shape[1].clone()];
        let y = TensorType::new(words.dtype, shape);
        Ok(vec![y.clone(), TensorType::new(ids.dtype, vec![ids.shape[0].clone()]), y])
    },
    derivative: Derivative::Decompose("Gather, Add, LayerNormalization"),
    decompose: |b, s| {
        let rows =
            |b: &mut Builder, table: ValueId, at: ValueId| b.op_with("Gather", Attrs::new().with("axis", 0), &[table, at]);
        let ids = s.need(0)?;
        let words = rows(b, s.need(2)?, ids)?;
        let at = match s.get(8) {
            Some(at) => at,
            None => positions(b, ids, 1)?,
        };
        let places = rows(b, s.need(3)?, at)?;
        let mut sum = b.add(words, places)?;
        if let (Some(segments), Some(table)) = (s.get(1), s.get(4)) {
            let kinds = rows(b, table, segments)?;
            sum = b.add(sum, kinds)?;
        }
        let counts = match s.get(7) {
            _ if !s.reads(1) => sum,
            Some(mask) => b.reduce_sum(mask, &[1], false)?,
            None => return Err(Why::Feature("the number of tokens without a mask")),
        };
        let y = layer_norm(b, sum, s.need(5)?, s.get(6), s.op.float("epsilon"))?;
        Ok(vec![y, counts, sum])
    },
    samples: || {
        let ids = |n: i64| SampleOperand::Ints32 { dims: vec![2, 3], values: (0..6).map(|i| i % n).collect() };
        // The runtime needs to know the tables' extents, so they are constants.
        let table = |dims: &[i64]| {
            let values = (0..dims.iter().product::<i64>()).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
            SampleOperand::FloatConstant { dims: dims.to_vec(), values }
        };
        let tables = vec![table(&[6, 4]), table(&[3, 4]), table(&[2, 4]), table(&[4]), table(&[4])];
        vec![plain([vec![ids(6), ids(2)], tables, vec![ids(2)]].concat()).results(2)]
    },
    ..LAYER
};

/// The standard operator in the runtime's operator set, which has no kernel for it.
pub(super) const PLAIN: Row = Row {
    name: "LayerNormalization",
    infer: |cx| super::layer_normalization::LAYER_NORMALIZATION.infer(cx),
    derivative: Derivative::Decompose("the standard operator"),
    decompose: |b, s| {
        s.first_results_only(1, "the statistics it reports")?;
        let axis = s.op.int("axis");
        refuse_if(axis != -1, Why::Attribute { attribute: "axis", value: axis.to_string() })?;
        one(layer_norm(b, s.need(0)?, s.need(1)?, s.get(2), s.op.float("epsilon")))
    },
    samples: Vec::new,
    ..LAYER
};

/// Normalised sum, mean, inverse deviation, sum.
fn skipped(cx: &Infer) -> Types {
    let x = cx.ty(0)?;
    let mut statistics = TensorType::new(DType::F32, x.shape.clone());
    if let Some(last) = statistics.shape.last_mut() {
        *last = Dim::from(1);
    }
    Ok(vec![x.clone(), statistics.clone(), statistics, x.clone()])
}

/// x + skip + operand `bias`, if given. The statistics of the sum have no plain form.
fn skip_sum(b: &mut Builder, s: &Source, bias: usize) -> Result<ValueId, Why> {
    refuse_if(s.reads(1) || s.reads(2), Why::Feature("the statistics it reports"))?;
    let sum = b.add(s.need(0)?, s.need(1)?)?;
    Ok(s.get(bias).map_or(Ok(sum), |bias| b.add(sum, bias))?)
}

/// Layer normalisation over the last axis.
fn layer_norm(b: &mut Builder, x: ValueId, scale: ValueId, bias: Option<ValueId>, epsilon: f32) -> Built {
    let attrs = Attrs::new().with("axis", -1).with("epsilon", epsilon);
    let y = b.node(Op::new("LayerNormalization", attrs), &[Some(x), Some(scale), bias])?[0];
    b.graph.drop_results(y.node, 1);
    Ok(y)
}
