//! The statement of each operator's axes. A name means the same in every operator set unless its line says otherwise.

use super::super::*;
use crate::ops::listed::Reduction;
use std::fmt::Write;

/// Operators whose statement does not depend on attributes or shapes.
#[rustfmt::skip]
const FIXED: &[(&str, &str)] = &[
    ("RandomNormalLike RandomUniformLike Bernoulli", "x.. -> x.."),
    ("DeformConv", "n c ~h.., =o _ k.., n _ ~h.., o, n _ ~h.. -> n o ~h.."),
    ("AveragePool LpPool", "n c ~h.. -> n c ~h.."),
    // The places of maxima are counted over the whole operand.
    ("MaxPool", "n c ~h.. -> n c ~h.., _ _ _h.."),
    ("GlobalAveragePool GlobalMaxPool GlobalLpPool", "n c h.. -> n c _h.."),
    ("DepthToSpace SpaceToDepth", "n c h.. -> n _ _h.."),
    ("InstanceNormalization", "n c =h.., c, c -> n c h.."),
    ("GroupNormalization", "n =c =h.., c, c -> n c h.."),
    ("MatMulNBits", "x.. _, _.., _.., _.., _.., _ -> x.. _"),
    ("LRN", "n =c h.. -> n c h.."),
    ("SkipLayerNormalization SkipSimplifiedLayerNormalization", "^x.. =d, ^x.. =d, d, d, d -> x.. d, x.. _, x.. _, x.. d"),
    ("EmbedLayerNormalization", "n =s, n s, _.., _.., _.., _.., _.., n s, n s -> n s _, n, n s _"),
    ("Trilu", "x.. =r =c -> x.. r c"),
    ("GridSample", "n c _.., n h.. _ -> n c h.."),
    ("RoiAlign", "_ c _ _, r _, r -> r c _ _"),
    ("MultiHeadAttention", "n _.., n _.., n _.., _, n _.., ^n _ _ _, n _.., n _.. -> n _ _, n _ _ _"),
    ("GroupQueryAttention", "n _.., n _.., n _.., n _.., n _.., n _.. -> n _ _, n _ _ _"),
];

/// The statement of an operator; `None` if it has none, or what it depends on is unknown.
pub(super) fn of(cx: &Infer, opset: i64, ranks: &[Option<usize>], result: Option<&[Dim]>) -> Option<String> {
    let name = cx.op.name.as_str();
    if let Some((_, fixed)) = FIXED.iter().find(|(names, _)| names.split(' ').any(|n| n == name)) {
        return Some(fixed.to_string());
    }
    let rank = ranks.first().copied().flatten();
    if let Some(stated) =
        rank.and_then(|r| moved(cx, r, ranks, result).or_else(|| computed(cx, opset, r)).or_else(|| mixed(cx, r, ranks)))
    {
        return stated.ok();
    }
    let repeated = |token: &str, n: usize| vec![token; n].join(", ");
    match Class::of(cx.op) {
        Class::Carry => Some("x.. -> x..".into()),
        class if class.is_elementwise() => Some(format!("{} -> x..", repeated("^x..", ranks.len()))),
        Class::Route if name == "Route" => {
            let sources = ranks.len().checked_sub(ROUTE_SOURCES)?;
            Some(format!("{}, {} -> x..", repeated("_..", ROUTE_SOURCES), repeated("^x..", sources)))
        }
        _ => None,
    }
}

type Stated = Option<Result<String, TypeError>>;

/// Numbered axes with the marks that `say` gives; `None` leaves an axis out.
fn row(rank: usize, say: impl Fn(usize) -> Option<&'static str>) -> String {
    let mut row = String::new();
    for axis in 0..rank {
        match say(axis) {
            Some("_") => row.push_str("_ "),
            Some(mark) => drop(write!(row, "{mark}a{axis} ")),
            None => {}
        }
    }
    row
}

/// All axes of a value, numbered.
fn all(rank: usize) -> String {
    row(rank, |_| Some(""))
}

/// All axes of a value, some of them read as a whole.
fn marked(rank: usize, whole: impl Fn(usize) -> bool) -> String {
    row(rank, |a| Some(if whole(a) { "=" } else { "" }))
}

