//! Every pass as the pipelines list it: its promise, its place, and how it is called.

#![allow(missing_docs)] // Each says what it does and why it stands where it does, as a value.

use super::Contract::{Changes, EqualAtOneHot, EverySample, Exact, Extends, Rounding};
use super::gradient::append_cotangents;
use super::outputs::{declare_gradients, declare_outputs, describe, record};
use super::training::Qat;
use super::{Choice, Pass, PassError, glob, split};
use crate::analysis::residual::{branch_nodes, find_residuals};
use crate::contract::StepForm;
use crate::ir::{DType, ValueId};
use crate::ops::build::Builder;
use crate::placement;
use crate::refusal::Applied;
use crate::transform::Gradients;
use crate::transform::adapters::AdapterError;
use crate::transform::fix_inputs::fix_inputs;
use crate::transform::in_place::mark_in_place;
use crate::transform::loss::{LossError, Losses, append_losses};
use crate::transform::loss_scale::LossScale;
use crate::transform::narrow::Precision;
use crate::transform::optimizer::{Trained, append_optimizer};
use crate::transform::rebatch::{self, Current};
use crate::transform::{
    adapters, align_scalars, barrier, block_convolutions, control_flow, differentiate_past, dropout, eliminate,
    fake_quantize, fold, legalize, lower_abstract, lower_attention, lower_routes, master, narrow, recompute, route,
    separate, tie, train_batch_norm, widen,
};

pub const ROUTE_SKIPS: Pass = Pass::new(
    "route-skips",
    EqualAtOneHot,
    "puts routes in the place of skips (reassign), of all that blocks read (input), or beside the blocks (augment); first, because it reads the source's own structure",
    |g, cx| {
        let mut applied = cx.count();
        if cx.adapters.is_some() && cx.branches.is_none() {
            cx.branches = Some(branch_nodes(g, &find_residuals(g)));
        }
        let mut chains = cx.chains.take().unwrap_or_else(|| find_residuals(g).chains);
        chains.retain(|c| c.joins.len() < 2 || applied.allows(&format!("chain {}", c.id)));
        cx.routed = route::route_skips(g, &chains, &cx.route)?;
        Ok(Applied { changed: g.routers.len(), ..applied })
    },
);

pub const ADD_ADAPTERS: Pass = Pass::new(
    "add-adapters",
    Exact,
    "adds low-rank adapters, whose second factor starts at zero; after routing, which reads the source's own structure, and in all \
     graphs, because `freeze` merges them in the forward graph",
    |g, cx| {
        let Some(o) = &cx.adapters else { return Ok(Applied::default()) };
        let branches = cx.branches.take().unwrap_or_else(|| branch_nodes(g, &find_residuals(g)));
        adapters::add_adapters(g, o, &branches, glob).map_err(|e| match e {
            AdapterError::Build(e) => PassError::Build(e),
            e => PassError::Unfit { hint: e.hint(), what: e.to_string() },
        })
    },
);

pub const FIX_INPUTS: Pass = Pass::new(
    "fix-inputs",
    Changes,
    "gives inputs and extents the values that were asked for; first, because they decide control flow and lengths",
    |g, cx| fix_inputs(g, &cx.training.fixed).map(Applied::of).map_err(PassError::unfit),
);

pub const INLINE_CONTROL_FLOW: Pass = Pass::new(
    "inline-control-flow",
    Exact,
    "takes the branch of an If that is decided, and writes out a Loop or Scan of known length; early, because no other pass \
     sees into their bodies, and not in the forward graph, which keeps the source's nodes",
    |g, cx| {
        let mut applied = cx.count();
        control_flow::inline_control_flow(g, &mut applied);
        Ok(applied)
    },
);

pub const SEPARATE_PARAMETERS: Pass = Pass::new(
    "separate-parameters",
    Exact,
    "gives parameters that an exporter merged an initializer each; before anything rewrites the nodes that name them, \
     because `freeze` finds the names again on the forward graph",
    |g, cx| {
        let names = separate::separate_parameters(g);
        let applied = Applied::of(names.len());
        cx.aliases.extend(names);
        Ok(applied)
    },
);

