//! Changing: operands, readers, names, outputs; removal.

use super::{Graph, Kind, NodeId, Op, Use, ValueId};
use crate::ir::attr::Attrs;
use crate::ir::tensor::Tensor;
use crate::ir::types::{TensorType, ValueType};
use petgraph::Direction;
use petgraph::visit::EdgeRef;
use std::collections::HashSet;
use std::sync::Arc;

impl Graph {
    /// Records a read in the reader's list and as an edge. The caller has [unlinked](Graph::unlink) the operand before.
    pub(super) fn link(&mut self, from: ValueId, to: NodeId, operand: usize) {
        let reads = &mut self.node_mut(to).reads;
        reads.resize(reads.len().max(operand + 1), None);
        reads[operand] = Some(from);
        self.g.add_edge(from.node.index, to.index, Use { slot: from.slot, operand: operand as u32 });
    }

    /// Links all operands of a node that has none.
    pub(super) fn link_all(&mut self, node: NodeId, operands: &[Option<ValueId>]) {
        let n = self.node_mut(node);
        n.operands = operands.len() as u32;
        n.reads.resize(operands.len(), None);
        for (i, v) in operands.iter().enumerate() {
            if let Some(v) = v {
                self.link(*v, node, i);
            }
        }
    }

    /// Takes a read out of the reader's list and out of the edges.
    fn unlink(&mut self, node: NodeId, operand: usize) {
        if self.node_mut(node).reads.get_mut(operand).and_then(Option::take).is_some() {
            let mut edges = self.g.edges_directed(node.index, Direction::Incoming);
            if let Some(e) = edges.find(|e| e.weight().operand as usize == operand).map(|e| e.id()) {
                self.g.remove_edge(e);
            }
        }
    }

    /// Makes a node read `value` as operand `operand` (an existing or the next one).
    pub fn set_operand(&mut self, node: NodeId, operand: usize, value: Option<ValueId>) {
        self.unlink(node, operand);
        let n = self.node_mut(node);
        debug_assert!(n.reads.len() == n.operand_count() || operand < n.operands as usize, "operands come before captures");
        n.operands = n.operands.max(operand as u32 + 1);
        let len = n.reads.len().max(operand + 1);
        n.reads.resize(len, None);
        if let Some(v) = value {
            self.link(v, node, operand);
        }
    }

    /// Changes a node's attributes, if it is an operator.
    pub fn edit_attrs(&mut self, node: NodeId, change: impl FnOnce(&mut Attrs)) {
        if let Kind::Op(op) = &mut self.node_mut(node).kind {
            change(&mut op.attrs);
            op.attrs_changed = true;
        }
    }

    /// Replaces a node's operator and operands, keeping its results.
    pub fn replace_op(&mut self, node: NodeId, op: Op, operands: &[Option<ValueId>]) {
        for operand in (0..self.node(node).reads.len()).rev() {
            self.unlink(node, operand);
        }
        let n = self.node_mut(node);
        n.kind = Kind::Op(op);
        n.reads.clear();
        self.link_all(node, operands);
    }

