//! What a model may cost. A budget is written as the user thinks of it, as a fraction of the all-8-bit
//! model's cost (`--budget size=0.6,latency=0.7`), and becomes an absolute limit once the model is known.

use core::fmt;
use core::str::FromStr;

use super::error::Error;
use super::problem::{Cost, Problem};

/// A cost that can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Bytes of weights, scales, biases and tables.
    Size,
    /// Bit operations: `Σ MACs·bits(weights)·bits(activations)`.
    Bops,
    /// Seconds of one inference, summed from a profile.
    Latency,
}

/// Budgets, at most one of a kind; all of them hold at once.
///
/// `size`, `bops` and `latency` are fractions in (0, 1] of what the model costs with each layer at its
/// reference choice (8-bit weights and activations), parts that no choice changes included on both sides.
/// 4-bit weights in every layer are about `size=0.5`; saving 60 % of the way from 8 to 4 bits is `size=0.7`.
///
/// `accuracy` is a floor in (0, 1] on what the evaluator measures. It turns the search around: the cheapest
/// assignment that reaches it is looked for, within the other budgets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budgets {
    /// Fraction of the all-8-bit model's bytes.
    pub size: Option<f64>,
    /// Fraction of its bit operations.
    pub bops: Option<f64>,
    /// Fraction of its predicted latency.
    pub latency: Option<f64>,
    /// Least accuracy.
    pub accuracy: Option<f64>,
}

/// Upper limits in the units of [`Cost`]; none where a cost is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes.
    pub bytes: Option<f64>,
    /// Bit operations.
    pub bops: Option<f64>,
    /// Seconds.
    pub latency: Option<f64>,
}

/// What is wrong with the text of a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// No `KIND=NUMBER`.
    #[error("budget {text:?} is not KIND=FRACTION")]
    Syntax {
        /// The text.
        text: String,
    },
    /// A kind that does not exist.
    #[error("budget {kind:?} is none of size, latency, bops and accuracy")]
    Kind {
        /// The text before the `=`.
        kind: String,
    },
    /// Not a number in (0, 1].
    #[error("budget {text:?}: the fraction must be above 0 and at most 1")]
    Range {
        /// The text.
        text: String,
    },
    /// A kind that occurs twice.
    #[error("budget {kind} is given twice")]
    Repeated {
        /// The kind.
        kind: String,
    },
}

/// Sums of latencies depend on their order by a rounding error; a limit must not.
pub(super) const SLACK: f64 = 1.0 + 1e-9;

impl Metric {
    /// Every metric, in the order of the arrays that hold one number for each.
    pub const ALL: [Metric; 3] = [Metric::Size, Metric::Bops, Metric::Latency];

    /// The name in a budget.
    pub const fn label(self) -> &'static str {
        match self {
            Metric::Size => "size",
            Metric::Bops => "bops",
            Metric::Latency => "latency",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl Budgets {
    /// The fraction asked for of one cost.
    pub fn fraction(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Size => self.size,
            Metric::Bops => self.bops,
            Metric::Latency => self.latency,
        }
    }

    /// The limits on a model, of which `problem` tells the all-8-bit cost.
    ///
    /// # Errors
    /// A malformed problem, or a latency budget without latencies.
    pub fn limits(&self, problem: &Problem) -> Result<Limits, Error> {
        problem.validate()?;
        if self.latency.is_some() {
            problem.needs_latency()?;
        }
        let reference = problem.reference();
        let mut limits = Limits::default();
        for metric in Metric::ALL {
            if let (Some(fraction), Some(whole)) = (self.fraction(metric), reference.of(metric)) {
                limits.set(metric, Some(fraction * whole));
            }
        }
        Ok(limits)
    }
}

impl Limits {
    /// The limit on one cost.
    pub fn of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Size => self.bytes,
            Metric::Bops => self.bops,
            Metric::Latency => self.latency,
        }
    }

    /// Changes the limit on one cost.
    pub fn set(&mut self, metric: Metric, limit: Option<f64>) {
        match metric {
            Metric::Size => self.bytes = limit,
            Metric::Bops => self.bops = limit,
            Metric::Latency => self.latency = limit,
        }
    }

    /// Whether a cost is within every limit, up to a part in 10⁹. A latency that is not known is not within
    /// a limit.
    pub fn admit(&self, cost: &Cost) -> bool {
        Metric::ALL.iter().all(|&metric| {
            self.of(metric)
                .is_none_or(|limit| cost.of(metric).is_some_and(|cost| cost <= limit * SLACK))
        })
    }
}

impl FromStr for Budgets {
    type Err = BudgetError;

    /// `KIND=FRACTION`, several of them with commas between.
    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let mut budgets = Budgets::default();
        for part in text.split(',') {
            let part = part.trim();
            let (kind, number) = part.split_once('=').ok_or_else(|| BudgetError::Syntax {
                text: part.to_owned(),
            })?;
            let slot = match kind {
                "size" => &mut budgets.size,
                "bops" => &mut budgets.bops,
                "latency" => &mut budgets.latency,
                "accuracy" => &mut budgets.accuracy,
                _ => {
                    return Err(BudgetError::Kind {
                        kind: kind.to_owned(),
                    });
                }
            };
            let fraction: f64 = number.parse().map_err(|_| BudgetError::Syntax {
                text: part.to_owned(),
            })?;
            if !(fraction > 0.0 && fraction <= 1.0) {
                return Err(BudgetError::Range {
                    text: part.to_owned(),
                });
            }
            if slot.replace(fraction).is_some() {
                return Err(BudgetError::Repeated {
                    kind: kind.to_owned(),
                });
            }
        }
        Ok(budgets)
    }
}

impl fmt::Display for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("size", self.size),
            ("bops", self.bops),
            ("latency", self.latency),
            ("accuracy", self.accuracy),
        ];
        let mut separator = "";
        for (kind, fraction) in parts {
            if let Some(fraction) = fraction {
                write!(f, "{separator}{kind}={fraction}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_as_they_are_written() {
        for text in [
            "size=0.6",
            "bops=0.5",
            "size=0.6,latency=0.7",
            "accuracy=0.98",
        ] {
            assert_eq!(text.parse::<Budgets>().unwrap().to_string(), text);
        }
        let both: Budgets = "latency=0.7, size=1".parse().unwrap();
        assert_eq!(
            (both.latency, both.size, both.bops),
            (Some(0.7), Some(1.0), None)
        );
    }

    #[test]
    fn a_wrong_budget_says_what_is_wrong() {
        let error = |text: &str| text.parse::<Budgets>().unwrap_err().to_string();
        assert_eq!(error(""), "budget \"\" is not KIND=FRACTION");
        assert_eq!(error("size"), "budget \"size\" is not KIND=FRACTION");
        assert_eq!(
            error("size=much"),
            "budget \"size=much\" is not KIND=FRACTION"
        );
        assert_eq!(
            error("energy=0.5"),
            "budget \"energy\" is none of size, latency, bops and accuracy"
        );
        for text in ["size=0", "size=-1", "size=60", "size=nan", "size=inf"] {
            assert_eq!(
                error(text),
                format!("budget {text:?}: the fraction must be above 0 and at most 1")
            );
        }
        assert_eq!(error("size=0.5,size=0.6"), "budget size is given twice");
    }
}
