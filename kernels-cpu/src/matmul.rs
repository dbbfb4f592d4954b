//! Products of two activations: `[m, k] × [k, n]`, many at a time.
//!
//! The second operand is packed for the kernel on every call, as signed bytes; its zero point's share,
//! which differs from row to row, is added to the sums of each row. Everything else is the tile engine.

use core::ops::Range;

use requant_numerics::DType;

use crate::conv::ConvShape;
use crate::epilogue::Output;
use crate::error::{at_least, byte_sign, product, zero_point_in_range};
use crate::memory::{Carver, LINE, piece};
use crate::pack::{Matrix, Packed};
use crate::parallel::{MAX_PARTS, Shared, run_parts, share, usable_threads};
use crate::table::{self, Kernel, WeightFormat};
use crate::tiles::{Job, MACS_PER_PART, Shifts, Split, Walk};
use crate::{Buffer, Isa, KernelError, Parallel};

/// A product of two activations to prepare.
#[derive(Clone, Debug)]
pub struct MatMulSpec {
    /// Rows of the first operand and of the output.
    pub m: usize,
    /// Columns of the first operand.
    pub k: usize,
    /// Columns of the output.
    pub n: usize,
    /// Element type of the first operand: at most 8 bits, a byte each.
    pub a: DType,
    /// Zero point of the first operand.
    pub a_zero_point: i32,
    /// Element type of the second operand: at most 8 bits, a byte each.
    pub b: DType,
    /// Zero point of the second operand.
    pub b_zero_point: i32,
    /// The second operand is `[n, k]` instead of `[k, n]`.
    pub b_transposed: bool,
    /// What is written; its channels are the columns of the output.
    pub output: Output,
}

/// The buffers of one run.
#[derive(Debug)]
pub struct MatMulIo<'a> {
    /// Products to compute.
    pub products: usize,
    /// First operands, dense matrices.
    pub a: &'a [u8],
    /// Which matrix of `a` each product takes; its own number without a list.
    pub a_index: Option<&'a [usize]>,
    /// Second operands, dense matrices.
    pub b: &'a [u8],
    /// Which matrix of `b` each product takes; its own number without a list.
    pub b_index: Option<&'a [usize]>,
    /// Second operand of the epilogue, of the output's shape.
    pub other: Option<&'a [u8]>,
    /// Output, dense matrices.
    pub output: &'a mut [u8],
    /// Replaces the zero point of `a` for this run.
    pub a_zero_point: Option<i32>,
    /// Replaces the zero point of `b` for this run.
    pub b_zero_point: Option<i32>,
    /// At least [`MatMul::scratch_bytes`] bytes, of any content and alignment.
    pub scratch: &'a mut [u8],
}

/// A prepared product of two activations.
#[derive(Debug)]
pub struct MatMul {
    spec: MatMulSpec,
    /// 128 where the second operand is unsigned: what is subtracted to make it signed.
    b_shift: i32,
    walk: Walk,
}

/// A run with its buffers checked.
struct Run<'a> {
    matmul: &'a MatMul,
    a: &'a [u8],
    a_index: Option<&'a [usize]>,
    b: &'a [u8],
    b_index: Option<&'a [usize]>,
    other: &'a [u8],
    output: Shared<'a>,
    a_zero_point: i32,
    b_zero_point: i32,
}

impl MatMul {
    /// Prepares a product. The caller has proved that no sum of products leaves 32 bits.
    ///
    /// # Errors
    /// Zero dimensions, or types and parameters out of range.
    pub fn new(isa: Isa, spec: &MatMulSpec) -> Result<Self, KernelError> {
        let signed = byte_sign(Buffer::Input, spec.a)?;
        let kernel = table::select(isa, signed, WeightFormat::I8)?;
        MatMul::prepare(isa, kernel, spec)
    }

    /// Prepares a product for one row of the kernel table.
    ///
    /// # Errors
    /// As [`MatMul::new`], and [`KernelError::NoKernel`] when the kernel does not take these operands.
    pub fn with_kernel(kernel: &'static Kernel, spec: &MatMulSpec) -> Result<Self, KernelError> {
        let signed = byte_sign(Buffer::Input, spec.a)?;
        let takes = kernel.weights == WeightFormat::I8 && kernel.takes(signed);
        table::usable(kernel.isa, takes)?;
        MatMul::prepare(kernel.isa, kernel, spec)
    }

