//! Tensors of one number, and the extents that only the run tells.

use super::{Builder, Built};
use crate::ir::{Attrs, Dim, Tensor, TensorType, ValueId};
use crate::ops;

impl Builder<'_> {
    /// Zeros of a value's type.
    pub fn zeros_like(&mut self, like: ValueId) -> Built {
        let ty = self.ty(like)?;
        let shape = self.shape_of(like)?;
        self.filled(shape, ty, 0.0)
    }

    /// A number in every place of a shape, which the type tells too. It takes no bytes in the file.
    fn filled(&mut self, shape: ValueId, ty: TensorType, number: f64) -> Built {
        let number = Tensor::floats(ty.dtype, &[1], &[number]);
        let v = self.op_with("ConstantOfShape", Attrs::new().with("value", number), &[shape])?;
        Ok(self.state(v, ty))
    }

    /// Zeros of a type whose extents are those of `like`, or known. A batch's extent is read off the graph's input where that
    /// has it, and the zeros are shared by equal types.
    pub fn zeros(&mut self, ty: TensorType, like: ValueId) -> Built {
        let key = (ty.dtype, ty.shape.to_vec());
        if let Some(v) = self.zeros.get(&key) {
            return Ok(*v);
        }
        let mut parts = Vec::new();
        let mut waits = false;
        for (axis, extent) in ty.shape.iter().enumerate() {
            let fed = if axis == 0 { self.fed_with(extent) } else { None };
            waits |= extent.known().is_none() && fed.is_none();
            parts.push(match extent.known() {
                Some(n) => self.ints(&[n]),
                None => self.dim_of(fed.unwrap_or(like), axis)?,
            });
        }
        let shape = self.shape_from(&parts)?;
        let v = self.filled(shape, ty, 0.0)?;
        // Another reader may come before `like`.
        if !waits {
            self.zeros.insert(key, v);
        }
        Ok(v)
    }

    /// An input of the graph with this batch.
    fn fed_with(&self, batch: &Dim) -> Option<ValueId> {
        let has = |v: &ValueId| self.graph.tensor_type(*v).is_some_and(|ty| ty.shape.first() == Some(batch));
        self.graph.required_inputs().find(has)
    }

    /// Ones [1, R] for a matrix [R, C], shared by matrices of as many rows. They take no bytes in the file.
    pub fn row_of_ones(&mut self, matrix: ValueId) -> Built {
        let ty = self.ty(matrix)?;
        let key = (ty.dtype, ty.shape[0].clone());
        if let Some(v) = self.ones.get(&key) {
            return Ok(*v);
        }
        let (one, rows) = (self.ints(&[1]), self.dim_of(matrix, 0)?);
        let shape = self.shape_from(&[one, rows])?;
        let v = self.filled(shape, TensorType::new(ty.dtype, vec![Dim::from(1), ty.shape[0].clone()]), 1.0)?;
        self.ones.insert(key, v);
        Ok(v)
    }

    /// One extent as an int64 vector of length 1: a constant where it is known.
    pub fn dim_of(&mut self, a: ValueId, axis: usize) -> Built {
        match self.ty(a)?.shape[axis].known() {
            Some(n) => Ok(self.ints(&[n])),
            // `Shape` takes a range of axes from opset 15 on.
            None if self.opset() < 15 => {
                let (shape, at) = (self.op("Shape", &[a])?, self.ints(&[axis as i64]));
                self.op_with("Gather", Attrs::new().with("axis", 0), &[shape, at])
            }
            None => {
                let (start, end) = (axis as i64, axis as i64 + 1);
                self.op_with("Shape", Attrs::new().with("start", start).with("end", end), &[a])
            }
        }
    }

    /// A shape vector from int64 vectors (see [`Builder::dim_of`]): a constant if all of them are constants.
    pub fn shape_from(&mut self, parts: &[ValueId]) -> Built {
        let known: Option<Vec<Vec<i64>>> = parts.iter().map(|v| ops::constant_ints(self.graph, *v)).collect();
        match known {
            Some(dims) => Ok(self.ints(&dims.concat())),
            None => self.concat(parts, 0),
        }
    }
}