/// A result with the operand's axes, some of which are read as a whole.
fn keeps(rank: usize, whole: impl Fn(usize) -> bool) -> String {
    format!("{0} -> {0}", marked(rank, whole))
}

/// A result without some of the operand's axes, or with others in their place.
fn lacks(rank: usize, gone: impl Fn(usize) -> bool, replaced: bool) -> String {
    format!("{} -> {}", all(rank), row(rank, |a| if gone(a) { replaced.then_some("_") } else { Some("") }))
}

/// Axes of a result: some new, the others the operand's in their order.
fn among(rank: usize, is_new: impl Fn(usize) -> bool) -> String {
    let mut old = 0..;
    (0..rank).map(|a| if is_new(a) { "_ ".into() } else { format!("a{} ", old.next().unwrap_or(0)) }).collect()
}

/// Operators that move elements.
fn moved(cx: &Infer, r: usize, ranks: &[Option<usize>], result: Option<&[Dim]>) -> Stated {
    let shape = |i: usize| cx.ty(i).map(|ty| &ty.shape);
    let axes_in =
        |rank: usize, list: Vec<i64>| list.into_iter().map(move |a| if a < 0 { a + rank as i64 } else { a } as usize);
    let statement = || -> Result<Option<String>, TypeError> {
        Ok(Some(match cx.op.name.as_str() {
            "Transpose" => {
                let perm = transpose::permutation(cx.attrs(), r)
                    .ok_or_else(|| TypeError("its `perm` is no permutation of its axes".into()))?;
                format!("{} -> {}", all(r), perm.iter().map(|a| format!("a{a} ")).collect::<String>())
            }
            "Squeeze" => {
                let listed = cx.listed("axes", 1)?.filter(|list| !list.is_empty());
                let listed: Option<Vec<usize>> = listed.map(|list| axes_in(r, list).collect());
                let ones = shape(0)?;
                lacks(r, |a| listed.as_ref().map_or_else(|| ones[a].is_one(), |l| l.contains(&a)), false)
            }
            "Unsqueeze" => {
                let made = cx.listed("axes", 1)?.unwrap_or_default();
                let rank = r + made.len();
                let made: Vec<usize> = axes_in(rank, made).collect();
                format!("{} -> {}", all(r), among(rank, |a| made.contains(&a)))
            }
            name @ ("Reshape" | "Flatten" | "Expand" | "Resize" | "Upsample") => {
                let (from, inferred) =
                    (shape(0)?, result.is_none().then(|| rule(cx.op).map(|rule| rule.infer(cx))).flatten());
                let inferred = inferred.transpose()?.and_then(|types| Some(types.into_iter().next()?.shape));
                let to = result.or(inferred.as_deref()).ok_or_else(|| TypeError("its result is unknown".into()))?;
                let missing = to.len() - from.len().min(to.len());
                let stays = |a: usize| a.checked_sub(missing).filter(|b| from.get(*b) == Some(&to[a]));
                let came = if matches!(name, "Reshape" | "Flatten") {
                    unmoved(from, to)
                } else {
                    (0..to.len()).map(stays).collect()
                };
                format!(
                    "{} -> {}",
                    all(r),
                    came.iter().map(|a| a.map_or("_ ".into(), |a| format!("a{a} "))).collect::<String>()
                )
            }
            "Tile" => {
                let repeats = cx.ints(1).unwrap_or_default();
                keeps(r, |a| repeats.get(a) != Some(&1))
            }
            "Concat" => {
                let axis = cx.axis()?;
                let x = row(r, |a| Some(if a == axis { "_" } else { "" }));
                format!("{} -> {x}", vec![x.as_str(); ranks.len()].join(", "))
            }
            "Split" => {
                let axis = cx.axis()?;
                lacks(r, |a| a == axis, true)
            }
            "Slice" => {
                let cut = cut(cx)?;
                keeps(r, |a| cut.contains(&a))
            }
            "Pad" => {
                let pads = cx.listed("pads", 1)?.unwrap_or_default();
                let axes =
                    cx.listed("axes", 3)?.map_or_else(|| (0..r).collect(), |list| axes_in(r, list).collect::<Vec<_>>());
                let none = |i: usize| pads.get(i) == Some(&0) && pads.get(i + axes.len()) == Some(&0);
                keeps(r, |a| axes.iter().position(|b| *b == a).is_some_and(|i| !none(i)))
            }
            "Gather" => {
                let axis = cx.axis()?;
                let to = (0..r).map(|a| if a == axis { "i.. ".into() } else { format!("a{a} ") });
                format!("{}, i.. -> {}", all(r), to.collect::<String>())
            }
            "GatherElements" => {
                let (axis, x, i) = (cx.axis()?, shape(0)?, shape(1)?);
                let same = |a: usize| x.get(a) == i.get(a);
                let data = row(r, |a| {
                    Some(if a == axis {
                        "_"
                    } else if same(a) {
                        ""
                    } else {
                        "="
                    })
                });
                format!("{data}, {0} -> {0}", marked(r, |a| a != axis && !same(a)))
            }
            "ScatterElements" => {
                let (axis, x, i) = (cx.axis()?, shape(0)?, shape(1)?);
                let data = marked(r, |a| a == axis || x.get(a) != i.get(a));
                format!("{data}, {0}, {0} -> {data}", data.replace(&format!("=a{axis} "), "u "))
            }
            name @ ("GatherND" | "ScatterND") => {
                let m =
                    shape(1)?.last().and_then(Dim::known).ok_or_else(|| TypeError("its coordinates are unknown".into()))?;
                let b = usize::try_from(cx.op.int("batch_dims")).unwrap_or(0).min(r);
                let part = row(r, |a| (a >= b + m.clamp(0, r as i64) as usize).then_some(""));
                let shared = all(b);
                match name {
                    "GatherND" => format!("{}, {shared} i.. _ -> {shared} i.. {part}", all(r)),
                    _ => format!("{0}, i.. _, i.. {part} -> {0}", marked(r, |a| a < m as usize)),
                }
            }
            "OneHot" => {
                let axis = cx.op.int("axis");
                format!("{} -> {}", all(r), among(r + 1, |a| a as i64 == if axis < 0 { axis + r as i64 + 1 } else { axis }))
            }
            "Col2Im" => {
                format!("n _ _ -> n _ {}", "_ ".repeat(shape(1)?.first().and_then(Dim::known).unwrap_or(0) as usize))
            }
            _ => return Ok(None),
        }))
    };
    statement().transpose()
}