    fn prepare(isa: Isa, kernel: &'static Kernel, spec: &MatMulSpec) -> Result<Self, KernelError> {
        let signed = byte_sign(Buffer::Input, spec.a)?;
        let b_shift = if byte_sign(Buffer::Other, spec.b)? {
            0
        } else {
            128
        };
        zero_point_in_range(spec.a_zero_point, spec.a)?;
        zero_point_in_range(spec.b_zero_point, spec.b)?;
        let shape = ConvShape::gemm(spec.m, spec.k, spec.n);
        shape.validate()?;
        Ok(MatMul {
            spec: spec.clone(),
            b_shift,
            walk: Walk::new(isa, kernel, &shape, signed, &spec.output, false)?,
        })
    }

    /// The kernel's name.
    pub fn kernel(&self) -> &'static str {
        self.walk.kernel().name
    }

    /// Bytes of scratch that a run on `threads` threads needs, for any number of products.
    pub fn scratch_bytes(&self, threads: usize) -> usize {
        let threads = threads.clamp(1, MAX_PARTS);
        LINE + threads * (self.operand_bytes() + piece(self.walk.part_bytes()))
    }

    /// Bytes of a packed second operand and its biases.
    fn operand_bytes(&self) -> usize {
        let panels = self.walk.panels();
        LINE + piece(panels.bytes) + piece(4 * panels.columns)
    }

    /// Computes the products.
    ///
    /// # Errors
    /// Buffers that are too short, an index outside its operand, a missing second operand of the
    /// epilogue, or a zero point out of range; nothing is written then.
    pub fn run(&self, io: MatMulIo<'_>, pool: &dyn Parallel) -> Result<(), KernelError> {
        let MatMulSpec { m, k, n, .. } = self.spec;
        let a_zero_point = io.a_zero_point.unwrap_or(self.spec.a_zero_point);
        let b_zero_point = io.b_zero_point.unwrap_or(self.spec.b_zero_point);
        zero_point_in_range(a_zero_point, self.spec.a)?;
        zero_point_in_range(b_zero_point, self.spec.b)?;
        check_matrices(Buffer::Input, io.a, io.a_index, io.products, m * k)?;
        check_matrices(Buffer::Other, io.b, io.b_index, io.products, k * n)?;
        let outputs = product(&[io.products, m, n, 4])? / 4;
        let bytes = outputs * self.spec.output.element_bytes();
        at_least(Buffer::Output, bytes, io.output.len())?;
        if let Some(dtype) = self.spec.output.other_dtype() {
            let other = io.other.ok_or(KernelError::MissingOther)?;
            at_least(Buffer::Other, outputs * dtype.size_in_memory(), other.len())?;
        }
        let threads = usable_threads(pool);
        at_least(
            Buffer::Scratch,
            self.scratch_bytes(threads),
            io.scratch.len(),
        )?;
        let run = Run {
            matmul: self,
            a: io.a,
            a_index: io.a_index,
            b: io.b,
            b_index: io.b_index,
            other: io.other.unwrap_or(&[]),
            output: Shared::new(io.output),
            a_zero_point,
            b_zero_point,
        };
        let macs = m.saturating_mul(k).saturating_mul(n);
        let worth = (macs.saturating_mul(io.products) / MACS_PER_PART).max(1);
        let parts = threads.min(io.products).min(worth);
        if parts == threads || worth == 1 {
            run.by_products(io.products, parts.max(1), io.scratch, pool);
        } else {
            for index in 0..io.products {
                run.one(index, io.scratch, pool);
            }
        }
        Ok(())
    }

    /// Packs one panel of the second operand and computes its biases.
    fn pack(
        &self,
        run: &Run<'_>,
        matrix: &[u8],
        panel: usize,
        packed: &mut [u8],
        bias: &mut [i32],
    ) {
        let MatMulSpec {
            k, n, b_transposed, ..
        } = self.spec;
        let panel = &self.walk.panels().list[panel];
        let operand = Matrix {
            bytes: matrix,
            depth: k,
            columns: n,
            transposed: b_transposed,
            flip: self.b_shift as u8,
        };
        operand.pack_panel(self.walk.kernel(), panel, packed, bias);
        let a_zero = run.a_zero_point + self.walk.kernel().offset;
        // Both operands' zero points meet K times.
        let both = (run.a_zero_point * (run.b_zero_point - self.b_shift)).wrapping_mul(k as i32);
        for bias in &mut bias[..panel.used] {
            *bias = both.wrapping_sub(bias.wrapping_mul(a_zero));
        }
    }
}