pub const REBATCH: Pass = Pass::new(
    "rebatch",
    EverySample,
    "rebuilds a graph with a batch in its shapes for another one; while the nodes are still the source's, so that it can be \
     planned on that",
    |g, cx| {
        let Some(to) = cx.training.batch else { return Ok(Applied::default()) };
        let Current::Fixed(before) = rebatch::current(g)? else { return Ok(Applied::default()) };
        // Exports of one sample tell nothing of the batches to come.
        g.assumed_batch = Some(before).filter(|n| *n > 1);
        Ok(Applied::of(rebatch::plan(g, before)?.apply(g, to)?.edits))
    },
);

pub const TIE_PARAMETERS: Pass = Pass::new(
    "tie-parameters",
    Exact,
    "makes one parameter of a matrix and its transpose that an exporter stored beside it; before parameters are chosen",
    |g, cx| {
        let ties = tie::tie_parameters(g)?;
        let applied = Applied::of(ties.len());
        cx.aliases.extend(ties.into_iter().map(|t| (t.name, t.transposed)));
        Ok(applied)
    },
);

pub const FLOAT_WEIGHTS: Pass = Pass::new(
    "float-weights",
    Rounding,
    "makes float32 of weights that are stored as integers, quantised where they are read; before legalisation, while the nodes \
     are those by which `freeze` finds what the integers stand for",
    |g, cx| {
        if cx.training.qat == Qat::Off {
            // Adapters' gradients pass through products of integers, whose weights stay as they are stored.
            let passed = cx.training.trainable.adapters_only;
            return if passed { Ok(Applied::of(fake_quantize::write_products_out(g)?)) } else { Ok(Applied::default()) };
        }
        cx.quantised.weights = fake_quantize::float_weights(g, cx.training.qat.trains_scales())?;
        Ok(Applied::of(cx.quantised.weights.len()))
    },
);

pub const FAKE_QUANTIZE: Pass = Pass::new(
    "fake-quantize",
    Exact,
    "makes one operator with a gradient of what quantises and dequantises again; after legalisation, which writes operators \
     on integers out, and before parameters are chosen",
    |g, cx| {
        let mut applied = cx.count();
        if cx.training.qat != Qat::Off || cx.training.trainable.adapters_only {
            fake_quantize::pair_quantisers(g, &mut applied)?;
            cx.quantised.values = fake_quantize::count(g);
        }
        Ok(applied)
    },
);

pub const LEGALIZE: Pass = Pass::new(
    "legalize",
    Rounding,
    "brings the source's operators to opset 18 and fused ones to plain ones, so that every pullback sees one form",
    |g, cx| {
        // Initializers that legalisation adds are constants of formulas, which do not train. The names are those of values: the node of
        // a separated parameter has another name.
        let values = g.nodes().map(|n| g.result(n, 0)).filter(|v| g.contains(*v) && g.initializer(*v).is_some());
        cx.own = values.map(|v| g.name(v).to_string()).collect();
        let mut applied = cx.count();
        let opset = cx.training.opset.unwrap_or_default().max(legalize::TARGET);
        legalize::decompose_contrib(g, &mut applied);
        legalize::to_opset(g, opset, &mut applied)?;
        Ok(applied)
    },
);

pub const CHOOSE_PARAMETERS: Pass = Pass::new(
    "choose-parameters",
    Exact,
    "makes state of the initializers that train, so that nothing takes them for constants; after legalisation, because a \
     tensor's role shows in plain operators, and before folding",
    |g, cx| {
        super::choose::choose(g, cx)?;
        cx.chosen.iter().for_each(|(v, _)| g.set_overridable(*v, true));
        Ok(Applied::of(cx.chosen.len()))
    },
);

