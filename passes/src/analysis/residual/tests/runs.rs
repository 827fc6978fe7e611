//! Chains: states, what follows the adds, periods, time.

use super::*;

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
    assert_eq!(s.chains[1].post, "relu");
    assert_eq!(g.name(s.projections[0].state), "h1");
    assert_eq!(s.projections[0].entry, (g.find("p").unwrap().node, 0));
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
fn windows_of_another_kind_start_a_chain() {
    // 16 places as 4 windows of 4 neighbours, then as 4 grids of 4 places apart: one shape, other elements.
    let g = net("x = input f32 1x16x6
        w = Reshape x sw:4 ! 1x4x4x6
        a = MatMul w wa:6x6
        h1 = Add a w
        v = Reshape h1 sv:5 ! 1x2x2x4x6
        vt = Transpose v perm=0,2,1,3,4 ! 1x2x2x4x6
        vw = Reshape vt sw:4 ! 1x4x4x6
        b = MatMul vw wb:6x6
        h2 = Add b vw
        m = Reshape h2 sm:3 ! 1x16x6
        n = Reshape m sw:4 ! 1x4x4x6
        c = MatMul n wc:6x6
        h3 = Add n c
        t = Transpose h3 perm=0,3,1,2 ! 1x6x4x4
        r = Reshape t sr:3 ! 1x6x16
        s = Reshape r sr:4 ! 1x6x2x8
        u = Transpose s perm=0,2,3,1 ! 1x2x8x6
        q = Reshape u sw:4 ! 1x4x4x6
        d = MatMul q wd:6x6
        h4 = Add q d
        y = MatMul h4 wy:6x6
        output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1, 3]);
    assert_eq!(states(&g, &s.chains[1]), ["vw", "n", "q", "h4"]);
}

/// Blocks that add over [1, 2, 8, 6] and over [1, 16, 6] in turn; the last one may be followed by the first form.
fn alternating(end: &str) -> Graph {
    let block = |k: usize, x: &str| {
        format!(
            "a{k} = MatMul {x} wa{k}:6x6
            u{k} = Add {x} a{k}
            t{k} = Reshape u{k} st:3 ! 1x16x6
            b{k} = MatMul t{k} wb{k}:6x6
            v{k} = Add t{k} b{k}\n"
        )
    };
    net(&format!(
        "x = input f32 1x2x8x6
        {}h1 = Reshape v1 sh:4 ! 1x2x8x6
        {}{end}",
        block(1, "x"),
        block(2, "h1")
    ))
}

#[test]
fn a_form_that_lasts_for_one_add_is_seen_through() {
    let g = alternating("h2 = Reshape v2 sh:4 ! 1x2x8x6\n y = MatMul h2 wy:6x6\n output y");
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [4]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "u1", "h1", "u2", "h2"]);
    let second = &s.chains[0].joins[1];
    assert_eq!((g.name(second.state), second.entry, second.direct), ("u1", (g.find("t1").unwrap().node, 0), false));
    assert_eq!(s.chains[0].ty, TensorType::fixed(DType::F32, &[1, 2, 8, 6]).into());

    // The last sum never takes the first form again.
    let g = alternating("y = MatMul v2 wy:6x6\n output y");
    assert_eq!(chains(&find_residuals(&g)), [1, 1, 1, 1]);
}

#[test]
fn a_convolution_between_blocks_over_tokens_is_seen_through() {
    let tokens = |k: usize, x: &str| {
        format!("a{k} = MatMul {x} wa{k}:6x6\n u{k} = Add {x} a{k}\n b{k} = MatMul u{k} wb{k}:6x6\n v{k} = Add u{k} b{k}\n")
    };
    let convolved = |k: usize, x: &str| {
        format!(
            "t{k} = Transpose {x} perm=0,2,1
            m{k} = Reshape t{k} sm:4 ! 1x6x4x4
            c{k} = Conv m{k} wc{k}:6x6x1x1
            p{k} = Add c{k} m{k}
            f{k} = Reshape p{k} sf:3 ! 1x6x16
            h{k} = Transpose f{k} perm=0,2,1\n"
        )
    };
    let end = "y = MatMul v2 wy:6x6\n output y";
    let g = net(&format!("x = input f32 1x16x6\n {}{}{}{end}", tokens(1, "x"), convolved(1, "v1"), tokens(2, "h1")));
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [5]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "u1", "v1", "h1", "u2", "v2"]);

    // Also as the first block of the run.
    let g = net(&format!("x = input f32 1x16x6\n {}{}{end}", convolved(1, "x"), tokens(2, "h1")));
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [3]);
    assert_eq!(states(&g, &s.chains[0]), ["x", "h1", "u2", "v2"]);
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
fn mixing_tokens_and_mixing_channels_are_two_kinds_of_block() {
    // An MLP-Mixer: the same two products in every branch, every other time over the transposed state.
    let mut text = String::from("h0 = input f32 1x6x4\n");
    for k in 0..6 {
        let (x, y) = (format!("h{k}"), format!("h{}", k + 1));
        let mlp = |from: &str, d: usize| {
            format!("a{k} = MatMul {from} v{k}:{d}x8\n r{k} = Relu a{k}\n b{k} = MatMul r{k} w{k}:8x{d}\n")
        };
        text += &if k % 2 == 0 {
            format!(
                "s{k} = Transpose {x} perm=0,2,1\n {} t{k} = Transpose b{k} perm=0,2,1\n {y} = Add {x} t{k}\n",
                mlp(&format!("s{k}"), 6)
            )
        } else {
            format!("{} {y} = Add {x} b{k}\n", mlp(&x, 4))
        };
    }
    let s = find_residuals(&net(&(text + "y = MatMul h6 wy:4x4\n output y")));
    let chain = &s.chains[0];
    assert_eq!((chains(&s), chain.period, chain.signature.as_str()), (vec![6], 2, "MatMulᵀ·MatMul | MatMul·MatMul"));
}

