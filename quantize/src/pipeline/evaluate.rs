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
    /// The first output of every sample.
    pub(super) answers: Vec<f32>,
    pub(super) answer: Answer,
}

impl Truth<'_> {
    /// The first `count` samples.
    pub(super) fn take(&self, count: usize) -> Self {
        let samples = self.samples.take(count);
        let width = self.answers.len() / self.samples.len().max(1);
        Truth {
            answers: self.answers[..samples.len() * width].to_vec(),
            samples,
            answer: self.answer,
        }
    }

    /// Runs an integer model over the samples and compares.
    pub(super) fn judge(
        &self,
        engine: &Engine,
        graph: Graph,
        progress: &dyn Progress,
    ) -> Result<Verdict, PipelineError> {
        let mut model = engine.load(graph, BATCH)?;
        let width = self.answers.len() / self.samples.len().max(1);
        let mut verdict = Verdict::default();
        for first in (0..self.samples.len()).step_by(BATCH) {
            super::check(progress)?;
            let count = BATCH.min(self.samples.len() - first);
            let tensors = self.samples.batch(first, count)?;
            let inputs: Vec<&[f32]> = tensors.iter().map(|t| &t.data[..]).collect();
            let outputs = model.run(count, &inputs)?;
            let labels = self.samples.labels().map(|l| &l[first..first + count]);
            let float = &self.answers[first * width..(first + count) * width];
            let quantized = outputs.first().map_or(&[][..], |output| &output[..]);
            verdict = verdict.plus(&compare(self.answer, count, float, quantized, labels));
        }
        Ok(verdict)
    }

    /// The float model's own verdict.
    pub(super) fn float(&self) -> Verdict {
        let (count, labels) = (self.samples.len(), self.samples.labels());
        compare(self.answer, count, &self.answers, &self.answers, labels)
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
    let mut answers = Vec::new();
    let batch = batch_size(graph);
    progress.stage("evaluate", samples.len());
    for first in (0..samples.len()).step_by(batch) {
        super::check(progress)?;
        let count = batch.min(samples.len() - first);
        let outputs = executor.run(samples.batch(first, count)?, &reals)?;
        if let Some(output) = outputs.first() {
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
