//! Terms: the values of both graphs in canonical form. Equal terms are equal values.

use super::ProofOptions;
use super::constant::{ConstId, Constants};
use crate::ir::{DType, Dim, Shape, TensorType, ValueId, ValueType};
use crate::ops::eval::{Array, Bounded};
use indexmap::{IndexMap, IndexSet};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Most elements that are worked with one by one.
pub(super) const MOST: usize = 1 << 22;

/// Number of a term in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TermId(u32);

impl TermId {
    /// A missing optional operand.
    pub(super) const NONE: TermId = TermId(u32::MAX);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Operands of a term.
pub(super) type Args = SmallVec<[TermId; 4]>;

/// An attribute as a key: floats by their bits, tensors by their content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AttrKey {
    Int(i64),
    Float(u32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<u32>),
    Const(ConstId),
    Bytes(Vec<u8>),
}

/// An operator that is compared as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OpKey {
    /// Name with its domain.
    pub(super) name: String,
    /// Attributes that say something, by name.
    pub(super) attrs: Vec<(String, AttrKey)>,
    /// Operator set, where the two graphs differ in it and the operator's meaning may depend on it; otherwise 0.
    pub(super) version: i64,
    /// Number of results, where the operator's meaning may depend on it; otherwise 0.
    pub(super) results: u32,
}

/// A term without its operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Head {
    /// A graph input.
    Input(String),
    /// A constant.
    Const(ConstId),
    /// Integers computed from the extents of the inputs.
    Extents(DType, Vec<i64>, Vec<Dim>),
    /// Zeros.
    Zero(DType, Shape),
    /// An operator; a term of several results is read through [`Head::Result`].
    Op(Rc<OpKey>),
    /// One of several results of an operator.
    Result(u32),
    /// The same elements in row-major order under another shape.
    Reshape(Shape),
    /// Axes permuted.
    Transpose(Vec<usize>),
    /// Elements `start, start + step, …` of an axis, so many.
    Slice { axis: usize, start: i64, len: i64, step: i64 },
    /// Joined along an axis.
    Concat(usize),
    /// Broadcast to a shape.
    Expand(Shape),
    /// Converted to an element type.
    Cast(DType),
    /// A sum of the operands with these coefficients (bits), in no order.
    Sum(Vec<u64>),
    /// Equal to nothing but itself.
    Unique(u32),
}

/// A term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) head: Head,
    pub(super) args: Args,
}

/// What is known of a term besides what it is.
#[derive(Default)]
pub(super) struct Info {
    /// Type. An extent without a name is a symbol of its own.
    pub(super) ty: ValueType,
    /// Is it computed from an input?
    pub(super) fed: bool,
    /// Elements, as far as they are known.
    pub(super) known: Option<Rc<Array<Bounded>>>,
    /// First value of each graph that is this term.
    pub(super) origin: [Option<ValueId>; 2],
}

/// The table of terms.
pub(super) struct Table<'g> {
    terms: IndexSet<Term>,
    info: Vec<Info>,
    pub(super) constants: Constants<'g>,
    /// Symbols in the shapes of the inputs.
    pub(super) symbols: HashSet<String>,
    pub(super) options: ProofOptions,
    /// Rewrites used and how often.
    pub(super) rewrites: IndexMap<&'static str, usize>,
    /// What the proof takes for granted.
    pub(super) granted: IndexSet<Granted>,
    /// Constants that terms over constants were computed to.
    pub(super) folded: HashMap<Term, TermId>,
    /// Names of unnamed extents (`?…`) that are extents of some term.
    owned: HashSet<String>,
    /// Terms that were multiplied by an exact zero.
    pub(super) zeroed: IndexSet<TermId>,
    fresh: u32,
    /// Extents that have no name in the inputs' symbols, by what they are extents of.
    made_up: IndexSet<MadeUp>,
}

/// An extent that is no polynomial of the inputs' symbols. Two that are extents of the same are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum MadeUp {
    /// What these different extents broadcast to.
    Broadcast(Vec<Dim>),
    /// An axis of a result of a standard operator without attributes.
    Axis { op: String, args: Args, slot: usize, axis: usize },
    /// One of which nothing more is known.
    Alone(u32),
}

/// Something the proof takes for granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Granted {
    /// The sign of zero is not told apart.
    SignOfZero,
    /// Products by exact zeros and ones are exact.
    ExactProducts,
    /// Sums are re-associated.
    Reassociated,
    /// An operator of another domain is a function of its operands.
    Deterministic(String),
    /// A node that draws random numbers draws the same ones in both graphs.
    SameDraw(String),
    /// The results of an operator have the shape the file declares.
    Declared(String),
}

