//! Reverse-mode differentiation over f32 tensors: just the operators that a block of a network needs.
//!
//! A tape computes each operator as it is written down and remembers how to pull the gradient of its
//! result back to its operands. Every sum has a fixed order and a fixed partition, so values and gradients
//! have the same bits on any number of threads.

mod adam;
mod conv;
mod elementwise;
mod linear;
mod loss;
mod pool;
mod quant;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use adam::Adam;
pub(in crate::reconstruct) use elementwise::choose;

pub use quant::{
    FakeQuant, SoftRound, rectified_sigmoid, rectified_sigmoid_inverse, rectified_sigmoid_slope,
};
pub use shape::{Picks, broadcast_dims, broadcast_picks};

/// A tensor on a [`Tape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Var(usize);

/// What was computed, in order.
#[derive(Debug, Default)]
pub struct Tape {
    entries: Vec<Entry>,
}

struct Entry {
    dims: Vec<usize>,
    data: Arc<Vec<f32>>,
    operands: Vec<Var>,
    differentiable: bool,
    pull: Option<Pull>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("dims", &self.dims)
            .field("operands", &self.operands)
            .field("differentiable", &self.differentiable)
            .finish_non_exhaustive()
    }
}

/// From the gradient of a result to one gradient an operand; none for operands that need none.
type Pull = Box<dyn Fn(&Pulled<'_>) -> Vec<Option<Vec<f32>>> + Send + Sync>;

/// What an operator sees when its gradient is pulled back.
struct Pulled<'a> {
    tape: &'a Tape,
    entry: &'a Entry,
    /// Gradient of the result.
    gradient: &'a [f32],
}

impl Pulled<'_> {
    fn operand(&self, index: usize) -> &[f32] {
        self.tape.data(self.entry.operands[index])
    }

    fn result(&self) -> &[f32] {
        &self.entry.data
    }

    fn wants(&self, index: usize) -> bool {
        self.tape.entries[self.entry.operands[index].0].differentiable
    }
}

/// Gradients of the leaves of a tape.
#[derive(Debug)]
pub struct Gradients(Vec<Option<Vec<f32>>>);

impl Gradients {
    /// Gradient with respect to a parameter; none where the root does not depend on it.
    pub fn get(&self, var: Var) -> Option<&[f32]> {
        self.0.get(var.0)?.as_deref()
    }

    /// As [`Gradients::get`], handed over.
    pub fn take(&mut self, var: Var) -> Option<Vec<f32>> {
        self.0.get_mut(var.0)?.take()
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tensor that is not differentiated.
    pub fn constant(&mut self, dims: &[usize], data: impl Into<Arc<Vec<f32>>>) -> Var {
        self.leaf(dims, data.into(), false)
    }

    /// A tensor whose gradient is wanted.
    pub fn parameter(&mut self, dims: &[usize], data: impl Into<Arc<Vec<f32>>>) -> Var {
        self.leaf(dims, data.into(), true)
    }

    fn leaf(&mut self, dims: &[usize], data: Arc<Vec<f32>>, differentiable: bool) -> Var {
        debug_assert_eq!(dims.iter().product::<usize>(), data.len());
        self.entries.push(Entry {
            dims: dims.to_vec(),
            data,
            operands: Vec::new(),
            differentiable,
            pull: None,
        });
        Var(self.entries.len() - 1)
    }

    /// Shape of a tensor.
    pub fn dims(&self, var: Var) -> &[usize] {
        &self.entries[var.0].dims
    }

    /// Elements of a tensor, row-major.
    pub fn data(&self, var: Var) -> &[f32] {
        &self.entries[var.0].data
    }

    /// As [`Tape::data`], shared.
    pub fn shared(&self, var: Var) -> Arc<Vec<f32>> {
        Arc::clone(&self.entries[var.0].data)
    }

    fn push(
        &mut self,
        dims: Vec<usize>,
        data: impl Into<Arc<Vec<f32>>>,
        operands: Vec<Var>,
        pull: impl Fn(&Pulled<'_>) -> Vec<Option<Vec<f32>>> + Send + Sync + 'static,
    ) -> Var {
        let data = data.into();
        debug_assert_eq!(dims.iter().product::<usize>(), data.len());
        let differentiable = operands.iter().any(|&v| self.entries[v.0].differentiable);
        self.entries.push(Entry {
            dims,
            data,
            operands,
            differentiable,
            pull: differentiable.then(|| Box::new(pull) as Pull),
        });
        Var(self.entries.len() - 1)
    }

    /// Gradients of `Σ seed·root` with respect to all parameters.
    pub fn backward(&self, root: Var, seed: Vec<f32>) -> Gradients {
        let mut gradients: Vec<Option<Vec<f32>>> = vec![None; self.entries.len()];
        gradients[root.0] = Some(seed);
        for index in (0..=root.0).rev() {
            let entry = &self.entries[index];
            let Some(pull) = &entry.pull else { continue };
            let Some(gradient) = gradients[index].take() else {
                continue;
            };
            let pulled = Pulled {
                tape: self,
                entry,
                gradient: &gradient,
            };
            for (&operand, part) in entry.operands.iter().zip(pull(&pulled)) {
                let Some(part) = part else { continue };
                if !self.entries[operand.0].differentiable {
                    continue;
                }
                match &mut gradients[operand.0] {
                    Some(sum) => sum.iter_mut().zip(part).for_each(|(s, p)| *s += p),
                    empty => *empty = Some(part),
                }
            }
        }
        Gradients(gradients)
    }
}
