//! The integer graph under construction, with a bound on the constants that are made for it.

use requant_model::ops::{Op, Reshape};
use requant_model::spec::{RequantizeSpec, SchemeSpec};
use requant_model::{Affine, Graph, Node, Tensor, Value, ValueId, limits};
use requant_numerics::DType;
use requant_numerics::dyadic::tflite_multiplier;

use crate::names::{Names, clean};
use crate::tflite::error::Reason;

/// Builds the graph.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) graph: Graph,
    names: Names,
    /// Elements that may still be added in constants.
    budget: usize,
}

impl Builder {
    /// `names` are those given out already; a small file may not ask for much memory.
    pub(super) fn new(name: &str, names: Names, batched: bool, file_bytes: usize) -> Self {
        Builder {
            graph: Graph {
                name: clean(name),
                batched,
                ..Graph::default()
            },
            names,
            budget: limits::max_reads(file_bytes),
        }
    }

    /// A name that nothing has yet, made from `base`.
    pub(super) fn unique(&mut self, base: &str) -> String {
        self.names.unique(base)
    }

    /// Adds a value under a name that was given out for it.
    pub(super) fn value_named(
        &mut self,
        name: String,
        dtype: DType,
        dims: Vec<usize>,
        batched: bool,
        quant: Option<Affine>,
    ) -> ValueId {
        self.graph.add_value(Value {
            name,
            dtype,
            dims,
            batched,
            quant,
        })
    }

    /// Adds a value like another one, under a name made from `base`.
    pub(super) fn value_like(&mut self, base: &str, like: ValueId) -> ValueId {
        let value = self.graph.value(like).clone();
        let name = self.unique(base);
        self.graph.add_value(Value { name, ..value })
    }

    /// Whether one of the values is batched.
    pub(super) fn any_batched(&self, values: &[ValueId]) -> bool {
        values.iter().any(|&id| self.graph.value(id).batched)
    }

    /// Adds a node.
    pub(super) fn node(&mut self, name: &str, op: Op, inputs: &[ValueId], outputs: &[ValueId]) {
        let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
        self.graph.nodes.push(Node {
            name: clean(name),
            op,
            inputs,
            outputs,
        });
    }

    /// Pays for constants before they are made.
    pub(super) fn charge(&mut self, elements: usize) -> Result<(), Reason> {
        self.budget = self.budget.checked_sub(elements).ok_or(Reason::Budget)?;
        Ok(())
    }

    /// Adds a constant and returns its name. Its shape is the maker's concern.
    pub(super) fn tensor(
        &mut self,
        base: &str,
        dims: &[usize],
        make: impl FnOnce(Vec<usize>) -> Option<Tensor>,
    ) -> Result<String, Reason> {
        let shape = || Reason::Shapes {
            a: dims.to_vec(),
            b: Vec::new(),
        };
        self.charge(limits::elements(dims).ok_or_else(shape)?)?;
        let tensor = make(dims.to_vec()).ok_or_else(shape)?;
        let name = self.unique(base);
        self.graph.tensors.insert(name.clone(), tensor);
        Ok(name)
    }

    /// A vector of integers as a constant.
    pub(super) fn integers(
        &mut self,
        base: &str,
        dtype: DType,
        values: &[i64],
    ) -> Result<String, Reason> {
        self.tensor(base, &[values.len()], |dims| {
            Tensor::from_integers(dtype, dims, values)
        })
    }

    /// TFLite's fixed-point requantization by pairs of mantissa and exponent.
    pub(super) fn pairs(
        &mut self,
        layer: &str,
        pairs: &[(i32, i8)],
        (lo, hi): (i32, i32),
    ) -> Result<RequantizeSpec, Reason> {
        let m: Vec<i64> = pairs.iter().map(|p| i64::from(p.0)).collect();
        let e: Vec<i64> = pairs.iter().map(|p| i64::from(p.1)).collect();
        let scheme = SchemeSpec::TfliteDouble {
            m: self.integers(&format!("{layer}/m"), DType::I32, &m)?,
            e: self.integers(&format!("{layer}/e"), DType::I8, &e)?,
        };
        Ok(RequantizeSpec { scheme, lo, hi })
    }

    /// TFLite's fixed-point requantization by real multipliers.
    pub(super) fn fixed_point(
        &mut self,
        layer: &str,
        multipliers: &[f64],
        clamp: (i32, i32),
    ) -> Result<RequantizeSpec, Reason> {
        let pairs: Result<Vec<_>, _> = multipliers.iter().copied().map(tflite_multiplier).collect();
        self.pairs(layer, &pairs?, clamp)
    }

    /// Requantization by a shift to the right: multipliers that are powers of two, at most 1.
    pub(super) fn shifts(
        &mut self,
        layer: &str,
        multipliers: &[f64],
        (lo, hi): (i32, i32),
    ) -> Result<RequantizeSpec, Reason> {
        let shift = |&multiplier: &f64| match libm::frexp(multiplier) {
            (0.5, exponent @ -29..=1) => Ok(i64::from(1 - exponent)),
            _ => Err(Reason::NotAShift(multiplier)),
        };
        let k: Vec<i64> = multipliers.iter().map(shift).collect::<Result<_, _>>()?;
        let k = self.integers(&format!("{layer}/k"), DType::U8, &k)?;
        let scheme = SchemeSpec::Shift { k };
        Ok(RequantizeSpec { scheme, lo, hi })
    }

    /// Requantization by a product in f64, rounded half away from zero.
    pub(super) fn half_away(
        &mut self,
        layer: &str,
        scales: &[f64],
        (lo, hi): (i32, i32),
    ) -> Result<RequantizeSpec, Reason> {
        let scale = self.tensor(&format!("{layer}/scale"), &[scales.len()], |dims| {
            Tensor::from_f64(dims, scales)
        })?;
        let scheme = SchemeSpec::F64Away { scale };
        Ok(RequantizeSpec { scheme, lo, hi })
    }

    /// The value in another shape.
    pub(super) fn reshaped(&mut self, id: ValueId, dims: Vec<usize>) -> ValueId {
        if self.graph.value(id).dims == dims {
            return id;
        }
        let name = format!("{}/reshaped", self.graph.value(id).name);
        let out = self.value_like(&name, id);
        self.graph.values[out.index()].dims = dims;
        self.node(&name, Op::Reshape(Reshape {}), &[id], &[out]);
        out
    }
}