/// Operators that compute along axes.
fn computed(cx: &Infer, opset: i64, r: usize) -> Stated {
    let keep = cx.op.int("keepdims") != 0;
    let counted =
        |axis: Option<i64>| axis.and_then(|a| cx.ty(0).ok()?.axis(a)).ok_or_else(|| TypeError("its axis is unknown".into()));
    let statement = || -> Result<Option<String>, TypeError> {
        Ok(Some(match cx.op.name.as_str() {
            "QuantizeLinear" | "DequantizeLinear" | "FakeQuantize" => {
                // A scale of the operand's rank belongs to blocks along the axis.
                let axis = cx.attrs().int("axis").unwrap_or(1);
                let (axis, scale) = (counted(Some(axis)).unwrap_or(0), cx.ty(1)?.rank());
                let x = marked(r, |a| a == axis && scale > 1);
                let scale = match scale {
                    0 => String::new(),
                    1 => format!("^a{axis}"),
                    _ => row(r, |a| Some(if a == axis { "_" } else { "" })),
                };
                format!("{x}, {scale}, {scale} -> {x}")
            }
            // Before opset 13 all axes from `axis` on count as one.
            "Softmax" | "LogSoftmax" | "Hardmax" if opset < 13 => {
                let axis = counted(Some(cx.op.int_at("axis", opset)))?;
                keeps(r, |a| a >= axis)
            }
            "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" => {
                let axis = cx.axis()?;
                keeps(r, |a| a == axis)
            }
            "CumSum" | "CumProd" => {
                let axis = counted(cx.listed("axis", 1)?.and_then(|list| list.first().copied()))?;
                keeps(r, |a| a == axis)
            }
            "DFT" => {
                let given = if opset >= 20 && (cx.present)(2) { cx.ints(2) } else { None };
                let default =
                    if opset < 20 { Some(cx.op.int_at("axis", opset)) } else { Some(-2).filter(|_| !(cx.present)(2)) };
                let axis = counted(given.and_then(|list| list.first().copied()).or(default))?;
                keeps(r, |a| a == axis || a + 1 == r)
            }
            "MeanVarianceNormalization" => {
                let axes = cx.attrs().ints("axes").unwrap_or(&[0, 2, 3]);
                keeps(r, |a| axes.contains(&(a as i64)))
            }
            "TopK" => {
                let axis = cx.axis()?;
                lacks(r, |a| a == axis, true)
            }
            "ArgMax" | "ArgMin" => {
                let axis = cx.axis()?;
                lacks(r, |a| a == axis, keep)
            }
            name if name.starts_with("Reduce") => {
                let axes = Reduction::of(cx)?.axes;
                lacks(r, |a| axes.contains(&a), keep)
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                let axis = cx.axis()?;
                let statistics = row(r, |a| Some(if a < axis { "" } else { "_" }));
                format!("{0}, ^{0}, ^{0} -> {0}, {statistics}, {statistics}", marked(r, |a| a >= axis))
            }
            "BatchNormalization" => match cx.op.int("training_mode") {
                0 => "n c h.., c, c, c, c -> n c h..".into(),
                _ => "=n c =h.., c, c, c, c -> n c h.., c, c".into(),
            },
            _ => return Ok(None),
        }))
    };
    statement().transpose()
}

