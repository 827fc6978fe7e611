//! Joins in their many forms.

use super::*;

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
    assert_eq!((c.period, c.signature.as_str(), c.post.as_str()), (1, "MatMul", "none"));
    assert!(s.rejected.is_empty());
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
    assert_eq!(s.chains[0].post, "none");
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
    assert_eq!(s.chains[0].post, "layernorm");

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

/// A block with a projected skip as quantisation leaves it: the ReLU after the first convolution, and the one after the add,
/// are the zero points' doing.
fn quantised_block(zero: u8) -> Graph {
    let mut g = Graph::default();
    for (name, z) in [("z", zero), ("m", 128)] {
        g.add_initializer(name, Tensor::from_bytes(DType::U8, &[], vec![z]), false);
    }
    let mut pairs: Vec<String> = Vec::new();
    let mut pair = |from: &str, to: &str, zero: &str, shape: &str| {
        pairs.push(format!("q{to} = QuantizeLinear {from} sc:1 {zero}"));
        format!("{to} = DequantizeLinear q{to} sc:1 {zero} ! {shape}")
    };
    let steps = [
        "x = input f32 1x4x8x8".to_string(),
        "a = Conv x wa:8x4x1x1 ! 1x8x8x8".into(),
        pair("a", "ad", "z", "1x8x8x8"),
        "b = Conv ad wb:8x8x1x1 ! 1x8x8x8".into(),
        pair("b", "bd", "m", "1x8x8x8"),
        "p = Conv x wp:8x4x1x1 ! 1x8x8x8".into(),
        pair("p", "pd", "m", "1x8x8x8"),
        "h = Add bd pd ! 1x8x8x8".into(),
        pair("h", "hd", "z", "1x8x8x8"),
        "c = Conv hd wc:8x8x1x1 ! 1x8x8x8".into(),
        pair("c", "cd", "m", "1x8x8x8"),
        "h2 = Add cd hd ! 1x8x8x8".into(),
        pair("h2", "h2d", "z", "1x8x8x8"),
        "y = Conv h2d wy:2x8x1x1".into(),
        "output y".into(),
    ];
    let mut at = pairs.into_iter();
    let lines: Vec<String> = steps
        .into_iter()
        .flat_map(|s| if s.contains("DequantizeLinear") { vec![at.next().unwrap(), s] } else { vec![s] })
        .collect();
    extend(g, &lines.join("\n"))
}

#[test]
fn a_relu_that_quantisation_absorbed() {
    let g = quantised_block(0);
    let s = find_residuals(&g);
    assert_eq!((s.projections.len(), chains(&s)), (1, vec![1]), "{:?}", s.rejected);
    let c = &s.chains[0];
    assert_eq!((states(&g, c), c.post.as_str()), (vec!["hd", "h2d"], "relu"));
}

#[test]
fn quantisation_that_leaves_negative_values_is_no_relu() {
    let g = quantised_block(3);
    let s = find_residuals(&g);
    assert_eq!((s.projections.len(), chains(&s)), (0, vec![1]));
    assert_eq!(s.chains[0].post, "none");
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

/// Two streams with one attention over both, as in a diffusion transformer with text tokens. `last` is what becomes of the
/// second stream's part of the attention.
fn two_streams(last: &str) -> String {
    format!(
        "x = input f32 1x4x8
        c = input f32 1x2x8
        xq = MatMul x wx:8x8
        cq = MatMul c wc:8x8
        j = Concat xq cq axis=1
        jt = Transpose j perm=0,2,1
        sc = MatMul j jt
        p = Softmax sc
        a = MatMul p j
        ax = Slice a s0:1 e0:1 ! 1x4x8
        ac = Slice a s1:1 e1:1 ! 1x2x8
        bx = MatMul ax wo:8x8
        bc = MatMul ac wp:8x8
        x1 = Add x bx
        {last}
        mx = MatMul x1 wm:8x8
        nx = Relu mx
        ox = MatMul nx wn:8x8
        x2 = Add x1 ox
        k = Concat x2 c1 axis=1
        y = MatMul k wy:8x3
        output y"
    )
}

#[test]
fn streams_that_share_an_attention() {
    let g = net(&two_streams("c1 = Add c bc"));
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2, 1], "{:?}", s.rejected);
    assert_eq!(states(&g, &s.chains[0]), ["x", "x1", "x2"]);
    assert_eq!(states(&g, &s.chains[1]), ["c", "c1"]);
}

#[test]
fn streams_that_are_fused_before_they_are_added() {
    // Each branch is added to the other one's projection before its own skip.
    let g = net("x = input f32 1x4x8
        c = input f32 1x4x8
        f = MatMul x wf:8x8
        h = MatMul c wh:8x8
        fh = MatMul f u:8x8
        hf = MatMul h v:8x8
        fx = Add f hf
        hx = Add h fh
        x1 = Add x fx
        c1 = Add c hx
        k = Concat x1 c1 axis=1
        y = MatMul k wy:8x3
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1, 1], "{:?}", s.rejected);
    assert_eq!([states(&g, &s.chains[0]), states(&g, &s.chains[1])], [["x", "x1"], ["c", "c1"]]);
}