/// How time grows with depth is measured by `benches/pipeline.rs`, `residuals`.
#[test]
fn a_thousand_blocks_that_share_a_mask_are_one_chain() {
    let blocks = 1024;
    let mut text = String::from("h0 = input f32 1x2x4\n mask = input f32 1x2x4\n");
    for k in 0..blocks {
        text += &format!(
            "n{k} = LayerNormalization h{k} s:4 t:4\n a{k} = MatMul n{k} w:4x4\n m{k} = Add a{k} mask\n b{k} = MatMul m{k} w:4x4\n h{} = Add h{k} b{k}\n",
            k + 1
        );
    }
    let s = find_residuals(&net(&(text + &format!("y = MatMul h{blocks} w:4x4\n output y"))));
    assert_eq!((chains(&s), s.rejected.len()), (vec![blocks], blocks));
}

#[test]
fn groups_with_a_skip_around_each_are_one_chain_and_their_blocks_another() {
    // Residual in residual: three groups of two blocks, and a skip around all of them; with and without scales of the branches.
    for scaled in [false, true] {
        let mut text = String::from("h0 = input f32 1x4x8x8\n");
        let sum = |branch: &str, skip: &str, to: &str| match scaled {
            true => format!("{to}.s = Mul {branch} fifth:\n {to} = Add {to}.s {skip}\n"),
            false => format!("{to} = Add {branch} {skip}\n"),
        };
        for group in 0..3 {
            text += &format!("b{group}.0 = Identity h{group}\n");
            for k in 0..2 {
                let (from, to) = (format!("b{group}.{k}"), format!("b{group}.{}", k + 1));
                text += &format!("{to}.f = Conv {from} v{group}{k}:4x4x1x1\n {to}.r = Relu {to}.f\n");
                text += &sum(&format!("{to}.r"), &from, &to);
            }
            text += &format!("g{group} = Conv b{group}.2 w{group}:4x4x1x1\n");
            text += &sum(&format!("g{group}"), &format!("h{group}"), &format!("h{}", group + 1));
        }
        let g = net(&(text + "t = Conv h3 wt:4x4x1x1\n u = Add t h0\n y = Conv u wy:4x4x1x1\n output y"));
        let s = find_residuals(&g);
        assert_eq!((chains(&s), s.chains[1].scaled), (vec![2, 3, 2, 2, 1], scaled));
        assert_eq!(states(&g, &s.chains[1]), ["h0", "h1", "h2", "h3"]);
        let inside: Vec<Option<&str>> = s.chains.iter().map(|c| c.joins[0].inside.map(|n| g.name(g.result(n, 0)))).collect();
        assert_eq!(inside, [Some("h1"), Some("u"), Some("h2"), Some("h3"), None]);
        let json = report::inspect_json(&g, &s, "m.onnx");
        assert_eq!((&json["chains"][0]["inside"], &json["chains"][4]["inside"]), (&"n_h1".into(), &().into()));
        assert!(report::inspect_text(&g, &s).contains("\n2      block 2 of chain 1, n_h2\n"));
    }
}

#[test]
fn a_virtual_node_and_the_nodes_of_its_graph_are_two_streams() {
    // The virtual node begins with what is computed of an input, or with a learned constant.
    for constant in [false, true] {
        let mut text = String::from(
            "pool = input f32 2x9\n spread = Transpose pool perm=1,0\n x = input f32 9x4\n v = input f32 2x4\n h0 = MatMul x wx:4x4\n",
        );
        if !constant {
            text += "v0 = MatMul v wv:4x4\n";
        }
        for k in 0..4 {
            let v = if constant && k == 0 { "v0:2x4".into() } else { format!("v{k}") };
            text += &format!(
                "s{k} = MatMul spread {v}\n m{k} = Add h{k} s{k}\n a{k} = MatMul m{k} a:4x4\n b{k} = Relu a{k}\n h{next} = Add b{k} m{k}\n
                p{k} = MatMul pool m{k}\n t{k} = Add p{k} {v}\n c{k} = MatMul t{k} c:4x4\n d{k} = Relu c{k}\n v{next} = Add {v} d{k}\n",
                next = k + 1
            );
        }
        let end = "s4 = MatMul spread v4\n m4 = Add h4 s4\n f = MatMul m4 wf:4x4\n r = Relu f\n g = Add r m4\n y = MatMul pool g\n output y";
        let g = net(&(text + end));
        let s = find_residuals(&g);
        assert_eq!(chains(&s), [5, 4]);
        assert_eq!(states(&g, &s.chains[0]), ["m0", "m1", "m2", "m3", "m4", "g"]);
        assert_eq!(states(&g, &s.chains[1]), ["v0", "v1", "v2", "v3", "v4"]);
        assert!(s.chains.iter().all(|c| c.joins[0].inside.is_none()));
    }
}

#[test]
fn a_bias_that_two_layers_share_begins_no_stream() {
    let text = "x = input f32 2x4\n p0 = Add x b:2x4\n f = MatMul p0 w:4x4\n r = Relu f\n h = Add r b:2x4\n
        g = MatMul h w:4x4\n i = MatMul g v:4x4\n s = Relu i\n y = Add s h\n z = MatMul y u:4x4\n output z";
    let g = net(text);
    let s = find_residuals(&g);
    assert_eq!(chains(&s), [1]);
    assert_eq!(states(&g, &s.chains[0])[0], "h");
}