pub const MASTER_COPIES: Pass = Pass::new(
    "master-copies",
    Exact,
    "makes half-precision parameters float32 state, cast where they are read; before folding, which would fold the casts",
    |g, cx| {
        let mut halves: Vec<ValueId> = cx.chosen.iter().map(|(v, _)| *v).collect();
        if matches!(cx.choice, Choice::Training) && !cx.training.freezes_statistics() {
            halves.extend(master::stored_statistics(g));
        }
        cx.masters = master::master_copies(g, &halves)?;
        Ok(Applied::of(cx.masters))
    },
);

pub const FOLD_CONSTANTS: Pass = Pass::new(
    "fold-constants",
    Exact,
    "folds shape arithmetic, so that pullbacks see constant axes and shapes; not in the forward graph, which keeps the \
     source's nodes",
    |g, cx| {
        let mut applied = cx.count();
        fold::fold_where(g, |g, id| applied.allows(&g.site(id)));
        Ok(applied)
    },
);

pub const ACTIVATE_DROPOUT: Pass = Pass::new(
    "activate-dropout",
    Changes,
    "replaces the source's dropouts by masks of the step; before differentiation, which needs no pullback for them then",
    |g, cx| {
        cx.dropouts = dropout::activate_dropout(g, cx.training.seed)?;
        Ok(Applied::of(cx.dropouts.len()))
    },
);

pub const TRAIN_BATCH_NORM: Pass = Pass::new(
    "train-batch-norm",
    Changes,
    "puts batch normalisation into training mode; before differentiation, which needs its own pullback",
    |g, cx| {
        if !cx.training.freezes_statistics() {
            (cx.statistics, cx.still) = train_batch_norm::train_batch_norm(g, cx.training.bn_momentum)?;
        }
        Ok(Applied::of(cx.statistics.len()))
    },
);

pub const APPEND_LOSS: Pass = Pass::new("append-loss", Extends, "adds the target inputs and the loss", |g, cx| {
    let o = &cx.training;
    let wanted = o.losses().map(|l| Ok((o.output_of(g, l)?, l))).collect::<Result<Vec<_>, LossError>>()?;
    let Losses { value, terms, constant } = append_losses(g, &wanted, cx.teacher.as_ref())?;
    let several = terms.len() > 1;
    cx.losses = terms.iter().zip(&wanted).map(|(loss, (_, o))| (record(g, loss, o, several), loss.value)).collect();
    cx.loss = Some(value);
    cx.constant = constant;
    Ok(Applied::of(cx.losses.len()))
});

pub const APPEND_COTANGENTS: Pass = Pass::new(
    "append-cotangents",
    Extends,
    "adds the scalar whose gradient is wanted: outputs times their cotangents, summed",
    |g, cx| {
        let of = append_cotangents(g, &cx.cotangents)?;
        cx.loss = of.or(cx.loss);
        Ok(Applied::of(cx.cotangents.len()))
    },
);

