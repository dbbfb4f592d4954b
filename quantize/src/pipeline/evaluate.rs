//! The integer model of an assignment, made and run: what a search is told, and what the report says.

use requant_import::float::{Quantized, to_graph};
use requant_model::Graph;

use super::error::PipelineError;
use super::observe::batch_size;
use super::samples::Samples;
use crate::engine::Engine;
use crate::exec::{Executor, Reals};
use crate::judge::{Answer, Verdict, compare};
use crate::progress::Progress;

/// Samples a run of the engine.
const BATCH: usize = 16;

/// A verdict on the float model and one on the integer model, over the same samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// The float model against the labels.
    pub float: Verdict,
    /// The integer model against the float model and the labels.
    pub integer: Verdict,
}

/// Samples with the float model's answers.
#[derive(Clone, Debug)]
pub(super) struct Truth<'d> {
    pub(super) samples: Samples<'d>,
    /// Of each output, every sample's answer, one after the other.
    pub(super) answers: Vec<Vec<f32>>,
    pub(super) answer: Answer,
}

impl Truth<'_> {
    /// The first `count` samples.
    pub(super) fn take(&self, count: usize) -> Self {
        let samples = self.samples.take(count);
        let taken = self.rows(0, samples.len());
        Truth {
            answers: taken.into_iter().map(<[f32]>::to_vec).collect(),
            samples,
            answer: self.answer,
        }
    }

    /// The answers of `count` samples from `first` on, an output a slice.
    fn rows(&self, first: usize, count: usize) -> Vec<&[f32]> {
        let of = |output: &Vec<f32>| {
            let width = output.len() / self.samples.len().max(1);
            first * width..(first + count) * width
        };
        let outputs = self.answers.iter();
        outputs.map(|output| &output[of(output)]).collect()
    }

    /// Runs an integer model over the samples and compares.
    pub(super) fn judge(
        &self,
        engine: &Engine,
        graph: Graph,
        progress: &dyn Progress,
    ) -> Result<Verdict, PipelineError> {
        let mut model = engine.load(graph, BATCH)?;
        let mut verdict = Verdict::default();
        for first in (0..self.samples.len()).step_by(BATCH) {
            super::check(progress)?;
            let count = BATCH.min(self.samples.len() - first);
            let tensors = self.samples.batch(first, count)?;
            let inputs: Vec<&[f32]> = tensors.iter().map(|t| &t.data[..]).collect();
            let outputs = model.run(count, &inputs)?;
            let labels = self.samples.labels().map(|l| &l[first..first + count]);
            let float = self.rows(first, count);
            let quantized: Vec<&[f32]> = outputs.iter().map(|output| &output[..]).collect();
            verdict = verdict.plus(&compare(self.answer, count, &float, &quantized, labels));
        }
        Ok(verdict)
    }

    /// The float model's own verdict.
    pub(super) fn float(&self) -> Verdict {
        let (count, labels) = (self.samples.len(), self.samples.labels());
        let answers = self.rows(0, count);
        compare(self.answer, count, &answers, &answers, labels)
    }

    /// Makes the integer model and judges it.
    pub(super) fn judge_quantized(
        &self,
        engine: &Engine,
        quantized: &Quantized<'_>,
        progress: &dyn Progress,
    ) -> Result<Verdict, PipelineError> {
        self.judge(engine, to_graph(quantized)?, progress)
    }
}

/// Judges a finished model on samples that had no part in making it.
///
/// # Errors
/// A model that does not run, a stop.
pub fn evaluate(
    executor: &Executor<'_>,
    model: &Graph,
    samples: &Samples<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Evaluation, PipelineError> {
    let graph = executor.graph();
    let reals = Reals::default();
    let mut answers = vec![Vec::new(); graph.outputs.len()];
    let batch = batch_size(graph);
    progress.stage("evaluate", samples.len());
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let outputs = executor.run(samples.batch(first, count)?, &reals)?;
        for (answers, output) in answers.iter_mut().zip(&outputs) {
            answers.extend_from_slice(&output.data);
        }
        progress.advance(count);
    }
    let truth = Truth {
        samples: samples.clone(),
        answers,
        answer: Answer::of(graph),
    };
    let engine = Engine::new(threads)?;
    Ok(Evaluation {
        float: truth.float(),
        integer: truth.judge(&engine, model.clone(), progress)?,
    })
}