impl<'g> Table<'g> {
    pub(super) fn new(options: ProofOptions) -> Table<'g> {
        Table {
            terms: IndexSet::new(),
            info: Vec::new(),
            constants: Constants::default(),
            symbols: HashSet::new(),
            options,
            rewrites: IndexMap::new(),
            granted: IndexSet::new(),
            folded: HashMap::new(),
            owned: HashSet::new(),
            zeroed: IndexSet::new(),
            fresh: 0,
            made_up: IndexSet::new(),
        }
    }

    /// The term with this head and these operands; its type is only used when it is new.
    pub(super) fn intern(&mut self, head: Head, args: impl Into<Args>, ty: ValueType) -> TermId {
        let args: Args = args.into();
        let starts = matches!(head, Head::Input(_) | Head::Unique(_));
        let fed = starts || args.iter().any(|a| *a != TermId::NONE && self.info(*a).fed);
        let (at, new) = self.terms.insert_full(Term { head, args });
        if new {
            let open = ty.shape.iter().flatten().flat_map(Dim::symbols).filter(|s| s.starts_with('?'));
            self.owned.extend(open.map(str::to_string));
            self.info.push(Info { ty, fed, ..Info::default() });
        }
        TermId(at as u32)
    }

    /// Counts a rewrite.
    pub(super) fn did(&mut self, rewrite: &'static str) {
        *self.rewrites.entry(rewrite).or_insert(0) += 1;
    }

    pub(super) fn term(&self, t: TermId) -> &Term {
        &self.terms[t.index()]
    }

    pub(super) fn info(&self, t: TermId) -> &Info {
        &self.info[t.index()]
    }

    pub(super) fn info_mut(&mut self, t: TermId) -> &mut Info {
        &mut self.info[t.index()]
    }

    pub(super) fn head(&self, t: TermId) -> &Head {
        &self.term(t).head
    }

    /// Type, if element type and rank are known. An operand that is left out has none.
    pub(super) fn ty(&self, t: TermId) -> Option<TensorType> {
        self.info.get(t.index())?.ty.tensor()
    }

    pub(super) fn dtype(&self, t: TermId) -> Option<DType> {
        self.info.get(t.index())?.ty.dtype
    }

    pub(super) fn shape(&self, t: TermId) -> Option<&Shape> {
        self.info.get(t.index())?.ty.shape.as_ref()
    }

    pub(super) fn is_float(&self, t: TermId) -> bool {
        self.dtype(t).is_some_and(DType::is_float)
    }

    /// A term equal to no other.
    pub(super) fn unique(&mut self, ty: ValueType) -> TermId {
        self.fresh += 1;
        self.intern(Head::Unique(self.fresh), Args::new(), ty)
    }

    /// The dimension that stands for an extent without a name.
    pub(super) fn made_up(&mut self, of: MadeUp) -> Dim {
        let is_one = !matches!(of, MadeUp::Alone(_));
        let (at, _) = self.made_up.insert_full(of);
        let name = format!("?proof{}", at + 1);
        // It is a function of the operands from the start, in the second graph as in the first.
        if is_one {
            self.owned.insert(name.clone());
        }
        Dim::symbol(&name)
    }

    /// A dimension equal to no other.
    pub(super) fn fresh_dim(&mut self) -> Dim {
        self.fresh += 1;
        self.made_up(MadeUp::Alone(self.fresh))
    }

    pub(super) fn constant(&mut self, id: ConstId) -> TermId {
        let ty = TensorType::fixed(self.constants.dtype(id), self.constants.dims(id));
        self.intern(Head::Const(id), Args::new(), ty.into())
    }

    /// The constant a term is.
    pub(super) fn as_const(&self, t: TermId) -> Option<ConstId> {
        if t == TermId::NONE {
            return None;
        }
        match self.head(t) {
            Head::Const(id) => Some(*id),
            _ => None,
        }
    }

    pub(super) fn zero(&mut self, ty: TensorType) -> TermId {
        self.intern(Head::Zero(ty.dtype, ty.shape.clone()), Args::new(), ty.into())
    }

    /// The one number that all elements of a term are.
    pub(super) fn uniform(&self, t: TermId) -> Option<f64> {
        if t == TermId::NONE {
            return None;
        }
        match self.head(t) {
            Head::Const(id) => self.constants.uniform(*id),
            Head::Zero(..) => Some(0.0),
            _ => None,
        }
    }

    /// Elements of a term, if they are known and not too many.
    pub(super) fn known(&mut self, t: TermId) -> Option<Rc<Array<Bounded>>> {
        if t == TermId::NONE {
            return None;
        }
        if let Some(k) = &self.info(t).known {
            return Some(k.clone());
        }
        let id = self.as_const(t)?;
        let known = Rc::new(self.constants.array(id, MOST)?);
        self.info_mut(t).known = Some(known.clone());
        Some(known)
    }

    /// All elements of a small integer term.
    pub(super) fn ints(&mut self, t: TermId) -> Option<Vec<i64>> {
        self.known(t)?.ints()
    }

    /// The elements of a small integer term, extents of the inputs among them.
    pub(super) fn dims(&mut self, t: TermId) -> Option<Vec<Dim>> {
        let known = self.known(t)?;
        known.extents().or_else(|| Some(known.ints()?.into_iter().map(Dim::from).collect()))
    }

    /// The term of known elements, if they are all known; `None` otherwise.
    pub(super) fn of_known(&mut self, k: Array<Bounded>) -> Option<TermId> {
        if let Some(constant) = k.to_tensor() {
            let bytes = constant.bytes().ok()?.into_owned();
            let id = self.constants.of_elements(k.dtype, k.dims, bytes);
            return Some(self.constant(id));
        }
        let dims = k.extents()?;
        if !dims.iter().all(|d| self.is_definite(d)) {
            return None;
        }
        let ty = TensorType::fixed(k.dtype, &k.dims);
        let t = self.intern(Head::Extents(k.dtype, k.dims.clone(), dims), Args::new(), ty.into());
        self.info_mut(t).known = Some(Rc::new(k));
        Some(t)
    }

    /// Is the extent a function of the inputs' and the terms' extents?
    pub(super) fn is_definite(&self, d: &Dim) -> bool {
        d.symbols().all(|s| !s.starts_with('?') || self.owned.contains(s))
    }

    /// Is the type known, and is it this one?
    pub(super) fn same_type(&self, t: TermId, ty: &Option<TensorType>) -> bool {
        ty.is_some() && self.ty(t) == *ty
    }
}
