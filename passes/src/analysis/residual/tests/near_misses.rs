//! Adds that look like joins and are none, with the reason given; and a few that must not be mistaken for those.

use super::*;

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
fn a_direct_term_inside_a_branch_is_no_skip() {
    let g = net("x = input f32 1x3x8
        u = MatMul x wu:8x8
        c = MatMul u wc:8x8
        d = Mul u dd:8
        ssm = Add c d
        o = MatMul ssm wo:8x8
        h = Add x o
        y = MatMul h wy:8x8
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1]);
    assert!(reason_for(&g, &s, "ssm").contains("a term of that branch"), "{}", reason_for(&g, &s, "ssm"));
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
fn a_stream_that_ends_in_no_skip_of_its_own() {
    let g = net("x = input f32 1x4x8
        c = input f32 1x2x8
        xq = MatMul x wx:8x8
        cq = MatMul c wc:8x8
        j = Concat xq cq axis=1
        r = Relu j
        ax = Slice r s0:1 e0:1 ! 1x4x8
        ac = Slice r s1:1 e1:1 ! 1x2x8
        x1 = Add x ax
        bc = MatMul ac wp:8x8
        d = MatMul c wd:8x8
        c1 = Add d bc
        k = Concat x1 c1 axis=1
        y = MatMul k wy:8x3
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![], 0));
    let why = &s.rejected.iter().find(|r| g.name(g.result(r.node, 0)) == "x1").unwrap().reason;
    assert!(why.contains("used past this add"), "{why}");
}

#[test]
fn a_projection_around_a_block_at_another_resolution() {
    let g = net("x = input f32 1x4x8x8
        l = Conv x wl:6x4x1x1
        d = Conv x wd:6x4x2x2 strides=2,2
        a = Conv d wa:6x6x1x1
        ar = Relu a
        h = Add ar d
        p = Conv h wp:6x6x1x1
        up = Resize p - s:4 ! 1x6x8x8
        z = Add l up
        y = Conv z wy:2x6x1x1
        output y");
    let s = find_residuals(&g);
    assert_eq!((chains(&s), s.projections.len()), (vec![1], 0), "a pyramid of features");
}
