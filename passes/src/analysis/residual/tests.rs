//! Small networks, one line an operator: `y = Op x other:shape` (operands with a shape are constants made on the spot).

use super::*;
use crate::analysis::facts::infer_forward;
use crate::analysis::{dot, explain, report};
use crate::ir::{Attrs, DType, Dim, Op, Tensor, TensorType};

fn dims(text: &str) -> Vec<Dim> {
    text.split('x')
        .filter(|t| !t.is_empty())
        .map(|t| t.parse().map_or_else(|_| Dim::symbol(t), |n: i64| Dim::from(n)))
        .collect()
}

fn constant(g: &mut Graph, name: &str, shape: &str) -> ValueId {
    let dims: Vec<i64> = dims(shape).iter().map(|d| d.known().unwrap()).collect();
    let n = dims.iter().product::<i64>() as usize;
    g.add_initializer(name, Tensor::f32s(&dims, &vec![0.5; n]), false)
}

fn operand(g: &mut Graph, word: &str) -> Option<ValueId> {
    if word == "-" {
        return None;
    }
    let (name, shape) = word.split_once(':').unwrap_or((word, ""));
    Some(match g.find(name) {
        Some(v) => v,
        None => constant(g, name, shape),
    })
}

/// Reads the lines `x = input f32 1x4`, `p = param 1x4`, `a, b = Op operands`, `output a b`. A type after `!` is set by hand.
fn net(lines: &str) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert("com.microsoft".into(), 1);
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(names) = line.strip_prefix("output ") {
            for name in names.split(' ') {
                let v = g.find(name).unwrap();
                g.add_output(v, None);
            }
            continue;
        }
        let (line, ty) = line.split_once('!').unwrap_or((line, ""));
        let (results, rest) = line.split_once(" = ").unwrap();
        let words: Vec<&str> = rest.split(' ').filter(|w| !w.is_empty()).collect();
        match words[0] {
            "input" => {
                let dtype = if words[1] == "i64" { DType::I64 } else { DType::F32 };
                g.add_input(results, TensorType::new(dtype, dims(words[2])).into(), None);
            }
            "param" => {
                constant(&mut g, results, words[1]);
            }
            name => {
                let (domain, name) = name.split_once('.').map_or(("", name), |(_, n)| ("com.microsoft", n));
                let mut attrs = Attrs::new();
                let mut operands = Vec::new();
                for w in &words[1..] {
                    match w.split_once('=') {
                        Some((key, list)) => {
                            let ints: Vec<i64> = list.split(',').map(|t| t.parse().unwrap()).collect();
                            attrs = if ints.len() == 1 { attrs.with(key, ints[0]) } else { attrs.with(key, ints) };
                        }
                        None => operands.push(operand(&mut g, w)),
                    }
                }
                let node = g.add_op(&format!("n_{results}"), Op::in_domain(domain, name, attrs), &operands);
                for r in results.split(", ") {
                    let ty = match ty.trim() {
                        "" => ValueType::default(),
                        t => TensorType::new(DType::F32, dims(t)).into(),
                    };
                    g.push_result(node, r, ty);
                }
            }
        }
    }
    infer_forward(&mut g);
    g
}

fn chains(s: &ResidualStructure) -> Vec<usize> {
    s.chains.iter().map(|c| c.joins.len()).collect()
}

fn states<'g>(g: &'g Graph, c: &Chain) -> Vec<&'g str> {
    c.states.iter().map(|v| g.name(*v)).collect()
}

fn reason_for(g: &Graph, s: &ResidualStructure, sum: &str) -> String {
    let node = g.find(sum).unwrap().node;
    let found = s.rejected.iter().find(|r| r.node == node);
    found.map(|r| r.reason.clone()).unwrap_or_else(|| panic!("`{sum}` is not among the rejected"))
}

#[test]
fn the_skip_may_be_either_operand() {
    let g = net("x = input f32 bx4
        a = MatMul x wa:4x4
        h1 = Add a x
        b = MatMul h1 wb:4x4
        r = Relu b
        h2 = Add h1 r
        c = MatMul h2 wc:4x4
        h3 = Add c h2
        y = MatMul h3 wy:4x2
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [3]);
    let c = &s.chains[0];
    assert_eq!(states(&g, c), ["x", "h1", "h2", "h3"]);
    assert_eq!(c.joins.iter().map(|j| j.skip_operand).collect::<Vec<_>>(), [1, 0, 1]);
    assert!(c.joins.iter().all(|j| j.direct && j.kind == JoinKind::Identity && !j.scaled_branch && !j.scaled_skip));
    assert_eq!((c.period, c.signature.as_str(), c.post.name()), (1, "MatMul", "none"));
    assert!(s.rejected.is_empty());
}

