//! How the command fails: who is at fault decides the exit code, and every cause fits one line.

use std::process::ExitCode;

use requant_client::Error;

/// Why the command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A wrong flag or file.
    Usage(String),
    /// The server refused the call, did not answer, or answered badly.
    Server(String),
    /// This machine would not do it.
    Local(String),
}

impl Failure {
    /// The argument parser's complaint without its usage text.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let complaint = text.split("\n\n").next().unwrap_or_default();
        Self::Usage(
            complaint
                .strip_prefix("error: ")
                .unwrap_or(complaint)
                .to_owned(),
        )
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Server(_) | Self::Local(_) => ExitCode::from(1),
        }
    }

    /// The cause in one line, whatever the server put in it.
    pub(crate) fn line(&self) -> String {
        let (Self::Usage(text) | Self::Server(text) | Self::Local(text)) = self;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Address { .. } => Self::Usage(text),
            Error::Status { .. } | Error::Deadline { .. } | Error::Tensor(_) | Error::Decode(_) => {
                Self::Server(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_one_line() {
        let failure = Failure::Server("INTERNAL: first\n  second\r\n\tthird\n".to_owned());
        assert_eq!(failure.line(), "INTERNAL: first second third");
    }
}
