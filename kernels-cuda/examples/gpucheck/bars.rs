//! What cuBLASLt makes of the same products: sums; bytes by one float scale; and sums that our kernel
//! requantizes, which alone is the same computation as ours and gives the same bytes.

use std::sync::Arc;

use requant_kernels_cuda::ops::conv::ConvIo;
use requant_kernels_cuda::ops::maps::{Operand, Requantized};
use requant_kernels_cuda::{Command, Context, OpError, Recording, Session};
use requant_numerics::DType;
use serde_json::{Value, json};
use thiserror::Error;

use super::cublaslt::{CublasLt, LtError, Operands, Output, Product};
use super::gemm::{self, Numbers, Work};
use super::report::Report;

/// Bytes that cuBLASLt may use beside the operands.
const WORKSPACE: usize = 32 << 20;

/// Shapes of which our bytes and cuBLASLt's are compared: whole tiles, and tails that it accepts.
const COMPARED: [[usize; 3]; 3] = [[256, 128, 128], [332, 208, 132], [64, 1024, 48]];

/// Why a bar was not measured.
#[derive(Debug, Error)]
pub(crate) enum BarError {
    #[error(transparent)]
    Lt(#[from] LtError),
    #[error(transparent)]
    Ours(#[from] OpError),
}

impl From<requant_kernels_cuda::CudaError> for BarError {
    fn from(error: requant_kernels_cuda::CudaError) -> Self {
        BarError::Lt(error.into())
    }
}

/// The bars that our products are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bar {
    Sums,
    Bytes,
    Requantized,
}

pub(crate) struct Bars {
    lt: CublasLt,
}

/// Where operands are in a session's memory.
struct Places {
    copies: usize,
    each: usize,
    w: usize,
    sums: usize,
    bytes: usize,
    workspace: usize,
    total: usize,
}

impl Places {
    fn new(work: &Work, copies: usize) -> Self {
        let [rows, depth, channels] = work.dims();
        let mut end = 0;
        let mut place = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(256);
            start
        };
        // What cuBLASLt multiplies is the matrix that a convolution stands for.
        let each = (rows * depth).next_multiple_of(256);
        place(copies * each);
        Places {
            copies,
            each,
            w: place(depth * channels),
            sums: place(rows * channels * 4),
            bytes: place(rows * channels),
            workspace: place(WORKSPACE),
            total: end,
        }
    }
}