#[test]
fn post_activation_with_a_projected_block() {
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x4x1x1
        ar = Relu a
        b = Conv ar wb:4x4x1x1
        s1 = Add b x
        h1 = Relu s1
        c = Conv h1 wc:6x4x1x1
        cr = Relu c
        d = Conv cr wd:6x6x1x1
        p = Conv h1 wp:6x4x1x1
        s2 = Add d p
        h2 = Relu s2
        e = Conv h2 we:6x6x1x1
        er = Relu e
        f = Conv er wf:6x6x1x1
        s3 = Add f h2
        h3 = Relu s3
        y = GlobalAveragePool h3
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![1, 1], 1));
    assert_eq!(states(&g, &s.chains[0]), ["x", "s1"], "no sign that the input came out of an activation");
    assert_eq!(states(&g, &s.chains[1]), ["h2", "h3"], "the projecting block's output is the next chain's first state");
    assert_eq!(s.chains[1].post, Post::Relu);
    assert_eq!(g.name(s.projections[0].state), "h1");
    assert_eq!(s.projections[0].entry, (g.find("p").unwrap().node, 0));
}

#[test]
fn pre_activation_projects_the_normalised_state() {
    let bn = "s:4 t:4 m:4 v:4";
    let g = net(&format!(
        "x = input f32 1x4x8x8
        n = BatchNormalization x {bn}
        r = Relu n
        p = Conv r wp:4x4x1x1
        a = Conv r wa:4x4x1x1
        ar = Relu a
        b = Conv ar wb:4x4x1x1
        h1 = Add b p
        n1 = BatchNormalization h1 {bn}
        r1 = Relu n1
        c = Conv r1 wc:4x4x1x1
        h2 = Add c h1
        y = GlobalAveragePool h2
        output y"
    ));
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![1], 1));
    assert_eq!(g.name(s.projections[0].state), "r");
    assert_eq!(states(&g, &s.chains[0]), ["h1", "h2"]);
    assert_eq!(s.chains[0].post, Post::None);
}

/// Two pre-LN attention blocks with a mask from outside, which is added to both scores, and keys that are outputs.
fn attention() -> Graph {
    let block = |k: usize, x: &str| {
        format!(
            "n{k} = LayerNormalization {x} s:8 t:8
            q{k} = MatMul n{k} wq{k}:8x8
            k{k} = MatMul n{k} wk{k}:8x8
            v{k} = MatMul n{k} wv{k}:8x8
            kt{k} = Transpose k{k} perm=0,2,1
            a{k} = MatMul q{k} kt{k}
            m{k} = Add a{k} mask
            p{k} = Softmax m{k}
            o{k} = MatMul p{k} v{k}
            w{k} = MatMul o{k} wo{k}:8x8
            h{k} = Add {x} w{k}\n"
        )
    };
    net(&format!(
        "x = input f32 2x5x8
        f = input f32 2x5x5
        mask = Mul f c:1
        {}{}l = LayerNormalization h2 s:8 t:8
        output l kt1 kt2 p2",
        block(1, "x"),
        block(2, "h1")
    ))
}

#[test]
fn masks_are_no_skips_and_cached_keys_no_leaks() {
    let g = attention();
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2]);
    assert_eq!(s.chains[0].signature, "MatMul·MatMul·MatMul·Attention·MatMul");
    assert_eq!(states(&g, &s.chains[0]), ["x", "h1", "h2"], "the last normalisation is no part of the state");
    assert!(reason_for(&g, &s, "m1").contains("none of `a1`, `mask` is a state"), "{}", reason_for(&g, &s, "m1"));
    assert!(reason_for(&g, &s, "m2").contains("comes from outside of that branch"), "{}", reason_for(&g, &s, "m2"));
}

#[test]
fn parallel_branches_are_one_join() {
    for (first, second) in [("Add x f", "Add u g"), ("Add f g", "Add u x"), ("Add f x", "Add g u")] {
        let g = net(&format!(
            "x = input f32 2x8
            n = LayerNormalization x s:8 t:8
            f = MatMul n wf:8x8
            g = MatMul n wg:8x8
            u = {first}
            h = {second}
            y = MatMul h wy:8x3
            output y"
        ));
        let s = find_residuals(&g);
        assert_eq!(chains(&s), [1], "{first}, {second}");
        let j = &s.chains[0].joins[0];
        assert_eq!((g.name(j.state), g.name(j.sum), j.direct), ("x", "h", true));
        assert_eq!(g.operand(j.entry.0, j.entry.1), g.find("x"));
        assert_eq!(s.rejected.len(), usize::from(first == "Add f g"));
    }
}

