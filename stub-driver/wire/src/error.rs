//! What is wrong with a message.

use crate::{Command, Errno};
use std::fmt;

/// A message that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// One field has a value that the specification rules out.
    #[error("{command}: {field} is {found:#x}, expected {expected}")]
    Field {
        /// The command of the message.
        command: Command,
        /// The field, by its name in the specification; "payload length" for the length of the payload.
        field: &'static str,
        /// The value found.
        found: u64,
        /// What would have been accepted.
        expected: Expected,
        /// What to answer.
        errno: Errno,
    },
    /// The version data is not the JSON that "`VFIO_USER_VERSION`" describes.
    #[error("{command}: version data: {reason}", command = Command::VERSION)]
    Json {
        /// What the JSON parser said.
        reason: String,
    },
}

/// What a field should have held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Exactly this value.
    Exactly(u64),
    /// This value or more.
    AtLeast(u64),
    /// This value or less.
    AtMost(u64),
    /// A rule in words.
    Rule(&'static str),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(v) => write!(f, "{v:#x}"),
            Self::AtLeast(v) => write!(f, "at least {v:#x}"),
            Self::AtMost(v) => write!(f, "at most {v:#x}"),
            Self::Rule(rule) => f.write_str(rule),
        }
    }
}

impl WireError {
    /// The errno to answer with.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Field { errno, .. } => *errno,
            Self::Json { .. } => Errno::EINVAL,
        }
    }

    /// A field whose value is not allowed: EINVAL.
    pub(crate) fn invalid(command: Command, field: &'static str, found: impl Into<u64>, expected: Expected) -> Self {
        Self::Field { command, field, found: found.into(), expected, errno: Errno::EINVAL }
    }
}