impl Bars {
    /// Opens cuBLASLt for the context's device.
    pub(crate) fn open(context: &Arc<Context>, file: Option<&str>) -> Result<Self, LtError> {
        // Makes the device current on this thread.
        context.memory()?;
        let lt = CublasLt::open(file)?;
        Ok(Bars { lt })
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "library": self.lt.name(), "version": self.lt.version() })
    }

    /// Compares our bytes with those that we make of cuBLASLt's sums: an oracle that shares nothing with us.
    pub(crate) fn check(&self, context: &Arc<Context>, report: &mut Report) {
        let (mut right, mut wrong) = (0, 0);
        for [rows, depth, channels] in COMPARED {
            let work = Work::matrix("cuBLASLt's sums", rows, depth, channels);
            match self.agree(context, &work) {
                Ok(true) => right += 1,
                Ok(false) => {
                    let what = format!("{rows} x {depth} x {channels}: other bytes than ours");
                    report.failed(&work.name, &what);
                    wrong += 1;
                }
                Err(reason) => report.skipped(&work.name, &reason.to_string()),
            }
        }
        report.tally("cuBLASLt's sums, requantized", right, wrong);
    }

    /// Whether our fused product and cuBLASLt's with our requantization behind it give the same bytes.
    pub(crate) fn agree(&self, context: &Arc<Context>, work: &Work) -> Result<bool, BarError> {
        let [rows, _, channels] = work.dims();
        let weights = gemm::weights(work);
        let conv = gemm::conv(context, work, [DType::I8; 2], &weights)?;
        let places = Places::new(work, 1);
        // Behind the other operands our own output and its zeroed memory.
        let (own, size) = (places.total, rows * channels);
        let scratch = own + size.next_multiple_of(256);
        let scratch_bytes = conv.scratch_bytes(1);
        let total = scratch + scratch_bytes;
        let mut session = Session::new(context, total, total)?;
        self.prepare(&mut session, &places, &weights)?;
        let base = session.address();
        let io = ConvIo {
            samples: 1,
            x: base,
            y: base + own as u64,
            scratch: base + scratch as u64,
            scratch_bytes,
            ..ConvIo::default()
        };
        let launch = conv.launch(&io)?;
        session.run(&[Command::Launch(launch)])?;
        self.put_once(context, &mut session, work, &places)?;
        let all = Command::Download {
            from: 0..total,
            to: 0,
        };
        session.run(&[all])?;
        let of = |at: usize| &session.staging()[at..at + size];
        Ok(of(places.bytes) == of(own))
    }

    /// Noise as inputs, the weights of our product behind them.
    fn prepare(
        &self,
        session: &mut Session,
        places: &Places,
        weights: &[i16],
    ) -> Result<(), BarError> {
        gemm::fill(session, Numbers::Bytes, places.copies * places.each)?;
        let bytes = session.staging_mut().iter_mut();
        bytes
            .zip(weights)
            .for_each(|(to, &weight)| *to = weight as u8);
        let upload = Command::Upload {
            from: 0..weights.len(),
            to: places.w,
        };
        Ok(session.run(&[upload])?)
    }

    fn put_once(
        &self,
        context: &Arc<Context>,
        session: &mut Session,
        work: &Work,
        places: &Places,
    ) -> Result<(), BarError> {
        let product = Product::new(&self.lt, work.dims(), Output::I32, WORKSPACE)?;
        let requantized =
            Requantized::new(context, Some(&gemm::requantize(work, DType::I8)), DType::I8)?;
        session.record_with(0, |recording| {
            let operands = operands(recording, places, Bar::Requantized, 0);
            // SAFETY: `Places` has room for every operand in the session's memory, whose stream it is; the
            // session waits for the work before it goes.
            unsafe { product.enqueue(0, &operands, recording.stream()) }?;
            rescale(recording, &requantized, work, places)
        })?;
        Ok(session.replay(0)?)
    }

    /// Median microseconds by each way to ask cuBLASLt, its fastest algorithm each time.
    pub(crate) fn time(
        &self,
        context: &Arc<Context>,
        work: &Work,
    ) -> Vec<(&'static str, Result<f64, BarError>)> {
        let bars = [
            ("cuBLASLt s8 to s32", Bar::Sums),
            ("cuBLASLt s8 to s8, one float scale", Bar::Bytes),
            ("cuBLASLt s8 to s32, then our requantize", Bar::Requantized),
        ];
        let timed = |(name, bar)| (name, self.time_bar(context, work, bar));
        bars.into_iter().map(timed).collect()
    }

    fn time_bar(&self, context: &Arc<Context>, work: &Work, bar: Bar) -> Result<f64, BarError> {
        let output = match bar {
            Bar::Sums | Bar::Requantized => Output::I32,
            Bar::Bytes => Output::I8 { scale: 1e-3 },
        };
        let product = Product::new(&self.lt, work.dims(), output, WORKSPACE)?;
        let requantized =
            Requantized::new(context, Some(&gemm::requantize(work, DType::U8)), DType::U8)?;
        let places = Places::new(work, gemm::copies(work));
        let weights = gemm::weights(work);
        let staging = weights.len().max(places.each);
        let mut session = Session::new(context, places.total, staging)?;
        self.prepare(&mut session, &places, &weights)?;
        let mut best = f64::INFINITY;
        for algorithm in 0..product.algorithms() {
            let us = gemm::time::<BarError>(&mut session, work, |recording, turn| {
                let operands = operands(recording, &places, bar, turn % places.copies);
                // SAFETY: as in `put_once`.
                unsafe { product.enqueue(algorithm, &operands, recording.stream()) }?;
                match bar {
                    Bar::Sums | Bar::Bytes => Ok(()),
                    Bar::Requantized => rescale(recording, &requantized, work, &places),
                }
            });
            // An algorithm that refuses after all leaves the others.
            match us {
                Ok(us) => best = best.min(us),
                Err(error) if algorithm + 1 == product.algorithms() && best.is_infinite() => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(best)
    }
}

fn operands(recording: &Recording<'_>, places: &Places, bar: Bar, copy: usize) -> Operands {
    let at = |offset: usize| recording.address() + offset as u64;
    Operands {
        x: at(copy * places.each),
        w: at(places.w),
        y: at(match bar {
            Bar::Sums | Bar::Requantized => places.sums,
            Bar::Bytes => places.bytes,
        }),
        workspace: (at(places.workspace), WORKSPACE),
    }
}

fn rescale(
    recording: &Recording<'_>,
    requantized: &Requantized,
    work: &Work,
    places: &Places,
) -> Result<(), BarError> {
    let [rows, _, channels] = work.dims();
    let sums = Operand {
        address: recording.address() + places.sums as u64,
        dtype: DType::I32,
        dims: &[rows, channels],
    };
    let launch = requantized.rescale(sums, 0, recording.address() + places.bytes as u64)?;
    Ok(recording.launch(&launch)?)
}