/// Operators that combine elements by weights or by attention.
fn mixed(cx: &Infer, r: usize, ranks: &[Option<usize>]) -> Stated {
    let op = cx.op;
    let is = |name: &str| op.int(name) != 0;
    let rank = |i: usize| ranks.get(i).copied().flatten();
    // A group's number decides which channels it reads, so channels are not free.
    let group = op.int("group") != 1;
    let (standard, x) = (op.domain != "com.microsoft", if r == 4 { "n _ _ _" } else { "n _ _" });
    Some(Ok(match op.name.as_str() {
        "Conv" | "FusedConv" if group => "n g ~h.., =o c k.., o, n o ~h.. -> n o ~h..".into(),
        "Conv" | "FusedConv" => "n c ~h.., o c k.., o, n o ~h.. -> n o ~h..".into(),
        "ConvInteger" => format!("n c ~h.., {} k.. -> n o ~h..", if group { "=o g" } else { "o c" }),
        "QLinearConv" => {
            let weight = if group { "=o g" } else { "o c" };
            format!("n c ~h.., _.., _.., {weight} k.., ^o, ^o, _.., _.., o -> n o ~h..")
        }
        "ConvTranspose" if group => "n g ~h.., c _ k.., =o -> n o ~h..".into(),
        "ConvTranspose" => "n c ~h.., c o k.., o -> n o ~h..".into(),
        "MatMul" | "FusedMatMul" => matrices(op, r, rank(1)?),
        "Gemm" | "FusedGemm" => {
            let (a, b) = (if is("transA") { "k m" } else { "m k" }, if is("transB") { "n k" } else { "k n" });
            format!("{a}, {b}, ^m n -> m n")
        }
        "Einsum" => {
            let (_, terms) = einsum::subscripts(cx).ok()?;
            let once = |term: &[char]| (0..term.len()).all(|i| !term[..i].contains(&term[i]));
            if !terms.operands.iter().chain([&terms.result]).all(|term| once(term)) {
                return None;
            }
            let spaced = |term: &Vec<char>| term.iter().flat_map(|c| [*c, ' ']).collect::<String>();
            // An ellipsis broadcasts.
            let mark = if op.str("equation").contains("...") { "^" } else { "" };
            let operands: Vec<String> = terms.operands.iter().map(|term| format!("{mark}{}", spaced(term))).collect();
            format!("{} -> {}", operands.join(", "), spaced(&terms.result))
        }
        "LSTM" | "GRU" | "RNN" => match is("layout") {
            false => "=s n _, =d _ _, =d _ _, =d _, n, d n _, d n _, d _ -> s d n _, d n _".into(),
            true => "n =s _, =d _ _, =d _ _, =d _, n, n d _, n d _, d _ -> n s d _, n d _".into(),
        },
        "Attention" if standard => format!("{x}, {x}, {x}, ^n _ _ _, n _.., n _.., n -> {x}, n _ _ _"),
        "Attention" => {
            let mask = if rank(3) == Some(4) { "^n _ _ _" } else { "n _.." };
            format!("n _ k, k =w, w, {mask}, _ n _ _ _, ^n _ _ _ -> n _ w, _ n _ _ _")
        }
        "RotaryEmbedding" => {
            let x = if r == 4 { "n h =s =d" } else { "n =s =d" };
            let table = if (cx.present)(3) { "_ _" } else { "n s _" };
            match standard {
                true => format!("{x}, {table}, {table}, n s -> {x}"),
                false => format!("{x}, {}, _ _, _ _ -> {x}", if rank(1) == Some(2) { "n s" } else { "_" }),
            }
        }
        _ => return None,
    }))
}

