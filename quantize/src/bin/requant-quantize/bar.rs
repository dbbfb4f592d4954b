//! Progress on standard error.

use std::io::{self, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use requant_quantize::progress::Progress;

/// A progress bar, where somebody watches.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar without a stage.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg:12} {bar:40} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        Bar { bar }
    }

    /// A line of its own, above the bar where there is one.
    pub(crate) fn note(&self, text: &str) {
        if self.bar.is_hidden() {
            // Nobody is left to tell where standard error is closed.
            let _ = writeln!(io::stderr(), "{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn stage(&self, name: &str, steps: usize) {
        self.bar.set_position(0);
        self.bar.set_length(steps as u64);
        self.bar.set_message(name.to_owned());
    }

    fn advance(&self, steps: usize) {
        self.bar.inc(steps as u64);
    }

    fn warn(&self, message: &dyn std::fmt::Display) {
        self.note(&format!("warning: {message}"));
    }
}