impl Run<'_> {
    /// Each part computes whole products.
    fn by_products(&self, products: usize, parts: usize, scratch: &mut [u8], pool: &dyn Parallel) {
        let walk = &self.matmul.walk;
        let panels = walk.panels();
        let each = self.matmul.operand_bytes() + piece(walk.part_bytes());
        let mut carver = Carver::new(scratch);
        let scratch = Shared::new(carver.bytes(parts * each));
        run_parts(pool, parts, |part| {
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let scratch = unsafe { scratch.slice(part * each..(part + 1) * each) };
            let mut carver = Carver::new(scratch);
            let packed = carver.bytes(panels.bytes);
            let bias = carver.words(panels.columns);
            let working = carver.bytes(walk.part_bytes());
            for index in share(products, parts, part) {
                let matrix = self.second(index);
                for (number, panel) in panels.list.iter().enumerate() {
                    let bias = &mut bias[panel.column..panel.column + panel.width];
                    let packed = &mut packed[panels.place(number)];
                    self.matmul.pack(self, matrix, number, packed, bias);
                }
                let all = 0..panels.list.len();
                // SAFETY: each product belongs to one part.
                unsafe { self.multiply(index, packed, bias, 0..self.matmul.spec.m, all, working) };
            }
        });
    }

    /// All threads share one product.
    fn one(&self, index: usize, scratch: &mut [u8], pool: &dyn Parallel) {
        let walk = &self.matmul.walk;
        let panels = walk.panels();
        let rows = self.matmul.spec.m;
        let split = Split::new(rows, walk, usable_threads(pool));
        let each = piece(walk.part_bytes());
        let mut carver = Carver::new(scratch);
        let packed = carver.bytes(panels.bytes);
        let bias = carver.words(panels.columns);
        let working = Shared::new(carver.bytes(split.parts * each));
        let matrix = self.second(index);
        {
            let packed = Shared::new(packed);
            let bias = Shared::new(bytemuck::cast_slice_mut(bias));
            let parts = split.parts.min(panels.list.len());
            run_parts(pool, parts, |part| {
                for number in share(panels.list.len(), parts, part) {
                    let panel = &panels.list[number];
                    let columns = 4 * panel.column..4 * (panel.column + panel.width);
                    // SAFETY: panels are disjoint, and each belongs to one part.
                    let (packed, bias) =
                        unsafe { (packed.slice(panels.place(number)), bias.slice(columns)) };
                    let bias = bytemuck::cast_slice_mut(bias);
                    self.matmul.pack(self, matrix, number, packed, bias);
                }
            });
        }
        let (packed, bias) = (&*packed, &*bias);
        run_parts(pool, split.parts, |part| {
            let (rows, panels) = split.part(part, rows, panels.list.len());
            // SAFETY: pieces of different parts are disjoint, and each part runs once.
            let working = unsafe { working.slice(part * each..(part + 1) * each) };
            // SAFETY: parts have disjoint rows or panels.
            unsafe { self.multiply(index, packed, bias, rows, panels, working) };
        });
    }

    /// The second operand of a product.
    fn second(&self, index: usize) -> &[u8] {
        let matrix = self.b_index.map_or(index, |list| list[index]);
        let size = self.matmul.spec.k * self.matmul.spec.n;
        &self.b[matrix * size..(matrix + 1) * size]
    }

    /// Some rows and panels of one product.
    ///
    /// # Safety
    /// - No other thread computes the same outputs at the same time.
    unsafe fn multiply(
        &self,
        index: usize,
        packed: &[u8],
        bias: &[i32],
        rows: Range<usize>,
        panels: Range<usize>,
        scratch: &mut [u8],
    ) {
        let spec = &self.matmul.spec;
        let matrix = self.a_index.map_or(index, |list| list[index]);
        let size = spec.m * spec.k;
        let job = Job {
            walk: &self.matmul.walk,
            input: &self.a[matrix * size..(matrix + 1) * size],
            other: self.other,
            output: &self.output,
            first_row: index * spec.m,
            weights: Packed::new(self.matmul.walk.kernel(), packed),
            bias,
            padding: 0,
            shifts: Shifts::Same(self.matmul.b_shift - self.b_zero_point),
        };
        // SAFETY: the contract of `Job`: lengths were checked for all products, the operand was packed
        // for this walk, and the outputs are this call's alone by the caller's promise.
        unsafe { job.run(rows, panels, scratch) };
    }
}

fn check_matrices(
    buffer: Buffer,
    bytes: &[u8],
    index: Option<&[usize]>,
    products: usize,
    size: usize,
) -> Result<(), KernelError> {
    let matrices = match index {
        None => products,
        Some(list) => {
            at_least(Buffer::Indices, products, list.len())?;
            let last = list[..products].iter().max();
            last.map_or(Some(0), |last| last.checked_add(1))
                .ok_or(KernelError::TooLarge)?
        }
    };
    at_least(buffer, product(&[matrices, size])?, bytes.len())
}