    /// Makes those readers of `old` for which `which` holds read `new`. Captures and graph outputs are left alone.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId, which: impl Fn(NodeId) -> bool) {
        // The latest reader comes first, because the newest edge stands first in the producer's list, from which it is unlinked.
        for (node, operand) in self.uses_in_order(old).into_iter().rev() {
            if operand < self.node(node).operand_count() && which(node) {
                self.set_operand(node, operand, Some(new));
            }
        }
    }

    /// Makes every reader of `old` read `new`, graph outputs and routers included; `new` takes over the name of an output.
    pub fn redirect(&mut self, old: ValueId, new: ValueId) {
        self.replace_uses(old, new, |_| true);
        self.routers.values_mut().for_each(|r| r.redirect(old, new));
        if self.is_output(old) {
            self.swap_names(old, new);
            self.redirect_output(old, new);
        }
    }

    /// As [`Graph::redirect`], and `new` takes over the name in any case.
    pub fn supplant(&mut self, old: ValueId, new: ValueId) {
        if !self.is_output(old) {
            self.swap_names(old, new);
        }
        self.redirect(old, new);
    }

    /// As [`Graph::supplant`], for readers that capture `old` by its name too. Nothing may capture `new`.
    pub fn take_over(&mut self, old: ValueId, new: ValueId) {
        self.swap_names(old, new);
        for (node, operand) in self.uses_in_order(old).into_iter().rev() {
            self.unlink(node, operand);
            self.link(new, node, operand);
        }
        self.routers.values_mut().for_each(|r| r.redirect(old, new));
        self.redirect_output(old, new);
    }

    /// Makes `new` the graph output that `old` was. Names stay: see [`Graph::swap_names`].
    pub fn redirect_output(&mut self, old: ValueId, new: ValueId) {
        let Some(count) = self.output_values.remove(&old) else { return };
        *self.output_values.entry(new).or_default() += count;
        for o in self.outputs.iter_mut().filter(|o| o.value == old) {
            o.value = new;
        }
    }

    /// Exchanges the names of two values. A subgraph reads by name: one that captured either captures the other from then on.
    pub fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let (na, nb) = (self.name(a).to_string(), self.name(b).to_string());
        self.node_mut(a.node).results[a.slot as usize].name = nb.clone();
        self.node_mut(b.node).results[b.slot as usize].name = na.clone();
        self.names.insert(na, b);
        self.names.insert(nb, a);
        let captures = |v| self.uses(v).filter(|(n, i)| *i >= self.node(*n).operand_count()).map(move |at| (at, v));
        let captured: Vec<_> = captures(a).chain(captures(b)).collect();
        for ((node, place), v) in captured {
            self.unlink(node, place);
            self.link(if v == a { b } else { a }, node, place);
        }
    }

    /// Gives a value a name, or the nearest free one; returns the name it got.
    pub fn rename(&mut self, v: ValueId, name: &str) -> String {
        if self.name(v) == name {
            return name.to_string();
        }
        let name = self.fresh_name(name);
        let old = std::mem::replace(&mut self.node_mut(v.node).results[v.slot as usize].name, name.clone());
        self.names.remove(&old);
        self.names.insert(name.clone(), v);
        name
    }

    /// Replaces a source's constant, and says whether a caller may override it.
    pub fn set_initializer(&mut self, v: ValueId, tensor: Tensor, overridable: bool) {
        let ty = ValueType::from(TensorType::fixed(tensor.dtype(), tensor.dims()));
        let n = self.node_mut(v.node);
        n.kind = Kind::Initializer { tensor, overridable };
        n.results[v.slot as usize].ty = ty;
        if !overridable {
            self.inputs.retain(|n| *n != v.node);
        } else if !self.inputs.contains(&v.node) {
            self.inputs.push(v.node);
        }
    }

    /// Makes an initializer overridable (a graph input with a default) or constant.
    pub fn set_overridable(&mut self, v: ValueId, overridable: bool) {
        if let Some(tensor) = self.initializer(v).cloned() {
            let ty = self.value(v).ty.clone();
            self.set_initializer(v, tensor, overridable);
            self.set_type(v, ty);
        }
    }

    /// Makes an overridable initializer an input that must be fed, of the given type; returns the default it had.
    pub fn require_input(&mut self, v: ValueId, ty: ValueType) -> Option<Tensor> {
        let tensor = self.initializer(v).cloned()?;
        self.set_overridable(v, true);
        self.node_mut(v.node).kind = Kind::Input(None);
        self.set_type(v, ty);
        Some(tensor)
    }

    /// Removes a node that nobody reads. Where many readers of one value are removed, it is fastest to start with the latest.
    pub fn remove(&mut self, id: NodeId) {
        debug_assert!(self.results(id).all(|v| !self.is_read(v)), "a node in use is not removed");
        if let Some(node) = self.g.remove_node(id.index) {
            for v in &node.results {
                self.names.remove(&v.name);
            }
            if node.op().is_none() {
                self.inputs.retain(|n| *n != id);
            }
        }
    }

    /// Drops a node's results from `keep` on, which nobody reads.
    pub fn drop_results(&mut self, node: NodeId, keep: usize) {
        while self.node(node).results.len() > keep {
            let slot = self.node(node).results.len() as u32 - 1;
            debug_assert!(!self.is_read(ValueId { node, slot }), "a result in use is not dropped");
            if let Some(v) = self.node_mut(node).results.pop() {
                self.names.remove(&v.name);
            }
        }
    }

    /// Lists a constant among the graph inputs without letting anyone override it (files before IR 4).
    pub fn set_listed_constant(&mut self, v: ValueId) {
        if let Kind::Initializer { overridable, .. } = &mut self.node_mut(v.node).kind {
            *overridable = false;
        }
    }

    /// Raises the version of the file format, if it is older. Before version 4 every initializer had to be listed as an input. From 4
    /// on, an initializer that nobody may override is listed no more.
    pub fn raise_ir(&mut self, version: i64) {
        let from = self.shell.ir_version;
        if from >= version {
            return;
        }
        Arc::make_mut(&mut self.shell).ir_version = version;
        if from < 4 {
            let g = &self.g;
            self.inputs.retain(|n| !matches!(g[n.index].kind, Kind::Initializer { overridable: false, .. }));
        }
    }

    /// Forgets what the source declares of these values. Their types have changed; the emission declares the new ones.
    pub fn forget_declarations(&mut self, values: &HashSet<ValueId>) {
        let names: HashSet<String> = values.iter().map(|v| self.name(*v).to_string()).collect();
        Arc::make_mut(&mut self.graph_shell).value_info.retain(|i| !names.contains(&i.name));
        for o in self.outputs.iter_mut().filter(|o| values.contains(&o.value)) {
            o.info = None;
        }
        for v in values {
            if let Kind::Input(info) = &mut self.node_mut(v.node).kind {
                *info = None;
            }
        }
    }

    /// Drops all graph outputs, so that new ones can be declared.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
        self.output_values.clear();
    }

    /// Moves a node in the file order to just after another.
    pub fn place_after(&mut self, node: NodeId, anchor: NodeId) {
        self.node_mut(node).position = self.node(anchor).position;
    }
}