#[test]
fn a_sum_of_three_is_an_add() {
    let g = net("x = input f32 2x8
        f = MatMul x wf:8x8
        g = MatMul x wg:8x8
        h = Sum f x g
        y = MatMul h wy:8x3
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1]);
    assert_eq!(s.chains[0].joins[0].skip_operand, 1);
}

#[test]
fn polynomials_rotations_and_biases_are_no_joins() {
    let g = net("x = input f32 2x3x8
        c = Pow x three:1
        d = Mul c k:1
        gelu = Add x d
        r = Neg gelu
        cx = Mul gelu cos:3x8
        sx = Mul r sin:3x8
        rope = Add cx sx
        m = MatMul rope w:8x8
        bias = Add m b:8
        o = MatMul bias wo:8x8
        output o");
    let s = find_residuals(&g);
    assert!(s.chains.is_empty() && s.projections.is_empty());
    assert!(reason_for(&g, &s, "gelu").contains("without a convolution, product, attention or pooling"));
    assert!(reason_for(&g, &s, "bias").contains("`b` is a constant"));
    assert!(reason_for(&g, &s, "rope").contains("are both computed from `gelu` without"), "{}", reason_for(&g, &s, "rope"));
    assert!(report::inspect_text(&g, &s).starts_with("No residual adds: none of its 3"));
}

#[test]
fn long_skips_nest() {
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x4x1x1
        h1 = Add a x
        b = Conv h1 wb:4x4x1x1
        h2 = Add b h1
        c = Conv h2 wc:4x4x1x1
        y = Add x c
        z = Conv y wz:4x4x1x1
        output z");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2, 1]);
    assert_eq!(states(&g, &s.chains[1]), ["x", "y"]);
}

#[test]
fn gates_are_scales_and_shifts_are_no_skips() {
    let g = net("x = input f32 2x5x8
        t = input f32 2x1x8
        shift = MatMul t wt:8x8
        gate = MatMul t wg:8x8
        n = LayerNormalization x s:8 t:8
        m = Add n shift
        f = MatMul m wf:8x8
        fg = Mul gate f
        h = Add x fg
        k = Mul h alpha:1
        g = MatMul h wy:8x8
        h2 = Add k g
        y = MatMul h2 wy:8x8
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2]);
    let [a, b] = s.chains[0].joins.as_slice() else { panic!() };
    assert!(a.scaled_branch && !a.scaled_skip && !b.scaled_branch && b.scaled_skip && s.chains[0].scaled);
    assert_eq!((b.entry, b.direct), ((g.find("k").unwrap().node, 0), false));
    assert!(reason_for(&g, &s, "m").contains("broadcast"));
}

#[test]
fn squeeze_and_excitation_is_no_scale() {
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x4x1x1
        p = GlobalAveragePool a
        e = Conv p we:4x4x1x1
        z = Sigmoid e
        f = Mul a z
        h = Add f x
        y = Conv h wy:4x4x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.chains[0].scaled), (vec![1], false));
}

#[test]
fn a_skip_gated_by_the_state_is_none() {
    let g = net("x = input f32 2x8
        c = MatMul x wc:8x1
        z = Sigmoid c
        k = Mul x z
        f = MatMul x wf:8x8
        h = Add k f
        y = MatMul h wy:8x8
        output y");
    let s = find_residuals(&g);
    assert!(s.chains.is_empty());
    assert!(reason_for(&g, &s, "h").contains("is multiplied by a function of `x`"), "{}", reason_for(&g, &s, "h"));
}

#[test]
fn parallel_linear_maps_are_no_projection() {
    let g = net("x = input f32 2x8
        w = MatMul x ww:8x8
        a = MatMul x wa:8x2
        b = MatMul a wb:2x8
        lora = Add w b
        r = Relu lora
        c = MatMul r wc:8x8
        d = MatMul r wd:8x8
        two = Add c d
        y = MatMul two wy:8x8
        output y");
    let s = find_residuals(&g);
    assert!(s.projections.is_empty() && s.chains.is_empty());
    for sum in ["lora", "two"] {
        assert!(reason_for(&g, &s, sum).contains("a sum of parallel branches"), "{}", reason_for(&g, &s, sum));
    }
}

#[test]
fn fusion_of_features_is_no_projection() {
    let g = net("c4 = input f32 1x4x8x8
        a = Conv c4 wa:4x4x1x1
        h = Add a c4
        r = Relu h
        b = Conv r wb:6x4x1x1
        top = Conv b wt:4x6x1x1
        low = Conv c4 wl:4x4x1x1
        p = Add low top
        y = Conv p wy:4x4x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![1], 0));
    assert!(reason_for(&g, &s, "p").contains("around whole residual blocks"), "{}", reason_for(&g, &s, "p"));
}

#[test]
fn pooled_and_padded_skips_are_projections() {
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x4x1x1
        r = Relu a
        b = Conv r wb:6x4x1x1
        p = AveragePool x kernel_shape=1,1
        q = Pad p pads:8 ! 1x6x8x8
        h = Add q b
        y = Conv h wy:4x6x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s).len(), s.projections.len()), (0, 1));
    assert_eq!(g.name(s.projections[0].state), "x");
    assert_eq!(s.projections[0].entry, (g.find("p").unwrap().node, 0));
}

