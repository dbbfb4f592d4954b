//! Why no precision could be chosen: the problem is malformed, a budget is out of reach, or a candidate
//! could not be evaluated. Each variant names the layer or the figure, since the user has to change one.

use requant_numerics::LayerPrecision;

use super::budget::Metric;
use super::problem::Score;

/// What a search can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer has an empty list.
    #[error("layer {layer}: there is no precision to choose from")]
    NoChoice {
        /// Its name.
        layer: String,
    },
    /// `fixed` or `reference` is not an index into the layer's choices.
    #[error("layer {layer}: choice {index} of {count} does not exist")]
    NoSuchChoice {
        /// Its name.
        layer: String,
        /// The index.
        index: usize,
        /// How many choices there are.
        count: usize,
    },
    /// A sensitivity that is not finite, or a latency that is negative or not finite.
    #[error("layer {layer} at {precision}: {what} is {value}")]
    Figure {
        /// Its name.
        layer: String,
        /// Which choice.
        precision: LayerPrecision,
        /// `sensitivity` or `latency`.
        what: &'static str,
        /// The number found.
        value: f64,
    },
    /// A tie names a layer that does not exist.
    #[error("a tie names layer {index}, there are {count}")]
    NoSuchLayer {
        /// The index.
        index: usize,
        /// How many layers there are.
        count: usize,
    },
    /// Tied layers have no precision in common, once fixed ones are taken into account.
    #[error("layers {} must have one precision, but none is open to all of them", layers.join(", "))]
    Tie {
        /// Their names.
        layers: Vec<String>,
    },
    /// A latency budget, and a choice nobody measured.
    #[error(
        "layer {layer} at {precision} has no measured latency: a latency budget needs a profile of it"
    )]
    NoLatency {
        /// Its name.
        layer: String,
        /// Which choice.
        precision: LayerPrecision,
    },
    /// Even the cheapest assignment is above the budget.
    #[error(
        "budget {metric}={} cannot be reached: the smallest reachable value is {metric}={}",
        plain(*asked),
        up(*least)
    )]
    Unreachable {
        /// The limited cost.
        metric: Metric,
        /// The budget, as a fraction of the all-8-bit model's cost.
        asked: f64,
        /// The cheapest assignment's cost, likewise.
        least: f64,
    },
    /// Each budget can be met, but not all at once.
    #[error(
        "the budgets cannot be reached together: while the others hold, the smallest reachable value of \
         {metric} is {}, not {}",
        up(*least),
        plain(*asked)
    )]
    UnreachableTogether {
        /// One of the limited costs.
        metric: Metric,
        /// Its budget, as a fraction of the all-8-bit model's cost.
        asked: f64,
        /// The least of it where all other budgets hold.
        least: f64,
    },
    /// No assignment was found to reach the accuracy floor.
    #[error(
        "accuracy={floor} is not reached: the best model found answers {best:.4} of the samples that models are judged on as the float model does"
    )]
    Floor {
        /// The floor.
        floor: f64,
        /// Highest accuracy of all evaluated assignments within the other budgets.
        best: f64,
    },
    /// An assignment without a choice for each layer, or with one that does not exist.
    #[error("an assignment does not fit the problem's {layers} layers")]
    Assignment {
        /// How many layers the problem has.
        layers: usize,
    },
    /// A score that cannot be compared.
    #[error("a candidate was scored with accuracy {} and loss {}", .0.accuracy, .0.loss)]
    Score(Score),
    /// The evaluator failed.
    #[error("a candidate could not be evaluated")]
    Evaluator(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// As it was given: a limit divided by what it is a share of differs from it by roundings.
fn plain(fraction: f64) -> String {
    format!("{}", (fraction * 1e9).round() / 1e9)
}

/// Four digits, rounded up: a value that is shown can be asked for.
fn up(fraction: f64) -> String {
    format!("{:.4}", (fraction * 1e4 - 1e-6).ceil() / 1e4)
}