#[test]
fn a_query_that_is_added_to_what_it_attends_to() {
    let g = net("x = input f32 1x4x8
        n = LayerNormalization x g:8 b:8
        s = MatMul n ws:8x6
        q = MatMul n wq:8x6
        k = MatMul n wk:8x6
        kt = Transpose k perm=0,2,1
        sc = MatMul q kt
        p = Softmax sc
        a = MatMul p k
        r = Add a q
        o = MatMul r wo:6x6
        h = Add s o
        y = MatMul h wy:6x2
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![1], 1), "{:?}", s.rejected);
    assert_eq!(g.name(s.projections[0].state), "n");
}

#[test]
fn the_last_state_has_the_chain_s_form() {
    // The last normalisation is left in another arrangement, for the head reads that one.
    let g = net("x = input f32 1x4x6
        a = Conv x wa:4x4x1
        h1 = Add a x
        t1 = Transpose h1 perm=0,2,1
        n1 = LayerNormalization t1 g:4 b:4
        u1 = Transpose n1 perm=0,2,1
        c = Conv u1 wc:4x4x1
        h2 = Add c u1
        t2 = Transpose h2 perm=0,2,1
        n2 = LayerNormalization t2 g:4 b:4
        y = MatMul n2 wy:4x3
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [2], "{:?}", s.rejected);
    assert_eq!(states(&g, &s.chains[0]), ["x", "u1", "h2"]);
}

#[test]
fn a_fused_convolution_adds_a_projected_skip_on_either_side() {
    let block = |last: &str| {
        format!(
            "x = input f32 1x4x8x8
            a = ms.FusedConv x wa:8x4x1x1 ba:8 activation=Relu
            {last}
            e = ms.FusedConv d we:8x8x1x1 be:8 activation=Relu
            h = ms.FusedConv e wf:8x8x1x1 bf:8 d activation=Relu
            y = GlobalAveragePool h
            output y"
        )
    };
    for last in [
        "p = Conv x wp:8x4x1x1\n d = ms.FusedConv a wb:8x8x1x1 bb:8 p activation=Relu",
        "b = Conv a wb:8x8x1x1\n d = ms.FusedConv x wp:8x4x1x1 bp:8 b activation=Relu",
    ] {
        let g = net(&block(last));
        let s = find_residuals(&g);
        assert_eq!((chains(&s), s.projections.len(), s.rejected.len()), (vec![1], 1, 0), "{last}");
        assert_eq!((g.name(s.projections[0].state), g.name(s.projections[0].sum)), ("x", "d"));
        assert_eq!((states(&g, &s.chains[0]), s.chains[0].post.as_str()), (vec!["d", "h"], "relu"));
    }
}

#[test]
fn a_skip_by_pooling_and_channel_padding_needs_no_activation_in_the_branch() {
    // BlazeFace: a separable convolution without an activation of its own.
    let g = net("x = input f32 1x4x8x8
        a = Conv x wa:4x1x2x2 group=4 strides=2,2
        b = Conv a wb:8x4x1x1
        p = MaxPool x kernel_shape=2,2 strides=2,2
        q = Pad p amounts:8 ! 1x8x4x4
        u = Add b q
        d = Relu u
        e = Conv d we:8x1x1x1 group=8
        f = Conv e wf:12x8x1x1
        r = Pad d more:8 ! 1x12x4x4
        v = Add r f
        y = GlobalAveragePool v
        output y");
    let s = find_residuals(&g);
    let from: Vec<&str> = s.projections.iter().map(|j| g.name(j.state)).collect();
    assert_eq!((from, s.chains.len()), (vec!["x", "d"], 0));
}

#[test]
fn blocked_channels_have_the_structure_of_plain_ones() {
    let g = net("x = input f32 1x16x8x8
        c = nchwc.ReorderInput x channels_last=0
        a = nchwc.Conv c wa:16x16x1x1 ba:16 activation=Relu
        h = nchwc.Conv a wb:16x16x1x1 bb:16 c activation=Relu
        d = nchwc.Conv h wd:32x16x1x1 bd:32 activation=Relu strides=2,2
        p = nchwc.Conv h wp:32x16x1x1 bp:32 strides=2,2
        e = nchwc.Conv d we:32x32x1x1 be:32 p activation=Relu
        n = nchwc.ReorderOutput e channels=32 channels_last=1
        m = nchwc.ReorderInput n channels_last=1
        f = nchwc.Conv m wf:32x32x1x1 bf:32 activation=Relu
        k = nchwc.Conv f wg:32x32x1x1 bg:32 e activation=Relu
        y = nchwc.ReorderOutput k channels=32 channels_last=0
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len(), s.rejected.len()), (vec![1, 1], 1, 0));
    assert_eq!(s.chains[0].ty.to_string(), "f32[1,16,8,8]");
    assert_eq!((states(&g, &s.chains[1]), s.chains[1].signature.as_str()), (vec!["e", "k"], "Conv·Conv"));
}