#[test]
fn fused_adds_join() {
    let g = net("x = input f32 2x5x8
        a = MatMul x wa:8x8
        h1, u, v, s1 = ms.SkipLayerNormalization x a s:8 t:8 ! 2x5x8
        b = MatMul h1 wb:8x8
        h2 = ms.SkipLayerNormalization b h1 s:8 t:8 ! 2x5x8
        y = MatMul h2 wy:8x8
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "h1", "h2"]);
    assert_eq!(s.chains[0].post, Post::LayerNorm);

    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x4x1x1
        h = ms.FusedConv a wb:4x4x1x1 bb:4 x ! 1x4x8x8
        y = Conv h wy:4x4x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1]);
    assert_eq!((s.chains[0].joins[0].skip_operand, s.chains[0].signature.as_str()), (3, "Conv·Conv"));
}

#[test]
fn a_pre_norm_chain_of_fused_sums() {
    let g = net("x = input f32 2x5x8
        n0 = LayerNormalization x s:8 t:8
        a = MatMul n0 wa:8x8
        n1, u1, v1, s1 = ms.SkipLayerNormalization x a s:8 t:8 ! 2x5x8
        b = MatMul n1 wb:8x8
        n2, u2, v2, s2 = ms.SkipLayerNormalization s1 b s:8 t:8 ! 2x5x8
        y = MatMul n2 wy:8x8
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "s1", "s2"]);
}

#[test]
fn casts_and_quantised_pairs_on_the_skip() {
    let g = net("x = input f32 1x4
        k = Cast x to=1
        a = MatMul x wa:4x4
        h1 = Add a k
        y = MatMul h1 wy:4x4
        output y");
    let s = find_residuals(&g);
    assert_eq!(g.name(s.chains[0].joins[0].state), "x");
    assert_eq!(s.chains[0].joins[0].entry, (g.find("k").unwrap().node, 0));

    let mut g = net("x = input f32 1x4
        q = QuantizeLinear x sc:1 zp:1
        d1 = DequantizeLinear q sc:1 zp:1 ! 1x4
        d2 = DequantizeLinear q sc:1 zp:1 ! 1x4
        a = MatMul d1 wa:4x4 ! 1x4
        h1 = Add a d2 ! 1x4
        y = MatMul h1 wy:4x4
        output y");
    let q = g.find("q").unwrap();
    g.set_type(q, TensorType::fixed(DType::U8, &[1, 4]).into());
    let s = find_residuals(&g);
    assert_eq!(g.name(s.chains[0].joins[0].state), "d2", "a state is a value of the add's own type");
    assert!(s.chains[0].joins[0].direct);
}

#[test]
fn rearrangements_between_blocks_do_not_end_a_chain_but_lasting_ones_do() {
    let g = net("x = input f32 1x4x6
        a = MatMul x wa:6x6
        h1 = Add a x
        t = Transpose h1 perm=0,2,1
        u = Transpose t perm=0,2,1
        b = MatMul u wb:6x6
        h2 = Add u b
        v = Transpose h2 perm=0,2,1
        c = MatMul v wc:4x4
        h3 = Add v c
        y = MatMul h3 wy:4x4
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2, 1]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "u", "h2"]);
    assert_eq!(states(&g, &s.chains[1]), ["v", "h3"]);
}