pub const DIFFERENTIATE: Pass = Pass::new(
    "differentiate",
    Extends,
    "adds the gradients; while routes are still one operator each, so that their pullback is one too",
    |g, cx| {
        if cx.chosen.is_empty() {
            super::choose::choose(g, cx)?;
        }
        let wrt: Vec<ValueId> = cx.chosen.iter().map(|(v, _)| *v).collect();
        let mut loss = cx.loss(g)?;
        if let Some(scale) = &cx.loss_scale {
            loss = scale.scaled(g, loss)?;
        }
        cx.cotangents_of = differentiate_past(g, cx.training.target, loss, &wrt, &cx.constant)?;
        let gradients: Gradients = wrt.iter().filter_map(|v| Some((*v, *cx.cotangents_of.get(v)?))).collect();
        for &(v, kind) in &cx.chosen {
            match gradients.get(&v) {
                Some(ct) => cx.trained.push(Trained { value: v, gradient: *ct, kind }),
                // Of what was asked for by name nothing is left out.
                None if matches!(cx.choice, Choice::Named(_)) && !gradients.is_empty() => {
                    let gradient = Builder::new(g, "grad/zero").zeros_like(v)?;
                    cx.trained.push(Trained { value: v, gradient, kind });
                }
                None => {
                    cx.frozen.push((g.name(v).to_string(), "the loss does not depend on it".into()));
                    g.set_overridable(v, false);
                }
            }
        }
        if let Some(scale) = &cx.loss_scale {
            let mut gradients: Vec<ValueId> = cx.trained.iter().map(|t| t.gradient).collect();
            scale.unscaled(g, &mut gradients)?;
            cx.trained.iter_mut().zip(gradients).for_each(|(t, gradient)| t.gradient = gradient);
        }
        if cx.trained.is_empty() {
            let named = matches!(cx.choice, Choice::Named(_));
            let why = match barrier(g, &wrt, cx.loss(g)?) {
                Some(site) if named => format!("between them stands {site}, which has no derivative"),
                None if named => "the outputs depend on none of what was named".into(),
                Some(site) => format!("between what trains and the loss stands {site}, which has no derivative"),
                None => "the loss depends on none of the trainable tensors".into(),
            };
            let what = if named { "every gradient is zero" } else { "nothing would train" };
            return Err(PassError::unfit(format!("{what}: {why}")));
        }
        cx.trainable = cx.trained.iter().map(|t| g.name(t.value).to_string()).collect();
        Ok(Applied::of(cx.trained.len()))
    },
);

pub const NARROW_PRODUCTS: Pass = Pass::new(
    "narrow-products",
    Changes,
    "lets products and convolutions compute in float16 or bfloat16; before differentiation, so that their gradients do too",
    |g, cx| {
        let Some(dtype) = cx.training.precision.narrow() else { return Ok(Applied::default()) };
        if cx.chosen.is_empty() {
            super::choose::choose(g, cx)?;
        }
        let trained: Vec<ValueId> = cx.chosen.iter().map(|(v, _)| *v).collect();
        let made = narrow::narrow_products(g, dtype, &trained);
        if dtype == DType::F16 {
            cx.loss_scale = Some(LossScale::add(g));
        }
        let applied = Applied::of(made.products);
        cx.narrowed = Some(made);
        Ok(applied)
    },
);

pub const RECOMPUTE: Pass = Pass::new(
    "recompute",
    Exact,
    "lets the backward pass compute the inside of blocks again; before the optimizer, whose updates wait for the last reader of a \
     weight",
    |g, cx| {
        let Some(o) = &cx.training.recompute else { return Ok(Applied::default()) };
        let made = recompute::recompute(g, cx.loss(g)?, &cx.cotangents_of, o)?;
        let applied = Applied::of(made.nodes);
        cx.recomputed = Some(made);
        Ok(applied)
    },
);

pub const APPEND_OPTIMIZER: Pass =
    Pass::new("append-optimizer", Extends, "adds the update of every trained tensor", |g, cx| {
        let o = &cx.training.optimizer;
        for (i, group) in o.groups.iter().enumerate() {
            if !cx.trainable.iter().any(|name| o.group_of(name) == Some(i)) {
                let what = format!(
                    "no trained tensor is of the group `{}`: it matches none, or earlier groups have them",
                    group.pattern
                );
                return Err(PassError::unfit(what));
            }
        }
        if cx.training.step == StepForm::Split {
            split::part_gradients(g, &mut cx.trained);
        }
        let scale = cx.loss_scale.as_ref();
        cx.update = Some(append_optimizer(g, cx.loss(g)?, &cx.trained, &cx.training.optimizer, scale, cx.training.target)?);
        Ok(Applied::of(cx.trained.len()))
    });

pub const DECLARE_OUTPUTS: Pass = Pass::new(
    "declare-outputs",
    Extends,
    "declares loss, state and gradients outputs; before lowering, which replaces nodes and so invalidates the values held \
     so far",
    |g, cx| {
        declare_outputs(g, cx)?;
        Ok(Applied::of(g.outputs().len()))
    },
);