/// A product of matrices over the last two axes; a vector is a row on the left, a column on the right. The operator has moved the
/// first axis to the second last place (`transBatch…`) and then swapped the last two (`trans…`).
fn matrices(op: &Op, ra: usize, rb: usize) -> String {
    let is = |name: &str| op.int(name) != 0;
    // The batch axes are numbered if an operand has its rows in front of them.
    let numbered = (is("transBatchA") || is("transBatchB")).then(|| all(ra.max(rb).max(2) - 2));
    let matrix = |rank: usize, last: [&str; 2], in_front: bool, flip: bool| {
        let [rows, columns] = if flip { [last[1], last[0]] } else { last };
        match &numbered {
            _ if rank == 1 => "k".into(),
            Some(batch) if in_front => format!("{rows} {batch} {columns}"),
            Some(batch) => format!("{batch} {rows} {columns}"),
            None => format!("^b.. {rows} {columns}"),
        }
    };
    let a = matrix(ra, ["m", "k"], is("transBatchA"), is("transA"));
    let b = matrix(rb, ["k", "n"], is("transBatchB"), is("transB"));
    let [m, n] = [(ra, "m"), (rb, "n")].map(|(rank, axis)| if rank == 1 { "" } else { axis });
    format!("{a}, {b} -> {} {m} {n}", numbered.as_deref().unwrap_or("b.."))
}

/// The axes that a `Slice` does not take as a whole.
fn cut(cx: &Infer) -> Result<Vec<usize>, TypeError> {
    let ty = cx.ty(0)?;
    let list = |name: &str, i: usize| cx.listed(name, i).ok().flatten().unwrap_or_default();
    let (starts, ends, steps) = (list("starts", 1), list("ends", 2), cx.listed("steps", 4));
    let axes = cx.listed("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    cx.require(!axes.is_empty(), || "its axes are unknown".into())?;
    let whole = |i: usize, axis: usize| {
        let extent = ty.shape[axis].known().unwrap_or(i64::from(i32::MAX));
        let by_one = steps.as_ref().is_ok_and(|s| s.as_ref().is_none_or(|s| s.get(i) == Some(&1)));
        by_one && starts.get(i) == Some(&0) && ends.get(i).is_some_and(|e| *e >= extent)
    };
    let axes = axes.iter().enumerate().filter_map(|(i, a)| ty.axis(*a).map(|axis| (i, axis)));
    Ok(axes.filter(|(i, axis)| !whole(*i, *axis)).map(|(_, axis)| axis).collect())
}

/// For each axis of a reshaped value, the operand's axis of the same extent with as many elements before it.
fn unmoved(from: &[Dim], to: &[Dim]) -> Vec<Option<usize>> {
    let ahead = |s: &[Dim]| product(s);
    let mut next = 0;
    let mut came = |a: usize| {
        let same = (next..from.len()).find(|b| from[*b] == to[a] && ahead(&from[..*b]) == ahead(&to[..a]))?;
        next = same + 1;
        Some(same)
    };
    (0..to.len()).map(&mut came).collect()
}