#[test]
fn latents_are_states_and_shared_biases_are_not() {
    let g = net("x = input f32 1x5x8
        latent = param 1x3x8
        q = MatMul latent wq:8x8
        kt = Transpose x perm=0,2,1
        a = MatMul q kt
        p = Softmax a
        o = MatMul p x
        h1 = Add latent o
        f = MatMul h1 wf:8x8
        h2 = Add h1 f
        y = MatMul h2 wy:8x8
        output y");
    assert_eq!(chains(&find_residuals(&g)), [2]);

    let g = net("x = input f32 1x8
        zeros = param 1x8
        a = MatMul x wa:8x8
        b = Add a zeros
        r = Relu b
        c = MatMul r wc:8x8
        d = Add c zeros
        y = MatMul d wy:8x8
        output y");
    assert!(find_residuals(&g).chains.is_empty());
}

#[test]
fn a_branch_whose_rest_is_used_beside_the_sum() {
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:6x4x1x1
        b = Slice a s0:1 e0:1 ! 1x4x8x8
        c = Slice a s1:1 e1:1 ! 1x2x8x8
        h = Add b x
        k = Concat h c axis=1
        y = Conv k wy:4x6x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "h"]);
}

#[test]
fn keys_and_values_that_a_later_block_reads_again() {
    let g = net("x = input f32 2x5x8
        v1 = MatMul x wv:8x8
        o1 = MatMul v1 wo:8x8
        h1 = Add x o1
        v2 = MatMul h1 wu:8x8
        m = Add v1 v2
        o2 = MatMul m wp:8x8
        h2 = Add h1 o2
        y = MatMul h2 wy:8x8
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2]);
}

#[test]
fn conditioning_enters_a_branch_from_outside() {
    let g = net("x = input f32 1x3x8
        memory = input f32 1x5x8
        mt = Transpose memory perm=0,2,1
        a = MatMul x mt
        p = Softmax a
        o = MatMul p memory
        h1 = Add x o
        a2 = MatMul h1 mt
        p2 = Softmax a2
        o2 = MatMul p2 memory
        h2 = Add o2 h1
        aux = MatMul h1 wx:8x2
        y = MatMul h2 wy:8x2
        output y aux");
    assert_eq!(chains(&find_residuals(&g)), [2]);
}

#[test]
fn integers_are_not_looked_at() {
    let g = net("i = input i64 3
        k = Add i i
        x = Cast k to=1
        y = MatMul x w:3x3
        output y");
    let s = find_residuals(&g);
    assert!(s.chains.is_empty() && s.rejected.is_empty());
    assert!(explain::why(&g, &s, "k").unwrap().contains("adds integers"));
}

#[test]
fn units_repeat_with_a_partial_one_at_the_end() {
    let mut text = String::from("h0 = input f32 1x8\n");
    for k in 0..5 {
        let x = format!("h{k}");
        if k % 2 == 0 {
            text += &format!("a{k} = MatMul {x} wa{k}:8x8\n h{} = Add {x} a{k}\n", k + 1);
        } else {
            text += &format!(
                "a{k} = MatMul {x} wa{k}:8x8\n r{k} = Relu a{k}\n b{k} = MatMul r{k} wb{k}:8x8\n h{} = Add b{k} {x}\n",
                k + 1
            );
        }
    }
    let g = net(&(text + "y = MatMul h5 wy:8x8\n output y"));
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.chains[0].period, s.chains[0].signature.as_str()), (vec![5], 2, "MatMul | MatMul·MatMul"));
    let json = report::inspect_json(&g, &s, "m.onnx");
    assert_eq!((json["residual_adds"].as_u64(), json["chains"][0]["period"].as_u64()), (Some(5), Some(2)));
    assert_eq!(json["chains"][0]["adds"][0], "n_h1");
    let text = explain::why(&g, &s, "h2").unwrap();
    assert!(text.contains("block   2 of 5 in chain 0") && text.contains("is the state h_2 of chain 0"), "{text}");
    assert!(explain::why(&g, &s, "nothing").is_none());
    assert!(dot::draw(&g, &s).contains("c0h0 -> c0h1 [style=bold]"));
}

#[test]
fn a_thousand_blocks_take_linear_time() {
    let deep = |blocks: usize| {
        let mut text = String::from("h0 = input f32 1x2x4\n mask = input f32 1x2x4\n");
        for k in 0..blocks {
            // Each block also adds a mask that all of them share.
            text += &format!(
                "n{k} = LayerNormalization h{k} s:4 t:4\n a{k} = MatMul n{k} w:4x4\n m{k} = Add a{k} mask\n b{k} = MatMul m{k} w:4x4\n h{} = Add h{k} b{k}\n",
                k + 1
            );
        }
        net(&(text + &format!("y = MatMul h{blocks} w:4x4\n output y")))
    };
    let g = deep(1024);
    let begin = std::time::Instant::now();
    let s = find_residuals(&g);
    let took = begin.elapsed();
    assert_eq!(chains(&s), [1024]);
    assert_eq!(s.rejected.len(), 1024);
    assert!(took.as_millis() < 2000, "{took:?}");
}