pub const DECLARE_GRADIENTS: Pass = Pass::new(
    "declare-gradients",
    Extends,
    "declares gradients outputs beside those of the source; before lowering, as declare-outputs",
    |g, cx| {
        declare_gradients(g, cx);
        // What was differentiated stays what it was: a constant of the model, an input.
        cx.trained.iter().for_each(|t| g.set_overridable(t.value, false));
        Ok(Applied::of(cx.trained.len()))
    },
);

pub const LOWER_ATTENTION: Pass = Pass::new(
    "lower-attention",
    Rounding,
    "replaces routes whose weights depend on the states by plain operators; before differentiation, because each of these has its \
     derivative, and after folding, which leaves the queries alone",
    |g, cx| Ok(Applied::of(lower_attention::lower_attention(g, cx.training.target)?)),
);

pub const LOWER_ROUTES: Pass = Pass::new(
    "lower-routes",
    Rounding,
    "replaces the router's operators by plain ones; late, because the lowering is chosen for the whole router",
    |g, cx| {
        lower_routes::lower_routes(g, cx.training.target, None)?;
        Ok(Applied::default())
    },
);

pub const LOWER_ABSTRACT: Pass = Pass::new(
    "lower-abstract",
    Rounding,
    "replaces training-mode batch normalisation and the gradients of convolutions' weights by plain operators; late, because \
     the target chooses among formulations",
    |g, cx| {
        lower_abstract::lower_abstract(g, cx.training.target)?;
        Ok(Applied::default())
    },
);

pub const ELIMINATE_DEAD: Pass = Pass::new("eliminate-dead", Exact, "removes what nobody reads", |g, cx| {
    Ok(Applied::of(eliminate::eliminate_dead(g, |_, id| cx.keep.contains(&id))))
});

pub const ALIGN_SCALARS: Pass = Pass::new(
    "align-scalars",
    Exact,
    "gives numbers that meet tensors with trailing axes of extent 1 as many axes, for kernels that are slow otherwise; late, \
     because lowering and the optimizer write most of them",
    |g, _| Ok(Applied::of(align_scalars::align_scalars(g)?)),
);

pub const BLOCK_CONVOLUTIONS: Pass = Pass::new(
    "block-convolutions",
    Rounding,
    "lets convolutions compute on channels in blocks, ONNX Runtime's own layout, where the target has it; late, because gradients \
     are convolutions too",
    |g, cx| Ok(Applied::of(block_convolutions::block_convolutions(g, cx.training.target)?)),
);

pub const CONVERT_OPSET: Pass = Pass::new(
    "convert-opset",
    Rounding,
    "brings the forward graph to the operator set that was asked for; last, because lowering builds in the source's",
    |g, cx| {
        if let Some(to) = cx.opset {
            legalize::convert(g, to)?;
        }
        Ok(Applied::default())
    },
);

pub const MARK_IN_PLACE: Pass = Pass::new(
    "mark-in-place",
    Exact,
    "says which states a loop may overwrite; when the nodes that read them are those that will run",
    |g, cx| {
        mark_in_place(g, &mut cx.states);
        Ok(Applied::of(cx.states.iter().filter(|s| s.in_place).count()))
    },
);

pub const DESCRIBE: Pass = Pass::new("describe", Exact, "writes metadata: state, loss, optimizer", |g, cx| {
    describe(g, cx);
    Ok(Applied::default())
});

pub const WIDEN: Pass = Pass::new(
    "widen",
    Rounding,
    "lets bfloat16 operators that the target has no kernels for compute in float32; last, because kernels are asked for by \
     the operators that are emitted",
    |g, cx| {
        let mut applied = cx.count();
        let emulated = cx.training.precision == Precision::Brain && cx.training.target.name != "cuda";
        if emulated {
            let products = widen::everywhere(g);
            widen::compute_in_float32(g, &products);
        }
        let mut gaps = placement::bfloat16_gaps(g);
        gaps.retain(|n| applied.allows(&g.site(*n)));
        cx.widened = widen::compute_in_float32(g, &gaps);
        Ok(Applied { changed: cx.widened, ..applied })
    },
);
